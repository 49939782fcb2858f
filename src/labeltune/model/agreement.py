"""Does a function of ours give a stock one's values and gradients? Asked before it takes the stock one's place."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

CLOSE = 1e-5
"""The largest difference, relative to the largest value; in 16 bits so many roundings:"""
ROUNDINGS = 8


def agree(stock: Callable[..., Tensor], ours: Callable[..., Tensor], inputs: Sequence[Tensor]) -> bool:
    """Whether both give the same of `inputs`, forwards and backwards; False where ours cannot be called here."""
    found = []
    try:
        with torch.inference_mode(False), torch.enable_grad():
            given = [each.clone().requires_grad_() for each in inputs]
            for function in (stock, ours):
                out = function(*given)
                weights = torch.linspace(-1, 1, out.numel(), device=out.device, dtype=out.dtype).view(out.shape)
                found.append((out.detach(), *torch.autograd.grad((out * weights).sum(), given)))
    except (RuntimeError, AttributeError, TypeError, ValueError):  # a torch in which ours has another face, or none
        return False
    return all(close(a, b) for a, b in zip(*found, strict=True))


def close(a: Tensor, b: Tensor) -> bool:
    """The same values to the rounding of their dtype. A NaN is close to nothing."""
    within = max(CLOSE, ROUNDINGS * torch.finfo(a.dtype).eps)
    return bool((a - b).abs().max() <= within * a.abs().max())
