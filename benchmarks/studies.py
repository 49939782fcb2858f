"""What the method does at a small scale: studies on real data, as sweeps of labeltune itself.

    python studies.py run --data DATA --work WORK [--only NAME …] [--rows 500] [--tiny FOLDER]
    python studies.py report --work WORK --out results/studies --hardware "one line"

Every study is a declaration: data sets, backbones, axes and seeds. A cell is one sweep in a folder of its own; what is
done is not done again, and what was interrupted goes on. Settings are chosen by dev, scores are those of test (every
trial's: a study compares settings, it does not choose a model). Rows are a seeded choice of the real data.

Data sets: SST-2, AG News, WNUT-17 and livedoor where `--data` has them, and the demo's two tasks.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import tomli_w
import torch
from scipy.stats import t as student
from stock_trainer import Row, read_rows
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import labeltune
from labeltune.baselines import TagBaseline, TextBaseline
from labeltune.data.datasets import load
from labeltune.data.settings import DataConfig
from labeltune.demo import COLUMNS, demo_file
from labeltune.model.checkpoints import resolve
from labeltune.model.settings import ModelConfig
from labeltune.tasks import TASKS

RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
SEEDS = (1, 2, 3, 4, 5)
DEV, TEST = 200, 400
ADAPT_TOKENS = 150_000
LOOKS = {"before": "before", "after": "heldout"}
Axes = Mapping[str, Sequence[Any]]
Found = dict[str, Any]


# Data


@dataclass(frozen=True)
class Data:
    """One data set. rows: split -> its rows, of which a seeded choice is written; None for the demo's own files."""

    title: str
    task: str
    rows: Callable[[Path], dict[str, list[Row]]] | None = None
    max_tokens: int | None = None

    @property
    def metric(self) -> str:
        return TASKS[self.task].select


def _stsa(data: Path) -> dict[str, list[Row]]:
    return {split: read_rows(str(data / "sst" / f"stsa.binary.{split}")) for split in ("train", "dev", "test")}


def _ag_news(data: Path) -> dict[str, list[Row]]:
    train = _shuffled(read_rows(str(data / "ag_news" / "train_subset_derived.jsonl")))
    test = read_rows(str(data / "ag_news" / "test.csv"))
    return {"train": train[DEV:], "dev": train[:DEV], "test": test}


def _wnut17(data: Path) -> dict[str, list[Row]]:
    names = {"train": "wnut17train.conll", "dev": "emerging.dev.conll", "test": "emerging.test.annotated"}
    return {split: read_rows(str(data / "wnut17" / name)) for split, name in names.items()}


def _livedoor(data: Path) -> dict[str, list[Row]]:
    rows = []
    for category in sorted(path for path in (data / "livedoor" / "text").iterdir() if path.is_dir()):
        for article in sorted(category.glob(f"{category.name}-*.txt")):
            rows.append(Row(" ".join(article.read_text("utf-8").splitlines()[2:])[:400], category.name))
    rows = _shuffled(rows)
    return {"dev": rows[:DEV], "test": rows[DEV : DEV + TEST], "train": rows[DEV + TEST :]}


def _shuffled(rows: list[Row]) -> list[Row]:
    return random.Random(0).sample(rows, len(rows))


DATA: dict[str, Data] = {
    "sst2": Data("SST-2", "classification", _stsa, 64),
    "ag_news": Data("AG News", "classification", _ag_news, 64),
    "wnut17": Data("WNUT-17", "tagging", _wnut17, 64),
    "livedoor": Data("livedoor, 128 tokens", "classification", _livedoor, 128),
    "intents": Data("demo: intents", "classification"),
    "entities": Data("demo: entities", "tagging"),
}


