"""Only what an answer needs is taken from a submission; the rest does not run."""

import ast
import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minillm.school.grading.find import find
from minillm.school.grading.grade import read_all
from minillm.school.grading.handedin import parse


def taken(source: str, *names: str) -> str:
    return find(ast.parse(source).body, names).source


def ran(source: str, *names: str) -> dict:
    namespace = {}
    exec(taken(source, *names), namespace)
    return namespace


def test_plots_loops_and_calls_are_left_out():
    source = """
import math, nothing_like_it as plt
K = 3
plt.plot(K)
for step in range(10**9): train(step)
while True: pass
print("hello")
unused = undefined_function()
def f(x): return K * math.sqrt(x)
f(3)
"""
    assert ran(source, "f")["f"](4) == 6
    for word in ("plt.plot", "train", "while", "print", "unused"):
        assert word not in taken(source, "f")


def test_helpers_are_found_wherever_they_stand():
    source = """
def f(x): return g(x) + A
def g(x): return h(x)
A = B = 1
h = lambda x: x + SHIFT
SHIFT: int = 1
SHIFT += 1
TABLE = {}
TABLE["k"] = 5
def wide(x, default=TABLE): return default[x]
"""
    assert ran(source, "f")["f"](1) == 4
    assert ran(source, "wide")["wide"]("k") == 5
    assert "TABLE" not in taken(source, "f")


def test_decorators_annotations_bases_and_defaults_are_needed_too():
    source = """
from functools import cache
from numbers import Number
LIMIT = 3
class Base: pass
class Sub(Base): top = LIMIT
@cache
def f(x: Number, sub=Sub) -> Number: return sub.top
"""
    assert ran(source, "f")["f"](1) == 3


def test_the_last_definition_counts_and_may_be_wrapped():
    source = "def f(): return 1\ndef f(): return 2\nold = f\nf = lambda: old() + 1"
    assert ran(source.replace("old = f\nf = lambda: old() + 1", ""), "f")["f"]() == 2
    assert ran(source, "f")["f"]() == 3
    assert "return 1" not in taken(source, "f")


def test_imports_under_guard_are_taken_whole():
    source = """
try:
    import nothing_like_it as np
except ImportError:
    import math as np
def f(x): return np.floor(x)
"""
    assert ran(source, "f")["f"](1.5) == 1


def test_what_stands_under_main_does_not_run():
    source = "K = 1\nif __name__ == '__main__':\n    K = undefined()\ndef f(): return K"
    assert ran(source, "f")["f"]() == 1


def test_stars_and_the_future_are_kept():
    source = "def f(x: Nowhere): return sqrt(x)\nfrom math import *\n"
    source += "from __future__ import annotations"
    assert ran(source, "f")["f"](4) == 2


def test_what_is_missing_or_imported_is_told():
    found = find(ast.parse("from math import sqrt").body, ["sqrt", "f"])
    assert found.missing == ("f",)
    assert found.notes == ("sqrt is imported, not written here",)


@pytest.mark.parametrize(
    "cell",
    [
        "%time f()\ndef f(): return 1",
        "!pip install x\ndef f(): return 1",
        "%%time\ndef f(): return 1",
        "files = !ls\ndef f(): return 1",
        "torch?\ndef f(): return 1",
        "def f():\n    %time\n    return 1",
        "def f():\n    return (7\n    % 2)",
        "def g(:\n    pass\n\n@property\nclass\ndef f(): return 1",
        "x = = 1\ndef f(): return 1\ny = = 2",
        "def g(x:\n@staticmethod_like\ndef h(): 0\nasync def k(: 0\ndef f(): return 1",
    ],
)
def test_magics_and_damage_cost_only_themselves(cell):
    statements, _ = parse(cell)
    namespace = {}
    exec(find(statements, ["f"]).source, namespace)
    assert namespace["f"]() == 1


def test_damage_is_reported_with_its_line():
    _, trouble = parse("a = 1\n\ndef g(:\n    pass\ndef f(): return 1")
    assert trouble == ["line 3 does not parse: invalid syntax"]


def test_a_cell_in_another_language_is_nothing():
    assert parse("%%bash\nrm -rf everything") == ([], [])


NOTEBOOK = json.dumps(
    {
        "cells": [
            {"cell_type": "markdown", "source": ["# Mine\n"]},
            {
                "cell_type": "code",
                "source": ["%time\n", "def f(x):\n", "    return x\n"],
            },
            {"cell_type": "code", "source": "import math\nfor i in range(3): f(i)"},
        ]
    }
).encode()


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, len(NOTEBOOK)),
    st.integers(0, 40),
    st.binary(max_size=6),
    st.booleans(),
)
def test_damage_anywhere_is_read_without_an_error(start, cut, insert, as_script):
    data = NOTEBOOK[:start] + insert + NOTEBOOK[start + cut :]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / ("x.py" if as_script else "x.ipynb")
        file.write_bytes(data)
        work = read_all([file])
    found = find(work.statements, ["f"])
    assert work.statements or work.notes
    assert found.missing in ((), ("f",))


def test_intact_it_holds_what_it_holds(tmp_path):
    (tmp_path / "x.ipynb").write_bytes(NOTEBOOK)
    work = read_all([tmp_path / "x.ipynb"])
    assert not work.notes and find(work.statements, ["f"]).missing == ()
