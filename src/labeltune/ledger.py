"""The run's ledger: every opening of the test split is a line, written before the file is read."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from labeltune.storage import append_jsonl, read_jsonl

LEDGER = "ledger.jsonl"


class Ledger:
    """Appends to `ledger.jsonl` of a run folder."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / LEDGER

    def note(self, purpose: str, source: str, **facts: object) -> None:
        """Record that `source` is opened for `purpose` (opening, splitting, linting, final evaluation)."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        append_jsonl(self._path, {"time": now, "purpose": purpose, "source": source, **facts})

    def lines(self) -> list[Mapping[str, object]]:
        """All openings so far, oldest first."""
        return list(read_jsonl(self._path)) if self._path.exists() else []
