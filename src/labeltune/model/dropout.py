"""Addressed dropout of what an adapter reads: each slice by its own key and rate.

On a CPU the mask is drawn by `keys.keep_masks` and kept for the backward pass; in a small pass, where calls are what it
costs, those of several tensors at once. On CUDA, where launches and memory are what it costs, one compiled kernel draws
it and applies it, and the backward pass draws it again. Both give the same bits; the first use of the kernel is checked
against the same arithmetic, run step by step.

Shapes: N tokens, K slices, F features.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from labeltune.keys import hashes_of, keep_masks, kept, numbers_of
from labeltune.model.fused import Fused
from labeltune.model.layout import Layout
from labeltune.transfer import sent

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
            out: Tensor = _Drop.apply(x_NF, *self._numbers(layout, x_NF.device)[name])  # type: ignore[no-untyped-call]  # as torch has it
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
        hashing = hashed if table.is_cuda else hashes_of
        hashes, limits = hashing(spread[::2], layout.token_row, layout.token_index), spread[1::2].to(torch.int32)
        self._drawn = layout, {name: (hashes[:, n], limits[n]) for n, name in enumerate(self.rates)}

    def _numbers(self, layout: Layout, device: torch.device) -> dict[str, tuple[Tensor, Tensor]]:
        """For each tensor the hashes (2, N) and limits (N) of the tokens, made once for a pass in one transfer."""
        if self._drawn is None or self._drawn[0] is not layout:
            self.use(layout, sent(self.table(layout), device))
        assert self._drawn is not None
        return self._drawn[1]


class _Drop(torch.autograd.Function):
    """The same function forwards and backwards, of nothing but addresses: no mask is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, hashes: Tensor, limits: Tensor) -> Tensor:
        ctx.save_for_backward(hashes, limits)
        return fused(x, hashes, limits)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return fused(gradient.contiguous(), *ctx.saved_tensors), None, None


def _drop(x_NF: Tensor, hashes: Tensor, limits_N: Tensor) -> Tensor:
    """Step by step what the kernel does at once."""
    return torch.where(kept(hashes, limits_N, x_NF.shape[1]), x_NF, 0.0)


fused, hashed = Fused(_drop, "dropout"), Fused(hashes_of, "dropout's addresses")
