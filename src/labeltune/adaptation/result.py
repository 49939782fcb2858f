"""What an adaptation leaves: a plain Hugging Face folder with its tokenizer, its settings, its figures and a card."""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from labeltune.adaptation.objectives import OBJECTIVES
from labeltune.adaptation.setup import Setup
from labeltune.card import is_hub_id
from labeltune.errors import ModelError, RunError
from labeltune.model import causal as causals
from labeltune.model import lora
from labeltune.model.causal import Causal
from labeltune.model.checkpoints import DTYPE_OF
from labeltune.run import ADAPTATION, owner_of
from labeltune.storage import LOCK_NAME, atomic_folder, told, write_atomic, write_json

METRICS, LOG, CARD, WORK = "metrics.json", "log.jsonl", "README.md", "work"
MODEL = "model"
SAVED, ADAPTER = "saved weights", "adapter"
NOT_OF_THESE = "The figures are of the adapter beside its model as that was read, not of the merged weights."


def write_model(setup: Setup, folder: Path) -> None:
    """Put the weights and the tokenizer into `folder`, each file whole or not at all.

    They are written to the work folder first, so that a full disk leaves what was there.

    Raises:
        ModelError: an adapter's model is no longer the one that it was trained beside.
        RunError: the disk takes no more.
    """
    waiting = folder / WORK / MODEL
    with atomic_folder(waiting, replace=True) as partial:
        _whole(setup).save(partial, DTYPE_OF[setup.config.adapt.save_dtype])
        setup.tokenizer.save_pretrained(partial)
    with told(folder):
        for path in sorted(filter(Path.is_file, waiting.rglob("*")), key=_weights_last):
            place = folder / path.relative_to(waiting)
            place.parent.mkdir(exist_ok=True, parents=True)
            os.replace(path, place)
        shutil.rmtree(waiting)


def _weights_last(path: Path) -> tuple[bool, Path]:
    """Orders files: with its weights a folder counts as a model."""
    return ".safetensors" in path.name, path


def _whole(setup: Setup) -> Causal:
    """The model; where an adapter was trained, a fresh copy in fp32 with the adapter written into its weights."""
    if setup.adapter is None:
        return setup.causal
    plain = setup.config.model.model_copy(update={"dtype": "fp32", "quantization": "none", "checkpointing": "off"})
    masked = OBJECTIVES[setup.config.adapt.objective].encoder
    causal = causals.load(plain, device="cpu", masked=masked)
    _refuse_changed(setup, causal)
    lora.merge(dict(causal.backbone.model.named_modules()), copy.deepcopy(setup.adapter).cpu())
    return causal


def _refuse_changed(setup: Setup, causal: Causal) -> None:
    """An adapter belongs to the weights beside which it was trained; they are read again, and may be others by now."""
    if causal.backbone.body_sha256() != setup.config.model.weights_sha256:
        message = "its weights have changed while an adapter was trained beside them (another SHA-256)"
        hint = "restore the model; the same command with --resume then writes the result"
        raise ModelError(message, at=str(setup.config.model.name), hint=hint)


def write_figures(setup: Setup, folder: Path, figures: Mapping[str, Any]) -> None:
    """Write the card and, last, the figures: with them the folder counts as finished."""
    write_atomic(folder / CARD, card(setup, figures))
    write_json(folder / METRICS, dict(figures))


def is_finished(folder: Path) -> bool:
    """Whether an adaptation ended here."""
    return (folder / METRICS).exists()


def refuse_existing(folder: Path) -> None:
    """A folder with something in it is never written over.

    Raises:
        RunError: it is a file, or not empty.
    """
    with told(folder):
        if not folder.exists():
            return
        if not folder.is_dir():
            raise RunError("this is a file", at=str(folder), hint="choose another --out")
        names = {path.name for path in folder.iterdir() if not path.name.startswith(LOCK_NAME)}
    if names:
        own = owner_of(folder) in (None, "adapt")
        begun = own and bool(names & {ADAPTATION, WORK}) and not is_finished(folder)
        hint = "add --resume to go on with it" if begun else "choose another --out"
        raise RunError("this folder exists already and is not empty", at=str(folder), hint=hint)


def card(setup: Setup, figures: Mapping[str, Any]) -> str:
    """A model card: what it was made of, how, and how well it predicts."""
    config, facts = setup.config, setup.corpus.train.facts
    source = _short(config.model.name) or f"a fresh {setup.causal.stock.model_type} model"
    how = f"an adapter of rank {config.lora.rank}, merged" if config.lora else "all weights"
    lines = [
        "---",
        "library_name: transformers",
        *([f"base_model: {config.model.name}"] if is_hub_id(config.model.name or "") else []),
        f"tags: [labeltune, {config.adapt.objective}]",
        "---",
        "",
        f"# {source}, pretrained on {facts.documents:,} documents",
        "",
        f"Made by `labeltune adapt` ({how}; objective `{config.adapt.objective}`, mask removed: "
        f"`{config.model.unmask}`) from {', '.join(Path(text).name for text in config.adapt.texts)}. "
        f"`labeltune adapt {ADAPTATION} --out FOLDER` repeats it.",
        "",
        *_table(figures),
        *([NOT_OF_THESE, ""] if scored(setup) == ADAPTER else []),
        f"{figures['train']['tokens']:,} training tokens in {figures['train']['seconds']:,.0f} s.",
        "",
    ]
    return "\n".join(lines)


def _short(name: str | None) -> str | None:
    """A hub id as it is, of a folder its own name."""
    return Path(name).name if name is not None and Path(name).is_dir() else name


def scored(setup: Setup) -> str:
    """What the last held-out figures are of: the weights as they are saved, or an adapter beside its model.

    In fp32 throughout the two are the same but for rounding.
    """
    plain = setup.causal.backbone.dtype == torch.float32 and setup.config.model.quantization == "none"
    same = setup.adapter is None or (plain and setup.config.adapt.save_dtype == "fp32")
    return SAVED if same else ADAPTER


def _table(figures: Mapping[str, Any]) -> list[str]:
    """What the held-out text said, in Markdown; nothing where none was held out."""
    rows = [f"| held-out {name.replace('_', ' ')} | {before} | {after} |" for name, before, after in _pairs(figures)]
    return ["| | before | after |", "|---|---:|---:|", *rows, ""] if rows else []


def _pairs(figures: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(name, before, after) of each held-out figure."""
    before, after = figures.get("before") or {}, figures.get("heldout") or {}
    names = [name for name in after if name != "tokens"]
    return [(name, f"{before[name]:.4f}" if name in before else "", f"{after[name]:.4f}") for name in names]
