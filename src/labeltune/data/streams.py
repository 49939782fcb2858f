"""Rows that pass once, however many: examples as they come, the rows that cannot be used counted on the way."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path

from labeltune.data.columns import Columns, find_columns, kind_of
from labeltune.data.datasets import QUARANTINE, SAMPLE, first_rows
from labeltune.data.examples import Reading
from labeltune.data.readers import Row, Source, item_row
from labeltune.data.settings import DataConfig
from labeltune.data.survey import Quarantine
from labeltune.errors import DataError
from labeltune.schema import Example


class Stream:
    """The examples of a source, in order, as they are read; no row is looked at twice but the first hundred.

    bad_rows: how many could not be used so far (`data.on_bad_row`).
    """

    def __init__(self, source: Source, reading: Reading, quarantine: Quarantine) -> None:
        self.source, self.bad_rows = source, 0
        self._reading, self._quarantine = reading, quarantine
        self._first_fault: DataError | None = None

    @property
    def config(self) -> DataConfig:
        """The settings that it is read with."""
        return self._reading.config

    @property
    def columns(self) -> Columns:
        """Which column carries what."""
        return self._reading.columns

    def __iter__(self) -> Iterator[Example]:
        good = 0
        for row in self.source.rows():
            try:
                example = self._reading.example(row)
            except DataError as fault:
                self._reject(row, fault)
            else:
                good += 1
                yield example
        if not good:
            raise DataError(f"no row can be used ({self._first_fault})", at=self.source.name, hint="mend the rows")

    def _reject(self, row: Row, fault: DataError) -> None:
        policy = self._reading.config.on_bad_row
        if policy == "error":
            raise fault
        self.bad_rows += 1
        self._first_fault = self._first_fault or fault
        if policy == "quarantine":
            self._quarantine.take(row, fault)


def open_stream(source: Source, config: DataConfig, task: str | None, quarantine: Quarantine | None = None) -> Stream:
    """New rows for a trained model, as `open_dataset` would read them unlabelled; only the first are looked at.

    Raises:
        DataError: there are no rows, or columns cannot be told. A row that cannot be used raises when its turn comes.
    """
    sample = [row.fields for row in first_rows(source)]
    columns = find_columns(sample, config, kind_of(task), labelled=False, at=source.name, strict=False)
    return Stream(source, Reading(columns, config), quarantine or Quarantine(Path(QUARANTINE), replace_old=False))


def rows_of(items: Iterable[object], name: str) -> Iterator[Row]:
    """Texts, (text, label) or dictionaries as rows, addressed `name[17]`."""
    return (item_row(item, f"{name}[{number}]") for number, item in enumerate(items))


def passing(rows: Iterable[Row], name: str) -> Source:
    """Rows that can be read once only (a pipe, a generator) as a source whose beginning can be looked at before."""
    left = iter(rows)
    head = list(islice(left, SAMPLE))
    return Source(name, "stream", lambda: chain(head, left))


def files_of(sources: Iterable[Source]) -> list[tuple[str, int, int]]:
    """What the sources are read from: path, bytes and time of change of each file, by which a changed one is known.

    A folder is all the files in it.
    """
    named = (path for source in sources for path in source.files)
    each = chain.from_iterable(sorted(path.rglob("*")) if path.is_dir() else [path] for path in named)
    paths = [path for path in each if path.is_file()]
    return [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
