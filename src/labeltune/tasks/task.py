"""A task: how labels become targets, logits a loss and answers, and answers figures.

A row of `TASKS` is one stateless object of a final subclass. The label set, the calibration and the head's CRF are
handed in, so one row serves every run.

Shapes: S targets, L logits of a target.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import numpy as np
import torch
from torch import nn

from labeltune.data.settings import DataConfig
from labeltune.errors import DataError, SettingsError, nearest
from labeltune.labels import LabelSet
from labeltune.losses import LOSSES, Sums
from labeltune.metrics import METRICS, Confused, Figures, Hits
from labeltune.model.settings import HeadConfig
from labeltune.schema import Example, Prediction
from labeltune.tasks.calibration import Calibration

Loss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], Sums]
"""(logits (S, L), labels (S, …), target_document (S)) -> (sum of weighted losses, sum of weights)."""
Spans = Sequence[tuple[int, int]]
LabelOf = Callable[[Example, Spans], np.ndarray]


class Chained(Protocol):
    """A head, as far as a task looks at it."""

    @property
    def crf(self) -> nn.Module | None:
        """The CRF over the head's logits, where there is one."""


@dataclass(frozen=True, slots=True)
class Decisions:
    """What is kept of a batch: answers and probabilities, no logits. Targets of whole documents, documents ascending.

    answers: int64 (S) label or tag numbers; bool (S, L) for multilabel; float32 (S) for regression.
    probabilities: float32 (S, labels) for documents, (S) of the decided tag for units, (S, 0) for regression.
    target_document: int64 (S).
    """

    answers: np.ndarray
    probabilities: np.ndarray
    target_document: np.ndarray


class Scores(Mapping[str, float]):
    """Every label's probability, by name, over one row of an array: a dictionary that costs no dictionary."""

    __slots__ = ("_labels", "_row")

    def __init__(self, labels: LabelSet, row: np.ndarray) -> None:
        self._labels, self._row = labels, row

    def __getitem__(self, name: str) -> float:
        place = self._labels.find(name)
        if place < 0:
            raise KeyError(name)
        return float(self._row[place])

    def __iter__(self) -> Iterator[str]:
        return iter(self._labels.names)

    def __len__(self) -> int:
        return len(self._labels)

    def __repr__(self) -> str:
        return repr(dict(self))


