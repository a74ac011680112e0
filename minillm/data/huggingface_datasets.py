"""Hugging Face datasets, from the hub or from disk, as a stream of texts."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType

from minillm.errors import require

READERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}


def read_dataset(source: str, stream: bool = False) -> Iterator[str]:
    """The texts of one column, row by row.

    Args:
        source: NAME, NAME:SPLIT or NAME:CONFIG:SPLIT, or the path of a local dataset
            (saved with ``save_to_disk``, or a table), with an optional "#COLUMN".
        stream: fetch rows as they are needed, instead of the whole dataset first.

    Raises:
        ImportError: the ``datasets`` package is missing.
        OSError: no such dataset, or no connection.
        ValueError: no such split or column.
    """
    datasets = _datasets_package()
    place, _, column = source.partition("#")
    try:
        dataset = _open(datasets, place, stream)
    except (OSError, ValueError) as error:
        kind = OSError if isinstance(error, OSError) else ValueError
        raise kind(
            f"dataset {place!r} could not be loaded ({error}); check name, config and "
            "split. Without a connection only local paths and datasets that were "
            "loaded before can be used"
        ) from error
    return _texts(dataset, column or "text", column)


def _datasets_package() -> ModuleType:
    try:
        import datasets
    except ImportError as error:
        remedy = "install it with: pip install 'minillm[lab]'"
        raise ImportError(
            f"this corpus needs the datasets package; {remedy}"
        ) from error
    return datasets


def _open(datasets: ModuleType, place: str, stream: bool) -> Iterable[dict]:
    path = Path(place).expanduser()
    if path.is_file():
        reader = READERS.get(path.suffix.lower())
        kinds = f"a table ({', '.join(READERS)})"
        require(reader is not None, "source", place, kinds, "convert it, or drop hf:")
        files = {"data_files": str(path), "split": "train", "streaming": stream}
        return datasets.load_dataset(reader, **files)
    if (path / "dataset_info.json").exists() or (path / "dataset_dict.json").exists():
        saved = datasets.load_from_disk(str(path))
        if not isinstance(saved, dict):
            return saved
        remedy = f"give the path of one split, such as {place}/{next(iter(saved))}"
        require(
            "train" in saved, "source", place, "a dataset with a train split", remedy
        )
        return saved["train"]
    name, config, split = _parse(place)
    return datasets.load_dataset(name, config, split=split, streaming=stream)


def _parse(place: str) -> tuple[str, str | None, str]:
    """NAME[:CONFIG][:SPLIT]; with one colon it is the split that is named.

    >>> _parse("wikitext:wikitext-2-v1:test"), _parse("ag_news")
    (('wikitext', 'wikitext-2-v1', 'test'), ('ag_news', None, 'train'))
    """
    parts = place.split(":")
    fine = len(parts) <= 3 and all(parts)
    forms = "NAME, NAME:SPLIT or NAME:CONFIG:SPLIT"
    require(fine, "source", place, forms, "correct the name of the dataset")
    name, *middle = parts
    config = middle[0] if len(middle) == 2 else None
    return name, config, middle[-1] if middle else "train"


def _texts(dataset: Iterable[dict], column: str, asked_for: str) -> Iterator[str]:
    for i, row in enumerate(dataset):
        if i == 0:
            strings = [name for name in row if isinstance(row[name], str | None)]
            if not asked_for and column not in strings and len(strings) == 1:
                column = strings[0]
            known = f"one of the text columns {strings}"
            remedy = f"name it after a #, as in #{strings[0] if strings else 'COLUMN'}"
            require(column in strings, "column", column, known, remedy)
        yield row[column] or ""
