"""A run folder vouches for itself: what is missing, changed or added is refused by name; nothing is written over."""

import json
import shutil
from pathlib import Path

import pytest

from labeltune.errors import RunError
from labeltune.run import number, open_run, refuse_existing, seal, state_of, unseal

DECISIVE = (
    "config.toml",
    "labels.json",
    "head.safetensors",
    "adapter/adapter_config.json",
    "adapter/adapter_model.safetensors",
    "tokenizer/tokenizer.json",
    "tokenizer/tokenizer_config.json",
)


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of a finished run."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.mark.parametrize("name", DECISIVE)
def test_a_missing_file_is_named(run: Path, name: str) -> None:
    (run / name).unlink()
    with pytest.raises(RunError, match=rf"{name}: this file of the run is missing; copy"):
        open_run(run)


@pytest.mark.parametrize("name", DECISIVE)
def test_a_file_with_one_byte_changed_is_named(run: Path, name: str) -> None:
    content = bytearray((run / name).read_bytes())
    content[len(content) // 2] ^= 1
    (run / name).write_bytes(content)
    with pytest.raises(RunError, match=rf"{name}: this file was changed after training; copy"):
        open_run(run)


@pytest.mark.parametrize("name", ["adapter/adapter_model.bin", "tokenizer/vocab.json", "backbone/config.json"])
def test_a_file_that_decides_and_does_not_belong_is_named(run: Path, name: str) -> None:
    (run / name).parent.mkdir(exist_ok=True)
    (run / name).write_text("{}")
    with pytest.raises(RunError, match=rf"{name}: this file does not belong to the run; remove"):
        open_run(run)


def test_what_decides_nothing_may_change(run: Path) -> None:
    (run / "README.md").write_text("My model.")
    (run / "notes.txt").write_text("x")
    for folder in ("adapter", "tokenizer"):
        (run / folder / ".DS_Store").write_text("x")
    (run / "log.jsonl").unlink()
    assert open_run(run).state == "finished"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "is no JSON"),
        ("[1]", "the run's format is"),
        ('{"labeltune": 99}', "the run's format is 99, not 1"),
        ('{"labeltune": 1}', "was changed after training"),
        ('{"labeltune": 1, "state": "finished", "files": [1]}', "was changed after training"),
        ('{"labeltune": 1, "state": "finished", "files": {}}', "does not belong to the run"),
        ('{"labeltune": 1, "state": "finished", "files": {"../x": "0"}}', "is no path inside this folder"),
    ],
)
def test_a_format_file_that_says_something_else_is_refused(run: Path, content: str, says: str) -> None:
    (run / "format").write_text(content)
    with pytest.raises(RunError, match=says):
        open_run(run)


def test_a_format_file_that_forgets_the_files_does_not_help(run: Path) -> None:
    shutil.rmtree(run / "adapter"), shutil.rmtree(run / "tokenizer")
    for name in ("config.toml", "labels.json", "head.safetensors"):
        (run / name).unlink()
    seal(run, "finished")
    with pytest.raises(RunError, match="missing"):
        open_run(run)


def test_what_is_no_run_folder_is_told_apart_from_a_training_that_did_not_end(run: Path, tmp_path: Path) -> None:
    unseal(run)
    assert state_of(run) is None
    with pytest.raises(RunError, match="did not end; go on with the same command and --resume"):
        open_run(run)
    with pytest.raises(RunError, match="no run folder"):
        open_run(tmp_path)
    with pytest.raises(RunError, match="no such run folder"):
        open_run(tmp_path / "nothing")


def test_only_nothing_and_an_empty_folder_may_be_written_to(run: Path, tmp_path: Path) -> None:
    empty, file = tmp_path / "empty", tmp_path / "file"
    empty.mkdir(), file.write_text("")
    refuse_existing(empty), refuse_existing(tmp_path / "nothing")
    with pytest.raises(RunError, match="not empty; choose another --out"):
        refuse_existing(run)
    with pytest.raises(RunError, match="this is a file; choose another"):
        refuse_existing(file)
    unseal(run)
    with pytest.raises(RunError, match="not empty; add --resume"):
        refuse_existing(run)
    (empty / "mine.txt").write_text("")
    with pytest.raises(RunError, match="not empty; choose another --out"):
        refuse_existing(empty)


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.5, "0.5000"), (0.00002, "2e-05"), (0.0, "0.0000"), (12.345, "12.35"), (12345.678, "12,346"),
     (1234567.0, "1,234,567"), (-0.00012, "-0.00012"), (7, "7"), (None, "–")],
)  # fmt: skip
def test_figures_keep_what_tells_them_apart(value: object, shown: str) -> None:
    assert number(value) == shown


def test_metrics_are_what_json_says(run: Path) -> None:
    assert open_run(run).metrics == json.loads((run / "metrics.json").read_text())
    (run / "metrics.json").unlink()
    assert open_run(run).metrics == {}
