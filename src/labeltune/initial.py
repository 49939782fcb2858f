"""Start from another run: its adapter, what fits of its head, and the head's rows of the labels that both know."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from labeltune.assembly import Assembly
from labeltune.config import Config, get
from labeltune.errors import RunError
from labeltune.model.lora import Adapter
from labeltune.model.member import Member
from labeltune.model.settings import ModelConfig
from labeltune.run import ADAPTER, BACKBONE, HEAD, Run, open_run


def start_from(assembly: Assembly, folder: Path) -> str:
    """Copy the weights of the run in `folder` into the fresh member; returns a sentence on what was copied.

    Raises RunError where the other run has another task, backbone or adapter.
    """
    run = open_run(folder)
    if (folder / BACKBONE).exists():
        hint = f"train with --model {folder / BACKBONE}"
        raise RunError("a run of full fine-tuning is a backbone, not a start for one", at=str(folder), hint=hint)
    ours, theirs = assembly.config, run.config
    for name, own, other in (
        ("task", ours.task, theirs.task),
        ("backbone", _weights(ours.model), _weights(theirs.model)),
        ("lora.kind", ours.lora.kind, theirs.lora.kind),
    ):
        if own != other:
            hint = "start from a run of the same task, backbone and lora.kind"
            raise RunError(f"its {name} is {other!r}, not {own!r}", at=str(folder), hint=hint)
    if assembly.member.adapter is not None:
        assembly.member.adapter.fill(Adapter.load(folder / ADAPTER), folder / ADAPTER)
    head = load_file(folder / HEAD)
    classes = assembly.task.classes(assembly.labels), assembly.task.classes(run.labels)
    copied = {name for name, own in _tensors(assembly.member).items() if _copy(own, head.get(name), classes)}
    return f"from {folder}: " + "; ".join([*_labels_said(assembly, run, copied), *_rest_said(assembly, run, copied)])


def with_unit(config: Config) -> Config:
    """The settings with the unit that the numbers of `train.init` are counted in, where they leave it open."""
    if config.train.init is None:
        return config
    theirs = open_run(config.train.init).config.head
    names = [name for name in ("mean", "std") if getattr(config.head, name) is None]
    head = config.head.model_copy(update={name: getattr(theirs, name) for name in names})
    return config.model_copy(update={"head": head})


def _weights(model: ModelConfig) -> str | None:
    """What the backbone is, wherever it lies: the hash of its weights, else its name."""
    return f"SHA-256 {model.weights_sha256}" if model.weights_sha256 else model.name


@dataclass(frozen=True)
class _Own:
    """A tensor of the fresh head or pooling.

    last: of the layer that gives the logits. labelled: what it says depends on the labels.
    """

    parameter: nn.Parameter
    last: bool
    labelled: bool


def _tensors(member: Member) -> dict[str, _Own]:
    """What the head's file holds, by its names there."""
    linears = [f"{name}." for name, module in member.head.named_modules() if isinstance(module, nn.Linear)]
    last = {linears[-1] + kind if linears else kind for kind in ("weight", "bias")}
    own = {
        f"head.{name}": _Own(parameter, name in last, name in last or name.startswith("crf."))
        for name, parameter in member.head.named_parameters()
    }
    return own | {f"pooling.{name}": _Own(p, False, False) for name, p in member.pooling.named_parameters()}


@torch.no_grad()
def _copy(own: _Own, other: torch.Tensor | None, classes: tuple[tuple[str, ...], tuple[str, ...]]) -> bool:
    """Copy a tensor of the other run, or its rows by class name; whether anything was copied.

    Thresholds and transitions have no rows by class: they are copied where the classes are the same.
    """
    here, there = classes
    if other is None or other.shape[1:] != own.parameter.shape[1:]:
        return False
    if own.last and (len(own.parameter), len(other)) == (len(here), len(there)):
        both = [name for name in here if name in there]
        for name in both:
            own.parameter[here.index(name)] = other[there.index(name)]
        return bool(both)
    if other.shape != own.parameter.shape or (own.labelled and here != there):
        return False
    own.parameter.copy_(other)
    return True


def _labels_said(assembly: Assembly, run: Run, copied: set[str]) -> Iterator[str]:
    """Which labels begin as the other run knew them."""
    here, there = set(assembly.labels.names), set(run.labels.names)
    known = any(name in copied and own.last for name, own in _tensors(assembly.member).items())
    kept = here & there if known else set[str]()
    for word, names in (("labels kept", kept), ("new", here - kept), ("dropped", there - kept)):
        yield f"{word} {', '.join(sorted(names)) or 'none'}"


def _rest_said(assembly: Assembly, run: Run, copied: set[str]) -> Iterator[str]:
    """Which tensors begin anew, and which settings read the head's vector in another way."""
    if fresh := sorted(_tensors(assembly.member).keys() - copied):
        yield f"begun anew {', '.join(fresh)}"
    for name in ("head.kind", "model.pooling", "model.pool_on"):
        if (was := get(run.config, name)) != (now := get(assembly.config, name)):
            yield f"{name} was {was!r} and is {now!r}"
