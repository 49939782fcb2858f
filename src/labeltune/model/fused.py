"""A function of tensors as one compiled kernel, where launches and memory are what it costs (CUDA).

The first use is checked against the same arithmetic step by step; where torch cannot compile it, or compiles something
else, the steps stay, and the log says so.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from subprocess import SubprocessError

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

Function = Callable[..., Tensor]


def equal(a: Tensor, b: Tensor) -> bool:
    """The same bits."""
    return torch.equal(a, b)


def close(a: Tensor, b: Tensor) -> bool:
    """The same but for rounding in the dtype of the values; a NaN is not."""
    return bool((a.float() - b.float()).abs().max() <= 2 * torch.finfo(a.dtype).eps * b.float().abs().max())


class Fused:
    """`plain` by one kernel. same: whether two values of it count as the same. name: for the log."""

    def __init__(self, plain: Function, name: str, same: Callable[[Tensor, Tensor], bool] = equal) -> None:
        self.plain, self.name, self.same = plain, name, same
        self._kernel: Function | None = None

    def __call__(self, *tensors: Tensor) -> Tensor:
        """The function's value, without a gradient."""
        if self._kernel is None:
            self._kernel = self._compiled(tensors)
        return self._kernel(*(tensor.data for tensor in tensors))  # views would be compiled anew for each base

    def _compiled(self, tensors: Sequence[Tensor]) -> Function:
        kernel: Function = torch.compile(self.plain, dynamic=True)
        try:
            same = self.same(kernel(*(tensor.data for tensor in tensors)), self.plain(*tensors))
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, OSError, ImportError, SubprocessError) as error:  # no compiler, no headers, no Triton …
            reason = str(error).split("\n")[0]
            logger.warning("no fused %s, training is slower: torch.compile failed (%s)", self.name, reason)
            return self.plain
        if not same:
            logger.warning("no fused %s, training is slower: the compiled kernel gives other values", self.name)
        return kernel if same else self.plain
