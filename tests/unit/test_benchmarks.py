"""What the README says was measured is what the result files say."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from minillm.school import lines

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def section(name: str) -> str:
    """The text between two comments of the README."""
    return re.search(rf"<!-- {name}.*?-->\n(.*?)\n<!-- end of", README, re.S)[1]


def test_the_readme_counts_the_lines_that_are_there():
    told = re.findall(r"\| ([\w ]+) \| ([\d,]+) \| ([\d,]+) \|", section("lines"))
    counted = lines.room_lines()
    assert [room for room, *_ in told] == list(counted)
    for room, *numbers in told:
        code, doing = (int(number.replace(",", "")) for number in numbers)
        # A line more or less need not change the README; a twentieth must.
        for said, count in ((code, counted[room].code), (doing, counted[room].doing)):
            assert said == pytest.approx(count, 0.05, 5), (
                f"{room} has changed: paste `python -m minillm.school.lines`"
            )


def test_the_readme_tells_the_committed_results():
    script = [sys.executable, str(ROOT / "benchmarks" / "table.py")]
    made = subprocess.run(script, capture_output=True, text=True, check=True)
    assert section("benchmarks") == made.stdout.strip(), (
        "paste the output of `python benchmarks/table.py`"
    )


def test_the_readme_quotes_the_studies_as_they_were_measured():
    script = [sys.executable, str(ROOT / "studies" / "table.py")]
    made = subprocess.run(script, capture_output=True, text=True, check=True)
    assert section("studies") == made.stdout.strip(), (
        "paste the output of `python studies/table.py`"
    )
    made = subprocess.run(
        [*script, "--all"], capture_output=True, text=True, check=True
    )
    page = (ROOT / "studies" / "README.md").read_text(encoding="utf-8")
    assert page == made.stdout, "write `python studies/table.py --all` to it"


@pytest.mark.parametrize(
    "path",
    sorted((ROOT / "benchmarks" / "results").glob("*.json")),
    ids=lambda p: p.stem,
)
def test_every_result_says_where_it_was_measured_and_not_by_whom(path):
    text = path.read_text(encoding="utf-8")
    machine = json.loads(text)["machine"]
    assert machine["cpu"] and machine["cores"] and machine["python"]
    assert not re.search(r"/home/|/root/|/tmp/|[A-Z]:\\\\", text)


def test_every_benchmark_explains_itself():
    for path in (ROOT / "benchmarks").glob("*.py"):
        first = path.read_text(encoding="utf-8").splitlines()[0]
        assert first.startswith('"""') and len(first) > 20, path.name
