"""Encoded rows in flat arrays, in memory or in memory-mapped files that the same content finds again.

Each field of all rows is one array, written as the rows stream by, so building takes no memory beyond a chunk of rows,
and a row is read as views. A folder holds one sub-folder per key; a key stands for all that decides the encoding
(`Encoder.key`), and a sub-folder appears only when it is complete, so what is there is never stale.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import BinaryIO, overload

import numpy as np

from labeltune.errors import RunError
from labeltune.schema import Encoded, Example

FORMAT = 1  # of the files; a folder of another format is built anew
INDEX = "store.json"
CHUNK_ROWS = 256  # written together

# Which bounds divide an array among the rows. `dropped` holds a pair per row.
_BOUNDS = {
    "tokens": "token_bounds",
    "window_lengths": "window_bounds",
    "piece_start": "piece_bounds",
    "piece_end": "piece_bounds",
    "piece_weight": "piece_bounds",
    "piece_target": "piece_bounds",
    "target_span": "target_bounds",
    "labels": "target_bounds",
    "id_bytes": "id_bounds",
}
_FIELDS = [(name, bounds) for name, bounds in _BOUNDS.items() if name != "id_bytes"]
_COUNTED = {bounds: name for name, bounds in _BOUNDS.items()}

Kind = tuple[str, list[int]]  # dtype, shape of one item
_LONG: Kind = ("int64", [])
_KINDS: dict[str, Kind] = {  # of an empty store; the first row says the rest
    **dict.fromkeys(_BOUNDS, ("int32", [])),
    **dict.fromkeys(_BOUNDS.values(), _LONG),
    "target_span": ("int32", [2]),
    "labels": _LONG,
    "dropped": ("int64", [2]),
    "id_bytes": ("uint8", []),
}


class Ids(Sequence[str]):
    """The rows' ids, decoded when asked for."""

    def __init__(self, content: np.ndarray, bounds: np.ndarray) -> None:
        self._content, self._bounds = content, bounds

    def __len__(self) -> int:
        return len(self._bounds) - 1

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> list[str]: ...
    def __getitem__(self, row: int | slice) -> str | list[str]:
        if isinstance(row, slice):
            return [self[each] for each in range(len(self))[row]]
        row = range(len(self))[row]
        return _decoded(self._content[self._bounds[row] : self._bounds[row + 1]])


class Store:
    """Encoded rows by number.

    lengths: int64 (rows), the tokens of each row, all windows and special tokens counted.
    targets: int64 (rows), the targets of each row. labels: those of all targets, row after row.
    cut: bool (rows), whether something of the row was cut off. ids: the rows' ids.
    """

    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        self._arrays = arrays
        self.ids = Ids(arrays["id_bytes"], arrays["id_bounds"])
        self.lengths: np.ndarray = np.diff(arrays["token_bounds"])
        self.targets: np.ndarray = np.diff(arrays["target_bounds"])
        self.labels: np.ndarray = arrays["labels"]
        self.cut: np.ndarray = np.any(arrays["dropped"], axis=1)

    @classmethod
    def build(
        cls,
        examples: Iterable[Example],
        encode_many: Callable[[Iterable[Example]], Iterable[Encoded]],
        folder: Path | None = None,
        *,
        key: str = "",
    ) -> Store:
        """Encode all examples, in memory or into `folder/key`; there, what is complete already is only opened.

        encode_many: `Encoder.encode_many`, or anything that gives one `Encoded` per example in order.

        Raises:
            RunError: the folder cannot be written.
        """
        if folder is None:
            return cls(_in_memory(_paired(examples, encode_many)))
        if not key:
            raise ValueError("a store in a folder needs the key of its content")
        place = folder / key
        if _complete(place) is None:
            _write(_paired(examples, encode_many), place)
        return cls.open(place)

    @classmethod
    def open(cls, place: Path) -> Store:
        """The store in a folder, memory-mapped.

        Raises:
            RunError: it is missing or incomplete.
        """
        kinds = _complete(place)
        if kinds is None:
            raise RunError("holds no complete store of encoded rows", at=str(place), hint="remove it, it is built anew")
        return cls({name: _mapped(place / name, kind) for name, kind in kinds.items()})

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, row: int) -> Encoded:
        row = range(len(self))[row]
        arrays = self._arrays
        dropped_units, dropped_characters = arrays["dropped"][row].tolist()
        ranges = {bounds: slice(*arrays[bounds][row : row + 2].tolist()) for bounds in _COUNTED}
        fields = {name: arrays[name][ranges[bounds]] for name, bounds in _FIELDS}
        return Encoded(**fields, dropped_units=dropped_units, dropped_characters=dropped_characters)

    def __iter__(self) -> Iterator[Encoded]:
        return (self[row] for row in range(len(self)))


