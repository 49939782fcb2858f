"""Fifty rows of AG News with one label that is new and one that is gone: from another run (`--init`), or from scratch?

    python continuing.py --data ../shared/data --model ../shared/models/tinystories-656k --work WORK
        --out results/NAME.md --hardware "…" [--seeds 3]

The run to start from has learned World, Sports and Business from 3,000 rows. The new task is World, Sports and
Sci/Tech: 50 rows to train and 50 for dev, drawn anew for each seed, and 1,500 of the official test file. Both sides
are told the same but for the learning rate, which each chooses on dev from three with a seed that is in no table.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cells import ended

import labeltune

NAMES = ("World", "Sports", "Business", "Sci/Tech")
OLD, NEW = {"World", "Sports", "Business"}, {"World", "Sports", "Sci/Tech"}
BASE_ROWS, ROWS, TEST_ROWS = 3000, 50, 1500
RATES = (1e-3, 3e-3, 1e-2)
RATE_SEED = 100
SAME = {"train.threads": 1, "train.epochs": 30, "train.batch_rows": 8, "train.clip": 1.0}
BASE = {"train.threads": 1, "train.epochs": 2, "train.lr": 3e-3}

Rows = list[dict[str, str]]


def read(folder: Path) -> tuple[Rows, Rows]:
    """The training subset and the official test file, with names for ids."""
    lines = (folder / "train_subset_derived.jsonl").read_text(encoding="utf-8").splitlines()
    train = [{"text": row["text"], "label": NAMES[int(row["label"])]} for row in map(json.loads, lines)]
    with (folder / "test.csv").open(encoding="utf-8", newline="") as file:
        test = [{"text": f"{title} {text}", "label": NAMES[int(n) - 1]} for n, title, text in csv.reader(file)]
    return train, test


def of(rows: Rows, labels: set[str]) -> Rows:
    """The rows of some labels."""
    return [row for row in rows if row["label"] in labels]


def run(work: Path, name: str, model: str, parts: Sequence[Rows], init: Path | None, settings: dict[str, Any]) -> Any:
    """Train into WORK/name, or take what is there, and return its figures."""
    folder = work / name
    if not ended(folder):
        train, dev, *test = parts
        given = {"test": test[0]} if test else {}
        how = {"init": init, "settings": settings, "resume": folder.exists()}
        labeltune.train(train, dev=dev, model=model, out=folder, **how, **given)
    return labeltune.open_run(folder).metrics


def sides(work: Path, model: str, rows: Rows, test: Rows, base: Path, seeds: int) -> dict[str, list[Any]]:
    """The figures of every seed, by side."""
    found: dict[str, list[Any]] = {}
    for side, init in (("--init", base), ("from scratch", None)):
        key = side.strip("-").replace(" ", "_")
        parts = draw(rows, RATE_SEED)
        dev = {
            rate: run(work, f"{key}_rate_{rate:g}", model, parts, init, {**SAME, "train.lr": rate})["dev"]["macro_f1"]
            for rate in RATES
        }
        rate = max(RATES, key=lambda rate: dev[rate])
        found[f"{side}, lr {rate:g}"] = [
            run(
                work,
                f"{key}_{seed}",
                model,
                [*draw(rows, seed), test],
                init,
                {**SAME, "train.lr": rate, "train.seed": seed},
            )["test"]
            for seed in range(seeds)
        ]
    return found


def draw(rows: Rows, seed: int) -> list[Rows]:
    """Fifty rows to train and fifty for dev."""
    some = random.Random(seed).sample(rows, 2 * ROWS)
    return [some[:ROWS], some[ROWS:]]


def report(found: dict[str, list[Any]], base: Any, hardware: str) -> str:
    """The table."""
    seeds = len(next(iter(found.values())))
    lines = [
        "# Continuing from a run: one label new, one gone, fifty rows",
        "",
        f"`benchmarks/continuing.py`, labeltune, {hardware}. AG News; the run to start from (World, Sports, Business; "
        f"{BASE_ROWS:,} rows) has a dev macro_f1 of {base['dev']['macro_f1']:.3f}. New task: World, Sports, Sci/Tech; "
        f"{ROWS} rows, {ROWS} dev rows, {TEST_ROWS:,} test rows; mean ± sd of {seeds} draws.",
        "",
        "| side | accuracy | macro_f1 | log_loss | macro_f1 of each draw |",
        "|---|---|---|---|---|",
    ]
    for side, figures in found.items():
        cells = [_spread([f[name] for f in figures]) for name in ("accuracy", "macro_f1", "log_loss")]
        each = ", ".join(f"{f['macro_f1']:.3f}" for f in figures)
        lines.append(f"| {side} | {' | '.join(cells)} | {each} |")
    return "\n".join(lines) + "\n"


def _spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}"


def main() -> None:
    """Train what is missing in WORK, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("--data", "--work", "--out"):
        parser.add_argument(name, type=Path, required=True)
    for name in ("--model", "--hardware"):
        parser.add_argument(name, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    train, test = read(given.data / "ag_news")
    old = random.Random(0).sample(of(train, OLD), BASE_ROWS + 300)
    base = run(given.work, "base", given.model, [old[300:], old[:300]], None, BASE)
    seen = {row["text"] for row in old}
    fresh = [row for row in of(train, NEW) if row["text"] not in seen]  # the 50 are new to the run
    chosen = random.Random(0).sample(of(test, NEW), TEST_ROWS)
    found = sides(given.work, given.model, fresh, chosen, given.work / "base", given.seeds)
    text = report(found, base, given.hardware)
    given.out.write_text(text, encoding="utf-8")
    figures = {"hardware": given.hardware, "base": base, "test": found}
    given.out.with_suffix(".json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