def files(name: str, data: Path, work: Path, rows: int) -> dict[str, Any]:
    """The `data.…` settings of a set, its files written where they are not there yet."""
    known = DATA[name]
    cap = {"data.max_tokens": known.max_tokens, "data.long": "truncate"} if known.max_tokens else {}
    if known.rows is None:
        columns: dict[str, Any] = {f"data.{column}": value for column, value in COLUMNS[known.task].items()}
        columns["data.train_rows"] = rows
        return {f"data.{split}": str(demo_file(split)) for split in ("train", "dev", "test")} | columns
    ending = "conll" if known.task == "tagging" else "jsonl"
    paths = {
        split: work / "data" / f"{name}-{split}{rows if split == 'train' else ''}.{ending}"
        for split in ("train", "dev", "test")
    }
    if not all(path.exists() for path in paths.values()):
        paths["train"].parent.mkdir(parents=True, exist_ok=True)
        found = known.rows(data)
        for (split, path), most in zip(paths.items(), (rows, DEV, TEST), strict=True):
            path.write_text("".join(map(_line, _shuffled(found[split])[:most])), "utf-8")
    return {f"data.{split}": str(path) for split, path in paths.items()} | cap


def _line(row: Row) -> str:
    if row.words:
        return "".join(f"{word}\t{tag}\n" for word, tag in zip(row.words, row.tags, strict=True)) + "\n"
    return json.dumps({"text": row.text, "label": row.label}, ensure_ascii=False) + "\n"


# Cells


@dataclass(frozen=True)
class Bench:
    """Where the data are and where the sweeps go. rows: of a training, where the study does not say."""

    data: Path
    work: Path
    rows: int
    models: Mapping[str, str]
    processes: int = 1

    def each(self, work: Callable[..., Any], cells: Sequence[Any]) -> dict[Any, Any]:
        """The values of independent cells, in processes side by side."""
        with ProcessPoolExecutor(self.processes, mp_context=get_context("spawn")) as pool:
            return dict(zip(cells, pool.map(partial(work, self), cells), strict=True))

    def sweep(
        self,
        name: str,
        set_: str,
        model: str,
        axes: Axes,
        seeds: Sequence[int],
        *,
        rows: int | None = None,
        test: bool = True,
        **own: Any,
    ) -> list[Found]:
        """The trials of one sweep, as `all.csv` has them; own: further settings (`train__lr`)."""
        folder = self.work / name
        if not (folder / "sweep.json").exists():
            known = DATA[set_]
            settings = {"model.name": self.models.get(model, model), "train.threads": 1}
            settings |= files(set_, self.data, self.work, rows or self.rows)
            settings |= {key.replace("__", "."): value for key, value in own.items()}
            words = {"task": known.task, **_nested(settings)}
            words["sweep"] = {"axes": {key: list(values) for key, values in axes.items()}, "seeds": list(seeds)}
            file = self.work / f"{name}.toml"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(tomli_w.dumps(words), "utf-8")
            labeltune.sweep(file, out=folder, test_all=test, resume=folder.exists())
            print(f"{name}: done", flush=True)
        with (folder / "all.csv").open(encoding="utf-8", newline="") as text:
            return [dict(row) for row in csv.DictReader(text)]

    def texts(self, set_: str, most: int = 5_000) -> Path:
        """The training texts of a set, without labels, as documents."""
        path, known = self.work / "data" / f"{set_}-texts.txt", DATA[set_]
        if not path.exists() and known.rows is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            rows = _shuffled(known.rows(self.data)["train"])[:most]
            path.write_text("\n\n".join(row.text for row in rows) + "\n", "utf-8")
        return path

    def best_rate(self, name: str, set_: str, model: str, rates: Sequence[float] = RATES, **own: Any) -> float:
        """The learning rate that dev prefers, of one seed each."""
        found = self.sweep(f"{name}/rates", set_, model, {"train.lr": rates}, (0,), test=False, **own)
        return float(max(found, key=lambda row: float(row[f"dev_{DATA[set_].metric}"]))["train.lr"])

    def baseline(self, set_: str, rows: int | None = None) -> float:
        """TF-IDF or word features with logistic regression on the same rows."""
        known, settings = DATA[set_], files(set_, self.data, self.work, rows or self.rows)
        loaded = load(DataConfig(**{name.removeprefix("data."): value for name, value in settings.items()}), known.task)
        fitted = (TagBaseline if known.task == "tagging" else TextBaseline).fit(list(loaded.train))
        gold = list(loaded.test or ())
        return float(TASKS[known.task].score(gold, fitted.predict(gold), fitted.labels)[known.metric])


