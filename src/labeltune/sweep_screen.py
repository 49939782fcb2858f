"""What a sweep looks like on a terminal: trials that run and have ended, the best so far, the tables at the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from rich.console import Console
from rich.markup import escape
from rich.progress import TaskID
from rich.table import Table as Grid

from labeltune.bars import Bars
from labeltune.facts import Said
from labeltune.run import number
from labeltune.sweeps.facts import Began, Ended, Moved, Planned, Pruned, Tested
from labeltune.sweeps.sweeping import Sweep
from labeltune.sweeps.tables import shown
from labeltune.sweeps.trials import Spec
from labeltune.wording import counted

WIDEST = 8
"""Columns of a table on a terminal; the files have all."""


class SweepScreen(Bars):
    """A listener of `sweep`: a bar for all trials and one for each that runs; a line per trial that ends."""

    def __init__(self, console: Console, *, quiet: bool = False) -> None:
        super().__init__(console, quiet=quiet)
        self._all: TaskID | None = None
        self._running: dict[int, TaskID] = {}
        self._metric = "score"

    def see(self, fact: object) -> None:
        """Show one fact."""
        if isinstance(fact, Planned):
            self._metric = fact.metric
            counts = counted(fact.points, "point", "points"), counted(fact.trials, "training", "trainings")
            self.say(f"{', '.join(counts)}, chosen by dev {fact.metric}")
            self._all = self.bars.add_task("trainings", total=fact.trials, completed=fact.done, facts="")
        elif isinstance(fact, Began):
            task = self.bars.add_task(fact.spec.name, total=fact.total, completed=fact.step, facts=_point(fact.spec))
            self._running[fact.spec.number] = task
        elif isinstance(fact, Moved):
            value = "" if fact.value is None else f"  {number(fact.value)}"
            self.bars.update(self._running[fact.spec.number], completed=fact.step, facts=_point(fact.spec) + value)
        elif isinstance(fact, Ended):
            self._ended(fact)
        elif isinstance(fact, Said):
            self.say(fact.text)
        elif isinstance(fact, Pruned):
            self.say(f"after epoch {fact.epoch}: {fact.kept:,} points go on, {fact.pruned:,} do not")
        elif isinstance(fact, Tested):
            self.say(f"{fact.spec.name}: scored on test")

    def _ended(self, fact: Ended) -> None:
        if (task := self._running.pop(fact.spec.number, None)) is not None:
            self.bars.remove_task(task)
        if self._all is not None:
            self.bars.advance(self._all)
        value = "" if fact.value is None else f"  dev {self._metric} {number(fact.value)}"
        reason = f"  ({fact.reason})" if fact.reason else ""
        self.say(f"{fact.spec.name}  {_point(fact.spec)}  {fact.status}{value}{reason}")


def _point(spec: Spec) -> str:
    names = _short(spec.settings)
    settings = "  ".join(f"{names[name]} {shown(value)}" for name, value in spec.settings.items())
    return f"{settings}  seed {spec.seed}" + (f"  fold {spec.fold}" if spec.fold else "")


def _short(names: Iterable[str]) -> dict[str, str]:
    """Settings by their own names, with the section where another one is called the same."""
    own = {name: name.partition(".")[2] or name for name in names}
    counts = Counter(own.values())
    return {name: short if counts[short] == 1 else name for name, short in own.items()}


def show_sweep(done: Sweep, console: Console) -> None:
    """The tables but the one of all trials, as far as they fit; where the rest is."""
    for table in done.tables:
        if table.name != "all" and table.rows:
            grid = Grid(title=table.name, box=None, title_justify="left", header_style="bold")
            columns = [name for name in table.columns if not name.endswith("_sd")][:WIDEST]
            for short in _short(columns).values():
                grid.add_column(short.replace("_", " "))  # words that a narrow screen parts
            for row in table.rows:
                grid.add_row(*(escape(shown(row.get(name))) for name in columns))
            console.print(grid)
    console.print(escape(f"best run: {done.run}"), highlight=False, soft_wrap=True)
    console.print(escape(f"all tables and plots: {done.folder / 'report.md'}"), highlight=False, soft_wrap=True)
