"""Which rows make which optimiser step."""

from __future__ import annotations

import math
from bisect import bisect_right
from functools import lru_cache

import numpy as np

from labeltune.data.batches import plan_epoch
from labeltune.keys import Key, permutation
from labeltune.training.settings import TrainConfig


class Order:
    """Which rows make which optimiser step: a fresh permutation per epoch, a pure function of the trial's key."""

    def __init__(self, lengths: np.ndarray, config: TrainConfig, key: Key) -> None:
        self._lengths, self._config, self._key = lengths, config, key
        self.epoch_steps = lru_cache(maxsize=2)(self._epoch_steps)
        self._ends: list[int] = []  # the steps up to the end of each epoch that was counted
        if config.steps is not None:
            self.total = config.steps
        elif config.epochs is not None:
            self.total = self._steps_of_epochs(config.epochs)
        else:
            raise ValueError("the length of a training is settled before it begins (`schedule.scheduled`)")

    def _epoch_steps(self, epoch: int) -> list[list[int]]:
        order = permutation(self._key.fold("order", epoch), len(self._lengths))
        rows = None if self._config.batch_tokens else self._config.batch_rows
        return plan_epoch(self._lengths, permutation=order, batch_rows=rows, batch_tokens=self._config.batch_tokens)

    def _steps_of_epochs(self, epochs: float) -> int:
        last, part = int(epochs), epochs - int(epochs)
        before = self._end(last - 1) if last else 0
        return max(1, before + (math.ceil(part * (self._end(last) - before)) if part else 0))

    def _end(self, epoch: int) -> int:
        """The steps up to the end of an epoch (from 0); epochs of rows are alike, those of tokens are laid out."""
        if self._config.batch_tokens is None:
            return (epoch + 1) * math.ceil(len(self._lengths) / self._config.batch_rows)
        while len(self._ends) <= epoch:
            before = self._ends[-1] if self._ends else 0
            self._ends.append(before + len(self._epoch_steps(len(self._ends))))
        return self._ends[epoch]

    def _epoch(self, step: int) -> int:
        if self._config.batch_tokens is None:
            return step // self._end(0)
        while not self._ends or self._ends[-1] <= step:
            self._end(len(self._ends))
        return bisect_right(self._ends, step)

    def at(self, step: int) -> tuple[int, list[int], bool]:
        """Epoch, rows, and whether this is the epoch's last step, for optimiser step `step` (from 0)."""
        epoch = self._epoch(step)
        steps, place = self.epoch_steps(epoch), step - (self._end(epoch - 1) if epoch else 0)
        return epoch, steps[place], place == len(steps) - 1
