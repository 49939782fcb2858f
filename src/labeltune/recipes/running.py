"""A recipe as a training: its rows found and counted, and its figure beside the published one where that is fair."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labeltune.card import write_card
from labeltune.errors import RunError
from labeltune.facts import Listener, Ready, Said, quiet
from labeltune.fitting import train
from labeltune.recipes.book import Recipe
from labeltune.run import METRICS, Run, is_number
from labeltune.storage import write_json

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
    counted: list[Ready] = []

    def hear(fact: object) -> None:
        listen(fact)
        if isinstance(fact, Ready):
            counted.append(fact)
            if said := _unknown(recipe, fact):
                listen(Said(f"warning: {said}"))

    run = train(config=config, out=out, resume=resume, listen=hear)
    why = _why_not(recipe, over, counted[-1] if counted else None)
    reported = run.metrics.get("dev" if recipe.reported_is_dev else "test", {})
    value = reported.get(recipe.metric)
    score = 100 * value if is_number(value) else None
    outcome = Outcome(run, score, why is None, why, _figures(reported))
    _note(outcome, recipe)
    return outcome


def _figures(reported: Mapping[str, Any]) -> dict[str, float]:
    found = {
        name: next((reported[key] for key in keys if is_number(reported.get(key))), None)
        for name, keys in FIGURES.items()
    }
    return {name: value for name, value in found.items() if value is not None}


def _note(outcome: Outcome, recipe: Recipe) -> None:
    """Say in the run itself which figure it stands beside, and whether it may."""
    facts = {
        "name": recipe.name,
        "metric": recipe.metric,
        "published": recipe.expected,
        "paper": recipe.paper,
        "score": outcome.score,
        "comparable": outcome.comparable,
        "why": outcome.why,
    }
    facts["said"] = outcome.sentence(recipe)
    write_json(outcome.run.folder / METRICS, {**outcome.run.metrics, "recipe": facts})
    write_card(outcome.run)


def _unknown(recipe: Recipe, ready: Ready) -> str | None:
    """Rows or labels that no known variant of the data set has; a recipe runs on them all the same."""
    if not recipe.data.rows:
        return None
    told = ", ".join(f"{count:,} {split}" for split, count in ready.rows.items())
    known = "; ".join(f"{name}: {counts[0]:,}/{counts[1]:,}/{counts[2]:,}" for name, counts in recipe.data.rows.items())
    if recipe.data.variant(ready.rows) is None:
        return (
            f"{told} rows are no known variant of {recipe.data.name} ({known}): no comparison with the published figure"
        )
    return None


def _why_not(recipe: Recipe, over: Mapping[str, Any], ready: Ready | None) -> str | None:
    if changed := sorted(name for name in over if name not in ("train.device", "train.threads", "train.seed")):
        return f"{', '.join(changed)} differ from the recipe"
    if ready is None:
        return "the rows were not counted"
    variant = recipe.data.variant(ready.rows)
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
