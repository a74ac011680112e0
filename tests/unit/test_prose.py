"""No number in prose that no cell has printed."""

import pytest

from minillm.school.prose import agrees, numbers, unprinted, value, values


def cell(source: str) -> dict:
    return {"cell_type": "markdown", "source": source}


def code(printed: str | list[str], source: str = "") -> dict:
    output = {"output_type": "stream", "name": "stdout", "text": printed}
    return {"cell_type": "code", "source": source, "outputs": [output]}


TITLE = cell("# What is 42?\n\nCPU 2 cores · ~40 s · < 1 GB")


@pytest.mark.parametrize(
    ("prose", "printed"),
    [
        ("It fell to 0.63.", "loss 0.628"),
        ("It fell to 0.63 nats.", "loss 0.6349999"),
        ("About 12% are wrong.", "0.1249"),
        ("About 12 % are wrong.", "12%"),
        ("There are 131,072 of them.", "131072"),
        ("There are 131072 of them.", "131,072"),
        ("A rate of 0.001.", "1e-3"),
        ("It is 7.", "[3, 7, 9]"),
        ("It fell by -0.5.", "-0.5"),
        ("Between 3 and 5.", "3\n5"),
        ("It took (2.5) of them.", "2.50"),
    ],
)
def test_a_number_that_was_printed_is_accepted(prose, printed):
    assert unprinted([TITLE, cell(prose), code(printed)]) == []


@pytest.mark.parametrize(
    ("prose", "printed", "missing"),
    [
        ("It fell to 0.63.", "loss 0.6", ["0.63"]),  # more digits than were printed
        ("It fell to 0.63.", "loss 0.636", ["0.63"]),
        ("About 13% are wrong.", "0.1249", ["13%"]),
        ("There are 131,072 of them.", "131,071", ["131,072"]),
        ("It is 3.5 times as much.", "35", ["3.5"]),
        ("Two of 17, or 18.", "17", ["18"]),
        ("Half of it: 50%.", "nothing", ["50%"]),
        ("| run | 0.71 |", "0.7", ["0.71"]),
        ("- 8 items", "", ["8"]),
    ],
)
def test_a_number_that_was_not_is_named(prose, printed, missing):
    assert unprinted([TITLE, cell(prose), code(printed)]) == missing


def test_a_number_counts_only_as_output_and_not_as_code():
    with_source = code("", source="x = 0.63")
    assert unprinted([TITLE, cell("It is 0.63."), with_source]) == ["0.63"]


def test_outputs_may_be_lists_of_lines_and_values_of_cells():
    result = {"output_type": "execute_result", "data": {"text/plain": ["0.", "63"]}}
    shown = {"cell_type": "code", "source": "", "outputs": [result]}
    assert unprinted([TITLE, cell("It is 0.63, not 7."), shown, code(["7\n"])]) == []


@pytest.mark.parametrize(
    "free",
    [
        "$V = 50257$ and $$x = 17.3$$",
        "a formula\n$$\n12 + 13\n$$\nof lines",
        "$a$ of\nsome words $b = 5$",
        "`B=16` and\n```\n99\n```",
        "in 2020, by Hoffmann et al. (2022)",
        "chapter 07, sections 3.4 and 3.5, equation 2, Table 5, exercises 1 to 3",
        "arXiv 2203.15556 and 2404.05405",
        "GPT-2, T5, int8, A1, Llama-3.1-8B, H200, 7B, fp16, 16-bit",
        "1. first\n2. second",
        "## 3.1 A heading",
        "[a link](https://example.org/12/34.html) and https://example.org/56",
        '<img src="x.png" width="600">',
        "## References\n\nSome Author, pages 12 to 99.",
    ],
)
def test_what_is_no_measurement_is_free(free):
    assert numbers(free) == []


def test_free_words_do_not_hide_their_neighbours():
    text = "In 2020 it was 2.5, `x` 12, $y$ 13 and $z$; GPT-2 has 124."
    assert numbers(text) == ["2.5", "12", "13", "124"]
    assert numbers("It costs 2,500 or 1999.5.") == ["2,500", "1999.5"]


def test_only_the_first_cell_is_free_of_the_rule():
    assert unprinted([TITLE]) == []
    assert unprinted([cell("Words."), TITLE]) == ["42", "2", "40", "1"]


def test_percent_is_a_hundredth():
    assert value("12%") == value("0.12") and values("1,024 and 15 %")[1] == value("15%")
    assert agrees("12%", value("0.125")) and not agrees("12%", value("0.1251"))
