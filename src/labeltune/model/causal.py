"""A causal language model beside its own body as a `Backbone`: next-token logits at chosen places of a packed stream.

The body runs as everywhere in the house, packed and under the mask policy; the head is the family's own code, called
through the causal model, because `get_output_embeddings()(hidden)` is not the logits where a family caps or scales them
(gemma2, granite, cohere2). The vocabulary is asked for only at the chosen places: at 128,000 entries it costs more than
the body of a small model.

Shapes: N tokens of D packed documents, S chosen places, V entries of the vocabulary.
"""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from labeltune.errors import ModelError, RunError, SettingsError
from labeltune.keys import Key
from labeltune.model import attention
from labeltune.model.backbone import Backbone, wrap
from labeltune.model.checkpoints import UNREADABLE, quietly, read_causal, read_config, resolve
from labeltune.model.families import family_of, position_start
from labeltune.model.layout import Layout, equal_lengths
from labeltune.model.settings import ModelConfig


@dataclass(frozen=True)
class Causal:
    """A causal model, its body, and its configuration as its authors wrote it (the body's dropout is silenced)."""

    model: PreTrainedModel
    backbone: Backbone
    stock: PretrainedConfig

    def logits(self, input_ids: Tensor, position_ids: Tensor, layout: Layout, at: Tensor) -> Tensor:
        """The logits (S, V), in fp32, that the model gives after the tokens at the places `at` (S) of the stream."""
        if not self.backbone.packed:
            return self._rows(input_ids, layout, at)
        positions = position_ids.unsqueeze(0) + position_start(self.backbone.config)
        words = {"position_ids": positions, attention.LAYOUT: layout}
        return self._call(input_ids.unsqueeze(0), layout, at, words).squeeze(0).float()

    @torch.no_grad()
    def round_to(self, dtype: torch.dtype) -> None:
        """Round the weights to what `save` writes in `dtype`; they stay in the dtype that they have."""
        for weight in self.model.parameters():
            weight.copy_(weight.to(dtype))

    def save(self, folder: Path, dtype: torch.dtype) -> None:
        """Write a plain Hugging Face folder, its weights in `dtype`.

        Raises:
            RunError: the folder cannot be written.
        """
        weights = _cast(self.model.state_dict(), dtype)
        config = copy.deepcopy(self.stock)
        config.architectures, config.dtype = [type(self.model).__name__], dtype
        try:
            with quietly():
                self.model.save_pretrained(folder, state_dict=weights)
                config.save_pretrained(folder)
        except SafetensorError as error:
            raise RunError(f"the weights cannot be written: {error}", at=str(folder)) from error

    def _rows(self, input_ids: Tensor, layout: Layout, at: Tensor) -> Tensor:
        """Rows of exactly equal length, one forward for each length; only the columns that some row asks for."""
        turn_N = torch.full_like(input_ids, -1)
        turn_N[at] = torch.arange(len(at), device=at.device)
        parts, turns = [], []
        for index, sub in equal_lengths(layout):
            index = index.to(input_ids.device).view(-1, sub.lengths[0])
            turn_DT = turn_N[index]
            columns = (turn_DT >= 0).any(0).nonzero().flatten()
            if len(columns):
                asked = turn_DT[:, columns]
                parts.append(self._call(input_ids[index], sub, columns, {})[asked >= 0])
                turns.append(asked[asked >= 0])
        return torch.cat(parts)[torch.cat(turns).argsort()].float()

    def _call(self, ids_BT: Tensor, layout: Layout, at: Tensor, words: Mapping[str, object]) -> Tensor:
        """One forward of the causal model; (B, S, V)."""
        known = {"use_cache": False, "logits_to_keep": at}
        known = {name: value for name, value in known.items() if name in self._words}
        with self.backbone.slot.using(layout):
            logits: Tensor = self.model(input_ids=ids_BT, **known, **words).logits
        return logits if "logits_to_keep" in known else logits[:, at]

    @cached_property
    def _words(self) -> frozenset[str]:
        return frozenset(inspect.signature(self.model.forward).parameters)


