"""Hugging Face datasets, from the hub or from a table on disk, as a stream of texts."""

from collections.abc import Iterator
from pathlib import Path

from minillm.errors import require

READERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}


def read_dataset(source: str, stream: bool = False) -> Iterator[str]:
    """The texts of one column, row by row.

    Args:
        source: NAME, NAME:SPLIT or NAME:CONFIG:SPLIT, or the path of a table, with an
            optional "#COLUMN" (split "train" and column "text" if not given).
        stream: fetch rows as they are needed, instead of the whole dataset first.

    Raises:
        ImportError: the ``datasets`` package is missing.
        OSError: no such dataset, config or split, or no connection.
        ValueError: a malformed name, no such column, or a column without text.
    """
    place, _, column = source.partition("#")
    column = column or "text"
    for row in _open(place, stream):
        texts = [name for name in row if isinstance(row[name], str | None)]
        require(column in texts, "column", column, f"one of {texts}", "add #COLUMN")
        yield row[column] or ""


def _open(place: str, stream: bool) -> Iterator[dict]:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise ImportError("datasets missing: pip install 'minillm[lab]'") from error
    reader = READERS.get(Path(place).suffix.lower())
    name, config, split = (reader, None, "train") if reader else _parse(place)
    where = {"data_files": place} if reader else {}
    try:
        return load_dataset(name, config, split=split, streaming=stream, **where)
    except (OSError, ValueError) as error:
        remedy = "check name and split; without a connection give a local file"
        raise OSError(f"{place!r} could not be loaded ({error}); {remedy}") from error


def _parse(place: str) -> tuple[str, str | None, str]:
    """NAME[:CONFIG][:SPLIT]; with one colon it is the split that is named.

    >>> _parse("wikitext:wikitext-2-v1:test"), _parse("ag_news")
    (('wikitext', 'wikitext-2-v1', 'test'), ('ag_news', None, 'train'))
    """
    parts = place.split(":")
    forms = "NAME, NAME:SPLIT or NAME:CONFIG:SPLIT"
    require(len(parts) <= 3 and all(parts), "source", place, forms, "correct the name")
    config = parts[1] if len(parts) == 3 else None
    return parts[0], config, parts[-1] if len(parts) > 1 else "train"
