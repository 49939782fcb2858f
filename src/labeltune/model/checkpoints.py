"""A checkpoint in a folder or on the hub: its configuration, weights and tokenizer, read whole or refused."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError  # a configuration whose numbers do not fit one another
from safetensors import SafetensorError, safe_open
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging as hf_logging
from transformers.utils.hub import cached_file

from labeltune.errors import ModelError, SettingsError
from labeltune.model import attention
from labeltune.model.anatomy import find_blocks
from labeltune.model.families import context_of, family_of
from labeltune.model.lora import hush_bitsandbytes
from labeltune.model.settings import MINI, ModelConfig
from labeltune.storage import expanded

SHORT = (torch.bfloat16, torch.float16)
DTYPE_OF = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

_VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "*.bpe.model")
_LEFT_OVER = ("rotary_emb.inv_freq", "masked_bias", "attn.bias", "attention.bias")  # buffers in old checkpoints
UNREADABLE = (
    *(OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, ImportError, ZeroDivisionError),
    *(SafetensorError, StrictDataclassError),
)
"""What transformers raises for files that are damaged, or none of its own."""


def load_tokenizer(config: ModelConfig, folder: Path | None = None) -> PreTrainedTokenizerBase:
    """The checkpoint's own fast tokenizer, or that of `folder`: one that knows the characters each token came from."""
    name, at = (resolve(config), named(config)) if folder is None else (str(folder), str(folder))
    place = Path(name)
    if place.is_dir() and not any(match for pattern in _VOCABULARIES for match in place.glob(pattern)):
        raise ModelError(f"{name} holds no tokenizer", at=at, hint="copy the model's tokenizer files there")
    try:
        with quietly():
            tokenizer = _read_tokenizer(name, config)
    except UNREADABLE as error:
        raise _unreadable("the tokenizer", name, at, error) from error
    if not tokenizer.is_fast:
        hint = "convert it to a tokenizer.json"
        raise ModelError(f"the tokenizer of {name} cannot say which characters a token came from", hint=hint)
    return tokenizer


def _read_tokenizer(name: str, config: ModelConfig) -> PreTrainedTokenizerBase:
    """`tokenizer.json` as it is, where there is one.

    AutoTokenizer rebuilds some families' tokenizers from their vocabulary (transformers 5.23: LlamaTokenizer), and may
    lose the unknown token on the way: characters vanish, and the offsets behind them are wrong.
    """
    kind: Any = AutoTokenizer
    if cached_file(name, "tokenizer.json", revision=config.revision, _raise_exceptions_for_missing_entries=False):
        kind = PreTrainedTokenizerFast
    read: Callable[..., PreTrainedTokenizerBase] = kind.from_pretrained
    return read(name, revision=config.revision, trust_remote_code=config.trust_remote_code)


def read_context(config: ModelConfig) -> int | None:
    """The longest document that the checkpoint can read, in tokens, without loading its weights."""
    return context_of(read_config(resolve(config), config))


def resolve(config: ModelConfig) -> str:
    """A hub id or a folder that exists; `mini` is the backbone inside the package."""
    if config.name is None:
        raise SettingsError(
            "no backbone is named", at="model.name", hint="give --model a hub id or a folder, or 'mini'"
        )
    if config.name == MINI:
        folder = Path(str(resources.files("labeltune") / MINI))
        if not (folder / "config.json").is_file():
            hint = "install labeltune again, or name another model"
            raise ModelError("this installation lacks the bundled backbone 'mini'", at="model.name", hint=hint)
        return str(folder)
    if _is_folder(config.name):
        folder = expanded(config.name)
        _check_folder(folder)
        return str(folder)
    if not re.fullmatch(r"\w[\w.-]{0,95}(/\w[\w.-]{0,95})?", config.name, re.ASCII):
        raise ModelError(f"there is no folder {config.name[:200]!r}", at="model.name", hint="give a folder or a hub id")
    return config.name


def _is_folder(name: str) -> bool:
    try:
        return expanded(name).is_dir()
    except (OSError, ValueError, RuntimeError):  # longer than a path may be, a null byte, an unknown user's home
        return False


