"""A recipe as a training: its rows found and counted, and its figure beside the published one where that is fair."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labeltune.card import write_card
from labeltune.errors import RunError
from labeltune.facts import Listener, Ready, Said, quiet
from labeltune.fitting import train
from labeltune.processes import speaks
from labeltune.recipes.book import Recipe
from labeltune.run import METRICS, SPLITS, Run, is_number
from labeltune.storage import read_json, write_json

FIGURES: Mapping[str, tuple[str, ...]] = {
    "accuracy": ("accuracy",),
    "precision": ("macro_precision", "span_precision"),
    "recall": ("macro_recall", "span_recall"),
}
"""What stands beside a recipe's score, by the names that tasks give it."""


@dataclass(frozen=True)
class Outcome:
    """What a recipe gave. score: in points, None where the metric is not there.

    comparable: whether the published figure may stand beside it; why: if not, in a sentence.
    figures: accuracy, precision and recall of the same split, where the task has them.
    """

    run: Run
    score: float | None
    comparable: bool
    why: str | None
    figures: Mapping[str, float]

    def sentence(self, recipe: Recipe) -> str:
        """The figure, and the published one."""
        here = "no figure" if self.score is None else f"{recipe.metric} {self.score:.2f}"
        if recipe.expected is None:
            return f"{here}; the published figure is not known"
        beside = f"{here}; published {recipe.expected:g} ({recipe.paper})"
        return beside if self.comparable else f"{beside}, not comparable: {self.why}"


def run_recipe(
    recipe: Recipe,
    *,
    out: str | Path,
    data: str | Path | None = None,
    model: str | None = None,
    settings: Mapping[str, Any] | None = None,
    resume: bool = False,
    listen: Listener = quiet,
) -> Outcome:
    """Train a recipe into `out`.

    data: the folder that has its data set [the hub]. model, settings: over the recipe's; then nothing is compared.
    Raises as `train` does, and DataError where the data set is not there.
    """
    over = {**(settings or {}), **({"model.name": model} if model else {})}
    config = recipe.config(data, **{name.replace(".", "__"): value for name, value in over.items()})

    def hear(fact: object) -> None:
        listen(fact)
        if isinstance(fact, Ready) and (said := _unknown(recipe, fact.rows)):
            listen(Said(f"warning: {said}"))

    run = train(config=config, out=out, resume=resume, listen=hear)
    changed = sorted({*_changed(over), *run.metrics.get("recipe", {}).get("changed", ())})
    why = _why_not(recipe, changed, _rows(run))
    reported = run.metrics.get("dev" if recipe.reported_is_dev else "test", {})
    value = reported.get(recipe.metric)
    score = 100 * value if is_number(value) else None
    outcome = Outcome(run, score, why is None, why, _figures(reported))
    if speaks():
        _note(outcome, recipe, changed)
    return outcome


def _changed(over: Mapping[str, Any]) -> list[str]:
    """The settings laid over a recipe that make another training of it."""
    return [name for name in over if name not in ("train.device", "train.threads", "train.seed")]


def _rows(run: Run) -> dict[str, int]:
    """How many rows each split of the training had."""
    splits: Any = read_json(run.folder / SPLITS)
    return {name: int(facts["rows"]) for name, facts in splits.items()}


def _figures(reported: Mapping[str, Any]) -> dict[str, float]:
    found = {
        name: next((reported[key] for key in keys if is_number(reported.get(key))), None)
        for name, keys in FIGURES.items()
    }
    return {name: value for name, value in found.items() if value is not None}


def _note(outcome: Outcome, recipe: Recipe, changed: Sequence[str]) -> None:
    """Say in the run itself which figure it stands beside, and whether it may."""
    facts = {
        "name": recipe.name,
        "metric": recipe.metric,
        "published": recipe.expected,
        "paper": recipe.paper,
        "score": outcome.score,
        "changed": list(changed),
        "comparable": outcome.comparable,
        "why": outcome.why,
    }
    facts["said"] = outcome.sentence(recipe)
    write_json(outcome.run.folder / METRICS, {**outcome.run.metrics, "recipe": facts})
    write_card(outcome.run)


def _unknown(recipe: Recipe, rows: Mapping[str, int]) -> str | None:
    """Rows or labels that no known variant of the data set has; a recipe runs on them all the same."""
    if not recipe.data.rows:
        return None
    told = ", ".join(f"{count:,} {split}" for split, count in rows.items())
    known = "; ".join(f"{name}: {counts[0]:,}/{counts[1]:,}/{counts[2]:,}" for name, counts in recipe.data.rows.items())
    if recipe.data.variant(rows) is None:
        return (
            f"{told} rows are no known variant of {recipe.data.name} ({known}): no comparison with the published figure"
        )
    return None


def _why_not(recipe: Recipe, changed: Sequence[str], rows: Mapping[str, int]) -> str | None:
    if changed:
        return f"{', '.join(changed)} differ from the recipe"
    variant = recipe.data.variant(rows)
    if variant is None:
        return "the rows are no known variant of the data set"
    if recipe.data.published_rows not in (None, variant):
        return f"the rows are the variant {variant!r}, the published ones {recipe.data.published_rows!r}"
    return None


def slug(recipe: Recipe) -> str:
    """A folder's name for it."""
    return recipe.name.replace("/", "_")


def refuse_both(recipe: str | None, data: str | None) -> None:
    """A recipe by name and a recipe file exclude each other.

    Raises:
        RunError: both are named.
    """
    if recipe and data and data.endswith(".toml"):
        raise RunError("a recipe by name and one in a file", at="--recipe", hint="name one of them")
