"""Corpora: where text comes from, and what is held out to test on.

    load_corpus("python-docs")               real English that every Python brings along
    load_corpus("book.txt")                  a text file
    load_corpus("notes/")                    a folder of .txt, .md, .rst and .py files
    load_corpus("hf:roneneldan/TinyStories") a Hugging Face dataset

A corpus is a list of documents. They are split into training and held-out text as
wholes, by a hash of their content:

    held out  <=>  hash(seed, text) / 2^64 < fraction

so the order of files does not matter, a document stays where it is when others join,
and equal texts can never stand on both sides. What nearly equal texts give away is
measured by ``minillm.data.overlap`` and belongs into every report.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from minillm.data.huggingface_datasets import READERS, read_dataset
from minillm.data.overlap import drop_contained
from minillm.data.python_docs import read_python_docs
from minillm.errors import require

SUFFIXES = (".txt", ".md", ".rst", ".py")
REMEDY = 'give a file, a folder, "python-docs" or "hf:NAME"'


@dataclass(frozen=True)
class Corpus:
    """Documents and where they come from.

    Args:
        name: the source, as the user gave it.
        documents: texts, non-empty and all different.
        skipped: how many were left out, by reason.
    """

    name: str
    documents: list[str]
    skipped: dict[str, int] = field(default_factory=dict)

    @property
    def n_bytes(self) -> int:
        """Size of all documents in UTF-8."""
        return sum(len(document.encode()) for document in self.documents)


def load_corpus(
    source: str | Path, max_bytes: int | None = None, progress: bool = False
) -> Corpus:
    """Load documents from wherever they are; empty and repeated ones are left out.

    Args:
        source: "python-docs"; a text file; a folder; a table (.jsonl, .json, .parquet,
            .csv); or "hf:NAME", "hf:NAME:SPLIT", "hf:NAME:CONFIG:SPLIT", each with an
            optional "#COLUMN" (split "train" and column "text" if not given).
        max_bytes: stop at the document that exceeds this much text.
        progress: show a bar on stderr.

    Raises:
        FileNotFoundError: no such file or folder.
        OSError: a dataset that cannot be loaded.
        ValueError: nothing to read in it, no UTF-8, binary, no such column.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = (folder / "a.txt").write_text("one"), (folder / "b.md").write_text("one")
    >>> load_corpus(folder).skipped
    {'duplicate': 1}
    """
    documents: dict[str, None] = {}  # a set that remembers the order
    skipped: Counter[str] = Counter()
    texts = _read(str(source), skipped, stream=max_bytes is not None)
    size = 0
    for text in tqdm(texts, desc="Reading", unit=" documents", disable=not progress):
        if not text.strip() or text in documents:
            skipped["duplicate" if text in documents else "empty"] += 1
            continue
        documents[text] = None
        size += len(text.encode())
        if max_bytes is not None and size > max_bytes:
            break
    require(bool(documents), "source", str(source), "a corpus with text in it", REMEDY)
    return Corpus(str(source), list(documents), dict(skipped))


def _read(name: str, skipped: Counter[str], stream: bool) -> Iterable[str]:
    if name == "python-docs":
        # The reference repeats whole sections under several topics: up to 40 % of what
        # one split held out stood in its training text word for word, now under 1 %.
        documents = list(read_python_docs())
        kept = drop_contained(documents)
        skipped["mostly contained in another"] = len(documents) - len(kept)
        return kept
    if name.startswith("hf:") or Path(name.split("#")[0]).suffix.lower() in READERS:
        return read_dataset(name.removeprefix("hf:"), stream)
    require(os.path.exists(name), "source", name, "on disk", REMEDY, FileNotFoundError)
    if os.path.isdir(name):
        return _read_folder(name, skipped)
    return cut_into_documents(read_text(Path(name)))


# --- Files --------------------------------------------------------------------------


def read_text(path: Path) -> str:
    """A text file as a string, with "\\n" at line ends and no byte order mark.

    Raises:
        ValueError: binary, or no UTF-8 (with the offset of the first bad byte).
    """
    raw, name = path.read_bytes(), str(path)
    require(b"\0" not in raw, "source", name, "a text file, not a binary one", REMEDY)
    try:
        return raw.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        bad = f"bad byte 0x{raw[error.start]:02x} at offset {error.start}"
        remedy = "convert it, for instance from Windows with iconv -f cp1252 -t utf-8"
        raise ValueError(f"source {name!r} is not UTF-8: {bad}; {remedy}") from error


def cut_into_documents(text: str, at_least: int = 2000) -> list[str]:
    """Cut one long text, after blank lines, into documents of 2,000 characters or more.

    A novel in one file would otherwise be a single document, and nothing could be held
    out. Joined, the documents are the text.

    >>> cut_into_documents("one\\n\\ntwo\\nthree\\n\\nfour", at_least=4)
    ['one\\n\\n', 'two\\nthree\\n\\n', 'four']
    """
    documents, start = [], 0
    while (end := text.find("\n\n", start + at_least - 2)) >= 0:
        documents.append(text[start : end + 2])
        start = end + 2
    return [*documents, text[start:]] if text[start:] else documents


def _read_folder(folder: str, skipped: Counter[str]) -> Iterable[str]:
    for where, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if name.startswith(".") or not name.lower().endswith(SUFFIXES):
                skipped["hidden, or of another type"] += 1
                continue
            try:
                yield read_text(Path(where, name))
            except ValueError:
                skipped["binary, or not UTF-8"] += 1


# --- Training and held-out text -----------------------------------------------------


def train_heldout_split(
    documents: Sequence[str], fraction: float = 0.1, seed: int = 0
) -> tuple[list[str], list[str]]:
    """Split whole documents into training and held-out text; neither side is empty.

    Args:
        documents: at least two different texts.
        fraction: share of the documents to hold out, between 0 and 1. Documents differ
            in length, so the share of bytes is only near it.
        seed: another seed holds out other documents.

    >>> train, heldout = train_heldout_split([str(i) for i in range(1000)], 0.1)
    >>> len(train), len(heldout)
    (902, 98)
    """
    require(0 < fraction < 1, "fraction", fraction, "between 0 and 1", "try 0.1")
    n, remedy = len(set(documents)), "give more text, or hold out a file of its own"
    require(n >= 2, "documents", n, "at least two different texts", remedy)
    places = {document: _place(document, seed) for document in documents}
    lowest, highest = min(places.values()), max(places.values())
    limit = min(max(int(fraction * 2**64), lowest + 1), highest)
    heldout = [document for document in documents if places[document] < limit]
    train = [document for document in documents if places[document] >= limit]
    return train, heldout


def _place(text: str, seed: int) -> int:
    return int(hashlib.sha256(f"{seed}\0{text}".encode()).hexdigest()[:16], 16)