def _decoded(content: np.ndarray) -> str:
    return content.tobytes().decode("utf-8", "surrogatepass")


def _paired(
    examples: Iterable[Example], encode_many: Callable[[Iterable[Example]], Iterable[Encoded]]
) -> Iterator[tuple[str, Encoded]]:
    """(id, encoded) of each example; the encoder may read ahead."""
    ids: deque[str] = deque()

    def noted() -> Iterator[Example]:
        for example in examples:
            ids.append(example.id)
            yield example

    for encoded in encode_many(noted()):
        yield ids.popleft(), encoded


# Writing


def _in_memory(rows: Iterable[tuple[str, Encoded]]) -> dict[str, np.ndarray]:
    sinks = {name: BytesIO() for name in _KINDS}
    kinds = _stream(rows, sinks)
    return {name: _shaped(np.frombuffer(sinks[name].getbuffer(), np.uint8), kind) for name, kind in kinds.items()}


def _write(rows: Iterable[tuple[str, Encoded]], place: Path) -> None:
    """Write beside `place`, then rename; of two writers of the same content the first one stays."""
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(dir=place.parent, prefix=".partial-"))
        try:
            _fill(rows, partial)
            if _complete(place) is None:
                shutil.rmtree(place, ignore_errors=True)
                os.replace(partial, place)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise RunError(f"encoded rows cannot be written: {error.strerror}", at=str(place)) from error


def _fill(rows: Iterable[tuple[str, Encoded]], folder: Path) -> None:
    with ExitStack() as stack:
        kinds = _stream(rows, {name: stack.enter_context((folder / name).open("wb")) for name in _KINDS})
    sizes = {name: (folder / name).stat().st_size for name in _KINDS}
    (folder / INDEX).write_text(json.dumps({"format": FORMAT, "kinds": kinds, "sizes": sizes}))


def _stream(rows: Iterable[tuple[str, Encoded]], sinks: Mapping[str, BinaryIO]) -> dict[str, Kind]:
    """Append every row to the sinks, a few at a time; returns the arrays' kinds."""
    kinds: dict[str, Kind] = {}
    counts = dict.fromkeys(_COUNTED, 0)
    for bounds in counts:
        sinks[bounds].write(np.int64(0).tobytes())
    rows = iter(rows)
    while some := list(islice(rows, CHUNK_ROWS)):
        columns = _columns(some)
        kinds = kinds or _kinds({name: parts[0] for name, parts in columns.items()})
        for name, parts in columns.items():
            sinks[name].write(np.concatenate(parts, dtype=kinds[name][0]).tobytes())
        for bounds, name in _COUNTED.items():
            ends = counts[bounds] + np.cumsum([len(part) for part in columns[name]], dtype=np.int64)
            sinks[bounds].write(ends.tobytes())
            counts[bounds] = int(ends[-1])
    return kinds or _KINDS


def _columns(rows: list[tuple[str, Encoded]]) -> dict[str, list[np.ndarray]]:
    columns = {name: [getattr(encoded, name) for _, encoded in rows] for name, _ in _FIELDS}
    columns["dropped"] = [np.array([[row.dropped_units, row.dropped_characters] for _, row in rows], np.int64)]
    columns["id_bytes"] = [np.frombuffer(name.encode("utf-8", "surrogatepass"), np.uint8) for name, _ in rows]
    return columns


def _kinds(arrays: dict[str, np.ndarray]) -> dict[str, Kind]:
    return _KINDS | {name: (str(array.dtype), list(array.shape[1:])) for name, array in arrays.items()}


# Reading


def _complete(place: Path) -> dict[str, Kind] | None:
    """The kinds of a complete store's arrays, or None."""
    try:
        index = json.loads((place / INDEX).read_bytes())
        whole = index["format"] == FORMAT and all((place / n).stat().st_size == s for n, s in index["sizes"].items())
        return index["kinds"] if whole else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _mapped(path: Path, kind: Kind) -> np.ndarray:
    if path.stat().st_size == 0:  # nothing cannot be mapped
        return _shaped(np.empty(0, np.uint8), kind)
    return _shaped(np.memmap(path, np.uint8, mode="r").view(np.ndarray), kind)


def _shaped(content: np.ndarray, kind: Kind) -> np.ndarray:
    dtype, shape = kind
    array = content.view(dtype).reshape(-1, *shape)
    array.flags.writeable = False
    return array
