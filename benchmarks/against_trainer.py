"""labeltune beside transformers' Trainer + PEFT on real data: scores of several seeds, and rows per second.

    python against_trainer.py weights --data DATA --model MODEL --work WORK
    python against_trainer.py run     --data DATA --model MODEL --work WORK [--sets sst2 wnut17 …] [--seeds 5]
    python against_trainer.py report  --work WORK --out results/NAME --hardware "…"

`weights` trains twenty steps on both sides from the same start. In `run` each cell (data set, seed, side) is a process
of its own: `labeltune train … --json` and `labeltune predict`, or `stock_trainer.py`. The sides take turns, so that a
busy machine slows both. Finished cells stand in WORK/cells.jsonl; an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import re
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from cells import Cells

HERE = Path(__file__).resolve().parent
LABELTUNE = Path(sys.executable).with_name("labeltune")
SAME = {
    "epochs": 2,
    "batch_rows": 16,
    "rank": 16,
    "alpha": 16,
    "dropout": 0.05,
    "warmup": 0.06,
    "weight_decay": 0.01,
    "clip": 1.0,
    "max_tokens": 512,
}
"""What both sides are told; fp32, one thread, a linear schedule and the causal mask besides."""
RATES = (1e-3, 3e-3, 1e-2)
RATE_SEED = 100
"""Learning rates to choose from on dev, with labeltune and a seed that is in no table."""
AG_NEWS = ("World", "Sports", "Business", "Sci/Tech")
AG_ROWS = {"train": 3000, "dev": 1000, "test": 2000}
DRAWS = 10_000


@dataclass(frozen=True)
class Set:
    """A data set. files: train, dev, test; settings: what labeltune must be told to read them; rate_of: see `rate`."""

    name: str
    title: str
    task: str
    metric: str
    files: tuple[str, str, str]
    rate_of: str
    settings: Mapping[str, Any]
    names: tuple[str, ...] = ()


def _sst(kind: str, title: str) -> Set:
    files = (f"sst/stsa.{kind}.train", f"sst/stsa.{kind}.dev", f"sst/stsa.{kind}.test")
    return Set(f"sst{2 if kind == 'binary' else 5}", title, "classification", "accuracy", files, "sst2", {})


SETS = {
    each.name: each
    for each in (
        _sst("binary", "SST-2"),
        Set(
            "wnut17",
            "WNUT-17",
            "tagging",
            "span_f1",
            ("wnut17/wnut17train.conll", "wnut17/emerging.dev.conll", "wnut17/emerging.test.annotated"),
            "wnut17",
            {},
        ),
        _sst("fine", "SST-5"),
        Set(
            "ag_news",
            "AG News",
            "classification",
            "accuracy",
            ("ag_news/train.jsonl", "ag_news/dev.jsonl", "ag_news/test.csv"),
            "sst2",
            {
                "data.columns": ["label", "title", "description"],
                "data.template": "{title} . {description}",
                "data.text": "text",
                "data.label_names": list(AG_NEWS),
            },
            AG_NEWS,
        ),
    )
}


# Data


def prepare(data: Path, work: Path, rows: int | None) -> Path:
    """A folder with all files as they lie; with `rows`, seeded parts of them: rows, a third and two thirds of it.

    AG News is always cut (train and dev apart), for its training file has no dev part.
    """
    folder = work / "data"
    if folder.is_dir():
        return folder
    partial = work / "data.partial"
    shutil.rmtree(partial, ignore_errors=True)
    sizes = AG_ROWS if rows is None else {"train": rows, "dev": rows // 3, "test": 2 * rows // 3}
    for each in SETS.values():
        for name, size in zip(each.files, sizes.values(), strict=True) if each.name != "ag_news" else ():
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            whole = (data / name).read_text("utf-8")
            (partial / name).write_text(whole if rows is None else _part(whole, size, each.task), "utf-8")
    (partial / "ag_news").mkdir()
    lines = (data / "ag_news" / "train_subset_derived.jsonl").read_text("utf-8").splitlines(True)
    chosen = random.Random(0).sample(sorted(set(lines)), sizes["train"] + sizes["dev"])
    tests = (data / "ag_news" / "test.csv").read_text("utf-8").splitlines(True)
    for name, part in (
        ("train.jsonl", chosen[: sizes["train"]]),
        ("dev.jsonl", chosen[sizes["train"] :]),
        ("test.csv", random.Random(0).sample(tests, sizes["test"])),
    ):
        (partial / "ag_news" / name).write_text("".join(part), "utf-8")
    partial.rename(folder)
    return folder


def _part(whole: str, size: int, task: str) -> str:
    """A seeded part of the lines, or of the sentences that empty lines part; all where there are no more."""
    if task != "tagging":
        lines = whole.splitlines(True)
        return "".join(random.Random(0).sample(lines, min(size, len(lines))))
    sentences = [s for s in re.split(r"\n[ \t]*\n", whole) if s.strip()]
    return "\n\n".join(s.strip("\n") for s in random.Random(0).sample(sentences, min(size, len(sentences)))) + "\n"


# Cells


def ours(each: Set, files: Sequence[Path], model: str, seed: int, lr: float, folder: Path) -> dict[str, Any]:
    """Train and predict by the command line."""
    settings = {
        "model.unmask": "none",
        "model.dtype": "fp32",
        "lora.rank": SAME["rank"],
        "lora.alpha": SAME["alpha"],
        "lora.dropout": SAME["dropout"],
        "data.max_tokens": SAME["max_tokens"],
        "train.lr": lr,
        "train.seed": seed,
        "train.select": each.metric,
        "train.threads": 1,
        "train.device": "cpu",
        **{f"train.{name}": SAME[name] for name in ("epochs", "batch_rows", "warmup", "weight_decay", "clip")},
        **each.settings,
    }
    train, dev, test = map(str, files)
    sets = [part for name, value in settings.items() for part in ("--set", f"{name}={json.dumps(value)}")]
    command = [str(LABELTUNE), "train", train, "--dev", dev, "--test", test, "--task", each.task]
    found, spent = _spent([*command, "--model", model, "--out", str(folder / "run"), "--json", *sets])
    metrics = json.loads(found)
    _spent([str(LABELTUNE), "predict", str(folder / "run"), test, "--out", str(folder / "answers.jsonl")])
    answers = [_answer(each, json.loads(line)) for line in (folder / "answers.jsonl").open(encoding="utf-8")]
    return {
        "dev": metrics["dev"][each.metric],
        "reported": metrics["test"][each.metric],
        "rows_per_second": metrics["train"]["rows_per_second"],
        "answers": answers,
        **spent,
    }


def _answer(each: Set, row: Mapping[str, Any]) -> Any:
    """A label as the stock side names it, or spans in words."""
    if each.task != "tagging":
        return str(each.names.index(row["label"])) if each.names else row["label"]
    place = {at: number for number, at in enumerate(_starts(row["text"]))}
    return [
        [place[span["start"]], place[span["start"]] + len(span["text"].split(" ")), span["label"]]
        for span in row["spans"]
    ]


def _starts(text: str) -> Iterator[int]:
    """Where the words of a text begin that joins them by one space."""
    at = 0
    for word in text.split(" "):
        yield at
        at += len(word) + 1


def theirs(each: Set, files: Sequence[Path], model: str, seed: int, lr: float, folder: Path) -> dict[str, Any]:
    """Train and predict on stock libraries."""
    train, dev, test = map(str, files)
    job = {"task": each.task, "model": model, "train": train, "dev": dev, "test": test, "seed": seed, "lr": lr, **SAME}
    (folder / "job.json").write_text(json.dumps(job), "utf-8")
    script = str(HERE / "stock_trainer.py")
    _, spent = _spent([sys.executable, script, str(folder / "job.json"), str(folder / "result.json")])
    return json.loads((folder / "result.json").read_text("utf-8")) | spent


SIDES = {"labeltune": ours, "Trainer + PEFT": theirs}


def _spent(command: Sequence[str]) -> tuple[str, dict[str, float]]:
    """Standard output of a process, its CPU seconds and its seconds by the clock."""
    quiet = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | quiet)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr[-3000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return done.stdout, {"cpu_seconds": cpu, "wall_seconds": time.monotonic() - began}


def cell(
    cells: Cells, each: Set, side: str, seed: int, lr: float, data: Path, model: str, work: Path
) -> dict[str, Any]:
    """One training with its answers, from the file or made now."""
    facts = {"set": each.name, "side": side, "seed": seed, "lr": lr}
    if found := cells.find(**facts):
        return found[0]
    folder = work / "now"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    row = facts | SIDES[side](each, [data / name for name in each.files], model, seed, lr, folder)
    cells.add(row)
    shutil.rmtree(folder)
    print(each.name, side, seed, lr, {n: round(v, 4) for n, v in row.items() if isinstance(v, float)}, flush=True)
    return row


def rate(cells: Cells, each: Set, data: Path, model: str, work: Path, given: float | None) -> float:
    """The learning rate of both sides: the given one, or the best on dev of `rate_of`, by labeltune."""
    if given is not None:
        return given
    source = SETS[each.rate_of]
    tried = {lr: cell(cells, source, "labeltune", RATE_SEED, lr, data, model, work)["dev"] for lr in RATES}
    return max(tried, key=lambda lr: tried[lr])


def run(arguments: argparse.Namespace) -> None:
    """Every cell that is not finished yet."""
    work = Path(arguments.work).resolve()
    work.mkdir(parents=True, exist_ok=True)
    about = {"rows": arguments.rows, "lr": arguments.lr}
    (work / "about.json").write_text(json.dumps(about), "utf-8")
    cells, data, model = (
        Cells(work / "cells.jsonl"),
        prepare(Path(arguments.data), work, arguments.rows),
        str(Path(arguments.model).resolve()),
    )
    for name in arguments.sets:
        each = SETS[name]
        lr = rate(cells, each, data, model, work, arguments.lr)
        for seed in range(arguments.seeds):
            for side in sorted(SIDES, reverse=seed % 2 == 1):  # by turns, and neither always first
                cell(cells, each, side, seed, lr, data, model, work)


# Weights


def weights(arguments: argparse.Namespace) -> None:
    """The largest differences after twenty steps, into WORK/weights.json."""
    import equal_weights  # imports both sides, which `run` and `report` do not need

    work, data = Path(arguments.work).resolve(), Path(arguments.data).resolve()
    model = str(Path(arguments.model).resolve())
    found = {}
    for each in (SETS["sst2"], SETS["wnut17"]):
        folder = work / "weights"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        parts = [folder / Path(name).name for name in each.files[:2]]
        for name, part, rows in zip(each.files, parts, (640, 64), strict=False):
            if each.task == "tagging":
                equal_weights.whole_words_only(data / name, model, rows, part)
            else:
                part.write_text("".join((data / name).read_text("utf-8").splitlines(True)[:rows]), "utf-8")
        rows_, dev = map(str, parts)
        tensors = equal_weights.differences(task=each.task, model=model, rows=rows_, dev=dev, folder=folder)
        found[each.title] = {kind: max(t[kind] for t in tensors.values()) for kind in ("of_weight", "of_update")}
        print(each.title, found[each.title], flush=True)
    (work / "weights.json").write_text(json.dumps(found), "utf-8")


# Figures


def counts(gold: Sequence[Any], answers: Sequence[Any], tagging: bool) -> np.ndarray:
    """Per row (2, rows): twice what is right, and gold + answered; their sums' ratio is accuracy, or micro F1."""
    if not tagging:
        return np.array([[2 * (g == a) for g, a in zip(gold, answers, strict=True)], [2] * len(gold)])
    pairs = [({*map(tuple, g)}, {*map(tuple, a)}) for g, a in zip(gold, answers, strict=True)]
    return np.array([[2 * len(g & a) for g, a in pairs], [len(g) + len(a) for g, a in pairs]])


