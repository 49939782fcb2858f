"""Killed at any moment, a prediction goes on with `--resume`: no row lost or doubled, the same bytes as in peace."""

import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from labeltune.bulk.labelling import Watch, open_job, predict_to
from labeltune.errors import RunError, SettingsError
from labeltune.predict import Predictor

ROWS, SHARD = 600, 40
STEPS = [
    ("00000000.parquet", "before"),
    ("00000004.parquet", "after"),
    ("manifest.json", "after"),
    ("joined", "before"),
    ("joined", "after"),
    ("out.parquet", "before"),
    ("out.parquet", "after"),
    (".out.parquet.shards.old", "before"),
    (".out.parquet.shards.old", "after"),
    (".out.parquet.shards.old", "removing"),
]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "in.jsonl"
    rows = [{"text": f"the {'hen ' * (n % 9)}{n % 97}", "n": n if n % 5 else str(n)} for n in range(ROWS)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run_apart(code: str, *words: object) -> None:
    """Python in a process of its own, which may kill its children; one, for the imports take long."""
    command = [sys.executable, "-c", code, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr


AT_RANDOM = """
import os, random, signal, sys, time
from pathlib import Path
from labeltune.bulk.labelling import open_job, predict_to
run, source, to, rows, last = *sys.argv[1:3], Path(sys.argv[3]), *map(int, sys.argv[4:6])
shards = lambda: len(list(to.with_name(f".{to.name}.shards").glob("0*")))
chance = random.Random(5)
for least in sorted(chance.sample(range(last - 1), 10)):
    child = os.fork()
    if not child:
        predict_to(to, open_job(run, [source], rows=rows, scores=True), resume=shards() > 0)
        os._exit(0)
    while shards() <= least:
        time.sleep(0.0005)
    time.sleep(chance.uniform(0, 0.005))
    os.kill(child, signal.SIGKILL)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1]) and not to.exists(), least
"""


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_killed_at_ten_random_moments_the_output_has_the_same_bytes(
    finished: Path, source: Path, tmp_path: Path, suffix: str
) -> None:
    whole, to = tmp_path / f"whole{suffix}", tmp_path / f"out{suffix}"
    predict_to(whole, open_job(finished, [source], rows=SHARD, scores=True))
    run_apart(AT_RANDOM, finished, source, to, SHARD, ROWS // SHARD)
    predict_to(to, open_job(finished, [source], rows=SHARD, scores=True), resume=True)
    assert to.read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([whole.name, to.name])


AT_STEPS = """
import json, os, shutil, signal, sys
from pathlib import Path
from labeltune.bulk.labelling import open_job, predict_to
run, source, rows = *sys.argv[1:3], int(sys.argv[3])
replace, remove = os.replace, shutil.rmtree

def kill(path, name):
    if Path(path).name == name:
        os.kill(os.getpid(), signal.SIGKILL)

def killed(folder, name, moment):
    def replacing(one, other):
        moment == "before" and kill(other, name)
        replace(one, other)
        moment == "after" and kill(other, name)

    def removing(path, **how):
        if moment == "removing":
            os.unlink(Path(path) / "00000003.parquet")
            kill(path, name)
        remove(path, **how)

    os.replace, shutil.rmtree = replacing, removing
    predict_to(Path(folder) / "out.parquet", open_job(run, [source], rows=rows, scores=True))

for folder, name, moment in json.loads(sys.argv[4]):
    child = os.fork()
    if not child:
        killed(folder, name, moment)
        os._exit(0)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1]), (name, moment)
"""


@pytest.mark.slow
def test_killed_at_each_step_of_writing_the_output_has_the_same_bytes(
    finished: Path, source: Path, tmp_path: Path
) -> None:
    whole = tmp_path / "whole.parquet"
    predict_to(whole, open_job(finished, [source], scores=True, rows=SHARD))
    folders = [tmp_path / f"{name}-{moment}" for name, moment in STEPS]
    for folder in folders:
        folder.mkdir()
    cases = [(str(folder), *step) for folder, step in zip(folders, STEPS, strict=True)]
    run_apart(AT_STEPS, finished, source, SHARD, json.dumps(cases))
    for folder, step in zip(folders, STEPS, strict=True):
        to = folder / "out.parquet"
        predict_to(to, open_job(finished, [source], scores=True, rows=SHARD), resume=True)
        assert to.read_bytes() == whole.read_bytes(), step
        assert [path.name for path in folder.iterdir()] == ["out.parquet"], step


# Going on in one process


class Broken(Exception):
    """What ends a prediction half way."""


def interrupted(monkeypatch: pytest.MonkeyPatch, run: Path, source: Path, to: Path, after: int = 3) -> None:
    """A prediction that fails after some portions."""
    answer, left = Predictor.answer, iter(range(after))

    def failing(self: Predictor, *given: object, **how: object) -> list:
        if next(left, None) is None:
            raise Broken
        return answer(self, *given, **how)

    with monkeypatch.context() as patch, pytest.raises(Broken):
        patch.setattr(Predictor, "answer", failing)
        predict_to(to, open_job(run, [source], rows=100))


def test_what_is_kept_is_not_computed_again(finished: Path, source: Path, tmp_path: Path, monkeypatch) -> None:
    whole, to = tmp_path / "whole.csv", tmp_path / "out.csv"
    predict_to(whole, open_job(finished, [source], rows=100))
    interrupted(monkeypatch, finished, source, to)
    seen = []
    answer = Predictor.answer
    monkeypatch.setattr(
        Predictor, "answer", lambda self, portion, *how: seen.append(portion.number) or answer(self, portion, *how)
    )
    predict_to(to, open_job(finished, [source], rows=100), resume=True)
    assert seen == [3, 4, 5] and to.read_bytes() == whole.read_bytes()


def test_it_is_not_begun_again_and_not_gone_on_with_otherwise(
    finished: Path, source: Path, tmp_path: Path, monkeypatch
) -> None:
    to, own = tmp_path / "out.jsonl", Path(shutil.copy(source, tmp_path / "in.jsonl"))
    interrupted(monkeypatch, finished, own, to)
    with pytest.raises(RunError, match="did not end lies beside it; add --resume"):
        predict_to(to, open_job(finished, [own], rows=100))
    for how, word in (({"rows": 50}, "shard_rows"), ({"rows": 100, "min_score": 0.5}, "min_score")):
        with pytest.raises(RunError, match=f"begun with other {word}"):
            predict_to(to, open_job(finished, [own], **how), resume=True)
    own.write_text(own.read_text() + "\n")
    with pytest.raises(RunError, match="begun with other files"):
        predict_to(to, open_job(finished, [own], rows=100), resume=True)


def test_another_folder_is_not_gone_on_with(finished: Path, source: Path, tmp_path: Path, monkeypatch) -> None:
    to = tmp_path / "out.jsonl"
    for name in ("calm", "cross"):
        for folder in ("one", "other"):
            (tmp_path / folder / name).mkdir(parents=True)
            for number in range(200):
                (tmp_path / folder / name / f"{number}.txt").write_text(f"the hen {number}")
    interrupted(monkeypatch, finished, tmp_path / "one", to)
    with pytest.raises(RunError, match="begun with other sources and files"):
        predict_to(to, open_job(finished, [tmp_path / "other"], rows=100), resume=True)
    (tmp_path / "one" / "calm" / "0.txt").write_text("the ring")
    with pytest.raises(RunError, match="begun with other files"):
        predict_to(to, open_job(finished, [tmp_path / "one"], rows=100), resume=True)


def test_ctrl_c_says_what_is_kept_and_how_to_go_on(
    finished: Path, source: Path, tmp_path: Path, typed, monkeypatch
) -> None:
    answer, left = Predictor.answer, iter(range(2))

    def stopped(self: Predictor, *given: object, **how: object) -> list:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return answer(self, *given, **how)

    words = ("predict", finished, source, "--out", tmp_path / "out.csv", "--shard-rows", 100)
    with monkeypatch.context() as patch:
        patch.setattr(Predictor, "answer", stopped)
        found = typed(*words)
    assert found.code == 130 and "2 shards of 100 rows kept: the same command with --resume goes on" in found.err
    assert typed(*words, "--resume").code == 0 and (tmp_path / "out.csv").exists()


def test_resuming_what_was_never_begun_begins(finished: Path, source: Path, tmp_path: Path, typed) -> None:
    to = tmp_path / "out.jsonl"
    assert typed("predict", finished, source, "--out", to, "--resume").code == 0
    assert len(to.read_text().splitlines()) == ROWS
    found = typed("predict", finished, source, "--out", to, "--resume")
    assert found.code == 1 and "is already there" in found.err


def test_what_comes_once_cannot_be_gone_on_with(finished: Path, tmp_path: Path, typed) -> None:
    found = typed("predict", finished, "-", "--out", tmp_path / "out.jsonl", "--resume", text="the hen\n")
    assert found.code == 1 and "standard input comes once only" in found.err
    found = typed("predict", finished, "-", "--resume", text="the hen\n")
    assert found.code == 1 and "give --out FILE" in found.err


def test_what_comes_once_and_is_interrupted_keeps_nothing(finished: Path, tmp_path: Path, typed, monkeypatch) -> None:
    answer, left = Predictor.answer, iter(range(2))

    def stopped(self: Predictor, *given: object, **how: object) -> list:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return answer(self, *given, **how)

    words = ("predict", finished, "-", "--out", tmp_path / "out.jsonl", "--shard-rows", 10)
    with monkeypatch.context() as patch:
        patch.setattr(Predictor, "answer", stopped)
        found = typed(*words, text="the hen\n" * 50)
    assert found.code == 130 and "--resume" not in found.err and list(tmp_path.iterdir()) == []
    assert typed(*words, text="the hen\n" * 50).code == 0


def test_a_file_that_changed_meanwhile_is_begun_again(finished: Path, tmp_path: Path, typed, monkeypatch) -> None:
    answer, source = Predictor.answer, tmp_path / "in.jsonl"
    source.write_text('{"text": "the hen"}\n' * 20)

    def changing(self: Predictor, *given: object, **how: object) -> list:
        with source.open("a") as file:
            file.write('{"text": "the ring"}\n')
        return answer(self, *given, **how)

    monkeypatch.setattr(Predictor, "answer", changing)
    found = typed("predict", finished, source, "--out", tmp_path / "out.jsonl", "--shard-rows", 10)
    assert (
        found.code == 1
        and "has changed, come or gone while it was read; remove " in found.err
        and "--resume" not in found.err
    )


def test_a_file_that_comes_into_a_folder_meanwhile_is_named(finished: Path, tmp_path: Path, typed, monkeypatch) -> None:
    answer, folder = Predictor.answer, tmp_path / "in"
    folder.mkdir()
    for name in ("a.txt", "b.txt"):
        (folder / name).write_text("the hen\n" * 20)

    def adding(self: Predictor, *given: object) -> list:
        (folder / "c.txt").write_text("the ring\n")
        return answer(self, *given)

    monkeypatch.setattr(Predictor, "answer", adding)
    found = typed("predict", finished, folder, "--out", tmp_path / "out.jsonl", "--shard-rows", 10)
    assert found.code == 1 and "c.txt: the file has changed, come or gone while it was read" in found.err


def test_an_output_inside_a_folder_that_is_read_is_refused(finished: Path, tmp_path: Path, typed) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("the hen\n" * 20)
    found = typed("predict", finished, tmp_path, "--out", tmp_path / "out.jsonl")
    assert found.code == 1 and "and would be read with it; choose a place outside" in found.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "b.txt"]


@pytest.mark.parametrize("content", [None, "[1]", "{}"])
def test_shards_that_nobody_knows_about_are_not_gone_on_with(
    finished: Path, source: Path, tmp_path: Path, monkeypatch, content: str | None
) -> None:
    to = tmp_path / "out.jsonl"
    interrupted(monkeypatch, finished, source, to)
    manifest = tmp_path / ".out.jsonl.shards" / "manifest.json"
    manifest.unlink() if content is None else manifest.write_text(content)
    with pytest.raises(RunError, match=r"it was begun with other .*run"):
        predict_to(to, open_job(finished, [source], rows=100), resume=True)


def test_what_has_come_to_be_there_is_not_written_over(
    finished: Path, source: Path, tmp_path: Path, monkeypatch
) -> None:
    answer, to = Predictor.answer, tmp_path / "out.jsonl"

    def adding(self: Predictor, *given: object) -> list:
        to.write_text("precious")
        return answer(self, *given)

    with monkeypatch.context() as patch, pytest.raises(RunError, match="come to be there meanwhile; move it away"):
        patch.setattr(Predictor, "answer", adding)
        predict_to(to, open_job(finished, [source], rows=100))
    assert to.read_text() == "precious"
    to.unlink()
    predict_to(to, open_job(finished, [source], rows=100), resume=True)
    assert len(to.read_text().splitlines()) == 600


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet", ".csv"])
def test_a_full_disk_is_told_and_what_is_kept_is_gone_on_with(
    finished: Path, source: Path, tmp_path: Path, suffix: str
) -> None:
    class Heard(Watch):
        said = ""

        def say(self, sentence: str) -> None:
            self.said += sentence

    whole, to, heard = tmp_path / f"whole{suffix}", tmp_path / f"out{suffix}", Heard()
    predict_to(whole, open_job(finished, [source], rows=100))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (whole.stat().st_size - 1, before[1]))
    try:
        with pytest.raises(RunError, match="cannot be written: File too large; free some space"):
            predict_to(to, open_job(finished, [source], rows=100), watch=heard)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert heard.said == "6 shards of 100 rows kept: the same command with --resume goes on" and not to.exists()
    predict_to(to, open_job(finished, [source], rows=100), resume=True)
    assert to.read_bytes() == whole.read_bytes()


def test_two_at_once_do_not_write_one_output(finished: Path, source: Path, tmp_path: Path, monkeypatch) -> None:
    to = tmp_path / "out.jsonl"
    answer = Predictor.answer

    def nested(self: Predictor, *given: object, **how: object) -> list:
        monkeypatch.setattr(Predictor, "answer", answer)
        with pytest.raises(RunError, match="another process"):
            predict_to(to, open_job(finished, [source]))
        return answer(self, *given, **how)

    monkeypatch.setattr(Predictor, "answer", nested)
    predict_to(to, open_job(finished, [source]))
    assert len(to.read_text().splitlines()) == ROWS


def test_settings_of_the_training_stay_refused(finished: Path, source: Path) -> None:
    with pytest.raises(SettingsError, match="cannot differ"):
        open_job(finished, [source], settings={"model.unmask": "all"})
