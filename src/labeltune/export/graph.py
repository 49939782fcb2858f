"""The graph that we own: body, pooling and head in one module over padded windows, for exporters to trace.

Attention is one function that knows the padding and each layer's direction, so per-layer masks are in the graph. It
reaches the layers as labeltune's own does, by a name of transformers' `AttentionInterface`, with no mask of theirs.
Windows are padded at the right: positions count from their first token, and no real token sees a padded one.

Shapes: B windows of T tokens, H heads, C head size, S targets, M reads of a target, D features, L logits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, PretrainedConfig, PreTrainedModel

from labeltune.errors import ModelError
from labeltune.model.families import family_of, position_start
from labeltune.model.narrowing import hooked

NAME, SIGHT = "labeltune_padded", "labeltune_sight"


@dataclass(frozen=True)
class Sight:
    """Who may be seen: `real` is bool (B, T), no padding; `both` says of each layer whether it looks both ways."""

    real: Tensor
    both: tuple[bool, ...]


class Graph(nn.Module):
    """(input_ids (B, T), attention_mask (B, T), reads (S, M), shares (S, M)) -> logits (S, L).

    reads: places in the flat batch; shares: of each in its target, 0 where it is none.
    """

    def __init__(
        self,
        body: PreTrainedModel,
        head: nn.Module,
        *,
        both: Sequence[bool],
        pooling: str,
        pool_on: str,
        narrowed: Sequence[str] = (),
    ) -> None:
        """narrowed: modules of the body's last block that compute what is read alone (see `model.narrowing`)."""
        super().__init__()
        AttentionInterface.register(NAME, attend)
        body.set_attn_implementation(NAME)
        self.body, self.head, self.both = body, head, tuple(both)
        self.largest, self.on_logits = pooling == "max", pool_on == "logits"
        self.start = position_start(body.config.get_text_config())
        self.read: Tensor | None = None
        hooked(body, narrowed, lambda: self.read)
        self.eval()

    def forward(self, input_ids: Tensor, attention_mask: Tensor, reads: Tensor, shares: Tensor) -> Tensor:
        """Logits (S, L)."""
        positions = torch.arange(input_ids.shape[1], device=input_ids.device).unsqueeze(0) + self.start
        words: dict[str, Any] = {SIGHT: Sight(attention_mask.bool(), self.both)}
        if not family_of(self.body.config.get_text_config()).encoder:
            words["use_cache"] = False
        self.read = reads.flatten()
        values_BTD = self.body(input_ids=input_ids, position_ids=positions, **words)[0].float()
        if self.on_logits:
            values_BTD = self.head(values_BTD)
        read_SMD = values_BTD.flatten(0, 1)[reads]
        share_SM1 = shares.unsqueeze(-1)
        if self.largest:
            pooled_SD = read_SMD.masked_fill(share_SM1 == 0, -math.inf).amax(1)
        else:
            pooled_SD = (read_SMD * share_SM1).sum(1)
        logits_SL: Tensor = pooled_SD if self.on_logits else self.head(pooled_SD)
        return logits_SL


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    labeltune_sight: Sight | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """Attention over padded rows: (B, H, T, C) each to (B, T, H, C)."""
    if labeltune_sight is None:
        raise ModelError("this family does not pass on who sees whom", hint="predict with --backend torch")
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    seen = _seen(module, labeltune_sight, sliding_window)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if softcap is None and s_aux is None:
        out = functional.scaled_dot_product_attention(query, key, value, attn_mask=seen, scale=scale)
        return out.transpose(1, 2), None
    scores = (query @ key.transpose(-1, -2)) * scale
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    scores = scores.masked_fill(~seen, torch.finfo(scores.dtype).min)
    if s_aux is not None:  # a column that takes its share of the weight and gives no value
        scores = torch.cat([scores, s_aux.view(1, -1, 1, 1).expand(*scores.shape[:-1], 1)], dim=-1)
    weights = torch.softmax(scores, dim=-1)[..., : key.shape[2]]
    return (weights @ value).transpose(1, 2), None


def _seen(module: nn.Module, sight: Sight, window: int | None) -> Tensor:
    """Bool (B, 1, T, T): token i sees j. Every token sees itself, so that no row of padding is a division by zero."""
    layer = module.layer_idx
    assert isinstance(layer, int)
    place = torch.arange(sight.real.shape[1], device=sight.real.device)
    distance = place[:, None] - place[None, :]
    seen = torch.ones_like(distance, dtype=torch.bool)
    if not sight.both[layer]:
        seen = distance >= 0
    if window is not None:
        seen = seen & (distance.abs() <= _reach(module, window, both=sight.both[layer]))
    return (seen & sight.real[:, None, None, :]) | (distance == 0)


def _reach(module: nn.Module, window: int, *, both: bool) -> int:
    """How far a windowed layer looks: both ways, by its family's convention."""
    config: Any = module.config
    assert isinstance(config, PretrainedConfig)
    return window if both and not family_of(config).exclusive_window else window - 1
