"""Whatever people have, from one end to the other: every form trains alike, every task scores as scikit-learn does."""

import gzip
import json
import lzma
import re
import tomllib

import datasets
import numpy as np
import pandas
import pyarrow.parquet as pq
import pytest
import torch
import zstandard
from pyarrow import Table
from safetensors.numpy import load_file
from scipy.stats import spearmanr
from sklearn import metrics as sk
from transformers import AutoConfig
from typer.testing import CliRunner

import labeltune
from labeltune.assembly import untested
from labeltune.cli import app
from labeltune.config import describe, make
from labeltune.errors import DataError
from labeltune.facts import Said
from labeltune.model.lora import Adapter
from labeltune.recipe import MAIN, draft_recipe
from labeltune.training.settings import default_lr

COLOURS = ("blue", "green", "red")
ROWS = [{"text": f"the {colour} thing number {n}", "label": colour} for colour in COLOURS for n in range(8)]
QUICK = {"train.threads": 1, "train.steps": 2, "train.batch_rows": 8, "lora.kind": "none", "data.max_tokens": 64}


def train(data, model, out, *, dev=ROWS, said=None, **more):
    """A short training of the head alone, unless `more` says otherwise; `section__name` is a setting."""
    settings = QUICK | {name.replace("__", "."): value for name, value in more.items() if "__" in name}
    rest = {name: value for name, value in more.items() if "__" not in name}
    listen = (lambda fact: said.append(fact.text) if isinstance(fact, Said) else None) if said is not None else None
    heard = {"listen": listen} if listen else {}
    return labeltune.train(data, dev=dev, model=str(model), out=out, settings=settings, **heard, **rest)


def thirds(rows):
    """Training, dev and test rows."""
    return rows[::2], rows[1::4], rows[3::4]


def head(run):
    return load_file(run.folder / "head.safetensors")


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def command(*words):
    return CliRunner().invoke(app, list(map(str, words)), catch_exceptions=False)


# Forms of data


def _table(separator):
    lines = [f"text{separator}label", *(f"{row['text']}{separator}{row['label']}" for row in ROWS)]
    return ("\n".join(lines) + "\n").encode()


LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
FILES = {
    "rows.jsonl": LINES,
    "rows.json": json.dumps(ROWS).encode(),
    "rows.jsonl.gz": gzip.compress(LINES),
    "rows.jsonl.xz": lzma.compress(LINES),
    "rows.jsonl.zst": zstandard.compress(LINES),
    "rows.csv": _table(","),
    "rows.tsv": _table("\t"),
    "rows.csv.gz": gzip.compress(_table(",")),
    "rows.txt": "".join(f"{row['label']} {row['text']}\n" for row in ROWS).encode(),
}


def _folder(path):
    for number, row in enumerate(ROWS):
        (path / row["label"]).mkdir(parents=True, exist_ok=True)
        (path / row["label"] / f"{number:02}.txt").write_text(row["text"])
    return path


def _parquet(path):
    path.parent.mkdir()
    pq.write_table(Table.from_pylist(ROWS), path)
    return path


def _saved(path):
    datasets.Dataset.from_list(ROWS).save_to_disk(path)
    return path


def _tables(path):
    path.mkdir(parents=True)
    files = {colour: path / f"{colour}.txt" for colour in COLOURS}
    for colour, file in files.items():
        file.write_text("".join(row["text"] + "\n" for row in ROWS if row["label"] == colour))
    return {colour: str(file) for colour, file in files.items()}


FORMS = {
    **{
        name: lambda path, content=content, name=name: _written(path / name, content) for name, content in FILES.items()
    },
    "folder": lambda path: _folder(path / "folder"),
    "parquet": lambda path: _parquet(path / "rows.parquet"),
    "saved data set": lambda path: _saved(path / "saved"),
    "a file per label": lambda path: _tables(path / "files"),
    "data frame": lambda path: pandas.DataFrame(ROWS),
    "data set": lambda path: datasets.Dataset.from_list(ROWS),
    "texts and labels": lambda path: ([row["text"] for row in ROWS], [row["label"] for row in ROWS]),
    "pairs": lambda path: [(row["text"], row["label"]) for row in ROWS],
}