def _nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted names as sections."""
    out: dict[str, Any] = {}
    for name, value in settings.items():
        section, _, leaf = name.partition(".")
        out.setdefault(section, {})[leaf] = list(value) if isinstance(value, tuple) else value
    return out


def scores_on_test(found: Sequence[Found], set_: str, **where: Any) -> list[float]:
    """Test scores of the trials with these values (`train.lr="0.01"`), by seed."""
    chosen = [row for row in found if all(row[key] == str(value) for key, value in where.items())]
    return [float(row[f"test_{DATA[set_].metric}"]) for row in sorted(chosen, key=lambda row: int(row["seed"]))]


# Studies: each writes lines of a table


def meaning(bench: Bench) -> Iterator[Found]:
    """Do the bundled weights carry meaning? The same shape at random, another small model, and words counted.

    The learning rate is the best of five on dev, for each model and data set; then three seeds.
    """
    sets, models = ("sst2", "ag_news", "wnut17", "intents", "entities"), ("mini", "random", "tiny")
    found = bench.each(_trained, [(set_, model) for set_ in sets for model in models])
    for set_ in sets:
        line: Found = {"data": DATA[set_].title, "metric": DATA[set_].metric, "words": bench.baseline(set_)}
        for model in models:
            rate, scores = found[set_, model]
            line |= {model: mean_sd(scores), f"{model} lr": f"{rate:g}"}
        pairs = zip(found[set_, "mini"][1], found[set_, "random"][1], strict=True)
        yield line | {"mini - random": interval([a - b for a, b in pairs])}


def _trained(bench: Bench, cell: tuple[str, str]) -> tuple[float, list[float]]:
    """The chosen learning rate, and the test scores of three seeds."""
    set_, model = cell
    rate = bench.best_rate(f"meaning/{set_}-{model}", set_, model)
    found = bench.sweep(f"meaning/{set_}-{model}/seeds", set_, model, {"train.lr": [rate]}, SEEDS[:3])
    return rate, scores_on_test(found, set_)


def unmasked_pretraining(bench: Bench) -> Iterator[Found]:
    """Does masked next-token prediction under a removed mask (mntp) help a tagger without mask?"""
    texts = [bench.texts(set_) for set_ in ("sst2", "ag_news", "wnut17")]
    yield from _adapted(bench, "mntp", texts, "entities", bench.rows, {"model__unmask": "all"})


def domain_pretraining(bench: Bench) -> Iterator[Found]:
    """Does going on with next-token prediction on a data set's own texts help, with a hundred labelled rows?"""
    yield from _adapted(bench, "clm", [bench.texts("ag_news", 20_000)], "ag_news", 100, {})


def _adapted(
    bench: Bench, objective: str, texts: Sequence[Path], set_: str, rows: int, own: Mapping[str, Any]
) -> Iterator[Found]:
    """The same training from the bundled backbone as it is and adapted, at a learning rate chosen for each."""
    folder = bench.work / f"adapted-{objective}"
    if not (folder / "metrics.json").exists():
        settings = {"adapt.objective": objective, "adapt.tokens": ADAPT_TOKENS, "adapt.lr": 1e-3, "adapt.threads": 1}
        labeltune.adapt(
            [str(path) for path in texts], model="mini", out=folder, settings=settings, resume=folder.exists()
        )
    scores, figures = {}, json.loads((folder / "metrics.json").read_text("utf-8"))
    for name, model in (("as it is", "mini"), ("adapted", str(folder))):
        stem = f"{objective}/{name.replace(' ', '-')}"
        rate = bench.best_rate(stem, set_, model, RATES[1:4], rows=rows, **own)
        found = bench.sweep(f"{stem}/seeds", set_, model, {"train.lr": [rate]}, SEEDS[:3], rows=rows, **own)
        scores[name] = scores_on_test(found, set_)
    losses = {f"held-out loss {when}": f"{figures[part]['loss']:.3f}" for when, part in LOOKS.items()}
    line: Found = {"objective": objective, "data": DATA[set_].title, "rows": rows, **losses}
    line |= {name: mean_sd(values) for name, values in scores.items()}
    pairs = zip(scores["adapted"], scores["as it is"], strict=True)
    yield line | {"adapted - as it is": interval([a - b for a, b in pairs])}


