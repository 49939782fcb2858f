"""The papers' recipes: all parse, their arithmetic is the papers', each format trains, nothing is compared wrongly."""

import csv
import json
import random
import shutil
import tomllib
from pathlib import Path

import numpy as np
import pytest

from labeltune import DataError, RunError, SettingsError
from labeltune.config import make
from labeltune.data.readers import open_source
from labeltune.data.readers.trees import parse_tree
from labeltune.interrupt import Interrupted
from labeltune.keys import Key
from labeltune.model.ranges import parse_layers
from labeltune.recipes import reproducing
from labeltune.recipes.book import CLEAN, PUBLISHED, Recipe, find, of_source, recipes
from labeltune.recipes.reproducing import reproduce
from labeltune.recipes.running import Outcome, run_recipe
from labeltune.recipes.sources import sources
from labeltune.recipes.table import LAYOUTS, Line, as_in_the_paper
from labeltune.run import open_run
from labeltune.sweeps.axes import grids_of
from labeltune.sweeps.sweeping import read_sweep
from labeltune.sweeps.tables import check_table
from labeltune.training.optimiser import warmup_steps
from labeltune.training.order import Order

QUICK = {"train.epochs": 1, "train.threads": 1, "lora.rank": 2, "model.dtype": "fp32", "model.quantization": "none",
         "model.checkpointing": "off", "lora.targets": None}  # fmt: skip


@pytest.mark.parametrize("name", recipes())
def test_every_recipe_is_settings_that_hold(name: str) -> None:
    recipe = recipes()[name]
    config = make({"task": recipe.data.task, **nested(recipe.settings)})
    assert config.model.name != "" and (recipe.metric == "span_f1") == (config.task == "tagging")
    assert tomllib.loads(recipe.to_toml())["recipe"] == name
    assert f"labeltune train --recipe {name}" in recipe.to_toml()
    assert ("expected: not known" in recipe.to_toml()) == (recipe.expected is None)
    if recipe.data.hub is not None:
        make({**nested(recipe.rows(None)), "task": recipe.data.task})


def nested(values: dict) -> dict:
    tree: dict = {}
    for name, value in values.items():
        section, key = name.split(".")
        tree.setdefault(section, {})[key] = value
    return tree


def test_all_that_the_papers_ran_is_there() -> None:
    names = {name.partition("@")[0] for name in recipes()}
    for data in ("sst2", "sst5", "agnews", "twitterfin", "amazon", "conll2003", "ontonotes5", "wnut17"):
        assert {f"{m}-{s}/{data}" for m in ("ls-llama", "ls-unllama") for s in ("7b", "13b")} <= names
        assert {f"bert-large/{data}", f"roberta-large/{data}"} <= names
    assert "luke-japanese-large-lite/livedoor" in names
    assert len([n for n in names if n.startswith("lora-")]) == 7
    assert len([n for n in names if n.startswith("mask-groups-llama-2-7b/conll2003-")]) == 16
    for name in names:
        assert {f"{name}@published", f"{name}@clean"} <= recipes().keys()


@pytest.mark.parametrize(
    ("name", "rows", "steps", "warmup"),
    [  # rows over batch, rounded up, times epochs; llm-lora-classification warms up for one epoch of ten
        ("ls-llama-7b/sst2@published", 67349, 84190, 0),
        ("ls-unllama-7b/sst2@published", 67349, 168380, 0),
        ("ls-llama-13b/agnews@published", 120000, 150000, 0),
        ("ls-unllama-7b/sst5@published", 8544, 21360, 0),
        ("ls-llama-7b/twitterfin@published", 9543, 11930, 0),
        ("ls-unllama-7b/conll2003@published", 14041, 17560, 0),
        ("ls-unllama-7b/ontonotes5@published", 59924, 74910, 0),
        ("ls-unllama-7b/wnut17@published", 3394, 4250, 0),
        ("lora-rinna-3.6b/livedoor@published", 5895, 1850, 185),
        ("luke-japanese-large-lite/livedoor@published", 5895, 7380, 738),
    ],
)
def test_steps_and_warm_up_are_the_papers(name: str, rows: int, steps: int, warmup: int) -> None:
    recipe = find(name)
    assert recipe.steps(rows) == (steps, warmup)
    config = make(nested({k: v for k, v in recipe.settings.items() if k.startswith("train.")})).train
    assert Order(np.ones(rows, np.int64), config, Key.of(1)).total == steps  # the loop agrees
    counts = recipe.data.rows.get(recipe.data.published_rows or "", (rows,))
    assert counts[0] == rows


