"""One backbone, K members: slice k of a packed batch runs through the shared layers and is read by member k.

A `Member` is everything of one model but the backbone: adapter, mask policy, depth, pooling, head. `build` resolves
its settings once, against the real backbone.

Shapes: N tokens, P pieces, S targets, H hidden units, L labels, all of one slice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import torch
from torch import nn

from labeltune.errors import SettingsError
from labeltune.keys import Key
from labeltune.model import lora, updates
from labeltune.model.backbone import Backbone
from labeltune.model.crf import CRF
from labeltune.model.heads import Head, StockHead, Unit, load_tensors, save_tensors
from labeltune.model.layout import Layout
from labeltune.model.pooling import LEARNED, Pooling, combine, places
from labeltune.model.ranges import parse_layers
from labeltune.model.recording import Recorder
from labeltune.model.settings import HeadConfig, LoraConfig, ModelConfig
from labeltune.model.stock import stock_head
from labeltune.schema import Batch
from labeltune.transfer import sent

ADAPTER, HEAD = "adapter", "head.safetensors"
"""Where a member's weights lie in its folder."""
MOST_READ = 0.5
"""The share of the tokens up to which those that are read go through the last block alone."""


class Member(nn.Module):
    """One adapter (or none), directions per layer, depth, pooling and head. Parameters are fp32.

    directions: True where the layer looks both ways, one for each of the backbone's layers.
    depth: blocks used; the backbone's final norm is applied to the last of them.
    pool_on: `hidden`, or `logits` (the head reads every token, and its logits are pooled).
    """

    def __init__(
        self,
        *,
        adapter: lora.Adapter | None,
        directions: tuple[bool, ...],
        depth: int,
        pooling: Pooling,
        pool_on: str,
        head: Head | StockHead,
    ) -> None:
        super().__init__()
        self.adapter = adapter
        self.directions, self.depth, self.pool_on = directions, depth, pool_on
        self.pooling, self.head = pooling, head

    def read(self, hidden_NH: torch.Tensor, part: Part, key: Key | None) -> torch.Tensor:
        """Logits (S, L) of one slice, in fp32."""
        if not part.targets:
            return hidden_NH.new_zeros(0, self.head.labels, dtype=torch.float32)
        if self.pool_on == "logits":
            logits_NL = self.head(hidden_NH, key, part.token_row, part.token_index)
            return self._pool(logits_NL, part)
        targets_SH = self._pool(hidden_NH, part)
        at_S = part.first_tokens()
        logits_SL: torch.Tensor = self.head(targets_SH, key, part.token_row[at_S], part.token_index[at_S])
        return logits_SL

    def save(self, folder: Path, base_model: str | None = None, revision: str | None = None) -> None:
        """Write `adapter/` (plain PEFT, where there is one) and `head.safetensors` (head, CRF, learned pooling)."""
        if self.adapter is not None:
            self.adapter.save(folder / ADAPTER, base_model, revision)
        save_tensors(folder / HEAD, self._reading())

    def load(self, folder: Path) -> None:
        """Fill the weights from what `save` wrote.

        Raises:
            RunError: a file or tensor is missing, damaged, left over, or not what the settings ask for.
        """
        if self.adapter is not None:
            self.adapter.fill(lora.Adapter.load(folder / ADAPTER), folder / ADAPTER)
        load_tensors(folder / HEAD, self._reading())

    def _pool(self, values_ND: torch.Tensor, part: Part) -> torch.Tensor:
        pieces_PD = self.pooling(values_ND, part.starts, part.ends)
        return combine(pieces_PD, part.weights, part.piece_target, part.targets, self.pooling.name)

    def _reading(self) -> nn.ModuleDict:
        return nn.ModuleDict({"head": self.head, "pooling": self.pooling})


