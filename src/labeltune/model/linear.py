"""Frozen fp32 linear layers by oneDNN in place of MKL, on processors where that halves their time.

torch multiplies fp32 matrices by MKL, which keeps to its AVX2 code on processors that Intel did not make. oneDNN, which
torch brings along for other operations, asks the processor what it can; with AVX-512 it is about twice as fast. It
writes code for every new shape, which takes a millisecond or so: rows are filled up to multiples of `STEP`, so that
there are few. A layer takes a stock one's place only after it has given the same values and gradients.

Shapes: (..., K) in, (..., N) out.
"""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from labeltune.model.agreement import agree

STEP = 32
"""Rows are filled up to a multiple of this."""
ROWS = 96
"""Fewer than this are MKL's: filling up and preparing would cost what is won."""
WEIGHTS = 2**15
"""So are layers with fewer weights."""


class FrozenLinear(nn.Linear):
    """A linear layer whose weights are not trained. Fewer rows than `ROWS`, or another dtype: as torch computes it."""

    def forward(self, input: Tensor) -> Tensor:
        """`input @ weight.T + bias`."""
        if input.dtype != torch.float32 or input.numel() < ROWS * self.in_features:
            return F.linear(input, self.weight, self.bias)
        return _onednn(input, self.weight, self.bias)


def freeze_linears(model: nn.Module) -> bool:
    """Replace every frozen layer that is large enough, by its name in the model, and say whether there was one.

    The weights stay the same tensors. Nothing changes where this torch has no oneDNN, or one that does not agree.
    """
    known: dict[tuple[int, int, bool], bool] = {}
    changed = False
    for name, stock in list(model.named_modules()):
        if not _is_large_and_frozen(stock):
            continue
        assert isinstance(stock, nn.Linear)
        shape = (*stock.weight.shape, stock.bias is not None)
        if shape not in known:
            known[shape] = _agrees(stock)
        if known[shape]:
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, _of(stock))
            changed = True
    return changed


def onednn_pays() -> bool:
    """Whether this processor has AVX-512 and MKL does not use it: a rule, not a timing, so always the same."""
    there = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
    return there and torch.backends.cpu.get_cpu_capability() == "AVX512" and "GenuineIntel" not in _maker()


def _maker() -> str:
    """The processor's maker, as it says itself."""
    path = Path("/proc/cpuinfo")
    text = path.read_text("utf-8", errors="replace") if path.exists() else platform.processor()
    return text.partition("\n\n")[0] or "GenuineIntel"


def _is_large_and_frozen(module: nn.Module) -> bool:
    if type(module) is not nn.Linear:  # a subclass computes something else
        return False
    weight = module.weight
    plain = weight.dtype == torch.float32 and weight.device.type == "cpu" and not weight.requires_grad
    return plain and weight.numel() >= WEIGHTS


def _of(stock: nn.Linear) -> FrozenLinear:
    """Ours with the stock layer's own tensors."""
    with torch.device("meta"):
        ours = FrozenLinear(stock.in_features, stock.out_features, bias=stock.bias is not None)
    ours.weight, ours.bias = stock.weight, stock.bias
    return ours.train(stock.training)


def _agrees(stock: nn.Linear) -> bool:
    """Whether ours gives the stock layer's values and gradients."""
    rows = torch.randn(ROWS + 1, stock.in_features, generator=torch.Generator().manual_seed(0))
    return agree(stock, _of(stock), [rows])


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    rows = x.reshape(-1, x.shape[-1])
    if rows.requires_grad and torch.is_grad_enabled():
        out: Tensor = _Product.apply(rows, weight, bias)  # type: ignore[no-untyped-call]  # as torch has it
    else:
        out = _product(rows, weight, bias)
    return out.view(*x.shape[:-1], -1)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.weight = weight
        return _product(rows, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _product(gradient, ctx.weight.t(), None), None, None


def _product(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(M, K) x (N, K) -> (M, N)."""
    count = rows.shape[0]
    filled = F.pad(rows, (0, 0, 0, -count % STEP)) if count % STEP else rows.contiguous()
    found: Tensor = torch.ops.mkldnn._linear_pointwise(filled, weight, bias, "none", [], "")
    return found[:count]
