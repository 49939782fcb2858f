"""What a benchmark has finished, so that an interrupted one goes on where it stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class Cells:
    """The finished cells of a benchmark, one JSON object a line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = self.path.read_text("utf-8").splitlines() if self.path.exists() else []
        self.rows = [json.loads(line) for line in lines]

    def find(self, **facts: Any) -> list[dict[str, Any]]:
        """The cells with these facts."""
        return [row for row in self.rows if all(row.get(name) == value for name, value in facts.items())]

    def add(self, row: dict[str, Any]) -> None:
        """Keep one more, at once on disk."""
        self.rows.append(row)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