def defaults(bench: Bench) -> Iterator[Found]:
    """Which learning rate is best? Dev scores, one seed each, over the backbone's size."""
    cells = [(set_, model) for set_ in ("sst2", "ag_news", "wnut17") for model in ("mini", "tiny")]
    for (set_, model), found in bench.each(_rates, cells).items():
        line: Found = {"data": DATA[set_].title, "backbone": model}
        yield line | {f"{float(row['train.lr']):g}": float(row[f"dev_{DATA[set_].metric}"]) for row in found}


def _rates(bench: Bench, cell: tuple[str, str]) -> list[Found]:
    set_, model = cell
    return bench.sweep(f"meaning/{set_}-{model}/rates", set_, model, {"train.lr": RATES}, (0,), test=False)


def head_and_alpha(bench: Bench) -> Iterator[Found]:
    """The head's own learning rate, and alpha, at the best learning rate."""
    for set_ in ("sst2", "wnut17"):
        rate = bench.best_rate(f"meaning/{set_}-mini", set_, "mini")
        for name, axis in (("train.head_lr", [rate / 3, rate, 3 * rate]), ("lora.alpha", [16, 32, 64])):
            found = bench.sweep(f"head_and_alpha/{set_}-{name}", set_, "mini", {name: axis}, (0, 1), train__lr=rate)
            for value in axis:
                dev = [float(row[f"dev_{DATA[set_].metric}"]) for row in found if float(row[name]) == value]
                yield {"data": DATA[set_].title, "lr": rate, "setting": name, "value": value, "dev": mean_sd(dev)}


def pooling_and_mask(bench: Bench) -> Iterator[Found]:
    """What is pooled, how, and with which mask."""
    axes = {
        "model.pooling": ("last", "mean", "max"),
        "model.pool_on": ("hidden", "logits"),
        "model.unmask": ("none", "all"),
    }
    yield from grid(bench, "pooling_and_mask", "sst2", axes)


def mask_groups(bench: Bench) -> Iterator[Found]:
    """The mask removed in any of four groups of two layers: the sixteen patterns of arXiv 2401.14556, at this scale."""
    parts = ("0:2", "2:4", "4:6", "6:8")
    patterns = [",".join(p for n, p in enumerate(parts) if bits >> n & 1) or "none" for bits in range(16)]
    yield from grid(bench, "mask_groups", "wnut17", {"model.unmask": patterns})


def repetition(bench: Bench) -> Iterator[Found]:
    """The text read again (arXiv 2601.17585), against depth and against a removed mask."""
    axes = {"data.repeat": (0, 1), "model.depth": (4, 6, 8), "model.unmask": ("none",)}
    yield from grid(bench, "repetition", "wnut17", axes)


def grid(bench: Bench, name: str, set_: str, axes: Axes) -> Iterator[Found]:
    """Every combination of the axes with the bundled backbone, five seeds, at the learning rate that dev prefers."""
    rate = bench.best_rate(f"meaning/{set_}-mini", set_, "mini")
    found = bench.sweep(f"{name}/{set_}", set_, "mini", axes, SEEDS, train__lr=rate)
    for values in dict.fromkeys(tuple(row[axis] for axis in axes) for row in found):
        where = dict(zip(axes, values, strict=True))
        yield {"data": DATA[set_].title, **where, DATA[set_].metric: mean_sd(scores_on_test(found, set_, **where))}


