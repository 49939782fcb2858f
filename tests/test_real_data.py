"""Real data as they lie: a small part of each set trained, answered, and scored as others would score the answers."""

import csv
import json
import random
import re
import shutil
from collections import Counter

import pytest
from seqeval.metrics import f1_score
from seqeval.scheme import IOB2
from sklearn import metrics as sk
from transformers import LlamaTokenizerFast
from typer.testing import CliRunner

import labeltune
from labeltune.cli import app
from labeltune.data.datasets import load, open_dataset
from labeltune.data.encoding import Encoder
from labeltune.data.settings import DataConfig

QUICK = {"train.threads": 1, "train.steps": 12, "train.batch_rows": 8, "train.lr": 1e-2, "lora.rank": 4}
AG = ["World", "Sports", "Business", "Sci/Tech"]
FINE = ["very negative", "negative", "neutral", "positive", "very positive"]
TEMPLATES = ["タイトル: {title}\n本文: {body}\nラベル: ", "タイトル: {title}\n本文: {body}", "{title}\n{body}"]

pytestmark = pytest.mark.slow


def some(items, count, seed=0):
    """A seeded part, in order."""
    chosen = sorted(random.Random(seed).sample(range(len(items)), count))
    return [items[number] for number in chosen]


def cut_lines(source, to, count):
    to.write_text("".join(some(source.read_text("utf-8").splitlines(keepends=True), count)), "utf-8")
    return to


def cut_sentences(source, to, count):
    to.write_text("\n\n".join(some(source.read_text("utf-8").strip().split("\n\n"), count)) + "\n", "utf-8")
    return to


def cut_folder(source, to, count):
    """`count` articles of each category, and the licences, which are no articles."""
    for folder in sorted(path for path in source.iterdir() if path.is_dir()):
        (to / folder.name).mkdir(parents=True)
        files = sorted(folder.glob(f"{folder.name}-*.txt"))
        for file in [*some(files, count), folder / "LICENSE.txt"]:
            shutil.copy(file, to / folder.name)
    return to


@pytest.fixture
def trained(shared, tmp_path):
    """A function: train on a part of a data set, with settings; dev and test are parts too."""

    def trained(train, *, dev, test, task=None, model=shared / "models" / "tinystories-656k", **more):
        settings = QUICK | {name.replace("__", "."): value for name, value in more.items()}
        return labeltune.train(
            train, dev=dev, test=test, model=str(model), task=task, out=tmp_path / "run", settings=settings
        )

    return trained


def answers(run, file, to, *flags):
    done = CliRunner().invoke(app, ["predict", str(run.folder), str(file), "--out", str(to), *flags])
    assert done.exit_code == 0, done.stderr
    return [json.loads(line) for line in to.read_text("utf-8").splitlines()]


def lines_of(path):
    return path.read_text("utf-8").splitlines()


def of_lines(*paths):
    return [line.split(" ", 1)[1] for path in paths for line in lines_of(path)]


def of_sentences(*paths):
    blocks = [block for path in paths for block in re.split(r"\n\s*\n", path.read_text("utf-8").strip())]
    return [" ".join(line.split("\t")[0] for line in block.splitlines()) for block in blocks]


def of_ag_news(train, test):
    with test.open(encoding="utf-8", newline="") as file:
        tested = [f"{title} {text}" for _, title, text in csv.reader(file)]
    return [json.loads(line)["text"] for line in lines_of(train)] + tested


def of_articles(folder):
    files = sorted(file for file in folder.glob("*/*.txt") if file.name != "LICENSE.txt")
    return ["\n".join(lines_of(file)[2:]) for file in files]


