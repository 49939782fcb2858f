"""How does a training's time grow with rows, length, labels, LoRA rank, and trials of a sweep?

    python growth.py --data DATA --tokenizer TOKENIZER --work WORK --out results/NAME --hardware "one line"

One thing varies at a time; the rest stays at `BASE`. Texts are AG News articles strung together and cut at
`data.max_tokens`, so every row has exactly as many tokens as the point says; labels are drawn by number. What counts is
the process's CPU seconds of one thread, from the first step's batch to the last step's end, without evaluation, which
other work on the machine changes little. Points are measured in rounds, and the least of the rounds stands.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from cells import Cells
from material import TEXTS, backbone

from labeltune.facts import Ready
from labeltune.fitting import train
from labeltune.sweeps.facts import Began, Moved
from labeltune.sweeps.sweeping import sweep
from labeltune.training.trainer import Step

BASE = {"rows": 128, "length": 32, "labels": 2, "rank": 8, "trials": 1}
VARIED: dict[str, tuple[int, ...]] = {
    "rows": (64, 128, 256, 512),
    "length": (8, 16, 32, 64, 128, 256, 512),
    "labels": (2, 16, 128),
    "rank": (1, 8, 64),
    "trials": (1, 2, 4, 8),
}
FIXED = {
    "data.long": "truncate",
    "train.batch_rows": 16,
    "train.threads": 1,
    "train.epochs": 1,
    "train.eval_every": 10_000,
    "lora.dropout": 0.0,
}


class Clock:
    """CPU seconds of the steps, and of seating later trials of a sweep. A listener of `train` and of `sweep`."""

    def __init__(self) -> None:
        self.began, self.ended = 0.0, 0.0

    def __call__(self, fact: object) -> None:
        if isinstance(fact, Ready | Began):
            self.began = self.began or time.process_time()
        elif isinstance(fact, Step | Moved):
            self.ended = time.process_time()


def rows_of(data: Path, place: Path, rows: int, labels: int) -> Path:
    """A file of rows that are longer than any point's length, their labels by number."""
    texts = list(dict.fromkeys(text for text, _ in TEXTS["ag_news"].rows(data)))
    random.Random(0).shuffle(texts)
    path = place / "train.jsonl"
    long = (" ".join(texts[(20 * row + k) % len(texts)] for k in range(20)) for row in range(rows))
    lines = (json.dumps({"text": text, "label": f"L{row % labels}"}) + "\n" for row, text in enumerate(long))
    path.write_text("".join(lines), "utf-8")
    dev = [{"text": "yes", "label": "L0"}, {"text": "no", "label": "L1"}]
    (place / "dev.jsonl").write_text("".join(json.dumps(row) + "\n" for row in dev), "utf-8")
    return path


def measured(point: dict[str, int], data: Path, model: Path) -> float:
    """CPU seconds of one training, or of one sweep of as many as the point has trials."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        file = rows_of(data, place, point["rows"], point["labels"])
        settings: dict[str, Any] = {**FIXED, "data.max_tokens": point["length"], "lora.rank": point["rank"]}
        if point["trials"] == 1:
            dev = place / "dev.jsonl"
            train(file, dev=dev, model=str(model), out=place / "run", settings=settings, listen=clock)
        else:
            rates = ", ".join(f"{1e-4 * (1 + k)}" for k in range(point["trials"]))
            names = f'[data]\ntrain = "train.jsonl"\ndev = "dev.jsonl"\n[model]\nname = "{model}"\n'
            (place / "sweep.toml").write_text(names + f'[sweep.axes]\n"train.lr" = [{rates}]\n', "utf-8")
            sweep(place / "sweep.toml", out=place / "s", settings=settings, listen=clock, snapshot_seconds=1e9)
    return clock.ended - clock.began


def markdown(facts: dict[str, Any]) -> str:
    """A table for each thing that varies."""
    base = ", ".join(f"{name} {value}" for name, value in facts["base"].items())
    lines = ["# How a training's time grows", "", f"{facts['hardware']}; torch {facts['torch']}; one thread.", ""]
    lines += [
        f"A backbone of {facts['model']}, one epoch; where nothing else is said: {base}. CPU seconds of the steps."
    ]
    for name in facts["base"]:
        points = [point for point in facts["points"] if point["varied"] == name]
        lines += ["", f"| {name} | seconds | ms a token |", "|---|---|---|"]
        for p in points:
            tokens = p["rows"] * p["length"] * p["trials"]
            lines.append(f"| {p[name]:,} | {p['seconds']:.2f} | {1000 * p['seconds'] / tokens:.3f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Read the command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with ag_news/")
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder with a Llama tokenizer")
    parser.add_argument("--work", type=Path, required=True, help="folder for what is finished")
    parser.add_argument("--size", default="15M")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True, help="path without suffix; .md and .json are written")
    parser.add_argument("--hardware", required=True, help="one line on the machine")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.work.mkdir(parents=True, exist_ok=True)
    model, cells = backbone(arguments.size, arguments.tokenizer, arguments.work), Cells(arguments.work / "cells.jsonl")
    measured(BASE | {"rows": 32}, arguments.data, model)  # warms up
    for turn in range(arguments.rounds):
        for name, values in VARIED.items():
            for value in values:
                point = BASE | {name: value}
                if not cells.find(varied=name, round=turn, **point):
                    seconds = measured(point, arguments.data, model)
                    cells.add({"varied": name, "round": turn, **point, "seconds": seconds})
                    print(name, value, f"{seconds:.2f} s", flush=True)
    points = [
        BASE | {"varied": name, name: v, "seconds": min(c["seconds"] for c in cells.find(**{"varied": name, name: v}))}
        for name, values in VARIED.items()
        for v in values
    ]
    facts = {"hardware": arguments.hardware, "torch": version("torch"), "model": arguments.size, "base": BASE}
    facts["points"] = points
    arguments.out.with_suffix(".json").write_text(json.dumps(facts, indent=1) + "\n")
    arguments.out.with_suffix(".md").write_text(markdown(facts))


if __name__ == "__main__":
    main()