def _cast(weights: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """The weights in `dtype`; tied ones are cast once and stay tied, so that they are written once."""
    cast: dict[int, Tensor] = {}
    for tensor in weights.values():
        if tensor.is_floating_point():
            cast.setdefault(tensor.data_ptr(), tensor.to(dtype))
    return {name: cast.get(tensor.data_ptr(), tensor) for name, tensor in weights.items()}


def load(
    config: ModelConfig,
    *,
    device: torch.device | str,
    checkpointing: bool = False,
    trainable: bool = False,
    masked: bool = False,
) -> Causal:
    """The causal model of the checkpoint that `config` names, head included, complete or refused.

    masked: an encoder's masked language model instead, which answers at the hidden token itself.

    Raises:
        ModelError: no such model, one of the other kind, weights missing or left over.
    """
    name = resolve(config)
    stock = read_config(name, config)
    _refuse_other_kind(stock, f"model.name = {config.name!r}", masked)
    model = read_causal(name, config, copy.deepcopy(stock), torch.device(device), masked=masked)
    return _beside(model, stock, checkpointing=checkpointing, trainable=trainable, source=name)


def build(
    path: Path,
    tokenizer: PreTrainedTokenizerBase,
    *,
    key: Key,
    device: torch.device | str,
    checkpointing: bool = False,
    masked: bool = False,
) -> Causal:
    """A fresh model, in fp32, of the configuration in a JSON file; its weights are a function of `key`.

    Where the file leaves them open, the size of the vocabulary and the special tokens are the tokenizer's.

    Raises:
        SettingsError: the file is no configuration of a decoder, or its vocabulary is too small.
    """
    stock = _read_json(path, tokenizer)
    _refuse_other_kind(stock, str(path), masked)
    kind: Any = AutoModelForMaskedLM if masked else AutoModelForCausalLM
    make: Callable[..., PreTrainedModel] = kind.from_config
    try:
        with torch.random.fork_rng(devices=[]), quietly():
            torch.manual_seed(key.value)
            model = make(copy.deepcopy(stock), dtype=torch.float32)
    except UNREADABLE as error:
        raise _no_config(path, error) from error
    model.to(device)  # type: ignore[arg-type]  # transformers' wrapper hides torch's signature
    return _beside(model, stock, checkpointing=checkpointing, trainable=True, source=str(path))


def _beside(
    model: PreTrainedModel, stock: PretrainedConfig, *, checkpointing: bool, trainable: bool, source: str
) -> Causal:
    backbone = wrap(model, checkpointing=checkpointing, trainable=trainable, source=source)
    for weight in model.parameters():
        weight.requires_grad_(trainable and weight.is_floating_point())
    return Causal(model, backbone, stock)


def _read_json(path: Path, tokenizer: PreTrainedTokenizerBase) -> PretrainedConfig:
    try:
        facts: Any = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(facts, dict):
            raise ValueError("it holds no object")
        kind = facts.pop("model_type")
        ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        with quietly():
            config: PretrainedConfig = AutoConfig.for_model(kind, **{"vocab_size": len(tokenizer), **ids, **facts})
    except FileNotFoundError:
        raise SettingsError("there is no such file", at=str(path), hint="give a config.json or its folder") from None
    except UNREADABLE as error:
        raise _no_config(path, error) from error
    entries = config.get_text_config().vocab_size
    if entries < len(tokenizer):
        message = f"vocab_size is {entries}, and the tokenizer has {len(tokenizer)} entries"
        raise SettingsError(message, at=str(path), hint="raise it, or leave it out")
    return config


def _no_config(path: Path, error: Exception) -> SettingsError:
    said = " ".join(str(error).split())[:300] or type(error).__name__
    hint = "it is the config.json of a decoder, with its model_type"
    return SettingsError(f"this is no configuration of a causal language model ({said})", at=str(path), hint=hint)


def _refuse_other_kind(config: PretrainedConfig, at: str, masked: bool) -> None:
    encoder = family_of(config.get_text_config()).encoder
    if masked and not encoder:
        hint = "choose an encoder (bert, roberta, modernbert, …)"
        if config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
            raise ModelError(f"labeltune does not know {config.model_type} as an encoder", at=at, hint=hint)
        hint += ", or adapt.objective = 'mntp'"
        raise ModelError(f"{config.model_type} fills in no hidden token at its own place", at=at, hint=hint)
    if not masked and (config.is_encoder_decoder or encoder):
        raise ModelError(
            f"{config.model_type} predicts no next token", at=at, hint="choose a decoder (llama, mistral, qwen3, …)"
        )
