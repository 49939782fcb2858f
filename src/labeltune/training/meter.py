"""How fast and how big a training was: rows and tokens per second of optimiser steps, peak memory."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import torch

GIB = 2**30
STATUS = Path("/proc/self/status")
"""Linux's own account; there `ru_maxrss` begins with what the parent process holds."""
resource = import_module("resource") if find_spec("resource") else None  # not on Windows


@dataclass
class Meter:
    """Adds up the steps of one training; evaluations and checkpoints are timed apart."""

    rows: int = 0
    tokens: int = 0
    seconds: float = 0.0
    padded: int = 0

    def add(self, rows: int, tokens: int, seconds: float, padded: int = 0) -> None:
        """Count a step that trained on `rows` and `tokens`; padded: its tokens in rows of one length."""
        self.rows, self.tokens, self.seconds = self.rows + rows, self.tokens + tokens, self.seconds + seconds
        self.padded += padded

    def state(self) -> list[float]:
        """What a checkpoint keeps."""
        return [self.rows, self.tokens, self.seconds, self.padded]

    def restore(self, state: Sequence[float]) -> None:
        """Go on from what `state` gave."""
        self.rows, self.tokens, self.seconds, self.padded = int(state[0]), int(state[1]), state[2], int(state[3])

    def facts(self) -> dict[str, float]:
        """The figures of `metrics.json`."""
        seconds = max(self.seconds, 1e-9)
        return {
            "seconds": round(self.seconds, 3),
            "rows_per_second": round(self.rows / seconds, 3),
            "tokens_per_second": round(self.tokens / seconds, 1),
            "peak_memory_gib": round(peak_memory(), 3),
            **({"padding_share_saved": round(1 - self.tokens / self.padded, 4)} if self.padded else {}),
        }

    def utilisation(self, parameters: int, operations: float) -> float | None:
        """Model FLOPs utilisation: the share of the device's dense 16-bit peak; None where its peak is not known.

        operations: per parameter and token, 4 for a frozen backbone, 6 with recomputation or all weights trained.
        """
        peak = known_peak()
        return None if peak is None else operations * parameters * self.tokens / max(self.seconds, 1e-9) / peak


PEAKS = {  # dense bf16 FLOPs a second, by the data sheets
    "H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "A10": 125e12,
    "RTX 4090": 165e12, "RTX 3090": 71e12, "B200": 2250e12,
}  # fmt: skip


def known_peak(name: str | None = None) -> float | None:
    """Of a device by its name [the current one]."""
    if name is None:
        name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return next((peak for known, peak in PEAKS.items() if re.search(rf"\b{known}\b", name)), None)


def peak_memory() -> float:
    """GiB: the device's peak where there is one, else the process's largest resident size (0 where unknown)."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / GIB
    if STATUS.exists():
        lines = STATUS.read_text("ascii", "replace").splitlines()
        if (peak := next((int(line.split()[1]) for line in lines if line.startswith("VmHWM")), None)) is not None:
            return peak / 2**20  # some sandboxes do not say it
    if resource is None:
        return 0.0
    size: int = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size / GIB if sys.platform == "darwin" else size * 1024 / GIB
