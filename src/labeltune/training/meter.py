"""How fast and how big a training was: rows and tokens per second of optimiser steps, peak memory."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec

import torch

GIB = 2**30
resource = import_module("resource") if find_spec("resource") else None  # not on Windows


@dataclass
class Meter:
    """Adds up the steps of one training; evaluations and checkpoints are timed apart."""

    rows: int = 0
    tokens: int = 0
    seconds: float = 0.0

    def add(self, rows: int, tokens: int, seconds: float) -> None:
        """Count a step that trained on `rows` and `tokens`."""
        self.rows, self.tokens, self.seconds = self.rows + rows, self.tokens + tokens, self.seconds + seconds

    def facts(self) -> dict[str, float]:
        """The figures of `metrics.json`."""
        seconds = max(self.seconds, 1e-9)
        return {
            "seconds": round(self.seconds, 3),
            "rows_per_second": round(self.rows / seconds, 3),
            "tokens_per_second": round(self.tokens / seconds, 1),
            "peak_memory_gib": round(peak_memory(), 3),
        }


def peak_memory() -> float:
    """GiB: the device's peak where there is one, else the process's largest resident size (0 where unknown)."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / GIB
    if resource is None:
        return 0.0
    size: int = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size / GIB if sys.platform == "darwin" else size * 1024 / GIB
