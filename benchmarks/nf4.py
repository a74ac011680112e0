"""Quantizing 16 million weights to NF4 and back, beside bitsandbytes and plain loops.

python benchmarks/nf4.py        (needs the extra "parity")
"""

import torch
from bitsandbytes import functional as bnb
from common import interleaved, print_table, write_result

from minillm.compression.codebooks import NF4_LEVELS
from minillm.compression.nf4 import FourBit, dequantize_nf4, quantize_nf4

SHAPE, BLOCK = (4096, 4096), 64


def by_indexing(q: FourBit) -> torch.Tensor:
    """Unpack, look each code up, scale: three new tensors."""
    codes = torch.stack([q.packed >> 4, q.packed & 15], dim=1).flatten()
    values = NF4_LEVELS[codes.long()].view(-1, BLOCK) * q.scales[:, None]
    return values.view(q.shape)


def block_by_block(q: FourBit) -> torch.Tensor:
    """The same for one block after the other, as the formula is written."""
    out = torch.empty(q.shape.numel() // BLOCK, BLOCK)
    packed = q.packed.view(-1, BLOCK // 2)
    for b, scale in enumerate(q.scales):
        codes = torch.stack([packed[b] >> 4, packed[b] & 15], dim=1).flatten()
        out[b] = NF4_LEVELS[codes.long()] * scale
    return out.view(q.shape)


def main():
    weight = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    ours = quantize_nf4(weight, BLOCK)
    settings = {"blocksize": BLOCK, "quant_type": "nf4", "compress_statistics": False}
    packed, state = bnb.quantize_4bit(weight, **settings)
    others = (ours.packed != packed.flatten()).sum().item()
    print(f"{others} of {len(ours.packed):,} bytes differ: weights between two levels")
    assert others < 1e-5 * len(ours.packed)
    back = dequantize_nf4(ours)
    assert torch.allclose(back, by_indexing(ours))
    quantize = interleaved(
        {
            "minillm": lambda: quantize_nf4(weight, BLOCK),
            "bitsandbytes": lambda: bnb.quantize_4bit(weight, **settings),
        }
    )
    dequantize = interleaved(
        {
            "minillm": lambda: dequantize_nf4(ours),
            "indexing": lambda: by_indexing(ours),
            "bitsandbytes": lambda: bnb.dequantize_4bit(packed, state),
        },
        repeats=15,  # some turns wait for large pages
    )
    part = quantize_nf4(weight[:128], BLOCK)
    loop = interleaved(
        {
            "minillm": lambda: dequantize_nf4(part),
            "block by block": lambda: block_by_block(part),
        }
    )
    nested = quantize_nf4(weight, BLOCK, double_quant=True)
    for name, timings in (("to NF4", quantize), ("back", dequantize), ("loop", loop)):
        print_table(name, timings)
    differ = {"bytes_that_differ": others, "of": len(ours.packed)}
    result = differ | {
        "quantize": quantize,
        "dequantize": dequantize,
        "a 32nd of it": loop,
    }
    bytes_ = {"bytes_per_weight": nested.nbytes / weight.numel()}
    write_result("nf4", result | bytes_, "torch", "bitsandbytes")


if __name__ == "__main__":
    main()
