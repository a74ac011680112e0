"""How many CPU seconds GPTQ takes for the small model, with reading what it needs.

python benchmarks/gptq.py

The zoo's base model reads 128 rows of TinyWorld (calibration), then each linear layer
is quantized to 4 bits in groups of 64; beside it AWQ and rounding. A layer of 1,024 by
1,024 shows how the time grows.
"""

import copy

import torch
from common import interleaved, print_table, write_result  # one thread

from minillm.compression import Grid, awq, gptq, quantize_model, quantize_rtn
from minillm.school import zoo
from minillm.school.tinytext import tiny_text

GRID, ROWS, B = Grid(4, 64), 128, 16
METHODS = {
    "gptq": lambda w, x: gptq(w, x.hessian, GRID),
    "awq": lambda w, x: awq(w, x, GRID),
    "rounding": lambda w, x: quantize_rtn(w, GRID),
}


def main():
    found, text = zoo.load("base", progress=False), tiny_text(documents=20_000, test=1)
    assert text.tokenizer == found.tokenizer
    model, batches = found.model, text.rows[:ROWS].split(B)
    small = interleaved(
        {
            name: lambda q=q, x=None if name == "rounding" else batches: quantize_model(
                copy.deepcopy(model), q, x
            )
            for name, q in METHODS.items()
        }
    )
    dice = torch.Generator().manual_seed(0)
    weight, mixing = torch.randn(2, 1024, 1024, generator=dice)
    hessian = mixing @ mixing.T / 512
    large = interleaved({"gptq": lambda: gptq(weight, hessian, GRID)}, repeats=3)
    print_table("the base model, calibration included", small)
    print_table("a layer of 1,024 by 1,024", large)
    tokens = {"calibration_tokens": sum(rows.numel() for rows in batches)}
    result = tokens | {"base": small, "1024 by 1024": large}
    write_result("gptq", result, "torch")


if __name__ == "__main__":
    main()