def small_data(bench: Bench) -> Iterator[Found]:
    """How many rows it takes, against words counted."""
    for set_ in ("sst2", "ag_news"):
        rate = bench.best_rate(f"meaning/{set_}-mini", set_, "mini")
        for rows in (16, 64, 256, 1000):
            name = f"small_data/{set_}-{rows}"
            found = bench.sweep(name, set_, "mini", {"train.lr": [rate]}, SEEDS, rows=rows)
            line = {"data": DATA[set_].title, "rows": rows, "labeltune": mean_sd(scores_on_test(found, set_))}
            yield line | {"TF-IDF": bench.baseline(set_, rows)}


STUDIES: dict[str, Callable[[Bench], Iterator[Found]]] = {
    study.__name__: study
    for study in (
        meaning,
        defaults,
        unmasked_pretraining,
        domain_pretraining,
        head_and_alpha,
        small_data,
        pooling_and_mask,
        mask_groups,
        repetition,
    )
}


# Figures


def mean_sd(scores: Sequence[float]) -> str:
    spread = f" ± {100 * statistics.stdev(scores):.1f}" if len(scores) > 1 else ""
    return f"{100 * statistics.mean(scores):.1f}{spread}"


def interval(differences: Sequence[float]) -> str:
    """Mean and 95 % t interval of paired differences, in points."""
    middle, count = statistics.mean(differences), len(differences)
    reach = student.ppf(0.975, count - 1) * statistics.stdev(differences) / count**0.5
    return f"{100 * middle:+.1f} [{100 * (middle - reach):+.1f}, {100 * (middle + reach):+.1f}]"


def random_model(work: Path) -> str:
    """The bundled shape and tokenizer with random weights."""
    folder, mini = work / "random", Path(resolve(ModelConfig(name="mini")))
    if not (folder / "model.safetensors").exists():
        torch.manual_seed(0)
        LlamaForCausalLM(LlamaConfig.from_pretrained(mini)).save_pretrained(folder)
        PreTrainedTokenizerFast.from_pretrained(mini).save_pretrained(folder)
    return str(folder)


def report(work: Path, out: Path, hardware: str) -> None:
    """A table of each study that is done."""
    out.mkdir(parents=True, exist_ok=True)
    for name, study in STUDIES.items():
        path = work / f"{name}.json"
        if not path.exists():
            continue
        lines = json.loads(path.read_text("utf-8"))
        columns = list(dict.fromkeys(column for line in lines for column in line))
        title = " ".join((study.__doc__ or "").split())
        shown = [f"# {name}", "", title, "", f"{hardware}. Scores in percent, of test unless the title says dev.", ""]
        shown += ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
        shown += ["| " + " | ".join(_shown(line.get(column), column) for column in columns) + " |" for line in lines]
        (out / f"{name}.md").write_text("\n".join(shown) + "\n", "utf-8")
        (out / f"{name}.json").write_text(json.dumps(lines, indent=1, ensure_ascii=False) + "\n", "utf-8")


def _shown(value: Any, column: str) -> str:
    """A score in percent; settings as they are."""
    score = isinstance(value, float) and column not in ("lr", "value")
    return f"{100 * value:.1f}" if score else "" if value is None else f"{value}"


def main(words: Sequence[str] | None = None) -> None:
    """Run studies, or write their tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("verb", choices=("run", "report"))
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("results/studies"))
    parser.add_argument("--hardware", default="")
    parser.add_argument("--only", nargs="*", choices=list(STUDIES), default=list(STUDIES))
    parser.add_argument("--rows", type=int, default=500)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--tiny", help="another small backbone")
    options = parser.parse_args(words)
    if options.verb == "report":
        report(options.work, options.out, options.hardware)
        return
    options.work.mkdir(parents=True, exist_ok=True)
    models = {"mini": "mini", "random": random_model(options.work), "tiny": options.tiny}
    bench = Bench(options.data, options.work, options.rows, models, options.processes)
    for name in options.only:
        lines = []
        for line in STUDIES[name](bench):
            lines.append(line)
            (options.work / f"{name}.json").write_text(json.dumps(lines, ensure_ascii=False), "utf-8")
            print(json.dumps(line, ensure_ascii=False), flush=True)


if __name__ == "__main__":
    main()
