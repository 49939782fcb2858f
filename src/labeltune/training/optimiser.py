"""AdamW over a member's fp32 parameters, the schedules of its learning rate, and the clip."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import nn

from labeltune.training.settings import TrainConfig

FUSED = ("cpu", "cuda")
"""Devices on which torch updates all parameters in one kernel: calls are what a small step costs."""
Schedule = Callable[[float], float]

SCHEDULES: dict[str, Schedule] = {
    "linear": lambda done: 1.0 - done,
    "cosine": lambda done: 0.5 * (1.0 + math.cos(math.pi * done)),
    "constant": lambda done: 1.0,
}
"""The factor on the peak learning rate after the warm-up; `done` runs from 0 to 1."""


def warmup_steps(warmup: float, total: int) -> int:
    """A share of the steps (below 1) or their number, as a number."""
    return math.ceil(warmup * total) if warmup < 1 else int(warmup)


def lr_factor(step: int, total: int, config: TrainConfig) -> float:
    """The factor of optimiser step `step` (from 0) of `total`: linear warm-up, then the schedule.

    Equals transformers' `get_linear_schedule_with_warmup` and `get_cosine_schedule_with_warmup` at every step.
    """
    warm = min(warmup_steps(config.warmup, total), total)
    if step < warm:
        return step / max(1, warm)
    return SCHEDULES[config.schedule]((step - warm) / max(1, total - warm))


def adamw(head: Iterable[nn.Parameter], rest: Iterable[nn.Parameter], config: TrainConfig) -> torch.optim.AdamW:
    """AdamW (0.9, 0.999, 1e-8) with the head at `head_lr`; weight decay on matrices only.

    Each group keeps its peak rate under `peak`.
    """
    head_lr = config.peak_lr if config.head_lr is None else config.head_lr
    groups, given = [], [list(rest), list(head)]
    for parameters, peak in zip(given, (config.peak_lr, head_lr), strict=True):
        for matrices in (True, False):
            chosen = [p for p in parameters if (p.ndim > 1) == matrices]
            if chosen:
                decay = config.weight_decay if matrices else 0.0
                groups.append({"params": chosen, "lr": peak, "peak": peak, "weight_decay": decay})
    fused = all(p.device.type in FUSED for part in given for p in part)
    return torch.optim.AdamW(groups, fused=fused, foreach=not fused)


def set_lr(optimiser: torch.optim.Optimizer, factor: float) -> None:
    """Put every group at `factor` times its peak."""
    for group in optimiser.param_groups:
        group["lr"] = group["peak"] * factor


def scale_and_clip(parameters: Iterable[nn.Parameter], divisor: float, clip: float | None) -> float:
    """Divide the summed gradients by the step's total weight, clip, and return the norm before clipping.

    The loss is summed over micro-batches and divided once, so accumulation changes nothing but rounding (law Mean).
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return 0.0
    torch._foreach_div_(gradients, divisor)
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    if clip is not None:
        torch._foreach_mul_(gradients, torch.clamp(clip / (norm + 1e-6), max=1.0))
    return float(norm)
