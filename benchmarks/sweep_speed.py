"""How much faster are twelve learning rates in one sweep than twelve trainings one after another?

    python sweep_speed.py --data DATA --tokenizer TOKENIZER --work WORK --out results/NAME --hardware "one line"
        [--models 0.66M=FOLDER 15M 110M] [--rows 96] [--repeats 3] [--together 12] [--whole]

Sides, by turns in one process, an epoch of the same SST-2 rows, eight a step: the sweep; a labeltune training; A,
Trainer + PEFT with rows padded to the longest of each 1,000; B, the same with rows of like length together. Rates are
of the optimiser steps alone (labeltune's as `log.jsonl` has them, the others' from the first batch to the last step);
twelve trainings one after another have the rate of one, so rates compare. `--whole` adds the whole process of the
sweep, evaluations and all, against that of one training, which twelve would pay twelve times.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from material import SIZES, TEXTS, backbone, write_rows
from training_speed import CLOCKS, SAME, Cell, theirs, turn

from labeltune import sweep, train
from labeltune.sweeps.sweeping import read_sweep

TRIALS, BATCH = 12, 8
RATES = [2e-4 * 1.2**n for n in range(TRIALS)]


def write_sweep(cell: Cell, folder: Path, together: int | None) -> Path:
    """The sweep's file: what a training is told, and twelve learning rates."""
    path, dev = write_rows(cell.kind, cell.data, cell.work, turn(cell, cell.rows, BATCH))
    lines = ['task = "classification"', "[data]", f'train = "{path.resolve()}"', f'dev = "{dev.resolve()}"']
    lines += [f"max_tokens = {cell.texts.cap}", 'long = "truncate"']
    lines += ["[model]", f'name = "{cell.model.resolve()}"', 'unmask = "none"', 'dtype = "fp32"']
    lines += ["[lora]", *(f"{name} = {SAME[name]}" for name in ("rank", "alpha", "dropout"))]
    lines += ["[train]", "epochs = 1", f"batch_rows = {BATCH}", f"threads = {cell.threads}", 'device = "cpu"']
    lines += [f"{name} = {SAME[name]}" for name in ("warmup", "weight_decay", "clip")]
    lines += ["[sweep]", *([] if together is None else [f"together = {together}"])]
    lines += ["[sweep.axes]", f'"train.lr" = {RATES}']
    file = folder / "sweep.toml"
    file.write_text("\n".join(lines) + "\n")
    return file


def in_a_sweep(cell: Cell, together: int | None) -> float:
    """Rows a second of all twelve together."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        sweep(write_sweep(cell, Path(folder), together), out=out, snapshot_seconds=1e9)
        return rate(out.glob("trials/*"))


def alone(cell: Cell) -> float:
    """Rows a second of one training of the same settings."""
    with tempfile.TemporaryDirectory() as folder:
        settings = read_sweep(write_sweep(cell, Path(folder), None), {"train.lr": RATES[0]})[0]
        return rate([train(config=settings, out=Path(folder) / "run").folder])


def rate(runs: Iterable[Path]) -> float:
    """Rows a second of the steps of all runs; a step's seconds are its share of the passes that it was in."""
    rows = seconds = 0.0
    for run in runs:
        log = [json.loads(line) for line in (run / "log.jsonl").read_text("utf-8").splitlines()]
        rows, seconds = rows + sum(line["rows"] for line in log), seconds + log[-1]["seconds"]
    return rows / seconds


def whole(cell: Cell, together: int | None) -> tuple[float, float]:
    """Seconds of the whole process: the sweep, and one training."""
    with tempfile.TemporaryDirectory() as folder:
        file = write_sweep(cell, Path(folder), together)
        command = [sys.executable, "-m", "labeltune.cli"]
        one = ["--set", f"train.lr={RATES[0]}"]
        text = file.read_text().partition("[sweep]")[0]
        (Path(folder) / "one.toml").write_text(text)
        began = time.perf_counter()
        subprocess.run(
            [*command, "sweep", str(file), "--out", f"{folder}/s", "--json"], check=True, capture_output=True
        )
        middle = time.perf_counter()
        training = [*command, "train", f"{folder}/one.toml", "--out", f"{folder}/r", "--json", *one]
        subprocess.run(training, check=True, capture_output=True)
        return middle - began, time.perf_counter() - middle


def cell_of(options: argparse.Namespace, model: str) -> tuple[str, Cell]:
    name, _, folder = model.partition("=")
    at = Path(folder) if folder else backbone(name, options.tokenizer, options.work)
    return name, Cell(at, "sst2", TEXTS["sst2"], options.data, options.work, options.rows, "float32", 1, CLOCKS["wall"])


def measured(cell: Cell, options: argparse.Namespace) -> dict[str, Any]:
    """Medians of the rates of each side."""
    places = turn(cell, cell.rows, BATCH)
    sides: dict[str, Callable[[], float]] = {
        "sweep": lambda: in_a_sweep(cell, options.together),
        "one by one": lambda: alone(cell),
        "A": lambda: theirs(cell, places, BATCH, padding="blocks"),
        "B": lambda: theirs(cell, places, BATCH, grouped=True),
    }
    found: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(options.repeats):
        for name, side in sides.items():
            found[name].append(side())
            print(f"{cell.model.name} {name}: {found[name][-1]:.1f} rows a second", flush=True)
    return {name: statistics.median(rates) for name, rates in found.items()}


def report(rows: dict[str, dict[str, Any]], options: argparse.Namespace) -> str:
    """The table, as ratios."""
    lines = [
        "# Twelve learning rates in one sweep",
        "",
        f"{options.hardware}; one thread, {options.rows} SST-2 rows, {BATCH} a step; optimiser steps alone, medians of "
        f"{options.repeats}. Repeat: `python benchmarks/sweep_speed.py`.",
        "",
        "| backbone | sweep, rows a second | against 12 labeltune runs | against 12 × A | against 12 × B |",
        "|---|---|---|---|---|",
    ]
    for name, rates in rows.items():
        ratios = [rates["sweep"] / rates[side] for side in ("one by one", "A", "B")]
        lines.append(f"| {name} | {rates['sweep']:.1f} | " + " | ".join(f"{ratio:.2f}" for ratio in ratios) + " |")
    wholes = {name: rates["whole"] for name, rates in rows.items() if "whole" in rates}
    for name, (sweep_, one) in wholes.items():
        lines.append("")
        lines.append(
            f"Whole process at {name}: sweep {sweep_:.1f} s, one training {one:.1f} s: {12 * one / sweep_:.1f} times."
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--hardware", required=True)
    parser.add_argument("--models", nargs="+", default=list(SIZES))
    parser.add_argument("--rows", type=int, default=96)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--together", type=int)
    parser.add_argument("--whole", action="store_true")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    rows = {}
    for model in options.models:
        name, cell = cell_of(options, model)
        rows[name] = measured(cell, options)
        if options.whole:
            rows[name]["whole"] = whole(cell, options.together)
    options.out.with_suffix(".json").write_text(json.dumps(rows, indent=2) + "\n")
    options.out.with_suffix(".md").write_text(report(rows, options))


if __name__ == "__main__":
    main()