def weights_sha256(folder: Path) -> str:
    """The SHA-256 of the folder's safetensors files, one after the other in the order of their names."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


def named(config: ModelConfig) -> str:
    """The address of an error about the checkpoint."""
    return f"model.name = {config.name!r}"


def _check_folder(folder: Path) -> None:
    """A checkpoint has a config and safetensors; say which of the two is missing, and never open a pickle."""
    at = f"model.name = {str(folder)!r}"
    if not (folder / "config.json").is_file():
        raise ModelError("the folder has no config.json", at=at, hint="name a folder in Hugging Face format")
    if not any(folder.glob("*.safetensors")):
        hint = "save the model in safetensors format" if any(folder.glob("*.bin")) else "download the whole model"
        raise ModelError("the folder has no safetensors weights", at=at, hint=hint)


def read_config(name: str, config: ModelConfig) -> PretrainedConfig:
    """The stock configuration; a ModelError where there is none."""
    try:
        with quietly():
            read: Callable[..., PretrainedConfig] = AutoConfig.from_pretrained
            return read(name, revision=config.revision, trust_remote_code=config.trust_remote_code)
    except UNREADABLE as error:
        raise _unreadable("the model", name, named(config), error) from error


def read_body(
    name: str, config: ModelConfig, stock: PretrainedConfig, device: torch.device, *, mapped: bool = False
) -> PreTrainedModel:
    """The body alone; a tied checkpoint that stores its embedding as `lm_head` is read through the causal model.

    mapped: leave the weights in the file's memory map, in the file's dtype, where that can be widened to the settings'
    without a loss; no copy of them is made. Elsewhere they are read in the settings' dtype.
    """
    if mapped and (narrow := _stored(name, stock)) is not None and _dtype(config, device) == torch.float32:
        model = read_body(name, config.model_copy(update={"dtype": narrow}), stock, torch.device("cpu"))
        if not any(buffer.dtype in SHORT for buffer in model.buffers()):  # made in it, so rounded for good
            return model
    if mapped:
        device = torch.device("cpu")
    body: Callable[..., Any] = AutoModel.from_pretrained
    if family_of(stock.get_text_config()).pooler:
        body = partial(body, add_pooling_layer=False)
    model, faults = _read_as(body, name, config, stock, device)
    if faults and stock.get_text_config().tie_word_embeddings:
        causal, causal_faults = _read_as(AutoModelForCausalLM.from_pretrained, name, config, stock, device)
        if not causal_faults:
            return _body(causal)
    _refuse(faults, config)
    return _body(model)


def read_causal(
    name: str, config: ModelConfig, stock: PretrainedConfig, device: torch.device, *, masked: bool = False
) -> PreTrainedModel:
    """The causal language model, or an encoder's masked one, its head included."""
    kind: Any = AutoModelForMaskedLM if masked else AutoModelForCausalLM
    with quietly():
        model, faults = _read_as(kind.from_pretrained, name, config, stock, device)
    _refuse(faults, config)
    return model


def _stored(name: str, stock: PretrainedConfig) -> str | None:
    """`bf16` or `fp16` where all weights of a checkpoint are stored so."""
    folder = folder_of(name, getattr(stock, "_commit_hash", None))
    found: set[str] = set()
    for path in folder.glob("*.safetensors") if folder is not None else ():
        with safe_open(path, framework="pt") as file:
            found |= {file.get_slice(key).get_dtype() for key in file.keys()}  # noqa: SIM118 (safe_open is no mapping)
    return {"BF16": "bf16", "F16": "fp16"}.get(*found) if len(found) == 1 else None


def _body(model: PreTrainedModel) -> PreTrainedModel:
    body = model.base_model
    assert isinstance(body, PreTrainedModel)
    return body


def _refuse(faults: Sequence[str], config: ModelConfig) -> None:
    if faults:
        listed = ", ".join(faults[:3]) + (f" and {len(faults) - 3} more" if len(faults) > 3 else "")
        hint = "download it again, or name a checkpoint that fits its config.json"
        raise ModelError(f"the checkpoint does not fit its configuration: {listed}", at=named(config), hint=hint)


