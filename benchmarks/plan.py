"""Does `labeltune plan` say what a training then takes? It plans, trains in a fresh process, and compares.

    python plan.py run    --data DATA --model SMALL_BACKBONE --tokenizer TOKENIZER --work WORK [--only …] [--device cpu]
    python plan.py report --work WORK --out results/NAME --hardware "one line"

For each setting: `labeltune plan` in one process; the training in another, with its time from the first step to the
dev figures (steps, evaluations, calibration) and its peak memory: the largest resident size of the process, or
CUDA's peak where there is a device. Of two processes (`torch.distributed.run`) the larger peak counts. Finished
settings stand in WORK/settings.jsonl.

`--clock cpu` lets plan and training read the process's CPU seconds wherever they read the clock, for a machine with
other work; with `--threads 1` and no GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from cells import Cells
from material import TEXTS, backbone

CLOCKS = {"wall": "", "cpu": "import time; time.monotonic = time.process_time"}
TRAIN = """
import json, os, sys, time
from pathlib import Path
from labeltune import train
from labeltune.facts import Ready, Scored
from labeltune.training.meter import peak_memory

words = json.loads(sys.argv[1])
seconds = {}
def listen(fact):
    if isinstance(fact, Ready):
        seconds["ready"] = time.monotonic()
    if isinstance(fact, Scored):
        seconds["scored"] = time.monotonic()
train(**words, listen=listen)
found = {"seconds": seconds["scored"] - seconds["ready"] if seconds else 0.0, "gib": peak_memory()}
Path(words["out"]).with_name(f"found-{os.environ.get('RANK', 0)}.json").write_text(json.dumps(found))
"""
PLAN = """
import json, sys
from pathlib import Path
from labeltune import plan

