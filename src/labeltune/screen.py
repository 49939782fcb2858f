"""What a training looks like on a terminal: what was guessed and found, a progress bar, dev figures, the result."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import TaskID
from rich.table import Table

from labeltune.bars import Bars
from labeltune.facts import Checked, Ready, Said, Scored
from labeltune.inference import caveats
from labeltune.run import is_number, number
from labeltune.training.trainer import Step
from labeltune.wording import counted

SHOWN = ("accuracy", "macro_f1", "span_f1", "span_precision", "mse", "spearman")


class Screen(Bars):
    """A listener of `train` that draws; where there is no terminal it prints a line per evaluation."""

    def __init__(self, console: Console, *, quiet: bool = False) -> None:
        super().__init__(console, quiet=quiet)
        self._task: TaskID | None = None
        self._figures: dict[str, Any] = {}
        self._loss = 0.0
        self._select: str | None = None

    def end(self, *, failed: bool) -> None:
        """Show the figures, and what must be known to read them; a training that failed may have some too."""
        if self._figures and not self.quiet:
            self.console.print(metrics_table("", self._figures))
            for split, metrics in self._figures.items():
                if "parts" in metrics:
                    self.console.print(metrics_table(split, metrics["parts"]))
                for sentence in caveats(metrics):
                    self.say(f"{split}: {sentence}")

    def see(self, fact: object) -> None:
        """Show one fact."""
        if self.quiet:
            return
        if isinstance(fact, Said):
            self.say(fact.text)
        elif isinstance(fact, Checked):
            self._checked(fact)
        elif isinstance(fact, Ready):
            self._ready(fact)
        elif isinstance(fact, Step):
            self._step(fact)
        elif isinstance(fact, Scored):
            self._figures[fact.split] = fact.metrics

    def _checked(self, fact: Checked) -> None:
        report = fact.report
        how = "packed" if report.packed else "in rows of equal length"
        self.say(f"self-check: {report.layers} layers {how}; Company within {report.company:.0e}, Sight as set")

    def _ready(self, fact: Ready) -> None:
        rows = ", ".join(f"{count:,} {split}" for split, count in fact.rows.items())
        labels = ", " + counted(fact.labels, "label", "labels") if fact.labels else ""
        model = fact.config.model
        self._select = fact.config.train.select
        self.say(f"{fact.config.task}: {rows} rows{labels}")
        self.say(f"backbone: {model.name}, mask removed: {model.unmask}, pooling: {model.pooling}")
        self.say(f"training: {fact.trained_parameters:,} parameters, {counted(fact.total, 'step', 'steps')}")
        if fact.step:
            self.say(f"going on at step {fact.step:,}")
        self._task = self.bars.add_task("training", total=fact.total, completed=fact.step, facts="")

    def _step(self, step: Step) -> None:
        if math.isfinite(step.loss):
            self._loss = step.loss if not self._loss else 0.95 * self._loss + 0.05 * step.loss
        if self._task is not None:
            self.bars.update(self._task, completed=step.step, facts=f"epoch {step.epoch}  loss {self._loss:.4f}")
        if step.micro_tokens is not None:
            self.say(f"step {step.step:,}: memory ran out; from here on {step.micro_tokens:,} tokens a pass")
        if step.evaluation is not None:
            names = _shown(step.evaluation.metrics, self._select)
            shown = "  ".join(f"{name} {number(step.evaluation.metrics[name])}" for name in names)
            star = "  [green]best[/]" if step.evaluation.best else ""
            self.mark(f"epoch {step.epoch:>2}  step {step.step:>5,}  loss {self._loss:.4f}  dev {shown}{star}")
        if step.trial.status == "diverged":
            stays = "the best weights stay" if step.trial.best else "there are no weights to keep"
            self.mark(f"[bold red]the loss is no longer finite after step {step.step:,}[/]: {stays}")
        if step.trial.status == "stopped early":
            self.say(f"no better dev figures for {step.trial.config.patience} evaluations: stopped early")


def _shown(metrics: Mapping[str, Any], select: str | None) -> list[str]:
    """Two figures for a line: the one that chooses the weights, and the first other one."""
    names = dict.fromkeys((select, *SHOWN))
    return [name for name in names if name is not None and is_number(metrics.get(name))][:2]


def metrics_table(title: str, columns: dict[str, Any]) -> Table:
    """Numbers by name, a column per split."""
    table = Table(title=title or None, box=None, title_justify="left", header_style="bold")
    table.add_column("metric")
    for name in columns:
        table.add_column(name, justify="right")
    for metric in dict.fromkeys(name for values in columns.values() for name in values):
        cells = [values.get(metric) for values in columns.values()]
        if all(map(is_number, cells)):
            table.add_row(metric, *map(number, cells))
    return table
