"""The rules of the house: who may import whom, what an import costs, what stays out."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from minillm.school import lines

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "minillm"
ROOMS = (*lines.TEACHING, *lines.AROUND)
BASE = {"errors", "files"}  # any room may import these; they import no room
HEAVY = ["matplotlib", "datasets", "triton", "transformers", "torch._dynamo"]


def room_of(module: str) -> str | None:
    """The first name below ``minillm`` in a dotted name, or None if there is none."""
    parts = module.split(".")
    return parts[1] if parts[0] == "minillm" and len(parts) > 1 else None


def imported(source: str, module: str) -> set[str]:
    """Dotted names of everything that ``module`` imports, wherever in the file.

    ``from minillm import data`` gives both minillm and minillm.data: which of the two
    it means cannot be seen from here, and both must be allowed.
    """
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            above = module.split(".")[: -node.level] if node.level else []
            start = ".".join([*above, *([node.module] if node.module else [])])
            found |= {start} | {f"{start}.{alias.name}" for alias in node.names}
    return found


def forbidden(source: str, module: str) -> list[str]:
    """The imports of ``module`` that lead to a room below its own."""
    own = room_of(module)
    above = set(ROOMS[: ROOMS.index(own) + 1]) if own in ROOMS else set()
    rooms = {name: room_of(name) for name in imported(source, module)}
    return sorted(
        name for name, room in rooms.items() if room in ROOMS and room not in above
    )


def modules() -> list[tuple[str, Path]]:
    """Every module of the package as (dotted name, file); a package ends in __init__,
    so that a relative import counts from its folder as it does in a module."""
    files = sorted(PACKAGE.rglob("*.py"))
    return [(".".join(f.relative_to(ROOT).with_suffix("").parts), f) for f in files]


def test_a_room_imports_only_from_rooms_above_it():
    for module, file in modules():
        if module == "minillm.__main__":
            continue  # the command line opens every room
        found = forbidden(file.read_text(encoding="utf-8"), module)
        assert not found, f"{module} imports from below: {found}"


@pytest.mark.parametrize(
    ("line", "module"),
    [
        ("import minillm.training.trainer", "minillm.model.gpt"),
        ("from minillm.school import zoo", "minillm.training.trainer"),
        ("from minillm import school", "minillm.systems.memory"),
        ("from ..school.show import plot", "minillm.model.gpt"),
        ("from .. import serving", "minillm.data.__init__"),
        ("def f():\n    from minillm.alignment import ppo", "minillm.finetuning.sft"),
        ("from minillm.world import facts", "minillm.errors"),
        ("from minillm.data import bpe", "minillm.__init__"),
    ],
)
def test_a_planted_import_from_below_is_caught(line, module):
    assert forbidden(line, module)


@pytest.mark.parametrize(
    ("line", "module"),
    [
        ("from minillm.model.config import GPTConfig", "minillm.training.trainer"),
        ("from .config import GPTConfig", "minillm.model.gpt"),
        ("from ..data import corpora", "minillm.model.gpt"),
        ("from minillm.errors import require", "minillm.world.grammar"),
        ("import minillm, torch, datasets", "minillm.data.corpora"),
    ],
)
def test_an_import_from_above_is_allowed(line, module):
    assert not forbidden(line, module)


def test_every_folder_of_the_package_is_a_known_room():
    folders = {file.parent.relative_to(PACKAGE) for _, file in modules()}
    names = {folder.parts[0] for folder in folders if folder.parts}
    assert names <= set(ROOMS), (
        "a new room needs its place in the order of the pipeline"
    )


def test_every_room_can_be_installed():
    for folder in {file.parent for _, file in modules()}:
        assert (folder / "__init__.py").exists(), f"{folder} is no package"


def test_the_base_modules_are_all_that_lies_beside_the_rooms():
    beside = {file.stem for file in PACKAGE.glob("*.py")}
    assert beside - {"__init__", "__main__"} <= BASE


@pytest.mark.parametrize("module", ["minillm", "minillm.model", "minillm.training"])
def test_an_import_brings_nothing_heavy(module):
    code = f"import sys, {module}; print([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]", f"import {module} brings {done.stdout}"


def undocumented(source: str) -> list[str]:
    """Public functions, classes and methods without a docstring, by qualified name.

    Methods count in classes without a base: one that overrides is described there.
    """
    tree = ast.parse(source)
    missing = [] if ast.get_docstring(tree) else ["the module"]
    waiting = [("", tree)]
    while waiting:
        prefix, parent = waiting.pop()
        for node in parent.body:
            if not isinstance(node, ast.FunctionDef | ast.ClassDef):
                continue
            if node.name.startswith("_"):
                continue
            if not ast.get_docstring(node):
                missing.append(prefix + node.name)
            if isinstance(node, ast.ClassDef) and not node.bases:
                waiting.append((f"{node.name}.", node))
    return missing


def test_everything_public_has_a_docstring():
    for module, file in modules():
        missing = undocumented(file.read_text(encoding="utf-8"))
        assert not missing, f"{module}: no docstring for {missing}"


def test_a_missing_docstring_is_noticed():
    assert undocumented("def f(): 0") == ["the module", "f"]
    assert undocumented("'M.'\nclass A:\n    'A.'\n    def g(self): 0") == ["A.g"]
    assert undocumented("'M.'\ndef _private(): 0") == []


def own_files() -> list[Path]:
    """The files that git keeps or would keep; all of them where there is no git."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return list(PACKAGE.rglob("*.py"))
    names = done.stdout.decode().split("\0")
    return [ROOT / name for name in names if name and (ROOT / name).is_file()]


