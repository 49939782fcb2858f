"""AdamW over a member's parameters, in fp32 whatever they are stored in; schedules of its learning rate; the clip."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from labeltune.training.settings import TrainConfig

MASTER = "master"
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

    Equals transformers' `get_linear_schedule_with_warmup` and `get_cosine_schedule_with_warmup` wherever the warm-up
    leaves a step; a longer one is shortened to end at the last step, so that a training of one step learns.
    """
    warm = min(warmup_steps(config.warmup, total), total - 1)
    if step < warm:
        return step / max(1, warm)
    return SCHEDULES[config.schedule]((step - warm) / max(1, total - warm))


class Masters(torch.optim.AdamW):
    """AdamW that steps 16-bit parameters in fp32 copies of them.

    A step of 1e-5 is far below the last bit of a weight in bf16: without the copies (Micikevicius et al., 2018, section
    3.1) most weights would never move. The copies are part of the state, beside the moments.
    """

    def __init__(self, groups: Iterable[Mapping[str, Any]], *, fused: bool, foreach: bool) -> None:
        self._pairs: list[tuple[nn.Parameter, torch.Tensor]] = []  # what is trained, what is stepped; by index
        stepped = [{**group, "params": [self._stepped(p) for p in group["params"]]} for group in groups]
        super().__init__(stepped, fused=fused, foreach=foreach)

    def _stepped(self, parameter: nn.Parameter) -> torch.Tensor:
        short = parameter.element_size() < 4
        self._pairs.append((parameter, parameter.detach().float() if short else parameter))
        return self._pairs[-1][1]

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # no closure, so no loss
        """One step; the 16-bit parameters are then their copies, rounded."""
        copies = [(parameter, master) for parameter, master in self._pairs if parameter is not master]
        for parameter, master in copies:
            master.grad = None if parameter.grad is None else parameter.grad.float()
        super().step(closure)
        for parameter, master in copies:
            parameter.copy_(master)
            master.grad = None

    def state_dict(self) -> dict[str, Any]:
        """As AdamW has it, each copy beside the moments."""
        found = super().state_dict()
        state = {index: dict(values) for index, values in found["state"].items()}
        for index, (parameter, master) in enumerate(self._pairs):
            if parameter is not master and index in state:
                state[index][MASTER] = master
        return {**found, "state": state}

    @torch.no_grad()
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Put a state back; a copy that it does not hold is the parameter as it is now."""
        state = {index: dict(values) for index, values in state_dict["state"].items()}
        for index, (parameter, master) in enumerate(self._pairs):
            if parameter is not master:
                master.copy_(state.get(index, {}).pop(MASTER, parameter))
        super().load_state_dict({**state_dict, "state": state})


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
    return Masters(groups, fused=fused, foreach=not fused)


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
