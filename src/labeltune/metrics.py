"""How good answers are, against the full gold: one count of hits serves labels, label sets and spans alike.

Three rules hold everywhere. A gold label that the model does not know counts as an error, and is never dropped. An
averaged figure runs over the labels that occur in the gold or among the answers (scikit-learn's and seqeval's rule), so
a known label that does not occur costs nothing. What would be divided by zero is 0.

Answers that abstain (None) are errors too: the accuracy among the answered rows is `accuracy / coverage`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


class Metric(NamedTuple):
    """One row of the table of metrics. higher: whether more is better; about: what it is, for the reference."""

    higher: bool
    about: str


METRICS: dict[str, Metric] = {
    "accuracy": Metric(True, "share of rows answered right; with several labels, all of a row's"),
    "macro_precision": Metric(True, "mean over labels of the share of a label's answers that are right"),
    "macro_recall": Metric(True, "mean over labels of the share of a label's gold that is found"),
    "macro_f1": Metric(True, "mean over labels of each one's F1, 2PR / (P + R)"),
    "micro_f1": Metric(True, "F1 of all labels' hits counted together"),
    "weighted_f1": Metric(True, "mean over labels of each one's F1, weighted by how often it is in the gold"),
    "log_loss": Metric(False, "mean of -log(probability of the gold label); with several labels, over each question"),
    "mcc": Metric(True, "Matthews' correlation of gold and answers, for any number of labels"),
    "span_precision": Metric(True, "share of answered spans with the start, end and label of a gold span"),
    "span_recall": Metric(True, "share of gold spans that are answered with their start, end and label"),
    "span_f1": Metric(True, "F1 of all spans, strict: start, end and label"),
    "macro_span_f1": Metric(True, "mean over labels of each one's span F1"),
    "mse": Metric(False, "mean squared error, in the square of the labels' unit"),
    "spearman": Metric(True, "correlation of the ranks of gold and answers"),
    "ece": Metric(False, "expected calibration error: |share right - mean score| in 15 bins of the score, by size"),
    "coverage": Metric(True, "share of rows that are answered at all (all, without a least score)"),
    "bits_per_byte": Metric(False, "-log2 of the probability of a text, over its bytes in UTF-8"),
}

ECE_BINS = 15
_TINY = float(np.finfo(np.float32).eps)  # the least probability that log_loss believes, scikit-learn's for float32

Figures = dict[str, float]


class LabelFigures(NamedTuple):
    """One line of a per-label table. support: how often the label is in the gold; predicted: among the answers."""

    label: str
    precision: float
    recall: float
    f1: float
    support: int
    predicted: int


# Hits


@dataclass
class Hits:
    """Per label: how often it is right, in the gold, and answered."""

    right: Counter[str]
    gold: Counter[str]
    answered: Counter[str]

    @classmethod
    def empty(cls) -> Hits:
        """Nothing counted yet."""
        return cls(Counter(), Counter(), Counter())

    def add(self, gold: Iterable[str], answered: Iterable[str], right: Iterable[str]) -> None:
        """Count the labels of one row."""
        self.gold.update(gold)
        self.answered.update(answered)
        self.right.update(right)

    def per_label(self) -> tuple[LabelFigures, ...]:
        """The figures of every label that occurs, sorted by name."""
        return tuple(
            LabelFigures(
                name,
                *_f1(self.right[name], self.gold[name], self.answered[name]),
                self.gold[name],
                self.answered[name],
            )
            for name in sorted(self.gold.keys() | self.answered.keys())
        )

    def micro(self) -> tuple[float, float, float]:
        """Precision, recall and F1 over all labels together."""
        return _f1(self.right.total(), self.gold.total(), self.answered.total())


def _f1(right: int, gold: int, answered: int) -> tuple[float, float, float]:
    precision, recall = _share(right, answered), _share(right, gold)
    return precision, recall, _share(2 * right, gold + answered)


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _averages(hits: Hits) -> Figures:
    table = hits.per_label()
    return {
        "macro_precision": _mean([row.precision for row in table]),
        "macro_recall": _mean([row.recall for row in table]),
        "macro_f1": _mean([row.f1 for row in table]),
        "micro_f1": hits.micro()[2],
        "weighted_f1": _share(sum(row.f1 * row.support for row in table), hits.gold.total()),
    }


def _mean(values: Sequence[float]) -> float:
    return _share(sum(values), len(values))


# One label a row


def label_hits(gold: Iterable[str], answers: Iterable[str | None]) -> Hits:
    """Hits where a row has one label; an abstention is no answer."""
    hits = Hits.empty()
    for wanted, answer in zip(gold, answers, strict=True):
        given = () if answer is None else (answer,)
        hits.add((wanted,), given, given if wanted == answer else ())
    return hits


def single_label(gold: Sequence[str], answers: Sequence[str | None]) -> Figures:
    """`accuracy`, averaged precision, recall and F1, `mcc` and `coverage`."""
    hits = label_hits(gold, answers)
    return {
        "accuracy": _share(hits.right.total(), len(gold)),
        **_averages(hits),
        "mcc": mcc(gold, answers),
        "coverage": _share(hits.answered.total(), len(gold)),
    }


def mcc(gold: Sequence[str], answers: Sequence[str | None]) -> float:
    """Matthews' correlation for any number of labels (Gorodkin 2004); abstentions are a label of their own."""
    wanted, given = Counter[str | None](gold), Counter(answers)
    right, total = sum(a == b for a, b in zip(gold, answers, strict=True)), len(gold)
    covariance = right * total - sum(wanted[name] * given[name] for name in wanted)
    spread = [total**2 - sum(count**2 for count in counts.values()) for counts in (wanted, given)]
    return _share(covariance, float(spread[0] * spread[1]) ** 0.5)


