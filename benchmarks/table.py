"""The README's table of results, made from the committed result files.

python benchmarks/table.py
"""

import json
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def load(name: str) -> dict:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def training_rows() -> list[tuple[str, str]]:
    rows = []
    for threads in (1, 2):
        shapes = load(f"training_{threads}threads")["shapes"]
        for size, shape in shapes.items():
            rivals = shape["rivals"]
            speed = {name: row["speed_ratio"] for name, row in rivals.items()}
            ours, shipped = speed["minillm"], speed["nanoGPT, as shipped"]
            tokens = f"{rivals['minillm']['tokens_per_s']:,} tokens/s"
            nano = f"{ours:.2f} of nanoGPT's speed with the same optimizer"
            nano += f", {ours / shipped:.2f} of it as shipped"
            llama = f"{ours / speed['transformers Llama']:.2f} of transformers' Llama"
            mfu = f"MFU {rivals['minillm']['mfu']:.0%}"
            what = f"training, {size} parameters, {threads} thread{'s'[: threads - 1]}"
            rows.append((what, f"{tokens}; {nano}; {llama}; {mfu}"))
    return rows


def generation_row() -> tuple[str, str]:
    shapes = load("generation")["shapes"]
    times = [shape["batch 64"]["cached_is_faster_by"] for shape in shapes.values()]
    told = f"{min(times):.0f} to {max(times):.0f} times as fast as uncached"
    return "generation with a KV cache, batch 64", told


def bpe_rows() -> list[tuple[str, str]]:
    rows = []
    for size, result in load("bpe")["training"].items():
        ours, rival = (result["timings"][name] for name in ("minillm", "huggingface"))
        seconds = f"{ours['median_s']:.2f} s in pure Python"
        told = f"{seconds}, {rival['median_s']:.2f} s with Hugging Face's tokenizers"
        rows.append((f"learning {size} tokens from 1 MB", told))
    return rows


def world_row() -> tuple[str, str]:
    told = f"{load('world')['median_s']:.1f} s, with the nats of each token"
    return "a million tokens of TinyWorld", told


def import_row() -> tuple[str, str]:
    wall = load("imports")["wall"]
    rooms = wall["all teaching rooms"]["over_torch_s"]
    return "importing all teaching rooms, over torch", f"{max(rooms, 0):.2f} s"


def grpo_row() -> tuple[str, str]:
    found = load("grpo")
    seconds = [f"{s:.0f}" for s in found["seconds"]]
    before = " and ".join(f"{share:.0%}" for share in sorted(found["before"])[::2])
    told = f"{', '.join(seconds)} s to 90% (three seeds), from between {before}"
    return "GRPO on sums that were never shown, answers sampled", told


def nf4_row() -> tuple[str, str]:
    found = load("nf4")
    rival, indexing = (
        found[way][name]["ratio"]
        for way, name in (("quantize", "bitsandbytes"), ("dequantize", "indexing"))
    )
    loop = found["a 32nd of it"]["block by block"]["ratio"]
    told = f"to codes {rival:.2f} times as fast as bitsandbytes; back {indexing:.1f} "
    told += f"times as fast as indexing, {loop:.0f} times as block by block; "
    told += f"{found['bytes_per_weight']:.3f} bytes a weight"
    return "16 million weights to NF4", told


def gptq_row() -> tuple[str, str]:
    found = load("gptq")
    small, large = found["base"], found["1024 by 1024"]["gptq"]["median_s"]
    told = f"{small['gptq']['median_s']:.1f} s, AWQ {small['awq']['median_s']:.1f} s; "
    told += f"a layer of 1,024 by 1,024 {large:.1f} s"
    return "GPTQ of the base model, calibration included", told


def moe_row() -> tuple[str, str]:
    shapes = load("moe")["shapes"]
    rivals = ("mask multiplies", "mask picks rows")
    shown = {
        rival: [f"{shape[rival]['ratio']:.1f}" for shape in shapes.values()]
        for rival in rivals
    }
    many, few = (", ".join(times[:3]) for times in shown.values())
    told = f"{many} times as fast as a loop whose masks multiply, {few} times as one "
    return "experts (8) on sorted tokens", told + "whose masks pick rows"


def table() -> str:
    rows = [*training_rows(), generation_row(), *bpe_rows()]
    rows += [world_row(), grpo_row(), nf4_row(), gptq_row(), moe_row(), import_row()]
    lines = ["| what | measured |", "|---|---|"]
    return "\n".join(lines + [f"| {what} | {told} |" for what, told in rows])


if __name__ == "__main__":
    print(table())
