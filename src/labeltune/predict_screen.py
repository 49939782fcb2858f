"""What a prediction looks like on a terminal: rows done, rate, time left; else a line a minute."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import BarColumn

from labeltune.bars import Bars, facts_and_time
from labeltune.bulk.labelling import Watch
from labeltune.duration import duration
from labeltune.wording import counted

EVERY = 60.0
"""Seconds between two lines where there is no terminal."""


class PredictScreen(Bars, Watch):
    """A watch that shows what it is told."""

    def __init__(self, console: Console) -> None:
        super().__init__(console, BarColumn(), *facts_and_time())
        self._rows, self._kept, self._total = 0, 0, None  # type: tuple[int, int, int | None]
        self._began = self._told = time.monotonic()
        self._task = self.bars.add_task("", total=None, facts="loading the model")

    def end(self, *, failed: bool) -> None:
        """What was done, where somebody has seen that it is at work."""
        if not failed and (self.console.is_terminal or self._told > self._began):
            self.say(self._facts(time.monotonic() - self._began))

    def begin(self, rows: int | None) -> None:
        """The clock starts."""
        self._began = self._told = time.monotonic()
        self._total = rows
        self.bars.reset(self._task, total=rows, facts="loading the model")

    def kept(self, rows: int) -> None:
        """Rows of an earlier start count as done, not for the rate."""
        self._kept += rows
        self.bars.update(self._task, completed=self._kept + self._rows)

    def advance(self, rows: int) -> None:
        """Draw, or say a line when a minute has passed."""
        self._rows += rows
        now = time.monotonic()
        self.bars.update(self._task, completed=self._kept + self._rows, facts=self._facts(now - self._began))
        if not self.console.is_terminal and now - self._told > EVERY:
            self._told = now
            self.say(self._facts(now - self._began) + self._left(now - self._began))

    def _facts(self, seconds: float) -> str:
        earlier = f" and {self._kept:,} from before" if self._kept else ""
        return f"{counted(self._rows, 'row', 'rows')}{earlier}, {self._rows / max(seconds, 1e-9):,.0f} rows/s"

    def _left(self, seconds: float) -> str:
        if self._total is None:
            return ""
        left = max(0, self._total - self._kept - self._rows)
        return f", about {duration(left * seconds / max(self._rows, 1))} left"
