"""Settings and labels into what computes: backbone, tokenizer, encoder, member; the same to train and to answer."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers import PreTrainedTokenizerBase

from labeltune.config import Config, with_settings
from labeltune.data.batches import GPU_MICRO_TOKENS, MICRO_TOKENS
from labeltune.data.encoding import Encoder
from labeltune.errors import ModelError, SettingsError
from labeltune.keys import Key
from labeltune.labels import LabelSet
from labeltune.model import backbone as backbones
from labeltune.model import member as members
from labeltune.model.checkpoints import load_tokenizer
from labeltune.model.selfcheck import Report, check
from labeltune.tasks import TASKS, Task
from labeltune.training.settings import default_lr

DTYPE_NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
TESTED_DEVICES, TESTED_SYSTEMS = ("cpu", "cuda"), ("Linux",)
EDGES: dict[str, Literal["first", "last"]] = {"first": "first", "last": "last"}
"""Poolings that read one end of a text, its special token included; the others read inside."""


@dataclass(frozen=True)
class Assembly:
    """One member on its backbone, ready to train or to answer; `config` has every open choice settled."""

    config: Config
    task: Task
    labels: LabelSet
    backbone: backbones.Backbone
    tokenizer: PreTrainedTokenizerBase
    encoder: Encoder
    member: members.Member
    selfcheck: Report


def pick_device(name: str) -> torch.device:
    """`auto` is CUDA, else Apple's MPS, else the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise SettingsError("this machine has no CUDA device", at="train.device", hint="use auto or cpu")
    if name == "mps" and not torch.backends.mps.is_available():
        raise SettingsError("this machine has no MPS device", at="train.device", hint="use auto or cpu")
    return torch.device(name)


def untested(device: torch.device, system: str = platform.system()) -> str | None:
    """A warning where labeltune's tests have not run on this kind of device or system."""
    if device.type in TESTED_DEVICES and system in TESTED_SYSTEMS:
        return None
    told = f"{device.type} on {system or 'an unknown system'}"
    return f"labeltune has not been tested with {told}: compare a short training with one on train.device = 'cpu'"


def task_of(config: Config) -> Task:
    """The row of TASKS that the settings name."""
    if config.task not in TASKS:
        raise SettingsError(f"{config.task!r} is no task", at="task", hint="known: " + ", ".join(TASKS))
    return TASKS[config.task]


def assemble(
    config: Config,
    labels: LabelSet,
    tokenizer: PreTrainedTokenizerBase | None = None,
    backbone: backbones.Backbone | None = None,
) -> Assembly:
    """Load the backbone (or take the one given), check it, and build a fresh member for `config.task` and `labels`.

    Raises ModelError where the backbone is incomplete or fails the self-check, SettingsError for impossible settings.
    """
    task = task_of(config)
    tokenizer = tokenizer or load_tokenizer(config.model)
    if backbone is None:
        backbone = load_backbone(config)
    else:
        _check_weights(config, backbone)
    config = settle(config, task, backbone)
    report = check(backbone, backbone.policy(config.model.unmask or "none"))
    member = fresh_member(config, task, labels, backbone)
    return Assembly(
        config, task, labels, backbone, tokenizer, make_encoder(config, task, labels, tokenizer), member, report
    )


def load_backbone(config: Config) -> backbones.Backbone:
    """The backbone on the settings' device, its weights those that the settings were recorded with."""
    backbone = backbones.load(
        config.model,
        device=pick_device(config.train.device),
        checkpointing=config.model.checkpointing == "on",
        trainable=config.lora.kind == "full",
    )
    _check_weights(config, backbone)
    return backbone


def fresh_member(config: Config, task: Task, labels: LabelSet, backbone: backbones.Backbone) -> members.Member:
    """A member for `task` and `labels` on a backbone that others may stand on too."""
    return members.build(
        backbone,
        config.model,
        config.lora,
        config.head,
        task_unmask=task.unmask,
        task_pooling=task.pooling,
        task_bias=task.bias,
        task_shared=task.shared,
        task_units=task.targets == "units",
        width=task.width(labels),
        key=Key.of(config.train.seed).fold("weights"),
    )


def _check_weights(config: Config, backbone: backbones.Backbone) -> None:
    """Refuse a backbone whose weights are not those that the settings were recorded with."""
    expected, found = config.model.weights_sha256, backbone.body_sha256()
    if expected and found and expected != found:
        raise ModelError(
            "its weights are not those of the training (another SHA-256)",
            at=str(config.model.name),
            hint="restore the backbone, or leave model.weights_sha256 out of a new training",
        )


def make_encoder(config: Config, task: Task, labels: LabelSet, tokenizer: PreTrainedTokenizerBase) -> Encoder:
    """The encoder of rows for `config` with all choices settled."""
    return Encoder(
        tokenizer,
        config=config.data,
        max_tokens=config.data.max_tokens or 512,
        targets=task.targets,
        whole_special=config.model.pool_special,
        edge=EDGES.get(config.model.pooling or "", "inside"),
        label_of=task.label_of(labels),
    )


def settle(config: Config, task: Task, backbone: backbones.Backbone) -> Config:
    """Write every open choice into the settings, so that the run repeats without this machine's defaults."""
    device = backbone.device.type
    micro = config.train.micro_tokens or (MICRO_TOKENS if device == "cpu" else GPU_MICRO_TOKENS)
    longest = config.data.max_tokens or min(backbone.context or 512, 512)
    if backbone.context and longest > backbone.context:
        hint = f"set it to at most {backbone.context}"
        raise SettingsError(
            f"{longest} is more than the backbone's context of {backbone.context}", at="data.max_tokens", hint=hint
        )
    lr = config.train.lr or default_lr(backbone.hidden_size, full=config.lora.kind == "full")
    values: dict[str, Any] = {
        "data.max_tokens": longest,
        "model.revision": config.model.revision or getattr(backbone.model.config, "_commit_hash", None),
        "model.weights_sha256": backbone.body_sha256(),
        "model.unmask": config.model.unmask or ("all" if backbone.family.encoder else task.unmask),
        "model.pooling": config.model.pooling or ("first" if backbone.family.encoder else task.pooling),
        "model.depth": config.model.depth or backbone.layers,
        "model.dtype": DTYPE_NAMES[backbone.dtype],
        "model.matmul": "onednn" if backbone.onednn else "stock",
        "head.bias": task.bias if config.head.bias is None else config.head.bias,
        "lora.alpha": config.lora.alpha or config.lora.rank,
        "train.lr": lr,
        "train.head_lr": config.train.head_lr or lr,
        "train.select": config.train.select or task.select,
        "train.device": device,
        "train.threads": config.train.threads or torch.get_num_threads(),
        "train.micro_tokens": micro,
        "eval.batch_tokens": config.eval.batch_tokens or micro,
    }
    return with_settings(config, values)
