"""What trainings in one process share: opened data, encoded rows, a tokenizer and a backbone, each made once.

A single training has a bench to itself; a sweep has one for all of its trials.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from labeltune.assembly import Assembly, pick_device
from labeltune.config import Config
from labeltune.data.datasets import Dataset, Loaded, load
from labeltune.data.lint import lint
from labeltune.data.store import Store
from labeltune.ledger import Ledger
from labeltune.model import backbone as backbones
from labeltune.model.backbone import Backbone, Place
from labeltune.model.checkpoints import load_tokenizer
from labeltune.schema import Example

Given = tuple[object, ...]
"""Train, dev and test rows that only memory holds; None where settings name them."""


class Bench:
    """Shared material. folder: where encoded rows lie. ledger: told each opening of a test split.

    quarantine: where rows that cannot be used go.
    """

    def __init__(self, folder: Path, ledger: Ledger, quarantine: Path) -> None:
        self.folder, self.ledger, self._quarantine = folder, ledger, quarantine
        self._opened: dict[object, tuple[Loaded, tuple[str, ...]]] = {}
        self._tokenizers: dict[object, PreTrainedTokenizerBase] = {}
        self._backbone: tuple[object, Backbone] | None = None
        self._stores: dict[str, Store] = {}
        self._rows: dict[int, tuple[Dataset, list[Example]]] = {}

    def open(self, config: Config, given: Given = (None, None, None)) -> tuple[Loaded, tuple[str, ...]]:
        """The splits that the settings name, and what is to be said of them: guesses, and the linter in short."""
        key = (config.data.model_dump_json(), config.task, _split_seed(config), tuple(map(id, given)))
        if key not in self._opened:
            data, dev, test = given
            loaded = load(
                config.data,
                config.task,
                base=Path.cwd(),
                data=data,
                dev=dev,
                test=test,
                ledger=self.ledger,
                seed=config.train.seed,
                quarantine=self._quarantine,
            )
            self._opened[key] = loaded, (*loaded.said, *_linted(loaded, self.ledger))
        return self._opened[key]

    def tokenizer(self, config: Config) -> PreTrainedTokenizerBase:
        """The backbone's tokenizer."""
        model = config.model
        key = (model.name, model.revision, model.trust_remote_code)
        if key not in self._tokenizers:
            self._tokenizers[key] = load_tokenizer(model)
        return self._tokenizers[key]

    def backbone(self, config: Config, depth: int | None, place: Place | None = None) -> Backbone:
        """The backbone with `depth` blocks; the last one is kept, and given again where the same is asked for.

        place: as in `load`. Full fine-tuning changes the weights, so its backbone is read anew each time.
        """
        full = config.lora.kind == "full"
        key = (backbone_key(config), depth)
        if self._backbone is None or self._backbone[0] != key or full:
            self._backbone = None  # two would not fit into the memory that one asks for
            backbone = backbones.load(
                config.model.model_copy(update={"depth": depth}),
                device=pick_device(config.train.device),
                checkpointing=config.model.checkpointing == "on",
                trainable=full,
                place=place,
            )
            self._backbone = key, backbone
        return self._backbone[1]

    def encoded(self, dataset: Dataset, assembly: Assembly) -> Store:
        """A split in token coordinates, memory-mapped; what lies in the folder already is only opened."""
        key = encoding_key(dataset, assembly)
        if key not in self._stores:
            self._stores[key] = Store.build(dataset, assembly.encoder.encode_many, self.folder, key=key)
        return self._stores[key]

    def examples(self, dataset: Dataset) -> list[Example]:
        """The rows of a split, held in memory."""
        if id(dataset) not in self._rows:
            self._rows[id(dataset)] = dataset, list(dataset)  # the data set is held, so that its id stays its own
        return self._rows[id(dataset)][1]


def backbone_key(config: Config) -> tuple[Any, ...]:
    """What two trainings must agree on to share a backbone, but for its depth."""
    model, train = config.model, config.train
    named = (model.name, model.revision, model.trust_remote_code, model.weights_sha256)
    held = (model.dtype, model.quantization, model.checkpointing, model.recording, model.matmul)
    return (*named, *held, train.device, train.threads)


def encoding_key(dataset: Dataset, assembly: Assembly) -> str:
    """Stands for the rows, the labels, the tokenizer and all settings of the encoding."""
    chosen = hashlib.sha256(np.packbits(dataset.survey.good).tobytes()).hexdigest()
    return assembly.encoder.key(dataset.content, chosen, assembly.task.name, *assembly.labels.names)


def _split_seed(config: Config) -> int | None:
    held_out = any(isinstance(split, float) for split in (config.data.dev, config.data.test))
    drawn = held_out or config.data.train_rows is not None
    return config.train.seed if drawn else None


def _linted(loaded: Loaded, ledger: Ledger) -> Iterator[str]:
    """The linter in short: its warnings, and how much else `inspect` would list."""
    findings = lint(loaded, ledger=ledger)
    warnings = [finding for finding in findings if finding.level == "warning"]
    yield from (f"warning: {finding}" for finding in warnings)
    if rest := len(findings) - len(warnings):
        yield f"{rest} more {'notes' if rest > 1 else 'note'} on the data: `labeltune inspect` lists them"
