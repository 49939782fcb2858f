"""What a benchmark has finished, so that an interrupted one goes on where it stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from labeltune.storage import append_jsonl, read_jsonl


class Cells:
    """The finished cells of a benchmark, one JSON object a line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows = list(read_jsonl(path)) if path.exists() else []

    def find(self, **facts: Any) -> list[dict[str, Any]]:
        """The cells with these facts."""
        return [row for row in self.rows if all(row.get(name) == value for name, value in facts.items())]

    def add(self, row: dict[str, Any]) -> None:
        """Keep one more, at once on disk."""
        self.rows.append(row)
        append_jsonl(self.path, row)


def ended(folder: Path) -> bool:
    """Whether the training of a run folder went to its end, so that a kill or Ctrl-C is gone on with."""
    metrics = folder / "metrics.json"
    return metrics.exists() and json.loads(metrics.read_bytes())["train"]["status"] != "interrupted"