def _written(path, content):
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.fixture(scope="module")
def trained_on_a_list(tiny_folder, tmp_path_factory):
    return train(ROWS, tiny_folder, tmp_path_factory.mktemp("list") / "run")


@pytest.mark.parametrize("form", ["rows.jsonl.zst", "rows.tsv", "folder", "parquet", "saved data set"])
def test_every_form_of_the_rows_trains_the_same_head(form, tiny_folder, trained_on_a_list, tmp_path):
    _same_head(form, tiny_folder, trained_on_a_list, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_every_form_whatsoever_trains_the_same_head(form, tiny_folder, trained_on_a_list, tmp_path):
    _same_head(form, tiny_folder, trained_on_a_list, tmp_path)


def _same_head(form, tiny_folder, expected, tmp_path):
    data = FORMS[form](tmp_path / "data")
    given = {"data__train": data, "data": None} if isinstance(data, dict) else {"data": data}
    found = train(given.pop("data"), tiny_folder, tmp_path / "run", **given)
    assert found.labels.names == COLOURS
    assert head(found)["head.weight"].tobytes() == head(expected)["head.weight"].tobytes()


def test_named_splits_of_a_data_set_are_taken_by_name(tiny_folder, tmp_path):
    parts = {"train": ROWS[::2], "validation": ROWS[1::4], "test": ROWS[3::4]}
    datasets.DatasetDict({name: datasets.Dataset.from_list(rows) for name, rows in parts.items()}).save_to_disk(
        tmp_path / "saved"
    )
    run = train(str(tmp_path / "saved"), tiny_folder, tmp_path / "run", dev="validation", test="test")
    facts = json.loads((run.folder / "splits.json").read_text())
    assert {name: split["rows"] for name, split in facts.items()} == {"train": 12, "dev": 6, "test": 6}


def test_fractions_part_the_rows_and_keep_groups_together(tiny_folder, tmp_path):
    rows = [{**row, "author": f"a{number % 12}"} for number, row in enumerate(ROWS)]
    run = train(rows, tiny_folder, tmp_path / "run", dev=0.25, test=0.25, data__group="author")
    facts = json.loads((run.folder / "splits.json").read_text())
    held_out = {name: {int(id_[6:-1]) for id_ in facts[name]["ids"]} for name in ("dev", "test")}
    parts = [*held_out.values(), set(range(len(rows))) - held_out["dev"] - held_out["test"]]
    assert sum(map(len, parts)) == len(rows) == sum(split["rows"] for split in facts.values())
    authors = [{rows[number]["author"] for number in part} for part in parts]
    assert not (authors[0] & authors[1] or authors[0] & authors[2] or authors[1] & authors[2])


@pytest.mark.parametrize("policy", ["skip", "quarantine"])
def test_rows_that_cannot_be_used_are_counted_and_the_counts_add_up(policy, tiny_folder, tmp_path):
    broken = ['{"text": "no label"}', "not json", '{"text": "", "label": "red"}']
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join([broken[0], *(json.dumps(row) for row in ROWS), *broken[1:]]) + "\n")
    said = []
    run = train(path, tiny_folder, tmp_path / "run", dev=0.25, said=said, data__on_bad_row=policy)
    facts = json.loads((run.folder / "splits.json").read_text())
    assert run.metrics["train"]["bad_rows"] == 3
    assert facts["train"]["rows"] + facts["dev"]["rows"] == len(ROWS)
    assert "3 rows could not be used" in said[-1]
    quarantine = run.folder / "quarantine.jsonl"
    assert quarantine.exists() == (policy == "quarantine")
    if quarantine.exists():
        kept = [json.loads(line) for line in quarantine.read_text().splitlines()]
        assert [row["at"] for row in kept] == ["rows.jsonl:1", "rows.jsonl:26", "rows.jsonl:27"]


