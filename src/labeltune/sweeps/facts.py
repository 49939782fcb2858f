"""What a sweep tells whoever listens: trials that begin and end, and what was decided between them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from labeltune.sweeps.trials import Spec


@dataclass(frozen=True)
class Planned:
    """The sweep is laid out: its points and trainings, how many of these are done already, the metric that chooses."""

    points: int
    trials: int
    done: int
    metric: str


@dataclass(frozen=True)
class Began:
    """A trial has a seat from now on; total: steps of its training."""

    spec: Spec
    step: int
    total: int


@dataclass(frozen=True)
class Moved:
    """A trial did a step, or was evaluated."""

    spec: Spec
    step: int
    total: int
    value: float | None


@dataclass(frozen=True)
class Ended:
    """A trial has left its seat. value: its best dev score so far."""

    spec: Spec
    status: str
    value: float | None
    reason: str | None = None


@dataclass(frozen=True)
class Pruned:
    """Points that do not go on after a rung."""

    epoch: int
    kept: int
    pruned: int


@dataclass(frozen=True)
class Tested:
    """A selected trial was scored on the test split."""

    spec: Spec
    metrics: Mapping[str, Any]
