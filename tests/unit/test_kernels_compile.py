"""What the compiler makes of the kernels for a Hopper GPU, on a machine without one.

Triton's wheel brings the assembler, and the assembler knows how many registers a kernel
takes, what it spills into slow memory, and how much fast memory its tiles need. The
test runs this file in a child process, because here kernels are interpreted.
"""

import json
import os
import re
import subprocess
import sys
import tempfile

import pytest

SPILLS = "REG:(\\d+) STACK:(\\d+)"
SHARED_MEMORY = 227 * 1024  # bytes that a program on Hopper may have


def compile_for_hopper(kernel, sizes, config):
    """Registers, bytes of stack and of shared memory, and tensor-core instructions."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    def kind(name):
        if name in sizes:
            return "constexpr"
        if name in ("L", "DELTA"):
            return "*fp32"
        if name in ("H", "R", "Tq", "Tk", "left", "right"):
            return "i32"
        return {"LENGTHS": "*i32", "scale": "fp32"}.get(name, "*bf16")

    names = kernel.arg_names
    source = ASTSource(
        kernel,
        {name: kind(name) for name in names},
        {(names.index(name),): value for name, value in sizes.items()},
        # As a call on a GPU finds out: tensors begin at multiples of 16 bytes.
        {
            (n,): [["tt.divisibility", 16]]
            for n, x in enumerate(names)
            if "*" in kind(x)
        },
    )
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages}
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        tool = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        told = subprocess.run(tool, capture_output=True, text=True, check=True).stdout
    registers, stack = map(int, re.search(SPILLS, told).groups())
    products = made.asm["ptx"].count("wgmma.mma_async")
    return registers, stack, made.metadata.shared, products


def compile_all():
    from minillm.kernels import triton_backward, triton_forward

    kernels = {
        "forward": triton_forward.forward_kernel,
        "dq": triton_backward.dq_kernel,
        "dkdv": triton_backward.dkdv_kernel,
    }
    for (name, D), config in triton_forward.CONFIGS.items():
        sizes = {"D": D, "BQ": config.BQ, "BK": config.BK}
        print(json.dumps([name, D, *compile_for_hopper(kernels[name], sizes, config)]))


@pytest.mark.slow
def test_every_configuration_fits_a_hopper_gpu_and_uses_its_tensor_cores(tmp_path):
    pytest.importorskip("triton", reason="triton has wheels for Linux only")
    apart = {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, __file__],
        env=os.environ | apart,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == 9
    for name, D, registers, stack, shared, products in found:
        kernel = f"{name} with D = {D}"
        assert stack == 0, f"{kernel} spills {stack} bytes of registers a thread"
        assert 0 < registers <= 255 and shared <= SHARED_MEMORY, kernel
        assert products > 0, f"{kernel} multiplies without tensor cores"


if __name__ == "__main__":
    compile_all()
