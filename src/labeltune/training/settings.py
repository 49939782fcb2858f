"""The `train` and `eval` sections: the optimiser, the schedule, the batch, and which checkpoint wins."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from labeltune.settings import Settings, one_of

SCHEDULE_NAMES = ("linear", "cosine", "constant")
DEVICES = ("auto", "cpu", "cuda", "mps")


LR, LR_HIDDEN, LR_MOST = 2e-4, 4096, 1e-2
"""The learning rate of an adapter on a backbone of that hidden size, and the largest of the smallest ones."""


def default_lr(hidden_size: int, *, full: bool) -> float:
    """The peak learning rate where nobody names one, to three digits.

    Measured at hidden sizes 128 and 256 (`benchmarks/results/studies/defaults.md`), from published work at 4,096; other
    sizes lie on the line through these. Full fine-tuning takes a tenth, as in `adapt`; that is not measured.
    """
    return float(f"{min(LR_MOST, LR * LR_HIDDEN / hidden_size) / (10 if full else 1):.3g}")


class TrainConfig(Settings):
    """One training."""

    lr: Annotated[float, Field(gt=0)] | None = None
    """Peak learning rate [2e-4 · 4096 / hidden size, at most 1e-2; full fine-tuning: a tenth of it]."""
    head_lr: Annotated[float, Field(gt=0)] | None = None
    """Peak learning rate of the head [= lr]."""
    epochs: Annotated[float, Field(gt=0)] | None = None
    """Passes over the training rows [5; where rows are few, as many as make 1,000 steps]."""
    steps: Annotated[int, Field(ge=1)] | None = None
    """Optimiser steps, instead of epochs."""
    batch_rows: Annotated[int, Field(ge=1)] = 16
    """Rows of one optimiser step."""
    batch_tokens: Annotated[int, Field(ge=1)] | None = None
    """Tokens of one optimiser step, instead of batch_rows."""
    accumulate: Annotated[int, Field(ge=1)] | None = None
    """Micro-batches per optimiser step [as many as the device's token budget asks for]."""
    micro_tokens: Annotated[int, Field(ge=1)] | None = None
    """Most tokens of one forward pass [1,024 on CPU, 16,384 elsewhere]; one row is never split."""
    schedule: Annotated[str, one_of(SCHEDULE_NAMES)] = "linear"
    """Learning rate after the warm-up: linear or cosine to zero, or constant."""
    warmup: Annotated[float, Field(ge=0)] = 0.06
    """Share of the steps (below 1) or number of steps of linear warm-up."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """AdamW's decoupled weight decay, on matrices."""
    clip: Annotated[float, Field(ge=0)] = 1.0
    """Largest gradient norm of a step; 0 leaves gradients as they are."""
    seed: Annotated[int, Field(ge=0)] = 42
    """Seed of every random value."""
    eval_every: Literal["epoch"] | Annotated[int, Field(ge=1)] | None = None
    """Evaluate on dev after each `epoch`, or every so many steps [epoch; 20 times where few rows set the epochs]."""
    select: str | None = None
    """The dev metric that chooses the weights [the task's]."""
    patience: Annotated[int, Field(ge=1)] | None = None
    """Stop after so many evaluations without a better one."""
    checkpoint_steps: Annotated[int, Field(ge=1)] | None = None
    """Steps between checkpoints [at each evaluation]."""
    init: str | None = None
    """Run whose adapter and head the training starts from (`--init`)."""
    shard: bool = False
    """Divide the frozen backbone among the processes of torchrun (FSDP2), where it does not fit into one."""
    device: Annotated[str, one_of(DEVICES, meant={"gpu": "cuda"})] = "auto"
    """Where to compute."""
    threads: Annotated[int, Field(ge=1)] | None = None
    """CPU threads; recorded, because another number changes rounding."""

    @property
    def peak_lr(self) -> float:
        """`lr`; where nobody has settled it yet, that of a large backbone."""
        return LR if self.lr is None else self.lr


class EvalConfig(Settings):
    """Evaluation and prediction."""

    batch_tokens: Annotated[int, Field(ge=1)] | None = None
    """Most tokens of one forward pass [train.micro_tokens]."""
    merge: bool = False
    """Answer with the adapter written into the backbone's fp32 weights: faster, equal to 1e-5."""
    truncate_gold: bool = False
    """Score only what the model read; every report is stamped. Never the default."""
    reported: Annotated[str, one_of(("test", "dev"))] = "test"
    """The split that the figures stand for; `dev` is for published protocols, and stamps: selected on it."""
