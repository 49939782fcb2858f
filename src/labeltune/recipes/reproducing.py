"""Run what is missing of a paper's recipes, and write its table: published, reproduced, difference, protocol, cost."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from io import StringIO
from pathlib import Path
from typing import Any

from labeltune.errors import LabeltuneError, SettingsError
from labeltune.facts import Listener, Said, quiet
from labeltune.interrupt import Interrupted
from labeltune.recipes.book import Recipe, of_source
from labeltune.recipes.running import run_recipe, slug
from labeltune.run import state_of
from labeltune.storage import append_jsonl, read_jsonl, write_atomic, write_json

CELLS = "cells.jsonl"
Cells = Mapping[tuple[str, int], Mapping[str, Any]]


@dataclass(frozen=True)
class Line:
    """One row of the table; scores in points, seconds of all trainings together.

    difference: reproduced less published, where both are known and comparable. note: why not, or what failed.
    """

    recipe: str
    protocol: str
    metric: str
    published: float | None
    mean: float | None
    sd: float | None
    seeds: int
    difference: float | None
    seconds: float
    note: str


def reproduce(
    source: str,
    *,
    out: str | Path,
    only: str | None = None,
    model: str | None = None,
    data: str | Path | None = None,
    seeds: int | None = None,
    settings: Mapping[str, Any] | None = None,
    listen: Listener = quiet,
) -> list[Line]:
    """Train every recipe of a paper that is not there yet, and write `table.md`, `table.csv` and `table.json`.

    only: a pattern of names (`*conll2003*`). model: another backbone for all. data: a folder with the data sets.
    seeds: trainings per recipe [1 as published, 5 clean]. What fails is listed with its reason; the rest goes on.
    Raises SettingsError for an unknown paper or a pattern that no recipe has, and Interrupted after Ctrl-C.
    """
    chosen = [recipe for recipe in of_source(source) if only is None or fnmatch(recipe.name, only)]
    if not chosen:
        hint = f"for example --only '{of_source(source)[0].name}'"
        raise SettingsError(f"no recipe of {source} has a name like {only!r}", at="--only", hint=hint)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    for recipe in chosen:
        for seed in recipe.seeds if seeds is None else range(recipe.seeds[0], recipe.seeds[0] + seeds):
            if (recipe.name, seed) not in _cells(folder):
                cell = _cell(recipe, seed, folder, model, data, settings or {}, listen)
                append_jsonl(folder / CELLS, cell)
                listen(Said(_told(cell)))
    lines = [_line(recipe, _cells(folder)) for recipe in chosen]
    _write(lines, folder)
    return lines


def _cells(folder: Path) -> Cells:
    """What is there, by recipe and seed; what failed is tried again."""
    path = folder / CELLS
    lines = list(read_jsonl(path)) if path.exists() else []
    return {(str(line["recipe"]), int(str(line["seed"]))): line for line in lines if line.get("score") is not None} | {
        (str(line["recipe"]), -1): line for line in lines if line.get("score") is None
    }


def _cell(
    recipe: Recipe,
    seed: int,
    folder: Path,
    model: str | None,
    data: str | Path | None,
    settings: Mapping[str, Any],
    listen: Listener,
) -> dict[str, Any]:
    """Train one recipe with one seed."""
    cell: dict[str, Any] = {"recipe": recipe.name, "seed": seed, "score": None, "why": None, "seconds": 0.0}
    out = folder / "runs" / slug(recipe) / str(seed)
    begun = (out / "config.toml").exists() and state_of(out) != "finished"
    try:
        over = {**settings, "train.seed": seed}
        done = run_recipe(recipe, out=out, data=data, model=model, settings=over, resume=begun, listen=listen)
    except Interrupted:
        raise
    except LabeltuneError as error:
        return cell | {"why": str(error)}
    return cell | {"score": done.score, "why": done.why, "seconds": done.run.metrics["train"]["seconds"]}


def _told(cell: Mapping[str, Any]) -> str:
    score = "failed" if cell["score"] is None else f"{cell['score']:.2f}"
    return f"{cell['recipe']}, seed {cell['seed']}: {score}" + (f" ({cell['why']})" if cell["why"] else "")


def _line(recipe: Recipe, cells: Cells) -> Line:
    own = [cell for (name, _), cell in cells.items() if name == recipe.name]
    scores = [float(cell["score"]) for cell in own if cell["score"] is not None]
    reasons = list(dict.fromkeys(str(cell["why"]) for cell in own if cell["why"]))
    mean = statistics.mean(scores) if scores else None
    fair = mean is not None and recipe.expected is not None and not reasons
    return Line(
        recipe=recipe.name.partition("@")[0],
        protocol=recipe.protocol,
        metric=recipe.metric,
        published=recipe.expected,
        mean=mean,
        sd=statistics.stdev(scores) if len(scores) > 1 else 0.0 if scores else None,
        seeds=len(scores),
        difference=mean - recipe.expected if fair and mean is not None and recipe.expected is not None else None,
        seconds=sum(float(cell["seconds"]) for cell in own),
        note="; ".join(reasons),
    )


def _write(lines: Sequence[Line], folder: Path) -> None:
    columns = list(Line.__dataclass_fields__)
    text = StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(line) for line in lines)
    write_atomic(folder / "table.csv", text.getvalue())
    write_json(folder / "table.json", [asdict(line) for line in lines])
    write_atomic(folder / "table.md", to_markdown(lines))


def to_markdown(lines: Sequence[Line]) -> str:
    """The table for people, scores in points."""
    head = "| recipe | protocol | metric | published | reproduced | seeds | difference | seconds | note |"
    rows = [
        f"| {line.recipe} | {line.protocol} | {line.metric} | {_points(line.published)} | {_mean_sd(line)} "
        f"| {line.seeds} | {_points(line.difference)} | {line.seconds:,.0f} | {line.note.replace('|', '/')} |"
        for line in lines
    ]
    return "\n".join([head, "|" + "---|" * 9, *rows]) + "\n"


def _points(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _mean_sd(line: Line) -> str:
    return "" if line.mean is None or line.sd is None else f"{line.mean:.2f} ± {line.sd:.2f}"
