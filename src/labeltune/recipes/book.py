"""Every recipe, put together from a few tables: a method on a model on a data set, as published or clean.

`published` repeats the paper's protocol to the letter, its defects as named switches that every report carries; `clean`
keeps its hyper-parameters and chooses on dev, scores the full gold of a sealed test split, and takes five seeds.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w

from labeltune.config import Config, gather, make
from labeltune.errors import SettingsError, nearest
from labeltune.keys import Key
from labeltune.recipes.sources import Settings, Source, from_folder, from_hub, sources
from labeltune.training.optimiser import warmup_steps
from labeltune.training.order import Order

PUBLISHED, CLEAN = "published", "clean"
PROTOCOLS = (PUBLISHED, CLEAN)
SEEDS = {PUBLISHED: 1, CLEAN: 5}
HELD_OUT = 0.1
"""The share of the training rows that is dev where a data set has none to give."""


@dataclass(frozen=True)
class Recipe:
    """One figure of a paper, or the clean one beside it.

    name: `ls-unllama-7b/conll2003@published`. source: the group that `reproduce` takes.
    settings: dotted names, all but where the rows are. expected: the published figure of `metric`, in points, if known.
    """

    name: str
    source: str
    paper: str
    data: Source
    protocol: str
    settings: Settings
    metric: str
    expected: float | None
    cost: str
    notes: tuple[str, ...]

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of its trainings."""
        first = int(self.settings.get("train.seed", 42))
        return tuple(range(first, first + SEEDS[self.protocol]))

    @property
    def command(self) -> str:
        """How to run it."""
        where = " DATA" if self.data.hub is None else ""
        return f"labeltune train --recipe {self.name}{where} --out RUN"

    def rows(self, folder: str | Path | None) -> Settings:
        """Where its rows are (a folder, or else the hub), with dev and test as the protocol has them."""
        found = from_hub(self.data) if folder is None else from_folder(self.data, Path(folder))
        found |= {f"data.{split}": share for split, share in self.data.parted.items()}
        evaluated = found.pop(f"data.{self.data.evaluated}", None)
        if evaluated is None and folder is not None and not self.data.parted:
            evaluated = found.pop("data.test", None)
        if self.protocol == PUBLISHED and self.reported_is_dev:
            found.pop("data.test", None)
            return found | {"data.dev": evaluated if evaluated is not None else HELD_OUT}
        other = found.get("data.dev", HELD_OUT)
        return found | {"data.dev": other} | ({"data.test": evaluated} if evaluated is not None else {})

    @property
    def reported_is_dev(self) -> bool:
        """Whether the figure is of the split that chose the weights."""
        return self.settings.get("eval.reported") == "dev"

    def config(self, folder: str | Path | None = None, **more: Any) -> Config:
        """The settings of a training; `more`: dotted names over them (with `__` for the dot)."""
        over = {name.replace("__", "."): value for name, value in more.items()}
        values = {**self.settings, **self.rows(folder), **over}
        return gather(None, {"task": self.data.task, "recipe": self.name}, values)

    def steps(self, rows: int) -> tuple[int, int]:
        """Optimiser steps, and how many of them warm up, for so many training rows; as the loop counts them."""
        train = {name.removeprefix("train."): v for name, v in self.settings.items() if name.startswith("train.")}
        config = make({"train": train}).train
        total = Order(np.ones(rows, np.int64), config, Key.of(config.seed)).total
        return total, warmup_steps(config.warmup, total)

    def to_toml(self) -> str:
        """The whole recipe as a file, with a head that says the command, the score to expect and the cost."""
        score = "not known" if self.expected is None else f"{self.metric} {self.expected:g} ({self.paper})"
        head = [self.name, f"command: {self.command}", f"expected: {score}", f"cost: {self.cost}", *self.notes]
        tree: dict[str, Any] = {"task": self.data.task, "recipe": self.name}
        for name, value in {**self.settings, **self._named_rows()}.items():
            section, key = name.split(".")
            tree.setdefault(section, {})[key] = value
        return "".join(f"# {line}\n" for line in head) + "\n" + tomli_w.dumps(tree)

    def _named_rows(self) -> Settings:
        return self.rows(None) if self.data.hub is not None else {}