def interval(one: Sequence[np.ndarray], other: Sequence[np.ndarray]) -> tuple[float, float]:
    """95 % bootstrap interval of (mean score of `one` − mean score of `other`), test rows drawn in pairs."""
    generator = np.random.default_rng(0)
    stacked = np.stack([np.stack(one), np.stack(other)]).astype(np.float64)  # (sides, seeds, 2, rows)
    rows, found = stacked.shape[-1], []
    for _ in range(DRAWS // 250):
        drawn = generator.multinomial(rows, np.full(rows, 1 / rows), size=250).astype(np.float64)
        right, all_ = np.moveaxis(stacked @ drawn.T, 2, 0)  # (sides, seeds, 250) each
        found.append(np.diff((right / np.maximum(all_, 1)).mean(1)[::-1], axis=0)[0])
    low, high = np.percentile(np.concatenate(found), [2.5, 97.5])
    return float(low), float(high)


def figures(cells: Cells, each: Set) -> dict[str, Any] | None:
    """All figures of a data set, over the seeds that both sides have finished."""
    tried = {row["lr"]: row["dev"] for row in cells.find(set=each.rate_of, seed=RATE_SEED)}
    given = {row["lr"] for row in cells.find(set=each.name)}
    if len(tried) < len(RATES) and (tried or len(given) != 1):
        return None
    lr = max(tried, key=lambda one: tried[one]) if tried else given.pop()
    by_side = {side: {row["seed"]: row for row in cells.find(set=each.name, side=side, lr=lr)} for side in SIDES}
    seeds = sorted(set.intersection(*(set(rows) for rows in by_side.values())) - {RATE_SEED})
    if not seeds:
        return None
    gold = by_side["Trainer + PEFT"][seeds[0]]["gold"]
    tallies = {
        side: [counts(gold, rows[seed]["answers"], each.task == "tagging") for seed in seeds]
        for side, rows in by_side.items()
    }
    result: dict[str, Any] = {"title": each.title, "metric": each.metric, "lr": lr, "seeds": len(seeds), "rates": tried}
    result["test_rows"] = len(gold)
    for side, rows in by_side.items():
        test = [float(right.sum() / max(1, both.sum())) for right, both in tallies[side]]
        result[side] = {
            "dev": [rows[seed]["dev"] for seed in seeds],
            "test": test,
            **{n: [rows[seed][n] for seed in seeds] for n in ("rows_per_second", "cpu_seconds", "wall_seconds")},
        }
        for seed, value in zip(seeds, test, strict=True):  # a fresh process answers as the evaluation did
            if abs(rows[seed].get("reported", value) - value) > 1e-9:
                raise SystemExit(f"{each.name}, seed {seed}: evaluated {rows[seed]['reported']}, predicted {value}")
    result["interval"] = interval(*(tallies[side] for side in SIDES))
    pairs = zip(*(result[side]["rows_per_second"] for side in SIDES), strict=True)
    result["speed_ratios"] = [a / b for a, b in pairs]
    return result


def report(arguments: argparse.Namespace) -> None:
    """Tables as Markdown, everything as JSON."""
    cells = Cells(Path(arguments.work) / "cells.jsonl")
    found = [entry for each in SETS.values() if (entry := figures(cells, each)) is not None]
    versions = {name: version(name) for name in ("torch", "transformers", "peft", "accelerate")}
    facts = {"hardware": arguments.hardware, "python": platform.python_version(), **versions, "same": SAME}
    facts["about"] = json.loads((Path(arguments.work) / "about.json").read_text("utf-8"))
    facts["weights"] = json.loads((Path(arguments.work) / "weights.json").read_text("utf-8"))
    out = Path(arguments.out)
    out.with_suffix(".json").write_text(json.dumps({**facts, "sets": found}, indent=1) + "\n", "utf-8")
    out.with_suffix(".md").write_text(_markdown(facts, found), "utf-8")


def _markdown(facts: Mapping[str, Any], found: Sequence[Mapping[str, Any]]) -> str:
    mine, stock = SIDES
    lines = [
        "# labeltune beside Trainer + PEFT",
        "",
        f"{facts['hardware']}; Python {facts['python']}, "
        + ", ".join(f"{name} {facts[name]}" for name in ("torch", "transformers", "peft", "accelerate"))
        + ". Backbone tinystories-656k.",
        "Both sides: "
        + ", ".join(f"{name} {value}" for name, value in SAME.items())
        + ", fp32, linear schedule, causal.",
        _cut(facts["about"]),
        "How to repeat it, and what was kept equal: `benchmarks/README.md`.",
        "",
        "## Weights after twenty steps",
        "",
        "Without dropout, from the same weights, over the same rows: the largest ‖Δw‖/‖w‖ of a tensor, and the same "
        "over how far training had moved it.",
        "",
        "| data | of the weight | of the update |",
        "|---|---|---|",
        *(
            f"| {title} | {each['of_weight']:.1e} | {each['of_update']:.1e} |"
            for title, each in facts["weights"].items()
        ),
        "",
        "## Scores",
        "",
        "Mean ± standard deviation over the seeds, in points; the interval is that of the difference on test (95 %,",
        "paired bootstrap over test rows).",
        "",
        "| data | metric | lr | seeds | dev, labeltune | dev, stock | test, labeltune | test, stock | ours − theirs |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for each in found:
        low, high = (100 * value for value in each["interval"])
        gap = 100 * (statistics.mean(each[mine]["test"]) - statistics.mean(each[stock]["test"]))
        shown = [_spread(each[side][split]) for split in ("dev", "test") for side in (mine, stock)]
        lines.append(
            f"| {each['title']} | {each['metric']} | {each['lr']:g} | {each['seeds']} | "
            + " | ".join(shown)
            + f" | {gap:+.2f} [{low:+.2f}, {high:+.2f}] |"
        )
    lines += [
        "",
        "## Speed",
        "",
        "Rows per second of training, data to optimiser step, evaluations apart (median over seeds; the ratio is the "
        "median of the seeds' ratios).",
        "CPU seconds are of the whole process: imports, loading, encoding, training, evaluation.",
        "",
        "| data | rows/s, labeltune | rows/s, stock | ratio | CPU s, labeltune | CPU s, stock |",
        "|---|---|---|---|---|---|",
    ]
    for each in found:
        speed = [statistics.median(each[side]["rows_per_second"]) for side in (mine, stock)]
        cpu = [statistics.median(each[side]["cpu_seconds"]) for side in (mine, stock)]
        lines.append(
            f"| {each['title']} | {speed[0]:.0f} | {speed[1]:.0f} | {statistics.median(each['speed_ratios']):.2f} "
            f"| {cpu[0]:.0f} | {cpu[1]:.0f} |"
        )
    return "\n".join(lines) + "\n"


def _cut(about: Mapping[str, Any]) -> str:
    rows, lr = about["rows"], about["lr"]
    rate = (
        f"One learning rate for all, {lr:g}, not tuned." if lr else "The learning rate was chosen on dev by labeltune."
    )
    if rows is None:
        return f"All rows, but AG News: {AG_ROWS}. {rate}"
    return f"Seeded parts of the data: {rows} training, {rows // 3} dev, {2 * rows // 3} test rows a set. {rate}"


def _spread(values: Sequence[float]) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{100 * statistics.mean(values):.2f} ± {100 * deviation:.2f}"


def main() -> None:
    """Read the command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(required=True)
    comparing, running = commands.add_parser("weights"), commands.add_parser("run")
    for command, do in ((comparing, weights), (running, run)):
        command.add_argument("--data", required=True, help="folder with sst/, ag_news/ and wnut17/")
        command.add_argument("--model", required=True, help="backbone folder")
        command.add_argument("--work", required=True, help="folder for what is finished")
        command.set_defaults(do=do)
    running.add_argument("--sets", nargs="*", default=list(SETS), choices=list(SETS))
    running.add_argument("--seeds", type=int, default=5)
    running.add_argument("--rows", type=int, help="train on so many rows of each set, instead of all")
    running.add_argument("--lr", type=float, help="one learning rate for all, instead of a choice on dev")
    reporting = commands.add_parser("report")
    reporting.add_argument("--work", required=True)
    reporting.add_argument("--out", required=True, help="path without suffix; .md and .json are written")
    reporting.add_argument("--hardware", required=True, help="one line on the machine")
    reporting.set_defaults(do=report)
    arguments = parser.parse_args()
    arguments.do(arguments)


if __name__ == "__main__":
    main()
