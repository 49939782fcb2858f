"""The same training on stock libraries: transformers' Trainer, PEFT and per-batch padding, without labeltune.

    python stock_trainer.py JOB.json RESULT.json

Written as its documentation shows, with what is usually forgotten done right: a pad token is named (the stock sequence
classifier needs one to find a text's last token), special tokens and pieces other than a word's first carry -100, the
head's own dropout of 0.1 on tokens is turned off, and spans are scored on words, strictly.
"""

from __future__ import annotations

import csv
import json
import re
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from seqeval.scheme import IOB2, Entities
from torch.utils.data import Dataset
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    EvalPrediction,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

IGNORED = -100


@dataclass(frozen=True)
class Job:
    """One training. train, dev, test: files.

    padding: `batch` pads to the longest row of each batch; `blocks` to that of each 1,000 rows, when they are encoded.
    grouped: rows of like length share a batch. dtype: of the frozen backbone.
    """

    task: str
    model: str
    train: str
    dev: str
    test: str
    seed: int
    lr: float
    epochs: float
    batch_rows: int
    rank: int
    alpha: float
    dropout: float
    warmup: float
    weight_decay: float
    clip: float
    max_tokens: int
    steps: int = -1
    padding: str = "batch"
    grouped: bool = False
    dtype: str = "float32"


@dataclass(frozen=True)
class Row:
    """A text with a label, or words with a tag each."""

    text: str
    label: str = ""
    words: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()


# Rows


def read_rows(path: str) -> list[Row]:
    """The rows of a `LABEL text`, JSONL, headerless CSV (class from 1, title, description) or CoNLL file, in order."""
    name = Path(path).name
    if name.endswith(".jsonl"):
        with open(path, encoding="utf-8") as file:
            return [Row(fields["text"], str(fields["label"])) for fields in map(json.loads, file)]
    if name.endswith(".csv"):
        with open(path, encoding="utf-8", newline="") as file:
            return [Row(f"{title} . {body}", str(int(number) - 1)) for number, title, body in csv.reader(file)]
    if name.startswith("stsa"):
        with open(path, encoding="utf-8") as file:
            return [Row(text.strip(), label) for label, text in (line.split(" ", 1) for line in file)]
    return list(_sentences(Path(path)))


def _sentences(path: Path) -> Iterator[Row]:
    for block in re.split(r"\n\s*\n", path.read_text("utf-8")):
        pairs = [line.split("\t") for line in block.splitlines() if line.strip()]
        if pairs:
            words, tags = zip(*pairs, strict=True)
            yield Row(" ".join(words), words=words, tags=tags)


