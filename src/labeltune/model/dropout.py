"""Addressed dropout of what an adapter reads: each slice by its own key and rate.

On a CPU the mask is drawn by `keys.keep_masks` and kept for the backward pass; in a small pass, where calls are what it
costs, those of several tensors at once. On CUDA, where launches and memory are what it costs, one compiled kernel draws
it and applies it, and the backward pass draws it again. Both give the same bits; the first use of the kernel is checked
against the same arithmetic, run step by step.

Shapes: N tokens, K slices, F features.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from itertools import pairwise
from subprocess import SubprocessError
from typing import Any

import torch
from torch import Tensor

from labeltune.keys import keep_masks, kept, numbers_of
from labeltune.model.layout import Layout
from labeltune.transfer import sent

logger = logging.getLogger(__name__)

AHEAD = 2**20
"""Values for which masks are drawn at once on a CPU: their hashes stay in its cache."""


class Dropout:
    """The dropout of every tensor that adapters read, in one pass after the other.

    rates: for each tensor, by name, the rate of each slice.
    """

    def __init__(self, rates: dict[str, Sequence[float]]) -> None:
        self.rates = rates
        self._drawn: tuple[Layout, dict[str, tuple[Tensor, Tensor]]] | None = None
        self._features: dict[str, int] = {}
        self._ahead: tuple[Layout | None, dict[str, Tensor]] = (None, {})

    def __call__(self, x_NF: Tensor, name: str, layout: Layout) -> Tensor:
        """X with dropped features at zero; scaling what is left is the caller's."""
        rates = [rate if key else 0.0 for rate, key in zip(self.rates[name], layout.keys, strict=True)]
        if not any(rates):
            return x_NF
        if x_NF.is_cuda:
            numbers_N, limits_N = self._numbers(layout, x_NF.device)[name]
            out: Tensor = _Drop.apply(x_NF, numbers_N, limits_N, layout.token_row, layout.token_index)  # type: ignore[no-untyped-call]  # as torch has it
            return out
        return torch.where(self._mask(name, layout, x_NF.shape[1]), x_NF, 0.0)

    def _mask(self, name: str, layout: Layout, features: int) -> Tensor:
        """Which features stay, bool (N, F); drawn with those of the tensors that are read next."""
        self._features[name] = features
        if self._ahead[0] is not layout or name not in self._ahead[1]:
            self._ahead = layout, self._masks(self._next(name, layout.slice_tokens[-1] * features), layout, features)
        return self._ahead[1].pop(name)

    def _next(self, name: str, size: int) -> list[str]:
        """The tensor and those after it that are as wide, as far as was seen, up to `AHEAD` values; size: of one."""
        names = list(self.rates)
        after = names[names.index(name) :]
        wide = [other for other in after if self._features.get(other) == self._features[name]]
        return wide[: max(1, AHEAD // size)]

    def _masks(self, names: Sequence[str], layout: Layout, features: int) -> dict[str, Tensor]:
        """The masks of several tensors: to the hash, the slices of each are slices of one longer pass."""
        count, tokens = len(names), layout.slice_tokens[-1]
        keys = [key.fold("lora", name) if key is not None else None for name in names for key in layout.keys]
        rates = [rate for name in names for rate in self.rates[name]]
        bounds = [place * tokens + end for place in range(count) for end in layout.slice_tokens[1:]]
        address = (layout.token_row.repeat(count), layout.token_index.repeat(count))
        keep = keep_masks(keys, rates, (0, *bounds), *address, features)
        return dict(zip(names, keep.split(tokens), strict=True))

    def table(self, layout: Layout) -> Tensor:
        """On the CPU, int64 (2 tensors + 1, K): each tensor's number and limit by slice, and the slices' sizes."""
        facts: list[Sequence[int]] = []
        for name, rates in self.rates.items():
            facts += numbers_of([key.fold("lora", name) if key else None for key in layout.keys], rates)
        return torch.tensor([*facts, [b - a for a, b in pairwise(layout.slice_tokens)]])

    def use(self, layout: Layout, table: Tensor) -> None:
        """Draw from these numbers in the passes of this layout; table: on the device."""
        spread = torch.repeat_interleave(table[:-1], table[-1], dim=1, output_size=layout.slice_tokens[-1])
        self._drawn = layout, {name: (spread[2 * n], spread[2 * n + 1]) for n, name in enumerate(self.rates)}

    def _numbers(self, layout: Layout, device: torch.device) -> dict[str, tuple[Tensor, Tensor]]:
        """For each tensor the key's number and the limit of every token (N), made once for a pass in one transfer."""
        if self._drawn is None or self._drawn[0] is not layout:
            self.use(layout, sent(self.table(layout), device))
        assert self._drawn is not None
        return self._drawn[1]


class _Drop(torch.autograd.Function):
    """The same function forwards and backwards, of nothing but addresses: no mask is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, numbers: Tensor, limits: Tensor, row: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(numbers, limits, row, index)
        return fused(x, numbers, limits, row, index)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        return fused(gradient.contiguous(), *ctx.saved_tensors), None, None, None, None


def _drop(x_NF: Tensor, numbers_N: Tensor, limits_N: Tensor, row_N: Tensor, index_N: Tensor) -> Tensor:
    """Step by step what the kernel does at once."""
    return torch.where(kept(numbers_N, limits_N, row_N, index_N, x_NF.shape[1]), x_NF, 0.0)


class Fused:
    """A function of tensors that torch.compile makes one kernel of; step by step where it cannot, which is logged."""

    def __init__(self, plain: Callable[..., Tensor]) -> None:
        self.plain = plain
        self._kernel: Callable[..., Tensor] | None = None

    def __call__(self, *tensors: Tensor) -> Tensor:
        """The function's value."""
        if self._kernel is None:
            self._kernel = self._compiled(tensors)
        return self._kernel(*(tensor.data for tensor in tensors))  # views would be compiled anew for each base

    def _compiled(self, tensors: Sequence[Tensor]) -> Callable[..., Tensor]:
        kernel: Callable[..., Tensor] = torch.compile(self.plain, dynamic=True)
        try:
            same = torch.equal(kernel(*(tensor.data for tensor in tensors)), self.plain(*tensors))
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, OSError, ImportError, SubprocessError) as error:  # no compiler, no headers, no Triton …
            logger.warning("no fused dropout, training is slower: torch.compile failed (%s)", str(error).split("\n")[0])
            return self.plain
        if not same:
            logger.warning("no fused dropout, training is slower: the compiled kernel draws other masks")
        return kernel if same else self.plain


fused = Fused(_drop)
