"""One attention function for every family: each packed document sees itself only, each layer one or both ways.

transformers calls the function by its registered name and passes the running `Layout` through as a keyword argument.
No mask is registered under that name, so transformers builds none; whatever mask still arrives is a bug.

Shapes: H query heads, G key/value heads, N packed tokens, n tokens of one document, C head size. A *run* is a stretch
of neighbouring documents of one length and one direction; it is one kernel call on views of the stream.

Kernels: on CUDA in fp16 and bf16 torch's own variable-length flash attention, at most one call for each direction;
elsewhere scaled-dot-product attention for each run (`documents.py` has it for the CPU); soft-caps (gemma2) and
attention sinks (gpt_oss) are written out.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, PretrainedConfig

from labeltune.model import documents
from labeltune.model.families import family_of
from labeltune.model.layout import Layout
from labeltune.model.runs import Run, directed, runs_of

NAME = "labeltune"
LAYOUT = "labeltune_layout"

SHORT = 256
"""Longest document, in tokens, for which 16-bit training on a CPU computes its attention in fp32."""

Witness = tuple[nn.Module, dict[str, Any]]
"""A module that called the function, and what it told it of its scores."""
_WITNESSES: ContextVar[list[Witness] | None] = ContextVar("labeltune_witnesses", default=None)
_EVEN: ContextVar[bool] = ContextVar("labeltune_even", default=False)


class LayoutMissing(RuntimeError):
    """The function was called, but the layout was lost on the way."""


@dataclass(frozen=True)
class Rule:
    """What the family asks of the scores: their scale, a window of tokens, a soft-cap, a sink for each head.

    The window counts as transformers' own masks do: causal `0 <= i - j < window`; both ways `|i - j| <= reach`.
    """

    scale: float
    window: int | None = None
    reach: int | None = None
    softcap: float | None = None
    sinks: Tensor | None = None

    @property
    def plain(self) -> bool:
        """True where the kernels of torch can do it."""
        return self.softcap is None and self.sinks is None


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    position_bias: Tensor | None = None,
    labeltune_layout: Layout | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """The function transformers calls: (1, H, N, C) queries and (1, G, N, C) keys and values give (1, N, H, C)."""
    witnesses = _WITNESSES.get()
    if witnesses is not None:
        told = {"scaling": scaling, "sliding_window": sliding_window, "softcap": softcap, "s_aux": s_aux}
        witnesses.append((module, {name: value for name, value in told.items() if value is not None}))
    if labeltune_layout is None:
        raise LayoutMissing("labeltune's attention was called without a layout: call the model through Backbone")
    if attention_mask is not None or position_bias is not None or query.shape[0] != 1:
        raise RuntimeError("labeltune's attention takes one packed stream, without mask and position bias")
    if dropout:
        raise RuntimeError(f"attention dropout is {dropout}, and a frozen backbone has none: use backbone.load or wrap")
    query, key, value = _narrowed(query, key, value)
    if _EVEN.get():
        query, key = functional.normalize(query, dim=-1), functional.normalize(key, dim=-1)
    rule = Rule(
        scale=query.shape[-1] ** -0.5 if scaling is None else scaling,
        window=sliding_window,
        reach=_reach(module, sliding_window),
        softcap=softcap,
        sinks=s_aux,
    )
    kernel = _flash if _flash_can(query, value, rule) else _runs
    layer = cast(int, getattr(module, "layer_idx", 0))  # where it is missing, `backbone` adds it after the first probe
    return kernel(query, key, value, rule, labeltune_layout, layer), None


def _narrowed(*tensors: Tensor) -> Iterator[Tensor]:
    """Under autocast in its 16 bits: a rotary embedding leaves queries in fp32, which no flash kernel takes."""
    device = tensors[0].device.type
    if torch.is_autocast_enabled(device):
        return (tensor.to(torch.get_autocast_dtype(device)) for tensor in tensors)
    return iter(tensors)


def _reach(module: nn.Module, window: int | None) -> int | None:
    """How far a windowed layer looks both ways, in its family's convention."""
    if window is None:
        return None
    return window - family_of(cast(PretrainedConfig, module.config)).exclusive_window


def register() -> None:
    """Make the function known to transformers by its name; doing so again changes nothing."""
    AttentionInterface.register(NAME, attend)