def test_the_settings_of_ls_llama_are_the_papers() -> None:
    masked, unmasked = find("ls-llama-7b/sst2@published").settings, find("ls-unllama-7b/sst2@published").settings
    token = find("ls-unllama-7b/conll2003@published").settings
    for settings in (masked, unmasked, token):
        assert (settings["lora.rank"], settings["lora.alpha"], settings["lora.dropout"]) == (12, 32, 0.1)
        assert settings["lora.targets"] == ["q_proj", "v_proj"]
        assert (settings["train.batch_rows"], settings["data.max_tokens"], settings["train.warmup"]) == (8, 64, 0)
    assert (masked["train.lr"], masked["train.epochs"], masked["model.pooling"]) == (5e-5, 10, "last")
    assert (unmasked["train.lr"], unmasked["train.epochs"], unmasked["model.pooling"]) == (1e-4, 20, "max")
    assert unmasked["model.pool_on"] == "logits" and unmasked["data.pad_as_text"] == "block:1000"
    assert (token["train.lr"], token["train.epochs"], token["head.dropout"], token["head.bias"]) == (
        1e-4,
        10,
        0.1,
        True,
    )
    assert find("ls-unllama-7b/amazon@published").settings["data.max_tokens"] == 200


DEFECTS = ("eval.reported", "eval.truncate_gold", "data.pad_as_text", "data.tag_starts_only")


def test_published_has_the_papers_defects_by_name_and_clean_has_none() -> None:
    assert find("ls-unllama-7b/ontonotes5@published").settings["data.tag_starts_only"] is True
    assert find("ls-unllama-7b/ontonotes5@published").settings["eval.truncate_gold"] is True
    for recipe in recipes().values():
        if recipe.protocol == CLEAN:
            assert not set(DEFECTS) & recipe.settings.keys() and recipe.settings.get("data.long") != "truncate"
            assert len(recipe.seeds) == 5
        elif recipe.source == "ls-llama":
            assert recipe.settings["eval.reported"] == "dev"


def test_mask_groups_are_the_sixteen_ways() -> None:
    found = {r.settings["model.unmask"] for r in of_source("mask-groups")}
    layers = {parse_layers(words, 32, at="model.unmask") for words in found}
    groups = {tuple(bool(bits >> g & 1) for g in range(4) for _ in range(8)) for bits in range(16)}
    assert len(found) == 16 and layers == groups  # four groups of eight blocks, as published
    words = find("mask-groups-llama-2-7b/conll2003-1010").settings["model.unmask"]
    assert parse_layers(words, 32, at="") == (True,) * 8 + (False,) * 8 + (True,) * 8 + (False,) * 8
    assert parse_layers(words, 4, at="") == (True, False, True, False)


def test_steps_and_warm_up_are_those_of_the_loop() -> None:
    recipe = find("mask-groups-mistral-7b/conll2003-0110@clean")
    config = recipe.config(None, data__train="x").train
    total = Order(np.ones(14041, np.int64), config, Key.of(1)).total
    assert recipe.steps(14041) == (total, warmup_steps(config.warmup, total)) == (4390, 264)


# Fixtures in the sources' own formats


TOPICS = {"World": "treaty border minister", "Sports": "match goal coach", "Business": "market shares profit",
          "Sci/Tech": "chip rocket software"}  # fmt: skip
FILLERS = "the a new old big small said told showed on in of after before".split()
PERSONS, PLACES = ["Ada", "Ben Kline", "Cora"], ["Upton", "Lower Fell", "Marsh"]


def sentence(random_: random.Random, words: str) -> str:
    chosen = [random_.choice(words.split()), *random_.choices(FILLERS, k=random_.randint(3, 8))]
    random_.shuffle(chosen)
    return " ".join(chosen)


