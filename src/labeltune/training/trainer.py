"""The training loop: a generator of facts over a group of trials that share one backbone.

`train(group)` neither prints nor saves; the progress bar, the log, the checkpointer and the tests are its consumers.
One turn of the loop is one optimiser step of every active trial: their micro-batches are packed side by side, slice k
belonging to trial k, and one backward pass serves all. A trial owns everything that decides its weights (order,
dropout, optimiser, schedule, early stop), so neighbours change nothing but rounding.
"""

from __future__ import annotations

import math
import time
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import zip_longest

import numpy as np
import torch
from torch import nn

from labeltune.data.batches import micro_batches, pack, plan_epoch
from labeltune.data.store import Store
from labeltune.keys import Key, permutation
from labeltune.model.backbone import Backbone
from labeltune.model.member import LabelModel, Member
from labeltune.schema import Batch
from labeltune.training.checkpoint import State, moments_of, restore_moments
from labeltune.training.distributed import World
from labeltune.training.optimiser import adamw, lr_factor, scale_and_clip, set_lr
from labeltune.training.settings import TrainConfig

Loss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""(logits_SL, labels, target_document) -> (sum of weighted losses, sum of weights)."""
Evaluate = Callable[[], Mapping[str, float]]
"""Dev metrics of the member as it is now; `loss` among them settles between equal ones."""
OUT_OF_MEMORY = "out of memory"
NO_MEMORY = ("out of memory", "can't allocate memory", "unable to allocate")
MICRO_TOKENS, GPU_MICRO_TOKENS = 1024, 16_384
"""Tokens of a forward pass where the settings leave it open: the CPU's sweet spot, and another device's."""


class Plan:
    """Which rows make which optimiser step: a fresh permutation per epoch, a pure function of the trial's key."""

    def __init__(self, lengths: np.ndarray, config: TrainConfig, key: Key) -> None:
        self._lengths, self._config, self._key = lengths, config, key
        self.epoch_steps = lru_cache(maxsize=2)(self._epoch_steps)
        self._ends: list[int] = []  # the steps up to the end of each epoch that was counted
        if config.steps is not None:
            self.total = config.steps
        elif config.epochs is not None:
            self.total = self._steps_of_epochs(config.epochs)
        else:
            raise ValueError("the length of a training is settled before it begins (`schedule.scheduled`)")

    def _epoch_steps(self, epoch: int) -> list[list[int]]:
        order = permutation(self._key.fold("order", epoch), len(self._lengths))
        rows = None if self._config.batch_tokens else self._config.batch_rows
        return plan_epoch(self._lengths, permutation=order, batch_rows=rows, batch_tokens=self._config.batch_tokens)

    def _steps_of_epochs(self, epochs: float) -> int:
        last, part = int(epochs), epochs - int(epochs)
        before = self._end(last - 1) if last else 0
        return max(1, before + (math.ceil(part * (self._end(last) - before)) if part else 0))

    def _end(self, epoch: int) -> int:
        """The steps up to the end of an epoch (from 0); epochs of rows are alike, those of tokens are laid out."""
        if self._config.batch_tokens is None:
            return (epoch + 1) * math.ceil(len(self._lengths) / self._config.batch_rows)
        while len(self._ends) <= epoch:
            before = self._ends[-1] if self._ends else 0
            self._ends.append(before + len(self._epoch_steps(len(self._ends))))
        return self._ends[epoch]

    def _epoch(self, step: int) -> int:
        if self._config.batch_tokens is None:
            return step // self._end(0)
        while not self._ends or self._ends[-1] <= step:
            self._end(len(self._ends))
        return bisect_right(self._ends, step)

    def at(self, step: int) -> tuple[int, list[int], bool]:
        """Epoch, rows, and whether this is the epoch's last step, for optimiser step `step` (from 0)."""
        epoch = self._epoch(step)
        steps, place = self.epoch_steps(epoch), step - (self._end(epoch - 1) if epoch else 0)
        return epoch, steps[place], place == len(steps) - 1


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


