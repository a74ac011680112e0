"""A training log that survives: one JSON object a line, appended and flushed.

A killed run leaves at worst a torn last line and a few lines that its last checkpoint
does not know of. ``MetricsLog`` drops both when it opens the file again, so after a
resume the log reads as if nothing had happened.
"""

import json
from pathlib import Path

from minillm.files import append_line, atomic_write


class MetricsLog:
    """What was measured at every step, in memory and in a file.

    Args:
        path: the JSONL file; ``None`` keeps the records in memory only.
        before: keep the records of steps below this; 0 begins afresh.

    >>> log = MetricsLog(None)
    >>> log.append({"step": 0, "loss": 6.2}); log.column("loss")
    [6.2]
    """

    def __init__(self, path: str | Path | None, before: int = 0):
        self.path = Path(path) if path else None
        self.records = [r for r in read_metrics(self.path) if r["step"] < before]
        if self.path:
            with atomic_write(self.path) as temporary:
                lines = "".join(json.dumps(record) + "\n" for record in self.records)
                temporary.write_text(lines, encoding="utf-8")

    def append(self, record: dict) -> None:
        """Add a record; in the file, too, before this returns.

        Raises:
            DiskFullError: no room for a line.
        """
        if self.path:
            append_line(self.path, json.dumps(record))
        self.records.append(record)  # after it, so that file and memory agree

    def column(self, name: str) -> list:
        """One quantity over all steps that have it."""
        return [record[name] for record in self.records if name in record]


def read_metrics(path: str | Path | None) -> list[dict]:
    """Read a log; a torn last line is left out, a missing file is an empty log.

    >>> read_metrics(None)
    []
    """
    if path is None or not Path(path).is_file():
        return []
    records = []
    for line in Path(path).read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            break  # the process died while it wrote this one
        if not isinstance(record, dict) or "step" not in record:
            break
        records.append(record)
    return records