def tagged(random_: random.Random) -> list[tuple[str, str]]:
    kind, names = random_.choice([("PER", PERSONS), ("LOC", PLACES)])
    name = random_.choice(names).split()
    words = [(word, "O") for word in random_.choices(FILLERS, k=random_.randint(2, 6))]
    at = random_.randint(0, len(words))
    return [*words[:at], *((w, f"{'I' if i else 'B'}-{kind}") for i, w in enumerate(name)), *words[at:]]


def texts(seed: int, count: int, labels: dict[str, str]) -> list[tuple[str, str]]:
    random_ = random.Random(seed)
    names = [name for _ in range(count) for name in labels][:count]
    return [(name, sentence(random_, labels[name])) for name in names]


def write_rows(path: Path, rows: list, delimiter: str = ",", header: list[str] | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerows([header, *rows] if header else rows)


def tree(label: str, text: str) -> str:
    words = [f"(2 {word})" for word in text.split()]
    inside = words[0]
    for word in words[1:]:
        inside = f"(2 {inside} {word})"
    return f"({label}{inside[2:]}" if len(words) > 1 else f"({label} {inside})"


def bio(path: Path, seed: int, count: int, form: str) -> None:
    random_ = random.Random(seed)
    lines = ["-DOCSTART- -X- O O", ""] if form == "conll" else []
    for _ in range(count):
        for word, tag in tagged(random_):
            lines.append(f"{word} NN B-NP {tag}" if form == "conll" else f"{word}\t{tag}")
        lines.append("")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def fixture(name: str, folder: Path) -> Path:
    """Some fifty rows of a data set in its source's own format, in our own words."""
    place = folder / name
    place.mkdir(parents=True)
    splits = (("train", 1, 34), ("dev", 2, 8), ("test", 3, 8))
    moods = {"0": "dull bad weak", "1": "fine warm bright"}
    five = {str(n): words for n, words in enumerate(["awful dire", "weak dull", "plain even", "good warm", "superb"])}
    if name == "sst2":
        for split, seed, count in splits[:2]:
            write_rows(
                place / f"{split}.tsv", [(t, y) for y, t in texts(seed, count, moods)], "\t", ["sentence", "label"]
            )
    elif name == "sst5":
        for split, seed, count in splits:
            (place / f"{split}.txt").write_text("".join(tree(y, t) + "\n" for y, t in texts(seed, count, five)))
    elif name == "agnews":
        numbers = {topic: str(n) for n, topic in enumerate(TOPICS, 1)}
        for split, seed, count in (splits[0], splits[2]):
            write_rows(place / f"{split}.csv", [(numbers[y], t, t) for y, t in texts(seed, count, TOPICS)])
    elif name == "twitterfin":
        kinds = {"0": "falls cut", "1": "rises beats", "2": "holds says"}
        for split, seed, count in (("train", 1, 34), ("valid", 2, 9)):
            rows = [(t, y) for y, t in texts(seed, count, kinds)]
            write_rows(place / f"sent_{split}.csv", rows, header=["text", "label"])
    elif name == "amazon":
        for language in ("de", "en", "es", "fr", "ja", "zh"):
            for split, seed, count in splits:
                kinds = {f"kind{n}": f"thing{n} item{n}" for n in range(4)}
                rows = [
                    {"stars": "4", "review_title": text[:9], "review_body": text, "language": language}
                    | {"review_id": str(number), "product_category": label}
                    for number, (label, text) in enumerate(texts(seed, count, kinds))
                ]
                lines = "".join(json.dumps(row) + "\n" for row in rows)
                (place / f"dataset_{language}_{split}.json").write_text(lines)
    elif name == "sib200":
        for language in ("deu_Latn", "eng_Latn"):
            for split, seed, count in splits:
                rows = [
                    (i, y, t) for i, (y, t) in enumerate(texts(seed, count, {"travel": "boat map", "health": "rest"}))
                ]
                write_rows(place / language / f"{split}.tsv", rows, "\t", ["index_id", "category", "text"])
    elif name == "livedoor":
        for category in ("dokujo-tsushin", "sports-watch", "topic-news"):
            (place / "text" / category).mkdir(parents=True)
            (place / "text" / category / "LICENSE.txt").write_text("a licence")
            for number in range(20):
                article = f"http://example.com/{number}/\n2012-01-01T00:00:00+0900\n{category} {number}\nA body.\n"
                (place / "text" / category / f"{category}-{number:07d}.txt").write_text(article)
    else:
        files = {
            "conll2003": ("eng.train", "eng.testa", "eng.testb"),
            "ontonotes5": ("train.bio", "dev.bio", "test.bio"),
            "wnut17": ("wnut17train.conll", "emerging.dev.conll", "emerging.test.annotated"),
        }[name]
        for file, (_, seed, count) in zip(files, splits, strict=True):
            bio(place / file, seed, count, "conll" if name == "conll2003" else "bio")
    return place


def small(recipe: Recipe, tiny: Path, folder: Path, out: Path):
    over = {**QUICK, "data.max_tokens": 64}
    settings = {name: value for name, value in over.items() if name != "lora.targets"}
    settings["lora.targets"] = ["q_proj", "v_proj"]
    if "model.depth" in recipe.settings:  # of 32 blocks; the tiny backbone has four
        settings["model.depth"] = 3
    return run_recipe(recipe, out=out, data=folder, model=str(tiny), settings=settings)


@pytest.mark.parametrize("name", sources())
@pytest.mark.parametrize("protocol", [PUBLISHED, CLEAN])
def test_each_source_format_trains_under_each_protocol(name, protocol, tiny_folder, tmp_path: Path) -> None:
    stem = "lora-rinna-3.6b" if name == "livedoor" else "ls-unllama-7b"
    recipe = find(f"{stem}/{name}@{protocol}")
    done = small(recipe, tiny_folder, fixture(name, tmp_path), tmp_path / "run")
    assert done.score is not None and 0 <= done.score <= 100 and not done.comparable
    metrics = done.run.metrics
    if recipe.reported_is_dev:
        assert "test" not in metrics and "eval.reported" in metrics["dev"]["switches"]
    else:
        assert (metrics["test"] and "switches" not in metrics["test"]) or name == "livedoor"
    assert done.run.config.recipe == recipe.name
    if recipe.data.languages:
        assert len(metrics["dev"]["parts"]) >= 2


def test_trees_give_the_root_s_label_and_the_leaves(tmp_path: Path) -> None:
    assert parse_tree("(3 (2 It) (4 (2 's) (4 (2 -LRB-) (3 fine))))") == ("3", ["It", "'s", "(", "fine"])
    for broken in ("(3 (2 It)", "(3 (2 It)))", "()", "(3)", "(3 (2 It)) (2 x)", "3 It", "(2 a b) c"):
        assert parse_tree(broken) is None, broken
    (tmp_path / "train.txt").write_text("(3 (2 It) (4 works))\n\n(1 (2 It) (0 fails))\n")
    source = open_source(tmp_path / "train.txt", name="train", base=tmp_path)
    assert source.format == "trees"
    rows = list(source.rows())
    assert [(row.at, row.fields["label"], row.fields["text"]) for row in rows] == [
        ("train.txt:1", "3", "It works"),
        ("train.txt:3", "1", "It fails"),
    ]


# Counts and comparisons


@pytest.mark.parametrize(
    ("name", "counts", "variant"),
    [
        ("sst2", {"train": 67349, "dev": 872}, "GLUE phrases"),
        ("sst2", {"train": 60614, "dev": 6735, "test": 872}, "GLUE phrases"),
        ("sst2", {"train": 6920, "dev": 872}, "stsa sentences"),
        ("agnews", {"train": 120000, "dev": 7600}, "all"),
        ("agnews", {"train": 108000, "dev": 12000, "test": 7600}, "all"),
        ("conll2003", {"train": 14041, "dev": 3250, "test": 3453}, "all"),
        ("conll2003", {"train": 14041, "dev": 3453}, "all"),
        ("conll2003", {"train": 14000, "dev": 3250, "test": 3453}, None),
        ("conll2003", {"train": 13000, "dev": 3250, "test": 4494}, None),  # as many in all, divided otherwise
        ("livedoor", {"train": 5895, "dev": 736, "test": 736}, "all"),
    ],
    ids=str,
)
def test_known_variants_are_recognised_by_their_rows(name, counts, variant) -> None:
    assert sources()[name].variant(counts) == variant


def test_real_data_are_the_variants_that_they_are(shared: Path) -> None:
    from labeltune.data.datasets import load

    for name, variant in (("sst2", "stsa sentences"), ("sst5", "sentences"), ("wnut17", "all")):
        recipe = find(f"ls-llama-7b/{name}@clean")
        config = recipe.config(shared / "data")
        loaded = load(config.data, config.task)
        counts = {s: len(getattr(loaded, s)) for s in ("train", "dev", "test") if getattr(loaded, s) is not None}
        assert recipe.data.variant(counts) == variant


def test_an_unknown_count_warns_and_compares_nothing(tiny_folder, tmp_path: Path) -> None:
    heard: list[object] = []
    folder = fixture("wnut17", tmp_path)
    settings = {"train.epochs": 1, "train.threads": 1, "lora.rank": 2}
    done = run_recipe(
        find("ls-unllama-7b/wnut17@clean"), out=tmp_path / "run", data=folder, model=str(tiny_folder),
        settings=settings, listen=heard.append,
    )  # fmt: skip
    said = [fact.text for fact in heard if hasattr(fact, "text")]
    assert any(
        "34 train, 8 dev, 8 test rows are no known variant of wnut17 (all: 3,394/1,009/1,287)" in s for s in said
    )
    assert not done.comparable


# Reproducing


def test_a_paper_s_table_lists_what_ran_what_failed_and_runs_only_what_is_missing(tiny_folder, tmp_path: Path) -> None:
    fixture("wnut17", tmp_path / "data")
    words = dict(
        out=tmp_path / "out", only="ls-*-7b/[wc]*@published", model=str(tiny_folder), data=tmp_path / "data",
        settings={"train.epochs": 1, "train.threads": 1, "model.dtype": "fp32"}, seeds=2,
    )  # fmt: skip
    lines = reproduce("ls-llama", **words)
    assert [(line.recipe, line.seeds) for line in lines] == [
        ("ls-llama-7b/conll2003", 0),
        ("ls-llama-7b/wnut17", 2),
        ("ls-unllama-7b/conll2003", 0),
        ("ls-unllama-7b/wnut17", 2),
    ]
    assert "licensed by NIST" in lines[0].note and lines[2].published == 93.19 and lines[1].difference is None
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "runs").rglob("metrics.json")}
    (run,) = (tmp_path / "out" / "runs" / "ls-llama-7b_wnut17@published").glob("42-*")
    shutil.rmtree(run)
    assert reproduce("ls-llama", **words) == lines and len(before) == 4
    table = (tmp_path / "out" / "table.md").read_text()
    assert table.partition("## Every recipe")[2].count("\n") == 8
    assert "| | conll2003, span_f1 | wnut17, span_f1 |\n" in table and "| ls-unllama-7b | (93.19) | " in table
    assert len(json.loads((tmp_path / "out" / "table.json").read_text())) == 4
    assert (tmp_path / "out" / "table.csv").read_text().count("\n") == 5


