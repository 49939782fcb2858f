"""The family's own classification head: taken from the stock model, read with one vector per target.

Encoders were published with heads of their own (BERT's pooler, RoBERTa's dense layer), partly pretrained. `head.kind =
"stock"` uses those, so that a published baseline can be trained here as it was there; its dropout is zero, as the
backbone's is.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PretrainedConfig,
    PreTrainedModel,
)

from labeltune.errors import ModelError
from labeltune.keys import Key, generator
from labeltune.model.checkpoints import UNREADABLE, named, quietly, read_config, resolve
from labeltune.model.families import FAMILIES
from labeltune.model.heads import StockHead, Unit
from labeltune.model.settings import ModelConfig

Stage = str | Callable[[], nn.Module]
"""A module of the stock model by its name, or one that has no weights."""


@dataclass(frozen=True)
class Route:
    """The way from a token's hidden state to the logits, in the stock models for texts and for tokens."""

    document: tuple[Stage, ...]
    unit: tuple[Stage, ...] = ("classifier",)


_POOLED, _OWN_CLASS, _SCORE = Route(("pooler", "classifier")), Route(("classifier",)), Route(("score",), ("score",))

ROUTES: dict[str, Route] = {
    **{name: _SCORE for name, family in FAMILIES.items() if family.packed and not family.encoder},
    **dict.fromkeys(("bert", "deberta-v2", "luke", "nomic_bert"), _POOLED),
    **dict.fromkeys(("camembert", "electra", "mpnet", "roberta", "xlm-roberta"), _OWN_CLASS),
    **dict.fromkeys(("biogpt", "gpt2", "gpt_bigcode", "gpt_neox"), Route(("score",))),  # for tokens, a classifier
    "distilbert": Route(("pre_classifier", nn.ReLU, "classifier")),
    "eurobert": Route(("dense", "activation", "classifier")),
    "modernbert": Route(("head", "classifier"), ("head", "classifier")),
}


def stock_head(config: ModelConfig, labels: int, *, units: bool, dropout: float, key: Key, unit: Unit) -> StockHead:
    """The head of the stock model for `labels` labels; weights that the checkpoint lacks are drawn from `key`.

    units: the one of the model for tokens, not for texts. unit: what the logits are counted in.

    Raises:
        ModelError: the family has no stock head that is known here, or the checkpoint cannot be read.
    """
    name = resolve(config)
    stock = copy.deepcopy(read_config(name, config))
    route = ROUTES.get(stock.model_type)
    if route is None:
        message, hint = f"no stock head of the family {stock.model_type} is known", 'set head.kind = "linear"'
        raise ModelError(message, at="head.kind", hint=hint)
    stock.num_labels = labels
    model = _read(name, config, stock, units, key)
    stages = [_stage(model, stage) for stage in (route.unit if units else route.document)]
    return StockHead(stages, labels, dropout=dropout, unit=unit)


def _read(name: str, config: ModelConfig, stock: PretrainedConfig, units: bool, key: Key) -> PreTrainedModel:
    read: Callable[..., Any] = (
        AutoModelForTokenClassification if units else AutoModelForSequenceClassification
    ).from_pretrained
    try:
        with torch.random.fork_rng(devices=[]), quietly():
            torch.manual_seed(generator(key.fold("head")).initial_seed())
            model: PreTrainedModel = read(
                name,
                config=stock,
                revision=config.revision,
                trust_remote_code=config.trust_remote_code,
                dtype=torch.float32,
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # a head for other labels
            )
    except UNREADABLE as error:
        message = f"its stock head cannot be read: {' '.join(str(error).split())[:300]}"
        raise ModelError(message, at=named(config), hint='set head.kind = "linear"') from error
    return model


def _stage(model: PreTrainedModel, stage: Stage) -> nn.Module:
    """A module of the whole model, or of its body."""
    if not isinstance(stage, str):
        return stage()
    found = getattr(model, stage, None)
    module = found if found is not None else getattr(model.base_model, stage, None)
    if not isinstance(module, nn.Module):
        message, hint = f"its stock head has no {stage!r}", 'set head.kind = "linear"'
        raise ModelError(message, at="head.kind", hint=hint)
    return module
