"""Spans in a text: one tag a unit, the best legal sequence of them, and back to characters.

A span's gold boundary inside a unit cannot be learnt or found; the span stays in the gold and counts as missed, as do
spans in text that was cut off: units without a target are outside.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import ClassVar, Literal, final

import numpy as np
import torch
from scipy.special import log_softmax

from labeltune import metrics
from labeltune.data.settings import DataConfig
from labeltune.errors import DataError, SettingsError
from labeltune.labels import LabelSet, align, characters_of, spans_of_ids, tag_ids, tag_names
from labeltune.losses import UNLABELLED
from labeltune.metrics import Figures, Hits, SpanKey
from labeltune.model.crf import CRF
from labeltune.model.settings import HeadConfig
from labeltune.schema import Example, Prediction, Span, SpanPrediction
from labeltune.tasks.calibration import Calibration, fit_temperature
from labeltune.tasks.task import Chained, Decisions, LabelOf, Loss, Spans, Task, as_array
from labeltune.viterbi import best_legal


@final
class Tagging(Task):
    """The row `tagging`. Its label set holds span labels; its logits are tags."""

    name: ClassVar[str] = "tagging"
    targets: ClassVar[Literal["document", "units"]] = "units"
    unmask: ClassVar[str] = "all"
    pooling: ClassVar[str] = "first"
    bias: ClassVar[bool] = True
    select: ClassVar[str] = "span_f1"
    metrics: ClassVar[tuple[str, ...]] = ("span_precision", "span_recall", "span_f1", "macro_span_f1", "ece")
    losses: ClassVar[Mapping[str | None, str]] = {None: "cross_entropy", "focal": "focal"}

    def gold(self, example: Example) -> Collection[str]:
        """The labels of the row's spans."""
        return [span.label for span in gold_spans(example)]

    def label_set(self, examples: Iterable[Example], data: DataConfig) -> LabelSet:
        """The training spans' labels; at least one."""
        labels = super().label_set(examples, data)
        if not len(labels):
            raise DataError("no row has a span", at=str(data.train or "train"), hint="check data.spans or data.tags")
        return labels

    def label_of(self, labels: LabelSet) -> LabelOf:
        """int64 (t): tag numbers."""

        def label_of(example: Example, spans: Spans) -> np.ndarray:
            if example.spans is None:
                return np.full(len(spans), UNLABELLED, dtype=np.int64)
            return tag_ids(align(example.spans, spans).unit_spans, len(spans), labels)

        return label_of

    def classes(self, labels: LabelSet) -> tuple[str, ...]:
        """The tags: `O, B-x, I-x, …`."""
        return tag_names(labels)

    def _weighted_by(self, labels: LabelSet) -> dict[str, tuple[int, ...]]:
        """A tag, or a label for both of its tags."""
        both = {name: (2 * place + 1, 2 * place + 2) for place, name in enumerate(labels.names)}
        return super()._weighted_by(labels) | both

    def loss(
        self, settings: HeadConfig, labels: LabelSet, counts: np.ndarray | None, head: Chained | None = None
    ) -> Loss:
        """Cross-entropy of each unit, or with `head.crf` the likelihood of each document's tags."""
        if not settings.crf:
            return self._plain_loss(settings, labels, counts)
        for name in ("loss", "class_weights", "label_smoothing"):
            if getattr(settings, name):
                raise SettingsError("a CRF has a loss of its own", at=f"head.{name}", hint="leave it out, or head.crf")
        if (crf := _crf(head)) is None:
            raise ValueError("head.crf is set, but the head was built without a CRF")
        return crf.loss

    def decide(
        self,
        logits: torch.Tensor | np.ndarray,
        target_document: torch.Tensor | np.ndarray,
        labels: LabelSet,
        calibration: Calibration | None = None,
        head: Chained | None = None,
    ) -> Decisions:
        """The best legal tags of each document, and the probability of each unit's tag by itself."""
        if (crf := _crf(head)) is not None:
            return _decide_by_crf(crf, torch.as_tensor(logits), torch.as_tensor(target_document))
        document_S = as_array(target_document)
        log_p_ST = _log_probabilities(as_array(logits), (calibration or Calibration()).temperature)
        tags_S = best_legal(log_p_ST, document_S)
        probabilities = np.exp(log_p_ST[np.arange(len(tags_S)), tags_S])
        return Decisions(tags_S, probabilities.astype(np.float32), document_S)

    def calibrate(
        self,
        logits: torch.Tensor | np.ndarray,
        targets: np.ndarray,
        labels: LabelSet,
        head: Chained | None = None,
    ) -> Calibration:
        """A temperature over units; none for a CRF, whose probabilities are those of whole sequences."""
        if _crf(head) is not None:
            return Calibration()
        return fit_temperature(lambda t: np.exp(_log_probabilities(as_array(logits), t)), targets)

    def predictions(
        self,
        examples: Sequence[Example],
        target_spans: Sequence[np.ndarray],
        decisions: Decisions,
        labels: LabelSet,
    ) -> list[Prediction]:
        """The spans of each example."""
        bounds = np.searchsorted(decisions.target_document, np.arange(len(examples) + 1))
        found = []
        for example, units, first, last in zip(examples, target_spans, bounds[:-1], bounds[1:], strict=True):
            tags, probabilities = decisions.answers[first:last], decisions.probabilities[first:last]
            found.append(Prediction(example.id, spans=tuple(_spans(example.text, units, tags, probabilities, labels))))
        return found

    def read_part(self, example: Example, target_spans: np.ndarray) -> Example:
        """Only the gold spans that end within the units that were read."""
        end = int(target_spans[-1][1]) if len(target_spans) else 0
        return replace(example, spans=tuple(span for span in gold_spans(example) if span.end <= end))

    def hits(self, examples: Iterable[Example], predictions: Sequence[Prediction]) -> Hits:
        """Strict: the characters and the label of a gold span."""
        return metrics.span_hits(map(_gold_keys, examples), map(_answer_keys, predictions))

    def score(self, examples: Iterable[Example], predictions: Sequence[Prediction], labels: LabelSet) -> Figures:
        """Strict span figures; `ece` of the predicted spans' scores."""
        examples = list(examples)
        figures = metrics.span_scores(self.hits(examples, predictions))
        confidence, right = [], []
        for example, prediction in zip(examples, predictions, strict=True):
            gold = _gold_keys(example)
            for span in prediction.spans or ():
                confidence.append(span.score)
                right.append((span.start, span.end, span.label) in gold)
        figures["ece"] = metrics.ece(np.array(confidence), np.array(right, dtype=bool))
        return figures