def test_new_rows_are_passed_over_only_when_that_is_asked_for(tiny_folder, tmp_path):
    run = train(ROWS, tiny_folder, tmp_path / "run", data__on_bad_row="skip")
    path = write_jsonl(tmp_path / "new.jsonl", [ROWS[0], {"text": None, "label": "red"}, ROWS[-1]])
    with pytest.raises(DataError, match=r"new\.jsonl:2: the row has no text"):
        labeltune.evaluate(run.folder, path)
    with pytest.raises(DataError, match=r"texts\[1\]"):
        labeltune.load(run.folder).predict(["one", "", "three"])
    assert "bad_rows" not in labeltune.evaluate(run.folder, ROWS).metrics
    skip = {"data.on_bad_row": "skip"}
    assert labeltune.evaluate(run.folder, path, settings=skip).metrics["bad_rows"] == 1
    answered = command("predict", run.folder, path, "--on-bad-row", "skip")
    assert len(answered.stdout.splitlines()) == 2 and "1 row could not be used" in answered.stderr


def test_a_lone_text_stands_in_the_only_field_of_the_template(tiny_folder, tmp_path):
    run = train(ROWS, tiny_folder, tmp_path / "run", data__template="say: {text} label:")
    predictor = labeltune.load(run.folder)
    lone, row = predictor.predict(ROWS[0]["text"], scores=True), predictor.predict([ROWS[0]], scores=True)
    assert dict(lone[0].scores) == dict(row[0].scores)


def test_a_template_of_two_fields_asks_for_both(tiny_folder, tmp_path):
    rows = [{"title": "a", **row} for row in ROWS]
    run = train(rows, tiny_folder, tmp_path / "run", dev=rows, data__template="{title}: {text}")
    with pytest.raises(DataError, match="title"):
        labeltune.load(run.folder).predict("a lone text")
    assert labeltune.load(run.folder).predict([{"title": "a", "text": "b"}])


def test_training_begins_with_the_linter_in_short(tiny_folder, tmp_path):
    said = []
    train([*ROWS, {"text": ROWS[0]["text"], "label": "red"}], tiny_folder, tmp_path / "run", said=said)
    assert any(line.startswith("warning: train: 1 text carries different labels in 2 rows") for line in said)


# Recipes


def test_a_recipe_trains_as_the_flags_do(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "rows.jsonl", ROWS)
    recipe = command("init", "rows.jsonl", "--model", tiny_folder, *_sets(QUICK)).stdout
    (tmp_path / "recipe.toml").write_text(recipe)
    monkeypatch.chdir("/")  # paths are relative to the file
    assert command("train", tmp_path / "recipe.toml", "--out", tmp_path / "recipe").exit_code == 0
    flags = ["--model", tiny_folder, "--out", tmp_path / "flags", *_sets(QUICK)]
    assert command("train", tmp_path / "rows.jsonl", *flags).exit_code == 0
    command("train", tmp_path / "flags" / "config.toml", "--out", tmp_path / "again")
    first, *others = (load_file(tmp_path / name / "head.safetensors") for name in ("recipe", "flags", "again"))
    assert all(np.array_equal(first["head.weight"], other["head.weight"]) for other in others)


def _sets(settings):
    return [word for name, value in settings.items() for word in ("--set", f"{name}={json.dumps(value)}")]


KINDS = {
    "classification": ROWS,
    "multilabel": [{"text": f"number {n}", "labels": ["x", "y"][: n % 3]} for n in range(24)],
    "regression": [{"text": f"number {n}", "score": n / 3} for n in range(24)],
    "ordinal": ROWS,
    "tagging": [{"text": f"see Rome {n}", "spans": [{"start": 4, "end": 8, "label": "place"}]} for n in range(24)],
}


@pytest.mark.parametrize("task", KINDS)
def test_every_line_of_a_recipe_is_a_setting_that_can_be_changed(task, tmp_path):
    order = {"data.label_order": list(COLOURS)} if task == "ordinal" else {}
    recipe = draft_recipe(write_jsonl(tmp_path / "rows.jsonl", KINDS[task]), task=task, settings=order)
    assert make(tomllib.loads(recipe)).task == task
    open_lines = re.findall(r"^# (\w+ = .*)$", recipe, re.MULTILINE)
    assert len(open_lines) > 30
    for line in open_lines:
        make(tomllib.loads(recipe.replace(f"\n# {line}\n", f"\n{line}\n", 1)))


