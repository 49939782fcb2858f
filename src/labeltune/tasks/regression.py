"""A number a text: the logit itself is the answer, in the numbers' own units.

The head's layers give it in standard deviations from the mean of the training rows (`model/heads.py`, `Unit`).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import ClassVar, final

import numpy as np
import torch

from labeltune import metrics
from labeltune.data.settings import DataConfig
from labeltune.errors import DataError
from labeltune.labels import LabelSet
from labeltune.losses import Sums
from labeltune.metrics import Figures, Hits
from labeltune.model.settings import HeadConfig
from labeltune.schema import Example, Prediction
from labeltune.tasks.calibration import Calibration
from labeltune.tasks.documents import DocumentTask
from labeltune.tasks.task import Chained, Decisions, LabelOf, Loss, Spans, as_array

FINEST = 1e-5
"""Least standard deviation, in means, that fp32 resolves to one in a hundred."""


@final
class Regression(DocumentTask):
    """The row `regression`. Its label set is empty."""

    name: ClassVar[str] = "regression"
    select: ClassVar[str] = "mse"
    metrics: ClassVar[tuple[str, ...]] = ("mse", "spearman")
    losses: ClassVar[Mapping[str | None, str]] = {None: "mse"}

    def gold(self, example: Example) -> Collection[str]:
        """No names; but the row must have a number."""
        number(example)
        return ()

    def label_set(self, examples: Iterable[Example], data: DataConfig) -> LabelSet:
        """Empty, once every row is known to have a number."""
        for example in examples:
            number(example)
        return LabelSet(())

    def label_of(self, labels: LabelSet) -> LabelOf:
        """float32 (t); NaN where unlabelled."""

        def label_of(example: Example, spans: Spans) -> np.ndarray:
            value = math.nan if example.label is None else number(example)
            return np.full(len(spans), value, dtype=np.float32)

        return label_of

    def width(self, labels: LabelSet) -> int:
        """One logit."""
        return 1

    def in_units(self, settings: HeadConfig, examples: Iterable[Example]) -> HeadConfig:
        """The numbers' mean and standard deviation, where the settings leave them open; 1 where all are equal."""
        if settings.mean is not None and settings.std is not None:
            return settings
        numbers = np.array([number(example) for example in examples])
        mean, std = float(numbers.mean()), float(numbers.std())
        if 0 < std < FINEST * abs(mean):
            told = f"the numbers lie within {std:.3g} of {mean:.9g}, which 32-bit arithmetic cannot tell apart"
            raise DataError(told, at="head.mean", hint=f"subtract {mean:.9g} from them")
        measured = {"mean": mean, "std": std or 1.0}
        given = {name: value for name in measured if (value := getattr(settings, name)) is not None}
        return settings.model_copy(update={**measured, **given})

    def loss(
        self, settings: HeadConfig, labels: LabelSet, counts: np.ndarray | None, head: Chained | None = None
    ) -> Loss:
        """Squared errors in the head's units: 1 is what the mean alone would cost."""
        squared, std = super().loss(settings, labels, counts, head), settings.std or 1.0

        def loss(logits_SL: torch.Tensor, targets_S: torch.Tensor, target_document: torch.Tensor) -> Sums:
            return squared(logits_SL / std, targets_S / std, target_document)

        return loss

    def decide(
        self,
        logits: torch.Tensor | np.ndarray,
        target_document: torch.Tensor | np.ndarray,
        labels: LabelSet,
        calibration: Calibration | None = None,
        head: Chained | None = None,
    ) -> Decisions:
        """The numbers."""
        values = as_array(logits).reshape(-1).astype(np.float32)
        return Decisions(values, np.empty((len(values), 0), dtype=np.float32), as_array(target_document))

    def calibrate(
        self,
        logits: torch.Tensor | np.ndarray,
        targets: np.ndarray,
        labels: LabelSet,
        head: Chained | None = None,
    ) -> Calibration:
        """Nothing to fit."""
        return Calibration()

    def prediction(
        self, example: Example, answer: np.ndarray, probabilities: np.ndarray, labels: LabelSet
    ) -> Prediction:
        """The number."""
        return Prediction(example.id, value=float(answer))

    def hits(self, examples: Iterable[Example], predictions: Sequence[Prediction]) -> Hits:
        """None."""
        return Hits.empty()

    def error(self, example: Example, prediction: Prediction) -> float:
        """The distance from the gold number."""
        return abs(number(example) - (prediction.value or 0.0))

    def score(self, examples: Iterable[Example], predictions: Sequence[Prediction], labels: LabelSet) -> Figures:
        """`mse` and `spearman`."""
        gold = np.array([number(example) for example in examples])
        return metrics.numbers(gold, np.array([p.value for p in predictions], dtype=np.float64))


def number(example: Example) -> float:
    """The row's label as a finite number, or a DataError with its address."""
    if example.label is None:
        raise DataError("no label", at=example.id, hint="give every row a number")
    try:
        value = float(example.label)  # type: ignore[arg-type]  # a tuple raises TypeError, as it should
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        hint = "give every row a number, or set task = 'classification'"
        raise DataError(f"label {example.label!r} is no number", at=example.id, hint=hint)
    return value
