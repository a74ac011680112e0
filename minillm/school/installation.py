"""What is installed on top of Python: torch, triton, versions, the cache.

torch may be missing or broken, which is then the first thing to report; so it is
imported inside the checks. Versions are compared with constraints.txt, which lies
beside the package when it runs from a checkout.
"""

import sys
import tempfile
from importlib import metadata
from pathlib import Path

from minillm.school.findings import Finding, note, ok, problem

CORE = ("numpy", "tiktoken", "safetensors", "jaxtyping", "tqdm")  # torch: see below


def check_torch() -> list[Finding]:
    """Version and build of torch, and which device the course will use."""
    try:
        import torch
    except Exception as error:  # a broken library raises OSError, a missing one not
        remedy = "run `python course.py run`, which installs the tested version"
        return [problem(f"torch cannot be imported: {error}", remedy)]
    threads = torch.get_num_threads()
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU"
    words = f"torch {torch.__version__}, {build} build, {threads} threads"
    return [ok(words), check_device(torch)]


def check_device(torch) -> Finding:
    """The device: CUDA if there is one, else the CPU; never Apple's GPU by surprise."""
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name(0)
        return ok(f"device: CUDA, {name}, {torch.cuda.device_count()} in all")
    if torch.backends.mps.is_available():
        return note("device: CPU (Apple's GPU is there and not used: it is inexact)")
    if torch.version.cuda:
        return note(
            "device: CPU (this torch was built for CUDA and sees no GPU)",
            "nothing, unless a GPU should be there: then look at nvidia-smi",
        )
    return ok("device: CPU")


def check_triton() -> Finding:
    """Whether the kernels chapter can run Triton, or why not."""
    try:
        return ok(f"triton {metadata.version('triton')}")
    except metadata.PackageNotFoundError:
        pass
    if sys.platform == "linux":
        return note("triton is not installed", "pip install -c constraints.txt triton")
    return note("no triton: it has wheels for Linux only; the torch twin is used")


def canonical(name: str) -> str:
    """The name of a distribution as indexes write it.

    >>> canonical("Typing_Extensions")
    'typing-extensions'
    """
    return name.lower().replace("_", "-").replace(".", "-")


def pinned_versions(folder: Path) -> dict[str, str]:
    """The versions in ``folder``'s constraints.txt; empty if there is no such file."""
    file = folder / "constraints.txt"
    if not file.exists():
        return {}
    lines = (line.partition(";")[0] for line in file.read_text().splitlines())
    pairs = [line.split("==") for line in lines if "==" in line and line[0] != "#"]
    return {canonical(name): version.strip() for name, version in pairs}


def installed_versions() -> dict[str, str]:
    """Every distribution that this Python sees."""
    found = metadata.distributions()
    return {canonical(item.name): item.version for item in found if item.name}


def check_packages(installed: dict[str, str], pinned: dict[str, str]) -> list[Finding]:
    """Installed versions against the tested ones; a local build ("+cpu") is the same.

    >>> check_packages({"torch": "2.13.0+cpu"}, {"torch": "2.13.0"})[-1].text
    '1 installed package has the tested version'
    """
    if not pinned:
        return [note("versions: no constraints.txt beside the package to compare with")]
    here = {name: installed[name] for name in pinned if name in installed}
    other = [name for name in here if here[name].partition("+")[0] != pinned[name]]
    findings = [missing_package(name) for name in CORE if name not in installed]
    same = len(here) - len(other)
    verb = "package has" if same == 1 else "packages have"
    findings.append(ok(f"{same} installed {verb} the tested version"))
    findings += [other_version(name, here[name], pinned[name]) for name in other]
    return findings


def missing_package(name: str) -> Finding:
    """A package without which ``import minillm`` is of no use."""
    return problem(f"{name} is not installed", "run `python course.py run`")


def other_version(name: str, found: str, tested: str) -> Finding:
    """A package in another version than the tested one: may change the last digits."""
    remedy = f"pip install {name}=={tested} if a result differs from the book's"
    return note(f"{name} {found} is installed, {tested} is tested", remedy)


def check_cache(folder: Path) -> Finding:
    """Whether trained models can be kept, found out by writing a file there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"minillm")
    except OSError as error:
        remedy = "set MINILLM_CACHE to a folder that you may write to"
        return problem(f"cache {folder} cannot be written: {error.strerror}", remedy)
    return ok(f"cache {folder} can be written")
