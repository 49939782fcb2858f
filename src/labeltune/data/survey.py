"""One pass over a split: which rows can be used, and what they hold in fingerprints, so that none need be kept.

A text's fingerprint ignores case and white space; a row's adds its label, spans or number. 64 bits: among 25 million
rows two different ones meet by chance once in 60,000 data sets.
"""

from __future__ import annotations

import json
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TextIO

import numpy as np

from labeltune.data.columns import NUMBER
from labeltune.data.examples import Reading
from labeltune.data.readers.rows import Row, missing, plain
from labeltune.data.settings import DataConfig
from labeltune.errors import DataError
from labeltune.labels import OUTSIDE, recognise
from labeltune.schema import Example
from labeltune.storage import told


@dataclass(frozen=True, slots=True)
class Survey:
    """What a pass over R rows found; G of them are good.

    good: bool (R). texts, rows: uint64 (G), fingerprints. groups: uint64 (G), of the group column; None without one.
    labels: int32 (G), which of `sets` a row carries; for regression float64 (G), the number itself, and no sets.
    sets: the distinct sets of labels, sorted; one label is a set of one. scheme: that of the tags, if there are any.
    faults: the first few of the rows that cannot be used.
    """

    good: np.ndarray
    texts: np.ndarray
    rows: np.ndarray
    groups: np.ndarray | None
    labels: np.ndarray
    sets: tuple[tuple[str, ...], ...]
    scheme: str | None
    faults: tuple[str, ...]

    @property
    def bad(self) -> int:
        """Rows that cannot be used."""
        return len(self.good) - int(self.good.sum())

    def only(self, chosen: np.ndarray) -> Survey:
        """The survey of some of the good rows: bool (G)."""
        good = self.good.copy()
        good[self.good] = chosen
        groups = None if self.groups is None else self.groups[chosen]
        part = replace(
            self, texts=self.texts[chosen], rows=self.rows[chosen], labels=self.labels[chosen], groups=groups
        )
        return replace(part, good=good)


class Quarantine:
    """A file that takes the rows that cannot be used, with their reasons; made at the first of them.

    replace_old, add: what becomes of one that is there already, which else is refused.
    """

    def __init__(self, path: Path, *, replace_old: bool = False, add: bool = False) -> None:
        self.path = path
        self._mode: Literal["a", "w", "x"] = "a" if add else "w" if replace_old else "x"
        self._file: TextIO | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._file:
            with told(self.path):
                self._file.close()

    def take(self, row: Row, fault: DataError) -> None:
        """Write one row: `{"at", "reason", "row"}`."""
        if self._file is None:
            self._file = self._opened()
        reason = f"{fault.message}; {fault.hint}" if fault.hint else fault.message
        line = json.dumps({"at": fault.at or row.at, "reason": reason, "row": plain(row.fields)})
        with told(self.path):
            self._file.write(line + "\n")

    def _opened(self) -> TextIO:
        try:
            return self.path.open(self._mode, encoding="utf-8")
        except FileExistsError:
            hint = "look at it, then move it away"
            raise DataError("an earlier quarantine is already there", at=str(self.path), hint=hint) from None
        except OSError as error:
            raise DataError(f"the quarantine cannot be written ({error.strerror})", at=str(self.path)) from None


def survey(rows: Iterable[Row], reading: Reading, quarantine: Quarantine) -> Survey:
    """Read every row once.

    Raises:
        DataError: the first row that cannot be used, where `data.on_bad_row` is `error`.
    """
    tally = _Tally(reading)
    for row in rows:
        try:
            tally.add(reading.example(row), row)
        except DataError as fault:
            if reading.config.on_bad_row == "error":
                raise
            tally.reject(fault)
            if reading.config.on_bad_row == "quarantine":
                quarantine.take(row, fault)
    return tally.survey()


class _Tally:
    """The arrays of a survey while they grow."""

    def __init__(self, reading: Reading) -> None:
        self._config: DataConfig = reading.config
        self._columns = reading.columns
        self._reading = reading
        self._good, self._texts, self._rows, self._groups = array("b"), array("Q"), array("Q"), array("Q")
        self._labels: array[Any] = array("d" if reading.columns.kind == NUMBER else "i")
        self._sets: dict[tuple[str, ...], int] = {}
        self._schemes: Counter[str] = Counter()
        self._faults: list[str] = []

    def add(self, example: Example, row: Row) -> None:
        group = self._group(row)
        if self._columns.tags:
            self._see_scheme(self._reading.tags(row.fields, self._columns.tags))
        text = text_fingerprint(example.text)
        self._texts.append(text)
        self._rows.append(fingerprint(f"{text} {_gold(example)}"))
        self._labels.append(self._label(example))
        if group is not None:
            self._groups.append(fingerprint(group))
        self._good.append(1)

    def reject(self, fault: DataError) -> None:
        self._good.append(0)
        if len(self._faults) < 3:
            self._faults.append(str(fault))

    def survey(self) -> Survey:
        order = sorted(self._sets)
        place = np.empty(len(order), np.int32)
        place[[self._sets[key] for key in order]] = np.arange(len(order), dtype=np.int32)
        labels = np.array(self._labels, dtype=np.float64 if self._columns.kind == NUMBER else np.int32)
        return Survey(
            good=np.array(self._good, dtype=bool),
            texts=np.array(self._texts, dtype=np.uint64),
            rows=np.array(self._rows, dtype=np.uint64),
            groups=np.array(self._groups, dtype=np.uint64) if self._config.group else None,
            labels=labels if self._columns.kind == NUMBER else place[labels] if order else labels,
            sets=tuple(order),
            scheme=max(("BIOES", "BILOU", "IOB1", "IOB2"), key=self._schemes.__getitem__) if self._schemes else None,
            faults=tuple(self._faults),
        )

    def _see_scheme(self, tags: Sequence[str]) -> None:
        """Each row with a span is a vote: a faulty one must not speak for all."""
        if any(tag != OUTSIDE for tag in tags):
            self._schemes[recognise([tags])] += 1

    def _label(self, example: Example) -> int | float:
        if isinstance(example.label, float):
            return example.label
        return self._sets.setdefault(label_set(example), len(self._sets))

    def _group(self, row: Row) -> str | None:
        name = self._config.group
        if name is None:
            return None
        if missing(row.fields.get(name)):
            raise DataError(f"the row has no group ({name!r} is empty)", at=row.at, hint="fill it, or unset data.group")
        return json.dumps(row.fields[name], default=str)


def label_set(example: Example) -> tuple[str, ...]:
    """The row's distinct labels, sorted."""
    if example.spans is not None:
        return tuple(sorted({span.label for span in example.spans}))
    if isinstance(example.label, tuple):
        return example.label
    return (example.label,) if isinstance(example.label, str) else ()


def text_fingerprint(text: str) -> int:
    """64 bits of the text without case and with white space as one space."""
    return fingerprint(" ".join(text.casefold().split()))


def fingerprint(text: str) -> int:
    """64 bits of the text."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")


def _gold(example: Example) -> str:
    """Label or spans; these by the characters before and in them, so that white space does not tell rows apart."""
    if example.spans is None:
        return repr(example.label)
    places = ((_solid(example.text[: span.start]), _solid(example.text[: span.end])) for span in example.spans)
    return repr([(*place, span.label) for place, span in zip(places, example.spans, strict=True)])


def _solid(text: str) -> int:
    """How many characters are no white space."""
    return sum(not character.isspace() for character in text)
