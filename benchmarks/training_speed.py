"""How many rows a second does each side train on a CPU, from encoded rows to the optimiser's step?

    python training_speed.py run    --data DATA --tokenizer TOKENIZER --work WORK [--sizes 15M 110M] [--texts sst2 …]
    python training_speed.py report --work WORK --out results/NAME --hardware "one line"

Sides: labeltune; A, the published recipes (Trainer + PEFT, rows padded to the longest of each 1,000); B, the same with
rows of like length in a batch, padded to its longest. With the same rows a step; and, for `sst2` and `ag_news`, in the
shape that suits each: labeltune in steps of 2,048 tokens, B in 32 grouped rows. All sides of a cell read the same rows,
in one process, by turns, repeat after repeat. Finished turns stand in WORK/turns.jsonl; an interrupted run goes on
where it stopped.

`--clock cpu` counts the process's CPU seconds instead of the wall's, for a machine with other work; use it with
`--threads 1`, for threads that wait for each other count as well.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import material
import stock_trainer as stock
import torch
from cells import Cells
from material import SIZES, TEXTS, Texts, backbone, write_rows
from transformers import TrainerCallback, TrainingArguments
from transformers.trainer_pt_utils import get_length_grouped_indices
from transformers.utils import logging

from labeltune.facts import Ready
from labeltune.fitting import train
from labeltune.training.trainer import Step

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
SAME = {"rank": 16, "alpha": 16, "dropout": 0.05, "warmup": 0.06, "weight_decay": 0.01, "clip": 1.0, "lr": 2e-4}
"""What both sides are told; causal masks and a linear schedule besides."""
TOKENS = 2048
ROWS = {"15M": 128, "110M": 48}
"""Rows of a turn, one epoch of them."""
SHAPED_ROWS, LONG_ROWS = 128, 96
"""The same where the shape differs, and of texts of up to 512 tokens."""
SHAPED_BATCH = 32


@dataclass(frozen=True)
class Cell:
    """What all sides of a comparison share."""

    model: Path
    kind: str
    texts: Texts
    data: Path
    work: Path
    rows: int
    dtype: str
    threads: int
    clock: Callable[[], float]


class Watch(TrainerCallback):
    """Seconds from the first batch of the first step to the end of the last step, on both sides."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock, self.rows, self._first, self._last = clock, 0, 0.0, 0.0

    def __call__(self, fact: object) -> None:
        """labeltune's facts; the evaluation of four short rows after the last step is counted."""
        if isinstance(fact, Ready):
            self._first = self.clock()
        if isinstance(fact, Step):
            self._last, self.rows = self.clock(), self.rows + fact.rows

    def on_epoch_begin(self, *_: Any, **__: Any) -> None:
        self._first = self._first or self.clock()

    def on_step_end(self, arguments: TrainingArguments, *_: Any, **__: Any) -> None:
        self._last, self.rows = self.clock(), self.rows + arguments.per_device_train_batch_size

    def rate(self) -> float:
        """Rows a second."""
        return self.rows / (self._last - self._first)


def ours(cell: Cell, places: Sequence[int], **shape: int) -> float:
    """Rows a second by labeltune, of the rows at these places of the file."""
    settings: dict[str, Any] = {
        "model.unmask": "none",
        "model.dtype": {"float32": "fp32", "bfloat16": "bf16"}[cell.dtype],
        "data.max_tokens": cell.texts.cap,
        "data.long": "truncate",
        "train.epochs": 1,
        "train.threads": cell.threads,
        "train.device": "cpu",
        **{f"lora.{name}": SAME[name] for name in ("rank", "alpha", "dropout")},
        **{f"train.{name}": SAME[name] for name in ("warmup", "weight_decay", "clip", "lr")},
        **{f"train.{name}": value for name, value in shape.items()},
    }
    (path, dev), watch = write_rows(cell.kind, cell.data, cell.work, places), Watch(cell.clock)
    with tempfile.TemporaryDirectory() as folder:
        where = {"model": str(cell.model), "out": Path(folder) / "run"}
        train(path, dev=dev, task=cell.texts.task, settings=settings, listen=watch, **where)
    return watch.rate()


