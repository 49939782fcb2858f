"""What a sweep will take before anything is spent: its trainings, side by side on each backbone; memory and time."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from labeltune.bench import Bench
from labeltune.config import Config, read_toml
from labeltune.data.datasets import QUARANTINE
from labeltune.facts import Listener, Said, quiet
from labeltune.inspection import Inspection, inspect
from labeltune.job import prepare
from labeltune.ledger import Ledger
from labeltune.memory import Memory, Shape, gibibytes, reckon, shape_of, trained_parameters
from labeltune.planning import Measured, look, pass_limit, pass_tokens, passes_and_looks
from labeltune.sweeps.axes import grids_of
from labeltune.sweeps.pack import that_fit
from labeltune.sweeps.rounds import fixed_points, refuse_impossible
from labeltune.sweeps.settings import SweepConfig
from labeltune.sweeps.sweeping import read_sweep
from labeltune.sweeps.trials import Spec, company, specs_of


@dataclass(frozen=True)
class Side:
    """The trainings of one backbone, `seats` of them side by side; seconds of all of them, None without a measurement.

    setup: seconds to begin one more training on a backbone that is there.
    """

    model: str
    trainings: int
    seats: int
    memory: Memory
    measured: Measured | None
    setup: float
    seconds: float | None


@dataclass(frozen=True)
class SweepPlan:
    """What a sweep will take, the scores on test not counted. points: of the axes; trainings: with seeds and folds.

    epochs: of all trainings together, as far as pruning lets them go. seconds, cost: None without a measurement.
    """

    points: int
    trainings: int
    epochs: float
    sides: tuple[Side, ...]
    seconds: float | None
    cost: float | None

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        facts = asdict(self)
        for side, found in zip(facts["sides"], self.sides, strict=True):
            side["memory"]["total"] = found.memory.total
        return facts


def plan_sweep(
    file: str | Path,
    *,
    settings: Mapping[str, Any] | None = None,
    gpu: str | None = None,
    price: float | None = None,
    measure: bool = True,
    listen: Listener = quiet,
) -> SweepPlan:
    """Reckon what a sweep will take, on one device like this one; the test split is not opened.

    A search's points are not known before: random ones stand for them. What pruning keeps is taken as the rungs say.
    settings, gpu, price, measure: as in `sweep` and `plan`. Raises LabeltuneError for what a user can fix.
    """
    limit = None if gpu is None else gibibytes(gpu)
    base, config = read_sweep(Path(file), settings or {})
    grids = grids_of(config, base, str(file))
    refuse_impossible(grids, base, config)
    points, _ = fixed_points(grids, base, config)
    specs = specs_of(points, base, config)
    look_at = _Look(limit, config, measure, listen)
    sides = tuple(map(look_at.side, _by_backbone(specs)))
    epochs = sum(passes * _share(config, passes) for passes in map(look_at.passes, specs))
    seconds = sum(side.seconds or 0.0 for side in sides) if measure else None
    if seconds is not None and config.budget.minutes is not None:
        seconds = min(seconds, 60 * config.budget.minutes)
    cost = None if seconds is None or price is None else seconds / 3600 * price
    return SweepPlan(len(points), len(specs), epochs, sides, seconds, cost)


def is_sweep(file: str | Path) -> bool:
    """Whether a settings file has a `sweep` section."""
    return "sweep" in read_toml(Path(file))


def _by_backbone(specs: Sequence[Spec]) -> list[list[Spec]]:
    """The trainings of each backbone; those that sit alone together, for they take as long one after another."""
    together: dict[Any, list[Spec]] = {}
    for spec in specs:
        *backbone, alone = company(spec)
        together.setdefault((*backbone, alone is None), []).append(spec)
    return list(together.values())


def _share(sweep: SweepConfig, whole: float) -> float:
    """The mean share of its epochs that a training gets to, where the worse ones end at rungs."""
    if sweep.halving is None:
        return 1.0
    alive, before, epochs = 1.0, 0.0, 0.0
    for rung in sorted(sweep.halving.rungs):
        epochs, alive, before = epochs + alive * (rung - before), alive / sweep.halving.factor, float(rung)
    return min(1.0, (epochs + alive * max(0.0, whole - before)) / whole)


class _Look:
    """Looks at the trainings of a backbone. What several of them share is looked at once."""

    def __init__(self, limit: float | None, sweep: SweepConfig, measure: bool, listen: Listener) -> None:
        self._limit, self._sweep, self._measure, self._listen = limit, sweep, measure, listen
        self._seen: Callable[[str], Inspection] = cache(lambda words: inspect(config=Config.model_validate_json(words)))
        self._shape: Callable[[str], Shape] = cache(lambda words: shape_of(Config.model_validate_json(words)))

    def side(self, specs: Sequence[Spec]) -> Side:
        """What the trainings of one backbone take."""
        first = specs[0].config
        seen = self.seen(first)
        alone = company(specs[0])[-1] is not None
        room = self._sweep.together or that_fit(first.train, pass_limit(first), seen.tokens["train"].mean)
        seats = 1 if alone else min(len(specs), room)
        places = np.linspace(0, len(specs) - 1, seats).round().astype(int).tolist()
        seated = [specs[place] for place in places]
        measured, setup = self._measured(seated) if self._measure else (None, 0.0)
        seconds = None
        if measured is not None:
            each = (measured.seconds(s.config, self.seen(s.config).tokens) * self._part(s) for s in specs)
            seconds = sum(each) + setup * len(specs)
        memory = self._memory([spec.config for spec in seated])
        return Side(str(first.model.name), len(specs), seats, memory, measured, setup, seconds)

    def seen(self, config: Config) -> Inspection:
        """The rows and tokens that a training reads."""
        data = config.data.model_copy(update={"test": None, "fold": None})
        return self._seen(Config(task=config.task, data=data, model=config.model).model_dump_json(exclude_unset=True))

    def passes(self, spec: Spec) -> float:
        """The epochs of a training that nothing ends before."""
        return passes_and_looks(spec.config.train, self.seen(spec.config).tokens["train"])[0]

    def _part(self, spec: Spec) -> float:
        """Of the seconds that all rows would take: what pruning, folds and a held-out test split leave."""
        folds, test = self._sweep.folds, spec.config.data.test
        rows = 1.0 - (test if isinstance(test, float) else 0.0) - (1 / folds if folds else 0.0)
        return _share(self._sweep, self.passes(spec)) * rows

    def _memory(self, configs: Sequence[Config]) -> Memory:
        """One backbone, and what each of those side by side adds to it."""
        shapes = [self._shape(Config(model=c.model, lora=c.lora).model_dump_json(exclude_unset=True)) for c in configs]
        labels = [len(self.seen(c).labels.get("train", {})) or 1 for c in configs]
        trained = sum(map(trained_parameters, configs, shapes, labels))
        tokens = sum(pass_tokens(c, self.seen(c).tokens["train"]) for c in configs)
        deepest = max(range(len(shapes)), key=lambda n: shapes[n].layers)
        return reckon(configs[deepest], shapes[deepest], trained, tokens, self._limit)

    def _measured(self, seated: Sequence[Spec]) -> tuple[Measured, float]:
        """Some real turns of trainings side by side, and the seconds that one more of them takes to begin."""
        self._listen(Said(f"measuring {len(seated)} trainings side by side on {seated[0].config.model.name}"))
        whole = len({spec.config.model.depth for spec in seated}) > 1
        with TemporaryDirectory(prefix="labeltune-plan-") as place:
            folder = Path(place)
            bench = Bench(folder, Ledger(folder), folder / QUARANTINE)
            jobs, took = [], []
            for spec in seated:
                began = time.monotonic()
                jobs.append(prepare(_sealed(spec.config), folder / spec.name, bench, quiet, whole=whole))
                took.append(time.monotonic() - began)
            found = look(jobs)
            for job in jobs:
                job.labeller.model.detach()
        return found, min(took)


def _sealed(config: Config) -> Config:
    """The same training without its test split."""
    return config.model_copy(update={"data": config.data.model_copy(update={"test": None})})
