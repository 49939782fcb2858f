"""What a training will take before anything is spent: tokens, memory by part, the pass that fits, time, cost.

Memory is reckoned from the model's configuration, without its weights:

    weights + t x trained parameters + c x hidden x layers x tokens of a pass + transient + what a process needs

t is the bytes of a trained parameter with all that belongs to it; c is what a token leaves behind in a layer for the
backward pass, in bytes per hidden unit. Time is measured: a few real steps and a few answers on this machine, and then
multiplied.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AutoModel
from transformers.pytorch_utils import Conv1D

from labeltune.bench import Bench, Given
from labeltune.config import Config, gather, with_settings
from labeltune.data.datasets import QUARANTINE
from labeltune.errors import SettingsError
from labeltune.facts import Checked, Listener, quiet
from labeltune.fitting import named_and_given
from labeltune.inspection import Tokens, inspect
from labeltune.job import Job, prepare
from labeltune.keys import Key
from labeltune.ledger import Ledger
from labeltune.model.anatomy import called, find_blocks, is_attention
from labeltune.model.checkpoints import quietly, read_config, resolve
from labeltune.model.lora import linear_shape
from labeltune.training.meter import GIB, peak_memory
from labeltune.training.trainer import MICRO_TOKENS, Group
from labeltune.training.trainer import Plan as Order
from labeltune.training.trainer import train as steps

BYTES = {"fp32": 4.0, "bf16": 2.0, "fp16": 2.0, "int8": 1.07, "nf4": 0.57}
"""Of a weight; the quantised ones with their scales, the embeddings of which stay in 16 bits."""
TRAINED = {"cuda": 24.0, "cpu": 40.0}
"""Bytes of a trained parameter, fp32: itself, its gradient, two moments, the best so far and a copy; on a CPU also the
checkpoint as it is written. In full fine-tuning the parameter itself is among the weights already."""
KEPT = {"dropout": 40.0, "plain": 34.0, "wide": 67.0, "checkpointed": 2.0}
"""Bytes per token, layer and hidden unit, at 16 bits: adapters with and without dropout, in all layers, recomputed."""
TRANSIENT = 24.0
"""Bytes per token and hidden unit of the one layer at work, at 16 bits."""
PROCESS = 0.7
"""GiB of a GPU that CUDA, its kernels and cuBLAS take for themselves; on a CPU it is what this process holds by now."""
FREED = 2.5
"""Times what recomputed blocks need on a CPU: glibc keeps much of what they free (fitted at 1,024 to 4,096 tokens)."""
LOOKED_AT = 6
"""Steps of the measurement; the first one only warms up."""


@dataclass(frozen=True)
class Memory:
    """GiB by part, for passes of `tokens`; fits: the most tokens of a pass within `limit`, None where nothing fits."""

    weights: float
    trained: float
    activations: float
    process: float
    tokens: int
    limit: float | None
    fits: int | None

    @property
    def total(self) -> float:
        """All parts together."""
        return self.weights + self.trained + self.activations + self.process


@dataclass(frozen=True)
class Measured:
    """What a few steps on this machine say: tokens a second in training and on dev, the process's peak in GiB."""

    train_tokens_per_second: float
    dev_tokens_per_second: float
    peak_memory_gib: float


@dataclass(frozen=True)
class Plan:
    """What a training will take. steps, epochs as the settings have them; seconds and cost None without a measurement.

    trained_parameters: of the adapter and the head, or of everything.
    """

    config: Config
    rows: Mapping[str, int]
    tokens: Mapping[str, Tokens]
    steps: int
    trained_parameters: int
    memory: Memory
    measured: Measured | None
    seconds: float | None
    cost: float | None

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        facts = asdict(replace(self, config=Config()))
        facts["config"] = self.config.model_dump(mode="json", exclude_none=True, exclude_unset=True)
        return facts | {"memory": {**facts["memory"], "total": self.memory.total}}


