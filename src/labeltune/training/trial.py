"""One training: a member with its rows, loss, order and optimiser, where it stands, and how it is stored."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from labeltune.data.batches import MICRO_TOKENS, micro_batches
from labeltune.data.store import Store
from labeltune.keys import Key
from labeltune.model.member import Member
from labeltune.training.checkpoint import State, moments_of, restore_moments
from labeltune.training.optimiser import adamw
from labeltune.training.order import Order
from labeltune.training.settings import TrainConfig

Loss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""(logits_SL, labels, target_document) -> (sum of weighted losses, sum of weights)."""
Evaluate = Callable[[], Mapping[str, float]]
"""Dev metrics of the member as it is now; `loss` among them settles between equal ones."""

FACTS = ("status", "step", "micro_tokens", "stale", "best_value", "best_loss", "best_step", "best_epoch")


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
        self.order = Order(self.rows.lengths, self.config, self.key)

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
        return due or self.step >= self.order.total

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
