"""What `predict` is given: files, patterns, hub names and standard input, as sources whose rows pass once."""

from __future__ import annotations

import glob
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pyarrow.parquet as pq

from labeltune.data.datasets import QUARANTINE
from labeltune.data.readers import PREFIX, Row, Source, Unlabelled, open_source
from labeltune.data.readers.lines import BROKEN, open_bytes
from labeltune.data.readers.rows import faulty
from labeltune.data.readers.text import object_row
from labeltune.data.settings import DataConfig
from labeltune.data.streams import passing
from labeltune.errors import DataError
from labeltune.storage import expanded, is_there

STDIN = "-"
ROW_A_LINE = ("jsonl", "csv", "csv_semicolon", "csv_pipe", "tsv", "tsv_unquoted", "lines", "text")
_LOOKED_AT = 4 * 1024 * 1024


def sources_of(files: Sequence[str | Path], config: DataConfig, unlabelled: Unlabelled | None = None) -> list[Source]:
    """A source for each file, in order; a pattern stands for its files in the order of their names.

    unlabelled: what the run that answers knows.

    Raises:
        DataError: there is no such file, no file that a pattern names, or its format is none that is known.
    """
    return [_source(name, config, unlabelled) for given in files for name in _named(str(given))]


def _named(given: str) -> list[str]:
    if given == STDIN or given.startswith(PREFIX) or not glob.has_magic(given) or is_there(expanded(given)):
        return [given]
    found = [name for name in glob.glob(str(expanded(given)), recursive=True) if not name.endswith(f".{QUARANTINE}")]
    if not found:
        raise DataError("no file is named so", at=given, hint="check the pattern")
    return sorted(found)


def _source(name: str, config: DataConfig, unlabelled: Unlabelled | None) -> Source:
    if name == STDIN:
        return passing(_standard_input(), "stdin")
    return open_source(name, name=Path(name).name, base=Path(), columns=config.columns, unlabelled=unlabelled)


def _standard_input() -> Iterator[Row]:
    """A JSON object or a text on each line."""
    for number, line in enumerate(sys.stdin.buffer, 1):
        at = f"stdin:{number}"
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            if text.strip():
                yield object_row(text, at) if text.lstrip().startswith("{") else Row(at, {"text": text})
        except UnicodeDecodeError as error:
            yield faulty(at, f"byte {error.start + 1} is no UTF-8", "convert it to UTF-8", line.hex())


def rows_in(sources: Iterable[Source]) -> int | None:
    """About how many rows there are, without reading them; None where that cannot be told."""
    counts = [_rows_in(source) for source in sources]
    return None if None in counts else sum(count for count in counts if count is not None)


def _rows_in(source: Source) -> int | None:
    """Exact for Parquet; else by the lines in the file's beginning, to which compressed bytes they take."""
    if len(source.files) != 1 or not source.files[0].is_file():
        return None
    (path,) = source.files
    if source.format == "parquet":
        return int(pq.ParquetFile(path).metadata.num_rows)
    if source.format not in ROW_A_LINE:
        return None
    try:
        with path.open("rb") as beneath, open_bytes(path, source.name) as file:
            head = file.read(_LOOKED_AT)
            plain = beneath.read(4) == head[:4]
    except BROKEN:  # what is wrong is said where the rows are read, with its place
        return None
    lines = head.count(b"\n") + (not head.endswith(b"\n"))
    if len(head) < _LOOKED_AT:
        return lines
    return round(lines * path.stat().st_size / len(head)) if plain else None