def test_every_source_has_its_paper_s_layout() -> None:
    assert set(LAYOUTS) == {recipe.source for recipe in recipes().values()}
    figures = dict(
        metric="f1", seeds=1, difference=None, seconds=1.0, peak_memory_gib=None, device="cpu", note="", sd=0.0,
        accuracy=91.0, precision=92.0, recall=93.0, protocol=CLEAN,
    )  # fmt: skip
    lines = {
        source: [
            Line(recipe=recipe.name.partition("@")[0], published=recipe.expected, mean=90.0, **figures)
            for recipe in of_source(source)
            if recipe.protocol == CLEAN
        ]
        for source in LAYOUTS
    }
    groups = as_in_the_paper("mask-groups", lines["mask-groups"]).splitlines()
    assert len(groups) == 2 + 16 and groups[0].startswith("| | mask-groups-llama-2-7b, conll2003 | ")
    repeated = as_in_the_paper("repetition", lines["repetition"])
    assert "| | conll2003, r0 | conll2003, r1 | " in repeated and "90.00 ± 0.00 (93.67)" in repeated
    livedoor = as_in_the_paper("llm-lora-classification", lines["llm-lora-classification"])
    assert (
        "| | accuracy | precision | recall | f1 |" in livedoor and "| 91.00 | 92.00 | 93.00 | 90.00 ± 0.00" in livedoor
    )


