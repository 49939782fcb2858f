"""The training loop: a generator of facts over a group of trials that share one backbone.

`train(group)` neither prints nor saves; the progress bar, the log, the checkpointer and the tests are its consumers.
One turn of the loop is one optimiser step of every active trial: their micro-batches are packed side by side, slice k
belonging to trial k, and one backward pass serves all. A trial owns everything that decides its weights (order,
dropout, optimiser, schedule, early stop), so neighbours change nothing but rounding.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import torch

from labeltune.data.batches import pack
from labeltune.keys import Key
from labeltune.model.backbone import Backbone
from labeltune.model.member import LabelModel
from labeltune.schema import Batch
from labeltune.shortage import fits
from labeltune.training.distributed import World
from labeltune.training.optimiser import lr_factor, scale_and_clip, set_lr
from labeltune.training.trial import Trial

OUT_OF_MEMORY = "out of memory"


@dataclass(frozen=True)
class Evaluation:
    """Dev metrics after a step; `best` says that they chose the weights so far."""

    metrics: Mapping[str, float]
    best: bool


@dataclass(frozen=True)
class Step:
    """What one optimiser step of one trial did. `step` counts from 1; `lr` is the adapter's; `last` ends the trial.

    padded_tokens: what the same rows would be if each were as long as the longest of the step.
    seconds: of the update, and the trial's share (by tokens) of the pass that its neighbours were in; no evaluation.
    micro_tokens: what a forward pass holds from now on, where memory ran out in this step; else None.
    turn_ends: all trials of the group have done as many steps as this one asked for.
    """

    trial: Trial
    step: int
    total: int
    epoch: int
    loss: float
    lr: float
    grad_norm: float
    rows: int
    tokens: int
    padded_tokens: int
    evaluation: Evaluation | None
    seconds: float
    micro_tokens: int | None
    last: bool
    turn_ends: bool


class Group:
    """Trials that share one backbone and train side by side.

    apart: memory has run out for all of them in one pass, so each has passes of its own.
    world: the processes that train the group together; each has the same trials.
    """

    def __init__(self, backbone: Backbone, *, apart: bool = False, world: World | None = None) -> None:
        self.backbone, self.apart, self.world = backbone, apart, world or World()
        self.trials: list[Trial] = []
        self.model = LabelModel(backbone, [])

    def admit(self, trial: Trial) -> None:
        """Let `trial` train with the others from the next step on."""
        self._seat([*self.trials, trial])

    def retire(self, trial: Trial) -> None:
        """Let `trial` leave."""
        self._seat([t for t in self.trials if t is not trial])

    def _seat(self, trials: list[Trial]) -> None:
        self.model.detach()
        self.trials = trials
        self.model = LabelModel(self.backbone, [t.member for t in trials])


@dataclass
class _Turn:
    """One trial's share of one turn of the loop."""

    trial: Trial
    epoch: int
    rows: list[int]
    epoch_ends: bool
    loss: float = 0.0
    weight: float = 0.0
    tokens: int = 0
    seconds: float = 0.0
    micro_tokens: int | None = None

    def begin(self) -> None:
        """Forget what a pass that failed has summed up."""
        self.loss, self.weight, self.tokens = 0.0, 0.0, 0
        for parameter in self.trial.parameters.values():
            parameter.grad = None


def train(group: Group) -> Iterator[Step]:
    """Train every trial of `group` to its end, yielding a Step per trial and optimiser step.

    Trials may be admitted and retired between steps. A trial whose loss or gradient is no longer finite stops as
    `diverged`, without that step, and keeps its best weights (the last ones where it was never evaluated). One for
    which a single row needs more memory than there is stops as `out of memory` in the same way.
    """
    while group.trials:
        began = time.monotonic()
        turns = [_Turn(trial, *trial.order.at(trial.step)) for trial in group.trials]
        _backward(group, turns)
        _share(turns, time.monotonic() - began)
        for turn in turns:
            step = _update(turn, group.world, turn_ends=turn is turns[-1])
            if step.last:
                turn.trial.finish()
            yield step
            if step.last and turn.trial in group.trials:
                group.retire(turn.trial)


def _share(turns: Sequence[_Turn], seconds: float) -> None:
    """Divide the time of a pass among its trials, by tokens."""
    tokens = sum(turn.tokens for turn in turns) or 1
    for turn in turns:
        turn.seconds = seconds * turn.tokens / tokens


def _backward(group: Group, turns: Sequence[_Turn]) -> None:
    """Each trial's loss and gradients, summed over all processes."""
    _own_share(group, turns)
    for turn in turns:
        failed = turn.trial.status != "running"
        sums = group.world.add([*turn.trial.parameters.values()], [turn.loss, turn.weight, turn.tokens, failed])
        turn.loss, turn.weight, turn.tokens = sums[0], sums[1], int(sums[2])
        if sums[3]:
            turn.trial.status = OUT_OF_MEMORY


