"""A run as an export reads it: what it answers on its dev rows in fp32, then its adapter merged into the weights.

The answers are taken before the merge, by the run's own adapter; what an export is held against is never the export's
own arithmetic. A fitted temperature is folded into the head: logits here are divided by it, and answers need none.

Shapes: S targets, L logits, D features.
"""

from __future__ import annotations

import copy
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from labeltune.config import Config
from labeltune.errors import LabeltuneError
from labeltune.model.heads import Head, StockHead, Unit
from labeltune.model.member import Member, merge
from labeltune.predict import Predictor, load
from labeltune.recorded import dev_rows
from labeltune.run import Run
from labeltune.schema import Encoded, Example, Prediction
from labeltune.tasks import Calibration, Task

CHECKED = {"train.device": "cpu", "model.dtype": "fp32"}


class NotExpressible(LabeltuneError):
    """A runtime has no words for what the run does."""


@dataclass(frozen=True)
class Answers:
    """What something says of the dev rows: logits (S, L) of all targets in order, and the answer of each row."""

    logits: np.ndarray
    answers: tuple[Hashable, ...]


@dataclass(frozen=True)
class Tuned:
    """A run with its dev rows and what it says of them.

    facts: what `splits.json` says of the dev rows. expected: in fp32. own: in the dtype that the run was trained in,
    where that is another.
    """

    run: Run
    predictor: Predictor
    examples: tuple[Example, ...]
    rows: tuple[Encoded, ...]
    facts: dict[str, Any]
    expected: Answers
    own: Answers | None

    @property
    def config(self) -> Config:
        """Every choice settled."""
        return self.predictor.assembly.config

    @property
    def task(self) -> Task:
        """The row of TASKS."""
        return self.predictor.assembly.task

    @property
    def member(self) -> Member:
        """With its adapter."""
        return self.predictor.assembly.member

    @property
    def calibration(self) -> Calibration:
        """What is left of it once the temperature is in the head."""
        return replace(self.predictor.labeller.calibration, temperature=1.0)

    @property
    def units(self) -> bool:
        """Whether labels sit on words."""
        return self.task.targets == "units"

    def decide(self, logits_SL: np.ndarray) -> tuple[Hashable, ...]:
        """The answers that the run would give with these logits of its dev targets."""
        document_S = np.repeat(np.arange(len(self.rows)), [len(row.target_span) for row in self.rows])
        decisions = self.task.decide(logits_SL, document_S, self.run.labels, self.calibration, self.member.head)
        spans = [row.target_span for row in self.rows]
        return keys(self.task.predictions(self.examples, spans, decisions, self.run.labels))

    def head(self) -> nn.Module:
        """A copy of the head as layers alone, unit and temperature in the last of them."""
        return _folded(self.member.head, self.predictor.labeller.calibration.temperature)

    @cached_property
    def merged(self) -> dict[str, Tensor]:
        """The body's weights with the adapter in them, by the stock names. The predictor must not run afterwards."""
        self.predictor.labeller.model.detach()
        backbone = self.predictor.assembly.backbone
        merge(backbone, self.member)
        return {name: tensor.detach() for name, tensor in backbone.model.state_dict().items()}


def read(run: Run, data: object = None) -> Tuned:
    """Load the run, find its dev rows and let it answer them."""
    examples, facts = dev_rows(run, data)
    predictor = load(run.folder, settings=CHECKED)
    rows = list(predictor.assembly.encoder.encode_many(examples))
    own = None
    if run.config.model.dtype != "fp32" and run.config.model.quantization == "none":
        own = answers_of(load(run.folder, settings=CHECKED | {"model.dtype": run.config.model.dtype}), examples, rows)
    expected = answers_of(predictor, examples, rows)
    return Tuned(run, predictor, tuple(examples), tuple(rows), facts, expected, own)


def answers_of(predictor: Predictor, examples: Sequence[Example], rows: Sequence[Encoded]) -> Answers:
    """What a loaded run says."""
    logits: dict[int, np.ndarray] = {}

    def hear(numbers: list[int], logits_SL: np.ndarray, document_S: np.ndarray) -> None:
        logits.update((number, logits_SL[document_S == place]) for place, number in enumerate(numbers))

    said = predictor.labeller.predict(examples, rows, hear=hear)
    joined = np.concatenate([logits[number] for number in range(len(examples))])
    return Answers(joined / predictor.labeller.calibration.temperature, keys(said))


def keys(predictions: Iterable[Prediction]) -> tuple[Hashable, ...]:
    """What must be equal of each: the label, the set of labels, or the spans; a number has nothing but its logit."""
    return tuple(_key(one) for one in predictions)


def _key(one: Prediction) -> Hashable:
    if one.spans is not None:
        return tuple((span.start, span.end, span.label) for span in one.spans)
    return one.label if one.labels is None else one.labels


def _folded(head: Head | StockHead, temperature: float) -> nn.Module:
    """A head whose last layer gives logits in the user's unit, divided by the temperature."""
    plain = _Plain(head)
    last = [layer for layer in plain.modules() if isinstance(layer, nn.Linear)][-1]
    head.unit.fold(last)
    Unit(std=1 / temperature).fold(last)
    return plain


class _Plain(nn.Module):
    """A head as its layers alone, for a graph: vectors (…, D) to logits (…, L)."""

    def __init__(self, head: Head | StockHead) -> None:
        super().__init__()
        if isinstance(head, StockHead):
            self.stages, self.texts = copy.deepcopy(head.stages), True
        else:
            self.stages, self.texts = nn.ModuleList([_linear(head)]), False

    def forward(self, vectors: Tensor) -> Tensor:
        values = vectors.unsqueeze(-2) if self.texts else vectors
        for stage in self.stages:
            values = stage(values)
        return values.squeeze(-2) if self.texts and values.ndim > vectors.ndim else values


def _linear(head: Head) -> nn.Linear:
    layer = nn.Linear(head.weight.shape[1], head.labels, bias=head.bias is not None)
    with torch.no_grad():
        layer.weight.copy_(head.weight.expand(head.labels, -1))
        if head.bias is not None:
            layer.bias.copy_(head.bias)
    return layer
