"""Each example runs as its first lines say, on a tiny backbone."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from labeltune.config import Config, gather
from labeltune.run import open_run

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def python(*words: str | Path) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_classifier_from_csv_and_its_answers(tiny_folder: Path, tmp_path: Path) -> None:
    said = python(EXAMPLES / "classify.py", "--model", tiny_folder, "--out", tmp_path / "run")
    assert re.search(r"labels doors, electricity, plumbing\n(\w+  0\.\d\d\n){2}", said)
    told = python(EXAMPLES / "answer.py", tmp_path / "run", "the lift is stuck")
    assert re.fullmatch(r"the lift is stuck (\w+|\(not sure\)) \{'doors': .*\}\n", told)


@pytest.mark.slow
def test_a_tagger_from_conll_and_its_spans(tiny_folder: Path, tmp_path: Path) -> None:
    said = python(EXAMPLES / "tag.py", "--model", tiny_folder, "--out", tmp_path / "run")
    assert "labels AMOUNT, DISH, PLACE" in said
    assert python(EXAMPLES / "answer.py", tmp_path / "run", "a tea").startswith("a tea [")


@pytest.mark.slow
def test_the_recipe_trains(tiny_folder: Path, tmp_path: Path) -> None:
    words = ["train", EXAMPLES / "intents.toml", "--out", tmp_path / "run", "--model", tiny_folder]
    python("-m", "labeltune.cli", *words, "--set", "train.steps=2")
    assert open_run(tmp_path / "run").config.lora.rank == 64


def test_every_setting_of_the_recipe_is_known_and_its_files_are_there() -> None:
    config = gather(EXAMPLES / "intents.toml", {}, {})
    assert isinstance(config, Config)
    assert all(Path(str(getattr(config.data, split))).is_file() for split in ("train", "dev", "test"))


def test_every_example_says_how_it_is_run() -> None:
    for path in EXAMPLES.glob("*.py"):
        assert f"python examples/{path.name}" in path.read_text("utf-8")
