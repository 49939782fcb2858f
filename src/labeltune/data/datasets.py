"""Open data for training or for prediction: the columns found, the ids named, every row checked once, the splits made.

A `Dataset` holds fingerprints only; its examples are read from the file anew each time it is iterated.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from labeltune.data.columns import LABEL, NUMBER, ORDERED, ROLES, TAGS, Columns, find_columns, kind_of, task_of
from labeltune.data.examples import Reading
from labeltune.data.naming import resolve
from labeltune.data.readers import PREFIX, Row, Source, is_saved, open_source
from labeltune.data.settings import DataConfig
from labeltune.data.splits import draw_rows, fold_share, hold_out, hold_out_fold
from labeltune.data.survey import Quarantine, Survey, survey
from labeltune.errors import DataError, SettingsError
from labeltune.keys import Key
from labeltune.schema import Example
from labeltune.storage import expanded, is_there, sha256_file, sha256_folder

SAMPLE = 100
"""Rows looked at to find the columns."""

MOST_SHARED = 0.5
"""Share of the test rows that training and dev rows may hold; real data have some, a copied file has all."""

QUARANTINE = "quarantine.jsonl"


class Notes(Protocol):
    """Where each opening of the test split is written down."""

    def note(self, purpose: str, source: str, **facts: object) -> None:
        """Record that `source` is opened for `purpose`."""


class Dataset:
    """The usable rows of one split: iterate for examples, as often as you like.

    name: `train`, `dev`, `test` or what the caller says. source: the path or name it is read from.
    survey: fingerprints and labels of its rows. bad_rows: how many rows of its source could not be used.
    said: what was guessed or found in opening it, in sentences.
    """

    def __init__(
        self, name: str, source: Source, reading: Reading, found: Survey, bad_rows: int, said: tuple[str, ...]
    ) -> None:
        self.name, self.survey, self.bad_rows, self.said = name, found, bad_rows, said
        self.columns, self.files, self.label_names = reading.columns, source.files, source.label_names
        self.source = ", ".join(map(str, source.files)) or source.name
        self._source, self._reading = source, reading
        self._stamps = _stamps(source.files)

    def __len__(self) -> int:
        return len(self.survey.texts)

    def __iter__(self) -> Iterator[Example]:
        for row in self._rows():
            yield self._reading.example(row)

    @property
    def unit(self) -> str:
        """What a tag sits on where no tokens are given."""
        return self._reading.config.unit

    def tags(self, example: Example) -> list[str] | None:
        """The tags of a row as the file has them; None where it has none."""
        column = self.columns.tags
        return self._reading.tags(example.fields, column) if column else None

    def ids(self, chosen: Collection[int] | None = None) -> list[str]:
        """The addresses of the rows, or of those with the given numbers."""
        wanted = None if chosen is None else set(chosen)
        return [row.at for number, row in enumerate(self._rows()) if wanted is None or number in wanted]

    def part(self, name: str, chosen: np.ndarray) -> Dataset:
        """The rows of bool (G) as a data set of its own."""
        return Dataset(name, self._source, self._reading, self.survey.only(chosen), self.bad_rows, self.said)

    @cached_property
    def sha256(self) -> str | None:
        """Of the file or folder that the rows are read from (of all of them, in order); None for rows in memory."""
        sums = [sha256_folder(path) if path.is_dir() else sha256_file(path) for path in self.files]
        return sums[0] if len(sums) == 1 else hashlib.sha256("".join(sums).encode()).hexdigest() if sums else None

    @property
    def content(self) -> str:
        """A hash that other rows would not have: the file's, or of the rows that only memory holds."""
        return self.sha256 or sha256_of(self)

    def _rows(self) -> Iterator[Row]:
        if _stamps(self.files) != self._stamps:
            raise DataError("the file has changed since it was opened", at=self.source, hint="start again")
        good = self.survey.good
        for number, row in enumerate(self._source.rows()):
            if number >= len(good):
                raise DataError("there are more rows than at first", at=row.at, hint="start again")
            if good[number]:
                yield row


