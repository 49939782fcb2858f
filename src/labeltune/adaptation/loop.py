"""The loop of an adaptation: a generator of facts, one an optimiser step; it neither prints nor saves.

Nothing random has a state: the order of the rows, the hidden tokens and the adapter's dropout are functions of the
seed, the epoch and the row, so a resumed run goes on with the same bits, and micro-batches change nothing but rounding.

Shapes: N tokens of a micro-batch, S predicted tokens, V entries of the vocabulary.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn

from labeltune.adaptation.corpus import Rows
from labeltune.adaptation.objectives import Masking, Objective
from labeltune.data.batches import micro_batches, pack, sorted_batches
from labeltune.errors import ModelError
from labeltune.keys import Key
from labeltune.model.causal import Causal
from labeltune.model.layout import Layout
from labeltune.model.lora import Adapter
from labeltune.model.updates import Attached
from labeltune.schema import Batch
from labeltune.training.checkpoint import State, Tensors, moments_of, restore_moments
from labeltune.training.optimiser import scale_and_clip, set_lr, warmup_steps
from labeltune.training.order import Order
from labeltune.transfer import sent


@dataclass(frozen=True)
class Pace:
    """How the learning rate goes, and how much is done at once."""

    warmup: float
    decay: float
    clip: float | None
    micro_tokens: int

    def factor(self, step: int, total: int) -> float:
        """Of the peak learning rate in step `step` (from 0) of `total`: up, level, and linearly down to the end."""
        warm = max(1, min(warmup_steps(self.warmup, total), total))
        falling = max(1.0, self.decay * total)
        down = (total - step) / falling if self.decay else 1.0
        return min(1.0, (step + 1) / warm, down)


@dataclass(frozen=True)
class Reader:
    """The model with what decides how it reads text: objective, directions, precision, and an adapter's hooks.

    autocast: the context that a forward pass runs in.
    """

    causal: Causal
    objective: Objective
    directions: tuple[bool, ...]
    mask_share: float
    mask_token: int
    autocast: Callable[[], AbstractContextManager[object]]
    attached: Attached | None = None

    def losses(self, rows: Rows, numbers: Sequence[int], masking: Key, dropout: Key | None) -> tuple[torch.Tensor, int]:
        """The summed cross-entropy of the predicted tokens in some rows (in nats), and how many there are.

        masking: the key of hidden tokens. dropout: the key of the adapter's dropout; None outside training.
        """
        mask = Masking(self.mask_share, self.mask_token, masking)
        encoded = [(number, self.objective.make(rows[number], mask)) for number in numbers]
        batch = pack([encoded], self.causal.backbone.device)
        labels = batch.labels[0]
        if not len(labels):
            return torch.zeros(()), 0
        with self.autocast():
            logits_SV = self.causal.logits(
                batch.input_ids, batch.position_ids, self._layout(batch, dropout), batch.piece_starts
            )
        return F.cross_entropy(logits_SV.float(), labels, reduction="sum"), len(labels)

    def _layout(self, batch: Batch, key: Key | None) -> Layout:
        return Layout(
            lengths=tuple(b - a for a, b in pairwise(batch.cu_seqlens.tolist())),
            cu_seqlens=sent(batch.cu_seqlens.to(torch.int32), self.causal.backbone.device),
            slice_tokens=batch.slice_tokens,
            slice_documents=batch.slice_documents,
            unmasked=tuple((both,) for both in self.directions),
            token_row=batch.token_row,
            token_index=batch.token_index,
            keys=(key,),
            owner=self.attached,
        )


@dataclass(frozen=True)
class Score:
    """What the held-out text says. loss: nats a predicted token. bits_per_byte: where every token is predicted."""

    loss: float
    tokens: int
    bits_per_byte: float | None
    seconds: float

    def as_json(self) -> dict[str, float | int | None]:
        """The figures of `metrics.json`."""
        figures: dict[str, float | int | None] = {"loss": self.loss, "tokens": self.tokens}
        return figures | ({} if self.bits_per_byte is None else {"bits_per_byte": self.bits_per_byte})


@torch.no_grad()
def score(reader: Reader, rows: Rows, micro_tokens: int, key: Key, limit: int | None = None) -> Score:
    """Read the held-out rows, all of them or the first `limit` tokens; the hidden tokens are always the same ones."""
    began = time.monotonic()
    chosen = len(rows) if limit is None else max(1, int((rows.lengths.cumsum() <= limit).sum()))
    loss, count = 0.0, 0
    for numbers in sorted_batches(rows.lengths[:chosen], micro_tokens):
        part, tokens = reader.losses(rows, numbers, key, None)
        loss, count = loss + float(part), count + tokens
    whole = reader.objective.whole
    bytes_read = rows.facts.bytes * rows.new_tokens(chosen) / max(1, rows.new_tokens(len(rows)))
    bits = loss / math.log(2) / bytes_read if whole and bytes_read else None
    return Score(loss / max(1, count), count, bits, time.monotonic() - began)


@dataclass
class Work:
    """A training under way. parameters: what is trained, by name. step: optimiser steps done."""

    reader: Reader
    parameters: Mapping[str, nn.Parameter]
    optimisers: Sequence[torch.optim.Optimizer]
    rows: Rows
    order: Order
    pace: Pace
    key: Key
    step: int = 0

    def state(self) -> State:
        """All that is needed to go on elsewhere."""
        now = {name: parameter.detach() for name, parameter in self.parameters.items()}
        parts = enumerate(map(moments_of, self.optimisers))
        moments = {f"{k}.{name}": tensor for k, part in parts for name, tensor in part.items()}
        return State(now, {}, moments, {"step": self.step})

    @torch.no_grad()
    def restore(self, state: State) -> None:
        """Go where `state` was."""
        for name, parameter in self.parameters.items():
            parameter.copy_(state.now[name])
        for k, optimiser in enumerate(self.optimisers):
            mine: Tensors = {n.split(".", 1)[1]: t for n, t in state.moments.items() if n.startswith(f"{k}.")}
            restore_moments(optimiser, mine)
        self.step = int(state.facts["step"])


@dataclass(frozen=True)
class Step:
    """What one optimiser step did. step: from 1. loss: nats a predicted token. tokens: read, special ones included."""

    step: int
    total: int
    epoch: int
    loss: float
    lr: float
    grad_norm: float
    rows: int
    tokens: int
    predicted: int


def steps(work: Work) -> Iterator[Step]:
    """Train to the end of the order, yielding after each optimiser step.

    Raises:
        ModelError: loss or gradient are no longer finite; the weights are those before the step.
    """
    while work.step < work.order.total:
        epoch, rows, _ = work.order.at(work.step)
        loss, predicted = _backward(work, epoch, rows)
        factor = work.pace.factor(work.step, work.order.total)
        norm = scale_and_clip(work.parameters.values(), predicted or 1, work.pace.clip)
        for name, value in (("loss", loss), ("gradient", norm)):
            if not math.isfinite(value):
                raise diverged(name, work.step + 1)
        for optimiser in work.optimisers:
            set_lr(optimiser, factor)
            optimiser.step()
        work.step += 1
        yield Step(
            step=work.step,
            total=work.order.total,
            epoch=epoch + 1,
            loss=loss / max(1, predicted),
            lr=max(group["lr"] for optimiser in work.optimisers for group in optimiser.param_groups),
            grad_norm=norm,
            rows=len(rows),
            tokens=int(work.rows.lengths[rows].sum()),
            predicted=predicted,
        )


def diverged(what: str, step: int) -> ModelError:
    """The error of a training that has run away."""
    hint = "train into a new folder with a lower adapt.lr"
    return ModelError(f"the {what} is no longer finite in step {step:,}", at="adapt.lr", hint=hint)


def _backward(work: Work, epoch: int, rows: Sequence[int]) -> tuple[float, int]:
    """Sum loss and gradients of a step over its micro-batches, the tokens of the step counting alike."""
    for parameter in work.parameters.values():
        parameter.grad = None
    loss, predicted = 0.0, 0
    masking, dropout = work.key.fold("mask", epoch), work.key.fold("epoch", epoch)
    for numbers in micro_batches(rows, work.rows.lengths, micro_tokens=work.pace.micro_tokens):
        part, count = work.reader.losses(work.rows, numbers, masking, dropout)
        if count:
            part.backward()
        loss, predicted = loss + float(part.detach()), predicted + count
    return loss, predicted


def trained(causal: Causal, adapter: Adapter | None) -> dict[str, nn.Parameter]:
    """What is trained, by name: the adapter, or every weight of the model once."""
    return dict((adapter or causal.model).named_parameters())