@contextmanager
def witnessed() -> Iterator[list[Witness]]:
    """Collect the modules that call the function inside the block, and what each tells it."""
    witnesses: list[Witness] = []
    token = _WITNESSES.set(witnesses)
    try:
        yield witnesses
    finally:
        _WITNESSES.reset(token)


@contextmanager
def evened() -> Iterator[None]:
    """Inside the block every token that may be seen is seen: queries and keys have length 1, weights are nearly even.

    For who asks who *may* see whom; a trained head may give a token it sees a weight that rounds to nothing.
    """
    token = _EVEN.set(True)
    try:
        yield
    finally:
        _EVEN.reset(token)


def _runs(query: Tensor, key: Tensor, value: Tensor, rule: Rule, layout: Layout, layer: int) -> Tensor:
    """One call for each run, on views of the stream."""
    runs, tensors = runs_of(layout.lengths, layout.slice_documents, layout.unmasked[layer]), (query, key, value)
    if rule.plain and not any(_has_window(run, rule) for run in runs):
        short = [_better_in_fp32(query, run) for run in runs]
        if all(short):
            tensors = tensors[0].float(), tensors[1].float(), tensors[2].float()
        if all(short) or not any(short):
            each = documents.attend_each if documents.can_attend(tensors) else documents.attend_publicly
            return each(tensors, runs, rule.scale).to(query.dtype)
    parts = zip(runs, documents.split(tensors, runs), strict=True)
    return documents.joined([_one_run(run, *part, rule) for run, part in parts])


def _one_run(run: Run, q: Tensor, k: Tensor, v: Tensor, rule: Rule) -> Tensor:
    """Attention within each of a run's documents: (documents, H or G, n, C) to (documents, H, n, C)."""
    if not rule.plain:
        return _written_out(q, k, v, rule, run)
    mask, dtype = _window_mask(run, rule, q.device), q.dtype
    if _better_in_fp32(q, run):
        q, k, v = q.float(), k.float(), v.float()
    return functional.scaled_dot_product_attention(
        q, k, v,
        attn_mask=mask,
        is_causal=mask is None and not run.both,
        scale=rule.scale,
        enable_gqa=q.shape[1] != k.shape[1],
    ).to(dtype)  # fmt: skip


def _better_in_fp32(query: Tensor, run: Run) -> bool:
    """Whether the CPU kernel's backward pass is slower in 16 bits: up to nine times for short documents."""
    short = run.length <= SHORT and query.requires_grad
    return short and query.device.type == "cpu" and query.dtype != torch.float32


def _written_out(query: Tensor, key: Tensor, value: Tensor, rule: Rule, run: Run) -> Tensor:
    """Soft-capped scores and sinks, step by step; the softmax in fp32, as the stock families' own code."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = (query @ key.transpose(-1, -2)).float() * rule.scale  # (documents, H, n, n)
    if rule.softcap is not None:
        scores = torch.tanh(scores / rule.softcap) * rule.softcap
    mask = _window_mask(run, rule, query.device)
    if mask is None and not run.both:
        mask = _band(run.length, run.length, 0, query.device)
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    if rule.sinks is not None:  # a column that takes its share of the weight and gives no value
        sinks = rule.sinks.float().view(1, -1, 1, 1).expand(*scores.shape[:-1], 1)
        scores = torch.cat([scores, sinks], dim=-1)
    weights = torch.softmax(scores, dim=-1)[..., : run.length]
    return weights.to(value.dtype) @ value


def _has_window(run: Run, rule: Rule) -> bool:
    """Whether the run's documents are longer than the layer's window."""
    return rule.window is not None and rule.reach is not None and run.length - 1 > _sight(rule, run.both)[0]


def _sight(rule: Rule, both: bool) -> tuple[int, int]:
    """Tokens seen before and after one's own, in a windowed layer."""
    assert rule.window is not None and rule.reach is not None
    return (rule.reach, rule.reach) if both else (rule.window - 1, 0)


def _window_mask(run: Run, rule: Rule, device: torch.device) -> Tensor | None:
    """Who sees whom in a windowed layer, bool (n, n); None where the window holds the whole document."""
    return _band(run.length, *_sight(rule, run.both), device) if _has_window(run, rule) else None


