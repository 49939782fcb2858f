"""Killed at any moment, a training goes on with `--resume` and ends with the bits of the one that was left in peace."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from labeltune import load, open_run, train

pytestmark = pytest.mark.slow

SETTINGS = {
    "train.epochs": 12,
    "train.batch_rows": 4,
    "train.lr": 1e-2,
    "train.threads": 1,
    "train.checkpoint_steps": 2,
    "lora.rank": 2,
    "lora.dropout": 0.2,
    "head.dropout": 0.1,
    "model.checkpointing": "on",
}
STEPS = 72
TIMINGS = ("seconds", "rows_per_second", "tokens_per_second", "peak_memory_gib")
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def words(small: Path, tiny_folder: Path) -> list[str]:
    """The command line of the training, without --out."""
    files = [str(small / f"moods-{split}.jsonl") for split in ("train", "dev", "test")]
    sets = [part for name, value in SETTINGS.items() for part in ("--set", f"{name}={value}")]
    return ["train", files[0], "--dev", files[1], "--test", files[2], "--model", str(tiny_folder), *sets]


@pytest.fixture(scope="module")
def whole(small: Path, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The training left in peace."""
    out = tmp_path_factory.mktemp("whole") / "run"
    resumed(out, small, tiny_folder, resume=False)
    return out


def resumed(out: Path, small: Path, tiny_folder: Path, *, resume: bool = True) -> None:
    data, dev, test = (small / f"moods-{split}.jsonl" for split in ("train", "dev", "test"))
    train(data, dev=dev, test=test, model=str(tiny_folder), out=out, settings=SETTINGS, resume=resume)


def started(words: Sequence[str], out: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "labeltune.cli", *words, "--out", str(out), *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)


def lines(out: Path) -> int:
    log = out / "log.jsonl"
    return log.read_bytes().count(b"\n") if log.exists() else 0


def wait_for(process: subprocess.Popen[str], out: Path, steps: int) -> None:
    """Until so many steps are logged."""
    until = time.monotonic() + 300
    while lines(out) < steps and process.poll() is None and time.monotonic() < until:
        time.sleep(0.002)


def same(one: Path, other: Path) -> None:
    for name in ("adapter/adapter_model.safetensors", "head.safetensors", "labels.json"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    metrics = []
    for folder in (one, other):
        figures = json.loads((folder / "metrics.json").read_text())
        metrics.append({split: {n: v for n, v in part.items() if n not in TIMINGS} for split, part in figures.items()})
    assert metrics[0] == metrics[1]
    steps = [
        [(r["step"], r["loss"]) for r in map(json.loads, (f / "log.jsonl").read_text().splitlines())]
        for f in (one, other)
    ]
    assert steps[0] == steps[1]
    opened = [
        {(line["purpose"], line["source"]) for line in map(json.loads, (f / "ledger.jsonl").read_text().splitlines())}
        for f in (one, other)
    ]
    assert opened[0] == opened[1] and opened[0]  # no opening of test goes unwritten, however a training is interrupted


def test_killed_at_five_random_moments_it_ends_with_the_same_bits(
    words, whole: Path, small, tiny_folder, tmp_path
) -> None:
    chance = random.Random(7)
    out = tmp_path / "run"
    killed = 0
    for least in sorted(chance.sample(range(1, STEPS - 8), 5)):
        process = started(words, out, *(["--resume"] if out.exists() else []))
        wait_for(process, out, least)
        time.sleep(chance.uniform(0, 0.05))
        process.kill()
        killed += process.wait() == -signal.SIGKILL
        process.communicate()
    assert killed == 5 and not (out / "format").exists()
    resumed(out, small, tiny_folder)
    same(out, whole)


KILLER = """
import os, signal, sys
from pathlib import Path
from labeltune import storage
name, count, moment = sys.argv[1], int(sys.argv[2]), sys.argv[3]
seen = 0

def now(path):
    global seen
    seen += Path(path).name in (name, f".{name}.partial")
    return seen == count and Path(path).name in (name, f".{name}.partial")

replace, write = os.replace, Path.write_bytes

def replacing(source, target):
    if moment == "before" and now(target):
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)
    if moment == "after" and now(target):
        os.kill(os.getpid(), signal.SIGKILL)

def writing(self, data):
    if moment == "amid" and now(self):
        write(self, data[: len(data) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
    return write(self, data)

os.replace, Path.write_bytes = replacing, writing
from labeltune.cli import main
sys.argv = ["labeltune", *sys.argv[4:]]
main()
"""


@pytest.mark.parametrize(
    ("name", "count", "moment"),
    [
        ("checkpoint.safetensors", 5, "amid"),
        ("checkpoint.safetensors", 6, "before"),
        ("checkpoint.safetensors", 7, "after"),
        ("splits.json", 1, "after"),
        ("adapter_model.safetensors", 1, "after"),
        ("tokenizer", 1, "before"),
        ("labels.json", 1, "amid"),
        ("format", 1, "amid"),
        ("format", 1, "after"),
    ],
)
def test_killed_in_the_middle_of_a_write_it_ends_with_the_same_bits(
    words, whole: Path, small, tiny_folder, tmp_path, name: str, count: int, moment: str
) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-c", KILLER, name, str(count), moment, *words, "--out", str(out)]
    ended = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    resumed(out, small, tiny_folder)
    same(out, whole)
    assert not (out / "work").exists() and not [p.name for p in out.rglob("*.partial")]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_asked_to_stop_it_leaves_a_loadable_folder_and_says_how_to_go_on(
    words, whole: Path, small, tiny_folder, tmp_path, number
) -> None:
    out = tmp_path / "run"
    process = started(words, out)
    wait_for(process, out, 20)
    process.send_signal(number)
    printed, said = process.communicate(timeout=120)
    assert process.returncode == 130 and printed == "" and "Traceback" not in said
    assert said.splitlines()[-1].startswith("interrupted: stopped at step") and "--resume" in said.splitlines()[-1]
    assert open_run(out).state == "interrupted" and load(out).predict("the hen")[0].label
    resumed(out, small, tiny_folder)
    same(out, whole)


def test_ctrl_c_while_it_loads_leaves_nothing(words, tmp_path) -> None:
    out = tmp_path / "deep/run"
    process = started(words, out)
    until = time.monotonic() + 300
    while not out.exists() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    printed, said = process.communicate(timeout=120)
    assert (process.returncode, printed) == (130, "") and "Traceback" not in said
    assert said.splitlines()[-1] == "interrupted" and list(tmp_path.iterdir()) == []


def test_a_second_process_is_refused_while_the_first_one_writes(words, tmp_path) -> None:
    out = tmp_path / "run"
    first = started(words, out)
    wait_for(first, out, 1)
    first.send_signal(signal.SIGSTOP)  # it cannot end before the second one asks
    second = started(words, out, "--resume")
    _, said = second.communicate(timeout=120)
    first.kill()
    first.communicate()
    assert second.returncode == 1 and f"another process (pid {first.pid}) is writing this run" in said