AS_THEY_LIE = {
    "sst, binary": (["sst/stsa.binary.train", "sst/stsa.binary.dev", "sst/stsa.binary.test"], of_lines, {}),
    "sst, fine": (["sst/stsa.fine.train", "sst/stsa.fine.dev", "sst/stsa.fine.test"], of_lines, {}),
    "ag_news": (
        ["ag_news/train_subset_derived.jsonl", None, "ag_news/test.csv"],
        of_ag_news,
        {
            "data.label_names": AG,
            "data.columns": ["label", "title", "description"],
            "data.template": "{title} {description}",
            "data.text": "text",
        },
    ),
    "wnut17": (
        [f"wnut17/{name}" for name in ("wnut17train.conll", "emerging.dev.conll", "emerging.test.annotated")],
        of_sentences,
        {},
    ),
    "livedoor": (["livedoor/text", None, None], of_articles, {}),
}
"""Train, dev and test; the texts read by plain code; settings."""


@pytest.mark.parametrize("name", AS_THEY_LIE)
def test_the_rows_are_those_of_the_readme_and_the_repeats_those_of_the_files(name, shared):
    files, read, settings = AS_THEY_LIE[name]
    paths = [None if file is None else shared / "data" / file for file in files]
    found = labeltune.inspect(paths[0], dev=paths[1], test=paths[2], settings=settings)
    rows = dict(found.rows)
    if paths[1] is None:
        rows["train"] += rows.pop("dev")
    readme = (shared / "data" / "README.md").read_text("utf-8")
    told = {"ag_news": "test {test:,}; train subset {train:,} ", "livedoor": "{train:,} articles"}
    assert told.get(name, "{train:,}/{dev:,}/{test:,}").format(**rows) in readme
    if name == "livedoor":
        labels = sum(map(Counter, found.labels.values()), Counter())
        assert ", ".join(f"{label} {count}" for label, count in sorted(labels.items())) in readme
    texts = [" ".join(text.casefold().split()) for text in read(*filter(None, paths))]
    parts = [texts[sum(list(rows.values())[:n]) :][:count] for n, count in enumerate(rows.values())]
    repeats = sum(finding.count for finding in found.findings if finding.kind == "duplicates")
    assert len(texts) == sum(rows.values())
    assert repeats == sum(len(part) - len(set(part)) for part in parts)


@pytest.mark.parametrize(
    ("kind", "task", "more"),
    [
        ("binary", None, {"data__label_names": ["negative", "positive"]}),
        ("fine", None, {"data__label_names": FINE}),
        ("fine", "ordinal", {"data__label_names": FINE, "data__label_order": FINE}),
        ("fine", "regression", {}),
    ],
)
def test_sst_is_trained_and_scored(trained, shared, tmp_path, kind, task, more):
    folder = shared / "data" / "sst"
    parts = {
        name: cut_lines(folder / f"stsa.{kind}.{name}", tmp_path / f"sst.{name}", 120)
        for name in ("train", "dev", "test")
    }
    run = trained(parts["train"], dev=parts["dev"], test=parts["test"], task=task, **more)
    found = answers(run, parts["test"], tmp_path / "out.jsonl")
    gold = [line.split(" ", 1)[0] for line in parts["test"].read_text("utf-8").splitlines()]
    if task == "regression":
        mse = sk.mean_squared_error([float(number) for number in gold], [row["value"] for row in found])
        assert run.metrics["test"]["mse"] == pytest.approx(mse, rel=1e-5)
    else:
        names = more["data__label_names"]
        accuracy = sk.accuracy_score([names[int(number)] for number in gold], [row["label"] for row in found])
        assert run.metrics["test"]["accuracy"] == pytest.approx(accuracy)


def test_ag_news_is_trained_and_scored(trained, shared, tmp_path):
    folder = shared / "data" / "ag_news"
    train = cut_lines(folder / "train_subset_derived.jsonl", tmp_path / "train.jsonl", 160)
    test = cut_lines(folder / "test.csv", tmp_path / "test.csv", 80)
    run = trained(
        train,
        dev=0.25,
        test=test,
        data__label_names=AG,
        data__columns=["label", "title", "description"],
        data__template="{title} {description}",
        data__text="text",
    )
    found = answers(run, test, tmp_path / "out.jsonl")
    with test.open(encoding="utf-8", newline="") as file:
        gold = [AG[int(row[0]) - 1] for row in csv.reader(file)]
    expected = sk.f1_score(gold, [row["label"] for row in found], average="macro", zero_division=0)
    assert run.metrics["test"]["macro_f1"] == pytest.approx(expected)