def _band(length: int, before: int, after: int, device: torch.device) -> Tensor:
    """Bool (n, n): token i sees j where `-after <= i - j <= before`."""
    place = torch.arange(length, device=device)
    distance = place[:, None] - place[None, :]
    return (distance <= before) & (distance >= -after)


# CUDA: torch.nn.attention.varlen, whose signature grew from release to release


_kernel: Callable[..., Any] = varlen_attn
_VARLEN = frozenset(inspect.signature(_kernel).parameters)
AMPERE = (8, 0)
"""The compute capability that flash attention asks for; a T4 or V100 has less, and takes a call for each run."""


def _flash_can(query: Tensor, value: Tensor, rule: Rule) -> bool:
    """Whether the kernel takes these tensors: flash attention wants 16 bits, heads of at most 256, a multiple of 8."""
    if not query.is_cuda or not rule.plain:
        return False
    head = query.shape[-1]
    fits = query.dtype in (torch.float16, torch.bfloat16) and head == value.shape[-1] <= 256 and head % 8 == 0
    fits = fits and torch.cuda.get_device_capability(query.device) >= AMPERE
    return fits and ("window_size" in _VARLEN or rule.window is None)


def _flash(query: Tensor, key: Tensor, value: Tensor, rule: Rule, layout: Layout, layer: int) -> Tensor:
    """At most two calls: the documents that look back, and those that look both ways."""
    q, k, v = (t[0].transpose(0, 1) for t in (query, key, value))  # (N, H, C)
    both = layout.unmasked[layer]
    ways = set(both)
    if len(ways) > 1:  # a slice may have no document
        ways = {way for way, _ in directed(layout.lengths, layout.slice_documents, both)}
    if len(ways) == 1:
        return _varlen(q, k, v, rule, layout.cu_seqlens, max(layout.lengths), ways.pop()).unsqueeze(0)
    parts, places = [], []
    for direction in (False, True):
        index, bounds, longest = _subset(layout.lengths, layout.slice_documents, both, direction, q.device)
        parts.append(_varlen(q[index], k[index], v[index], rule, bounds, longest, direction))
        places.append(index)
    return torch.cat(parts)[torch.cat(places).argsort()].unsqueeze(0)


def _varlen(q: Tensor, k: Tensor, v: Tensor, rule: Rule, bounds: Tensor, longest: int, both: bool) -> Tensor:
    """One kernel call in the words of the torch at hand."""
    words: dict[str, object] = {}
    if "scale" in _VARLEN:
        words["scale"] = rule.scale
    else:  # the kernel divides by the root of the head size
        q = q * (rule.scale * math.sqrt(q.shape[-1]))
    if "enable_gqa" in _VARLEN:
        words["enable_gqa"] = q.shape[1] != k.shape[1]
    else:
        k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], dim=1) for t in (k, v))
    if "window_size" in _VARLEN:
        words["window_size"] = _window_size(rule, both)
    else:
        words["is_causal"] = not both
    out = _kernel(q, k, v, bounds, bounds, longest, longest, **words)
    assert isinstance(out, Tensor)
    return out


def _window_size(rule: Rule, both: bool) -> tuple[int, int]:
    """Tokens seen to the left and to the right; -1 is all."""
    if rule.window is None or rule.reach is None:
        return (-1, -1) if both else (-1, 0)
    return _sight(rule, both)


@lru_cache(maxsize=16)
def _subset(
    lengths: tuple[int, ...],
    slice_documents: tuple[int, ...],
    both: tuple[bool, ...],
    direction: bool,
    device: torch.device,
) -> tuple[Tensor, Tensor, int]:
    """The tokens of the documents of one direction, their boundaries (int32), and the longest of them."""
    chosen = [(way == direction, length) for way, length in directed(lengths, slice_documents, both)]
    kept = [n for c, n in chosen if c]
    with torch.inference_mode(False):  # the cache may serve a training step later
        keep = torch.repeat_interleave(torch.tensor([c for c, _ in chosen]), torch.tensor([n for _, n in chosen]))
        bounds = torch.tensor([0, *kept]).cumsum(0).to(torch.int32)
        return keep.nonzero().flatten().to(device), bounds.to(device), max(kept, default=0)