@cache
def recipes() -> Mapping[str, Recipe]:
    """Every recipe by name, in the order of the tables."""
    tables = tomllib.loads(files(__package__).joinpath("families.toml").read_text("utf-8"))
    found = (recipe for source, table in tables.items() for recipe in _of(source, table))
    return {recipe.name: recipe for recipe in found}


def find(name: str) -> Recipe:
    """A recipe by name; without `@…` the clean one.

    Raises:
        SettingsError: there is none; the sentence names the nearest.
    """
    full = name if "@" in name else f"{name}@{CLEAN}"
    if full not in recipes():
        near, all_ = nearest(full, list(recipes())), "`labeltune recipes` lists them"
        hint = f"{near} ({all_})" if len(near) < 200 else all_
        raise SettingsError(f"no recipe {name!r}", at="--recipe", hint=hint)
    return recipes()[full]


def of_source(source: str) -> list[Recipe]:
    """The recipes of one paper.

    Raises:
        SettingsError: there is no such paper.
    """
    found = [recipe for recipe in recipes().values() if recipe.source == source]
    if not found:
        known = list(dict.fromkeys(recipe.source for recipe in recipes().values()))
        raise SettingsError(f"no paper {source!r}", at="reproduce", hint=nearest(source, known))
    return found


def _of(source: str, table: Mapping[str, Any]) -> Iterator[Recipe]:
    for method, own in table["methods"].items():
        models: Mapping[str, str | None] = table.get("models", {"": None})
        data = own.get("data", table["data"])
        for (model, backbone), name in product(models.items(), data):
            stem = "-".join(part for part in (method, model) if part) + f"/{name}"
            for variant, settings in _variants(table, model).items():
                named = f"{stem}-{variant}" if variant else stem
                for protocol in PROTOCOLS:
                    yield _recipe(source, table, own, named, sources()[name], backbone, settings, protocol)


def _variants(table: Mapping[str, Any], model: str) -> Mapping[str, Settings]:
    if "groups" in table:
        return dict(_mask_groups(table["groups"]))
    found: Mapping[str, Settings] = table.get("variants", {"": {}})
    return {**found, **table.get("variants_of", {}).get(model, {})}


def _mask_groups(groups: int) -> Iterator[tuple[str, Settings]]:
    """`0110`, with the mask removed in the second and third group of blocks, and so on, all of them."""
    for bits in product("01", repeat=groups):
        chosen = ",".join(
            f"{100 * g // groups}%:{100 * (g + 1) // groups}%" for g, bit in enumerate(bits) if bit == "1"
        )
        unmask = "none" if not chosen else "all" if "0" not in bits else chosen
        yield "".join(bits), {"model.unmask": unmask}


def _recipe(
    source: str,
    table: Mapping[str, Any],
    method: Mapping[str, Any],
    name: str,
    data: Source,
    backbone: str | None,
    variant: Settings,
    protocol: str,
) -> Recipe:
    settings: Settings = {**table["settings"], **method["settings"], **method.get(data.task, {}), **variant}
    settings |= table.get("own", {}).get(data.name, {})
    if backbone is not None:
        settings["model.name"] = backbone
    if protocol == PUBLISHED:
        for laid in (table["published"], table.get(f"published_{data.task}", {}), method.get("published", {})):
            settings |= laid
        settings |= table.get("published_own", {}).get(data.name, {})
    else:
        settings["data.split_seed"] = 42
    score = table.get("scores", {}).get(name)
    notes = [*table.get("notes", ())]
    if protocol == CLEAN and score is not None:
        notes.append("the expected score is the published one, under the published protocol")
    return Recipe(
        name=f"{name}@{protocol}",
        source=source,
        paper=table["paper"],
        data=data,
        protocol=protocol,
        settings=settings,
        metric=data.metric,
        expected=score,
        cost=table["cost"],
        notes=tuple(notes),
    )
