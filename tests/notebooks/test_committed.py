"""The notebooks that are committed: as their sources, within the rules, complete.

They are not executed here; ``python -m minillm.school.notebooks`` does that.
"""

from minillm.school import coverage
from minillm.school.products import faults, orphans, products


def test_every_notebook_is_what_its_source_says_and_keeps_the_rules():
    found = [fault for product in products() for fault in faults(product)]
    assert not found, "\n".join(
        ["build again (python -m minillm.school.build) or mend the source:", *found]
    )


def test_every_notebook_has_a_source():
    assert not orphans()


def test_every_chapter_has_a_table_and_a_finished_one_lacks_nothing():
    lacks = {
        chapter: coverage.missing(chapter)
        for chapter in coverage.chapters()
        if coverage.table(chapter).get("finished")
    }
    listed = [f"{chapter}: {lack}" for chapter, of in lacks.items() for lack in of]
    assert not listed, "\n".join(listed)
