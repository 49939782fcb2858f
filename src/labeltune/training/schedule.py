"""How long a training is where nobody says: five passes, more where rows are few."""

from __future__ import annotations

import math
from typing import Any

from labeltune.training.settings import TrainConfig

LEAST_EPOCHS, LEAST_STEPS, LOOKS = 5, 1000, 20
"""Passes and optimiser steps of a training whose length nobody names, and the most evaluations where rows are few."""


def scheduled(config: TrainConfig, rows: int, tokens: int) -> TrainConfig:
    """The settings with the number of passes and the evaluations settled, for so many training rows and tokens.

    A hundred rows are seven steps a pass, and five passes of them teach next to nothing
    (`benchmarks/results/passes_cpu_2026-11-27.md`). Where few rows are read often, dev is looked at after every few
    passes, for it may be larger than what is trained on.
    """
    steps = math.ceil(tokens / config.batch_tokens if config.batch_tokens else rows / config.batch_rows)
    values: dict[str, Any] = {}
    if config.steps is None and config.epochs is None:
        values["epochs"] = max(LEAST_EPOCHS, math.ceil(LEAST_STEPS / steps))
    if config.eval_every is None:
        between = math.ceil(values.get("epochs", 1) / LOOKS)
        values["eval_every"] = "epoch" if between == 1 else between * steps
    return config.model_copy(update=values)
