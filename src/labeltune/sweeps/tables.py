"""Tables of a sweep: a row per trial, the best point of each backbone, and one table per axis that was asked for."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from labeltune.config import Config, get
from labeltune.errors import SettingsError, nearest
from labeltune.settings import known_names
from labeltune.storage import write_atomic
from labeltune.sweeps.selection import Scored, ranked
from labeltune.sweeps.settings import SweepConfig, TableConfig
from labeltune.sweeps.trials import Result, Spec

MODEL, SEED = "model.name", "train.seed"
TIMES = ("rows_per_second", "seconds", "peak_memory_gib")
"""The columns that differ from machine to machine; they stand last."""

POINT = "point"
"""Which point a row is about; no column of its own."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Table:
    """Rows under names; what is absent is None."""

    name: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]

    def to_csv(self) -> str:
        """Comma-separated, numbers in full."""
        text = StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows([_plain(row.get(name)) for name in self.columns] for row in self.rows)
        return text.getvalue()

    def to_markdown(self) -> str:
        """For people: numbers to four places."""
        lines = ["| " + " | ".join(self.columns) + " |", "|" + "---|" * len(self.columns)]
        lines += ["| " + " | ".join(shown(row.get(name)) for name in self.columns) + " |" for row in self.rows]
        return "\n".join(lines) + "\n"


def _plain(value: Any) -> Any:
    return "" if value is None else repr(value) if isinstance(value, list | tuple | dict) else value


def shown(value: Any) -> str:
    """A cell for people: small numbers as powers, others to four places, line ends as they are typed."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:g}" if value and abs(value) < 0.01 else f"{value:.4f}".rstrip("0").rstrip(".") or "0"
    return str(value).replace("\\", "\\\\").replace("|", "\\|").replace("\n", "\\n")


@dataclass(frozen=True)
class Tables:
    """What the tables are made of. metrics: the names of the task's figures."""

    points: Sequence[Scored]
    metrics: tuple[str, ...]
    metric: str
    higher: bool
    sweep: SweepConfig

    def all(self) -> list[Table]:
        """Every table, `all` first."""
        tables = [self.trials(), self.best()]
        return tables + [self.of(table) for table in self.sweep.table]

    @property
    def axes(self) -> tuple[str, ...]:
        """Settings in which points differ."""
        return tuple(dict.fromkeys(name for point in self.points for name in point.settings))

    # Rows

    def trials(self) -> Table:
        """`all`: a row per trial."""
        pairs = [pair for point in self.points for pair in zip(point.specs, point.results, strict=True)]
        rows = [self._trial(spec, result) for spec, result in pairs]
        extra = [name for name in ("fold", "reason") if any(row.get(name) is not None for row in rows)]
        own = [name for name in self.axes if name != SEED]
        figures = [f"{split}_{name}" for split in ("dev", "test") for name in self.metrics]
        there = [name for name in figures if any(row.get(name) is not None for row in rows)]
        columns = ("trial", "status", *own, "seed", *(n for n in extra if n == "fold"), "best_epoch", "step", *there)
        return Table("all", (*columns, *(n for n in extra if n == "reason"), *TIMES), tuple(rows))

    def _trial(self, spec: Spec, result: Result | None) -> Row:
        row: Row = {
            POINT: spec.point,
            "trial": spec.name,
            "status": result.status if result else "not run",
            "seed": spec.seed,
        }
        row |= {name: get(spec.config, name) for name in self.axes} | {"fold": spec.fold}
        if result is None:
            return row
        row |= {"best_epoch": result.epoch, "step": result.step, "reason": result.reason}
        for split in ("dev", "test"):
            row |= {f"{split}_{name}": getattr(result, split).get(name) for name in self.metrics}
        return row | {name: result.train.get(name) for name in TIMES}

    def best(self) -> Table:
        """`best`: for each backbone the point with the best dev score."""
        rows = [self._point(point, {MODEL: point.model}) for point in self._best_of(MODEL, {})]
        return self._table("best", rows, (MODEL, *(name for name in self.axes if name != MODEL)))

    def of(self, table: TableConfig) -> Table:
        """For each value of `table.by`, the best point within `table.where`.

        Raises:
            SettingsError: no point differs in `by`, or `where` names what no point has.
        """
        check_table(table, self.axes)
        chosen = self._best_of(table.by, table.where)
        rows = [self._point(point, {table.by: _value(point, table.by)}) for point in chosen]
        return self._table(table.name, self._sorted(rows, table), (table.by, *(n for n in self.axes if n != table.by)))

    def selected(self) -> list[Scored]:
        """The points that stand in `best` and the tables: those that are scored on test."""
        chosen = self._best_of(MODEL, {})
        for table in self.sweep.table:
            check_table(table, self.axes)
            chosen += self._best_of(table.by, table.where)
        return list({point.number: point for point in chosen}.values())

    # Choosing

    def _best_of(self, by: str, where: Mapping[str, Any]) -> list[Scored]:
        """For each value of a setting the best point that `where` allows, in the order of the points."""
        best: dict[str, Scored] = {}
        for point in ranked(self.points, self.higher):
            if _within(point, where):
                best.setdefault(repr(_value(point, by)), point)
        return [best[key] for key in dict.fromkeys(repr(_value(point, by)) for point in self.points) if key in best]

    def _sorted(self, rows: list[Row], table: TableConfig) -> list[Row]:
        if table.sort == "value":
            numbers = all(isinstance(row[table.by], int | float) for row in rows)
            return sorted(rows, key=lambda row: row[table.by] if numbers else str(row[table.by]))
        name = f"{table.sort}_{self.metric}"
        found = [row for row in rows if row.get(name) is not None]
        return sorted(found, key=lambda row: row[name], reverse=self.higher) + [r for r in rows if r.get(name) is None]

    def _point(self, point: Scored, row: Row) -> Row:
        row = {POINT: point.number, **{name: _value(point, name) for name in self.axes}, **row}
        row |= {f"dev_{self.metric}": point.dev, f"dev_{self.metric}_sd": point.dev_sd}
        row |= {
            "seeds": len({s.seed for s in point.specs}),
            "folds": len({s.fold for s in point.specs if s.fold}) or None,
        }
        row["best_epoch"] = _mean([result.epoch for result in point.results if result is not None])
        for name in self.metrics:
            found = point.test(name)
            row |= {f"test_{name}": found[0], f"test_{name}_sd": found[1]} if found is not None else {}
        return row

    def _table(self, name: str, rows: Iterable[Row], first: Sequence[str]) -> Table:
        found = tuple(rows)
        figures = ["best_epoch", f"dev_{self.metric}", f"dev_{self.metric}_sd", "seeds", "folds"]
        figures += [f"test_{metric}{part}" for metric in self.metrics for part in ("", "_sd")]
        there = [column for column in figures if any(row.get(column) is not None for row in found)]
        return Table(name, (*first, *there), found)