class Metrics:
    def __init__(self, score: float) -> None:
        self.metrics = {"train": {"seconds": 2.0, "peak_memory_gib": 1.5}, "test": {"span_f1": score}}
        self.config = make({"train": {"device": "cpu"}})


def stubbed(monkeypatch: pytest.MonkeyPatch, outcomes: list) -> list[Path]:
    """Trainings that give these scores, or raise, one after the other; where they went."""
    places: list[Path] = []

    def train_one(recipe, *, out, **_):
        places.append(Path(out))
        outcome = outcomes.pop(0)
        if isinstance(outcome, BaseException):
            raise outcome
        return Outcome(Metrics(outcome / 100), outcome, True, None, {"precision": (outcome + 1) / 100})

    monkeypatch.setattr(reproducing, "run_recipe", train_one)
    return places


def test_a_failure_is_forgotten_when_the_training_succeeds(monkeypatch, tmp_path: Path) -> None:
    stubbed(monkeypatch, [RunError("the disk is full", at="x"), 93.0])
    words = dict(out=tmp_path, only="ls-unllama-7b/conll2003@published")
    (line,) = reproduce("ls-llama", **words)
    assert line.mean is None and "the disk is full" in line.note
    (line,) = reproduce("ls-llama", **words)
    assert (line.mean, line.note, line.seeds) == (93.0, "", 1) and line.difference == pytest.approx(-0.19)
    assert (line.precision, line.recall, line.peak_memory_gib, line.device) == (94.0, None, 1.5, "cpu")
    assert reproduce("ls-llama", **words) == [line]  # nothing is trained again


