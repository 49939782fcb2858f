"""Anything that holds rows as a `Source`: its format is found, told, and looked up in the table `READERS`.

A reader is a function (path, name, columns) -> rows with addresses. A row that cannot be read comes with its fault, so
that the next one still can be; what makes the whole file unreadable is raised.
"""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from labeltune.data.readers.conll import TAGS, find_layout, looks_like_conll, read_conll
from labeltune.data.readers.folder import article_files, categories, is_livedoor, left_out, read_folder
from labeltune.data.readers.hub import PREFIX, is_saved, open_hub, open_saved, splits_of
from labeltune.data.readers.lines import Lines, no_such, open_bytes, read_bytes, uncompressed_name
from labeltune.data.readers.memory import LABEL, item_row, open_memory
from labeltune.data.readers.parquet import parquet_label_names, read_parquet
from labeltune.data.readers.rows import PART, Row, Source
from labeltune.data.readers.text import (
    FASTTEXT,
    first_word,
    object_row,
    plausible_table,
    read_csv,
    read_csv_pipe,
    read_csv_semicolon,
    read_json,
    read_jsonl,
    read_lines,
    read_text,
    read_tsv,
    read_tsv_unquoted,
)
from labeltune.data.readers.trees import looks_like_trees, read_trees
from labeltune.errors import DataError
from labeltune.storage import expanded, is_there
from labeltune.wording import counted

__all__ = [
    "PREFIX",
    "READERS",
    "SUFFIXES",
    "Row",
    "Source",
    "Unlabelled",
    "is_saved",
    "item_row",
    "open_source",
    "recognise_format",
    "splits_of",
]

Reader = Callable[[Path, str, Sequence[str] | None], Iterator[Row]]

READERS: Mapping[str, Reader] = {
    "jsonl": read_jsonl,
    "json": read_json,
    "csv": read_csv,
    "csv_semicolon": read_csv_semicolon,
    "csv_pipe": read_csv_pipe,
    "tsv": read_tsv,
    "tsv_unquoted": read_tsv_unquoted,
    "conll": read_conll,
    "lines": read_lines,
    "text": read_text,
    "trees": read_trees,
    "parquet": read_parquet,
    "folder": read_folder,
}

SUFFIXES = {
    **dict.fromkeys((".jsonl", ".ndjson"), "jsonl"),
    **dict.fromkeys((".parquet", ".pq"), "parquet"),
    **dict.fromkeys((".conll", ".bio", ".iob", ".iob2", ".bioes"), "conll"),
}
"""Suffixes that settle the format; .json, .csv and .tsv leave a choice that the content settles."""

_TOLD = {
    "json": "a JSON array",
    "csv_semicolon": "a table parted by semicolons",
    "csv_pipe": "a table parted by `|`",
    "tsv": "a table parted by tabs",
    "tsv_unquoted": "a table parted by tabs, quotation marks being plain characters",
    "conll": "tokens in columns (CoNLL)",
    "lines": "lines of `LABEL text`",
    "text": "one text a line",
    "trees": "one labelled tree a line (Stanford Sentiment Treebank)",
}
_SAMPLE = 200


@dataclass(frozen=True)
class Unlabelled:
    """Rows for a trained run: without labels, unless they are its own.

    labels: those that it knows, and their ids. tagged: whether it tags tokens. numbers: whether its labels are numbers.
    """

    labels: Collection[str]
    tagged: bool
    numbers: bool = False


def open_source(
    data: Any,
    *,
    name: str,
    base: Path,
    columns: Sequence[str] | None = None,
    split: str | None = None,
    unlabelled: Unlabelled | None = None,
) -> Source:
    """Open a path, `hf:owner/name[:config]`, a table name -> path, or rows in memory; only the beginning is read.

    name: what in-memory rows are called, and the split taken from a data set with several, unless `split` says.
    base: the folder that relative paths begin at. unlabelled: for whom plain lines are texts, whatever they begin with.

    Raises:
        DataError: there is no such thing, or its format is none that is known.
    """
    if isinstance(data, str) and data.startswith(PREFIX):
        return open_hub(data, name, split)
    if isinstance(data, str | os.PathLike):
        return _open_path(base / expanded(data), name, columns, split, unlabelled)
    if isinstance(data, Mapping) and data and all(isinstance(part, str | os.PathLike) for part in data.values()):
        return _joined({key: open_source(part, name=name, base=base, columns=columns) for key, part in data.items()})
    return open_memory(data, name, split)


def _open_path(
    path: Path, name: str, columns: Sequence[str] | None, split: str | None, unlabelled: Unlabelled | None
) -> Source:
    if not is_there(path):
        raise no_such(path)
    if is_saved(path):
        return open_saved(path, name, split)
    if not path.is_dir() and not path.is_file():
        hint = "write its content to a file first: the rows are read more than once"
        raise DataError("this is no regular file", at=str(path), hint=hint)
    name = path.name or path.resolve().name
    kind = "folder" if path.is_dir() else recognise_format(path, name, unlabelled)
    names = parquet_label_names(path, name) if kind == "parquet" else {}
    said = _said(path, name, kind, columns)
    return Source(name, kind, lambda: READERS[kind](path, name, columns), (path,), names, said)


def _said(path: Path, name: str, kind: str, columns: Sequence[str] | None) -> tuple[str, ...]:
    """What was found out about a file, where its suffix did not say it."""
    if kind == "folder":
        return _folder_said(path, name)
    settled = SUFFIXES.get(Path(uncompressed_name(path)).suffix.lower()) == kind
    said = [f"{name} is read as {_TOLD[kind]}"] if kind in _TOLD and not settled else []
    if kind == "conll" and not columns:
        names = find_layout(path, name).names
        if len(names) > 2:
            said.append(
                f"{name}: the tags are column {names.index(TAGS) + 1} of {len(names)} (data.columns names them)"
            )
    return tuple(said)


