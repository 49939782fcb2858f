"""Does a function of ours give a stock one's values and gradients? Asked before it takes the stock one's place."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

CLOSE = 1e-5
"""The largest difference, relative to the largest value."""


def agree(stock: Callable[..., Tensor], ours: Callable[..., Tensor], inputs: Sequence[Tensor]) -> bool:
    """Whether both give the same of `inputs`, forwards and backwards; False where ours cannot be called here."""
    found = []
    try:
        with torch.inference_mode(False), torch.enable_grad():
            given = [each.clone().requires_grad_() for each in inputs]
            for function in (stock, ours):
                out = function(*given)
                weights = torch.linspace(-1, 1, out.numel()).view(out.shape)
                found.append((out.detach(), *torch.autograd.grad((out * weights).sum(), given)))
    except (RuntimeError, AttributeError, TypeError, ValueError):  # a torch in which ours has another face, or none
        return False
    return all((a - b).abs().max() <= CLOSE * a.abs().max() for a, b in zip(*found, strict=True))  # a NaN fails