def sha256_of(rows: Iterable[Example]) -> str:
    """Of what is read from rows, wherever they lie."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(repr((row.text, row.label, row.spans, row.units)).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _stamps(files: tuple[Path, ...]) -> list[tuple[int, int]]:
    stats = [path.stat() for path in files if path.is_file()]
    return [(stat.st_size, stat.st_mtime_ns) for stat in stats]


@dataclass(frozen=True, slots=True)
class Loaded:
    """The splits of a training, ready.

    said: what was guessed or found, in sentences. config: the settings with the guesses filled in.
    split_ids: the addresses of the rows that were held out, for each split made from a fraction.
    """

    task: str
    train: Dataset
    dev: Dataset
    test: Dataset | None
    said: tuple[str, ...]
    config: DataConfig
    split_ids: Mapping[str, list[str]] = field(default_factory=dict)


def load(
    config: DataConfig,
    task: str | None,
    *,
    base: Path = Path(),
    data: Any = None,
    dev: Any = None,
    test: Any = None,
    ledger: Notes | None = None,
    seed: int = 42,
    quarantine: Path | None = None,
) -> Loaded:
    """Open train, dev and test; make dev and test from fractions of train where the settings say so.

    base: the folder that relative paths begin at. data, dev, test: rows in memory or paths, in place of the settings'.
    ledger: told before the test split is read. seed: of the split. quarantine: where rows that cannot be used go.

    Raises:
        DataError: a row, a file, columns that cannot be told, a test split that training or dev holds.
        SettingsError: a setting that does not fit the data.
    """
    given = {"train": config.train if data is None else data, "dev": config.dev if dev is None else dev}
    given["test"] = config.test if test is None else test
    if given["train"] is None:
        raise SettingsError(
            "there is no data to train on", at="data.train", hint="name a file, a folder or hf:owner/name"
        )
    with _quarantine(quarantine, base) as bin_:
        return _Loading(config, kind_of(task), base, bin_, ledger).load(given, seed)


def open_dataset(
    source: Any,
    config: DataConfig,
    task: str | None,
    *,
    labelled: bool,
    name: str,
    base: Path = Path(),
    quarantine: Path | None = None,
    split: str | None = None,
    strict: bool = False,
    add: bool = False,
) -> Dataset:
    """Open new rows for a trained model: `config` is the run's; columns that are not there are guessed anew.

    labelled: whether every row must carry its label (evaluate) or none is looked at (predict).
    strict: refuse rows that lack a column which `config` names, instead. add: to the quarantine, which several share.
    split: of a data set with several; None is the one called `name`.

    Raises:
        DataError: a row, a file, or columns that cannot be told.
    """
    with _quarantine(quarantine, base, add=add) as bin_:
        loading = _Loading(config, kind_of(task), base, bin_, None)
        return loading.open(loading.source(source, name, split), name, labelled=labelled, strict=strict)


def _quarantine(path: Path | None, base: Path, *, add: bool = False) -> AbstractContextManager[Quarantine]:
    return Quarantine(path or base / QUARANTINE, replace_old=path is not None, add=add)


class _Loading:
    """One call of `load` or `open_dataset` while it goes on: what has been found and said so far."""

    def __init__(
        self, config: DataConfig, kind: str | None, base: Path, quarantine: Quarantine, ledger: Notes | None
    ) -> None:
        self.config, self.kind, self.said = config, kind, list[str]()
        self._base, self._quarantine, self._ledger = base, quarantine, ledger

    def load(self, given: Mapping[str, Any], seed: int) -> Loaded:
        if self.config.fold is not None:
            if not isinstance(given["dev"], float):
                self.said.append(f"the dev rows are fold {self.config.fold} of the training rows: data.dev is not read")
            given = {**given, "dev": fold_share(self.config.fold)}
        fractions = {name: share for name in ("test", "dev") if isinstance(share := given[name], float)}
        whole = self.open(self.source(given["train"], "train"), "train", labelled=True, strict=True)
        self._adopt(whole)
        if "test" in fractions:
            self._note("splitting", whole.source)
        splits = self._split(whole, fractions, seed if self.config.split_seed is None else self.config.split_seed)
        for name in ("dev", "test"):
            if name not in fractions and given[name] is not None:
                splits[name] = self._open_beside(given[name], given["train"], name)
        if "test" in splits and "test" not in fractions:
            refuse_leaks({name: splits[name] for name in ("train", "dev")}, splits["test"])
        held_out = {name: splits[name].ids() for name in fractions}
        splits["train"] = self._drawn(splits["train"], seed)
        task = task_of(self.kind or LABEL)
        test = splits.get("test")
        return Loaded(task, splits["train"], splits["dev"], test, tuple(self.said), self.config, held_out)

    # Opening

    def source(self, data: Any, name: str, split: str | None = None) -> Source:
        """Where the rows come from."""
        return open_source(data, name=name, base=self._base, columns=self.config.columns, split=split)

    def open(self, source: Source, name: str, *, labelled: bool, strict: bool) -> Dataset:
        """Find the columns, name the ids, and read every row once."""
        sample = [row.fields for row in first_rows(source)]
        columns = find_columns(sample, self.config, self.kind, labelled=labelled, at=source.name, strict=strict)
        self._check(columns)
        ids, said_ids = self._ids(source, columns) if labelled else (None, ())
        reading = Reading(columns, self.config, ids)
        found = survey(source.rows(), reading, self._quarantine)
        if not found.good.any():
            raise DataError(f"no row can be used ({found.faults[0]})", at=source.name, hint="mend the rows")
        said = (*source.said, columns.said(source.name), *said_ids, *self._about(found, source.name))
        self.said += said
        return Dataset(name, source, reading, found, found.bad, said)

    def _open_beside(self, given: Any, train: Any, name: str) -> Dataset:
        """A dev or test split of its own: a file, rows in memory, or a split of the data set that train is one of."""
        beside = isinstance(given, str) and not is_there(self._base / given) and has_splits(train, self._base)
        source = self.source(train, name, split=given) if beside else self.source(given, name)
        if name == "test":
            self._note("opening", ", ".join(map(str, source.files)) or source.name)
        return self.open(source, name, labelled=True, strict=False)

    def _check(self, columns: Columns) -> None:
        if columns.kind == ORDERED and not self.config.label_order:
            hint = 'for example data.label_order = ["bad", "fair", "good"]'
            raise SettingsError("an ordinal task needs the order of its labels", at="data.label_order", hint=hint)
        if columns.kind in (TAGS, NUMBER) and self.config.label_order:
            what = "tags" if columns.kind == TAGS else "numbers"
            raise SettingsError(f"{what} have no order of labels", at="data.label_order", hint="leave it out")
        if columns.kind == NUMBER and self.config.label_names:
            hint = 'leave it out, or set task = "classification"'
            raise SettingsError("the numbers of a regression have no names", at="data.label_names", hint=hint)

    def _ids(self, source: Source, columns: Columns) -> tuple[Mapping[str, str] | None, tuple[str, ...]]:
        """Names of the split's label ids, the settings' or else the data set's own; and what had to be found out."""
        column = columns.label or columns.tags or columns.spans or ""
        if columns.kind == NUMBER:
            return None, ()
        names = self.config.label_names
        if own := source.label_names.get(column):  # the data set counts from 0, there is nothing to find out
            return (names if isinstance(names, dict) else _numbered(names or own)), ()
        if names is None:
            return None, ()
        plain = Reading(columns, self.config)
        seen = {key for row in source.rows() if row.fault is None for key in plain.keys(row)}
        table, said = resolve(names, seen, source.name)
        return table, (said,) if said else ()

    # Saying

    def _adopt(self, train: Dataset) -> None:
        """What was guessed about the training rows becomes a setting for all further ones."""
        self.kind = train.columns.kind
        found = {role: name for role in (*ROLES, "template") if (name := getattr(train.columns, role))}
        names = self._own_names(train)
        self.config = self.config.model_copy(update=found | ({"label_names": names} if names else {}))

    def _own_names(self, train: Dataset) -> tuple[str, ...] | None:
        column = train.columns.label or train.columns.tags or ""
        return None if self.config.label_names else train.label_names.get(column)

    def _about(self, found: Survey, at: str) -> Iterator[str]:
        if found.bad:
            way = "skipped" if self.config.on_bad_row == "skip" else f"written to {self._quarantine.path}"
            yield f"{at}: {found.bad:,} of {len(found.good):,} rows {way} (first: {found.faults[0]})"
        if found.scheme:
            yield f"{at}: the tags are {found.scheme}"

    def _note(self, purpose: str, source: str) -> None:
        if self._ledger:
            self._ledger.note(purpose, source)

    # Splitting

    def _split(self, whole: Dataset, fractions: Mapping[str, float], seed: int) -> dict[str, Dataset]:
        if not fractions:
            return {"train": whole}
        strict = self.kind in (LABEL, ORDERED)
        draw = hold_out if self.config.fold is None else partial(hold_out_fold, fold=self.config.fold)
        parts = draw(whole.survey, fractions, Key.of(seed), strict=strict, at=whole.source)
        rest = ~np.logical_or.reduce(list(parts.values()))
        for name, rows in parts.items():
            how = "by label" if self.kind != NUMBER else "by the size of the number"
            self.said.append(f"{name}: {rows.sum():,} of {len(whole):,} rows held out, stratified {how}, seed {seed}")
        if not rest.any() or not all(rows.any() for rows in parts.values()):
            raise DataError("too few rows to hold any out", at=whole.source, hint="give data.dev as a file")
        return {name: whole.part(name, rows) for name, rows in {"train": rest, **parts}.items()}

    def _drawn(self, train: Dataset, seed: int) -> Dataset:
        if self.config.train_rows is None:
            return train
        rows = draw_rows(train.survey, self.config.train_rows, Key.of(seed), at="data.train_rows")
        self.said.append(f"train: {rows.sum():,} of {len(train):,} rows drawn, seed {seed}")
        return train.part("train", rows)