class Task(ABC):
    """The base of the rows.

    targets: what carries a label. unmask, pooling, bias: the defaults of `model.unmask`, `model.pooling`, `head.bias`.
    shared: the head has one weight vector for all its logits and one bias for each (CORAL).
    select: the dev metric that chooses the weights; metrics: all that `score` gives.
    losses: what `head.loss` may say -> its name in LOSSES; None is the task's own.
    """

    name: ClassVar[str]
    targets: ClassVar[Literal["document", "units"]]
    unmask: ClassVar[str] = "none"
    pooling: ClassVar[str] = "last"
    bias: ClassVar[bool] = False
    shared: ClassVar[bool] = False
    select: ClassVar[str]
    metrics: ClassVar[tuple[str, ...]]
    losses: ClassVar[Mapping[str | None, str]]

    # Labels -> targets

    @abstractmethod
    def gold(self, example: Example) -> Collection[str]:
        """The label names in a row's gold; a DataError with its address where it has no gold of this kind."""

    def label_set(self, examples: Iterable[Example], data: DataConfig) -> LabelSet:
        """The training rows' labels, sorted, or in the order of `data.label_order`, which must hold them all."""
        seen: dict[str, str] = {}  # name -> address of its first row
        for example in examples:
            for name in self.gold(example):
                seen.setdefault(name, example.id)
        if data.label_order is None:
            return LabelSet.of(seen)
        for name, address in seen.items():
            if name not in data.label_order:
                hint = nearest(name, data.label_order)
                raise DataError(f"label {name!r} is not in data.label_order", at=address, hint=hint)
        if len(set(data.label_order)) < len(data.label_order):
            raise SettingsError("a label occurs twice", at="data.label_order")
        return LabelSet(data.label_order)

    def unseen(self, examples: Iterable[Example], labels: LabelSet) -> tuple[str, ...]:
        """Gold labels that the model does not know, sorted: each of their rows or spans is an error in the score."""
        return tuple(sorted({name for e in examples for name in self.gold(e) if labels.find(name) < 0}))

    @abstractmethod
    def label_of(self, labels: LabelSet) -> LabelOf:
        """(example, the targets' characters) -> int64 (t), float32 (t) or float32 (t, L); -1 or NaN where unknown."""

    def width(self, labels: LabelSet) -> int:
        """How many logits the head gives a target."""
        return len(self.classes(labels))

    def classes(self, labels: LabelSet) -> tuple[str, ...]:
        """The names of what targets are counted and weighted by: labels, or tags."""
        return labels.names

    def in_units(self, settings: HeadConfig, examples: Iterable[Example]) -> HeadConfig:
        """The head's settings with the unit of its numbers settled on the training rows.

        Raises SettingsError where a unit is given and the head's numbers are logits.
        """
        for name in ("mean", "std"):
            if getattr(settings, name) is not None:
                raise SettingsError(f"{self.name} learns no numbers", at=f"head.{name}", hint="leave it out")
        return settings

    # Logits -> loss

    @abstractmethod
    def loss(
        self, settings: HeadConfig, labels: LabelSet, counts: np.ndarray | None, head: Chained | None = None
    ) -> Loss:
        """The loss that the settings ask for. counts: how often each of `classes` is a training target.

        Raises SettingsError for what this task's loss cannot do.
        """

    def _plain_loss(self, settings: HeadConfig, labels: LabelSet, counts: np.ndarray | None) -> Loss:
        if settings.loss not in self.losses:
            raise SettingsError(f"{settings.loss!r} is no loss of {self.name}", at="head.loss", hint="leave it out")
        function = LOSSES[self.losses[settings.loss]]
        takes = inspect.signature(function).parameters
        for name in ("class_weights", "label_smoothing", "focal_gamma"):
            if getattr(settings, name) != getattr(HeadConfig(), name) and name not in takes:
                raise SettingsError(
                    f"the loss {function.__name__!r} takes none", at=f"head.{name}", hint="leave it out"
                )
        options: dict[str, object] = {
            name: getattr(settings, name) for name in ("label_smoothing", "focal_gamma") if name in takes
        }
        weights = torch.from_numpy(self.class_weights(settings.class_weights, labels, counts))
        weighted = settings.class_weights is not None

        def loss(logits_SL: torch.Tensor, targets_S: torch.Tensor, _: torch.Tensor) -> Sums:
            extra = {"class_weights": weights.to(logits_SL.device)} if weighted else {}
            return function(logits_SL, targets_S, **options, **extra)

        return loss

    def class_weights(
        self, wanted: Literal["balanced"] | Mapping[str, float] | None, labels: LabelSet, counts: np.ndarray | None
    ) -> np.ndarray:
        """float32, one weight for each of `classes`.

        `balanced` is total / (classes x count), scikit-learn's, so that each class weighs the same in sum; a class that
        does not occur gets 0. In a table, what is not named weighs 1.
        """
        classes = self.classes(labels)
        if wanted is None:
            return np.ones(len(classes), dtype=np.float32)
        if isinstance(wanted, str):
            return _balanced(classes, counts)
        weights = np.ones(len(classes), dtype=np.float32)
        for name, weight in wanted.items():
            places = self._weighted_by(labels).get(name)
            if places is None:
                raise SettingsError(f"no label {name!r}", at="head.class_weights", hint=nearest(name, classes))
            if not 0 <= weight < float("inf"):
                raise SettingsError(f"{weight} is no weight", at=f"head.class_weights.{name}", hint="use 0 or more")
            weights[list(places)] = weight
        if not weights.any():
            raise SettingsError("all weights are 0", at="head.class_weights", hint="nothing would be learned")
        return weights

    def _weighted_by(self, labels: LabelSet) -> dict[str, tuple[int, ...]]:
        """The names that a table of class weights may use, and the classes that each stands for."""
        return {name: (place,) for place, name in enumerate(self.classes(labels))}

    # Logits -> answers

    @abstractmethod
    def decide(
        self,
        logits: torch.Tensor | np.ndarray,
        target_document: torch.Tensor | np.ndarray,
        labels: LabelSet,
        calibration: Calibration | None = None,
        head: Chained | None = None,
    ) -> Decisions:
        """Answers from the logits (S, L) of whole documents."""

    @abstractmethod
    def calibrate(
        self,
        logits: torch.Tensor | np.ndarray,
        targets: np.ndarray,
        labels: LabelSet,
        head: Chained | None = None,
    ) -> Calibration:
        """Fit what `decide` uses, on dev: logits (S, L) and what `label_of` gave for the same targets."""

    @abstractmethod
    def predictions(
        self,
        examples: Sequence[Example],
        target_spans: Sequence[np.ndarray],
        decisions: Decisions,
        labels: LabelSet,
    ) -> list[Prediction]:
        """One prediction with every score for each example; the examples are documents 0, 1, … of the decisions.

        target_spans: per example int (t, 2), the characters of its targets.
        """

    # Answers -> figures

    @abstractmethod
    def read_part(self, example: Example, target_spans: np.ndarray) -> Example:
        """The row with no more gold than the model read, for `eval.truncate_gold`."""

    @abstractmethod
    def score(self, examples: Iterable[Example], predictions: Sequence[Prediction], labels: LabelSet) -> Figures:
        """`metrics` on the full gold. Rows in the same order; `log_loss` needs every score."""

    @abstractmethod
    def hits(self, examples: Iterable[Example], predictions: Sequence[Prediction]) -> Hits:
        """The counts behind a per-label table; empty for numbers."""

    def confused(self, examples: Iterable[Example], predictions: Sequence[Prediction]) -> list[Confused]:
        """Which label was taken for which; empty where an answer is not one label."""
        return []

    def error(self, example: Example, prediction: Prediction) -> float:
        """How wrong an answer is: 0 where it is right, 1 where a label or a span is missing or one too many."""
        hits = self.hits([example], [prediction])
        return float(not hits.gold == hits.answered == hits.right)

    def higher_is_better(self, metric: str) -> bool:
        """The direction of a metric of this task; a SettingsError for any other."""
        if metric not in self.metrics:
            raise SettingsError(
                f"{self.name} has no metric {metric!r}", at="train.select", hint=nearest(metric, self.metrics)
            )
        return METRICS[metric].higher


def _balanced(classes: Sequence[str], counts: np.ndarray | None) -> np.ndarray:
    if counts is None or len(counts) != len(classes):
        raise ValueError(f"{len(classes)} classes need as many counts")
    counts = np.asarray(counts, dtype=np.float64)
    return np.where(counts > 0, counts.sum() / (len(classes) * np.maximum(counts, 1)), 0).astype(np.float32)


def as_array(values: torch.Tensor | np.ndarray) -> np.ndarray:
    """A detached copy on the CPU, or the array itself."""
    if not isinstance(values, torch.Tensor):
        return values
    values = values.detach().cpu()
    return np.asarray((values.float() if values.is_floating_point() else values).numpy())


def one_name(example: Example, task: str) -> str:
    """The single label of a row, or a DataError with its address."""
    if example.label is None:
        raise DataError("no label", at=example.id, hint="give every row a label, or drop it")
    if isinstance(example.label, tuple):
        hint = "set task = 'multilabel'"
        raise DataError(f"{len(example.label)} labels where {task} takes one", at=example.id, hint=hint)
    return str(example.label)