def test_any_error_is_a_line_of_the_table_and_the_rest_goes_on(monkeypatch, tmp_path: Path) -> None:
    faults = [RuntimeError("CUDA out of memory\nand a long story"), ValueError("odd"), 92.0]
    stubbed(monkeypatch, [*faults])
    (line,) = reproduce("ls-llama", out=tmp_path, only="ls-unllama-7b/conll2003@published", seeds=3)
    assert line.note == "RuntimeError: CUDA out of memory; ValueError: odd"
    assert (line.mean, line.seeds, line.difference) == (92.0, 1, None)
    for stop in (KeyboardInterrupt(), Interrupted("stopped")):
        stubbed(monkeypatch, [stop])
        with pytest.raises(type(stop)):
            reproduce("ls-llama", out=tmp_path / str(type(stop)), only="ls-unllama-7b/conll2003@published")


def test_another_backbone_folder_or_setting_is_another_result(monkeypatch, tmp_path: Path) -> None:
    places = stubbed(monkeypatch, [50.0, 93.0, 60.0, 70.0])
    words = dict(out=tmp_path, only="ls-unllama-7b/conll2003@published")
    assert reproduce("ls-llama", model="mini", **words)[0].mean == 50.0
    assert reproduce("ls-llama", **words)[0].mean == 93.0
    assert reproduce("ls-llama", settings={"train.epochs": 1}, **words)[0].mean == 60.0
    assert reproduce("ls-llama", data=tmp_path / "data", **words)[0].mean == 70.0
    assert reproduce("ls-llama", model="mini", **words)[0].mean == 50.0
    assert len(set(places)) == 4


def test_a_run_says_which_figure_it_stands_beside_and_whether_it_may(tiny_folder, tmp_path: Path) -> None:
    recipe = find("ls-unllama-7b/wnut17@clean")
    done = small(recipe, tiny_folder, fixture("wnut17", tmp_path), tmp_path / "run")
    said = open_run(tmp_path / "run").metrics["recipe"]
    assert (said["name"], said["metric"], said["score"], said["comparable"]) == (
        recipe.name, recipe.metric, done.score, False,
    )  # fmt: skip
    assert "differ from the recipe" in said["why"] and done.figures.keys() == {"precision", "recall"} | (
        {"accuracy"} & done.figures.keys()
    )
    assert f"Recipe `{recipe.name}`" in (tmp_path / "run" / "README.md").read_text()


