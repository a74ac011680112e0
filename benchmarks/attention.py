"""Fused attention on a GPU: the kernels of minillm beside torch's own backends.

    python benchmarks/attention.py [--out FOLDER]   (needs an NVIDIA GPU and triton)
    python benchmarks/attention.py --draw           (table and pictures of the results)

First every configuration is compared with float64, and nothing is timed if one is
wrong. Then come the machine's own limits (a matrix product, a copy), the rivals, what
memory and determinism cost, the other kernels of the room, and at last candidates for
``CONFIGS``. Each part is written as soon as it is done. As in the papers, a batch has
16,384 tokens and H D = 2,048, a forward pass counts 4 B H T^2 D operations, half of
that if causal, and a backward pass 2.5 times as many, whatever a kernel really does.
"""

import argparse
import itertools
import json
import math
import os
from functools import partial
from pathlib import Path

import common
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from minillm.kernels import chunked_cross_entropy, flash_attention, rms_norm

TOKENS, WIDTH = 16_384, 2_048
LENGTHS = (1024, 2048, 4096, 8192, 16_384)
BACKENDS = {
    "cuDNN": SDPBackend.CUDNN_ATTENTION,
    "FlashAttention": SDPBackend.FLASH_ATTENTION,
    "memory-efficient": SDPBackend.EFFICIENT_ATTENTION,
}
BARS = {("forward", 64): 0.80, ("forward", 128): 0.62}  # share of the best, causal
BARS |= {("backward", 64): 0.50, ("backward", 128): 0.40}
# Relative to float64, by Frobenius norm: output, gradients.
ALLOWED = {torch.float32: (2e-6, 4e-6), torch.float16: (1e-3, 2e-3)}
ALLOWED |= {torch.bfloat16: (5e-3, 8e-3)}
RAGGED = {"lengths": (torch.tensor([200, 0]), torch.tensor([130, 513]))}
CASES = [
    (1, 1, {}),
    (1, 513, {}),
    (257, 257, {}),
    (256, 512, {}),
    (513, 200, {}),
    (300, 300, {"causal": False}),
    (500, 500, {"window": 77}),
    (333, 400, {"window": 50, "causal": False}),
    (300, 513, RAGGED),
]
CANDIDATES = {
    "forward": [(128, 64, 4, 3), (128, 64, 8, 3), (128, 128, 8, 2), (128, 128, 8, 3)]
    + [(64, 64, 4, 3), (64, 128, 4, 2), (128, 32, 4, 4)],
    "dq": [(128, 64, 8, 2), (128, 64, 8, 3), (128, 32, 8, 3), (64, 64, 4, 2)]
    + [(64, 128, 8, 2), (128, 128, 8, 2)],
    "dkdv": [(64, 128, 8, 2), (32, 128, 8, 2), (64, 64, 4, 2), (64, 64, 8, 2)]
    + [(128, 64, 8, 2), (32, 128, 8, 3), (64, 128, 8, 3)],
}


def why_not() -> str | None:
    """What is missing on this machine."""
    if not torch.cuda.is_available():
        return "no GPU was found; the tests compile and interpret the kernels without"
    if os.environ.get("TRITON_INTERPRET") == "1":
        return "unset TRITON_INTERPRET: interpreted kernels are not worth timing"
    return None


def inputs(B, H, G, Tq, Tk, D, dtype=torch.bfloat16):
    shapes = (B, H, Tq, D), (B, G, Tk, D), (B, G, Tk, D)
    draw = partial(torch.randn, dtype=dtype, device="cuda", requires_grad=True)
    return [draw(shape) for shape in shapes]