def gold_spans(example: Example) -> tuple[Span, ...]:
    """The row's gold spans, without white space at their ends: no unit has any, so no answer can.

    Raises:
        DataError: with the row's address, where it has none to give.
    """
    if example.spans is None:
        raise DataError("no spans or tags", at=example.id, hint="give every row its spans; the list may be empty")
    return tuple(span.within(example.text) for span in example.spans)


def _gold_keys(example: Example) -> set[SpanKey]:
    return {(span.start, span.end, span.label) for span in gold_spans(example)}


def _answer_keys(prediction: Prediction) -> set[SpanKey]:
    return {(span.start, span.end, span.label) for span in prediction.spans or ()}


def _crf(head: Chained | None) -> CRF | None:
    return head.crf if head is not None and isinstance(head.crf, CRF) else None


def _decide_by_crf(crf: CRF, logits_ST: torch.Tensor, target_document_S: torch.Tensor) -> Decisions:
    """Where the CRF lives: its tags, and their marginal probabilities."""
    logits_ST, document_S = logits_ST.to(crf.start.device), target_document_S.to(crf.start.device)
    tags_S = crf.decide(logits_ST, document_S)
    probabilities_S = crf.marginals(logits_ST, document_S).gather(1, tags_S[:, None]).squeeze(1)
    return Decisions(as_array(tags_S), as_array(probabilities_S), as_array(target_document_S))


def _log_probabilities(logits_ST: np.ndarray, temperature: float) -> np.ndarray:
    return np.asarray(log_softmax(logits_ST.astype(np.float64) / temperature, axis=1))


def _spans(
    text: str, units: np.ndarray, tags: np.ndarray, probabilities: np.ndarray, labels: LabelSet
) -> list[SpanPrediction]:
    """From the first unit's first character to the last unit's last; the score is the geometric mean of the units'."""
    found = spans_of_ids(tags, labels)
    log_p = np.log(np.maximum(probabilities, 1e-30, dtype=np.float64))
    return [
        SpanPrediction(
            span.start, span.end, span.label, float(np.exp(log_p[first:last].mean())), text[span.start : span.end]
        )
        for (first, last, _), span in zip(found, characters_of(found, units.tolist()), strict=True)
    ]