SOMEBODYS_MACHINE = re.compile(r"(?<![\w.~}])/(?:work|root|home)/\w|[A-Z]:\\Users\\\w")


def test_no_file_mentions_the_folders_of_one_machine():
    for file in own_files():
        text = file.read_bytes().decode("utf-8", errors="ignore")
        found = SOMEBODYS_MACHINE.search(text)
        assert not found, f"{file.relative_to(ROOT)} mentions {found.group()}"


@pytest.mark.parametrize("folder", ["home", "root", "work"])
def test_a_folder_of_one_machine_would_be_noticed(folder):
    for before in ("", "'", "in ", '("'):
        assert SOMEBODYS_MACHINE.search(f"{before}/{folder}/x")
    assert SOMEBODYS_MACHINE.search("\\".join(["C:", "Users", "Ann"]))


def test_addresses_and_relative_paths_are_not_mistaken_for_such_folders():
    for text in ["https://example.org/home/x", "src/work/x", "~/work/x", "/homepage"]:
        assert not SOMEBODYS_MACHINE.search(text)


def test_minimal_is_kept_as_promised():
    for group, count in lines.totals(lines.room_lines()).items():
        limit = lines.LIMITS[group]
        assert count.doing < limit, (
            f"{', '.join(group)}: {count.doing} lines do something, {limit} allowed"
        )


def test_the_line_counter_counts_code_and_nothing_else():
    data = '"""Module."""\n\n# why\nX = """a\nb"""\n'
    assert lines.code_lines(data) == 2
    function = 'def f():\n    """Doc."""\n\n    return (\n        X\n    )\n'
    assert lines.code_lines(function) == 4
    assert lines.code_lines('"""Only\n\nwords."""\n') == 0


def test_imports_and_heads_do_nothing_and_decorators_and_bodies_do():
    source = "from a import (\n    b,\n)\n@b\ndef f(\n    x: int,\n):\n    return x\n"
    assert lines.code_lines(source) == 8
    assert lines.doing_lines(source) == 2
    assert lines.doing_lines("class A:\n    x: int = 1\n") == 2


def test_the_line_counter_finds_the_code_that_is_there():
    rooms = lines.room_lines()
    assert tuple(rooms) == (*ROOMS, lines.CONTENT)
    assert rooms[lines.CONTENT].code > rooms[lines.CONTENT].doing > 100
    assert rooms["school"].code > rooms["school"].doing > 100
    assert "| school |" in lines.table(rooms)
