"""constraints.txt: exact, complete, and resolvable by anybody's pip.

The last two tests ask the public index. They read metadata only (pip's fast-deps where
the index does not serve it apart), so that no gigabytes of wheels come down.
"""

import json
import os
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from urllib.request import urlopen

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NAMED = ["torch", "numpy", "matplotlib", "jupyterlab", "nbval", "tiktoken"]
NAMED += ["datasets", "triton"]
INDEX = "https://pypi.org/simple"

LINUX = {"sys_platform": "linux", "platform_system": "Linux", "os_name": "posix"}
MAC = {"sys_platform": "darwin", "platform_system": "Darwin", "os_name": "posix"}
WINDOWS = {"sys_platform": "win32", "platform_system": "Windows", "os_name": "nt"}
TARGETS = [
    ("linux-x86-64", "3.12", {**LINUX, "platform_machine": "x86_64"}),
    ("linux-x86-64", "3.13", {**LINUX, "platform_machine": "x86_64"}),
    ("linux-arm64", "3.11", {**LINUX, "platform_machine": "aarch64"}),
    ("macos-arm64", "3.11", {**MAC, "platform_machine": "arm64"}),
    ("macos-arm64", "3.13", {**MAC, "platform_machine": "arm64"}),
    ("windows-x64", "3.11", {**WINDOWS, "platform_machine": "AMD64"}),
    ("windows-x64", "3.13", {**WINDOWS, "platform_machine": "AMD64"}),
]
# pip takes wheels for a foreign platform but reads markers ("; sys_platform == ...")
# with its own; this sets both.
PIP_ELSEWHERE = """
import json, sys
from pip._vendor.packaging import markers
here, there = markers.default_environment, json.loads(sys.argv[1])
markers.default_environment = lambda: {**here(), **there}
from pip._internal.cli.main import main
sys.exit(main(sys.argv[2:]))
"""


def constraint_lines() -> list[Requirement]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def pins() -> dict[str, str]:
    """Canonical name -> the version that is pinned."""
    return {
        canonicalize_name(line.name): next(iter(line.specifier)).version
        for line in constraint_lines()
    }


def requirements(*extras: str) -> list[Requirement]:
    """What pyproject.toml asks for: the core and the extras, without itself."""
    lists = [PROJECT["dependencies"]]
    lists += [PROJECT["optional-dependencies"][extra] for extra in extras]
    every = [Requirement(text) for lines in lists for text in lines]
    return [line for line in every if line.name != PROJECT["name"]]


def everything() -> list[Requirement]:
    return requirements(*PROJECT["optional-dependencies"])


def not_pinned(found: dict[str, str], pinned: dict[str, str]) -> list[str]:
    """What was found with no pin or another version, as "name: found (pinned)"."""
    return [
        f"{name}: {version} (pinned: {pinned.get(name)})"
        for name, version in found.items()
        if name not in pinned or Version(pinned[name]) != Version(version)
    ]


def installed_closure() -> set[str]:
    """Everything that is installed here because minillm asks for it, however deep."""
    waiting = [(line.name, tuple(line.extras)) for line in everything()]
    seen: set[tuple[str, tuple[str, ...]]] = set()
    while waiting:
        name, extras = item = waiting.pop()
        if item in seen:
            continue
        seen.add(item)
        waiting += needed_here(name, extras)
    return {canonicalize_name(name) for name, _ in seen}


def needed_here(
    name: str, extras: tuple[str, ...]
) -> list[tuple[str, tuple[str, ...]]]:
    """The requirements of an installed distribution that hold on this machine."""
    try:
        texts = metadata.requires(name) or []
    except metadata.PackageNotFoundError:
        return []
    lines = [Requirement(text) for text in texts]
    return [
        (line.name, tuple(line.extras))
        for line in lines
        if line.marker is None
        or any(line.marker.evaluate({"extra": extra}) for extra in ("", *extras))
    ]


def test_each_line_of_the_constraints_is_one_exact_version():
    for line in constraint_lines():
        operators = [part.operator for part in line.specifier]
        assert operators == ["=="], f"{line} is no exact version"
        assert "*" not in str(line.specifier)


def test_no_package_is_pinned_twice():
    names = [canonicalize_name(line.name) for line in constraint_lines()]
    assert sorted(names) == sorted(set(names))


def test_each_requirement_of_the_project_is_pinned_within_its_bounds():
    pinned = pins()
    for line in everything():
        name = canonicalize_name(line.name)
        assert name in pinned, f"{name} is in pyproject.toml and not in constraints.txt"
        assert pinned[name] in line.specifier


def test_the_build_backend_is_pinned_too():
    lines = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]
    for line in map(Requirement, lines["requires"]):
        assert pins()[canonicalize_name(line.name)] in line.specifier


def test_everything_that_is_installed_for_the_course_is_pinned():
    missing = installed_closure() - set(pins())
    assert not missing, f"add to constraints.txt: {sorted(missing)}"


def test_triton_is_the_one_that_torch_requires_and_for_linux_only():
    pinned = pins()
    assert (pinned["torch"], pinned["triton"]) == ("2.13.0", "3.7.1")
    triton = next(line for line in constraint_lines() if line.name == "triton")
    assert triton.marker.evaluate(LINUX)
    assert not triton.marker.evaluate(MAC)
    assert not triton.marker.evaluate(WINDOWS)


def conda_environment() -> tuple[list[str], list[str]]:
    """The two halves of environment.yml: what conda brings and what pip brings."""
    parts = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    from_conda = [part for part in parts if isinstance(part, str)]
    return from_conda, next(part["pip"] for part in parts if isinstance(part, dict))