def test_wnut17_is_trained_and_scored(trained, shared, tmp_path):
    folder = shared / "data" / "wnut17"
    train = cut_sentences(folder / "wnut17train.conll", tmp_path / "train.conll", 300)
    dev, test = (
        cut_sentences(folder / name, tmp_path / f"{name}.conll", 100)
        for name in ("emerging.dev.conll", "emerging.test.annotated")
    )
    run = trained(train, dev=dev, test=test, train__steps=60, train__lr=2e-2)
    found = answers(run, test, tmp_path / "out.jsonl")
    gold = [
        [line.split("\t") for line in block.splitlines()] for block in test.read_text("utf-8").strip().split("\n\n")
    ]
    tags = [_tags([token for token, _ in rows], row["spans"]) for rows, row in zip(gold, found, strict=True)]
    expected = f1_score([[tag for _, tag in rows] for rows in gold], tags, mode="strict", scheme=IOB2, zero_division=0)
    assert run.metrics["test"]["span_f1"] == pytest.approx(expected)


def _tags(tokens, spans):
    """IOB2 from spans of characters in the tokens joined by spaces."""
    tags, start = [], 0
    for token in tokens:
        span = next((span for span in spans if span["start"] <= start < span["end"]), None)
        tags.append("O" if span is None else ("B-" if span["start"] == start else "I-") + span["label"])
        start += len(token) + 1
    return tags


@pytest.mark.parametrize("long", ["window", "truncate"])
def test_livedoor_is_trained_and_scored_from_its_folder(trained, tiny_folder, shared, tmp_path, long):
    folder = cut_folder(shared / "data" / "livedoor" / "text", tmp_path / "text", 4)
    how = {"data__template": "{title}\n{body}", "data__normal_form": "NFKC", "data__max_windows": 200}
    run = trained(folder, dev=0.25, test=0.25, model=tiny_folder, data__long=long, train__steps=2, **how)
    facts = json.loads((run.folder / "splits.json").read_text())
    assert {name: split["rows"] for name, split in facts.items()} == {"train": 18, "dev": 9, "test": 9}
    test = load(run.config.data, run.config.task, seed=42).test
    assert [example.id for example in test] == facts["test"]["ids"]
    answered = labeltune.load(run.folder).predict([dict(example.fields) for example in test])
    expected = sk.accuracy_score([example.label for example in test], [answer.label for answer in answered])
    assert run.metrics["test"]["accuracy"] == pytest.approx(expected)
    assert ("lost" in run.metrics["test"]) == (long == "truncate")


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_long_article_keeps_the_templates_beginning_and_end(shared, template):
    """The three templates of the llm-lora-classification recipes, whose suffix fell off long texts there."""
    settings = DataConfig(template=template, long="truncate")
    folder = shared / "data" / "livedoor" / "text"
    example = next(
        one for one in open_dataset(folder, settings, None, labelled=False, name="all") if len(one.text) > 900
    )
    tokenizer = LlamaTokenizerFast.from_pretrained(shared / "models" / "llama2-tokenizer")
    encoder = Encoder(tokenizer, config=settings, max_tokens=512, targets="document", label_of=lambda row, spans: [0])
    encoded = encoder.encode(example)
    read = tokenizer.decode(encoded.tokens, skip_special_tokens=True)
    title, suffix = str(example.fields["title"]), template.rpartition("}")[2]
    assert len(encoded.tokens) <= 512 and encoded.dropped_characters > 0
    assert read.startswith(template.partition("{")[0] + title)
    assert read.endswith(suffix) and (not suffix or suffix == "\nラベル: ")
