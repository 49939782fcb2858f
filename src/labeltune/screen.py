"""What a training looks like on a terminal: what was guessed and found, a progress bar, dev figures, the result."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from labeltune.fitting import Checked, Ready, Said, Scored
from labeltune.training.trainer import Step

SHOWN = ("loss", "macro_f1", "accuracy", "span_f1", "span_precision", "span_recall", "mse", "spearman", "log_loss")


class Screen:
    """A listener of `train` that draws; where there is no terminal it prints a line per evaluation."""

    def __init__(self, console: Console, *, quiet: bool = False) -> None:
        self._console, self._quiet = console, quiet
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[facts]}"),
            TimeRemainingColumn(),
            console=console,
            disable=quiet or not console.is_terminal,
            transient=True,
        )
        self._task: TaskID | None = None
        self._figures: dict[str, Any] = {}
        self._loss = 0.0

    def __enter__(self) -> Screen:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
        if self._figures and not self._quiet:
            self._console.print(metrics_table("", self._figures))

    def see(self, fact: object) -> None:
        """Show one fact."""
        if self._quiet:
            return
        if isinstance(fact, Said):
            self._console.print(fact.text, highlight=False)
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
        self._console.print(
            f"self-check: {report.layers} layers {how}; Company within {report.company:.0e}, Sight as set",
            highlight=False,
        )

    def _ready(self, fact: Ready) -> None:
        rows = ", ".join(f"{count:,} {split}" for split, count in fact.rows.items())
        model = fact.config.model
        self._console.print(
            f"{fact.config.task}: {rows} rows, {fact.labels} labels; {model.name} (mask removed: {model.unmask}, "
            f"pooling: {model.pooling}), {fact.trained_parameters:,} trained parameters",
            highlight=False,
        )
        if fact.step:
            self._console.print(f"going on at step {fact.step:,}", highlight=False)
        self._task = self._bar.add_task("training", total=fact.total, completed=fact.step, facts="")

    def _step(self, step: Step) -> None:
        self._loss = step.loss if not self._loss else 0.95 * self._loss + 0.05 * step.loss
        if self._task is not None:
            self._bar.update(self._task, completed=step.step, facts=f"epoch {step.epoch}  loss {self._loss:.4f}")
        if step.evaluation is not None:
            shown = "  ".join(f"{name} {step.evaluation.metrics[name]:.4f}" for name in _shown(step.evaluation.metrics))
            star = " [green]best so far[/]" if step.evaluation.best else ""
            line = f"epoch {step.epoch:>3}  step {step.step:>6,}  train loss {self._loss:.4f}  dev {shown}{star}"
            self._console.print(line, highlight=False)
        if step.trial.status == "diverged":
            self._console.print(
                f"[bold red]the loss is no longer finite at step {step.step:,}[/]: the best weights stay"
            )


def _shown(metrics: Any) -> list[str]:
    return [name for name in SHOWN if isinstance(metrics.get(name), int | float)][:3]


def metrics_table(title: str, columns: dict[str, Any]) -> Table:
    """Numbers by name, a column per split."""
    table = Table(title=title or None, box=None, title_justify="left", header_style="bold")
    table.add_column("metric")
    for name in columns:
        table.add_column(name, justify="right")
    for metric in dict.fromkeys(name for values in columns.values() for name in values):
        cells = [values.get(metric) for values in columns.values()]
        if all(isinstance(cell, int | float) for cell in cells):
            table.add_row(metric, *(f"{cell:,}" if isinstance(cell, int) else f"{cell:.4f}" for cell in cells))
    return table
