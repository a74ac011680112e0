"""What ``import minillm`` costs over ``import torch``: whole processes, in turns.

python benchmarks/imports.py
"""

import subprocess
import sys
import time

from common import interleaved, print_table, write_result

ROOMS = "minillm.data, minillm.model, minillm.evaluation, minillm.training"
STATEMENTS = {
    "import torch": "import torch",
    "import minillm": "import torch, minillm",
    "all teaching rooms": f"import torch, {ROOMS}",
}


def main():
    def child(statement):
        return lambda: subprocess.run([sys.executable, "-c", statement], check=True)

    rivals = {name: child(statement) for name, statement in STATEMENTS.items()}
    for run in rivals.values():
        run()  # the first call may have to write .pyc files
    timings = interleaved(rivals, repeats=7, clock=time.perf_counter)
    print_table("seconds on the wall", timings)
    for name in list(STATEMENTS)[1:]:
        pairs = zip(
            timings[name]["seconds"], timings["import torch"]["seconds"], strict=True
        )
        extra = sorted(a - b for a, b in pairs)
        timings[name]["over_torch_s"] = round(extra[len(extra) // 2], 3)
        print(f"  {name}: {timings[name]['over_torch_s']} s over torch")
    write_result("imports", {"wall": timings}, "torch")


if __name__ == "__main__":
    main()