def plan(
    data: object = None,
    *,
    model: str | None = None,
    dev: object = None,
    task: str | None = None,
    config: Config | str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    gpu: str | None = None,
    price: float | None = None,
    processes: int = 1,
    measure: bool = True,
    listen: Listener = quiet,
) -> Plan:
    """Reckon what a training will take; the test split is not opened. Arguments as in `train`.

    gpu: memory to fit into, `24GB`, of each process. price: of an hour. processes: as many as torchrun will start, on
    devices like this one; what they tell each other is not reckoned. measure: load the model and do a few steps here;
    without it nothing but its configuration is read.
    """
    limit = None if gpu is None else gibibytes(gpu)
    named, given = named_and_given(data, dev, None)
    asked = gather(config, {**named, "model.name": model, "task": task}, settings or {})
    if asked.model.name is None:
        raise SettingsError("a plan needs a model", at="model.name", hint="--model mini, say")
    asked = asked.model_copy(update={"data": asked.data.model_copy(update={"test": None})})
    seen = inspect(data if given[0] is not None else None, dev=dev if given[1] is not None else None, config=asked)
    asked = with_settings(asked, {"task": seen.task})
    shape = shape_of(asked)
    trained = _trained(asked, shape, len(seen.labels.get("train", {})) or 1)
    share = _share(asked, processes)
    pass_tokens = _pass_tokens(share, seen.tokens["train"])
    memory = reckon(asked, shape, trained, pass_tokens, limit)
    measured, total = (
        _measure(asked, share, given, listen)
        if measure
        else (None, _steps(asked, seen.rows["train"], seen.tokens["train"].total))
    )
    seconds = None if measured is None else _seconds(asked, seen.tokens, measured) / processes
    cost = None if seconds is None or price is None else seconds / 3600 * price
    return Plan(asked, seen.rows, seen.tokens, total, trained, memory, measured, seconds, cost)


def gibibytes(text: str) -> float:
    """`24GB` as 24.0: sellers' gigabytes of a device are gibibytes.

    Raises:
        SettingsError: this is no size.
    """
    number = text.upper().removesuffix("B").removesuffix("I").removesuffix("G").strip()
    try:
        found = float(number)
    except ValueError:
        found = 0.0
    if not found > 0:
        raise SettingsError(f"{text!r} is no size", at="--gpu", hint="for example --gpu 24GB")
    return found


# Memory


@dataclass(frozen=True)
class Shape:
    """What a configuration says of a model: blocks in use, hidden units, numbers inside and outside of the blocks.

    adapted: inputs and outputs of the adapted layers, together; an adapter has that times its rank.
    """

    layers: int
    hidden: int
    inside: int
    outside: int
    adapted: int


def shape_of(config: Config) -> Shape:
    """The model without its weights."""
    stock = read_config(resolve(config.model), config.model)
    with torch.device("meta"), quietly():
        body: nn.Module = AutoModel.from_config(stock, trust_remote_code=config.model.trust_remote_code)
    text = stock.get_text_config()
    name = find_blocks(body, text, "the model")
    blocks = body.get_submodule(name)
    assert isinstance(blocks, nn.ModuleList)
    used = blocks[: config.model.depth] if config.model.depth else blocks
    inside = sum(p.numel() for p in used.parameters())
    outside = sum(p.numel() for p in body.parameters()) - sum(p.numel() for p in blocks.parameters())
    adapted = sum(sum(linear_shape(module)) for block in used for module in _adapted(block, config))
    return Shape(len(used), int(text.hidden_size), inside, outside, adapted)


def _adapted(block: nn.Module, config: Config) -> list[nn.Module]:
    """The linear layers of a block that get an adapter."""
    linear = [(name, m) for name, m in block.named_modules() if isinstance(m, nn.Linear | Conv1D)]
    targets = config.lora.targets
    if config.lora.kind in ("none", "full"):
        return []
    if targets is None:
        return [module for name, module in linear if is_attention(name.split(".")[0])]
    return [module for name, module in linear if any(called(name, target) for target in targets)]


def _trained(config: Config, shape: Shape, labels: int) -> int:
    """Trained parameters: the adapter's and the head's, or all."""
    head = shape.hidden * labels
    if config.lora.kind == "full":
        return head + shape.inside + shape.outside
    return head + config.lora.rank * shape.adapted


def reckon(config: Config, shape: Shape, trained: int, tokens: int, limit: float | None) -> Memory:
    """Memory by part for passes of `tokens`, and what would fit into `limit` GiB."""
    weights = _weights(config, shape) / GIB
    optimiser = _per_trained(config) * trained / GIB
    each = _per_token(config, shape) / GIB
    process = PROCESS if limit is not None or torch.cuda.is_available() else peak_memory()
    room = None if limit is None else int((limit - weights - optimiser - process) / each)
    return Memory(
        weights=weights,
        trained=optimiser,
        activations=each * tokens,
        process=process,
        tokens=tokens,
        limit=limit,
        fits=room if room is not None and room > 0 else None,
    )


