"""Pages and pictures: nothing breaks them, nothing hides in them."""

import base64
import os

import pytest

from minillm.files import DiskFullError
from minillm.school import show
from minillm.school.report import Page, plain_table


def test_text_from_a_model_cannot_break_the_page():
    page = Page("<b>title</b>")
    page.sample("<script>", "</pre><script>alert(1)</script>\x00\x1b[31m", "after")
    html = page.html()
    assert "<script" not in html and "\x00" not in html and "\x1b" not in html
    assert "&lt;b&gt;title" in html


def test_alt_text_with_quotes_stays_inside_its_attribute():
    page = Page("t")
    page.picture(show.figure("f", "x", "y"), 'a "quoted" <finding>')
    assert 'alt="a &quot;quoted&quot; &lt;finding&gt;"' in page.html()


def test_pictures_are_png_inside_the_page():
    url = show.data_url(show.bars("finding", "bits", ["gzip", "ours"], [2.0, 1.0]))
    assert base64.b64decode(url.split(",")[1]).startswith(b"\x89PNG")


def test_ours_is_always_blue_and_the_last_bar():
    axes = show.bars("finding", "bits", ["gzip", "ours"], [2.0, 1.0])
    colors = [tuple(round(c, 3) for c in bar.get_facecolor()) for bar in axes.patches]
    ours = tuple(round(int(show.OURS[i : i + 2], 16) / 255, 3) for i in (1, 3, 5))
    assert colors[-1][:3] == ours != colors[0][:3]


def test_columns_of_numbers_are_aligned_right():
    lines = plain_table(["a", "n"], [["x", "1"], ["yy", "1,000"]]).splitlines()
    assert [line[-1] for line in lines] == ["n", "1", "0"]
    assert len(lines[1]) == len(lines[2])


def test_smooth_keeps_a_constant_and_follows_a_step_without_lag():
    assert show.smooth([2.0] * 50) == pytest.approx([2.0] * 50)
    smooth = show.smooth([0.0] * 100 + [1.0] * 100)
    assert smooth[80] == 0.0 and smooth[125] == pytest.approx(1.0)
    assert smooth[100] == pytest.approx(0.5, abs=0.1)


def test_a_full_disk_leaves_the_older_page(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    Page("old").write(path)

    def full(*_):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("minillm.files.os.replace", full)
    with pytest.raises(DiskFullError, match=r"report.html.*free some"):
        Page("new").write(path)
    assert "old" in path.read_text()
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
