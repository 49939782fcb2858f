"""What the studies share: data sets at a chosen size, sweeps in folders of their own, and the figures' forms."""

from __future__ import annotations

import csv
import json
import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import tomli_w
from scipy.stats import t as student
from stock_trainer import Row, read_rows

import labeltune
from labeltune.baselines import TagBaseline, TextBaseline
from labeltune.data.datasets import Loaded, load
from labeltune.data.settings import DataConfig
from labeltune.demo import COLUMNS, demo_file
from labeltune.tasks import TASKS

RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
SETS = ("sst2", "ag_news", "wnut17", "intents", "entities")
DEV, TEST = 200, 400
Axes = Mapping[str, Sequence[Any]]
Found = dict[str, Any]


# Data


@dataclass(frozen=True)
class Data:
    """One data set. rows: split -> its rows, of which a seeded choice is written; None for the demo's own files.

    parts: name -> the data set it stands for, where one model reads several.
    """

    title: str
    task: str
    rows: Callable[[Path], dict[str, list[Row]]] | None = None
    max_tokens: int | None = None
    parts: Mapping[str, str] = field(default_factory=dict)

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
    "joint": Data("both", "classification", parts={"en": "ag_news", "ja": "livedoor"}),
}


def files(name: str, data: Path, work: Path, rows: int) -> dict[str, Any]:
    """The `data.…` settings of a set, its files written where they are not there yet."""
    known = DATA[name]
    if known.parts:
        each = {part: files(of, data, work, rows) for part, of in known.parts.items()}
        shared = {"data.max_tokens": max(found["data.max_tokens"] for found in each.values()), "data.long": "truncate"}
        splits = (f"data.{split}" for split in ("train", "dev", "test"))
        return shared | {split: {part: found[split] for part, found in each.items()} for split in splits}
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
    """Where the data are and where the sweeps go.

    rows, seeds: of a cell, where the study does not say. sets: in place of a study's own, where any is named.
    passes: of `head_and_alpha`, in place of the default number.
    """

    data: Path
    work: Path
    rows: int
    models: Mapping[str, str | None]
    processes: int = 1
    corpus: Path | None = None
    rates: Sequence[float] = RATES
    sets: Sequence[str] = ()
    seeds: int = 3
    passes: int | None = None

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
            settings = {"model.name": self.models.get(model) or model, "train.threads": 1}
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

    def all_rows(self, set_: str) -> list[Row]:
        """The training rows of a set that is read from `--data`."""
        if (known := DATA[set_].rows) is None:
            raise SystemExit(f"{set_}: its rows are the demo's own; name other --sets")
        return known(self.data)["train"]

    def texts(self, set_: str, most: int = 5_000) -> Path:
        """The training texts of a set, without labels, as documents."""
        path, known = self.work / "data" / f"{set_}-texts.txt", DATA[set_]
        if not path.exists() and known.rows is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            rows = _shuffled(known.rows(self.data)["train"])[:most]
            path.write_text("\n\n".join(row.text for row in rows) + "\n", "utf-8")
        return path

    def best_rate(self, name: str, set_: str, model: str, rates: Sequence[float] = (), **own: Any) -> float:
        """The learning rate that dev prefers, of one seed each; a single one is taken as it is."""
        rates = rates or self.rates
        if len(rates) == 1:
            return rates[0]
        axes = {"train.lr": rates}
        found = self.sweep(f"{name}/rates", set_, model, axes, (0,), test=False, **own)
        return float(max(found, key=lambda row: float(row[f"dev_{DATA[set_].metric}"]))["train.lr"])

    def loaded(self, set_: str, rows: int | None = None) -> Loaded:
        """The rows as labeltune reads them."""
        settings = files(set_, self.data, self.work, rows or self.rows)
        return load(
            DataConfig(**{key.removeprefix("data."): value for key, value in settings.items()}), DATA[set_].task
        )

    def figures(self, name: str, trial: Found) -> Found:
        """A trial's `metrics.json`."""
        path = self.work / name / "trials" / trial["trial"] / "metrics.json"
        found: Found = json.loads(path.read_text("utf-8"))
        return found

    def split(self, set_: str, split: str) -> list[tuple[str, str]]:
        """The texts and labels of a classification's split."""
        rows = self.loaded(set_)
        return [
            (str(row.text), str(row.label)) for row in {"train": rows.train, "dev": rows.dev, "test": rows.test}[split]
        ]

    def baseline(self, set_: str, rows: int | None = None) -> float:
        """TF-IDF or word features with logistic regression on the same rows."""
        known, loaded = DATA[set_], self.loaded(set_, rows)
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
    return scores_on("test", chosen, set_)


def scores_on(split: str, found: Sequence[Found], set_: str) -> list[float]:
    """Scores of trials, by seed."""
    return [float(row[f"{split}_{DATA[set_].metric}"]) for row in by_seed(found)]


def by_seed(found: Sequence[Found]) -> list[Found]:
    return sorted(found, key=lambda row: int(row["seed"]))


# Figures


def mean_sd(scores: Sequence[float]) -> str:
    spread = f" ± {100 * statistics.stdev(scores):.1f}" if len(scores) > 1 else ""
    return f"{100 * statistics.mean(scores):.1f}{spread}"


def interval(differences: Sequence[float]) -> str:
    """Mean and 95 % t interval of paired differences, in points; of one, the difference alone."""
    middle, count = statistics.mean(differences), len(differences)
    if count < 2:
        return f"{100 * middle:+.1f}"
    reach = student.ppf(0.975, count - 1) * statistics.stdev(differences) / count**0.5
    return f"{100 * middle:+.1f} [{100 * (middle - reach):+.1f}, {100 * (middle + reach):+.1f}]"