@pytest.mark.parametrize(("batch", "epochs"), [({}, 500), ({"train.batch_tokens": 500}, 5)])
def test_a_recipe_shows_how_long_its_rows_are_trained_on(tmp_path, batch, epochs):
    recipe = draft_recipe(write_jsonl(tmp_path / "rows.jsonl", ROWS[:24]), dev=0.1, settings=batch)
    assert f"# epochs = {epochs}\n" in recipe


def test_recipes_show_settings_that_exist():
    known = {name for name, *_ in describe()}
    assert {f"{section}.{key}" for section, keys in MAIN.items() for key in keys.split()} <= known


# Tasks, scored from the predictions that were written


def _written_predictions(run, rows, tmp_path, *flags):
    path = write_jsonl(tmp_path / "new.jsonl", rows)
    assert command("predict", run.folder, path, "--out", tmp_path / "out.jsonl", *flags).exit_code == 0
    return [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]


def _averages(gold, found, labels=None):
    average = {"macro_f1": "macro", "micro_f1": "micro", "weighted_f1": "weighted"}
    return {
        name: sk.f1_score(gold, found, average=how, zero_division=0, labels=labels) for name, how in average.items()
    }


LEARN = {"train__steps": 30, "train__lr": 0.05}


def test_single_labels_score_as_scikit_learn_does(tiny_folder, tmp_path):
    rows, dev, test = thirds(ROWS)
    run = train(rows, tiny_folder, tmp_path / "run", dev=dev, test=test, **LEARN)
    found = _written_predictions(run, test, tmp_path, "--scores")
    gold, labels = [row["input_label"] for row in found], [row["label"] for row in found]
    probabilities = np.array([[row["scores"][colour] for colour in COLOURS] for row in found], dtype=np.float64)
    expected = _averages(gold, labels) | {
        "accuracy": sk.accuracy_score(gold, labels),
        "mcc": sk.matthews_corrcoef(gold, labels),
        "log_loss": sk.log_loss(gold, probabilities / probabilities.sum(1, keepdims=True)),
    }
    figures = run.metrics["test"]
    assert {name: figures[name] for name in expected} == pytest.approx(expected, abs=1e-6)


def test_label_sets_score_as_scikit_learn_does(tiny_folder, tmp_path):
    rows, dev, test = thirds(
        [{"text": f"{' '.join(some)} {n}", "labels": some} for n in range(8) for some in _subsets(COLOURS)]
    )
    run = train(rows, tiny_folder, tmp_path / "run", dev=dev, test=test, **LEARN)
    assert run.config.task == "multilabel" and len(run.decision["thresholds"]) == 3
    found = _written_predictions(run, test, tmp_path)
    gold, answers = (
        np.array([[c in row[key] for c in COLOURS] for row in found]) for key in ("input_labels", "labels")
    )
    expected = _averages(gold, answers) | {"accuracy": sk.accuracy_score(gold, answers)}
    figures = run.metrics["test"]
    assert {name: figures[name] for name in expected} == pytest.approx(expected, abs=1e-6)


def _subsets(names):
    return [[name for bit, name in enumerate(names) if number >> bit & 1] for number in range(1, 2 ** len(names))]


def test_numbers_score_as_scikit_learn_and_scipy_do(tiny_folder, tmp_path):
    rows, dev, test = thirds([{"text": f"{'the ' * (n % 7)} {n}", "score": float(n % 7)} for n in range(28)])
    run = train(rows, tiny_folder, tmp_path / "run", dev=dev, test=test, **LEARN, task="regression")
    found = _written_predictions(run, test, tmp_path)
    gold, values = ([row[key] for row in found] for key in ("score", "value"))
    expected = {"mse": sk.mean_squared_error(gold, values), "spearman": spearmanr(gold, values).statistic}
    assert {name: run.metrics["test"][name] for name in expected} == pytest.approx(expected, abs=1e-5)
    assert labeltune.evaluate(run.folder, test, errors=tmp_path / "wrong.jsonl").wrong == len(test)
    wrong = [json.loads(line) for line in (tmp_path / "wrong.jsonl").read_text().splitlines()]
    distances = [abs(gold - value) for gold, value in zip(gold, values, strict=True)]
    assert [abs(row["gold"] - row["value"]) for row in wrong] == pytest.approx(sorted(distances, reverse=True))


