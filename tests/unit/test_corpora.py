"""Corpora: every source, every door, and a held-out part that was not read."""

import json
import random
import sys
import time

import pytest

from minillm.data.corpora import (
    cut_into_documents,
    load_corpus,
    read_text,
    train_heldout_split,
)
from minillm.data.overlap import drop_contained, overlap
from minillm.data.python_docs import module_docs

DOCUMENTS = [f"document number {i}" for i in range(500)]


@pytest.fixture(scope="module")
def docs():
    return load_corpus("python-docs")


# --- Python's own documentation -----------------------------------------------------


def test_python_docs_are_megabytes_of_different_documents(docs):
    assert docs.n_bytes > 1_500_000 and len(docs.documents) > 300
    assert len(set(docs.documents)) == len(docs.documents)


def test_python_docs_read_as_english_and_not_as_code(docs):
    text = "\n".join(docs.documents)
    assert text.lower().split().count("the") / len(text.split()) > 0.04
    assert 'The "try" statement' in text and "A fast, lightweight IPv4" in text


def test_python_docs_are_read_within_seconds_and_without_imports(docs):
    before = set(sys.modules)
    start = time.process_time()
    again = load_corpus("python-docs")
    assert time.process_time() - start < 8  # 1.6 on the machine of the benchmarks
    assert set(sys.modules) == before
    assert again == docs


def test_held_out_python_docs_are_not_in_the_training_text(docs):
    train, heldout = train_heldout_split(docs.documents, 0.1)
    assert overlap(train, heldout) < 0.02
    assert docs.skipped["mostly contained in another"] > 20


def test_module_docs_follow_the_source_and_name_what_they_document():
    source = '''
"""Top."""
if True:
    def hidden(): "not a definition of the module itself"
class A:
    "Class."
    def f(self, x): "Method."
    class B: "Inner."
async def g(a, /, b): "Function."
'''
    expected = "m|Top.|A|Class.|A.f(x)|Method.|A.B|Inner.|g(a, b)|Function."
    assert module_docs(source, "m").split("\n\n") == expected.split("|")
    assert module_docs("def broken(:", "m") == module_docs("x = 1", "m") == ""


# --- files and folders --------------------------------------------------------------


def test_a_text_file_becomes_documents_that_join_to_the_file(tmp_path):
    text = "\n\n".join(f"Paragraph {i}: " + "words " * 60 for i in range(40))
    (tmp_path / "book.txt").write_text(text)
    corpus = load_corpus(tmp_path / "book.txt")
    assert "".join(corpus.documents) == text
    assert all(len(document) >= 2000 for document in corpus.documents[:-1])
    assert len(corpus.documents) > 5


@pytest.mark.parametrize(
    "text", ["", "a", "\n\n", "a\n\n", "\n\n\n\n\na\n\nb", "abc" * 9]
)
@pytest.mark.parametrize("at_least", [2, 3, 7])
def test_cutting_loses_nothing(text, at_least):
    documents = cut_into_documents(text, at_least)
    assert "".join(documents) == text and all(documents)


def test_windows_line_ends_and_byte_order_marks_are_removed(tmp_path):
    path = tmp_path / "windows.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\ntwo")
    assert read_text(path) == "one\ntwo"


def test_a_folder_is_read_in_order_and_what_is_left_out_is_counted(tmp_path):
    (tmp_path / "deep" / ".git").mkdir(parents=True)
    (tmp_path / "b.md").write_text("bee")
    (tmp_path / "a.TXT").write_text("ay")
    (tmp_path / "deep" / "c.rst").write_text("sea")
    (tmp_path / "deep" / "again.txt").write_text("bee")
    (tmp_path / "deep" / ".git" / "secret.txt").write_text("hidden")
    (tmp_path / ".hidden.txt").write_text("hidden")
    (tmp_path / "image.png").write_bytes(b"\x89PNG")
    (tmp_path / "binary.txt").write_bytes(b"a\0b")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / "empty.txt").touch()
    corpus = load_corpus(str(tmp_path))
    assert corpus.documents == ["ay", "bee", "sea"]
    assert corpus.skipped == {
        "hidden, or of another type": 2,
        "binary, or not UTF-8": 2,
        "empty": 1,
        "duplicate": 1,
    }


def test_max_bytes_stops_at_the_document_that_exceeds_it(tmp_path):
    for i in range(9):
        (tmp_path / f"{i}.txt").write_text(f"{i}" * 100)
    assert len(load_corpus(tmp_path, max_bytes=250).documents) == 3


# --- doors --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "a corpus with text in it"),
        (b" \n\n", "a corpus with text in it"),
        (b"PK\x03\x04\0\0", "not a binary one"),
        (b"plain caf\xe9 au lait", r"bad byte 0xe9 at offset 9; convert it"),
        ("utf-16".encode("utf-16"), "not a binary one"),
    ],
)
def test_a_file_that_is_no_text_says_what_it_is(tmp_path, content, message):
    path = tmp_path / "file.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_corpus(path)


def test_a_missing_source_lists_what_can_be_given():
    with pytest.raises(FileNotFoundError, match='"python-docs" or "hf:NAME"'):
        load_corpus("no/such/place")


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="a corpus with text in it"):
        load_corpus(tmp_path)


@pytest.mark.parametrize("source", [None, 3, "", "  ", ["a.txt"]])
def test_what_is_no_name_is_refused(source):
    with pytest.raises(FileNotFoundError, match='"python-docs" or "hf:NAME"'):
        load_corpus(source)