@dataclass(eq=False)
class Trial:
    """A member being trained: settings, data, optimiser, and where it stands.

    parameters: everything that is trained, by name; the head's names begin with `head.`.
    select: the dev metric that chooses the weights, and whether higher is better.
    micro_tokens: most tokens of a forward pass, once memory has run out; the settings' until then.
    """

    name: str
    config: TrainConfig
    member: Member
    parameters: Mapping[str, nn.Parameter]
    rows: Store
    loss: Loss
    evaluate: Evaluate | None
    select: tuple[str, bool]
    key: Key
    status: str = "running"
    step: int = 0
    micro_tokens: int | None = None
    stale: int = 0
    best_value: float | None = None
    best_loss: float = math.nan
    best_step: int = 0
    best_epoch: int = 0
    best: dict[str, torch.Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        head = [p for name, p in self.parameters.items() if name.startswith("head.")]
        rest = [p for name, p in self.parameters.items() if not name.startswith("head.")]
        self.optimiser = adamw(head, rest, self.config)
        self.plan = Plan(self.rows.lengths, self.config, self.key)

    def micro(self, rows: Sequence[int]) -> list[list[int]]:
        """The micro-batches of one step."""
        if self.config.accumulate is not None and self.micro_tokens is None:
            return micro_batches(rows, self.rows.lengths, count=self.config.accumulate)
        most = self.micro_tokens or self.config.micro_tokens or MICRO_TOKENS
        return micro_batches(rows, self.rows.lengths, micro_tokens=most)

    def halve(self, rows: Sequence[int]) -> bool:
        """Make the micro-batches of `rows` half as large from now on; False where each is a single row already."""
        parts = self.micro(rows)
        if all(len(part) == 1 for part in parts):
            return False
        self.micro_tokens = max(1, max(int(self.rows.lengths[part].sum()) for part in parts) // 2)
        return True

    def weights(self) -> dict[str, torch.Tensor]:
        """A copy of the trained weights as they are now."""
        return {name: p.detach().clone() for name, p in self.parameters.items()}

    @torch.no_grad()
    def put(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Copy `weights` into the parameters."""
        for name, parameter in self.parameters.items():
            parameter.copy_(weights[name])

    def evaluation_due(self, epoch_ends: bool) -> bool:
        """Whether dev is evaluated after the step just done."""
        every = self.config.eval_every
        due = self.step % every == 0 if isinstance(every, int) else epoch_ends
        return due or self.step >= self.plan.total

    def is_better(self, value: float) -> bool:
        """Whether a dev score is better than the best so far; what is no number is not."""
        if self.best_value is None or not math.isfinite(value):
            return math.isfinite(value)
        return value > self.best_value if self.select[1] else value < self.best_value

    def judge(self, metrics: Mapping[str, float], epoch: int) -> bool:
        """Keep a copy of the weights if `metrics` are the best so far; count evaluations without a better one.

        Of equal values the one with the lower dev loss is kept, and counts as no better one for `train.patience`.
        """
        value, loss = metrics[self.select[0]], metrics.get("loss", math.nan)
        better = self.is_better(value)
        chosen = better or (value == self.best_value and loss < self.best_loss)  # never where one is no number
        if chosen:
            self.best_value, self.best_loss, self.best_step, self.best_epoch = value, loss, self.step, epoch
            self.best = self.weights()
        self.stale = 0 if better else self.stale + 1
        if self.config.patience is not None and self.stale >= self.config.patience:
            self.status = "stopped early"
        return chosen

    def finish(self) -> None:
        """Put the best weights in place; without an evaluation the last ones stay."""
        if self.best:
            self.put(self.best)


FACTS = ("status", "step", "micro_tokens", "stale", "best_value", "best_loss", "best_step", "best_epoch")


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


def state_of(trial: Trial) -> State:
    """All that `trial` needs to go on elsewhere."""
    facts = {name: getattr(trial, name) for name in FACTS}
    return State(trial.weights(), dict(trial.best), moments_of(trial.optimiser), facts)


def restore(trial: Trial, state: State) -> None:
    """Put `trial` where `state` left it."""
    trial.put(state.now)
    trial.best = dict(state.best)
    restore_moments(trial.optimiser, state.moments)
    for name in FACTS:
        setattr(trial, name, state.facts[name])


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
        turns = [_Turn(trial, *trial.plan.at(trial.step)) for trial in group.trials]
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
    try:
        _pass(group, turns, active)
    except (RuntimeError, MemoryError) as error:
        if not memory_ran_out(error):
            raise
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return False
    return True


def memory_ran_out(error: Exception) -> bool:
    """CUDA has an error of its own for it; the CPU's allocator and NumPy say it in words."""
    said = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(words in said for words in NO_MEMORY)


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
        if trial.step >= trial.plan.total and trial.status == "running":
            trial.status = "finished"
    return Step(
        trial=trial,
        step=trial.step,
        total=trial.plan.total,
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
    factor = lr_factor(trial.step, trial.plan.total, trial.config)
    set_lr(trial.optimiser, factor)
    norm = scale_and_clip(trial.parameters.values(), turn.weight or 1.0, trial.config.clip or None)
    if not math.isfinite(norm):
        trial.status = "diverged"
        return 0.0, norm
    trial.optimiser.step()
    return factor * trial.config.peak_lr, norm
