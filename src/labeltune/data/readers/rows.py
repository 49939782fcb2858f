"""A row as a reader found it: its address, its fields, and what is wrong with it."""

from __future__ import annotations

import ast
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date, time, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Protocol, runtime_checkable
from uuid import UUID

from labeltune.errors import DataError

PART = "part"
"""The column in which rows of a table of files (`{de = "…", ja = "…"}`) keep their file's name in it."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row. `at` is its address; a `fault` says why it cannot be used, `fields` then hold what was readable."""

    at: str
    fields: Mapping[str, object]
    fault: DataError | None = None


@dataclass(frozen=True, slots=True)
class Source:
    """Something that gives its rows anew whenever it is asked.

    name: what addresses begin with. label_names: names of ids by column, where the data set itself carries them.
    said: how it is read, in sentences. files: what it is read from (a folder stands for all its files).
    """

    name: str
    format: str
    rows: Callable[[], Iterator[Row]]
    files: tuple[Path, ...] = ()
    label_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    said: tuple[str, ...] = ()


def faulty(at: str, message: str, hint: str, raw: object) -> Row:
    """A row that could not be read; its raw form is kept for the quarantine."""
    return Row(at, {"raw": raw}, DataError(message, at=at, hint=hint))


@runtime_checkable
class _Array(Protocol):
    """A NumPy array or scalar, told by what it can do."""

    def tolist(self) -> object: ...


_OF_PANDAS = ("Interval", "Period")
"""Values of pandas that people read as text, told by name: pandas is not loaded for it."""


def plain(value: object) -> object:
    """The JSON form of a cell: NumPy values become Python's, dates and decimals text, pandas' missing values None.

    What has none stands as a table with its type's name, which is neither text nor label.
    """
    if value is None or isinstance(value, str | bool | int | float):
        return _plain_scalar(value)
    if isinstance(value, Mapping):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    if isinstance(value, set | frozenset):
        return sorted(map(plain, value), key=str)
    if isinstance(value, Enum):
        return plain(value.value)
    if isinstance(value, bytes):
        return {"bytes": value.hex()}
    if type(value).__name__ in ("NAType", "NaTType"):
        return None
    if isinstance(value, date | time | timedelta | Decimal | UUID | Path) or type(value).__name__ in _OF_PANDAS:
        return str(value)
    if isinstance(value, _Array):
        return plain(value.tolist())
    return {"object": type(value).__name__}


def _plain_scalar(value: str | bool | int | float | None) -> object:
    """Subclasses (numpy.str_, numpy.float64) as the type itself."""
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return value if type(value) is kind else kind(value)
    return value


def missing(value: object) -> bool:
    """Is the cell empty: None, NaN, or the empty string?"""
    return value is None or value == "" or is_nan(value)


def is_nan(value: object) -> bool:
    """Is the cell a floating-point NaN?"""
    return isinstance(value, float) and math.isnan(value)


def written_list(cell: str) -> list[object] | None:
    """The list that a cell of a table holds: JSON, or as Python writes one (what `DataFrame.to_csv` makes of it)."""
    if not (cell.startswith("[") and cell.endswith("]")):
        return None
    try:
        found = json.loads(cell)
    except (ValueError, RecursionError):
        found = _python_list(cell)
    return found if isinstance(found, list) else None


def _python_list(cell: str) -> object:
    """Only what Python would write in the same way: of NumPy's `['a' 'b']`, it would make one text."""
    try:
        found = ast.literal_eval(cell)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    return found if str(found) == cell else None