@dataclass(frozen=True)
class Part:
    """One slice of a batch in its own coordinates: tokens, pieces and targets count from 0."""

    starts: torch.Tensor
    ends: torch.Tensor
    weights: torch.Tensor
    piece_target: torch.Tensor
    token_row: torch.Tensor
    token_index: torch.Tensor
    targets: int

    @classmethod
    def of(cls, batch: Batch, k: int) -> Part:
        """Slice k."""
        tokens, pieces, targets = (
            slice(bounds[k], bounds[k + 1]) for bounds in (batch.slice_tokens, batch.slice_pieces, batch.slice_targets)
        )
        return cls(
            starts=batch.piece_starts[pieces] - tokens.start,
            ends=batch.piece_ends[pieces] - tokens.start,
            weights=batch.piece_weights[pieces],
            piece_target=batch.piece_target[pieces] - targets.start,
            token_row=batch.token_row[tokens],
            token_index=batch.token_index[tokens],
            targets=targets.stop - targets.start,
        )

    def first_tokens(self) -> torch.Tensor:
        """Where each target begins, (S): the address that the head's dropout draws from."""
        if len(self.starts) == self.targets:
            return self.starts
        numbers_S = torch.arange(self.targets, device=self.starts.device)
        return self.starts[torch.searchsorted(self.piece_target, numbers_S)]


class LabelModel(nn.Module):
    """One backbone and K members; what trains, answers and serves.

    Any number of LabelModels may share a backbone: each one's adapters act in its own passes only.
    """

    def __init__(self, backbone: Backbone, members: Sequence[Member]) -> None:
        super().__init__()
        self.backbone = backbone
        self.members: Sequence[Member] = nn.ModuleList(members)  # type: ignore[assignment]  # its items are Modules to mypy
        modules = dict(backbone.model.named_modules())
        self._attached = updates.attach(modules, [member.adapter for member in members], backbone.slot)
        adapters = [member.adapter for member in members if member.adapter is not None]
        self._recorder = Recorder(backbone, self._attached, [p for adapter in adapters for p in adapter.parameters()])

    def forward(self, batch: Batch, keys: Sequence[Key | None] | None = None) -> list[torch.Tensor]:
        """Per slice its logits (S_k, L_k), fp32. keys: this pass's randomness per slice; none outside training."""
        keys = keys if keys is not None else [None] * len(self.members)
        layout = replace(self.layout(batch, keys), read=self._read(batch))
        depths = [member.depth for member in self.members]
        hidden = self._recorder.hidden(batch, layout, depths)
        if hidden is None:
            hidden = self.backbone.hidden(batch, layout, depths)
        slices = enumerate(zip(self.members, hidden, keys, strict=True))
        return [member.read(hidden_NH, Part.of(batch, k), key) for k, (member, hidden_NH, key) in slices]

    def layout(self, batch: Batch, keys: Sequence[Key | None]) -> Layout:
        """Who is where in this batch, who sees whom, and whose adapters act."""
        bounds = batch.cu_seqlens.tolist()
        return Layout(
            lengths=tuple(b - a for a, b in pairwise(bounds)),
            cu_seqlens=sent(batch.cu_seqlens.to(torch.int32), self.backbone.device),
            slice_tokens=batch.slice_tokens,
            slice_documents=batch.slice_documents,
            unmasked=tuple(zip(*(member.directions for member in self.members), strict=True)),
            token_row=batch.token_row,
            token_index=batch.token_index,
            keys=tuple(keys),
            owner=self._attached,
        )

    def _read(self, batch: Batch) -> torch.Tensor | None:
        """The tokens that members read, where they are few and the backbone can let them go on alone."""
        if not self.backbone.narrowed or any(member.depth < self.backbone.layers for member in self.members):
            return None
        read = []
        for member, (first, last) in zip(self.members, pairwise(batch.slice_pieces), strict=True):
            starts_P, ends_P = batch.piece_starts[first:last], batch.piece_ends[first:last]
            read.append(places(member.pooling.name, starts_P, ends_P))
            if sum(map(len, read)) > MOST_READ * batch.slice_tokens[-1]:
                return None
        read_M: torch.Tensor = torch.cat(read).unique()
        return read_M if len(read_M) else None

    def detach(self) -> None:
        """Take the adapters' hooks off the backbone; the model must not run afterwards."""
        self._attached.remove()