def test_conda_brings_only_python_and_pip():
    from_conda, _ = conda_environment()
    versions = dict(text.split("=") for text in from_conda)
    assert set(versions) == {"python", "pip"}
    assert versions["pip"] == pins()["pip"]
    assert versions["python"] in SpecifierSet(PROJECT["requires-python"])


def test_the_conda_environment_pins_what_the_constraints_pin():
    _, from_pip = conda_environment()
    lines = [Requirement(text) for text in from_pip if not text.startswith("-")]
    assert "-c constraints.txt" in from_pip
    assert [line.name for line in lines] == NAMED
    constraints = {line.name: line for line in constraint_lines()}
    for line in lines:
        assert str(line) == str(constraints[line.name])


def reach_the_index() -> None:
    """Skip, and say what is not proved, where the public index does not answer."""
    try:
        urlopen(f"{INDEX}/pip/", timeout=10).close()
    except OSError as error:
        pytest.skip(
            f"{INDEX} cannot be reached ({error}); not proved: that a stock pip "
            "resolves constraints.txt to exactly these versions"
        )
    found = metadata.version("pip")
    if Version(found) < Version(pins()["pip"]):
        pytest.skip(
            f"pip {found} is here, and older ones than {pins()['pip']} may download "
            "gigabytes even in a dry run; not proved: that the constraints resolve "
            "(`python course.py test` brings the right pip)"
        )


def stock_environment() -> dict[str, str]:
    """The environment variables without any setting that is peculiar to this machine.

    Only how to reach the index stays (certificate, proxy, patience): local wheels,
    other indexes and configuration files would prove something about this machine.
    """
    keep = {"PIP_CERT", "PIP_PROXY", "PIP_DEFAULT_TIMEOUT"}
    own = {name for name in os.environ if name.startswith("PIP_")} - keep
    kept = {name: os.environ[name] for name in os.environ if name not in own}
    return dict(kept, PIP_CONFIG_FILE=os.devnull, PIP_DISABLE_PIP_VERSION_CHECK="1")


def resolve(pip: list[str], wanted: list[str], folder: Path) -> list[dict]:
    """What `pip install` would install, from its report; nothing is installed."""
    report = folder / "report.json"
    command = [*pip, "install", "--dry-run", "--ignore-installed", "--quiet"]
    command += ["--use-feature=fast-deps", "--only-binary=:all:"]
    command += ["--report", str(report), "--index-url", INDEX]
    command += ["-c", str(ROOT / "constraints.txt"), *wanted]
    done = subprocess.run(
        command, env=stock_environment(), capture_output=True, text=True, cwd=folder
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(report.read_text())["install"]


def versions(installs: list[dict]) -> dict[str, str]:
    found = [item["metadata"] for item in installs]
    return {canonicalize_name(item["name"]): item["version"] for item in found}


def options_for(target: str, python: str, folder: Path) -> list[str]:
    """pip's options for wheels of another platform and Python."""
    tags = {
        "linux-x86-64": linux_tags("x86_64"),
        "linux-arm64": linux_tags("aarch64"),
        "macos-arm64": ["macosx_14_0_arm64"],
        "windows-x64": ["win_amd64"],
    }[target]
    abis = ["cp" + python.replace(".", ""), "abi3", "none"]
    options = ["--target", str(folder / "nowhere"), "--python-version", python]
    options += ["--implementation", "cp"]
    options += [text for abi in abis for text in ("--abi", abi)]
    return options + [text for tag in tags for text in ("--platform", tag)]


def linux_tags(machine: str) -> list[str]:
    """Every wheel tag that a Linux with glibc 2.28 accepts."""
    old = [f"manylinux{year}_{machine}" for year in (1, 2010, 2014)]
    return old + [f"manylinux_2_{minor}_{machine}" for minor in range(5, 29)]


@pytest.mark.network
def test_a_stock_pip_resolves_all_extras_to_the_pins_and_to_nothing_else(tmp_path):
    reach_the_index()
    wanted = [str(line) for line in everything()] + ["setuptools"]
    installs = resolve([sys.executable, "-m", "pip"], wanted, tmp_path)
    found = versions(installs)
    assert not not_pinned(found, pins())
    assert len(found) > 140
    assert all("+" not in version for version in found.values())  # no local builds
    urls = [item["download_info"]["url"] for item in installs]
    assert all(url.startswith("https://") for url in urls)
    if sys.platform == "linux":
        assert {"triton", "nvidia-cublas", "cuda-toolkit"} <= set(found)


@pytest.mark.network
@pytest.mark.release
@pytest.mark.parametrize(("target", "python", "markers"), TARGETS)
def test_the_pins_resolve_on_other_platforms_too(target, python, markers, tmp_path):
    reach_the_index()
    markers = {
        **markers,
        "python_version": python,
        "python_full_version": python + ".0",
    }
    pip = [sys.executable, "-c", PIP_ELSEWHERE, json.dumps(markers)]
    wanted = [str(line) for line in everything() if line.name != "triton"]
    wanted += options_for(target, python, tmp_path)
    found = versions(resolve(pip, wanted, tmp_path))
    assert not not_pinned(found, pins())
    assert ("triton" in found) == target.startswith("linux")
    assert ("pywinpty" in found) == target.startswith("windows")
    assert ("appnope" in found) == target.startswith("macos")


def test_a_version_that_is_not_pinned_would_be_seen():
    assert not_pinned({"numpy": "2.4.6"}, {"numpy": "2.4.6"}) == []
    assert not_pinned({"numpy": "2.4.5"}, {"numpy": "2.4.6"})
    assert not_pinned({"left-pad": "1.0"}, {"numpy": "2.4.6"})
    assert not_pinned({"cuda": "13.0.3"}, {"cuda": "13.0.3.0"}) == []
