"""Text as documents: paragraphs parted by empty lines in text files, rows in data files, never held whole.

A folder is its files, each read as if it were named alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from labeltune.data.datasets import open_dataset
from labeltune.data.readers import PREFIX, SUFFIXES, is_saved
from labeltune.data.readers.lines import Lines, no_such, uncompressed_name
from labeltune.data.settings import DataConfig
from labeltune.errors import DataError
from labeltune.storage import expanded, sha256_file

LONGEST = 1 << 20
"""Characters of a document; a longer one (a book without an empty line) is divided before it is tokenised."""

_TABLES = {*SUFFIXES, ".json", ".csv", ".tsv"}


@dataclass(frozen=True)
class Texts:
    """Documents that can be read as often as you like.

    key: a hash of the file (of what is no file, its name) and of the settings that decide what is read in it.
    """

    name: str
    key: str
    documents: Callable[[], Iterator[str]]
    said: tuple[str, ...] = ()


def open_texts(source: str, config: DataConfig, quarantine: Path | None = None) -> Texts:
    """A text file, a data file, a folder of both, or `hf:owner/name`; `config` says which column of rows is the text.

    A saved dataset is a folder, too, but its rows are read. quarantine: rows that cannot be used are added to it.

    Raises:
        DataError: there is no such thing, it is empty, its text column cannot be told, or one that is set is not there.
    """
    path = expanded(source)
    if not source.startswith(PREFIX) and path.is_dir() and not is_saved(path):
        return _joined(source, [open_texts(str(file), config, quarantine) for file in _files(path)])
    if _is_table(source, path):
        rows = open_dataset(
            source,
            config,
            None,
            labelled=False,
            name="train",
            quarantine=quarantine,
            strict=True,
            add=quarantine is not None,
        )
        key = _key(rows.sha256 or source, asdict(rows.columns), config.columns, config.normal_form)
        return Texts(source, key, lambda: (row.text for row in rows), rows.said)
    if not path.exists():
        raise no_such(path)
    return Texts(source, sha256_file(path), lambda: read_documents(path))


def _files(folder: Path) -> list[Path]:
    """The files in a folder and below it, by name, hidden ones excepted."""
    inside = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    found = [folder / path for path in inside if not any(part.startswith(".") for part in path.parts)]
    if not found:
        raise DataError("there is no file in this folder", at=str(folder), hint="name files, or a folder with some")
    return found


def _joined(source: str, parts: Sequence[Texts]) -> Texts:
    """Several texts as one, in order."""
    said = tuple(sentence for part in parts for sentence in part.said)
    key = _key(*(part.key for part in parts))
    return Texts(source, key, lambda: (text for part in parts for text in part.documents()), said)


def _key(*facts: object) -> str:
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _is_table(source: str, path: Path) -> bool:
    return source.startswith(PREFIX) or path.is_dir() or Path(uncompressed_name(path)).suffix.lower() in _TABLES


def read_documents(path: Path) -> Iterator[str]:
    """The documents of a text file: lines up to an empty one, or up to `LONGEST` characters; a huge line in parts.

    Raises:
        DataError: the file is cut off, is not UTF-8, or holds NUL characters; its address names the line.
    """
    with Lines(path, path.name, divide=True) as lines:
        held: list[str] = []
        size = 0
        for line in lines:
            _refuse_binary(line, lines)
            if line.strip():
                held.append(line.rstrip("\r\n"))
                size += len(line)
            if held and (size > LONGEST or not line.strip()):
                yield "\n".join(held)
                held, size = [], 0
        if held:
            yield "\n".join(held)


def _refuse_binary(line: str, lines: Lines) -> None:
    if fault := lines.take_fault():
        raise fault
    if "\0" in line:
        raise DataError("holds a NUL character", at=lines.at, hint="this is no text file: leave it out")


def divided(text: str, longest: int = LONGEST) -> Iterator[str]:
    """The text in parts of at most `longest` characters, cut behind white space where there is some."""
    start = 0
    while len(text) - start > longest:
        end = start + longest
        space = max(text.rfind(" ", start, end), text.rfind("\n", start, end))
        end = space + 1 if space > start + longest // 2 else end
        yield text[start:end]
        start = end
    yield text[start:]
