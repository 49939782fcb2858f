"""One label a text, from an order: CORAL asks at each threshold whether the label is above it.

The head has one weight vector and a bias per threshold. Label k has the probability of being above k - 1 and not above
k; should biases cross, a later threshold's probability is lowered to the earlier one's. The label is the number of
thresholds that are more likely passed than not; `value` is the expected rank, 0 for the lowest label.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar, final

import numpy as np
from scipy.special import expit

from labeltune import metrics
from labeltune.data.settings import DataConfig
from labeltune.errors import SettingsError
from labeltune.labels import LabelSet
from labeltune.metrics import Figures
from labeltune.model.settings import HeadConfig
from labeltune.schema import Example, Prediction
from labeltune.tasks.classification import SINGLE_LABEL_METRICS, SingleLabel
from labeltune.tasks.task import Chained, Loss, one_name


@final
class Ordinal(SingleLabel):
    """The row `ordinal`."""

    name: ClassVar[str] = "ordinal"
    bias: ClassVar[bool] = True
    shared: ClassVar[bool] = True
    select: ClassVar[str] = "mse"
    metrics: ClassVar[tuple[str, ...]] = (*SINGLE_LABEL_METRICS, "mse", "spearman")
    losses: ClassVar[Mapping[str | None, str]] = {None: "coral"}

    def label_set(self, examples: Iterable[Example], data: DataConfig) -> LabelSet:
        """`data.label_order`, which is required."""
        if data.label_order is None or len(data.label_order) < 2:
            hint = "list the labels from lowest to highest"
            raise SettingsError("ordinal needs the order of its labels", at="data.label_order", hint=hint)
        return super().label_set(examples, data)

    def loss(
        self, settings: HeadConfig, labels: LabelSet, counts: np.ndarray | None, head: Chained | None = None
    ) -> Loss:
        """CORAL; without a bias its thresholds could not differ."""
        if settings.bias is False:
            raise SettingsError("ordinal needs a bias per threshold", at="head.bias", hint="leave it out")
        return super().loss(settings, labels, counts, head)

    def width(self, labels: LabelSet) -> int:
        """One logit for each threshold."""
        return len(labels) - 1

    def probabilities(self, logits_SL: np.ndarray, temperature: float) -> np.ndarray:
        """float64 (S, thresholds + 1)."""
        above = np.minimum.accumulate(expit(logits_SL.astype(np.float64) / temperature), axis=1)
        ends = np.ones((len(above), 1))
        return np.asarray(np.concatenate([ends, above], axis=1) - np.concatenate([above, 0 * ends], axis=1))

    def choose(self, probabilities_SL: np.ndarray) -> np.ndarray:
        """How many thresholds are passed with a probability above one half."""
        above = 1 - np.cumsum(probabilities_SL, axis=1)[:, :-1]
        return np.asarray((above > 0.5).sum(1))

    def _value(self, probabilities: np.ndarray) -> float | None:
        return float(probabilities @ np.arange(len(probabilities)))

    def score(self, examples: Iterable[Example], predictions: Sequence[Prediction], labels: LabelSet) -> Figures:
        """Single-label figures, and `mse` and `spearman` of expected against true ranks.

        A gold label outside the order is taken to be at the far end from the answer.
        """
        examples = list(examples)
        values = np.array([p.value or 0.0 for p in predictions])
        ranks = np.array([labels.find(one_name(example, self.name)) for example in examples], dtype=np.float64)
        highest = len(labels) - 1
        ranks = np.where(ranks < 0, np.where(values < highest / 2, highest, 0), ranks)
        return super().score(examples, predictions, labels) | metrics.numbers(ranks, values)
