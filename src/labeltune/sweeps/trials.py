"""A sweep's trials: a point with a seed and a dev part, its settings, its folder, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from labeltune.bench import backbone_key
from labeltune.config import Config, with_settings
from labeltune.storage import read_json, write_json
from labeltune.sweeps.axes import Point
from labeltune.sweeps.settings import SweepConfig

TRIALS, RESULT = "trials", "trial.json"
PRUNED, FAILED, SKIPPED = "pruned", "failed", "not run"
SCORED = ("finished", "stopped early", "diverged", "out of memory")
"""How a trial ends that leaves a run folder."""
ENDED = (*SCORED, PRUNED, FAILED, SKIPPED)


@dataclass(frozen=True)
class Spec:
    """One training of a sweep. point: the number of its settings among the sweep's points."""

    number: int
    point: int
    settings: Point
    seed: int
    fold: str | None
    config: Config

    @property
    def name(self) -> str:
        """`0007`, its folder's name."""
        return f"{self.number:04d}"

    def folder(self, sweep: Path) -> Path:
        """Its run folder."""
        return sweep / TRIALS / self.name


@dataclass(frozen=True)
class Result:
    """What came of a trial.

    status: `finished`, `stopped early`, `diverged`, `out of memory`, `pruned`, `failed`, `not run`; or `running`.
    value: the best dev score while training (what pruning compares), None where there was no evaluation.
    reason: why it failed, or stopped before its end. dev, test, train: the figures of `metrics.json`.
    """

    status: str
    step: int = 0
    epoch: int = 0
    value: float | None = None
    reason: str | None = None
    dev: Mapping[str, Any] = field(default_factory=dict)
    test: Mapping[str, Any] = field(default_factory=dict)
    train: Mapping[str, Any] = field(default_factory=dict)


def specs_of(points: Sequence[Point], base: Config, sweep: SweepConfig, first: int = 0) -> list[Spec]:
    """Every point with every seed and every fold; trial numbers begin at `first` points' worth.

    What is held out depends on the base's seed alone, so that trials are compared on the same dev rows.
    """
    fixed = {"data.split_seed": base.train.seed if base.data.split_seed is None else base.data.split_seed}
    folds = [None] if sweep.folds is None else [f"{k}/{sweep.folds}" for k in range(1, sweep.folds + 1)]
    found: list[Spec] = []
    for place, point in enumerate(points, first):
        for seed in seeds_of(with_settings(base, point), sweep):
            for fold in folds:
                number = place * repeats(sweep) + len(found) % repeats(sweep)
                values = {**point, **fixed, "train.seed": seed, "data.fold": fold}
                found.append(Spec(number, place, point, seed, fold, with_settings(base, values)))
    return found


def seeds_of(config: Config, sweep: SweepConfig) -> tuple[int, ...]:
    """The seeds of a point's trainings."""
    if isinstance(sweep.seeds, int):
        return tuple(range(config.train.seed, config.train.seed + sweep.seeds))
    return sweep.seeds


def repeats(sweep: SweepConfig) -> int:
    """Trainings of a point."""
    seeds = sweep.seeds if isinstance(sweep.seeds, int) else len(sweep.seeds)
    return seeds * (sweep.folds or 1)


def company(spec: Spec) -> tuple[Any, ...]:
    """What trials must agree on to train side by side.

    Where the backbone itself or its weight norms are in play (full fine-tuning, DoRA) a trial has no company.
    """
    alone = spec.number if spec.config.lora.kind in ("full", "dora") else None
    return (*backbone_key(spec.config), alone)


def write_result(folder: Path, spec: Spec, **facts: Any) -> None:
    """Write `trial.json`: which trial this is, and how it stands."""
    what = {"trial": spec.number, "point": spec.point, "settings": dict(spec.settings)}
    write_json(folder / RESULT, what | {"seed": spec.seed, "fold": spec.fold} | facts)


def read_result(folder: Path) -> Result | None:
    """What `trial.json` and `metrics.json` say; None before the trial began."""
    if not (folder / RESULT).exists():
        return None
    facts: Any = read_json(folder / RESULT)
    metrics: Any = read_json(folder / "metrics.json") if (folder / "metrics.json").exists() else {}
    known = {name: facts[name] for name in ("status", "step", "epoch", "value", "reason", "dev") if name in facts}
    return Result(**{**known, **{name: part for name, part in metrics.items() if name in ("dev", "test", "train")}})
