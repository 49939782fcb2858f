"""The forms that answers are written in, by the suffix of the file: how a shard of it is kept, how shards become it."""

from __future__ import annotations

import csv
import gzip
import io
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from labeltune.answers import Answered
from labeltune.bulk.tables import cells, fitted, joined_schema, table_of
from labeltune.storage import to_json

GROUP = 65_536
"""Rows of a group in a Parquet file."""


@dataclass(frozen=True)
class Form:
    """ending: of a shard. write: rows into an open file. join: shards, in order, into a new file.

    `write` takes the labels that the run knows, `join` the output's name and the schema of the input if that had one.
    """

    ending: str
    write: Callable[[IO[bytes], Sequence[Answered], Sequence[str]], None]
    join: Callable[[Sequence[Path], Path, str, pa.Schema | None], None]


# Lines of JSON


def _write_lines(file: IO[bytes], rows: Sequence[Answered], labels: Sequence[str]) -> None:
    for row in rows:
        file.write(line(row).encode())


def line(row: Answered) -> str:
    """A row as a line of JSON."""
    return to_json(row.row, sort=False) + "\n"


def _join_lines(shards: Sequence[Path], to: Path, name: str, given: pa.Schema | None) -> None:
    with _opened(to, name) as file:
        for shard in shards:
            with shard.open("rb") as part:
                shutil.copyfileobj(part, file, 1 << 20)


# Tables


def _write_table(file: IO[bytes], rows: Sequence[Answered], labels: Sequence[str]) -> None:
    pq.write_table(table_of(rows, labels), file)


def _write_text_table(file: IO[bytes], rows: Sequence[Answered], labels: Sequence[str]) -> None:
    pq.write_table(table_of(rows, labels, nested=False), file)


def _join_parquet(shards: Sequence[Path], to: Path, name: str, given: pa.Schema | None) -> None:
    schema = _schema(shards, given)
    held: list[pa.Table] = []
    with to.open("wb") as file, pq.ParquetWriter(file, schema) as writer:
        for shard in shards:
            held.append(fitted(_read(shard), schema))
            if sum(map(len, held)) >= GROUP or shard == shards[-1]:
                writer.write_table(pa.concat_tables(held), row_group_size=GROUP)
                held = []


def _join_separated(separator: str) -> Callable[[Sequence[Path], Path, str, pa.Schema | None], None]:
    def join(shards: Sequence[Path], to: Path, name: str, given: pa.Schema | None) -> None:
        schema = _schema(shards, given)
        with _opened(to, name) as file, io.TextIOWrapper(file, "utf-8", newline="") as text:
            writer = csv.writer(_Lines(text), delimiter=separator, lineterminator="\r\n")
            writer.writerow(schema.names)
            for shard in shards:
                writer.writerows(cells(fitted(_read(shard), schema)))

    return join


@dataclass(frozen=True)
class _Lines:
    """Rows of a CSV writer, ended as Unix does. The writer quotes a CR in a cell only where it ends rows with one."""

    text: io.TextIOWrapper

    def write(self, row: str) -> None:
        self.text.write(row.removesuffix("\r\n") + "\n")


def _schema(shards: Sequence[Path], given: pa.Schema | None) -> pa.Schema:
    def columns(names: list[str]) -> Iterator[pa.Table]:
        return (_read(shard, names) for shard in shards)

    return joined_schema(lambda: map(pq.read_schema, shards), columns, given)


def _read(shard: Path, columns: list[str] | None = None) -> pa.Table:
    return pq.ParquetFile(shard).read(columns)


LINES = Form(".jsonl", _write_lines, _join_lines)
FORMS = {
    ".parquet": (parquet := Form(".parquet", _write_table, _join_parquet)),
    ".pq": parquet,
    ".csv": Form(".parquet", _write_text_table, _join_separated(",")),
    ".tsv": Form(".parquet", _write_text_table, _join_separated("\t")),
}
"""By suffix, before one of compression; every other name has lines of JSON."""


def form_of(name: str) -> Form:
    """The form of a file named so."""
    path = Path(name)
    inner = Path(path.stem) if path.suffix.lower() in _COMPRESSED else path
    return FORMS.get(inner.suffix.lower(), LINES)


# Compression

_COMPRESSED: dict[str, Callable[[IO[bytes]], Any]] = {
    ".gz": lambda file: gzip.GzipFile("", "wb", fileobj=file, mtime=0),
    ".zst": lambda file: zstandard.ZstdCompressor().stream_writer(file, closefd=False),
}


@contextmanager
def _opened(to: Path, name: str) -> Iterator[IO[bytes]]:
    """A file to write to, compressed where the name it will have says so."""
    wrap = _COMPRESSED.get(Path(name).suffix.lower())
    with to.open("wb") as file:
        if wrap is None:
            yield file
        else:
            with wrap(file) as inner:
                yield inner
