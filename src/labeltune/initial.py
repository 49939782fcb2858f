"""Start from another run: its adapter, and the head's rows of the labels that both know."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from labeltune.assembly import Assembly
from labeltune.config import Config
from labeltune.errors import RunError
from labeltune.model.lora import Adapter
from labeltune.model.settings import ModelConfig
from labeltune.run import ADAPTER, BACKBONE, HEAD, open_run

PER_CLASS = ("head.weight", "head.bias")
"""Tensors of the head's file with one row per class."""


def start_from(assembly: Assembly, folder: Path) -> str:
    """Copy the weights of the run in `folder` into the fresh member; returns a sentence on what was matched.

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
    _fill_head(assembly, run.labels.names, assembly.task.classes(run.labels), load_file(folder / HEAD))
    here, there = set(assembly.labels.names), set(run.labels.names)
    return f"from {folder}: " + "; ".join(
        f"{word} {', '.join(sorted(names)) or 'none'}"
        for word, names in (("labels kept", here & there), ("new", here - there), ("dropped", there - here))
    )


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


@torch.no_grad()
def _fill_head(
    assembly: Assembly, labels: tuple[str, ...], classes: tuple[str, ...], theirs: dict[str, torch.Tensor]
) -> None:
    """Copy rows by class name; tensors that have no rows by class only where the label sets are equal."""
    own = {f"head.{name}": p for name, p in assembly.member.head.named_parameters()}
    own |= {f"pooling.{name}": p for name, p in assembly.member.pooling.named_parameters()}
    same = labels == assembly.labels.names
    for name, parameter in own.items():
        if name not in theirs:
            continue
        if name in PER_CLASS and len(parameter) == len(assembly.task.classes(assembly.labels)):
            for row, wanted in enumerate(assembly.task.classes(assembly.labels)):
                if wanted in classes:
                    parameter[row] = theirs[name][classes.index(wanted)]
        elif same or name.startswith("pooling."):
            parameter.copy_(theirs[name])