def _weights(config: Config, shape: Shape) -> float:
    """Bytes of the weights; embeddings and norms are never quantised."""
    quantised = config.model.quantization != "none"
    inside = BYTES[config.model.quantization if quantised else _dtype(config)]
    return shape.inside * inside + shape.outside * BYTES["bf16" if quantised else _dtype(config)]


def _dtype(config: Config) -> str:
    if config.model.dtype != "auto":
        return config.model.dtype
    return "bf16" if torch.cuda.is_available() else "fp32"


def _per_token(config: Config, shape: Shape) -> float:
    """Bytes that a token of a pass takes until the backward pass is over."""
    wide = 1.0 if _dtype(config) != "fp32" else 2.0
    layers, hidden = shape.layers, shape.hidden
    if config.model.checkpointing == "on":
        kept = KEPT["checkpointed"] * layers + KEPT["dropout"]
        wide *= FREED if _dtype(config) == "fp32" and not torch.cuda.is_available() else 1.0
    elif config.lora.kind == "full" or (config.lora.targets and len(config.lora.targets) > 4):
        kept = KEPT["wide"] * layers
    else:
        kept = KEPT["dropout" if config.lora.dropout else "plain"] * layers
    return wide * hidden * (kept + TRANSIENT)


def _per_trained(config: Config) -> float:
    """Bytes of a trained parameter beside the weights."""
    each = TRAINED["cuda" if torch.cuda.is_available() else "cpu"]
    return each - BYTES[_dtype(config)] if config.lora.kind == "full" else each


def _pass_tokens(config: Config, tokens: Tokens) -> int:
    """Tokens of the largest forward pass: the settings' limit, or one long row."""
    most = config.train.micro_tokens or (16384 if torch.cuda.is_available() else MICRO_TOKENS)
    batch = config.train.batch_tokens or round(config.train.batch_rows * tokens.total / max(tokens.rows, 1))
    return max(min(most, batch), min(tokens.longest, tokens.limit))


# Time


def _steps(config: Config, rows: int, tokens: int) -> int:
    """As the loop counts them, for rows of the mean length."""
    lengths = np.full(rows, max(1, tokens // rows))
    return Order(lengths, config.train, Key.of(config.train.seed)).total


def _share(config: Config, processes: int) -> Config:
    """The same training in steps of what one process has of them."""
    name = "batch_tokens" if config.train.batch_tokens else "batch_rows"
    return with_settings(config, {f"train.{name}": math.ceil(getattr(config.train, name) / processes)})


def _measure(config: Config, share: Config, given: Given, listen: Listener) -> tuple[Measured, int]:
    """A few steps of a process's share and a few answers, in a folder that nobody keeps; how many steps there are."""
    with TemporaryDirectory(prefix="labeltune-plan-") as place:
        folder = Path(place)
        job = prepare(share, folder, Bench(folder, Ledger(folder), folder / QUARANTINE), quiet, given=given)
        listen(Checked(job.assembly.selfcheck))
        job.trial.evaluate = None
        group = Group(job.assembly.backbone)
        group.admit(job.trial)
        done = list(islice(steps(group), LOOKED_AT))
        counted = done[1:] or done
        speed = sum(step.tokens for step in counted) / sum(step.seconds for step in counted)
        total = Order(job.trial.rows.lengths, config.train, job.trial.key).total
        return Measured(speed, _dev_speed(job), peak_memory()), total


def _dev_speed(job: Job) -> float:
    """Tokens a second of answering, over some dev rows of all lengths."""
    examples, rows = job.dev
    chosen = np.linspace(0, len(rows) - 1, min(len(rows), 64)).round().astype(int).tolist()
    some = [rows[number] for number in chosen]
    began = time.monotonic()
    job.labeller.predict([examples[number] for number in chosen], some)
    return float(sum(len(row.tokens) for row in some)) / (time.monotonic() - began)


def _seconds(config: Config, tokens: Mapping[str, Tokens], measured: Measured) -> float:
    """Training, an evaluation after each epoch, and the final one with its calibration."""
    train, dev = tokens["train"].total, tokens["dev"].total
    passes = config.train.epochs
    if config.train.steps is not None:
        passes = config.train.steps * config.train.batch_rows / tokens["train"].rows
    rounds = max(1, int(passes)) + 2
    return train * passes / measured.train_tokens_per_second + dev * rounds / measured.dev_tokens_per_second
