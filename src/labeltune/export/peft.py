"""The adapter alone, with the head in `modules_to_save`, for plain PEFT on the stock class.

`config.json` beside it says labels, pad token and direction, so that whoever loads it needs no code of ours:

    config = AutoConfig.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(base, config=config)
    model = PeftModel.from_pretrained(model, folder)
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PreTrainedModel,
)

from labeltune.export import stock
from labeltune.export.tuned import Answers, Tuned
from labeltune.model.checkpoints import quietly, resolve
from labeltune.model.lora import CONFIG_FILE, WEIGHTS_FILE, hush_bitsandbytes
from labeltune.storage import read_json, write_atomic, write_json

PREFIX = "base_model.model."
HEADS = ("score", "classifier")


def reasons(tuned: Tuned) -> Iterator[str]:
    """Why it cannot be an adapter on the stock class."""
    yield from stock.reasons(tuned)
    if tuned.member.adapter is None:
        yield f"lora.kind = {tuned.config.lora.kind!r} has no adapter: use `transformers`"
    if tuned.config.head.kind == "stock":
        yield "the head has several layers (head.kind): use `transformers`"


def write(tuned: Tuned, folder: Path, dtype: str = "fp32") -> None:
    """Adapter, head, configuration and tokenizer."""
    adapter = tuned.member.adapter
    assert adapter is not None
    config = stock.configuration(tuned)
    model = stock.fresh(tuned, config)
    head = next(name for name in HEADS if hasattr(model, name))
    adapter.save(folder, tuned.config.model.name, tuned.config.model.revision)
    facts: Any = read_json(folder / CONFIG_FILE)
    body = model.base_model_prefix
    kind = "TOKEN_CLS" if tuned.units else "SEQ_CLS"
    named = [f"{body}.{name}" for name in facts["target_modules"]]
    facts |= {"task_type": kind, "modules_to_save": [head], "target_modules": named}
    write_json(folder / CONFIG_FILE, facts)
    write_atomic(folder / WEIGHTS_FILE, save(_tensors(tuned, folder, body, head, model), metadata={"format": "pt"}))
    with quietly():
        config.save_pretrained(folder)
        stock.tokenizer_of(tuned).save_pretrained(folder)


def _tensors(tuned: Tuned, folder: Path, body: str, head: str, model: PreTrainedModel) -> dict[str, torch.Tensor]:
    old = load_file(folder / WEIGHTS_FILE)
    tensors = {PREFIX + body + "." + key.removeprefix(PREFIX): tensor for key, tensor in old.items()}
    stock.put_head(tuned, model)
    for name, tensor in model.get_submodule(head).state_dict().items():
        tensors[f"{PREFIX}{head}.{name}"] = tensor.contiguous()
    return tensors


def answer(tuned: Tuned, folder: Path) -> Answers:
    """What plain PEFT says, on the base model read anew."""
    hush_bitsandbytes()
    from peft import PeftModel  # costs 3 to 5 seconds

    kind: Any = AutoModelForTokenClassification if tuned.units else AutoModelForSequenceClassification
    settings = tuned.config.model
    with quietly(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers in words of its last release
        base = kind.from_pretrained(
            resolve(settings),
            config=AutoConfig.from_pretrained(folder),
            revision=settings.revision,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
        )
        model = PeftModel.from_pretrained(base, str(folder)).eval()
        tokenizer = AutoTokenizer.from_pretrained(folder)
    return stock.answer(tuned, model, tokenizer)