class Encoded(Dataset):
    """Tokenised rows in memory."""

    def __init__(self, rows: Sequence[dict[str, Any]]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows[index]


def load_tokenizer(model: str) -> PreTrainedTokenizerFast:
    """`tokenizer.json` as it is: AutoTokenizer rebuilds Llama's in transformers 5 and may lose the unknown token."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(model)
    tokenizer.pad_token = tokenizer.eos_token  # never inside a text; the unknown token, this checkpoint's pad, may be
    tokenizer.padding_side = "right"
    return tokenizer


def encode(tokenizer: PreTrainedTokenizerFast, rows: Sequence[Row], classes: Sequence[str], job: Job) -> Encoded:
    """Token ids and labels: one a text, or one a token (-100 where a token is no word's first)."""
    found = tokenizer(
        [row.text for row in rows], truncation=True, max_length=job.max_tokens, return_offsets_mapping=True
    )
    encoded = []
    for row, ids, offsets in zip(rows, found["input_ids"], found["offset_mapping"], strict=True):
        labels: Any = IGNORED  # a label that training has not seen
        if job.task == "tagging":
            labels = [IGNORED] * len(ids)
            taken = set()
            for word, token in enumerate(first_tokens(row, tokenizer.convert_ids_to_tokens(ids), offsets)):
                if token not in taken:  # a token that two words share can carry one label only
                    labels[token] = classes.index(row.tags[word])
                taken.add(token)
        elif row.label in classes:
            labels = classes.index(row.label)
        encoded.append({"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels})
    return Encoded(in_blocks(encoded, tokenizer.pad_token_id) if job.padding == "blocks" else encoded)


def in_blocks(rows: Sequence[dict[str, Any]], pad: int, size: int = 1000) -> list[dict[str, Any]]:
    """Each row padded to the longest of its block, as `datasets.map(batched=True)` with `padding="longest"` does."""
    padded = []
    for start in range(0, len(rows), size):
        longest = max(len(row["input_ids"]) for row in rows[start : start + size])
        for row in rows[start : start + size]:
            room = longest - len(row["input_ids"])
            labels = row["labels"] + [IGNORED] * room if isinstance(row["labels"], list) else row["labels"]
            ids, mask = row["input_ids"] + [pad] * room, row["attention_mask"] + [0] * room
            padded.append({"input_ids": ids, "attention_mask": mask, "labels": labels})
    return padded


def first_tokens(row: Row, tokens: Sequence[str], offsets: Sequence[tuple[int, int]]) -> list[int]:
    """For each word the first token that begins in it; without one, the token that it shares with the word before.

    A token of nothing but a space mark is no word's, whatever its offsets.
    """
    starts: dict[int, int] = {}
    word_of = [word for word, text in enumerate(row.words) for _ in range(len(text) + 1)]
    for place, (token, (start, end)) in enumerate(zip(tokens, offsets, strict=True)):
        while start < end and row.text[start] == " ":
            start += 1
        if start < end and token.strip("▁Ġ"):
            starts.setdefault(word_of[start], place)
    chosen: list[int] = []
    ends = np.cumsum([len(text) + 1 for text in row.words]) - 1
    for word, end in enumerate(ends):
        shared = max(place for place, (start, _) in enumerate(offsets) if start < end)
        chosen.append(starts.get(word, shared))
    return chosen


# Model


def build_model(job: Job, classes: Sequence[str], tokenizer: PreTrainedTokenizerFast) -> PeftModel:
    """The stock classifier of the backbone with LoRA on the attention projections; its head is trained too."""
    tagging = job.task == "tagging"
    stock = AutoModelForTokenClassification if tagging else AutoModelForSequenceClassification
    config = AutoConfig.from_pretrained(job.model, num_labels=len(classes), pad_token_id=tokenizer.pad_token_id)
    config.classifier_dropout, dtype = 0.0, getattr(torch, job.dtype)
    model = stock.from_pretrained(job.model, config=config, dtype=dtype)
    # A checkpoint that stores tied embeddings as `lm_head` alone leaves them random in a stock classifier.
    model.model.load_state_dict(AutoModelForCausalLM.from_pretrained(job.model, dtype=dtype).model.state_dict())
    adapter = LoraConfig(
        task_type=TaskType.TOKEN_CLS if tagging else TaskType.SEQ_CLS,
        r=job.rank,
        lora_alpha=job.alpha,
        lora_dropout=job.dropout,
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj"],
    )
    return get_peft_model(model, adapter)


class Clock(TrainerCallback):
    """Seconds and rows from the first batch of each epoch to its last optimiser step; evaluations lie outside."""

    def __init__(self) -> None:
        self.seconds, self._since = 0.0, 0.0

    def on_epoch_begin(self, *_: Any, **__: Any) -> None:  # before the first batch is fetched
        self._since = time.monotonic()

    def on_epoch_end(self, *_: Any, **__: Any) -> None:  # before dev is evaluated
        self.seconds += time.monotonic() - self._since


def build_trainer(
    job: Job,
    model: PeftModel,
    tokenizer: PreTrainedTokenizerFast,
    train: Dataset,
    *,
    folder: str,
    dev: Dataset | None = None,
    metrics: Callable[[EvalPrediction], dict[str, float]] | None = None,
    in_order: bool = False,
) -> Trainer:
    """The Trainer with the job's settings; dev chooses the epoch. in_order: rows as they come, not shuffled."""
    collator = DataCollatorForTokenClassification if job.task == "tagging" else DataCollatorWithPadding
    each = "no" if dev is None else "epoch"
    arguments = TrainingArguments(
        output_dir=folder,
        per_device_train_batch_size=job.batch_rows,
        per_device_eval_batch_size=32,
        num_train_epochs=job.epochs,
        max_steps=job.steps,
        learning_rate=job.lr,
        lr_scheduler_type="linear",
        warmup_steps=job.warmup,  # below 1: a share of the steps
        weight_decay=job.weight_decay,
        max_grad_norm=job.clip,
        eval_strategy=each,
        save_strategy=each,
        load_best_model_at_end=dev is not None,
        metric_for_best_model="score" if dev is not None else None,
        train_sampling_strategy="sequential" if in_order else "group_by_length" if job.grouped else "random",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=job.seed,
        use_cpu=True,
        dataloader_pin_memory=False,
    )
    return Trainer(
        model=model,
        args=arguments,
        train_dataset=train,
        eval_dataset=dev,
        data_collator=collator(tokenizer),
        compute_metrics=metrics,
        preprocess_logits_for_metrics=lambda logits, labels: logits.argmax(-1),
    )


# Answers


def spans_of(tags: Sequence[str]) -> list[tuple[int, int, str]]:
    """The entities of IOB2 tags by seqeval's strict rule: (first word, last word + 1, label)."""
    return [(entity.start, entity.end, entity.tag) for entity in Entities([list(tags)], IOB2).entities[0]]


class Answers:
    """From predicted classes to answers by row, and their score, on one split."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, rows: Sequence[Row], classes: Sequence[str], job: Job):
        self.rows, self.classes, self.tagging = rows, classes, job.task == "tagging"
        if self.tagging:
            found = tokenizer(
                [row.text for row in rows], truncation=True, max_length=job.max_tokens, return_offsets_mapping=True
            )
            parts = zip(rows, found["input_ids"], found["offset_mapping"], strict=True)
            self.first = [first_tokens(row, tokenizer.convert_ids_to_tokens(ids), at) for row, ids, at in parts]

    def gold(self) -> list[Any]:
        """What the rows say."""
        return [spans_of(row.tags) if self.tagging else row.label for row in self.rows]

    def of(self, predicted: np.ndarray) -> list[Any]:
        """A label, or spans, for each row."""
        if not self.tagging:
            return [self.classes[number] for number in predicted]
        return [
            spans_of([self.classes[row[token]] for token in first])
            for row, first in zip(predicted, self.first, strict=True)
        ]

    def score(self, prediction: EvalPrediction) -> dict[str, float]:
        """Accuracy, or strict micro F1."""
        pairs = list(zip(self.gold(), self.of(prediction.predictions), strict=True))
        if not self.tagging:
            return {"score": float(np.mean([gold == answer for gold, answer in pairs]))}
        right = sum(len(set(gold) & set(answer)) for gold, answer in pairs)
        count = sum(len(gold) + len(answer) for gold, answer in pairs)
        return {"score": 2 * right / count if count else 0.0}


def run(job: Job) -> dict[str, Any]:
    """Train, choose the epoch on dev, answer test."""
    set_seed(job.seed)
    tokenizer = load_tokenizer(job.model)
    train, dev, test = (read_rows(path) for path in (job.train, job.dev, job.test))
    classes = sorted({row.label for row in train} if job.task != "tagging" else {t for row in train for t in row.tags})
    encoded = [encode(tokenizer, rows, classes, job) for rows in (train, dev, test)]
    on_dev, on_test = (Answers(tokenizer, rows, classes, job) for rows in (dev, test))
    model, clock = build_model(job, classes, tokenizer), Clock()
    with tempfile.TemporaryDirectory() as folder:
        trainer = build_trainer(job, model, tokenizer, encoded[0], folder=folder, dev=encoded[1], metrics=on_dev.score)
        trainer.add_callback(clock)
        trainer.train()
        trainer.compute_metrics = None
        answers = on_test.of(trainer.predict(encoded[2]).predictions)
    return {
        "dev": trainer.state.best_metric,
        "rows_per_second": len(train) * job.epochs / clock.seconds,
        "cpu_seconds": sum(resource.getrusage(resource.RUSAGE_SELF)[:2]),
        "gold": on_test.gold(),
        "answers": answers,
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    wanted = Job(**json.loads(Path(sys.argv[1]).read_text("utf-8")))
    Path(sys.argv[2]).write_text(json.dumps(run(wanted)), "utf-8")