def merge(backbone: Backbone, member: Member) -> Member:
    """Write the member's adapter into the backbone's weights (fp32 only), and give the member that goes with them."""
    if member.adapter is not None:
        lora.merge(dict(backbone.model.named_modules()), member.adapter)
    return Member(
        adapter=None,
        directions=member.directions,
        depth=member.depth,
        pooling=member.pooling,
        pool_on=member.pool_on,
        head=member.head,
    )


def build(
    backbone: Backbone,
    model: ModelConfig,
    lora_config: LoraConfig,
    head: HeadConfig,
    *,
    task_unmask: str,
    task_pooling: str,
    task_bias: bool,
    task_shared: bool = False,
    task_units: bool = False,
    width: int,
    key: Key,
) -> Member:
    """A fresh member, its settings resolved against the backbone; `task_…` are the task's choices where they are open.

    task_shared: one weight vector for all logits (CORAL).
    task_units: targets are words. width: labels of the head. key: of the initial weights.

    Raises:
        SettingsError, ModelError: a setting that this backbone cannot follow.
    """
    pooling = model.pooling or task_pooling
    if pooling in LEARNED and model.pool_on == "logits":
        raise SettingsError(
            f"{pooling} pooling has a query for hidden states, not for logits",
            at="model.pool_on",
            hint='set model.pool_on = "hidden", or model.pooling = "max"',
        )
    bias = task_bias if head.bias is None else head.bias
    if task_shared and not bias:
        raise SettingsError("thresholds differ by their biases alone", at="head.bias", hint="leave it out")
    depth = _depth(backbone, model)
    member = Member(
        adapter=build_adapter(backbone, lora_config, depth, key),
        directions=_directions(backbone, model.unmask or task_unmask, depth),
        depth=depth,
        pooling=Pooling(pooling, backbone.hidden_size),
        pool_on=model.pool_on,
        head=_stock_head(model, head, width, task_shared, task_units, key)
        if head.kind == "stock"
        else Head(
            backbone.hidden_size,
            width,
            bias=bias,
            dropout=head.dropout,
            key=key,
            shared=task_shared,
            crf=CRF(width) if head.crf else None,
            unit=_unit(head),
        ),
    )
    return member.to(backbone.device)


def _stock_head(model: ModelConfig, head: HeadConfig, width: int, shared: bool, units: bool, key: Key) -> StockHead:
    if head.crf or shared:
        what = "a CRF" if head.crf else "an ordinal task"
        raise SettingsError(f"a stock head does not go with {what}", at="head.kind", hint='set it to "linear"')
    return stock_head(model, width, units=units, dropout=head.dropout, key=key, unit=_unit(head))


def _unit(head: HeadConfig) -> Unit:
    return Unit(head.mean or 0.0, head.std or 1.0)


def _depth(backbone: Backbone, model: ModelConfig) -> int:
    depth = model.depth or backbone.layers
    if depth > backbone.layers:
        raise SettingsError(f"there is no block {depth}", at="model.depth", hint=f"the last is {backbone.layers}")
    return depth


def _directions(backbone: Backbone, unmask: str, depth: int) -> tuple[bool, ...]:
    """The mask policy against the member's own depth; blocks beyond it stay causal, and unread."""
    directions = backbone.policy(unmask)
    if depth < backbone.layers:
        directions = parse_layers(unmask, depth, at="model.unmask") + (False,) * (backbone.layers - depth)
    return directions


def build_adapter(backbone: Backbone, config: LoraConfig, depth: int, key: Key) -> lora.Adapter | None:
    """A fresh adapter on the modules and blocks that the settings name; None for `none` and `full`."""
    if config.kind in ("none", "full"):
        return None
    adapted = parse_layers(config.layers or "all", depth, at="lora.layers")
    block_of = {id(part): number for number, block in enumerate(backbone.blocks) for part in block.modules()}
    modules = {
        name: module
        for name, module in backbone.linear_modules(config.targets).items()
        if block_of[id(module)] < depth and adapted[block_of[id(module)]]
    }
    if not modules:
        raise SettingsError(
            "no layer is left to adapt",
            at="lora.layers",
            hint='name some, or set lora.kind = "none" to train the head alone',
        )
    return lora.Adapter.build(modules, config, key)
