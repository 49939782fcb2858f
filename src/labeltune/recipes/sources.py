"""The data sets of the recipes: where their rows are (a folder, the hub), and which known variant they are."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from labeltune.errors import DataError, nearest

Settings = dict[str, Any]
SPLITS = ("train", "dev", "test")


@dataclass(frozen=True)
class Source:
    """One data set.

    forms: file names by split, with the settings that go with them; a `{language}` stands for each of `languages`.
    rows: known variants -> rows of train, dev and test; published_rows names the one that the papers used.
    parted: fractions of one body of rows, where the set has no splits. evaluated: the split that the figures are of.
    """

    name: str
    title: str
    task: str
    folders: tuple[str, ...]
    evaluated: str
    metric: str
    labels: int
    forms: tuple[Mapping[str, Any], ...]
    rows: Mapping[str, tuple[int, int, int]]
    published_rows: str | None = None
    hub: Mapping[str, str] | None = None
    languages: tuple[str, ...] = ()
    parted: Mapping[str, float] = field(default_factory=dict)
    obtain: str | None = None

    def variant(self, counts: Mapping[str, int]) -> str | None:
        """Which known variant has these rows by split, whatever was held out of which; None where none has."""
        body = counts.get("train", 0) + counts.get("dev", 0)
        for name, (train, dev, test) in self.rows.items():
            if self.parted and sum(counts.values()) == train + dev + test:
                return name
            if (body, counts.get("test", 0)) in ((train + dev, test), (train, dev)):
                return name
            if (counts.get("train"), counts.get("dev"), counts.get("test", 0)) in ((train, dev, 0), (train, test, 0)):
                return name
        return None


@cache
def sources() -> Mapping[str, Source]:
    """Every data set by name."""
    tables = tomllib.loads(files(__package__).joinpath("datasets.toml").read_text("utf-8"))
    return {name: _source(name, table) for name, table in tables.items()}


def _source(name: str, table: Mapping[str, Any]) -> Source:
    lists = {key: tuple(table[key]) for key in ("folders", "forms", "languages") if key in table}
    rows = {variant: tuple(counts) for variant, counts in table["rows"].items()}
    return Source(**{"name": name, **table, **lists, "rows": rows})


def from_hub(source: Source) -> Settings:
    """Settings that read the data set from the hub.

    Raises:
        DataError: it cannot be had there; the sentence says how to obtain it.
    """
    if source.hub is None:
        raise DataError(f"{source.name} is not on the hub", at="data.train", hint=source.obtain or "name its folder")
    found: Settings = {f"data.{split}": source.hub[split] for split in ("dev", "test") if split in source.hub}
    if not source.languages:
        return found | {"data.train": source.hub["id"]}
    return found | {"data.train": {one: source.hub["id"].replace("{language}", one) for one in source.languages}}


def from_folder(source: Source, folder: Path) -> Settings:
    """Settings that read the data set from a folder that has its files, or has a folder of its name that has them.

    Raises:
        DataError: no form of the data set is there; the sentence names the files that were looked for.
    """
    places = [folder, *(folder / name for name in source.folders)]
    for place in places:
        for form in source.forms:
            found = _form(source, form, place)
            if found is not None:
                return found
    wanted = " or ".join(_named(form["train"], source) for form in source.forms)
    hint = source.obtain or "name the folder that has it"
    raise DataError(f"{source.name} is not there: no {wanted} in it", at=str(folder), hint=hint)


def _named(train: str, source: Source) -> str:
    return f"folders of articles ({source.folders[0]})" if train == "." else train


def _form(source: Source, form: Mapping[str, Any], place: Path) -> Settings | None:
    if form["train"] == ".":
        articles = place.is_dir() and any(place.glob("dokujo-tsushin/dokujo-tsushin-*.txt"))
        return {"data.train": str(place), **_own(form)} if articles else None
    named = {split: _file(source, form[split], place) for split in SPLITS if split in form}
    if named["train"] is None:
        return None
    return {f"data.{split}": found for split, found in named.items() if found is not None} | _own(form)


def _file(source: Source, name: str, place: Path) -> str | dict[str, str] | None:
    if "{language}" not in name:
        return str(place / name) if (place / name).is_file() else None
    found = {one: place / name.replace("{language}", one) for one in source.languages}
    there = {one: str(path) for one, path in found.items() if path.is_file()}
    return there or None


def _own(form: Mapping[str, Any]) -> Settings:
    return {name: value for name, value in form.items() if name not in SPLITS}


def find_source(name: str) -> Source:
    """A data set by name.

    Raises:
        DataError: there is none; the sentence names the nearest.
    """
    if name not in sources():
        raise DataError(f"no data set {name!r}", at="recipes", hint=nearest(name, list(sources())))
    return sources()[name]