def _read_as(
    read: Callable[..., Any],
    name: str,
    config: ModelConfig,
    stock: PretrainedConfig,
    device: torch.device,
) -> tuple[PreTrainedModel, list[str]]:
    """The model and its faults: weights that are missing, left over in a block, or of another shape."""
    attention.register()
    words: dict[str, Any] = {}
    if family_of(stock.get_text_config()).packed:
        words["attn_implementation"] = attention.NAME
    if config.quantization != "none":
        words |= {"quantization_config": _quantization(config, device), "device_map": {"": device}}
    try:
        model, info = read(
            name,
            config=stock,
            revision=config.revision,
            trust_remote_code=config.trust_remote_code,
            dtype=_dtype(config, device),
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # they are faults of ours, named below
            output_loading_info=True,
            **words,
        )
    except UNREADABLE as error:
        raise _unreadable("the model", name, named(config), error) from error
    if config.quantization == "none":
        model.to(device)
    return model, _faults(info, find_blocks(_body(model), stock.get_text_config(), name))


def _faults(info: dict[str, Iterable[object]], blocks: str) -> list[str]:
    """Sentences on what does not fit; a left-over head is none, a left-over weight of a block is one."""
    left_over = [str(k) for k in info["unexpected_keys"] if f".{blocks}." in f".{k}"]
    return [
        *(f"{name} is missing" for name in sorted(map(str, info["missing_keys"]))),
        *(f"{name} is left over" for name in sorted(left_over) if not name.endswith(_LEFT_OVER)),
        *(f"{key[0]} has the shape {tuple(key[1])}, not {tuple(key[2])}" for key in _shapes(info["mismatched_keys"])),
        *map(str, info["error_msgs"]),
    ]


def _shapes(mismatched: Iterable[object]) -> list[tuple[str, Sequence[int], Sequence[int]]]:
    return sorted(key for key in mismatched if isinstance(key, tuple) and len(key) == 3)


def _dtype(config: ModelConfig, device: torch.device) -> torch.dtype | str:
    """`auto` is the checkpoint's dtype on CUDA and fp32 elsewhere, where 16 bits are slow and rough."""
    if config.dtype == "auto":
        return "auto" if device.type == "cuda" else torch.float32
    return DTYPE_OF[config.dtype]


def _quantization(config: ModelConfig, device: torch.device) -> BitsAndBytesConfig:
    """What bitsandbytes is asked for; it computes in the backbone's dtype."""
    if find_spec("bitsandbytes") is None:
        hint = "pip install 'labeltune[quantised]'"
        raise ModelError("quantisation needs bitsandbytes", at="model.quantization", hint=hint)
    hush_bitsandbytes()
    if config.quantization == "int8":
        # One line for each matrix product ("inputs will be cast to float16") is no news.
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
        return BitsAndBytesConfig(load_in_8bit=True)
    dtype = _dtype(config, device)
    compute = dtype if isinstance(dtype, torch.dtype) else torch.bfloat16
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute)


def _unreadable(what: str, name: str, at: str, error: BaseException) -> ModelError:
    """The library's complaint as one sentence, with the way out that fits it."""
    text = " ".join(str(error).split()) or type(error).__name__
    hint = "check model.name and model.revision; without network, name a folder"
    if "couldn't connect to" in text:
        text = "it is not in the local cache, and the hub cannot be reached"
    if "trust_remote_code" in text:
        hint = "if you trust its authors, set model.trust_remote_code = true"
    elif Path(name).is_dir():
        hint = "the folder is incomplete or damaged: download it again"
    return ModelError(f"{what} cannot be read: {text[:300]}", at=at, hint=hint)


def folder_of(source: str, revision: str | None) -> Path | None:
    """The folder that holds the weights: the given one, or the hub's snapshot in the local cache."""
    if Path(source).is_dir():
        return Path(source)
    if revision is None:
        return None
    path = cached_file(source, "config.json", revision=revision, local_files_only=True)
    return Path(path).parent if path is not None else None


@contextmanager
def quietly() -> Iterator[None]:
    """Silence transformers' loading report and progress bars; what is wrong is raised as an error of ours."""
    verbosity, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(verbosity)
        if bars:
            hf_logging.enable_progress_bar()
