"""The demo tells what was measured, whoever is ahead; it trains as users do, and leaves nothing behind."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from io import StringIO
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest
from rich.console import Console

import labeltune.demo as demo
from labeltune.config import gather
from labeltune.demo import COLUMNS, FOR_MINI, POLICIES, SPLITS, Entry, Result, Shown, best, demo_file, run_demo
from labeltune.demo_screen import METRICS, show_demo
from labeltune.errors import LabeltuneError, ModelError
from labeltune.schema import Prediction, Span, SpanPrediction
from labeltune.storage import to_json
from labeltune.tasks import TASKS

TEXT = "Pico projector to Hove please"


def entry(task: str, name: str, unmask: str | None, value: float) -> Entry:
    figures = dict.fromkeys(METRICS[task], value)
    speed = None if unmask is None else 50.0
    return Entry(task, name, unmask, {}, {"dev": figures, "test": figures}, 9.5, speed, 400.0)


def result(decoder: float, baseline: float) -> Result:
    entries = [
        one
        for task in COLUMNS
        for one in (entry(task, "plain", None, baseline), entry(task, "mini, mask removed", "all", decoder))
    ]
    shown = Shown(
        TEXT,
        Prediction("test.jsonl:1", label="order_status", score=0.75),
        Prediction("test.jsonl:1", spans=(SpanPrediction(0, 14, "product", 0.9, "Pico projector"),)),
        "change_address",
        (Span(0, 14, "product"), Span(18, 22, "place")),
    )
    facts = {"tokens": 5_000_000, "bits_per_byte": 2.1}
    return Result("mini", facts, dict.fromkeys(SPLITS, 7), tuple(entries), (shown,), 41.0, 70.0)


def screen(value: Result) -> str:
    console = Console(file=StringIO(), width=120, color_system=None)
    show_demo(value, console)
    return console.file.getvalue()


def test_all_figures_speeds_and_the_backbones_own_training_are_told() -> None:
    told = screen(result(0.4321, 0.6789))
    for fact in ("5,000,000 tokens", "2.100 bits per byte", "0.432", "0.679", "9.5 s", "400", "41 s", "70 s"):
        assert fact in told


@pytest.mark.parametrize(("decoder", "baseline"), [(0.4, 0.6), (0.6, 0.4)])
def test_it_says_when_a_baseline_is_ahead_and_only_then(decoder: float, baseline: float) -> None:
    told = screen(result(decoder, baseline))
    assert ("A baseline is ahead" in told) == (baseline > decoder)


def test_a_wrong_intent_and_a_missed_entity_are_told_beside_the_message() -> None:
    told = screen(result(0.4, 0.6))
    assert TEXT in told
    assert "order_status 0.75" in told
    assert "change_address is right" in told
    assert "missed: Hove (place)" in told


def test_predicted_entities_alone_are_in_colour() -> None:
    console = Console(file=StringIO(), width=120, force_terminal=True, color_system="standard", record=True)
    show_demo(result(0.4, 0.6), console)
    styled = console.export_text(styles=True)
    line = next(line for line in styled.splitlines() if "projector" in line and "Hove" in line)
    before, _, after = line.partition("Pico projector")
    assert before.endswith("m")  # a style begins at the span
    assert after.startswith("\x1b[0m to Hove please")


def test_the_best_is_chosen_by_the_tasks_own_metric() -> None:
    low, high = entry("tagging", "low", "all", 0.2), entry("tagging", "high", None, 0.3)
    assert best([low, high, entry("classification", "other", "all", 0.9)], "tagging", "dev") is high


def test_the_json_holds_the_table_and_the_examples() -> None:
    read = json.loads(to_json(result(0.4, 0.6).as_json()))
    assert [line["name"] for line in read["entries"]] == ["plain", "mini, mask removed"] * 2
    assert read["shown"][0]["entities"]["spans"][0]["text"] == "Pico projector"
    assert read["pretraining"]["tokens"] == 5_000_000


def test_the_settings_for_mini_are_known() -> None:
    gather(None, {}, FOR_MINI)


def test_the_packaged_files_are_there() -> None:
    assert all(demo_file(split).is_file() for split in SPLITS)


def test_an_unknown_backbone_is_refused_before_anything_is_trained() -> None:
    with pytest.raises(ModelError, match="no folder"):
        run_demo("no/such/folder")


@pytest.mark.slow
def test_an_unknown_setting_of_a_worker_comes_back_as_our_error(tiny_folder: Path) -> None:
    with pytest.raises(LabeltuneError, match=r"train\.lrr"):
        run_demo(str(tiny_folder), settings={"train.lrr": 1.0})


@pytest.mark.slow
def test_the_demo_from_end_to_end_on_another_backbone(tiny_folder: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    said: list[str] = []
    found = run_demo(str(tiny_folder), listen=said.append, settings={"train.steps": 3})
    assert len(said) == len(found.entries) == len(COLUMNS) * (1 + len(POLICIES))
    assert found.rows == {split: len(demo_file(split).read_text().splitlines()) for split in SPLITS}
    for one in found.entries:
        assert 0 <= one.figures["test"][TASKS[one.task].select] <= 1
        assert one.unmask is None or one.settings == {
            "model.unmask": one.unmask,
            "train.threads": 1,
            "train.steps": 3,
        }
    assert not list(tmp_path.iterdir())
    assert "rows/s" in screen(replace(found, pretraining={}))


def stubborn(ready: Event) -> None:
    """Like a process that waits for a lock whose holder is gone."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    ready.set()
    time.sleep(600)


def test_a_process_that_does_not_end_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "PATIENCE", 0.2)
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    child = context.Process(target=stubborn, args=(ready,), daemon=True)
    child.start()
    assert ready.wait(60)
    demo._end([child])
    child.join(10)
    assert child.exitcode == -signal.SIGKILL


def started(tiny_folder: Path, folder: Path) -> subprocess.Popen[str]:
    """A demo in a process group of its own, with a training under way."""
    words = [sys.executable, "-m", "labeltune.cli", "demo", "--model", str(tiny_folder)]
    environment = {**os.environ, "TMPDIR": str(folder), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(words, env=environment, start_new_session=True, stderr=subprocess.PIPE, text=True)
    while not any(log.stat().st_size for log in folder.rglob("log.jsonl")):
        assert process.poll() is None
        time.sleep(0.1)
    return process


@pytest.mark.slow
def test_ctrl_c_ends_all_processes_and_leaves_nothing_behind(tiny_folder: Path, tmp_path: Path) -> None:
    process = started(tiny_folder, tmp_path)
    os.killpg(process.pid, signal.SIGINT)
    said = process.communicate()[1]
    assert process.returncode == 130
    assert "Traceback" not in said
    assert not list(tmp_path.glob("labeltune-demo-*"))