def dense(q, k, v, causal=True, window=None, lengths=None):
    """Attention as the formula says, in the type of its inputs."""
    (B, H, Tq, D), Tk = q.shape, k.shape[2]
    k, v = (x.repeat_interleave(H // k.shape[1], 1) for x in (k, v))
    full = torch.full((B,), Tq), torch.full((B,), Tk)
    Lq, Lk = (x.view(B, 1, 1, 1).cuda() for x in lengths or full)
    i, j = torch.arange(Tq, device="cuda")[:, None], torch.arange(Tk, device="cuda")
    p = i + Lk - Lq
    seen = (i < Lq) & (j < Lk) & ((j <= p) if causal else True)
    if window is not None:
        seen = seen & ((p - j).abs() < window)
    s = (q @ k.mT / math.sqrt(D)).masked_fill(~seen, -torch.inf)
    return torch.nan_to_num(s.softmax(-1)) @ v


def errors(attend, given, how) -> list[float]:
    """Of the output and three gradients, relative to float64."""
    judges = [x.detach().double().requires_grad_() for x in given]
    wanted, out = dense(*judges, **how), attend(*given, **how)
    g = torch.randn_like(out)
    found = [out, *torch.autograd.grad(out, given, g)]
    right = [wanted, *torch.autograd.grad(wanted, judges, g.double())]
    return [
        float((x - y).detach().norm() / y.detach().norm().clamp(min=1))
        for x, y in zip(found, right, strict=True)
    ]


def correctness() -> list[dict]:
    """Every head size, type and kind of mask; beside the plain formula in that type."""
    from minillm.kernels.triton_forward import DTYPES, HEAD_SIZES

    rows = []
    for D, dtype, (Tq, Tk, how) in itertools.product(HEAD_SIZES, DTYPES, CASES):
        given = inputs(2, 4, 2, Tq, Tk, D, dtype)
        ours, plain = (errors(f, given, how) for f in (flash_attention, dense))
        ok = ours[0] <= ALLOWED[dtype][0] and max(ours[1:]) <= ALLOWED[dtype][1]
        pairs = zip(ours, plain, strict=True)
        ok = ok and all(x <= 2 * y + ALLOWED[dtype][0] / 2 for x, y in pairs)
        row = {"D": D, "dtype": str(dtype), "Tq": Tq, "Tk": Tk, "how": list(how)}
        rows.append(row | {"ours": ours, "plain": plain, "ok": ok})
        if not ok:
            print("wrong:", rows[-1])
    return rows


def median_ms(run, **how) -> float:
    from triton.testing import do_bench  # it empties the cache before every run

    return float(do_bench(run, return_mode="median", **how))


def ceilings() -> dict[str, float]:
    a, b = torch.randn(2, 8192, 8192, dtype=torch.bfloat16, device="cuda")
    copy = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    product = 2 * 8192**3 / median_ms(lambda: a @ b) / 1e9
    moved = 2 * copy.nbytes / median_ms(copy.clone) / 1e6
    return {"matmul_tflops": round(product), "copy_gb_per_s": round(moved)}


def through(backend):
    def attend(q, k, v, causal):
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v, is_causal=causal)

    return attend


def both_passes(attend, given, causal) -> dict[str, float]:
    """Milliseconds forward and backward."""
    out = attend(*given, causal=causal)
    g = torch.randn_like(out)
    backward = partial(torch.autograd.grad, out, given, g, retain_graph=True)
    with torch.no_grad():
        forward = median_ms(lambda: attend(*given, causal=causal))
    return {"forward": forward, "backward": median_ms(backward)}


def rivals() -> list[dict]:
    """Every backend at every length, in TFLOP/s."""
    rows = []
    attends = {"minillm": flash_attention}
    attends |= {name: through(backend) for name, backend in BACKENDS.items()}
    for D, causal, T in itertools.product((64, 128), (True, False), LENGTHS):
        H, B = WIDTH // D, TOKENS // T
        given, ms = inputs(B, H, H, T, T, D), {}
        for name, attend in attends.items():
            try:
                ms[name] = both_passes(attend, given, causal)
            except RuntimeError as error:  # a backend that this GPU does not have
                print(f"{name}: {str(error).splitlines()[0]}")
        for way, passes in (("forward", 1.0), ("backward", 2.5)):
            work = passes * 4 * B * H * T * T * D / (2 if causal else 1)
            speed = {name: work / row[way] / 1e9 for name, row in ms.items()}
            best = max(speed[name] for name in speed if name != "minillm")
            row = {"pass": way, "causal": causal, "D": D, "T": T, "tflops": speed}
            rows.append(row | {"share_of_best": speed["minillm"] / best})
    return rows


def peak_bytes(run) -> int:
    """Memory at its highest during a run, less what was held before."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_allocated()
    run()
    return torch.cuda.max_memory_allocated() - held


def promises() -> dict:
    """Memory in proportion to T, and the same bits in every run."""

    def once(given):
        out = flash_attention(*given)
        return out, *torch.autograd.grad(out.square().sum(), given)

    peaks = {
        T: peak_bytes(partial(once, inputs(1, 16, 16, T, T, 128)))
        for T in (8192, 16_384)
    }
    given = inputs(2, 8, 2, 1000, 1000, 128)
    first, runs = once(given), [once(given) for _ in range(9)]
    same = all(
        torch.equal(x, y) for run in runs for x, y in zip(first, run, strict=True)
    )
    return {"peak_bytes": peaks, "bitwise_equal_over_10_runs": same}


def other_kernels() -> dict:
    """RMSNorm by its bytes, and the loss by its memory."""
    draw = partial(torch.randn, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    x, w = draw(TOKENS, 4096), draw(4096)
    norms = {"minillm": rms_norm, "torch": lambda x, w: F.rms_norm(x, (4096,), w, 1e-5)}
    found = {"rms_norm_gb_per_s": {}, "loss": {}}
    for name, norm in norms.items():
        y = norm(x, w)
        back = median_ms(partial(torch.autograd.grad, y, (x, w), y, retain_graph=True))
        speed = 2 * x.nbytes / median_ms(lambda f=norm: f(x, w)), 3 * x.nbytes / back
        ways = ("forward", "backward")
        rounded = [round(s / 1e6) for s in speed]
        found["rms_norm_gb_per_s"][name] = dict(zip(ways, rounded, strict=True))
    h, W = draw(TOKENS, 1024), draw(50_304, 1024)
    y = torch.randint(50_304, (TOKENS,), device="cuda")
    losses = {
        "chunked": lambda: chunked_cross_entropy(h, W, y, 2048),
        "plain": lambda: F.cross_entropy((h @ W.T).float(), y),
    }
    for name, loss in losses.items():
        run = partial(lambda f: torch.autograd.grad(f(), (h, W)), loss)
        row = {"peak_mb": round(peak_bytes(run) / 1e6), "ms": round(median_ms(run), 2)}
        found["loss"][name] = row
    return found


def tuning() -> list[dict]:
    """Each candidate in its kernel's place, the others as they are; causal, T = 4k."""
    from minillm.kernels import triton_forward as kernels

    rows = []
    for D, (kernel, candidates) in itertools.product((64, 128), CANDIDATES.items()):
        H, shipped = WIDTH // D, kernels.CONFIGS[kernel, D]
        given, small = inputs(4, H, H, 4096, 4096, D), inputs(2, 4, 2, 300, 300, D)
        for candidate in map(kernels.Config._make, candidates):
            kernels.CONFIGS[kernel, D] = candidate
            row = {"kernel": kernel, "D": D, **candidate._asdict()}
            try:
                right = max(errors(flash_attention, small, {})) < 8e-3
                way = "forward" if kernel == "forward" else "backward"
                ms = both_passes(flash_attention, given, True)[way]
                row |= {"right": right, "pass_ms": round(ms, 3)}
            except Exception as error:  # more memory than a program may have
                row |= {"right": False, "why": str(error).splitlines()[0]}
            rows.append(row | {"shipped": candidate == shipped})
            print(rows[-1])
        kernels.CONFIGS[kernel, D] = shipped
    return rows


def table(result: dict) -> str:
    names = ["minillm", *BACKENDS]
    head = ["pass", "causal", "D", "T", *names, "share of best", "bar"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row in result["rivals"]:
        speeds = [f"{row['tflops'].get(name, math.nan):.0f}" for name in names]
        bar = BARS[row["pass"], row["D"]] if row["causal"] and row["T"] > 1024 else None
        cells = [row["pass"], "yes" if row["causal"] else "no", row["D"], row["T"]]
        cells += [*speeds, f"{row['share_of_best']:.0%}", f"{bar:.0%}" if bar else ""]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    gpu, limit = result["gpu"], result["ceilings"]["matmul_tflops"]
    title = f"TFLOP/s in bfloat16 on {gpu['name']}; a matrix product reaches {limit}.\n"
    return "\n".join([title, *lines, ""])


def draw(result: dict, folder: Path) -> None:
    """One picture for each pass and head size: TFLOP/s against T, causal."""
    from minillm.school import show

    palette = show.OURS, show.RIVAL, show.WARM, show.TEXT
    colors = dict(zip(["minillm", *BACKENDS], palette, strict=True))
    limit = result["ceilings"]["matmul_tflops"]
    for way, D in BARS:
        rows = [r for r in result["rivals"] if (r["pass"], r["D"]) == (way, D)]
        rows = [r for r in rows if r["causal"]]
        shares = [r["share_of_best"] for r in rows if r["T"] > 1024]
        title = f"{way}, D = {D}: {min(shares):.0%} to {max(shares):.0%} of the best"
        axes = show.figure(title, "tokens of a text", "TFLOP/s")
        ends = []
        for name, color in colors.items():
            at = [(r["T"], r["tflops"][name]) for r in rows if name in r["tflops"]]
            if at:
                axes.plot(*zip(*at, strict=True), color=color, marker="o")
                ends.append((at[-1][1], name, color))
        axes.set_xscale("log", base=2)
        axes.set_xticks(LENGTHS, [f"{T // 1024}k" for T in LENGTHS])
        axes.set_ylim(0, limit * 1.1)
        show.yardstick(axes, limit, "matrix product")
        show.spread_labels(axes, LENGTHS[-1], ends)
        (folder / f"attention_{way}_{D}.png").write_bytes(show.png(axes))


def present(folder: Path) -> None:
    result = json.loads((folder / "attention.json").read_text(encoding="utf-8"))
    told = table(result)
    (folder / "attention.md").write_text(told, encoding="utf-8")
    print(told)
    try:
        draw(result, folder)
    except ImportError as error:
        print(f"no pictures ({error}); draw them elsewhere with --draw")


def measure() -> None:
    torch.manual_seed(0)
    properties = torch.cuda.get_device_properties(0)
    gpu = {"name": properties.name, "processors": properties.multi_processor_count}
    gpu |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    result = {"gpu": gpu, "correctness": correctness()}
    wrong = [row for row in result["correctness"] if not row["ok"]]
    common.write_result("attention", result, "torch", "triton")
    if wrong:
        raise SystemExit(f"{len(wrong)} cases are wrong; nothing is timed")
    parts = (ceilings, rivals, promises, other_kernels, tuning)
    for part in parts:
        result[part.__name__] = part()
        print(part.__name__, "done", flush=True)
        common.write_result("attention", result, "torch", "triton")


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--out", type=Path, default=common.RESULTS)
    options.add_argument("--draw", action="store_true", help="from results that exist")
    given = options.parse_args()
    common.RESULTS = given.out
    if not given.draw:
        if why_not():
            raise SystemExit(f"attention.py cannot measure here: {why_not()}")
        measure()
    present(given.out)


if __name__ == "__main__":
    main()
