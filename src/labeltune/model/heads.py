"""Turn a target's vector into its logits, in fp32 whatever the backbone's dtype.

Shapes: S targets (or tokens, where logits are pooled), D features, L labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from labeltune.errors import RunError
from labeltune.keys import Key, generator, keep_mask
from labeltune.model.crf import CRF
from labeltune.storage import write_atomic

INITIAL_STD = 0.02
"""Standard deviation of fresh weights, stock transformers' `initializer_range`."""


@dataclass(frozen=True)
class Unit:
    """What a head's logits are counted in: mean + std x what the layers give.

    Layers that begin near 0, and learn in steps of a learning rate, give numbers around 0 with a spread of about 1;
    prices or years are neither.
    """

    mean: float = 0.0
    std: float = 1.0

    def of(self, values: torch.Tensor) -> torch.Tensor:
        """The layers' numbers as the user's."""
        return values if self == PLAIN else values * self.std + self.mean

    def fold(self, layer: nn.Linear) -> None:
        """Write the unit into a last layer, which then gives the user's numbers itself."""
        with torch.no_grad():
            layer.weight.mul_(self.std)
            old = dict(layer.named_parameters()).get("bias")
            if old is not None or self.mean:
                bias_L = layer.weight.new_zeros(layer.out_features) if old is None else old.detach()
                layer.bias = nn.Parameter(self.of(bias_L))


PLAIN = Unit()
"""Logits as the layers give them."""


class Head(nn.Module):
    """One linear layer, with dropout on its input.

    Fresh weights are normal(0, 0.02), as stock transformers initialises a classification head; biases are zero.
    shared: one weight vector for all logits, told apart by their biases, which begin as the thresholds of labels that
    are all equally likely: in order, for thresholds that cross leave no probability between them.
    crf: the transition scores of a head whose task decides over sequences; trained and saved with the head.
    unit: what the logits are counted in.
    """

    def __init__(
        self,
        features: int,
        labels: int,
        *,
        bias: bool,
        dropout: float,
        key: Key,
        shared: bool = False,
        crf: CRF | None = None,
        unit: Unit = PLAIN,
    ) -> None:
        super().__init__()
        drawn_LD = torch.randn(1 if shared else labels, features, generator=generator(key.fold("head")))
        self.weight = nn.Parameter(drawn_LD * INITIAL_STD)
        self.bias = nn.Parameter(_thresholds(labels) if shared else torch.zeros(labels)) if bias else None
        self.labels, self.dropout, self.crf, self.unit = labels, dropout, crf, unit

    def forward(
        self, vectors_SD: torch.Tensor, key: Key | None, row_S: torch.Tensor, index_S: torch.Tensor
    ) -> torch.Tensor:
        """Logits (S, L).

        key: of this pass's randomness, None outside training. row_S, index_S: the address of each vector, which is
        its token's, or its target's first token's.
        """
        vectors_SD = dropped(vectors_SD.float(), self.dropout, key, row_S, index_S)
        return self.unit.of(F.linear(vectors_SD, self.weight.expand(self.labels, -1), self.bias))


def _thresholds(count: int) -> torch.Tensor:
    """The logits of being above each threshold, the labels between them being equally likely."""
    return torch.logit(torch.arange(count, 0, -1) / (count + 1))


class StockHead(nn.Module):
    """Modules of a stock model in a row, the last linear layer giving the logits.

    Stages that read the first token of a text are handed texts of one token.
    """

    crf = None

    def __init__(self, stages: Sequence[nn.Module], labels: int, *, dropout: float, unit: Unit = PLAIN) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages).float().requires_grad_(True)
        self.labels, self.dropout, self.unit = labels, dropout, unit
        for module in self.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0

    @property
    def weight(self) -> torch.Tensor:
        """Of the last layer, (L, …)."""
        return [module for module in self.modules() if isinstance(module, nn.Linear)][-1].weight

    def forward(
        self, vectors_SD: torch.Tensor, key: Key | None, row_S: torch.Tensor, index_S: torch.Tensor
    ) -> torch.Tensor:
        """Logits (S, L), as `Head`."""
        values: torch.Tensor = dropped(vectors_SD.float(), self.dropout, key, row_S, index_S)[:, None]
        for stage in self.stages:
            values = stage(values)
        return self.unit.of(values.reshape(-1, self.labels))


def dropped(
    vectors_SD: torch.Tensor, share: float, key: Key | None, row_S: torch.Tensor, index_S: torch.Tensor
) -> torch.Tensor:
    """A head's input with addressed dropout; as it is where there is no key, or no dropout."""
    if key is None or not share:
        return vectors_SD
    keep_SD = keep_mask(key.fold("head"), row_S, index_S, vectors_SD.shape[1], share)
    return torch.where(keep_SD, vectors_SD / (1 - share), 0.0)


def save_tensors(path: Path, module: nn.Module) -> None:
    """Write a module's parameters as safetensors, under their own names."""
    tensors = {name: parameter.detach().cpu().contiguous() for name, parameter in module.named_parameters()}
    write_atomic(path, save(tensors, metadata={"format": "pt"}))


def load_tensors(path: Path, module: nn.Module) -> None:
    """Fill a module's parameters from a file that holds exactly them.

    Raises:
        RunError: the file is missing or damaged, or a tensor is missing, left over, or of another shape or dtype.
    """
    try:
        tensors = load_file(path)
    except FileNotFoundError:
        raise RunError("the head's weights are missing", at=str(path), hint="copy or train the run again") from None
    except SafetensorError as error:
        raise RunError(f"the head's weights are damaged: {error}", at=str(path)) from None
    own = dict(module.named_parameters())
    for name in sorted(own.keys() | tensors.keys()):
        if name not in own or name not in tensors or _form(own[name]) != _form(tensors[name]):
            raise RunError(
                f"{name!r} is {_said(tensors.get(name))} in the file, and the settings ask for {_said(own.get(name))}",
                at=str(path),
                hint="the file or the settings were changed",
            )
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(tensors[name])


def _form(tensor: torch.Tensor) -> tuple[torch.Size, torch.dtype]:
    return tensor.shape, tensor.dtype


def _said(tensor: torch.Tensor | None) -> str:
    return "absent" if tensor is None else f"{tuple(tensor.shape)} {tensor.dtype}".replace("torch.", "")
