"""The points of a sweep: unions of products of values, conditions, ranges, random choice.

A point is what differs from the base settings: dotted name -> value. Equal points are one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, product
from typing import Any

import numpy as np

from labeltune.config import PATHS, Config, beside, with_settings
from labeltune.errors import SettingsError, nearest
from labeltune.keys import Key
from labeltune.settings import known_names
from labeltune.sweeps.settings import SweepConfig

MOST = 20_000
"""Combinations that a sweep may ask for."""
RANGE = {"low", "high", "log", "step"}
WHEN = "when"
OWN = ("train.seed", "data.fold", "data.split_seed")
"""Settings that the sweep itself varies; `train.seed` may be an axis all the same."""

Point = Mapping[str, Any]


@dataclass(frozen=True)
class Range:
    """Numbers between two ends, both included: whole if ends and step are, equally spaced where there is a step."""

    low: float
    high: float
    log: bool = False
    step: float | None = None

    def draw(self, u: float) -> float:
        """The value at quantile `u` (0 to 1). Whole numbers are all as likely; on a log scale, by their width."""
        step = self.step or (1 if self.whole else None)
        if self.log:
            margin = 0.5 if self.whole else 0.0
            low, high = math.log(self.low - margin), math.log(self.high + margin)
            return min(max(self._whole(math.exp(low + u * (high - low))), self.low), self.high)
        if step is not None:
            places = int((self.high - self.low) / step + 1e-9) + 1
            return self._whole(self.low + min(int(u * places), places - 1) * step)
        return self.low + u * (self.high - self.low)

    @property
    def whole(self) -> bool:
        """Whether its values are whole numbers."""
        return all(isinstance(number, int) for number in (self.low, self.high, self.step or 0))

    def _whole(self, value: float) -> float:
        return round(value) if self.whole else value


Values = tuple[Any, ...] | Range


@dataclass(frozen=True)
class Grid:
    """One product of axes. when: what its points must agree with, setting -> allowed values."""

    axes: Mapping[str, Values]
    when: Mapping[str, tuple[Any, ...]]

    def size(self) -> int:
        """Combinations, before `when`."""
        return math.prod(len(values) for values in self.axes.values() if isinstance(values, tuple))

    def agrees(self, point: Point) -> bool:
        """Whether a point is one that `when` allows."""
        return all(point.get(name) in allowed for name, allowed in self.when.items())

    def points(self) -> Iterator[Point]:
        """Every combination, the last axis fastest."""
        lists = [values for values in self.axes.values() if isinstance(values, tuple)]
        found = (dict(zip(self.axes, values, strict=True)) for values in product(*lists))
        return (point for point in found if self.agrees(point))


def grids_of(config: SweepConfig, base: Config, at: str) -> list[Grid]:
    """The axes of the settings, checked: known names, values that fit, no empty axis.

    Raises:
        SettingsError: an unknown setting, an axis without values, a value that no training could have, too many.
    """
    found = [_grid(config.axes, base, f"{at}: sweep.axes")] if config.axes or not config.grid else []
    found += [_grid(table, base, f"{at}: sweep.grid[{n}]") for n, table in enumerate(config.grid)]
    if config.search == "grid":
        for grid in found:
            for name, values in grid.axes.items():
                if isinstance(values, Range):
                    hint = 'list the values, or set sweep.search = "random"'
                    raise SettingsError("a grid has no ranges", at=f'{at}: sweep.axes."{name}"', hint=hint)
        count = sum(grid.size() for grid in found)
        if count > MOST:
            hint = 'use fewer values, or sweep.search = "random" with sweep.budget.trials'
            raise SettingsError(f"these axes have {count:,} combinations (at most {MOST:,})", at=at, hint=hint)
    return found


def _grid(table: Mapping[str, Any], base: Config, at: str) -> Grid:
    flat = dict(_flat(table))
    when = {name.removeprefix(f"{WHEN}."): flat.pop(name) for name in list(flat) if name.split(".")[0] == WHEN}
    axes = {name: _values(name, value, base, at) for name, value in flat.items()}
    for name in when:
        _known(name, at)
        if name not in axes:
            hint = "name one of the same grid, or leave the condition out"
            raise SettingsError("a condition is about an axis", at=f'{at}.when."{name}"', hint=hint)
    return Grid(axes, {name: tuple(value) if isinstance(value, list) else (value,) for name, value in when.items()})


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """`"train.lr" = […]` and `train.lr = […]` are the same axis; a range is a value."""
    for name, value in table.items():
        if isinstance(value, Mapping) and not ({"low", "high"} <= set(value)):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _known(name: str, at: str) -> None:
    names = known_names(Config)
    if name not in names:
        raise SettingsError("unknown setting", at=f'{at}."{name}"', hint=nearest(name, names))


def _values(name: str, value: Any, base: Config, at: str) -> Values:
    _known(name, at)
    place = f'{at}."{name}"'
    if name in ("data.fold", "data.split_seed"):
        raise SettingsError("the sweep sets this itself", at=place, hint="see sweep.folds and sweep.seeds")
    if isinstance(value, Mapping):
        return _range(value, place)
    values = value if isinstance(value, list | tuple) else [value]
    if not values:
        raise SettingsError("this axis has no values", at=place, hint="give it at least one, or leave it out")
    for one in values:
        try:
            with_settings(base, {name: one})
        except SettingsError as error:
            raise SettingsError(error.message, at=place, hint=error.hint) from None
    return tuple(values)


def _range(value: Mapping[str, Any], at: str) -> Range:
    if extra := set(value) - RANGE:
        raise SettingsError(f"{sorted(extra)[0]!r} is no part of a range", at=at, hint="it has low, high, log and step")
    for name in ("low", "high", "step"):
        if name in value and (isinstance(value[name], bool) or not isinstance(value[name], int | float)):
            raise SettingsError(f"{value[name]!r} is no number", at=f"{at}.{name}", hint="write it without quotes")
    found = Range(**value)
    if found.step is not None and not found.step > 0:
        raise SettingsError(f"{found.step} is no step", at=f"{at}.step", hint="give a number above 0")
    if found.step is not None and found.log:
        raise SettingsError("a log range has no equal steps", at=at, hint="leave out log or step, or list the values")
    if not found.low < found.high or (found.log and found.low <= 0):
        raise SettingsError("a range goes from a low to a high number", at=at, hint="log ranges begin above 0")
    return found


def resolved(table: Any, folder: Any) -> Any:
    """Axes over paths, read from a file: relative ones begin at its folder."""
    if isinstance(table, list):
        return [resolved(part, folder) for part in table]
    if not isinstance(table, dict):
        return table
    return {
        name: [beside(folder, one, name) for one in value] if name in PATHS and isinstance(value, list) else value
        for name, value in table.items()
    }


def distinct(points: Iterator[Point], base: Config) -> tuple[list[Point], int]:
    """Points without those that come to the same settings as an earlier one, and how many there were of these."""
    kept: dict[str, Point] = {}
    twice = 0
    for point in points:
        key = with_settings(base, point).model_dump_json()
        twice += key in kept
        kept.setdefault(key, point)
    return list(kept.values()), twice


def all_points(grids: Sequence[Grid], base: Config) -> tuple[list[Point], int]:
    """The union of grids, and how many combinations occur again."""
    return distinct(chain.from_iterable(grid.points() for grid in grids), base)


def random_points(grids: Sequence[Grid], base: Config, count: int) -> list[Point]:
    """Up to `count` different points: a grid by its size, a value of each of its axes; the same for the same seed."""
    words = np.random.Philox(key=Key.of(base.train.seed).fold("sweep").value)
    random = np.random.Generator(words)
    weights = np.array([max(1, grid.size()) for grid in grids], float)
    drawn: dict[str, Point] = {}
    for _ in range(count * 50):
        grid = grids[int(random.choice(len(grids), p=weights / weights.sum()))]
        point = {name: _drawn(values, float(random.random())) for name, values in grid.axes.items()}
        if grid.agrees(point):
            drawn.setdefault(json.dumps(point, sort_keys=True, default=str), point)
        if len(drawn) == count:
            break
    return distinct(iter(drawn.values()), base)[0]


def _drawn(values: Values, u: float) -> Any:
    return values.draw(u) if isinstance(values, Range) else values[min(int(u * len(values)), len(values) - 1)]