def test_gone_on_with_a_finished_run_the_verdict_stays(tiny_folder, tmp_path: Path) -> None:
    recipe, folder = find("ls-unllama-7b/wnut17@clean"), fixture("wnut17", tmp_path)
    words = {"out": tmp_path / "run", "data": folder, "model": str(tiny_folder)}
    done = run_recipe(
        recipe, settings={"train.epochs": 1, "train.threads": 1, "lora.rank": 2, "eval.merge": True}, **words
    )
    kept = {"train.epochs": 1, "train.threads": 1, "lora.rank": 2}
    again = run_recipe(recipe, settings=kept, resume=True, **words)  # what differed at first differs still
    assert (again.score, again.comparable, again.why) == (done.score, False, done.why)
    assert "eval.merge" in done.why


def test_a_training_whose_figure_was_not_noted_any_more_is_not_lost(tiny_folder, tmp_path: Path) -> None:
    quick = {"train.epochs": 1, "train.threads": 1, "lora.rank": 2}
    words = dict(out=tmp_path / "t", only="ls-unllama-7b/wnut17@clean", seeds=1, settings=quick)
    words |= {"data": fixture("wnut17", tmp_path), "model": str(tiny_folder)}
    (line,) = reproduce("ls-llama", **words)
    (tmp_path / "t" / "cells.jsonl").unlink()
    (run,) = (tmp_path / "t" / "runs").glob("*/*/log.jsonl")
    before = run.stat().st_mtime_ns
    (again,) = reproduce("ls-llama", **words)
    assert line.mean is not None and (again.mean, again.note) == (line.mean, line.note)
    assert run.stat().st_mtime_ns == before


@pytest.mark.parametrize("name", ["0110@clean", "1000@published"])
def test_mask_groups_run_on_a_shallow_backbone(name, tiny_folder, tmp_path: Path) -> None:
    recipe = find(f"mask-groups-llama-2-7b/conll2003-{name}")
    done = small(recipe, tiny_folder, fixture("conll2003", tmp_path), tmp_path / "run")
    assert done.score is not None and "%" in done.run.config.model.unmask


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("bert-large/sst2", "bert"),
        ("roberta-large/conll2003", "roberta"),
        ("luke-japanese-large-lite/livedoor", "luke"),
    ],
)
@pytest.mark.parametrize("protocol", [PUBLISHED, CLEAN])
def test_encoder_recipes_train_a_small_encoder(name, family, protocol, tiny_encoder, tmp_path: Path) -> None:
    recipe = find(f"{name}@{protocol}")
    done = small(recipe, tiny_encoder(family), fixture(recipe.data.name, tmp_path), tmp_path / "run")
    assert done.score is not None and (done.run.config.lora.kind, done.run.config.head.kind) == ("full", "stock")
    assert recipe.settings["train.lr"] == 3e-5  # of three; benchmarks/sweeps/encoders.toml tries them all


@pytest.mark.parametrize("name", ["r1@published", "unmasked@clean"])
def test_repetition_recipes_train_a_small_decoder(name, tiny_folder, tmp_path: Path) -> None:
    recipe = find(f"repetition-mistral-7b/conll2003-{name}")
    done = small(recipe, tiny_folder, fixture("conll2003", tmp_path), tmp_path / "run")
    assert done.score is not None and done.run.config.data.repeat == recipe.settings["data.repeat"]
    assert done.run.config.train.accumulate == 4


@pytest.mark.slow
@pytest.mark.parametrize("name", recipes())
def test_every_recipe_runs(name, tiny_folder, tiny_encoder, tmp_path: Path) -> None:
    recipe, family = find(name), name.partition("-")[0]
    backbone = tiny_encoder(family) if family in ("bert", "roberta", "luke") else tiny_folder
    done = small(recipe, backbone, fixture(recipe.data.name, tmp_path), tmp_path / "run")
    assert done.score is not None and 0 <= done.score <= 100 and not done.comparable
    assert done.run.config.recipe == name


@pytest.mark.parametrize(
    "file", sorted((Path(__file__).parents[1] / "benchmarks" / "sweeps").glob("*.toml")), ids=lambda f: f.stem
)
def test_ready_sweeps_are_sweeps(file: Path) -> None:
    base, config = read_sweep(file, {})
    grids = grids_of(config, base, str(file))
    axes = {name for grid in grids for name in grid.axes}
    assert axes and base.data.train
    for table in config.table:
        check_table(table, tuple(axes))


