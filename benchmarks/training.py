"""Training tokens per second: minillm, nanoGPT, transformers' Llama, and the machine.

    python benchmarks/training.py --nanogpt PATH_TO_A_CHECKOUT [--threads 2]

Every rival does whole steps (forward, backward, clipping at 1.0, optimizer) on the
same tokens, in turns in one process. All use torch's fused AdamW but where the name
says otherwise, so the ratio compares models; "as shipped" has nanoGPT's own optimizer,
"minillm, Muon" is the step of the main job. nanoGPT is read from a checkout and never
copied; without one the other rivals still run. MFU is the share of this machine's own
best matrix product that a step reaches.
"""

import argparse
import importlib.util
import statistics
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from common import interleaved, write_result  # first: sets the threads

from minillm.model import GPT, GPTConfig, count_parameters, flops_per_token
from minillm.training import next_token_loss
from minillm.training.optimizers import build_optimizers, clip_gradients

V, T, B = 512, 128, 16
# Widths where 8/3 C is a multiple of 32: SwiGLU's three matrices then have exactly the
# parameters of nanoGPT's two.
SHAPES = {"0.1M": (2, 2, 48), "0.4M": (3, 3, 96), "2.8M": (6, 6, 192)}


def step_function(model, loss, optimizers, clip=clip_gradients):
    def step():
        loss().backward()
        clip(list(model.parameters()), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return step


def ours(shape, tokens, name, precision=None):
    n_layer, n_head, n_embd = shape
    model = GPT(GPTConfig(V, n_layer, n_head, None, n_embd, context=T))

    def loss():
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            logits = model(tokens)
        return next_token_loss(logits.float(), tokens)

    return model, step_function(model, loss, build_optimizers(model, name, lr=1e-3))


def nanogpt(path: Path, shape, tokens, as_shipped=False):
    spec = importlib.util.spec_from_file_location("nanogpt", path / "model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    n_layer, n_head, n_embd = shape
    config = module.GPTConfig(T, V, n_layer, n_head, n_embd, dropout=0.0, bias=False)
    model = module.GPT(config)
    targets = tokens.roll(-1, 1)
    adam = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    if as_shipped:  # on a CPU it does not ask for the fused kernel
        adam = model.configure_optimizers(0.1, 1e-3, (0.9, 0.95), "cpu")
    clip = torch.nn.utils.clip_grad_norm_
    return model, step_function(model, lambda: model(tokens, targets)[1], [adam], clip)


def huggingface(shape, tokens):
    from transformers import LlamaConfig, LlamaForCausalLM

    from minillm.model.huggingface import llama_config

    n_layer, n_head, n_embd = shape
    config = GPTConfig(V, n_layer, n_head, None, n_embd, context=T)
    model = LlamaForCausalLM(LlamaConfig(**llama_config(config, "float32", None, None)))
    targets = tokens.roll(-1, 1)

    def loss():
        logits = model(tokens, use_cache=False).logits
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    adam = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    clip = torch.nn.utils.clip_grad_norm_
    return model, step_function(model, loss, [adam], clip)


def best_gflops(n: int = 1024, repeats: int = 20) -> float:
    """The machine's own float32 matrix product, the best of many."""
    a, b = torch.randn(n, n), torch.randn(n, n)
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        a @ b
        seconds.append(time.perf_counter() - start)
    return 2 * n**3 / min(seconds) / 1e9


def measure(shape, path: Path | None, repeats: int, clock) -> dict:
    torch.manual_seed(0)
    tokens = torch.randint(V, (B, T))
    models, steps = {}, {}
    rivals = {
        "minillm": lambda: ours(shape, tokens, "adamw"),
        "minillm, AdamW by hand": lambda: ours(shape, tokens, "adamw-by-hand"),
        "minillm, Muon": lambda: ours(shape, tokens, "muon"),
        "minillm, bfloat16": lambda: ours(shape, tokens, "adamw", "bfloat16"),
        "transformers Llama": lambda: huggingface(shape, tokens),
    }
    if path:
        shipped = {"nanoGPT, as shipped": lambda: nanogpt(path, shape, tokens, True)}
        rivals = {"nanoGPT": lambda: nanogpt(path, shape, tokens)} | rivals | shipped
    for name, make in rivals.items():
        models[name], steps[name] = make()
        for _ in range(3):
            steps[name]()
    timings = interleaved(steps, repeats, clock)
    for name, row in timings.items():
        row["parameters"] = sum(p.numel() for p in models[name].parameters())
        row["tokens_per_s"] = round(B * T / statistics.median(row.pop("seconds")))
        row["speed_ratio"] = round(1 / row.pop("ratio"), 3)
    return timings


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--nanogpt", type=Path, help="folder that holds its model.py")
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--repeats", type=int, default=25)
    given = options.parse_args()
    torch.set_num_threads(given.threads)
    # CPU time is robust against neighbours, but means nothing for several threads.
    clock = time.process_time if given.threads == 1 else time.perf_counter
    result = {"threads_used": given.threads, "batch": [B, T], "vocab": V, "shapes": {}}
    for name, shape in SHAPES.items():
        peak = best_gflops()
        timings = measure(shape, given.nanogpt, given.repeats, clock)
        config = GPTConfig(V, *shape[:2], None, shape[2], context=T)
        flops = flops_per_token(config, T)
        for rival in ("minillm", "minillm, Muon"):
            used = flops * timings[rival]["tokens_per_s"] / 1e9
            timings[rival]["mfu"] = round(used / peak, 3)
        result["shapes"][name] = {
            "layers_heads_width": shape,
            "non_embedding": count_parameters(config)["non_embedding"],
            "best_matmul_gflops": round(peak, 1),
            "rivals": timings,
        }
        print(f"\n{name}: {shape}, best product {peak:.0f} GFLOP/s")
        for rival, row in timings.items():
            told = f"{row['tokens_per_s']:>9,} tokens/s   x {row['speed_ratio']:.2f}"
            print(f"  {rival:<24}{told}   MFU {row.get('mfu', '')}")
    write_result(f"training_{given.threads}threads", result, "torch", "transformers")


if __name__ == "__main__":
    main()
