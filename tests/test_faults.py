"""Bad input, as a user would give it: one sentence with an address and a way out, exit code 1, nothing written over."""

import errno
import json
import re
import resource
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

import pytest

from labeltune import RunError, train
from labeltune.storage import lock
from labeltune.training.trainer import Step

QUICK = ("--set", "train.epochs=1", "--set", "train.batch_rows=8", "--set", "train.threads=1", "--set", "lora.rank=2")
GOOD = [{"text": f"the hen {i}", "label": "ab"[i % 2]} for i in range(20)]
TAGGED = [{"tokens": ["Bob", "sang", str(i)], "tags": ["B-PER", "O", "O"]} for i in range(20)]
SPANNED = [{"text": f"Bob sang {i}", "spans": [{"start": 0, "end": 3, "label": "PER"}]} for i in range(20)]


def jsonl(rows: list[dict[str, object]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def with_row(rows: list[dict[str, object]], number: int, **fields: object) -> bytes:
    """The rows with one of them changed; fields of None are left out."""
    row = {name: value for name, value in {**rows[number - 1], **fields}.items() if value is not None}
    return jsonl([*rows[: number - 1], row, *rows[number:]])


def with_line(rows: list[dict[str, object]], number: int, line: bytes) -> bytes:
    lines = jsonl(rows).splitlines()
    lines[number - 1] = line
    return b"\n".join(lines) + b"\n"


def tree(folder: Path) -> dict[str, str]:
    """What lies there: names and contents."""
    found = {}
    for path in sorted(folder.rglob("*")):
        found[str(path)] = sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
    return found


@pytest.fixture
def refused(typed, tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch):
    """A function: files and the words of a command -> the one sentence it was refused with; nothing has changed."""
    monkeypatch.chdir(tmp_path)

    def refused(files: dict[str, bytes], *words: object, model: object = tiny_folder, out: object = "run") -> str:
        for name, content in files.items():
            (tmp_path / name).write_bytes(content)
        before = tree(tmp_path)
        found = typed("train", *QUICK, *words, *(["--model", model] if model else []), "--out", out)
        assert found.code == 1, found.err
        said = found.err.splitlines()[-1]
        assert said.startswith("error: ") and "; " in said and found.out == ""
        assert tree(tmp_path) == before
        return said.removeprefix("error: ")

    return refused


# Rows

ROWS: dict[str, tuple[str, bytes, str]] = {
    "no label": (
        "d.jsonl",
        with_row(GOOD, 5, label=None),
        r"d\.jsonl:5: the row has no label .*; label the row, or remove",
    ),
    "null label": ("d.jsonl", with_line(GOOD, 5, b'{"text": "x", "label": null}'), r"d\.jsonl:5: the row has no label"),
    "nan label": (
        "d.jsonl",
        with_line(GOOD, 5, b'{"text": "x", "label": NaN}'),
        r"d\.jsonl:5: the row has no label .*NaN",
    ),
    "no text": ("d.jsonl", with_row(GOOD, 5, text=None), r"d\.jsonl:5: the row has no text"),
    "empty text": ("d.jsonl", with_row(GOOD, 5, text=" \t"), r"d\.jsonl:5: the text is empty; remove the row"),
    "number as text": ("d.jsonl", with_row(GOOD, 5, text=7), r"d\.jsonl:5: the text 'text' is 7; "),
    "no object": ("d.jsonl", with_line(GOOD, 5, b'["x", "a"]'), r"d\.jsonl:5: .*object"),
    "broken json on line 17": ("d.jsonl", with_line(GOOD, 17, b'{"text": "x", "label": '), r"d\.jsonl:17: .*JSON"),
    "empty file": ("d.jsonl", b"", r"d\.jsonl: .*; "),
    "only line ends": ("d.jsonl", b"\n\n", r"d\.jsonl: there are no rows; "),
    "latin-1": (
        "d.jsonl",
        with_line(GOOD, 3, '{"text": "café", "label": "a"}'.encode("latin-1")),
        r"d\.jsonl:3: .*UTF-8",
    ),
    "utf-16": ("d.jsonl", jsonl(GOOD).decode().encode("utf-16"), r"d\.jsonl:1?.*UTF-(16|8)"),
    "one label": (
        "d.jsonl",
        jsonl([{**row, "label": "a"} for row in GOOD]),
        r"d\.jsonl: every row has the label 'a'; ",
    ),
    "empty header cell": ("d.csv", b"text,\nthe hen,a\n", r"d\.csv"),
    "too many cells": ("d.csv", b"text,label\nthe hen,a\nthe,ring,b\n", r"d\.csv:3: .*; "),
    "an open quote": ("d.csv", b'text,label\n"the hen,a\n', r"d\.csv:2: .*; "),
    "a spreadsheet": ("d.xlsx", b"PK\x03\x04 and so on", r"d\.xlsx: this is a spreadsheet.*; save it as CSV"),
    "carriage returns": ("d.csv", b"text,label\rthe hen,a\rthe ring,b\r", r"d\.csv: its lines end in CR alone; "),
    "no such column": ("d.csv", b"one,two,three\nthe hen,a,x\nthe ring,b,y\n", r"d\.csv: .*data\."),
}
TAG_ROWS: dict[str, tuple[str, bytes, str]] = {
    "more tags than tokens": (
        "d.jsonl",
        with_row(TAGGED, 5, tags=["B-PER", "O"]),
        r"d\.jsonl:5: 3 tokens and 2 tags; each token has one tag",
    ),
    "no tags": ("d.jsonl", with_row(TAGGED, 5, tags=None), r"d\.jsonl:5: the row has no tags"),
    "no such tag": (
        "d.jsonl",
        with_row(TAGGED, 5, tags=["X-PER", "O", "O"]),
        r"d\.jsonl:5: 'X-PER' is no tag; tags are",
    ),
    "empty token": ("d.jsonl", with_row(TAGGED, 5, tokens=["Bob", " ", "5"]), r"d\.jsonl:5: token 2 is empty; "),
    "no span at all": (
        "d.jsonl",
        jsonl([{**row, "tags": ["O"] * 3} for row in TAGGED]),
        r"d\.jsonl: no row has a span; ",
    ),
    "outside": (
        "d.jsonl",
        with_row(SPANNED, 5, spans=[{"start": 0, "end": 99, "label": "PER"}]),
        r"d\.jsonl:5: the span .* lies outside the text",
    ),
    "negative": (
        "d.jsonl",
        with_row(SPANNED, 5, spans=[[-2, 3, "PER"]]),
        r"d\.jsonl:5: the span .* lies outside the text",
    ),
    "backwards": (
        "d.jsonl",
        with_row(SPANNED, 5, spans=[[3, 1, "PER"]]),
        r"d\.jsonl:5: the span 3:1 .* ends before it begins",
    ),
    "overlapping": (
        "d.jsonl",
        with_row(SPANNED, 5, spans=[[0, 3, "PER"], [2, 6, "LOC"]]),
        r"d\.jsonl:5: the span .* overlaps the span .*; a character has one label",
    ),
    "no spans": ("d.jsonl", with_row(SPANNED, 5, spans=None), r"d\.jsonl:5: the row has no spans .*; a row without"),
    "span without a label": ("d.jsonl", with_row(SPANNED, 5, spans=[[0, 3]]), r"d\.jsonl:5: .* is no span; "),
    "conll": ("d.conll", b"Bob B-PER\nsang\n\n", r"d\.conll:2: .*; "),
}


@pytest.mark.parametrize("case", [*ROWS, *TAG_ROWS])
def test_a_row_that_cannot_be_used_is_named(refused, case: str) -> None:
    name, content, says = (ROWS | TAG_ROWS)[case]
    said = refused({name: content}, name)
    assert re.search(says, said), said


@pytest.mark.parametrize("case", ["no label", "empty text", "broken json on line 17", "empty file"])
def test_a_dev_and_a_test_row_too(refused, case: str) -> None:
    name, content, says = ROWS[case]
    for flag in ("--dev", "--test"):
        said = refused({"good.jsonl": jsonl(GOOD), name: content}, "good.jsonl", flag, name)
        assert re.search(says, said), said


@pytest.mark.parametrize("words", [["train.select=f1"], ["head.class_weights={c = 1.0}"], ["train.init=no-run"]])
def test_what_can_be_told_is_told_before_the_backbone_is_read(refused, words: list[str]) -> None:
    sets = [part for word in words for part in ("--set", word)]
    assert "not there" not in refused({"d.jsonl": jsonl(GOOD)}, "d.jsonl", *sets, model="not there")


def test_a_run_by_a_name_that_no_folder_may_have_is_told(typed, tmp_path: Path) -> None:
    found = typed("evaluate", "x" * 300, "--data", "rows.jsonl")
    assert found.code == 1 and "there is no such run folder" in found.err and "Traceback" not in found.err


def test_the_folder_of_a_reproduction_may_be_no_file(typed, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("{}")
    found = typed("reproduce", "ls-llama", "--out", tmp_path / "rows.jsonl")
    assert found.code == 1 and "rows.jsonl" in found.err and "Traceback" not in found.err


def test_a_sweep_is_no_recipe(refused) -> None:
    said = refused({"s.toml": b'[sweep.axes]\n"train.lr" = [1e-3]\n'}, "s.toml")
    assert re.search(r"s\.toml: these are the settings of a sweep; labeltune sweep s\.toml", said), said


def test_a_byte_order_mark_is_fine(typed, tmp_path: Path, tiny_folder: Path) -> None:
    (tmp_path / "d.jsonl").write_bytes(b"\xef\xbb\xbf" + jsonl(GOOD))
    (tmp_path / "r.toml").write_bytes(b'\xef\xbb\xbf[data]\ntrain = "d.jsonl"\n')
    assert typed("train", tmp_path / "r.toml", "--model", tiny_folder, "--out", tmp_path / "run", *QUICK).code == 0


def test_bad_rows_may_be_skipped_and_kept(typed, tmp_path: Path, tiny_folder: Path) -> None:
    (tmp_path / "d.jsonl").write_bytes(with_row(GOOD, 5, label=None))
    words = ["--model", tiny_folder, "--out", tmp_path / "run", "--set", "data.on_bad_row=quarantine", *QUICK]
    found = typed("train", tmp_path / "d.jsonl", *words)
    assert found.code == 0 and "1 of 20 rows" in found.err
    (kept,) = (json.loads(line) for line in (tmp_path / "run/quarantine.jsonl").read_text().splitlines())
    assert kept["at"] == "d.jsonl:5"


def test_a_dev_label_that_training_never_sees_counts_and_is_named(typed, tmp_path: Path, tiny_folder: Path) -> None:
    (tmp_path / "d.jsonl").write_bytes(jsonl(GOOD))
    (tmp_path / "dev.jsonl").write_bytes(jsonl([{"text": "the ring", "label": "unheard of"}, *GOOD[:3]]))
    words = ["--dev", tmp_path / "dev.jsonl", "--model", tiny_folder, "--out", tmp_path / "run", *QUICK]
    found = typed("train", tmp_path / "d.jsonl", *words)
    assert found.code == 0 and found.err.count("unheard of") >= 2
    dev = json.loads((tmp_path / "run/metrics.json").read_text())["dev"]
    assert dev["unseen_labels"] == ["unheard of"] and dev["accuracy"] <= 0.75
    assert "unheard of" in (tmp_path / "run/README.md").read_text()


# Files


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["good.jsnl"], r"good\.jsnl: .*did you mean 'good.jsonl'"),
        (["good.jsonl", "--dev", "dve.jsonl"], r"dve\.jsonl: .*; "),
        (
            ["good.jsonl", "--test", "good.jsonl"],
            r"data\.train is the same file as data\.test; the test split stays sealed",
        ),
        (["good.jsonl", "--dev", "copy.jsonl", "--test", "copy.jsonl"], "same file as data.test"),
        (["good.jsonl", "--test", "copy.jsonl"], "same file as data.test"),
        (["good.jsonl", "--dev", "2"], r"data\.dev: should be less than 1"),
        (["good.jsonl", "--dev", "nan"], r"data\.dev: should be a finite number"),
        (["good.jsonl", "--set", "data.text=txt"], r"data\.text = 'txt' is no column; did you mean 'text'"),
        (["good.jsonl", "--set", "data.template={body}"], r"body"),
        (["good.jsonl", "--set", "data.group=txet"], r"data\.group = 'txet' is no column; did you mean 'text'"),
        (["good.jsonl", "--init", "no-run"], r"no-run: there is no such run folder"),
        (["good.jsonl", "--task", "clasification"], "did you mean 'classification'"),
        (["good.jsonl", "--task", "tagging"], r"good\.jsonl: .*tokens"),
        (["good.jsonl", "--task", "ordinal"], r"data\.label_order: an ordinal task needs the order"),
        (["good.jsonl", "--task", "regression"], r"good\.jsonl:1: .*number"),
        (["x" * 5000], "; "),
        (["good.jsonl", "--dev", "x" * 300], "; "),
        ([""], "; "),
        (["hf:nobody/nothing"], "nobody/nothing"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_a_source_that_cannot_be_used_is_named(refused, words: list[str], says: str) -> None:
    files = {"good.jsonl": jsonl(GOOD), "copy.jsonl": jsonl(GOOD)}
    said = refused(files, *words)
    assert re.search(says, said), said


def test_without_data_the_way_out_is_named(refused) -> None:
    assert "data.train: there is no data to train on; name a file" in refused({})


# Settings

SETTINGS = {
    "train.lr=abc": r"train\.lr: should be a number \(got 'abc'\)",
    "train.lr=nan": r"train\.lr: should be a finite number",
    "train.lr=inf": r"train\.lr: should be a finite number",
    "train.lr=0": r"train\.lr: should be greater than 0",
    "train.lrr=1": r"train\.lrr: unknown setting; did you mean 'train\.lr'",
    "lr=1": r"lr: unknown setting; did you mean 'train\.lr'",
    "trian.epochs=1": "unknown setting; did you mean 'train'",
    "train.device=gpu": "did you mean 'cuda'",
    "head=1": "head: should be a table",
    "train.lr": "--set wants section.name=value; for example",
    "train.threads=0": r"train\.threads: should be greater than or equal to 1",
    "train.threads=true": r"train\.threads: should be a whole number",
    "train.eval_every=steps": r"train\.eval_every: should be 'epoch'",
    "train.select=f1": "classification has no metric 'f1'; known: accuracy",
    "train.device=tpu": "'tpu' is not one of auto, cpu, cuda, mps",
    "model.pooling=lst": "'lst' is not one of .*; did you mean 'last'",
    "model.unmask=first:99": "outside the model; it has 4 layers",
    "model.unmask=some": "names no layers; write none",
    "model.depth=9": "it has 4 blocks",
    "data.max_tokens=999": "context",
    "data.eos=maybe": r"data\.eos: should be true or false",
    "data.context=1": r"data\.context: .*; set it to 0",
    "lora.targets=['nothing']": "nothing",
    "lora.layers=9:10": "outside the model",
    "lora.kind=dora": r"lora\.dropout.*; ",
    "head.crf=true": r"head\.crf: classification has no sequence of tags; set it to false",
    "head.class_weights=equal": r"head\.class_weights: should be 'balanced'",
    "head.class_weights={c = 1.0}": r"head\.class_weights: no label 'c'; ",
    "head.loss=hinge": r"head\.loss: 'hinge' is not one of focal",
    "task=clasification": "did you mean 'classification'",
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_setting_that_cannot_be_is_named_with_the_nearest_one(refused, setting: str) -> None:
    said = refused({"d.jsonl": jsonl(GOOD)}, "d.jsonl", "--set", setting)
    assert re.search(SETTINGS[setting], said), said


RECIPES = {
    b"[train]\nlrr = 1\n": r"r\.toml: train\.lrr: unknown setting; did you mean 'train\.lr'",
    b"[train]\nlr = 'high'\n": r"r\.toml: train\.lr: should be a number \(got 'high'\)",
    b"[train]\nlr = '0.1'\n": r"r\.toml: train\.lr: should be a number \(got '0.1'\)",
    b"train = 3\n": r"r\.toml: train: should be a table",
    b"[train\n": r"r\.toml: this is no valid TOML .*line 1.*; ",
    b"[train]\nlr = 1\nlr = 2\n": r"r\.toml: this is no valid TOML",
    b"\xff\xfe": r"r\.toml: this is no valid TOML",
    b"x = " + b"[" * 3000: r"r\.toml: this is no valid TOML",
    b"[data]\ntrain = 'no.jsonl'\n": r"no\.jsonl: .*; ",
    b"[data]\ntrain = '\\u0000'\n": "; ",
}


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda r: r[:20])
def test_a_recipe_that_cannot_be_is_named_with_its_file(refused, recipe: bytes) -> None:
    said = refused({"r.toml": recipe}, "r.toml")
    assert re.search(RECIPES[recipe], said), said


def test_a_recipe_that_is_not_there_is_named(refused, tmp_path: Path) -> None:
    assert "no.toml: there is no such recipe; " in refused({}, "no.toml")
    (tmp_path / "folder.toml").mkdir()
    assert "folder.toml: " in refused({}, "folder.toml")


# The backbone


@pytest.fixture
def backbone(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "backbone"))


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("tokenizer.json", None, "holds no tokenizer; copy the model's tokenizer files there"),
        ("model.safetensors", None, "no safetensors weights; download"),
        ("config.json", None, r"no config\.json; name a folder"),
        ("model.safetensors", b"", "; "),
        ("model.safetensors", b"x" * 999, "; "),
        ("config.json", b"{", "; "),
        ("config.json", b"{}", "; "),
        ("tokenizer.json", b"{", "; "),
    ],
)
def test_a_backbone_that_is_incomplete_is_named(refused, backbone: Path, name: str, content, says: str) -> None:
    (backbone / name).unlink()
    if content is not None:
        (backbone / name).write_bytes(content)
    said = refused({"d.jsonl": jsonl(GOOD)}, "d.jsonl", model=backbone)
    assert re.search(says, said) and "backbone" in said, said