# A sealed test split


def test_no_recipe_s_choice_reaches_the_test_split(tiny_folder, tmp_path: Path) -> None:
    recipe, folder = find("ls-unllama-7b/wnut17@clean"), fixture("wnut17", tmp_path)
    test = folder / "emerging.test.annotated"
    words = dict(data=folder, model=str(tiny_folder))
    quick = {**QUICK, "lora.targets": ["q_proj"]}
    with pytest.raises(DataError, match="the test split stays sealed"):  # the test file as dev
        run_recipe(recipe, out=tmp_path / "a", settings={**quick, "data.dev": str(test)}, **words)
    with pytest.raises(DataError, match="the test split stays sealed"):  # or as training rows
        run_recipe(recipe, out=tmp_path / "b", settings={**quick, "data.train": str(test)}, **words)
    done = run_recipe(recipe, out=tmp_path / "c", settings=quick, **words)
    opened = [json.loads(line) for line in (tmp_path / "c" / "ledger.jsonl").read_text().splitlines()]
    of_test = [line["purpose"] for line in opened if line["source"] == str(test)]
    assert "final evaluation" in " ".join(of_test) and done.run.config.train.select != ""
    first = (tmp_path / "c" / "log.jsonl").read_text()
    test.write_text(test.read_text().replace("PER", "LOC"))  # another gold: no step and no choice may differ
    run_recipe(recipe, out=tmp_path / "d", settings=quick, **words)
    strip = [[{k: v for k, v in json.loads(line).items() if "second" not in k} for line in text.splitlines()]
             for text in (first, (tmp_path / "d" / "log.jsonl").read_text())]  # fmt: skip
    assert [r.get("loss") for r in strip[0]] == [r.get("loss") for r in strip[1]]
    one, other = ((tmp_path / run / "head.safetensors").read_bytes() for run in "cd")
    assert one == other


# Faults


def test_an_unknown_recipe_names_the_nearest(typed, tmp_path: Path) -> None:
    for name in ("ls-unlama-7b/conll2003", "ls-unllama-7b/conl2003@clean"):
        done = typed("train", "--recipe", name, "--out", tmp_path / "run")
        assert done.code == 1 and "no recipe" in done.err and "ls-unllama-7b/conll2003" in done.err
    with pytest.raises(SettingsError, match=r"no paper 'ls-lama'.*ls-llama"):
        reproduce("ls-lama", out=tmp_path)
    with pytest.raises(SettingsError, match="has a name like"):
        reproduce("ls-llama", out=tmp_path, only="nothing*")


def test_data_in_a_wrong_layout_or_absent_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"conll2003 is not there: no eng\.train or train\.txt in it; .*NIST"):
        find("ls-llama-7b/conll2003").config(tmp_path)
    with pytest.raises(DataError, match=r"livedoor is not on the hub; download ldcc-20140209\.tar\.gz"):
        find("lora-rinna-3.6b/livedoor").config()
    with pytest.raises(DataError, match="Amazon has withdrawn"):
        find("ls-llama-7b/amazon").config()


def test_a_hub_that_cannot_be_reached_is_one_sentence(typed, tmp_path: Path, tiny_folder) -> None:
    done = typed("train", "--recipe", "ls-llama-7b/sst5", "--model", tiny_folder, "--out", tmp_path / "run")
    assert done.code == 1 and "SetFit/sst5" in done.err and "Traceback" not in done.err


def test_recipes_are_listed_and_printed_whole(typed) -> None:
    listed = json.loads(typed("recipes", "--json").out)
    assert len(listed) == len(recipes()) and {"name", "expected", "cost"} <= listed[0].keys()
    printed = typed("recipes", "ls-unllama-7b/conll2003@published").out
    assert printed.startswith("# ls-unllama-7b/conll2003@published\n# command: labeltune train --recipe")
    assert tomllib.loads(printed)["model"]["unmask"] == "all"
    assert "lora-rinna-3.6b/livedoor@clean" in typed("recipes").out
