"""What an evaluation looks like on a terminal: the metrics, each label's figures, the mistakes, what must be known."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from labeltune.inference import caveats
from labeltune.metrics import Confused, LabelFigures
from labeltune.predict import Report
from labeltune.run import number
from labeltune.screen import metrics_table
from labeltune.wording import counted

MOST_LABELS, MOST_CONFUSED = 30, 5
OF_DEV = "the dev rows, which chose the weights and fitted the scores"
TABLES = {"parts": "", "at_min_score": "where it abstains below"}
"""Metrics that are tables themselves, and their titles."""


def show_report(report: Report, source: str | None, errors: Path | None, console: Console) -> None:
    """Print it. source: what was scored, None for the dev rows; errors: where the wrong rows are."""

    def say(sentence: str) -> None:
        console.print(escape(sentence), highlight=False, soft_wrap=True)

    say(f"{source or OF_DEV}: {counted(report.rows, 'row', 'rows')}")
    console.print(metrics_table("", {"": report.metrics}))
    for name, title in TABLES.items():
        if name in report.metrics:
            console.print(metrics_table(title, report.metrics[name]))
    if report.labels:
        console.print(_labels_table(report.labels))
    for sentence in (*_confusions(report.confused), *caveats(report.metrics)):
        say(sentence)
    if errors:
        say(f"{counted(report.wrong, 'row with errors is', 'rows with errors are')} in {errors}")


def _labels_table(labels: Sequence[LabelFigures]) -> Table:
    """The figures of each label, the most frequent ones where there are many."""
    shown = sorted(labels, key=lambda one: -one.support)[:MOST_LABELS] if len(labels) > MOST_LABELS else labels
    title = "" if len(shown) == len(labels) else f"the {MOST_LABELS} most frequent of {len(labels):,} labels"
    table = Table(title=title or None, box=None, title_justify="left", header_style="bold")
    table.add_column("label")
    for name in ("precision", "recall", "f1", "support", "predicted"):
        table.add_column(name, justify="right")
    for one in shown:
        table.add_row(escape(one.label), *map(number, one[1:]))
    return table


def _confusions(found: Sequence[Confused]) -> list[str]:
    """The most frequent mistakes, in a sentence."""
    told = ", ".join(f"{one.gold!r} as {one.answer!r} ({one.rows:,})" for one in found[:MOST_CONFUSED])
    return [f"taken most often: {told}"] if found else []
