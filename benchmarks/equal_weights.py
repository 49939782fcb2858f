"""Train twenty steps here and on stock libraries, from the same weights, over the same rows: how far apart do they end?

labeltune trains as a user would call it; its first weights and its order of rows are then handed to the Trainer. Rows
of tagging must have a first token for each word: a stock classifier has one label a token.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import stock_trainer as stock
import torch
from safetensors.torch import load_file

from labeltune.assembly import assemble
from labeltune.fitting import train
from labeltune.keys import Key
from labeltune.run import Run
from labeltune.training.order import Order

Weights = dict[str, torch.Tensor]
HEAD = "base_model.model.score.modules_to_save.default."


def differences(
    *, task: str, model: str, rows: str, dev: str, folder: Path, steps: int = 20, batch_rows: int = 16, lr: float = 1e-3
) -> dict[str, dict[str, float]]:
    """Per tensor `of_weight`, ‖ours − theirs‖ / ‖theirs‖, and `of_update`, the same over how far training moved it."""
    settings = {
        "model.unmask": "none",
        "lora.dropout": 0.0,
        "train.steps": steps,
        "train.batch_rows": batch_rows,
        "train.lr": lr,
        "train.threads": 1,
        "train.device": "cpu",
    }
    run = train(rows, dev=dev, task=task, model=model, out=folder / "run", settings=settings)
    first = _first(run)
    ours = _saved(run.folder)
    theirs = _theirs(run, rows, first)
    return {
        name: {
            "of_weight": float((ours[name] - weight).norm() / weight.norm()),
            "of_update": float((ours[name] - weight).norm() / (weight - first[name]).norm()),
        }
        for name, weight in theirs.items()
    }


def _first(run: Run) -> Weights:
    """What the run began with: weights are drawn from the seed alone."""
    with tempfile.TemporaryDirectory() as folder:
        assemble(run.config, run.labels).member.save(Path(folder))
        return _saved(Path(folder))


def _saved(folder: Path) -> Weights:
    """A member's weights under the stock model's names."""
    adapter = load_file(folder / "adapter" / "adapter_model.safetensors")
    head = load_file(folder / "head.safetensors")
    named = {
        name.replace("base_model.model.", "base_model.model.model.").replace(".weight", ".default.weight"): tensor
        for name, tensor in adapter.items()
    }
    return named | {HEAD + name.removeprefix("head."): tensor for name, tensor in head.items()}


def _theirs(run: Run, path: str, first: Weights) -> Weights:
    """The weights of the Trainer after the same steps."""
    config = run.config
    assert config.task and config.model.name and config.train.steps and config.data.max_tokens
    job = stock.Job(
        task=config.task,
        model=config.model.name,
        train=path,
        dev="",
        test="",
        seed=config.train.seed,
        lr=config.train.lr,
        epochs=1,
        batch_rows=config.train.batch_rows,
        rank=config.lora.rank,
        alpha=config.lora.alpha or config.lora.rank,
        dropout=0.0,
        warmup=config.train.warmup,
        weight_decay=config.train.weight_decay,
        clip=config.train.clip or 0.0,
        max_tokens=config.data.max_tokens,
        steps=config.train.steps,
    )
    rows = stock.read_rows(path)
    plan = Order(np.ones(len(rows), np.int64), config.train, Key.of(config.train.seed).fold("trial"))
    order = [row for step in range(job.steps) for row in plan.at(step)[1]]
    if len(order) != job.steps * job.batch_rows:
        raise ValueError("the rows must be a multiple of the batch, so that no step is smaller")
    tokenizer = stock.load_tokenizer(job.model)
    classes = _classes(run)
    data = stock.encode(tokenizer, [rows[row] for row in order], classes, job)
    model = stock.build_model(job, classes, tokenizer)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if trained.keys() != first.keys():
        raise ValueError(f"the two sides train different tensors: {sorted(trained.keys() ^ first.keys())}")
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(first[name])
    with tempfile.TemporaryDirectory() as folder:
        stock.build_trainer(job, model, tokenizer, data, folder=folder, in_order=True).train()
    return {name: parameter.detach() for name, parameter in trained.items()}


def _classes(run: Run) -> tuple[str, ...]:
    """Names of the logits, in order."""
    names = run.labels.names
    if run.config.task != "tagging":
        return names
    return ("O", *(f"{edge}-{name}" for name in names for edge in "BI"))


def whole_words_only(path: Path, model: str, rows: int, to: Path) -> None:
    """Write the first `rows` sentences of a CoNLL file in which each word has a first token of its own."""
    tokenizer = stock.load_tokenizer(model)
    kept = []
    for row in stock.read_rows(str(path)):
        found = tokenizer(row.text, return_offsets_mapping=True)
        tokens = tokenizer.convert_ids_to_tokens(found["input_ids"])
        if len(set(stock.first_tokens(row, tokens, found["offset_mapping"]))) == len(row.words):
            kept.append("".join(f"{word}\t{tag}\n" for word, tag in zip(row.words, row.tags, strict=True)))
    to.write_text("\n".join(kept[:rows]), "utf-8")
