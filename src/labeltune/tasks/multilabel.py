"""Any number of labels a text: each label is a question of its own, answered yes from its threshold on."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import ClassVar, final

import numpy as np
import torch
from scipy.special import expit

from labeltune import metrics
from labeltune.data.settings import DataConfig
from labeltune.errors import DataError
from labeltune.labels import LabelSet
from labeltune.metrics import Figures, Hits
from labeltune.schema import Example, Prediction
from labeltune.tasks.calibration import Calibration, fit_temperature, fit_thresholds
from labeltune.tasks.documents import DocumentTask
from labeltune.tasks.task import Chained, Decisions, LabelOf, Scores, Spans, as_array


@final
class Multilabel(DocumentTask):
    """The row `multilabel`."""

    name: ClassVar[str] = "multilabel"
    select: ClassVar[str] = "macro_f1"
    metrics: ClassVar[tuple[str, ...]] = (
        "accuracy",
        "macro_precision",
        "macro_recall",
        "macro_f1",
        "micro_f1",
        "weighted_f1",
        "log_loss",
        "ece",
    )
    losses: ClassVar[Mapping[str | None, str]] = {None: "bce", "focal": "binary_focal"}

    def gold(self, example: Example) -> Collection[str]:
        """The row's labels, perhaps none; a single label is a set of one."""
        if example.label is None:
            raise DataError("no labels", at=example.id, hint="give every row a list of labels; it may be empty")
        return tuple(map(str, example.label)) if isinstance(example.label, tuple) else (str(example.label),)

    def label_set(self, examples: Iterable[Example], data: DataConfig) -> LabelSet:
        """The labels; at least one."""
        labels = super().label_set(examples, data)
        if not len(labels):
            raise DataError("no row has a label", at=str(data.train or "train"), hint="check data.label")
        return labels

    def label_of(self, labels: LabelSet) -> LabelOf:
        """float32 (t, L), multi-hot; NaN where unlabelled."""

        def label_of(example: Example, spans: Spans) -> np.ndarray:
            if example.label is None:
                return np.full((len(spans), len(labels)), np.nan, dtype=np.float32)
            wanted = set(self.gold(example))
            hot = np.array([[name in wanted for name in labels.names]], dtype=np.float32)
            return np.repeat(hot, len(spans), axis=0)

        return label_of

    def decide(
        self,
        logits: torch.Tensor | np.ndarray,
        target_document: torch.Tensor | np.ndarray,
        labels: LabelSet,
        calibration: Calibration | None = None,
        head: Chained | None = None,
    ) -> Decisions:
        """Per document and label yes or no, and the probability of yes."""
        calibration = calibration or Calibration()
        probabilities = _probabilities(as_array(logits), calibration.temperature)
        thresholds = 0.5 if calibration.thresholds is None else np.array(calibration.thresholds)
        return Decisions(probabilities >= thresholds, probabilities, as_array(target_document))

    def calibrate(
        self,
        logits: torch.Tensor | np.ndarray,
        targets: np.ndarray,
        labels: LabelSet,
        head: Chained | None = None,
    ) -> Calibration:
        """A temperature over all questions, then a threshold per label on the probabilities that it gives."""
        known = ~np.isnan(targets).any(1)
        logits_SL, targets = as_array(logits)[known], targets[known]
        if not targets.size:
            return Calibration()

        def no_and_yes(temperature: float) -> np.ndarray:
            yes = _probabilities(logits_SL, temperature).astype(np.float64).reshape(-1)
            return np.stack([1 - yes, yes], axis=1)

        fitted = fit_temperature(no_and_yes, targets.reshape(-1).astype(np.int64))
        return replace(fitted, thresholds=fit_thresholds(_probabilities(logits_SL, fitted.temperature), targets))

    def prediction(
        self, example: Example, answer: np.ndarray, probabilities: np.ndarray, labels: LabelSet
    ) -> Prediction:
        """The labels answered yes."""
        names = tuple(labels.names[place] for place in np.flatnonzero(answer))
        return Prediction(example.id, labels=names, scores=Scores(labels, probabilities))

    def hits(self, examples: Iterable[Example], predictions: Sequence[Prediction]) -> Hits:
        """Right where a label is both in the gold and given."""
        return metrics.set_hits(map(self.gold, examples), (p.labels or () for p in predictions))

    def score(self, examples: Iterable[Example], predictions: Sequence[Prediction], labels: LabelSet) -> Figures:
        """`accuracy` asks for all labels of a row; `log_loss` and `ece` are over every row's every question."""
        gold = [set(self.gold(example)) for example in examples]
        figures = metrics.multi_label(gold, [p.labels or () for p in predictions])
        if all(len(p.scores or ()) == len(labels) for p in predictions):
            yes, right = _questions(gold, predictions)
            figures["log_loss"] = metrics.log_loss(np.where(right, yes, 1 - yes))
            figures["ece"] = metrics.ece(np.maximum(yes, 1 - yes), right == (yes >= 0.5))  # as `calibrate` has it
        return figures


def _questions(gold: Sequence[set[str]], predictions: Sequence[Prediction]) -> tuple[np.ndarray, np.ndarray]:
    """(probability of yes, is it so) for each row and label; a gold label that is not known had the probability 0."""
    yes: list[float] = []
    right: list[bool] = []
    for wanted, prediction in zip(gold, predictions, strict=True):
        scores = prediction.scores or {}
        for name in (*scores, *sorted(wanted - scores.keys())):
            yes.append(scores.get(name, 0.0))
            right.append(name in wanted)
    return np.array(yes), np.array(right, dtype=bool)


def _probabilities(logits_SL: np.ndarray, temperature: float) -> np.ndarray:
    return np.asarray(expit(logits_SL.astype(np.float64) / temperature)).astype(np.float32)
