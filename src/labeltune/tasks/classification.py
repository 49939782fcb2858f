"""One label a text: softmax, and the most probable label."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import ClassVar, final

import numpy as np
import torch
from scipy.special import softmax

from labeltune import metrics
from labeltune.data.settings import DataConfig
from labeltune.errors import DataError
from labeltune.labels import LabelSet
from labeltune.losses import UNLABELLED
from labeltune.metrics import Confused, Figures, Hits
from labeltune.schema import Example, Prediction
from labeltune.tasks.calibration import Calibration, fit_temperature
from labeltune.tasks.documents import DocumentTask
from labeltune.tasks.task import Chained, Decisions, LabelOf, Scores, Spans, as_array, one_name


class SingleLabel(DocumentTask):
    """What classification and ordinal share: one label a text, chosen among probabilities that sum to 1."""

    def gold(self, example: Example) -> Collection[str]:
        """The row's label."""
        return (one_name(example, self.name),)

    def label_set(self, examples: Iterable[Example], data: DataConfig) -> LabelSet:
        """The labels; at least two, for between fewer there is nothing to choose."""
        labels = super().label_set(examples, data)
        if len(labels) < 2:
            hint = "a classifier needs rows of at least two labels; check data.label"
            raise DataError(f"every row has the label {labels.names[0]!r}", at=str(data.train or "train"), hint=hint)
        return labels

    def label_of(self, labels: LabelSet) -> LabelOf:
        """int64 (t): the label's number."""

        def label_of(example: Example, spans: Spans) -> np.ndarray:
            known = example.label is not None
            label = labels.find(one_name(example, self.name)) if known else UNLABELLED
            return np.full(len(spans), label, dtype=np.int64)

        return label_of

    @abstractmethod
    def probabilities(self, logits_SL: np.ndarray, temperature: float) -> np.ndarray:
        """float64 (S, labels)."""

    @abstractmethod
    def choose(self, probabilities_SL: np.ndarray) -> np.ndarray:
        """int64 (S), the labels chosen."""

    def decide(
        self,
        logits: torch.Tensor | np.ndarray,
        target_document: torch.Tensor | np.ndarray,
        labels: LabelSet,
        calibration: Calibration | None = None,
        head: Chained | None = None,
    ) -> Decisions:
        """The chosen label of each document, and every label's probability."""
        probabilities = self.probabilities(as_array(logits), (calibration or Calibration()).temperature)
        chosen = self.choose(probabilities)
        return Decisions(chosen, probabilities.astype(np.float32), as_array(target_document))

    def calibrate(
        self,
        logits: torch.Tensor | np.ndarray,
        targets: np.ndarray,
        labels: LabelSet,
        head: Chained | None = None,
    ) -> Calibration:
        """A temperature."""
        return fit_temperature(lambda t: self.probabilities(as_array(logits), t), targets, self.choose)

    def prediction(
        self, example: Example, answer: np.ndarray, probabilities: np.ndarray, labels: LabelSet
    ) -> Prediction:
        """The label and its probability."""
        return Prediction(
            example.id,
            label=labels.names[answer],
            score=float(probabilities[answer]),
            scores=Scores(labels, probabilities),
            value=self._value(probabilities),
        )

    def _value(self, probabilities: np.ndarray) -> float | None:
        return None

    def hits(self, examples: Iterable[Example], predictions: Sequence[Prediction]) -> Hits:
        """Right where the labels are equal."""
        return metrics.label_hits((one_name(e, self.name) for e in examples), (p.label for p in predictions))

    def confused(self, examples: Iterable[Example], predictions: Sequence[Prediction]) -> list[Confused]:
        """By gold and answered label."""
        return metrics.confused([one_name(e, self.name) for e in examples], [p.label for p in predictions])

    def score(self, examples: Iterable[Example], predictions: Sequence[Prediction], labels: LabelSet) -> Figures:
        """All of `metrics`; `ece` over the rows that were answered."""
        gold = [one_name(example, self.name) for example in examples]
        answers = [prediction.label for prediction in predictions]
        answered = [
            (p.score or 0.0, p.label == g) for p, g in zip(predictions, gold, strict=True) if p.label is not None
        ]
        figures = metrics.single_label(gold, answers)
        figures["ece"] = metrics.ece(np.array([s for s, _ in answered]), np.array([r for _, r in answered], dtype=bool))
        if all(p.scores is not None for p in predictions):
            of_gold = [(p.scores or {}).get(g, 0.0) for p, g in zip(predictions, gold, strict=True)]
            figures["log_loss"] = metrics.log_loss(np.array(of_gold))
        return figures


SINGLE_LABEL_METRICS = (
    "accuracy",
    "macro_precision",
    "macro_recall",
    "macro_f1",
    "micro_f1",
    "weighted_f1",
    "mcc",
    "log_loss",
    "ece",
    "coverage",
)


@final
class Classification(SingleLabel):
    """The row `classification`."""

    name: ClassVar[str] = "classification"
    select: ClassVar[str] = "macro_f1"
    metrics: ClassVar[tuple[str, ...]] = SINGLE_LABEL_METRICS
    losses: ClassVar[Mapping[str | None, str]] = {None: "cross_entropy", "focal": "focal"}

    def probabilities(self, logits_SL: np.ndarray, temperature: float) -> np.ndarray:
        """Softmax."""
        return np.asarray(softmax(logits_SL.astype(np.float64) / temperature, axis=1))

    def choose(self, probabilities_SL: np.ndarray) -> np.ndarray:
        """The most probable."""
        return np.asarray(probabilities_SL.argmax(1))
