"""Codes of few bits, packed without a gap: what is counted is what is held.

A byte is the least that a computer hands out, so a code of three bits in a byte of its
own takes eight. Eight codes of b bits fill b bytes exactly, whatever b is:

    word = c0 + c1 2^b + c2 2^(2b) + ... + c7 2^(7b)        its lowest b bytes
"""

import numpy as np
import torch
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor


def pack_bits(codes: Shaped[Tensor, "*N"], bits: int) -> UInt8[Tensor, " bytes"]:
    """Pack codes below 2^bits, eight to ``bits`` bytes; zeros fill up the last ones.

    Args:
        codes: of any shape, whole numbers.
        bits: 1 to 8.

    >>> pack_bits(torch.tensor([1, 2, 3, 0, 0, 0, 0, 1]), 2)   # from the right: 3 2 1
    tensor([57, 64], dtype=torch.uint8)
    """
    flat = codes.flatten().long()
    eights = torch.cat([flat, flat.new_zeros(-len(flat) % 8)]).view(-1, 8)
    words = (eights << _places(bits, flat)).sum(1, keepdim=True)
    return words.view(torch.uint8)[:, :bits].flatten()


def unpack_bits(
    packed: UInt8[Tensor, " bytes"], bits: int, n: int
) -> UInt8[Tensor, " n"]:
    """The first n codes of ``pack_bits``.

    >>> unpack_bits(torch.tensor([57, 64], dtype=torch.uint8), 2, 4)
    tensor([1, 2, 3, 0], dtype=torch.uint8)
    """
    words = packed.new_zeros(len(packed) // bits, 8)
    words[:, :bits] = packed.view(-1, bits)
    places = _places(bits, words.view(torch.int64))
    codes = words.view(torch.int64) >> places & (2**bits - 1)
    return codes.flatten()[:n].to(torch.uint8)


def _places(bits: int, like: Tensor) -> Tensor:
    return bits * torch.arange(8, device=like.device)


def room(n: int, device: torch.device) -> Float[Tensor, " n"]:
    """Memory for n floats, with anything in it.

    On the CPU it comes from NumPy, which asks Linux for large pages: torch's comes in
    pages of 4 KB, and to get each of them costs more than to write it.

    >>> room(3, torch.device("cpu")).dtype
    torch.float32
    """
    if device.type == "cpu":
        return torch.from_numpy(np.empty(n, np.float32))
    return torch.empty(n, device=device)
