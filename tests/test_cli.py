"""The command line: what stands on which stream, how it ends, and that it fits an 80-column terminal."""

import io
import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from textwrap import dedent

import pytest

import labeltune.fitting
from labeltune.adaptation.objectives import OBJECTIVES
from labeltune.adaptation.optimisers import OPTIMISERS
from labeltune.adaptation.settings import OBJECTIVE_NAMES, OPTIMISER_NAMES
from labeltune.cli import main
from labeltune.config import Config
from labeltune.model.pooling import POOLINGS
from labeltune.model.settings import POOLING_NAMES
from labeltune.settings import known_names

QUICK = ("--set", "train.epochs=1", "--set", "train.batch_rows=8", "--set", "train.threads=1", "--set", "lora.rank=2")


def rows_of(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


def real(*words: object, text: str = "") -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    command = [sys.executable, "-m", "labeltune", *map(str, words)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "80"}
    return subprocess.run(command, input=text, capture_output=True, text=True, env=environment)


# How it ends


@pytest.mark.parametrize(
    "words", [["--help"], ["train", "--help"], ["settings"], ["settings", "lora", "--json"]], ids=str
)
def test_what_is_done_ends_with_0(typed, words: list[str]) -> None:
    assert typed(*words).code == 0


def test_the_version_is_the_package_s(typed) -> None:
    assert typed("--version").out == f"labeltune {labeltune.__version__}\n"


def test_an_unknown_section_names_those_that_there_are(typed) -> None:
    found = typed("settings", "foo")
    assert found.code == 1 and "adapt" in found.err and "recipe" not in found.err


@pytest.mark.parametrize(
    "words",
    [["trian"], ["train", "x.jsonl"], ["predict"], ["evaluate"], ["train", "x", "--out", "y", "--lr", "3"]],
    ids=str,
)
def test_wrong_usage_ends_with_2(typed, words: list[str]) -> None:
    found = typed(*words)
    assert found.code == 2 and found.err and not found.out


def test_what_the_user_can_fix_ends_with_1_and_one_sentence(typed, tmp_path: Path) -> None:
    found = typed("train", tmp_path / "no.jsonl", "--out", tmp_path / "run", "--model", "mini")
    assert found.code == 1 and found.err.startswith("error: ") and len(found.err.splitlines()) == 1 and not found.out


def test_markup_in_what_the_user_wrote_is_text(typed, tmp_path: Path) -> None:
    found = typed("train", "x.jsonl", "--out", tmp_path / "run", "--set", "train.schedule=[/bold]")
    assert "'[/bold]' is not one of linear, cosine, constant" in found.err


@pytest.mark.parametrize("command", ["train", "evaluate", "predict"])
def test_ctrl_c_ends_with_130_and_without_a_traceback(typed, monkeypatch, tmp_path: Path, command: str) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    for name in ("fitting.train", "predict.evaluate", "bulk.labelling.predict_files"):
        monkeypatch.setattr(f"labeltune.{name}", interrupt)
    words = {"train": ["x", "--out", tmp_path / "run"], "evaluate": ["run", "--data", "x"], "predict": ["run", "x"]}[
        command
    ]
    found = typed(command, *words)
    assert found.code == 130 and found.err == "interrupted\n" and not found.out


def test_a_bug_of_ours_keeps_its_traceback(typed, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(labeltune.fitting, "train", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        typed("train", "x", "--out", tmp_path / "run")


# What stands where


@pytest.fixture(scope="module")
def trained(small: Path, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, object]:
    """A training as a user starts it, in a process of its own: the run, and what was printed."""
    run = tmp_path_factory.mktemp("cli") / "run"
    files = [small / f"moods-{split}.jsonl" for split in ("train", "dev", "test")]
    words = ["train", files[0], "--dev", files[1], "--test", files[2], "--model", tiny_folder, "--out", run, *QUICK]
    return run, real(*words)


def test_a_training_prints_our_lines_only_and_they_fit_80_columns(trained, tiny_folder: Path) -> None:
    _, printed = trained
    assert printed.returncode == 0, printed.stderr
    assert printed.stdout == ""
    lines = printed.stderr.splitlines()
    begins = ("moods-", "warning: ", "self-check: ", "classification: ", "backbone: ", "training: ", "epoch ", " ")
    assert [line for line in lines if not line.startswith(begins)] == []
    assert [line for line in lines if len(line) > 80 and str(tiny_folder) not in line and "warning" not in line] == []
    assert "classification: 24 train, 8 dev, 8 test rows, 3 labels" in lines


def test_a_fresh_process_predicts_what_the_training_scored(trained, small: Path) -> None:
    run, _ = trained
    printed = real("predict", run, small / "moods-dev.jsonl", small / "moods-test.jsonl", "-", text="the hen\n")
    assert (printed.returncode, printed.stderr) == (0, "")
    answers = rows_of(printed.stdout)
    metrics = json.loads((run / "metrics.json").read_text())
    for split, part in (("dev", answers[:8]), ("test", answers[8:16])):
        assert sum(row["label"] == row["input_label"] for row in part) / 8 == metrics[split]["accuracy"]
    assert len(answers) == 17 and answers[16]["text"] == "the hen"


def test_with_json_standard_output_is_json_and_nothing_is_said(typed, small: Path, tiny_folder: Path, tmp_path) -> None:
    run = tmp_path / "run"
    found = typed("train", small / "moods-train.jsonl", "--model", tiny_folder, "--out", run, "--json", *QUICK)
    assert json.loads(found.out) == json.loads((run / "metrics.json").read_text()) and found.err == ""
    found = typed("evaluate", run, "--data", small / "moods-test.jsonl", "--json")
    assert json.loads(found.out)["accuracy"] >= 0 and found.err == ""


def test_evaluate_prints_a_table(typed, finished: Path, small: Path, tmp_path: Path) -> None:
    found = typed("evaluate", finished, "--data", small / "moods-test.jsonl", "--errors", tmp_path / "wrong.jsonl")
    metrics = json.loads((finished / "metrics.json").read_text())["test"]
    said = json.loads(typed("evaluate", finished, "--data", small / "moods-test.jsonl", "--json").out)
    wrong = [row for row in rows_of((tmp_path / "wrong.jsonl").read_text())]
    taken = Counter((row["gold"], row["label"]) for row in wrong)
    assert {(one["gold"], one["answer"]): one["rows"] for one in said.get("confused", [])} == taken
    assert sum(one["support"] for one in said["labels"]) == 8
    mean = sum(one["f1"] for one in said["labels"]) / len(said["labels"])
    assert mean == pytest.approx(metrics["macro_f1"])
    for one in said["labels"]:
        assert re.search(rf"{one['label']} +{one['precision']:.4f} +{one['recall']:.4f} +{one['f1']:.4f}", found.out)
    assert (
        "8 rows" in found.out and f"{metrics['accuracy']:.4f}" in found.out and "rows with errors are in" in found.out
    )


def test_predict_writes_whole_files_and_never_over_others(typed, finished: Path, small: Path, tmp_path: Path) -> None:
    to = tmp_path / "answers.jsonl"
    found = typed("predict", finished, small / "moods-test.jsonl", "--out", to, "--scores")
    assert found.code == 0 and len(rows_of(to.read_text())) == 8
    before = to.read_bytes()
    found = typed("predict", finished, small / "moods-test.jsonl", "--out", to)
    assert found.code == 1 and "already there" in found.err and to.read_bytes() == before


def test_a_prediction_that_fails_leaves_no_file(typed, finished: Path, small: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"text": "the hen"}\n{"text": ""}\n')
    found = typed("predict", finished, tmp_path / "bad.jsonl", "--out", tmp_path / "answers.jsonl")
    assert found.code == 1 and "bad.jsonl:2" in found.err
    assert [p.name for p in tmp_path.iterdir()] == ["bad.jsonl"]


def ended(monkeypatch: pytest.MonkeyPatch, stdout: io.TextIOWrapper, *words: object) -> int:
    """The exit code of `labeltune` with this standard output."""
    monkeypatch.setattr(sys, "argv", ["labeltune", *map(str, words)])
    monkeypatch.setattr(sys, "stdout", stdout)
    with pytest.raises(SystemExit) as caught:
        main()
    return int(caught.value.code or 0)


def test_answers_are_utf8_whatever_the_locale(monkeypatch, finished: Path, tmp_path: Path) -> None:
    (tmp_path / "new.txt").write_text("東京 – été\n", encoding="utf-8")
    latin = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    assert ended(monkeypatch, latin, "predict", finished, tmp_path / "new.txt") == 0
    latin.flush()
    assert "東京 – été" in latin.buffer.getvalue().decode()


def test_a_reader_that_leaves_sees_no_traceback(monkeypatch, finished: Path, tmp_path: Path) -> None:
    (tmp_path / "new.txt").write_text("the hen\n")
    reader, writer = os.pipe()
    os.close(reader)
    pipe = io.TextIOWrapper(io.FileIO(writer, "w"), encoding="utf-8", write_through=True)
    assert ended(monkeypatch, pipe, "predict", finished, tmp_path / "new.txt") == 1
    pipe.detach().close()


# Settings


def test_every_setting_is_listed_with_its_meaning(typed) -> None:
    rows = json.loads(typed("settings", "--json").out)
    assert set(known_names(Config)) <= {row["name"] for row in rows}
    assert all(row["meaning"] and row["type"] for row in rows)


def test_settings_are_listed_without_loading_torch() -> None:
    """It takes seconds, and a list of words needs none of it."""
    asked = """
        import sys
        from typer.testing import CliRunner
        from labeltune.cli import app
        assert CliRunner().invoke(app, ["settings"]).exit_code == 0
        assert "labeltune.config" in sys.modules and "torch" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", dedent(asked)], check=True)


def test_the_names_that_settings_list_are_those_that_there_are() -> None:
    assert (*POOLINGS,) == POOLING_NAMES and (*OBJECTIVES,) == OBJECTIVE_NAMES and (*OPTIMISERS,) == OPTIMISER_NAMES


def test_tables_within_a_section_are_listed_key_by_key(typed) -> None:
    rows = {row["name"]: row for row in json.loads(typed("settings", "sweep", "--json").out)}
    assert rows["sweep.halving"]["type"] == "table" and not rows["sweep.halving"]["default"]
    assert rows["sweep.halving.rungs"]["type"] == "list[int]" and rows["sweep.halving.rungs"]["default"] == "[1]"
    assert rows["sweep.table"]["type"] == "list[table]" and rows["sweep.table.by"]["default"] == "(required)"
    assert rows["sweep.budget.minutes"]["meaning"].startswith("No training begins after")


def test_a_fraction_is_a_number_and_a_name_is_a_name(typed, small: Path, tiny_folder: Path, tmp_path: Path) -> None:
    words = ["--model", tiny_folder, "--out", tmp_path / "run", *QUICK]
    found = typed("train", small / "moods-train.jsonl", "--dev", "0.25", "--test", "0.25", *words)
    assert found.code == 0 and "12 train, 6 dev, 6 test rows" in found.err
