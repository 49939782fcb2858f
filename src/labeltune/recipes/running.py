"""A recipe as a training: its rows found and counted, and its figure beside the published one where that is fair."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labeltune.errors import RunError
from labeltune.facts import Listener, Ready, Said, quiet
from labeltune.fitting import train
from labeltune.recipes.book import Recipe
from labeltune.run import Run, is_number


@dataclass(frozen=True)
class Outcome:
    """What a recipe gave. score: in points, None where the metric is not there.

    comparable: whether the published figure may stand beside it; why: if not, in a sentence.
    """

    run: Run
    score: float | None
    comparable: bool
    why: str | None

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
    return Outcome(run, _score(run, recipe), why is None, why)


def _score(run: Run, recipe: Recipe) -> float | None:
    split = "dev" if recipe.reported_is_dev else "test"
    value = run.metrics.get(split, {}).get(recipe.metric)
    return 100 * value if is_number(value) else None


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
