"""Run what is missing of a paper's recipes, and write its table: published, reproduced, difference, protocol, cost."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from hashlib import sha256
from pathlib import Path
from typing import Any

from labeltune.errors import LabeltuneError, SettingsError
from labeltune.facts import Listener, Said, quiet
from labeltune.interrupt import Interrupted
from labeltune.recipes.book import Recipe, of_source
from labeltune.recipes.running import FIGURES, Outcome, run_recipe, slug
from labeltune.recipes.table import Line, write_tables
from labeltune.run import CONFIG
from labeltune.storage import append_jsonl, read_jsonl, told

CELLS = "cells.jsonl"
Cell = Mapping[str, Any]


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
    with told(folder):
        folder.mkdir(parents=True, exist_ok=True)
    bench = _Bench(folder, model, data, settings or {}, listen)
    for recipe in chosen:
        for seed in _seeds(recipe, seeds):
            if bench.cell(recipe, seed) is None:
                cell = bench.trained(recipe, seed)
                append_jsonl(folder / CELLS, cell)
                listen(Said(_told(cell)))
    lines = [_line(recipe, [bench.last(recipe, seed) for seed in _seeds(recipe, seeds)]) for recipe in chosen]
    write_tables(source, lines, folder)
    return lines


def _seeds(recipe: Recipe, count: int | None) -> Sequence[int]:
    return recipe.seeds if count is None else range(recipe.seeds[0], recipe.seeds[0] + count)


@dataclass(frozen=True)
class _Bench:
    """Where trainings go, and what is laid over every recipe."""

    folder: Path
    model: str | None
    data: str | Path | None
    settings: Mapping[str, Any]
    listen: Listener

    def key(self, recipe: Recipe, seed: int) -> str:
        """What a result depends on, in eight letters: another backbone, data folder or setting is another result."""
        data = None if self.data is None else str(Path(self.data).resolve())
        facts = [recipe.name, seed, recipe.settings, self.model, data, self.settings]
        return sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:8]

    def last(self, recipe: Recipe, seed: int) -> Cell:
        """The last thing known of a training."""
        path, key = self.folder / CELLS, self.key(recipe, seed)
        lines = list(read_jsonl(path)) if path.exists() else []
        return next(line for line in reversed(lines) if line.get("key") == key)

    def cell(self, recipe: Recipe, seed: int) -> Cell | None:
        """A training that is done; one that failed is tried again."""
        try:
            found = self.last(recipe, seed)
        except StopIteration:
            return None
        return found if found.get("score") is not None else None

    def trained(self, recipe: Recipe, seed: int) -> dict[str, Any]:
        """Train one recipe with one seed; what goes wrong is the cell's, and the table goes on."""
        key = self.key(recipe, seed)
        cell: dict[str, Any] = {"key": key, "recipe": recipe.name, "seed": seed, "score": None, "why": None}
        out = self.folder / "runs" / slug(recipe) / f"{seed}-{key}"
        over = {**self.settings, "train.seed": seed}
        try:
            begun = (out / CONFIG).exists()  # finished, perhaps, by a call that could not note its figure any more
            done = run_recipe(
                recipe, out=out, data=self.data, model=self.model, settings=over, resume=begun, listen=self.listen
            )
        except LabeltuneError as error:
            if isinstance(error, Interrupted):
                raise
            return cell | {"why": str(error)}
        except Exception as error:  # noqa: BLE001  # a table of many trainings outlives any one of them; Ctrl-C is none
            return cell | {"why": f"{type(error).__name__}: {error}".splitlines()[0]}
        return cell | {"score": done.score, "why": done.why, **_facts(done)}


def _facts(done: Outcome) -> dict[str, Any]:
    """Figures and cost of a training, in points, seconds and GiB."""
    train = done.run.metrics["train"]
    cost = {
        "seconds": train["seconds"],
        "peak_memory_gib": train.get("peak_memory_gib"),
        "device": done.run.config.train.device,
    }
    return cost | {name: 100 * value for name, value in done.figures.items()}


def _told(cell: Mapping[str, Any]) -> str:
    score = "failed" if cell["score"] is None else f"{cell['score']:.2f}"
    return f"{cell['recipe']}, seed {cell['seed']}: {score}" + (f" ({cell['why']})" if cell["why"] else "")


def _line(recipe: Recipe, cells: Sequence[Cell]) -> Line:
    done = [cell for cell in cells if cell["score"] is not None]
    scores = [float(cell["score"]) for cell in done]
    reasons = list(dict.fromkeys(str(cell["why"]) for cell in cells if cell["why"]))
    mean = statistics.mean(scores) if scores else None
    fair = mean is not None and recipe.expected is not None and not reasons
    return Line(
        recipe=recipe.name.partition("@")[0],
        protocol=recipe.protocol,
        metric=recipe.metric,
        published=recipe.expected,
        mean=mean,
        sd=statistics.stdev(scores) if len(scores) > 1 else None,
        seeds=len(scores),
        difference=mean - recipe.expected if fair and mean is not None and recipe.expected is not None else None,
        **{name: _mean(done, name) for name in FIGURES},
        seconds=sum(float(cell["seconds"]) for cell in done),
        peak_memory_gib=max((float(c["peak_memory_gib"]) for c in done if c.get("peak_memory_gib")), default=None),
        device=", ".join(dict.fromkeys(str(cell["device"]) for cell in done if cell.get("device"))),
        note="; ".join(reasons),
    )


def _mean(cells: Sequence[Cell], name: str) -> float | None:
    values = [float(cell[name]) for cell in cells if cell.get(name) is not None]
    return statistics.mean(values) if values else None