def theirs(cell: Cell, places: Sequence[int], batch_rows: int, **job: Any) -> float:
    """Rows a second by the Trainer, of the same rows; padding in blocks looks at all rows of the file."""
    wanted = stock.Job(
        task=cell.texts.task,
        model=str(cell.model),
        train=str(write_rows(cell.kind, cell.data, cell.work)[0]),
        dev="",
        test="",
        seed=0,
        epochs=1,
        batch_rows=batch_rows,
        max_tokens=cell.texts.cap,
        dtype=cell.dtype,
        **SAME,
        **job,
    )
    found, tokenizer = stock.read_rows(wanted.train), stock.load_tokenizer(wanted.model)
    names = {tag for row in found for tag in row.tags} if wanted.task == "tagging" else {row.label for row in found}
    classes, watch = sorted(names), Watch(cell.clock)
    every = stock.encode(tokenizer, found, classes, wanted).rows
    encoded = stock.Encoded([every[place] for place in places])
    model = stock.build_model(wanted, classes, tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        trainer = stock.build_trainer(wanted, model, tokenizer, encoded, folder=folder, in_order=wanted.grouped)
        trainer.add_callback(watch)
        trainer.train()
    return watch.rate()


def turn(cell: Cell, rows: int, batch_rows: int) -> list[int]:
    """The places of a turn's rows in the file, the same for all sides: batches of like length, one after the other.

    Of a turn's few rows alone transformers' sampler makes no such batches: it sorts within blocks of `rows // 4` at
    most, and below two batches a block not at all. So it is given all rows of the file, and of its batches, from the
    shortest to the longest, as many are taken at even distances: their rows are as long as those of the file.
    """
    read = stock.read_rows(str(write_rows(cell.kind, cell.data, cell.work)[0]))
    tokenizer, texts = stock.load_tokenizer(str(cell.model)), [row.text for row in read]
    lengths = [len(ids) for ids in tokenizer(texts, truncation=True, max_length=cell.texts.cap)["input_ids"]]
    return spread(lengths, rows, batch_rows)


def spread(lengths: Sequence[int], rows: int, batch_rows: int) -> list[int]:
    """Whole batches of like length, evenly spread over the lengths, in an order of chance."""
    order = get_length_grouped_indices(lengths, batch_rows, generator=torch.Generator().manual_seed(0))
    batches = [order[start : start + batch_rows] for start in range(0, len(order) - batch_rows + 1, batch_rows)]
    batches.sort(key=lambda batch: sum(lengths[place] for place in batch))
    count = min(len(batches), max(rows // batch_rows, 1))
    chosen = [batches[(2 * number + 1) * len(batches) // (2 * count)] for number in range(count)]
    random.Random(0).shuffle(chosen)
    return [place for batch in chosen for place in batch]


Side = Callable[[Cell, Sequence[int]], float]
SIDES: dict[str, Side] = {
    "labeltune": lambda cell, places: ours(cell, places, batch_rows=cell.texts.batch_rows),
    "A": lambda cell, places: theirs(cell, places, cell.texts.batch_rows, padding="blocks"),
    "B": lambda cell, places: theirs(cell, places, cell.texts.batch_rows, grouped=True),
}
SHAPED: dict[str, Side] = {
    "labeltune, 2,048 tokens": lambda cell, places: ours(cell, places, batch_tokens=TOKENS),
    "B, 32 rows": lambda cell, places: theirs(cell, places, SHAPED_BATCH, grouped=True),
}
"""The second table: each side in its best shape."""


def run(arguments: argparse.Namespace) -> None:
    """Every turn that is not finished yet."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(arguments.threads)
    work, data, tokenizer = (Path(getattr(arguments, name)).resolve() for name in ("work", "data", "tokenizer"))
    work.mkdir(parents=True, exist_ok=True)
    turns = Cells(work / "turns.jsonl")
    for size in arguments.sizes:
        model = backbone(size, tokenizer, work)
        for kind in arguments.texts:
            texts, how = TEXTS[kind], {"threads": arguments.threads, "clock": arguments.clock}
            rows = arguments.rows or (LONG_ROWS if texts.cap > 64 else ROWS[size])
            clock = CLOCKS[arguments.clock]
            cell = Cell(model, kind, texts, data, work, rows, arguments.dtype, arguments.threads, clock)
            shaped = SHAPED if kind in ("sst2", "ag_news") and not arguments.same_rows else {}
            sides, places = SIDES | shaped, dict.fromkeys(SIDES, turn(cell, rows, texts.batch_rows))
            if shaped:
                places |= dict.fromkeys(shaped, turn(cell, arguments.rows or SHAPED_ROWS, SHAPED_BATCH))
            for repeat in range(arguments.repeats):
                for side in sorted(sides, reverse=repeat % 2 == 1):  # by turns, and neither always first
                    facts = {"size": size, "text": kind, "dtype": arguments.dtype, "side": side, "repeat": repeat} | how
                    if not turns.find(**facts):
                        rate = sides[side](cell, places[side])
                        turns.add({**facts, "rows": len(places[side]), "rows_per_second": rate})
                        print(*facts.values(), f"{rate:.2f} rows/s", flush=True)


def figures(turns: Cells) -> list[dict[str, Any]]:
    """Per size, text and dtype: the median rows a second of each side, and the medians of the ratios of the repeats."""
    found = []
    for size in SIZES:
        for kind in TEXTS:
            for dtype in ("float32", "bfloat16"):
                rates = {
                    side: {
                        r["repeat"]: r["rows_per_second"]
                        for r in turns.find(size=size, text=kind, dtype=dtype, side=side)
                    }
                    for side in (*SIDES, *SHAPED)
                }
                if rates["labeltune"]:
                    entry = {"size": size, "text": kind, "dtype": dtype}
                    entry["rows_per_second"] = {s: statistics.median(by.values()) for s, by in rates.items() if by}
                    entry["ratios"] = {
                        f"{one} / {other}": ratio
                        for one, other in (("labeltune", "A"), ("labeltune", "B"), (tuple(SHAPED)))
                        if (ratio := _ratio(rates[one], rates[other])) is not None
                    }
                    found.append(entry)
    return found


def _ratio(ours: Mapping[int, float], theirs: Mapping[int, float]) -> float | None:
    ratios = [ours[repeat] / theirs[repeat] for repeat in ours.keys() & theirs.keys()]
    return statistics.median(ratios) if ratios else None


def tokens_of(kind: str, work: Path) -> tuple[float, int]:
    """Mean and most tokens of the 1,000 rows under the cap: what is read, and what A pads to."""
    model = next(work.glob("llama-*"))
    ending = "conll" if TEXTS[kind].task == "tagging" else "jsonl"
    texts = [row.text for row in stock.read_rows(str(work / f"{kind}-{material.ROWS}.{ending}"))]
    found = stock.load_tokenizer(str(model))(texts, truncation=True, max_length=TEXTS[kind].cap)["input_ids"]
    lengths = [len(ids) for ids in found]
    return statistics.mean(lengths), max(lengths)


TARGETS: dict[str, tuple[float, float, float]] = {
    "sst2": (2.3, 2.6, 1.2),
    "phrases": (3.3, 3.8, 1.3),
    "tagging": (2.6, 3.0, 1.2),
    "ag_news": (1.5, 1.6, 1.1),
    "livedoor": (1.6, 1.6, 1.1),
}
"""What was hoped for: 110M against A, 15M against A, against B."""


def report(arguments: argparse.Namespace) -> None:
    """Tables as Markdown, everything as JSON."""
    turns = Cells(Path(arguments.work) / "turns.jsonl")
    found = figures(turns)
    tokens = {kind: tokens_of(kind, Path(arguments.work)) for kind in {each["text"] for each in found}}
    versions = {name: version(name) for name in ("torch", "transformers", "peft", "accelerate")}
    facts = {"hardware": arguments.hardware, "python": platform.python_version(), **versions, "same": SAME}
    out = Path(arguments.out)
    out.with_suffix(".json").write_text(
        json.dumps({**facts, "cells": found, "tokens": tokens, "turns": turns.rows}, indent=1) + "\n"
    )
    how = " and ".join(sorted({f"{row['threads']} threads by the {row['clock']} clock" for row in turns.rows}))
    said = f"{arguments.hardware}; {how}; Python {facts['python']}, "
    lines = [
        "# Training speed",
        "",
        said + ", ".join(f"{name} {number}" for name, number in versions.items()) + ".",
        "Rows a second from encoded rows to the optimiser's step, medians of the repeats; a ratio is the median of the "
        "repeats' ratios. Both sides: " + ", ".join(f"{name} {value}" for name, value in SAME.items()) + ".",
        "A, B and how to repeat it: `benchmarks/README.md`.",
        "",
        "Tokens: the mean of a row, and what A pads each to; their ratio is what packing alone can give.",
        "",
        "| backbone | dtype | text | tokens | labeltune | A | B | against A | target | against B | target |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for each in found:
        rates, ratios, goal = each["rows_per_second"], each["ratios"], TARGETS[each["text"]]
        goals = (goal[0] if each["size"] == "110M" else goal[1], goal[2])
        mean, most = tokens[each["text"]]
        shown = [f"{mean:.0f} of {most}: {most / mean:.2f}"]
        shown += [f"{rates[side]:.1f}" if side in rates else "" for side in SIDES]
        against = [ratios.get(f"labeltune / {side}") for side in "AB"]
        held = [c for ratio, g in zip(against, goals, strict=True) for c in (f"{ratio:.2f}" if ratio else "", f"{g}")]
        lines.append("| " + " | ".join([each["size"], each["dtype"], TEXTS[each["text"]].title, *shown, *held]) + " |")
    lines += ["", "Each side in the shape that suits it:", "", "| backbone | dtype | text | " + " | ".join(SHAPED)]
    lines[-1] += " | ratio |"
    lines.append("|---|---|---|---|---|---|")
    for each in found:
        rates = each["rows_per_second"]
        if all(side in rates for side in SHAPED):
            shown = [f"{rates[side]:.1f}" for side in SHAPED] + [f"{each['ratios'][' / '.join(SHAPED)]:.2f}"]
            lines.append("| " + " | ".join([each["size"], each["dtype"], TEXTS[each["text"]].title, *shown]) + " |")
    out.with_suffix(".md").write_text("\n".join(lines) + "\n")


def main() -> None:
    """Read the command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(required=True)
    running = commands.add_parser("run")
    running.add_argument("--data", required=True, help="folder with sst/, ag_news/, wnut17/ and livedoor/")
    running.add_argument("--tokenizer", required=True, help="folder with a Llama tokenizer")
    running.add_argument("--work", required=True, help="folder for what is finished")
    running.add_argument("--sizes", nargs="*", default=list(SIZES), choices=list(SIZES))
    running.add_argument("--texts", nargs="*", default=list(TEXTS), choices=list(TEXTS))
    running.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    running.add_argument("--threads", type=int, default=2)
    running.add_argument("--clock", default="wall", choices=list(CLOCKS))
    running.add_argument("--repeats", type=int, default=3)
    running.add_argument("--rows", type=int, help="rows of a turn")
    running.add_argument("--same-rows", action="store_true", help="leave the second table out")
    running.set_defaults(do=run)
    reporting = commands.add_parser("report")
    reporting.add_argument("--work", required=True)
    reporting.add_argument("--out", required=True, help="path without suffix; .md and .json are written")
    reporting.add_argument("--hardware", required=True, help="one line on the machine")
    reporting.set_defaults(do=report)
    arguments = parser.parse_args()
    arguments.do(arguments)


if __name__ == "__main__":
    main()
