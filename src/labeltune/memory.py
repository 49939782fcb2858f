"""What a training will hold in memory, by part, reckoned from the model's configuration without its weights.

    weights + t x trained parameters + c x hidden x layers x tokens of a pass + transient + what a process needs

t is the bytes of a trained parameter with all that belongs to it; c is what a token leaves behind in a layer for the
backward pass, in bytes per hidden unit.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from transformers import AutoModel
from transformers.pytorch_utils import Conv1D

from labeltune.config import Config
from labeltune.errors import SettingsError
from labeltune.model.anatomy import called, find_blocks, is_attention
from labeltune.model.checkpoints import quietly, read_config, resolve
from labeltune.model.lora import linear_shape
from labeltune.training.meter import GIB, peak_memory

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
    if not 0 < found < float("inf"):
        raise SettingsError(f"{text!r} is no size", at="--gpu", hint="for example --gpu 24GB")
    return found


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


def trained_parameters(config: Config, shape: Shape, labels: int) -> int:
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
