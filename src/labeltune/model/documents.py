"""Attention of each document by itself on a CPU: one node of autograd a layer, around torch's own flash kernel.

A short document's attention takes less time than the call around it: views, dispatch and nodes of a graph, forwards
and backwards, for each document and layer. So the kernel that `scaled_dot_product_attention` would choose is called as
it is, with its written gradient. It is torch's own operator, but not a public one: it takes the public function's place
for a head size only after it has given the same values and gradients.

Shapes: H query heads, G key/value heads, N packed tokens, n tokens of one document, C head size, d documents of a run.
Queries are (1, H, N, C), keys and values (1, G, N, C), what is attended (1, N, H, C), as transformers has them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional

from labeltune.model.agreement import agree
from labeltune.model.runs import Run

Three = tuple[Tensor, Tensor, Tensor]
"""Queries, keys and values."""
_KERNEL = "_scaled_dot_product_flash_attention_for_cpu"


def can_attend(tensors: Three) -> bool:
    """Whether `attend_each` takes these tensors: fp32 on a CPU, heads of one size that this torch is known to do."""
    query, key, value = tensors
    plain = all(t.device.type == "cpu" and t.dtype == torch.float32 and t.stride(-1) == 1 for t in tensors)
    return plain and query.shape[-1] == value.shape[-1] and agrees(query.shape[-1], query.shape[1] // key.shape[1])


def attend_each(tensors: Three, runs: Sequence[Run], scale: float) -> Tensor:
    """Every document sees itself alone."""
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        return cast(Tensor, _Each.apply(*tensors, runs, scale))  # type: ignore[no-untyped-call]  # as torch has it
    return joined([out for out, _ in _forward(tensors, runs, scale)])


@lru_cache
def agrees(size: int, groups: int) -> bool:
    """Whether the kernel gives the public function's values and gradients; groups: query heads for each key head."""
    noise = torch.Generator().manual_seed(0)
    tensors = [torch.randn((1, heads, 7, size), generator=noise) for heads in (2 * groups, 2, 2)]

    def same(both: bool) -> bool:
        runs = (Run(2, 2, both), Run(1, 3, both))
        return agree(
            lambda *given: attend_publicly(given, runs, 0.5), lambda *given: attend_each(given, runs, 0.5), tensors
        )

    with saved_tensors_hooks(_as_it_is, _as_it_is):  # asked within a checkpointed block, its hooks are not for this
        return same(False) and same(True)


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor


def attend_publicly(tensors: Three, runs: Sequence[Run], scale: float) -> Tensor:
    """The same by the public function, a call for each run."""
    grouped = tensors[0].shape[1] != tensors[1].shape[1]
    outs = []
    for run, (q, k, v) in zip(runs, split(tensors, runs), strict=True):
        out = functional.scaled_dot_product_attention(q, k, v, is_causal=not run.both, scale=scale, enable_gqa=grouped)
        outs.append(out)
    return joined(outs)


def split(tensors: Three, runs: Sequence[Run]) -> Iterator[Three]:
    """The three as (d, H or G, n, C) for each run. `split` (not slices) keeps a backward pass linear in the tokens."""
    sizes = [run.documents * run.length for run in runs]
    for run, q, k, v in zip(runs, *(t.split(sizes, dim=2) for t in tensors), strict=True):
        yield (q, k, v) if run.documents == 1 else (_one_each(q, run), _one_each(k, run), _one_each(v, run))


def _one_each(part: Tensor, run: Run) -> Tensor:
    """(1, H, d n, C) as (d, H, n, C)."""
    return part[0].view(len(part[0]), run.documents, run.length, part.shape[3]).transpose(0, 1)


class _Each(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, runs: Sequence[Run], scale: float) -> Tensor:
        outs, sums = zip(*_forward((query, key, value), runs, scale), strict=True)
        ctx.save_for_backward(query, key, value, *outs, *sums)  # all that is kept, so that checkpointing can drop it
        ctx.runs, ctx.scale = runs, scale
        return joined(outs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        kernel = getattr(torch.ops.aten, f"{_KERNEL}_backward")
        query, key, value, *kept = ctx.saved_tensors
        given = gradient.split([run.documents * run.length for run in ctx.runs], dim=1)
        outs, sums = kept[: len(ctx.runs)], kept[len(ctx.runs) :]
        found = []
        for run, part, tensors, out, total in zip(
            ctx.runs, given, split((query, key, value), ctx.runs), outs, sums, strict=True
        ):
            part = part if run.documents == 1 else part.view(run.documents, run.length, *part.shape[2:])
            found.append(kernel(part.transpose(1, 2), *tensors, out, total, 0.0, not run.both, scale=ctx.scale))
        query, key, value = (joined(each).transpose(1, 2) for each in zip(*found, strict=True))
        return query, key, value, None, None


def _forward(tensors: Three, runs: Sequence[Run], scale: float) -> Iterator[tuple[Tensor, Tensor]]:
    """Each run's values (d, H, n, C), and the logarithms of its softmax's sums."""
    kernel = getattr(torch.ops.aten, _KERNEL)
    for run, part in zip(runs, split(tensors, runs), strict=True):
        yield kernel(*part, 0.0, not run.both, scale=scale)


def joined(parts: Sequence[Tensor]) -> Tensor:
    """(d, H, n, C) of each run as one (1, N, H, C)."""
    return torch.cat([_end_to_end(part.transpose(1, 2)) for part in parts], dim=1)


def _end_to_end(part: Tensor) -> Tensor:
    """(d, n, H, C) as (1, d n, H, C)."""
    return part if len(part) == 1 else part.reshape(1, -1, *part.shape[2:])