def test_an_eos_that_the_tokenizer_lacks_is_refused_and_a_pad_token_never_needed(refused, backbone: Path) -> None:
    file = backbone / "tokenizer_config.json"
    settings = json.loads(file.read_text())
    settings.pop("eos_token")
    file.write_text(json.dumps(settings))
    said = refused({"d.jsonl": jsonl(GOOD)}, "d.jsonl", "--set", "data.eos=true", model=backbone)
    assert re.search("eos", said) and "; " in said, said


@pytest.mark.parametrize(
    "name", ["nobody/nothing", "no/such/folder", "./nothing", "x" * 300, "\u2603"], ids=lambda n: n[:20]
)
def test_a_backbone_that_is_nowhere_is_one_sentence(refused, name: str) -> None:
    said = refused({"d.jsonl": jsonl(GOOD)}, "d.jsonl", model=name)
    assert name[:20] in said and len(said) < 400, said


def test_no_backbone_is_said(refused) -> None:
    assert "model.name: no backbone is named; give --model" in refused({"d.jsonl": jsonl(GOOD)}, "d.jsonl", model=None)


# Places


def test_an_out_that_is_there_already_is_not_written_to(refused, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/mine.txt").write_text("mine")
    said = refused({"d.jsonl": jsonl(GOOD)}, "d.jsonl")
    assert "run: this folder exists already and is not empty; choose another --out" in said


@pytest.mark.parametrize("out", ["d.jsonl", "d.jsonl/run", "/proc/run", "x" * 300, "/dev/null", "/dev/null/run"])
def test_an_out_that_cannot_be_written_is_named(refused, out: str) -> None:
    assert out in refused({"d.jsonl": jsonl(GOOD)}, "d.jsonl", out=out)


def test_resume_touches_no_folder_that_no_training_began(typed, tmp_path: Path, tiny_folder: Path) -> None:
    (tmp_path / "d.jsonl").write_bytes(jsonl(GOOD))
    (tmp_path / "mine/work").mkdir(parents=True)
    (tmp_path / "mine/work/thesis.txt").write_text("mine")
    before = tree(tmp_path)
    for out in ("mine", "nothing"):
        words = ["--model", tiny_folder, "--out", tmp_path / out, "--resume", *QUICK]
        found = typed("train", tmp_path / "d.jsonl", *words)
        assert found.code == 1 and "there is no training to go on with; leave --resume out" in found.err
    assert tree(tmp_path) == before


def test_a_folder_that_is_being_written_is_refused(typed, tmp_path: Path, tiny_folder: Path) -> None:
    (tmp_path / "d.jsonl").write_bytes(jsonl(GOOD))
    words = ["train", tmp_path / "d.jsonl", "--model", tiny_folder, "--out", tmp_path / "run", *QUICK]
    with lock(tmp_path / "run"):
        for more in ([], ["--resume"]):
            found = typed(*words, *more)
            assert found.code == 1 and "is writing this run" in found.err and "; wait for it to end" in found.err
        assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [".lock", ".lock.pid"]


def test_two_trainings_in_one_process_do_not_share_a_folder(tmp_path: Path, tiny_folder: Path) -> None:
    rows, settings = GOOD, {"train.epochs": 1, "train.threads": 1, "lora.rank": 2}
    refusals: list[RunError] = []

    def listen(fact: object) -> None:
        if isinstance(fact, Step) and not refusals:
            with pytest.raises(RunError) as caught:
                train(rows, model=str(tiny_folder), out=tmp_path / "run", settings=settings, resume=True)
            refusals.append(caught.value)

    thread = threading.Thread(
        target=train,
        args=(rows,),
        kwargs={"model": str(tiny_folder), "out": tmp_path / "run", "settings": settings, "listen": listen},
    )
    thread.start()
    thread.join()
    assert len(refusals) == 1 and "is writing this run" in str(refusals[0])


# A full disk


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """The system refuses to let any file grow beyond `size` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_the_last_checkpoint_and_it_goes_on(tmp_path: Path, tiny_folder: Path) -> None:
    settings = {"train.epochs": 3, "train.batch_rows": 8, "train.threads": 1, "lora.rank": 2, "train.lr": 1e-2}

    def fit(out: str, **words: object) -> Path:
        return train(GOOD, model=str(tiny_folder), out=tmp_path / out, settings=settings, **words).folder

    def fill_up(fact: object) -> None:
        if isinstance(fact, Step) and fact.step == 4:
            disk.__enter__()

    disk = files_of_at_most(4096)
    try:
        with pytest.raises(RunError, match=r"checkpoint\.safetensors: cannot be written: File too large"):
            fit("full", listen=fill_up)
    finally:
        disk.__exit__(None, None, None)
    assert not list((tmp_path / "full").rglob("*.partial"))
    again, whole = fit("full", resume=True), fit("whole")
    for name in ("adapter/adapter_model.safetensors", "head.safetensors"):
        assert (again / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.parametrize(
    "name", ["adapter_model.safetensors", "head.safetensors", "metrics.json", "README.md", "format"]
)
def test_a_disk_that_is_full_at_the_end_leaves_a_training_to_go_on_with(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    settings = {"train.steps": 2, "train.batch_rows": 8, "train.threads": 1, "lora.rank": 2}
    write = Path.write_bytes

    def full(self: Path, data: bytes) -> int:
        if self.name == f".{name}.partial":
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, data)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(RunError, match=rf"{name}: cannot be written: No space left on device"):
            train(GOOD, model=str(tiny_folder), out=tmp_path / "run", settings=settings)
    train(GOOD, model=str(tiny_folder), out=tmp_path / "run", settings=settings, resume=True)


# Weights that run away


def test_a_training_that_runs_away_says_so(typed, tmp_path: Path, tiny_folder: Path) -> None:
    (tmp_path / "d.jsonl").write_bytes(jsonl(GOOD))
    words = ["--set", "train.lr=1e30", "--set", "train.clip=0.0", "--set", "train.warmup=0.0"]
    found = typed("train", tmp_path / "d.jsonl", "--model", tiny_folder, "--out", tmp_path / "run", *QUICK, *words)
    assert found.code == 1 and "no longer finite" in found.err.splitlines()[-1] and "train.lr" in found.err


def test_a_training_that_runs_away_late_keeps_its_best_weights(typed, tmp_path: Path, tiny_folder: Path) -> None:
    (tmp_path / "d.jsonl").write_bytes(jsonl(GOOD))
    words = [
        "--set",
        "train.lr=1e25",
        "--set",
        "train.clip=0.0",
        "--set",
        "train.warmup=0.0",
        "--set",
        "train.eval_every=1",
    ]
    found = typed("train", tmp_path / "d.jsonl", "--model", tiny_folder, "--out", tmp_path / "run", *QUICK, *words)
    assert found.code in (0, 1) and "Traceback" not in found.err
