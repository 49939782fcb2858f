"""Rows of a Parquet file, a batch at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from labeltune.data.readers.rows import Row, plain
from labeltune.errors import DataError

_ROWS = 256


def read_parquet(path: Path, name: str, columns: Sequence[str] | None) -> Iterator[Row]:
    """A row a row, addressed from 1: `train.parquet:17`."""
    number = 0
    with _opened(path, name) as file:
        batches = file.iter_batches(batch_size=_ROWS)
        while (rows := _next(batches, name, number)) is not None:
            for row in rows:
                number += 1
                yield Row(f"{name}:{number}", {column: plain(value) for column, value in row.items()})


def _next(batches: Iterator[pa.RecordBatch], name: str, number: int) -> list[dict[str, object]] | None:
    try:
        batch = next(batches, None)
        return None if batch is None else batch.to_pylist()
    except (pa.ArrowException, OSError, ValueError) as error:
        hint = "the file is damaged, or a text in it is not UTF-8: write it again"
        raise DataError(f"the rows after row {number} cannot be read ({error})", at=name, hint=hint) from None


def _opened(path: Path, name: str) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path, pre_buffer=False)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"this is no Parquet file ({error})", at=name, hint="copy or write it again") from None


def parquet_label_names(path: Path, name: str) -> Mapping[str, tuple[str, ...]]:
    """Names of label ids by column, where the `datasets` library has left them in the file."""
    with _opened(path, name) as file:
        note = (file.schema_arrow.metadata or {}).get(b"huggingface")
    try:
        features = json.loads(note)["info"]["features"] if note else {}
    except (ValueError, KeyError, TypeError):
        return {}
    return {column: names for column, feature in features.items() if (names := _names(feature))}


def _names(feature: object) -> tuple[str, ...]:
    """Of a ClassLabel, or of a list of them."""
    while isinstance(feature, Mapping) and isinstance(feature.get("feature"), Mapping):
        feature = feature["feature"]
    if isinstance(feature, Mapping) and feature.get("_type") == "ClassLabel":
        return tuple(map(str, feature.get("names") or ()))
    return ()
