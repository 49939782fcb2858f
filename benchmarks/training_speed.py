"""How many rows a second does each side train on a CPU, from encoded rows to the optimiser's step?

    python training_speed.py run    --data DATA --tokenizer TOKENIZER --work WORK [--sizes 15M 110M] [--texts sst2 …]
    python training_speed.py report --work WORK --out results/NAME --hardware "one line"

Sides: labeltune; A, the published recipes (Trainer + PEFT, rows padded to the longest of each 1,000); B, the same with
rows of like length in a batch, padded to its longest. With the same rows a step; and, for `sst2` and `ag_news`, in the
shape that suits each: labeltune in steps of 2,048 tokens, B in 32 grouped rows. All sides of a cell run in one process,
by turns, repeat after repeat. Finished turns stand in WORK/turns.jsonl; an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import stock_trainer as stock
import torch
from cells import Cells
from material import SIZES, TEXTS, Texts, backbone, write_rows
from transformers.utils import logging

from labeltune.fitting import train

THREADS = 2
SAME = {"rank": 16, "alpha": 16, "dropout": 0.05, "warmup": 0.06, "weight_decay": 0.01, "clip": 1.0, "lr": 2e-4}
"""What both sides are told; causal masks and a linear schedule besides."""
TOKENS = 2048
STEPS = {"15M": 24, "110M": 8}
"""Optimiser steps of a turn, of rows of at most 64 tokens; longer rows and larger batches take fewer."""


def ours(model: Path, texts: Texts, files: tuple[Path, Path], steps: int, dtype: str, **shape: int) -> float:
    """Rows a second by labeltune, as its run reports them."""
    settings: dict[str, Any] = {
        "model.unmask": "none",
        "model.dtype": {"float32": "fp32", "bfloat16": "bf16"}[dtype],
        "data.max_tokens": texts.cap,
        "data.long": "truncate",
        "train.steps": steps,
        "train.threads": THREADS,
        "train.device": "cpu",
        **{f"lora.{name}": SAME[name] for name in ("rank", "alpha", "dropout")},
        **{f"train.{name}": SAME[name] for name in ("warmup", "weight_decay", "clip", "lr")},
        **{f"train.{name}": value for name, value in shape.items()},
    }
    rows, dev = files
    with tempfile.TemporaryDirectory() as folder:
        run = train(rows, dev=dev, task=texts.task, model=str(model), out=Path(folder) / "run", settings=settings)
        return float(run.metrics["train"]["rows_per_second"])


def theirs(
    model: Path, texts: Texts, files: tuple[Path, Path], steps: int, dtype: str, batch_rows: int, **job: Any
) -> float:
    """Rows a second by the Trainer."""
    wanted = stock.Job(
        task=texts.task,
        model=str(model),
        train=str(files[0]),
        dev="",
        test="",
        seed=0,
        epochs=1,
        batch_rows=batch_rows,
        max_tokens=texts.cap,
        steps=steps,
        dtype=dtype,
        **SAME,
        **job,
    )
    rows, tokenizer = stock.read_rows(wanted.train), stock.load_tokenizer(wanted.model)
    names = {tag for row in rows for tag in row.tags} if texts.task == "tagging" else {row.label for row in rows}
    classes, clock = sorted(names), stock.Clock()
    encoded = stock.encode(tokenizer, rows, classes, wanted)
    with tempfile.TemporaryDirectory() as folder:
        trainer = stock.build_trainer(
            wanted, stock.build_model(wanted, classes, tokenizer), tokenizer, encoded, folder=folder
        )
        trainer.add_callback(clock)
        trainer.train()
    return batch_rows * steps / clock.seconds


Side = Callable[[Path, Texts, tuple[Path, Path], int, str], float]
SIDES: dict[str, Side] = {
    "labeltune": lambda *cell: ours(*cell, batch_rows=cell[1].batch_rows),
    "A": lambda *cell: theirs(*cell, batch_rows=cell[1].batch_rows, padding="blocks"),
    "B": lambda *cell: theirs(*cell, batch_rows=cell[1].batch_rows, grouped=True),
}
SHAPED: dict[str, Side] = {
    "labeltune, 2,048 tokens": lambda m, t, f, steps, d: ours(m, t, f, max(2, steps // 4), d, batch_tokens=TOKENS),
    "B, 32 rows": lambda m, t, f, steps, d: theirs(m, t, f, max(2, steps // 4), d, batch_rows=32, grouped=True),
}
"""The second table: each side in its best shape."""


def run(arguments: argparse.Namespace) -> None:
    """Every turn that is not finished yet."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(THREADS)
    work, data, tokenizer = (Path(getattr(arguments, name)).resolve() for name in ("work", "data", "tokenizer"))
    work.mkdir(parents=True, exist_ok=True)
    turns = Cells(work / "turns.jsonl")
    for size in arguments.sizes:
        model = backbone(size, tokenizer, work)
        for kind in arguments.texts:
            texts, files = TEXTS[kind], write_rows(kind, data, work)
            steps = arguments.steps or max(1, STEPS[size] * 64 * 8 // (texts.cap * texts.batch_rows))
            sides = SIDES | (SHAPED if kind in ("sst2", "ag_news") and not arguments.same_rows else {})
            for repeat in range(arguments.repeats):
                for side in sorted(sides, reverse=repeat % 2 == 1):  # by turns, and neither always first
                    facts = {"size": size, "text": kind, "dtype": arguments.dtype, "side": side, "repeat": repeat}
                    if not turns.find(**facts):
                        rate = sides[side](model, texts, files, steps, arguments.dtype)
                        turns.add({**facts, "steps": steps, "rows_per_second": rate})
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
    versions = {name: version(name) for name in ("torch", "transformers", "peft", "accelerate")}
    facts = {"hardware": arguments.hardware, "python": platform.python_version(), **versions, "same": SAME}
    out = Path(arguments.out)
    out.with_suffix(".json").write_text(json.dumps({**facts, "cells": found, "turns": turns.rows}, indent=1) + "\n")
    said = f"{arguments.hardware}; {THREADS} threads; Python {facts['python']}, "
    lines = [
        "# Training speed",
        "",
        said + ", ".join(f"{name} {number}" for name, number in versions.items()) + ".",
        "Rows a second from encoded rows to the optimiser's step, medians of the repeats; a ratio is the median of the "
        "repeats' ratios. Both sides: " + ", ".join(f"{name} {value}" for name, value in SAME.items()) + ".",
        "A, B and how to repeat it: `benchmarks/README.md`.",
        "",
        "| backbone | dtype | text | labeltune | A | B | against A | target | against B | target |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for each in found:
        rates, ratios, goal = each["rows_per_second"], each["ratios"], TARGETS[each["text"]]
        goals = (goal[0] if each["size"] == "110M" else goal[1], goal[2])
        shown = [f"{rates[side]:.1f}" if side in rates else "" for side in SIDES]
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
    running.add_argument("--repeats", type=int, default=3)
    running.add_argument("--steps", type=int, help="optimiser steps of a turn")
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
