"""Generation with and without a KV cache: tokens per CPU second.

    python benchmarks/generation.py

Prompt 8 tokens, 100 new ones, batches of 1, 16 and 64, one thread. Uncached generation
runs the whole sequence for every new token; both compute only the last position's
logits.
"""

import argparse
from functools import partial

import torch
from common import interleaved, write_result  # first: sets the threads

from minillm.model import GPT, GPTConfig, count_parameters, generate

PROMPT, NEW = 8, 100
SHAPES = {"0.1M": (2, 2, 64), "0.4M": (3, 3, 96), "0.9M": (4, 4, 128)}


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--repeats", type=int, default=3)
    given = options.parse_args()
    result = {"prompt": PROMPT, "new_tokens": NEW, "shapes": {}}
    for name, (n_layer, n_head, n_embd) in SHAPES.items():
        torch.manual_seed(0)
        model = GPT(GPTConfig(512, n_layer, n_head, None, n_embd, context=128))
        rows = {"parameters": count_parameters(model.config)["total"]}
        for B in (1, 16, 64):
            prompts = torch.randint(512, (B, PROMPT)).tolist()
            cached = partial(generate, model, prompts, NEW)
            rivals = {"cached": cached, "uncached": partial(cached, cached=False)}
            timings = interleaved(rivals, given.repeats)
            speed = {n: round(B * NEW / row["median_s"]) for n, row in timings.items()}
            times = timings["uncached"]["ratio"]
            rows[f"batch {B}"] = speed | {"cached_is_faster_by": times}
            print(f"{name}  batch {B:>2}: {speed}  cached is {times:.1f} times as fast")
        result["shapes"][name] = rows
    write_result("generation", result, "torch")


if __name__ == "__main__":
    main()
