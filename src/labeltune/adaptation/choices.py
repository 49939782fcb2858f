"""The open choices of an adaptation, settled: written into the settings, so that a run repeats without guessing."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from labeltune.adaptation.objectives import OBJECTIVES
from labeltune.adaptation.settings import Adaptation, AdaptConfig
from labeltune.data.batches import GPU_MICRO_TOKENS, MICRO_TOKENS
from labeltune.errors import ModelError, SettingsError
from labeltune.model.causal import Causal
from labeltune.storage import expanded

CONTEXT = 512
REFERENCE = 4096
"""The hidden size at which the learning rates are stated."""


def settle(config: Adaptation, causal: Causal) -> Adaptation:
    """Write every open choice into the settings, so that they repeat without this machine's defaults."""
    adapt, backbone = config.adapt, causal.backbone
    fresh, hidden = adapt.from_config is not None, backbone.hidden_size
    unmask = config.model.unmask or OBJECTIVES[adapt.objective].unmask
    if OBJECTIVES[adapt.objective].whole and any(backbone.policy(unmask)):
        hint = "set model.unmask = 'none', or adapt.objective = 'mntp'"
        raise SettingsError("without its mask the model would see the token it predicts", at="model.unmask", hint=hint)
    context = adapt.context or min(backbone.context or CONTEXT, CONTEXT)
    if backbone.context is not None and context > backbone.context:
        message = f"{context} is more than the {backbone.context} tokens that the model can read"
        raise SettingsError(message, at="adapt.context", hint=f"set it to at most {backbone.context}")
    lr = adapt.lr or default_lr(hidden, fresh=fresh, adapter=config.lora is not None)
    on_cpu = backbone.device.type == "cpu"
    chosen = {
        "context": context,
        "lr": lr,
        "matrix_lr": adapt.matrix_lr or 2 * lr,
        "optimiser": adapt.optimiser or ("muon" if fresh else "adamw"),
        "micro_tokens": adapt.micro_tokens or (MICRO_TOKENS if on_cpu else GPU_MICRO_TOKENS),
        "device": backbone.device.type,
        "threads": adapt.threads or torch.get_num_threads(),
    }
    model = {"unmask": unmask, "weights_sha256": _weights(config, causal), "dtype": _dtype(config, causal)}
    return config.model_copy(
        update={
            "adapt": adapt.model_copy(update=chosen),
            "model": config.model.model_copy(update=model | {"revision": backbone.revision or config.model.revision}),
        }
    )


def default_lr(hidden: int, *, fresh: bool, adapter: bool) -> float:
    """Peak learning rate of AdamW where none is set: of a fresh model, of an adapter, or of all weights."""
    if fresh:
        return 0.5 / hidden
    return 2e-4 * (REFERENCE / hidden) ** 0.5 if adapter else 2e-5 * REFERENCE / hidden


def _weights(config: Adaptation, causal: Causal) -> str | None:
    """The hash of the weights that the adaptation starts from."""
    found = causal.backbone.body_sha256()
    if config.model.weights_sha256 not in (None, found):
        message = "its weights are not those of the settings (another SHA-256)"
        hint = "restore the model, or leave model.weights_sha256 out"
        raise ModelError(message, at=str(config.model.name), hint=hint)
    return found


def _dtype(config: Adaptation, causal: Causal) -> str:
    """The precision of the forward pass; weights that are trained are fp32 masters beneath it."""
    if config.lora is not None or config.model.dtype not in ("auto", "fp16"):
        return config.model.dtype
    if config.model.dtype == "fp16":
        hint = "set model.dtype = 'bf16'"
        raise SettingsError("fp16 overflows where all weights are trained", at="model.dtype", hint=hint)
    return "bf16" if causal.backbone.device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"


def config_file(given: str) -> Path:
    """The file: the given one, or `config.json` in the given folder."""
    path = expanded(given)
    return path / "config.json" if path.is_dir() else path


def tokenizer_folder(config: AdaptConfig) -> Path | None:
    """Where a fresh model's tokenizer lies; None: beside the weights of `model.name`."""
    if config.from_config is None:
        return None
    folder = expanded(config.tokenizer) if config.tokenizer else config_file(config.from_config).parent
    if not folder.is_dir():
        raise SettingsError("there is no such folder", at=f"adapt.tokenizer = {str(folder)!r}")
    return folder


def mask_token_of(config: AdaptConfig, tokenizer: PreTrainedTokenizerBase) -> int:
    """The id of what hides a token: as set, the tokenizer's own mask token, else `_` (as LLM2Vec does)."""
    text = config.mask_token or tokenizer.mask_token or "_"
    known = tokenizer.convert_tokens_to_ids(text)
    if isinstance(known, int) and known != tokenizer.unk_token_id:
        return known
    pieces = tokenizer(text, add_special_tokens=False)["input_ids"]
    if not pieces:
        raise SettingsError(f"{text!r} is no token of this tokenizer", at="adapt.mask_token", hint="name another")
    return int(pieces[-1])
