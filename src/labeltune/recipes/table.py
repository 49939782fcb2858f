"""What is reproduced of a paper, as tables: in the paper's own layout, and line by line with cost and reasons."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from io import StringIO
from pathlib import Path

from labeltune.storage import write_atomic, write_json


@dataclass(frozen=True)
class Line:
    """One recipe of the table; scores in points, seconds of all trainings together.

    difference: reproduced less published, where both are known and comparable. accuracy, precision, recall: means, in
    points, of the same split. peak_memory_gib: the largest. note: why nothing is compared, and all reasons of failures.
    """

    recipe: str
    protocol: str
    metric: str
    published: float | None
    mean: float | None
    sd: float | None
    seeds: int
    difference: float | None
    accuracy: float | None
    precision: float | None
    recall: float | None
    seconds: float
    peak_memory_gib: float | None
    device: str
    note: str


def write_tables(source: str, lines: Sequence[Line], folder: Path) -> None:
    """Write `table.md`, `table.csv` and `table.json`."""
    columns = list(Line.__dataclass_fields__)
    text = StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(line) for line in lines)
    write_atomic(folder / "table.csv", text.getvalue())
    write_json(folder / "table.json", [asdict(line) for line in lines])
    write_atomic(folder / "table.md", to_markdown(source, lines))


def to_markdown(source: str, lines: Sequence[Line]) -> str:
    """For people, scores in points: the paper's table for each protocol, then every recipe."""
    parts = [f"# {source}\n", "In brackets what was published.\n"]
    for protocol in dict.fromkeys(line.protocol for line in lines):
        parts += [f"## {protocol}\n", as_in_the_paper(source, [line for line in lines if line.protocol == protocol])]
    return "\n".join([*parts, "## Every recipe\n", _every_recipe(lines)])


# The paper's layout


Cells = Iterator[tuple[str, str, str]]
"""Row, column, content."""


def as_in_the_paper(source: str, lines: Sequence[Line]) -> str:
    """One protocol's results, in the rows and columns that the paper has."""
    cells = [cell for line in lines for cell in LAYOUTS[source](line)]
    columns = list(dict.fromkeys(column for _, column, _ in cells))
    rows: dict[str, dict[str, str]] = {}
    for row, column, content in cells:
        rows.setdefault(row, {})[column] = content
    head = ["| | " + " | ".join(columns) + " |", "|" + "---|" * (len(columns) + 1)]
    shown = (
        f"| {row} | " + " | ".join(found.get(column, "") for column in columns) + " |" for row, found in rows.items()
    )
    return "\n".join([*head, *shown]) + "\n"


def _model_and_data(line: Line) -> Cells:
    """LS-LLaMA: a row for each model, a column for each data set."""
    model, _, data = line.recipe.partition("/")
    yield model, f"{data}, {line.metric}", _with_published(line)


def _model_and_figures(line: Line) -> Cells:
    """llm-lora-classification: a row for each model; accuracy, macro precision, recall and F1."""
    model = line.recipe.partition("/")[0]
    for name in ("accuracy", "precision", "recall"):
        yield model, name, _points(getattr(line, name))
    yield model, line.metric, _with_published(line)


def _pattern_and_model(line: Line) -> Cells:
    """Mask removal: a row for each of the sixteen patterns, a column for each model and data set."""
    model, data, pattern = _three(line)
    yield pattern, f"{model}, {data}", _with_published(line)


def _model_and_variant(line: Line) -> Cells:
    """Repetition: a row for each model, a column for each way to see the whole sentence."""
    model, data, variant = _three(line)
    yield model, f"{data}, {variant}", _with_published(line)


def _three(line: Line) -> tuple[str, str, str]:
    """`model/data-variant`."""
    model, _, rest = line.recipe.partition("/")
    data, _, variant = rest.rpartition("-")
    return model, data, variant


LAYOUTS: Mapping[str, Callable[[Line], Cells]] = {
    "ls-llama": _model_and_data,
    "encoders": _model_and_data,
    "llm-lora-classification": _model_and_figures,
    "mask-groups": _pattern_and_model,
    "repetition": _model_and_variant,
}


def _with_published(line: Line) -> str:
    known = "" if line.published is None else f"({line.published:.2f})"
    return " ".join(part for part in (_mean_sd(line), known) if part)


# Line by line


def _every_recipe(lines: Sequence[Line]) -> str:
    head = "| recipe | protocol | metric | published | reproduced | seeds | difference | seconds | GiB | note |"
    rows = [
        f"| {line.recipe} | {line.protocol} | {line.metric} | {_points(line.published)} | {_mean_sd(line)} "
        f"| {line.seeds} | {_points(line.difference)} | {line.seconds:,.0f} "
        f"| {_points(line.peak_memory_gib)} | {line.note.replace('|', '/')} |"
        for line in lines
    ]
    return "\n".join([head, "|" + "---|" * 10, *rows]) + "\n"


def _points(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _mean_sd(line: Line) -> str:
    spread = "" if line.sd is None else f" ± {line.sd:.2f}"
    return "" if line.mean is None else f"{line.mean:.2f}{spread}"
