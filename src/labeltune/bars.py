"""Progress bars above which lines are said; without a terminal there are lines alone."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn


def named_bars() -> tuple[ProgressColumn, ...]:
    """Columns of bars that have a name and are counted: `training ━━━━ 17/40 loss 0.3 0:00:12`."""
    return TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), *facts_and_time()


def facts_and_time() -> tuple[ProgressColumn, ...]:
    """What is said of a bar (the field `facts`), and the time left."""
    return TextColumn("{task.fields[facts]}"), TimeRemainingColumn()


class Bars:
    """The base of the screens: bars while it is entered, and what is said in lines above them.

    columns: of a bar, `named_bars` where none are given. quiet: neither bars nor lines.
    """

    def __init__(self, console: Console, *columns: ProgressColumn, quiet: bool = False) -> None:
        self.console, self.quiet = console, quiet
        hidden = quiet or not console.is_terminal
        self.bars = Progress(*(columns or named_bars()), console=console, disable=hidden, transient=True)

    def __enter__(self) -> Self:
        self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bars.stop()
        self.end(failed=kind is not None)

    def end(self, *, failed: bool) -> None:
        """What remains to be shown once the bars are gone: nothing."""

    def say(self, sentence: str) -> None:
        """A line; in a file it is one line, on a terminal it is broken between words."""
        self.mark(escape(sentence))

    def mark(self, markup: str) -> None:
        """A line with rich's markup."""
        if not self.quiet:
            self.console.print(markup, highlight=False, soft_wrap=not self.console.is_terminal)