# --- training and held-out text -----------------------------------------------------


def test_every_document_is_on_exactly_one_side():
    train, heldout = train_heldout_split(DOCUMENTS, 0.2)
    assert sorted(train + heldout) == sorted(DOCUMENTS)
    assert 0.15 < len(heldout) / len(DOCUMENTS) < 0.25


def test_the_split_does_not_depend_on_the_order_of_documents():
    shuffled = random.Random(0).sample(DOCUMENTS, len(DOCUMENTS))
    first, second = train_heldout_split(DOCUMENTS), train_heldout_split(shuffled)
    assert sorted(first[1]) == sorted(second[1])


def test_a_new_document_moves_no_other():
    _, before = train_heldout_split(DOCUMENTS)
    _, after = train_heldout_split(["something new", *DOCUMENTS])
    assert set(after) - {"something new"} == set(before)


def test_another_seed_holds_out_other_documents():
    one, two = (set(train_heldout_split(DOCUMENTS, seed=seed)[1]) for seed in (0, 1))
    assert len(one & two) < len(one) / 2


def test_equal_documents_stay_together():
    train, heldout = train_heldout_split(DOCUMENTS + DOCUMENTS, 0.5)
    assert not set(train) & set(heldout)


@pytest.mark.parametrize("fraction", [1e-9, 0.5, 1 - 1e-9])
@pytest.mark.parametrize("size", [2, 3, 50])
def test_neither_side_is_empty(fraction, size):
    train, heldout = train_heldout_split(DOCUMENTS[:size], fraction)
    assert train and heldout and len(train) + len(heldout) == size


@pytest.mark.parametrize(
    ("documents", "fraction"),
    [(["a"], 0.1), (["a", "a"], 0.1), (["a", "b"], 0), (["a", "b"], 1)],
)
def test_what_cannot_be_split_is_refused(documents, fraction):
    with pytest.raises(ValueError, match="must be"):
        train_heldout_split(documents, fraction)


def test_overlap_counts_each_recited_word_once():
    assert overlap(["a b c d e"], ["a b c d x x x x"], n=3) == 0.5
    assert overlap(["a b c"], ["c b a"], n=3) == 0
    assert overlap(["a b"], [""], n=2) == 0


def test_a_document_within_a_longer_one_is_dropped_whatever_the_order():
    long, part, other = "a b c d e f g h", "c d e f", "p q r s"
    for documents in ([long, part, other], [part, other, long]):
        assert set(drop_contained(documents, n=2)) == {long, other}


# --- Hugging Face datasets ----------------------------------------------------------


@pytest.fixture
def datasets(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return datasets


def write_rows(path, rows) -> str:
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return str(path)


def test_empty_and_repeated_rows_are_counted(tmp_path, datasets):
    rows = [{"text": text, "label": 1} for text in ("one", None, "two", "one")]
    corpus = load_corpus(write_rows(tmp_path / "rows.jsonl", rows))
    assert corpus.documents == ["one", "two"]
    assert corpus.skipped == {"empty": 1, "duplicate": 1}


@pytest.mark.parametrize("prefix", ["", "hf:"])
@pytest.mark.parametrize("max_bytes", [None, 1000])
def test_a_jsonl_file_is_read(tmp_path, datasets, prefix, max_bytes):
    rows = [{"id": i, "story": f"story {i}"} for i in range(3)]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    corpus = load_corpus(f"{prefix}{path}#story", max_bytes=max_bytes)
    assert corpus.documents == ["story 0", "story 1", "story 2"]


def test_a_missing_column_lists_the_columns_there_are(tmp_path, datasets):
    path = write_rows(tmp_path / "d.jsonl", [{"title": "t", "body": "b", "n": 1}])
    for column in ("", "#nothing", "#n"):
        with pytest.raises(ValueError, match=r"column must be .*\['title', 'body'\]"):
            load_corpus(f"{path}{column}")
    assert load_corpus(f"hf:{path}#body").documents == ["b"]


def test_a_name_is_taken_apart_as_documented(monkeypatch, datasets):
    calls = []

    def fake(name, config, split, streaming):
        calls.append((name, config, split, streaming))
        return [{"text": "row"}]

    monkeypatch.setattr(datasets, "load_dataset", fake)
    for source in ("hf:a/b", "hf:a/b:test", "hf:a/b:conf:test#text"):
        assert load_corpus(source).documents == ["row"]
    load_corpus("hf:a/b", max_bytes=10)
    assert calls == [
        ("a/b", None, "train", False),
        ("a/b", None, "test", False),
        ("a/b", "conf", "test", False),
        ("a/b", None, "train", True),
    ]


@pytest.mark.parametrize("name", ["hf:", "hf:a:b:c:d", "hf:a::b"])
def test_a_malformed_name_is_refused(name, datasets):
    with pytest.raises(ValueError, match="NAME:CONFIG:SPLIT"):
        load_corpus(name)


def test_without_a_connection_the_reason_is_explained(monkeypatch, datasets):
    def offline(*args, **kwargs):
        raise ConnectionError("cannot reach the hub")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(OSError, match=r"cannot reach the hub.*without a connection"):
        load_corpus("hf:a/b")


def test_without_the_datasets_package_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r"pip install 'minillm\[lab\]'"):
        load_corpus("hf:a/b")