def _numbered(names: Sequence[str]) -> dict[str, str]:
    return {str(number): name for number, name in enumerate(names)}


def first_rows(source: Source) -> list[Row]:
    """The readable ones of the first `SAMPLE` rows, to find the columns by; a DataError where there are none."""
    rows = list(islice(source.rows(), SAMPLE))
    if not rows:
        raise DataError("there are no rows", at=source.name, hint="a data file has at least one row")
    good = [row for row in rows if row.fault is None]
    if not good and rows[0].fault:
        raise rows[0].fault
    return good


def has_splits(train: Any, base: Path) -> bool:
    """Is this a data set with named splits?"""
    if isinstance(train, str | PathLike):
        return str(train).startswith(PREFIX) or is_saved(base / expanded(train))
    return isinstance(train, Mapping) and any(hasattr(part, "features") for part in train.values())


def refuse_leaks(known: Mapping[str, Dataset], test: Dataset) -> None:
    """Raise where a split that training sees is the test file, or holds most of its rows.

    Single rows that occur on both sides are common in published data; the linter counts them.

    Raises:
        DataError: the same file, or more than half of the test rows (text and label) in `known`.
    """
    for name, split in known.items():
        if split.sha256 is not None and split.sha256 == test.sha256:
            message = f"data.{name} is the same file as data.test"
            raise DataError(
                message, at=split.source, hint="the test split stays sealed: give another file, or a fraction"
            )
        shared = np.isin(test.survey.rows, split.survey.rows)
        if shared.mean() > MOST_SHARED:
            there = test.ids(np.flatnonzero(shared)[:3].tolist())
            message = f"{int(shared.sum()):,} of {len(test):,} test rows are in data.{name} (first: {', '.join(there)})"
            raise DataError(message, at=split.source, hint="remove them: their score would be learned by heart")