def _folder_said(path: Path, name: str) -> tuple[str, ...]:
    folders = categories(path)
    first = next((file for folder in folders for file in article_files(folder)), None)
    if first is None:
        return (f"{name} is read as one file of lines per category",)
    layout = "URL, date, title and body" if is_livedoor(first) else "one text"
    said = [f"{name} is read as {len(folders)} categories of files, each holding {layout}"]
    if rest := left_out(path):
        said.append(f"{name}: {counted(rest, 'file', 'files')} in the category folders left out: no articles")
    return tuple(said)


def _joined(parts: Mapping[str, Source]) -> Source:
    """Several sources as one. Plain lines take the table's name as their label; rows with labels keep it as `part`."""
    names = Counter(part.name for part in parts.values())
    sources = {key: (part, part.name if names[part.name] == 1 else f"{key}:{part.name}") for key, part in parts.items()}

    def rows() -> Iterator[Row]:
        for key, (part, name) in sources.items():
            extra = {LABEL if part.format == "text" else PART: key}
            for row in part.rows():
                at = name + row.at.removeprefix(part.name)
                if PART in extra and PART in row.fields:
                    message = f"the column {PART!r} is taken: in a table of files it says which one a row is of"
                    raise DataError(message, at=at, hint="rename the column")
                yield Row(at, {**extra, **row.fields}, _moved(row.fault, part.name, name))

    label_names = {column: found for part in parts.values() for column, found in part.label_names.items()}
    if any(part.label_names != label_names for part in parts.values()):
        raise DataError("the files name their label ids differently", at=", ".join(parts), hint="set data.label_names")
    files = tuple(file for part in parts.values() for file in part.files)
    said = tuple(sentence for part in parts.values() for sentence in part.said)
    return Source(", ".join(parts), "joined", rows, files, label_names, said)


def _moved(fault: DataError | None, before: str, after: str) -> DataError | None:
    """The fault under the part's longer name."""
    if fault is None or fault.at is None or before == after:
        return fault
    return DataError(fault.message, at=after + fault.at.removeprefix(before), hint=fault.hint)


# Formats


def recognise_format(path: Path, name: str, unlabelled: Unlabelled | None = None) -> str:
    """The reader for a file: by its suffix, and by its content where the suffix leaves a choice.

    Raises:
        DataError: the file is empty.
    """
    suffix = Path(uncompressed_name(path)).suffix.lower()
    if suffix in SUFFIXES:
        return SUFFIXES[suffix]
    with open_bytes(path, name) as file:
        head = read_bytes(file, 4, name)
    if head == b"PAR1":
        return "parquet"
    if head in (b"PK\x03\x04", b"\xd0\xcf\x11\xe0"):
        raise DataError("this is a spreadsheet, or a zip file", at=name, hint="save it as CSV (UTF-8) or Parquet")
    sample = _sample(path, name)
    if not sample:
        raise DataError("this file is empty", at=name, hint="a data file has at least one row")
    if len(sample) == 1 and "\r" in sample[0]:
        raise DataError("its lines end in CR alone", at=name, hint="save it with the line ends of Unix or Windows")
    if suffix == ".json":
        return "json" if sample[0].lstrip().startswith("[") else "jsonl"
    if suffix == ".csv":
        return _csv(sample[0])
    if suffix == ".tsv":
        return _tsv(path, name)
    return _by_content(path, name, sample, unlabelled)


def _sample(path: Path, name: str) -> list[str]:
    with Lines(path, name) as lines:
        return [line.rstrip("\r\n") for line in islice(lines, _SAMPLE) if line.strip()]


def _csv(header: str) -> str:
    """A header without a comma is parted by tabs, semicolons or `|`, where it has them."""
    parted = {",": "csv", "\t": "tsv", ";": "csv_semicolon", "|": "csv_pipe"}
    return next((kind for mark, kind in parted.items() if mark in header), "csv")


def _tsv(path: Path, name: str) -> str:
    """Quoted where the first thousand rows can be read so: quotation marks are common in unquoted text."""
    quoted = plausible_table(path, name, "\t", csv.QUOTE_MINIMAL)
    return "tsv" if quoted or not plausible_table(path, name, "\t", csv.QUOTE_NONE) else "tsv_unquoted"


def _by_content(path: Path, name: str, sample: list[str], unlabelled: Unlabelled | None) -> str:
    first = sample[0].lstrip()
    if first.startswith("{") and object_row(first, name).fault is None:
        return "jsonl"
    if first.startswith("[") and first.lstrip("[ \t")[:1] in ("{", ""):
        return "json"
    if looks_like_trees(sample):
        return "trees"
    if (unlabelled is None or unlabelled.tagged) and looks_like_conll(path, name):
        return "conll"
    if _labels_first([first_word(line)[0] for line in sample], unlabelled):
        return "lines"
    if all("\t" in line for line in sample) and plausible_table(path, name, "\t", csv.QUOTE_NONE):
        return _tsv(path, name)
    return "text"


def _labels_first(words: Sequence[str], unlabelled: Unlabelled | None) -> bool:
    """Are the lines' first words labels: whole numbers, fastText's, or a few, each seen five times on average?

    One word that begins every line is no label: there would be nothing to tell apart. For a trained run only its own
    labels are some: what customers write begins with few words, too.
    """
    if all(word.startswith(FASTTEXT) for word in words):
        return True
    if unlabelled is not None and not unlabelled.numbers:
        return all(word in unlabelled.labels for word in words)
    if all(word.lstrip("-").isdecimal() for word in words):
        return True
    if unlabelled is not None:
        return False
    return 1 < len(set(words)) <= len(words) / 5