def _own_share(group: Group, turns: Sequence[_Turn]) -> None:
    """This process's rows: all trials in one pass; where memory runs out one by one, then in smaller parts.

    The same rows, divided in another way, give the same gradients but for rounding. With a sharded backbone all
    processes must make the same passes, so there an error stays one.
    """
    if group.world.sharded:
        _pass(group, turns, range(len(turns)))
        return
    if not group.apart:
        if _fits(group, turns, range(len(turns))):
            return
        group.apart = len(turns) > 1
    for k, turn in enumerate(turns):
        while not _fits(group, turns, [k]):
            if not turn.trial.halve(group.world.shares(turn.rows, turn.trial.rows.lengths)[group.world.rank]):
                turn.trial.status = OUT_OF_MEMORY
                turn.begin()
                break
            turn.micro_tokens = turn.trial.micro_tokens


def _fits(group: Group, turns: Sequence[_Turn], active: Collection[int]) -> bool:
    """Run the passes of the active turns; False where there is too little memory for them."""
    return fits(lambda: _pass(group, turns, active))


def _pass(group: Group, turns: Sequence[_Turn], active: Collection[int]) -> None:
    """Sum the loss and gradients of the active trials over their micro-batches, packed side by side."""
    keys = [turn.trial.key.fold("epoch", turn.epoch) for turn in turns]
    for k in active:
        turns[k].begin()
    by_process = _passes(group.world, turns, active)
    own = by_process[group.world.rank]
    for rows in own:
        losses = _losses(turns, *_forward(group.model, turns, rows, keys))
        if losses:
            torch.stack(losses).sum().backward()
    if group.world.sharded:
        for _ in range(max(map(len, by_process)) - len(own)):  # the others wait for this one's part of the backbone
            _idle(group.model, turns, keys)


Rows = tuple[Sequence[int], ...]
"""Per trial the rows of one pass."""


def _passes(world: World, turns: Sequence[_Turn], active: Collection[int]) -> list[list[Rows]]:
    """The passes of each process."""
    divided = [world.shares(turn.rows, turn.trial.rows.lengths) for turn in turns]
    found = []
    for rank in range(world.size):
        parts = (
            turn.trial.micro(divided[k][rank]) if k in active and divided[k][rank] else []
            for k, turn in enumerate(turns)
        )
        found.append(list(zip_longest(*parts, fillvalue=())))
    return found


def _forward(
    model: LabelModel, turns: Sequence[_Turn], rows: Rows, keys: Sequence[Key]
) -> tuple[Batch, list[torch.Tensor]]:
    slices = [[(row, turn.trial.rows[row]) for row in chosen] for turn, chosen in zip(turns, rows, strict=True)]
    batch = pack(slices, model.backbone.device)
    return batch, model(batch, keys)


def _idle(model: LabelModel, turns: Sequence[_Turn], keys: Sequence[Key]) -> None:
    """A pass that adds nothing: the first row, times zero."""
    rows: Rows = ([turns[0].rows[0]], *([] for _ in turns[1:]))
    _, logits = _forward(model, turns, rows, keys)
    (logits[0].sum() * 0).backward()


def _losses(turns: Sequence[_Turn], batch: Batch, logits: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    losses = []
    for k, turn in enumerate(turns):
        targets = slice(batch.slice_targets[k], batch.slice_targets[k + 1])
        turn.tokens += batch.slice_tokens[k + 1] - batch.slice_tokens[k]
        if targets.stop == targets.start:
            continue
        loss, weight = turn.trial.loss(logits[k], batch.labels[k], batch.target_document[targets])
        turn.loss += float(loss.detach())
        turn.weight += float(weight)
        losses.append(loss)
    return losses


def _update(turn: _Turn, world: World, *, turn_ends: bool) -> Step:
    """One optimiser step of one trial, and its evaluation where one is due."""
    trial, began = turn.trial, time.monotonic()
    lr, norm, evaluation = 0.0, math.nan, None
    if trial.status == "running":
        lr, norm = _optimise(turn)
        turn.seconds += time.monotonic() - began
    if trial.status == "running":
        trial.step += 1
        if trial.evaluate is not None and trial.evaluation_due(turn.epoch_ends):
            metrics = world.same(trial.evaluate())
            evaluation = Evaluation(metrics, trial.judge(metrics, turn.epoch + 1))
        if trial.step >= trial.order.total and trial.status == "running":
            trial.status = "finished"
    return Step(
        trial=trial,
        step=trial.step,
        total=trial.order.total,
        epoch=turn.epoch + 1,
        loss=turn.loss / turn.weight if turn.weight else math.nan,
        lr=lr,
        grad_norm=norm,
        rows=len(turn.rows),
        tokens=turn.tokens,
        padded_tokens=len(turn.rows) * int(trial.rows.lengths[turn.rows].max()),
        evaluation=evaluation,
        seconds=turn.seconds,
        micro_tokens=turn.micro_tokens,
        last=trial.status != "running",
        turn_ends=turn_ends,
    )


def _optimise(turn: _Turn) -> tuple[float, float]:
    """Learning rate and gradient norm of a step that was taken, or not: the trial has diverged."""
    trial = turn.trial
    if not math.isfinite(turn.loss):
        trial.status = "diverged"
        return 0.0, math.nan
    factor = lr_factor(trial.step, trial.order.total, trial.config)
    set_lr(trial.optimiser, factor)
    norm = scale_and_clip(trial.parameters.values(), turn.weight or 1.0, trial.config.clip or None)
    if not math.isfinite(norm):
        trial.status = "diverged"
        return 0.0, norm
    trial.optimiser.step()
    return factor * trial.config.peak_lr, norm
