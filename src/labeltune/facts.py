"""What a training tells whoever listens: sentences, the check, the start, the final figures (steps are the loop's)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from labeltune.config import Config
from labeltune.model.selfcheck import Report

Listener = Callable[[object], None]


@dataclass(frozen=True)
class Said:
    """A sentence for the user."""

    text: str


@dataclass(frozen=True)
class Checked:
    """The loaded model passed the self-check."""

    report: Report


@dataclass(frozen=True)
class Ready:
    """Everything is loaded and checked; training begins (or goes on) at `step` of `total`."""

    config: Config
    rows: Mapping[str, int]
    labels: int
    trained_parameters: int
    step: int
    total: int


@dataclass(frozen=True)
class Scored:
    """The final figures of one split."""

    split: str
    metrics: Mapping[str, Any]


def quiet(fact: object) -> None:
    """The listener that hears nothing."""
