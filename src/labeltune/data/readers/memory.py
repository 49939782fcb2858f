"""Rows that are already in Python: a DataFrame, dicts, a `datasets.Dataset`, texts with labels, pairs, plain texts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from labeltune.data.readers.hub import open_loaded
from labeltune.data.readers.rows import Row, Source, plain
from labeltune.data.readers.text import value_row
from labeltune.errors import DataError

TEXT, LABEL = "text", "label"
_WAY_OUT = "give a path, a DataFrame, a list of dicts, a datasets.Dataset, (texts, labels) or a list of (text, label)"


def open_memory(data: Any, name: str, split: str | None) -> Source:
    """The rows of a Python object, addressed `train[17]`.

    A *tuple* of two is (texts, labels); in a *list*, tuples of two are rows of text and label.

    Raises:
        DataError: nothing that holds rows, or texts and labels of different length.
    """
    if _is_frame(data):
        return _source(name, _columns(_of_frame(data, name), name))
    if hasattr(data, "features") or (isinstance(data, Mapping) and any(hasattr(v, "features") for v in data.values())):
        return open_loaded(data, name, split, at="data" if isinstance(data, Mapping) else name)
    if isinstance(data, Mapping):
        return _source(name, _columns({str(column): values for column, values in data.items()}, name))
    if isinstance(data, tuple) and len(data) == 2 and all(_is_list(part) for part in data):
        return _source(name, _columns({TEXT: data[0], LABEL: data[1]}, name))
    if _is_list(data):
        return _source(name, lambda: (item_row(item, f"{name}[{index}]") for index, item in enumerate(data)))
    raise DataError(f"{type(data).__name__} holds no rows that can be read twice", at=name, hint=_WAY_OUT)


def items_of(data: Iterable[object]) -> Iterable[object]:
    """The items that are to be answered: a text or a dictionary alone is one, a DataFrame is its rows."""
    if isinstance(data, str | Mapping):
        return [data]
    return (row.fields for row in _columns(_of_frame(data, "texts"), "texts")()) if _is_frame(data) else data


def _is_frame(data: object) -> bool:
    return hasattr(data, "columns") and hasattr(data, "itertuples")


def _of_frame(frame: Any, name: str) -> dict[str, Any]:
    counts = Counter(map(str, frame.columns))
    if twice := [column for column, count in counts.items() if count > 1]:
        told = ", ".join(map(repr, twice))
        raise DataError(f"there are several columns {told}", at=name, hint="give each column a name of its own")
    return {str(column): frame[column] for column in frame.columns}


def _source(name: str, rows: Callable[[], Iterator[Row]]) -> Source:
    return Source(name, "memory", rows)


def _is_list(value: object) -> bool:
    return not isinstance(value, str | bytes | Mapping) and hasattr(value, "__len__") and hasattr(value, "__iter__")


def _columns(columns: Mapping[str, Sequence[object]], name: str) -> Callable[[], Iterator[Row]]:
    lengths = {column: len(values) for column, values in columns.items() if _is_list(values)}
    if len(lengths) < len(columns) or len(set(lengths.values())) > 1:
        told = ", ".join(f"{column}: {lengths.get(column, 'no list')}" for column in columns)
        raise DataError(f"the columns are not equally long ({told})", at=name, hint="give each text its label")

    def rows() -> Iterator[Row]:
        for index, cells in enumerate(zip(*columns.values(), strict=True)):
            yield Row(f"{name}[{index}]", dict(zip(columns, map(plain, cells), strict=True)))

    return rows


def item_row(item: object, at: str) -> Row:
    """The row that an item of a list is: a text, a text and its label, or a dictionary; a fault where it is none."""
    if isinstance(item, str):
        return Row(at, {TEXT: plain(item)})
    if isinstance(item, tuple | list) and len(item) == 2:
        return Row(at, {TEXT: plain(item[0]), LABEL: plain(item[1])})
    return value_row(plain(item), at)