def _mean(epochs: Sequence[int]) -> int | float | None:
    """Of the seeds' best epochs; the epoch itself where they agree."""
    return (epochs[0] if len(set(epochs)) == 1 else sum(epochs) / len(epochs)) if epochs else None


def _value(point: Scored, name: str) -> Any:
    return get(point.specs[0].config, name)


def _within(point: Scored, where: Mapping[str, Any]) -> bool:
    allowed = {name: value if isinstance(value, list | tuple) else [value] for name, value in where.items()}
    return all(_value(point, name) in values for name, values in allowed.items())


def check_table(table: TableConfig, axes: Sequence[str]) -> None:
    """Refuse a table over what does not vary.

    Raises:
        SettingsError: `by` is no axis, or `where` names an unknown setting.
    """
    at = f"sweep.table {table.name!r}"
    if table.by not in axes and table.by != MODEL:
        raise SettingsError(f"{table.by!r} is no axis of this sweep", at=at, hint=nearest(table.by, axes))
    for name in table.where:
        if name not in known_names(Config):
            raise SettingsError("unknown setting", at=f"{at}: where.{name}", hint=nearest(name, known_names(Config)))


# Files

HPPRC_COLUMNS = {
    "model_name": MODEL,
    "lr": "train.lr",
    "batch_size": "train.batch_rows",
    "lora_r": "lora.rank",
    "template_type": "data.template",
}
"""llm-lora-classification's names of what it varied."""


def hpprc(tables: Sequence[Table], points: Sequence[Scored], metric: str) -> list[Table]:
    """The same tables in llm-lora-classification's columns.

    Its `loss` is the last batch's of a training; here it is the test log loss. Templates keep their text: its numbers
    stand for them.
    """
    columns = (*HPPRC_COLUMNS, "best-val-epoch", "best-val-f1", "loss", "accuracy", "precision", "recall", "f1")
    configs = {point.number: point.specs[0].config for point in points}
    return [
        Table(table.name, columns, tuple(_hpprc_row(row, configs[row[POINT]], metric) for row in table.rows))
        for table in tables
    ]


def _hpprc_row(row: Row, config: Config, metric: str) -> Row:
    named = {name: get(config, setting) for name, setting in HPPRC_COLUMNS.items()}
    figures = {"loss": "log_loss", "accuracy": "accuracy", "precision": "macro_precision", "recall": "macro_recall"}
    return {
        **named,
        "best-val-epoch": row.get("best_epoch"),
        "best-val-f1": row.get(f"dev_{metric}"),
        **{name: row.get(f"test_{figure}") for name, figure in figures.items()},
        "f1": row.get("test_macro_f1"),
    }


def write_tables(tables: Iterable[Table], folder: Path) -> None:
    """A CSV and a Markdown file for each."""
    for table in tables:
        write_atomic(folder / f"{table.name}.csv", table.to_csv())
        write_atomic(folder / f"{table.name}.md", table.to_markdown())