class Confused(NamedTuple):
    """How many rows of the label `gold` were answered with another one."""

    gold: str
    answer: str
    rows: int


def confused(gold: Sequence[str], answers: Sequence[str | None]) -> list[Confused]:
    """The wrong answers by both labels, the most frequent first; an abstention is no answer."""
    counts = Counter((g, a) for g, a in zip(gold, answers, strict=True) if a is not None and a != g)
    return [Confused(*pair, count) for pair, count in sorted(counts.items(), key=lambda one: (-one[1], one[0]))]


# A set of labels a row


def set_hits(gold: Iterable[Collection[str]], answers: Iterable[Collection[str]]) -> Hits:
    """Hits where a row has any number of labels."""
    hits = Hits.empty()
    for wanted, answer in zip(gold, answers, strict=True):
        hits.add(set(wanted), set(answer), set(wanted) & set(answer))
    return hits


def multi_label(gold: Sequence[Collection[str]], answers: Sequence[Collection[str]]) -> Figures:
    """`accuracy` (all labels of a row right) and averaged precision, recall and F1."""
    whole = sum(set(wanted) == set(answer) for wanted, answer in zip(gold, answers, strict=True))
    return {"accuracy": _share(whole, len(gold)), **_averages(set_hits(gold, answers))}


# Spans

SpanKey = tuple[int, int, str]


def span_hits(gold: Iterable[Collection[SpanKey]], answers: Iterable[Collection[SpanKey]]) -> Hits:
    """Strict hits: a span is right if start, end and label are those of a gold span of the same row."""
    hits = Hits.empty()
    for wanted, answer in zip(gold, answers, strict=True):
        right = set(wanted) & set(answer)
        hits.add(*([label for _, _, label in set(group)] for group in (wanted, answer, right)))
    return hits


def span_scores(hits: Hits) -> Figures:
    """`span_precision`, `span_recall`, `span_f1` over all spans, and `macro_span_f1` over labels."""
    precision, recall, f1 = hits.micro()
    macro = _mean([row.f1 for row in hits.per_label()])
    return {"span_precision": precision, "span_recall": recall, "span_f1": f1, "macro_span_f1": macro}


# Numbers


def numbers(gold: np.ndarray, answers: np.ndarray) -> Figures:
    """`mse`, and `spearman` (0 where all values are equal)."""
    if not len(gold):
        return {"mse": 0.0, "spearman": 0.0}
    gold, answers = gold.astype(np.float64), answers.astype(np.float64)
    return {"mse": float(np.mean((gold - answers) ** 2)), "spearman": _correlation(_ranks(gold), _ranks(answers))}


def _ranks(values: np.ndarray) -> np.ndarray:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - (counts - 1) / 2)[place])


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a - a.mean(), b - b.mean()
    return _share(float(a @ b), float(np.sqrt((a @ a) * (b @ b))))


# Probabilities


def log_loss(of_gold: np.ndarray) -> float:
    """Mean of -log of the probabilities of the gold labels (0 for a label that the model does not know)."""
    if not len(of_gold):
        return 0.0
    return float(-np.log(np.clip(of_gold.astype(np.float64), _TINY, 1 - _TINY)).mean())


def ece(confidence: np.ndarray, right: np.ndarray) -> float:
    """Expected calibration error: |share right - mean confidence| over 15 equal bins of (0, 1], weighted by size."""
    bins = np.clip(np.ceil(confidence * ECE_BINS).astype(np.int64) - 1, 0, ECE_BINS - 1)
    gap = np.bincount(bins, weights=right.astype(np.float64) - confidence, minlength=ECE_BINS)
    return _share(float(np.abs(gap).sum()), len(confidence))
