"""How fast and how big a training was: rows and tokens per second of optimiser steps, peak memory."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
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
    _since: float = field(default_factory=time.monotonic)

    def start(self) -> None:
        """Begin to time a step."""
        self._since = time.monotonic()

    def stop(self, rows: int, tokens: int, apart: float) -> None:
        """End a step that trained on `rows` and `tokens`; `apart` are the seconds of its evaluation."""
        self.seconds += time.monotonic() - self._since - apart
        self.rows, self.tokens = self.rows + rows, self.tokens + tokens

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
