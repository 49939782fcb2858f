"""Data sets of the `datasets` library: saved in a folder, from the hub, or already in memory."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from labeltune.data.readers.rows import Row, Source, plain
from labeltune.errors import DataError, nearest

PREFIX = "hf:"
_MARKS = ("dataset_dict.json", "state.json")


def is_saved(path: Path) -> bool:
    """Is the folder one that `save_to_disk` wrote?"""
    return any((path / mark).is_file() for mark in _MARKS)


def splits_of(path: Path) -> list[str]:
    """The names of the splits in a saved folder; none where it is a single split."""
    if not (path / _MARKS[0]).is_file():
        return []
    try:
        return list(map(str, json.loads((path / _MARKS[0]).read_bytes())["splits"]))
    except (ValueError, KeyError, TypeError):
        raise DataError(f"{_MARKS[0]} is damaged", at=str(path), hint="save the data set again") from None


def open_saved(path: Path, name: str, split: str | None) -> Source:
    """A folder written by `save_to_disk`, or one split of it."""
    found = _loaded(lambda library: library.load_from_disk(str(path)), at=str(path))
    return open_loaded(found, name, split, at=path.name, folder=path)


def open_hub(address: str, name: str, split: str | None) -> Source:
    """`hf:owner/name[:config]`, downloaded or from the library's cache."""
    owner, _, config = address.removeprefix(PREFIX).partition(":")
    found = _loaded(lambda library: library.load_dataset(owner, config or None), at=address)
    return open_loaded(found, name, split, at=owner)


def open_loaded(found: Any, name: str, split: str | None, *, at: str, folder: Path | None = None) -> Source:
    """A Dataset, or the split of a DatasetDict: the one asked for, else the one called `name`, else the only one."""
    if isinstance(found, Mapping):
        chosen = _chosen(list(found), name, split, at)
        found, at = found[chosen], f"{at}/{chosen}"
        folder = folder and folder / chosen
    elif split is not None:
        raise DataError(f"there is no split {split!r}: the data set is a single one", at=at, hint="give a file")
    if not hasattr(found, "column_names") or not hasattr(found, "__len__"):
        raise DataError("a streamed data set cannot be read twice", at=at, hint="load it without streaming=True")
    return Source(at, "datasets", lambda: _rows(found, at), (folder,) if folder else (), feature_names(found.features))


def _chosen(splits: list[str], name: str, split: str | None, at: str) -> str:
    wanted = split or (name if name in splits or len(splits) != 1 else splits[0])
    if wanted not in splits:
        raise DataError(f"there is no split {wanted!r} but {', '.join(splits)}", at=at, hint=nearest(wanted, splits))
    return wanted


def _rows(found: Any, name: str) -> Iterator[Row]:
    for index, row in enumerate(found):
        yield Row(f"{name}[{index}]", {column: plain(value) for column, value in row.items()})


def feature_names(features: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """ClassLabel names by column, of a ClassLabel or a list of them."""
    named: dict[str, tuple[str, ...]] = {}
    for column, feature in features.items():
        while hasattr(feature, "feature"):
            feature = feature.feature
        if isinstance(names := getattr(feature, "names", None), list):
            named[column] = tuple(names)
    return named


def _loaded(load: Any, at: str) -> Any:
    library = _library(at)
    try:
        return load(library)
    except (OSError, ValueError, RuntimeError) as error:
        hint = "check the name, the configuration and the connection"
        raise DataError(f"the data set cannot be loaded ({error})", at=at, hint=hint) from None


def _library(at: str) -> ModuleType:
    """The extra `hub`; imported here alone, since it costs more than a second."""
    try:
        import datasets
    except ImportError:
        hint = "pip install 'labeltune[hub]'"
        raise DataError("this needs the library `datasets`, which is not installed", at=at, hint=hint) from None
    library: ModuleType = datasets
    return library