words = json.loads(sys.argv[1])
out = Path(words.pop("out"))
out.with_name("found-0.json").write_text(json.dumps(plan(**words).as_json()))
"""


@dataclass(frozen=True)
class Setting:
    """A training. small: with the small backbone, else with the random one of 15M."""

    name: str
    kind: str
    rows: int
    dev_rows: int
    small: bool = True
    processes: int = 1
    settings: dict[str, Any] = field(default_factory=dict)


SETTINGS = (
    Setting("SST-2, small", "sst2", 3000, 600, settings={"train.batch_rows": 16}),
    Setting("WNUT-17, small, 512 tokens a pass", "tagging", 2000, 400, settings={"train.micro_tokens": 512}),
    Setting("AG News, 15M", "ag_news", 300, 100, small=False, settings={"lora.dropout": 0.05}),
    Setting(
        "livedoor, 15M, checkpointing",
        "livedoor",
        60,
        20,
        small=False,
        settings={"model.checkpointing": "on", "train.micro_tokens": 4096},
    ),
    Setting("SST-2, small, two processes", "sst2", 3000, 600, processes=2, settings={"train.batch_rows": 16}),
    Setting("SST-2, 15M, full fine-tuning", "sst2", 300, 60, small=False, settings={"lora.kind": "full"}),
)


def written(setting: Setting, data: Path, work: Path) -> tuple[Path, Path]:
    """Files of a seeded choice of rows for training and dev."""
    texts = TEXTS[setting.kind]
    rows = list(dict.fromkeys(texts.rows(data)))
    random.Random(0).shuffle(rows)
    ending = "conll" if texts.task == "tagging" else "jsonl"
    paths = []
    for part, some in (("train", rows[: setting.rows]), ("dev", rows[setting.rows :][: setting.dev_rows])):
        path = work / f"{setting.kind}-{len(some)}-{part}.{ending}"
        lines = (json.dumps({"text": text, "label": label}) for text, label in some)
        joined = "\n".join(lines) if ending == "jsonl" else "\n\n".join(text for text, _ in some)
        path.write_text(joined + "\n", "utf-8")
        paths.append(path)
    return paths[0], paths[1]


def called(code: str, words: dict[str, Any], clock: str, processes: int = 1) -> list[dict[str, Any]]:
    """What fresh processes have found, each."""
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "script.py"
        script.write_text(CLOCKS[clock] + code, "utf-8")
        start = [sys.executable]
        if processes > 1:
            start += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        command = [*start, str(script), json.dumps({**words, "out": f"{folder}/run"})]
        environment = os.environ | {"OMP_NUM_THREADS": str(words["settings"]["train.threads"])}
        subprocess.run(command, env=environment, check=True)
        return [json.loads(path.read_text()) for path in sorted(Path(folder).glob("found-*.json"))]


def compared(setting: Setting, words: dict[str, Any], clock: str) -> dict[str, Any]:
    """One setting, planned and done."""
    (planned,) = called(PLAN, {**words, "processes": setting.processes}, clock)
    done = called(TRAIN, words, clock, setting.processes)
    return {
        "steps": planned["steps"],
        "planned_seconds": planned["seconds"],
        "seconds": max(one["seconds"] for one in done),
        "planned_gib": planned["memory"]["total"],
        "gib": max(one["gib"] for one in done),
        "parts": planned["memory"],
        "measured": planned["measured"],
    }


def run(arguments: argparse.Namespace) -> None:
    """Every setting that is not finished yet."""
    work, data = arguments.work.resolve(), arguments.data.resolve()
    work.mkdir(parents=True, exist_ok=True)
    cells = Cells(work / "settings.jsonl")
    for setting in SETTINGS:
        if cells.find(name=setting.name) or (arguments.only and setting.name not in arguments.only):
            continue
        train, dev = written(setting, data, work)
        random_model: Callable[[], Path] = partial(backbone, "15M", arguments.tokenizer, work)
        model = arguments.model.resolve() if setting.small else random_model()
        fixed = {"train.threads": arguments.threads, "train.device": arguments.device, "train.epochs": 1}
        if setting.kind == "livedoor":
            fixed["data.max_tokens"] = 512
        words = {"data": str(train), "dev": str(dev), "model": str(model), "settings": {**fixed, **setting.settings}}
        found = compared(setting, words, arguments.clock)
        cells.add({"name": setting.name, "clock": arguments.clock, "processes": setting.processes, **found})
        print(setting.name, f"{found['planned_seconds']:.1f} s planned, {found['seconds']:.1f} s;", end=" ")
        print(f"{found['planned_gib']:.2f} GiB planned, {found['gib']:.2f} GiB", flush=True)


def off(planned: float, found: float) -> float:
    """How far the plan is from what was: +0.25 where it says a quarter too much."""
    return planned / found - 1


def report(arguments: argparse.Namespace) -> None:
    """A table as Markdown, everything as JSON."""
    rows = Cells(arguments.work / "settings.jsonl").rows
    lines = ["# What `labeltune plan` says, and what the training takes", ""]
    clocks = " and ".join(sorted({row["clock"] for row in rows}))
    lines += [f"{arguments.hardware}; torch {torch.__version__}; {clocks} seconds. Each in a fresh process.", ""]
    lines += [
        "| setting | seconds planned | taken | off | GiB planned | taken | off |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        time = (row["planned_seconds"], row["seconds"])
        memory = (row["planned_gib"], row["gib"])
        shown = [f"{time[0]:.1f}", f"{time[1]:.1f}", f"{off(*time):+.0%}"]
        shown += [f"{memory[0]:.2f}", f"{memory[1]:.2f}", f"{off(*memory):+.0%}"]
        lines.append("| " + " | ".join([row["name"], *shown]) + " |")
    facts = {"hardware": arguments.hardware, "torch": torch.__version__, "settings": rows}
    arguments.out.with_suffix(".json").write_text(json.dumps(facts, indent=1) + "\n")
    arguments.out.with_suffix(".md").write_text("\n".join(lines) + "\n")


def main() -> None:
    """Read the command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(required=True)
    running = commands.add_parser("run")
    running.add_argument("--data", type=Path, required=True, help="folder with sst/, ag_news/, wnut17/ and livedoor/")
    running.add_argument("--model", type=Path, required=True, help="a small backbone")
    running.add_argument("--tokenizer", type=Path, required=True, help="folder with a Llama tokenizer")
    running.add_argument("--work", type=Path, required=True, help="folder for what is finished")
    running.add_argument("--only", nargs="*", help="names of settings")
    running.add_argument("--threads", type=int, default=1)
    running.add_argument("--clock", default="wall", choices=list(CLOCKS))
    running.add_argument("--device", default="auto")
    running.set_defaults(do=run)
    reporting = commands.add_parser("report")
    reporting.add_argument("--work", type=Path, required=True)
    reporting.add_argument("--out", type=Path, required=True, help="path without suffix; .md and .json are written")
    reporting.add_argument("--hardware", required=True, help="one line on the machine")
    reporting.set_defaults(do=report)
    arguments = parser.parse_args()
    arguments.do(arguments)


if __name__ == "__main__":
    main()