def test_ordered_labels_score_as_scikit_learn_does(tiny_folder, tmp_path):
    rows, dev, test = thirds(ROWS)
    settings = LEARN | {"task": "ordinal", "data__label_order": ["red", "blue", "green"]}
    run = train(rows, tiny_folder, tmp_path / "run", dev=dev, test=test, **settings)
    found = _written_predictions(run, test, tmp_path)
    gold, labels = [row["input_label"] for row in found], [row["label"] for row in found]
    figures = run.metrics["test"]
    assert run.labels.names == ("red", "blue", "green")
    assert figures["accuracy"] == pytest.approx(sk.accuracy_score(gold, labels))
    assert all(0 <= row["value"] <= 2 for row in found)


# Decisions


def test_min_score_abstains_and_leaves_the_other_answers(tiny_folder, trained_on_a_list, tmp_path):
    everything = _written_predictions(trained_on_a_list, ROWS, tmp_path)
    (tmp_path / "out.jsonl").unlink()
    bar = float(np.median([row["score"] for row in everything]))
    some = _written_predictions(trained_on_a_list, ROWS, tmp_path, "--min-score", bar)
    kept = [row["label"] if row["score"] >= bar else None for row in everything]
    assert [row["label"] for row in some] == kept and None in kept


# Quantised backbones


@pytest.mark.slow
@pytest.mark.parametrize("bits", ["int8", "nf4"])
def test_a_quantised_backbone_trains_saves_reloads_and_answers(bits, shared, tmp_path):
    model = shared / "models" / "tinystories-656k"
    settings = {"lora__kind": "lora", "lora__rank": 4, "model__quantization": bits}
    run = train(ROWS, model, tmp_path / "run", dev=ROWS, **settings)
    predictor = labeltune.load(run.folder)
    saved = load_file(run.folder / "adapter" / "adapter_model.safetensors")
    Adapter.load(run.folder / "adapter").save(tmp_path / "copy")
    again = load_file(tmp_path / "copy" / "adapter_model.safetensors")
    assert saved.keys() == again.keys() and all(np.array_equal(saved[name], again[name]) for name in saved)
    assert labeltune.evaluate(run.folder, ROWS).metrics["log_loss"] == pytest.approx(run.metrics["dev"]["log_loss"])
    assert predictor.predict("the red thing")[0].label in COLOURS
    assert run.metrics["train"]["peak_memory_gib"] > 0


# Continuing


def test_init_keeps_the_rows_of_known_labels_and_says_what_is_new(tiny_folder, trained_on_a_list, tmp_path):
    rows = [{**row, "label": {"red": "yellow"}.get(row["label"], row["label"])} for row in ROWS]
    said = []
    run = train(
        rows, tiny_folder, tmp_path / "run", dev=rows, init=trained_on_a_list.folder, said=said, train__lr=1e-30
    )
    before, after = head(trained_on_a_list)["head.weight"], head(run)["head.weight"]
    assert run.labels.names == ("blue", "green", "yellow")
    assert np.array_equal(before[:2], after[:2]) and not np.array_equal(before[2], after[2])
    assert any("kept blue, green; new yellow; dropped red" in line for line in said)


# Devices


def test_a_platform_that_was_never_tried_is_named():
    assert untested(torch.device("cpu"), "Linux") is None and untested(torch.device("cuda", 0), "Linux") is None
    assert "mps on Darwin" in untested(torch.device("mps"), "Darwin")
    assert "cpu on Windows" in untested(torch.device("cpu"), "Windows")


def test_a_draft_shows_the_learning_rate_of_the_backbone_at_hand(tmp_path, tiny_folder):
    data = write_jsonl(tmp_path / "rows.jsonl", ROWS[:24])
    rates = [
        next(line for line in draft_recipe(data, model=model).splitlines() if line.startswith("# lr = "))
        for model in ("mini", str(tiny_folder), "owner/name")
    ]
    assert rates[0].startswith("# lr = 0.0032") and rates[2].startswith("# lr = 0.0002")
    assert rates[1].startswith(f"# lr = {default_lr(AutoConfig.from_pretrained(tiny_folder).hidden_size, full=False)}")
