"""From settings to everything that an adaptation works with: text, model, objective, optimisers."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from labeltune.adaptation.choices import CONTEXT, config_file, mask_token_of, settle, tokenizer_folder
from labeltune.adaptation.corpus import Corpus, Cut, open_corpus
from labeltune.adaptation.documents import Texts, open_texts
from labeltune.adaptation.loop import Pace, Reader, Work, trained
from labeltune.adaptation.objectives import OBJECTIVES
from labeltune.adaptation.optimisers import OPTIMISERS, Rates, Weights
from labeltune.adaptation.settings import Adaptation, AdaptConfig
from labeltune.assembly import pick_device
from labeltune.data.batches import MICRO_TOKENS
from labeltune.data.specials import special_tokens
from labeltune.errors import SettingsError
from labeltune.keys import Key
from labeltune.model import causal as causals
from labeltune.model import lora, updates
from labeltune.model.causal import Causal
from labeltune.model.checkpoints import load_tokenizer
from labeltune.model.member import build_adapter
from labeltune.model.selfcheck import Report, check
from labeltune.training.order import Order
from labeltune.training.settings import TrainConfig
from labeltune.wording import counted


@dataclass(frozen=True)
class Setup:
    """One adaptation, ready to begin. config: every open choice settled. adapter: None where all weights are trained.

    said: what was guessed or found, in sentences.
    """

    config: Adaptation
    tokenizer: PreTrainedTokenizerBase
    causal: Causal
    adapter: lora.Adapter | None
    corpus: Corpus
    reader: Reader
    work: Work
    selfcheck: Report
    said: tuple[str, ...]

    @property
    def key(self) -> Key:
        """The key of all randomness."""
        return _key(self.config.adapt)


def set_up(config: Adaptation, folder: Path, quarantine: Path | None = None) -> Setup:
    """Read the text into `folder`, load or build the model, and settle every open choice.

    quarantine: takes the rows that cannot be used, where the settings say so.

    Raises:
        LabeltuneError: bad text, a model that cannot do it, impossible settings.
    """
    _refuse_contradictions(config)
    texts, heldout = _open(config, quarantine)
    if config.adapt.threads is not None:
        torch.set_num_threads(config.adapt.threads)
    tokenizer = load_tokenizer(config.model, tokenizer_folder(config.adapt))
    causal = _model(config, tokenizer)
    config = settle(config, causal)
    directions = causal.backbone.policy(config.model.unmask or "")
    selfcheck = check(causal.backbone, directions)
    objective = OBJECTIVES[config.adapt.objective]
    cut, mask_token = _cut(config, tokenizer, causal), mask_token_of(config.adapt, tokenizer)
    if not objective.whole:
        cut.refuse_unknown([mask_token])
    corpus = open_corpus(texts, heldout, cut, folder)
    adapter, attached = _adapter(config, causal)
    reader = Reader(
        causal,
        objective,
        directions,
        mask_share=config.adapt.mask_share,
        mask_token=mask_token,
        autocast=_autocast(config, causal),
        attached=attached,
    )
    work = _work(config.adapt, reader, adapter, corpus)
    said = tuple(sentence for text in texts for sentence in text.said) + _found(corpus, config.adapt)
    return Setup(config, tokenizer, causal, adapter, corpus, reader, work, selfcheck, said)


# Text


def _open(config: Adaptation, quarantine: Path | None) -> tuple[list[Texts], Texts | float]:
    if not config.adapt.texts:
        raise SettingsError("no text is named", at="adapt.texts", hint="labeltune adapt TEXT… --model M --out FOLDER")
    held = config.adapt.heldout
    texts = [open_texts(source, config.data, quarantine) for source in config.adapt.texts]
    return texts, float(held) if isinstance(held, float | int) else open_texts(held, config.data, quarantine)


def _cut(config: Adaptation, tokenizer: PreTrainedTokenizerBase, causal: Causal) -> Cut:
    specials = special_tokens(tokenizer, config.data.bos, config.data.eos)
    return Cut(tokenizer, specials, config.adapt.context or CONTEXT, causal.backbone.vocab_size)


def _found(corpus: Corpus, config: AdaptConfig) -> tuple[str, ...]:
    """What the user should know of the text."""
    train, heldout = corpus.train.facts, corpus.heldout.facts
    held_tokens = corpus.heldout.new_tokens(heldout.rows)
    said = [
        f"{counted(train.documents, 'document', 'documents')}, {train.tokens:,} tokens to train on; "
        f"{counted(heldout.documents, 'document', 'documents')}, {held_tokens:,} tokens held out"
    ]
    if train.divided:
        said.append(
            counted(train.divided, "document is", "documents are")
            + f" longer than {config.context:,} tokens and divided"
        )
    if train.sealed:
        said.append(counted(train.sealed, "document is", "documents are") + " left out, being held out as well")
    return tuple(said)


# Model


def _model(config: Adaptation, tokenizer: PreTrainedTokenizerBase) -> Causal:
    device = pick_device(config.adapt.device)
    checkpointing, masked = config.model.checkpointing == "on", OBJECTIVES[config.adapt.objective].encoder
    if config.adapt.from_config is not None:
        key = _key(config.adapt).fold("weights")
        path = config_file(config.adapt.from_config)
        return causals.build(path, tokenizer, key=key, device=device, checkpointing=checkpointing, masked=masked)
    whole = config.lora is None
    if whole and config.model.quantization != "none":
        hint = "set it to 'none', or train an adapter with lora.rank"
        raise SettingsError("a quantised model cannot be trained whole", at="model.quantization", hint=hint)
    model = config.model.model_copy(update={"dtype": "fp32"}) if whole else config.model
    return causals.load(model, device=device, checkpointing=checkpointing, trainable=whole, masked=masked)


def _refuse_contradictions(config: Adaptation) -> None:
    """A fresh model has no name and no adapter; a model that is there has its own tokenizer."""
    fresh = config.adapt.from_config is not None
    if fresh and config.model.name is not None:
        raise SettingsError(
            "names a model, and adapt.from_config a fresh one", at="model.name", hint="give one of them"
        )
    if fresh and config.lora is not None:
        raise SettingsError("a fresh model is trained whole", at="lora", hint="leave it out")
    if not fresh and config.adapt.tokenizer is not None:
        hint = "a model is adapted with its own tokenizer: leave it out"
        raise SettingsError("goes with adapt.from_config", at="adapt.tokenizer", hint=hint)


def _autocast(config: Adaptation, causal: Causal) -> Callable[[], AbstractContextManager[object]]:
    if config.lora is None and config.model.dtype == "bf16":
        return partial(torch.autocast, causal.backbone.device.type, torch.bfloat16)
    return nullcontext


def _adapter(config: Adaptation, causal: Causal) -> tuple[lora.Adapter | None, updates.Attached | None]:
    if config.lora is None:
        return None, None
    backbone = causal.backbone
    adapter = build_adapter(backbone, config.lora, backbone.layers, _key(config.adapt).fold("weights"))
    if adapter is None:
        hint = "leave the section lora out to train all weights"
        raise SettingsError(f"{config.lora.kind!r} is no adapter", at="lora.kind", hint=hint)
    adapter.to(backbone.device)
    return adapter, updates.attach(dict(backbone.model.named_modules()), [adapter], backbone.slot)


# Training


def _work(config: AdaptConfig, reader: Reader, adapter: lora.Adapter | None, corpus: Corpus) -> Work:
    parameters = trained(reader.causal, adapter)
    lr, matrix_lr = config.lr or 0.0, config.matrix_lr or 0.0
    rates = Rates(lr, matrix_lr, config.weight_decay)
    lengths = corpus.train.lengths
    epochs = config.tokens / int(lengths.sum()) if config.tokens else config.epochs
    order = Order(lengths, TrainConfig(epochs=epochs, batch_tokens=config.batch_tokens), _key(config))
    return Work(
        reader,
        parameters,
        OPTIMISERS[config.optimiser or "adamw"](_weights_of(reader.causal, adapter), rates),
        corpus.train,
        order,
        Pace(config.warmup, config.decay, config.clip, config.micro_tokens or MICRO_TOKENS),
        _key(config),
    )


def _weights_of(causal: Causal, adapter: lora.Adapter | None) -> Weights:
    """The matrices inside the blocks or of an adapter, those of experts in stacks, and everything else."""
    room: nn.Module = causal.backbone.blocks if adapter is None else adapter
    inside = {id(p) for name, p in room.named_parameters() if _is_matrix(name, p)}
    parameters = [p for p in (causal.model if adapter is None else adapter).parameters() if p.requires_grad]
    return Weights(tuple(p for p in parameters if id(p) in inside), tuple(p for p in parameters if id(p) not in inside))


def _is_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Whether it mixes features: one matrix or a stack of them; no biases of experts, no convolution of one channel."""
    stack = parameter.ndim == 3 and min(parameter.shape[-2:]) > 1
    return (parameter.ndim == 2 or stack) and not name.endswith("bias")


def _key(config: AdaptConfig) -> Key:
    return Key.of(config.seed).fold("adapt")
