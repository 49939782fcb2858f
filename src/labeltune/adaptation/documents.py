"""Text as documents: paragraphs parted by empty lines in text files, rows in data files, never held whole."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from labeltune.data.datasets import open_dataset
from labeltune.data.readers import PREFIX, SUFFIXES
from labeltune.data.readers.lines import Lines, no_such, uncompressed_name
from labeltune.data.settings import DataConfig
from labeltune.errors import DataError
from labeltune.storage import sha256_file

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


def open_texts(source: str, config: DataConfig) -> Texts:
    """A text file, a data file or folder, or `hf:owner/name`; `config` says which column of data holds the text.

    Raises:
        DataError: there is no such thing, it is empty, its text column cannot be told, or one that is set is not there.
    """
    path = Path(source).expanduser()
    if _is_table(source, path):
        rows = open_dataset(source, config, None, labelled=False, name="train", strict=True)
        key = _key(rows.sha256 or source, asdict(rows.columns), config.columns, config.normal_form)
        return Texts(source, key, lambda: (row.text for row in rows), rows.said)
    if not path.exists():
        raise no_such(path)
    return Texts(source, sha256_file(path), lambda: read_documents(path))


def _key(*facts: object) -> str:
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _is_table(source: str, path: Path) -> bool:
    return source.startswith(PREFIX) or path.is_dir() or Path(uncompressed_name(path)).suffix.lower() in _TABLES


def read_documents(path: Path) -> Iterator[str]:
    """The documents of a text file: lines up to an empty one, or up to `LONGEST` characters.

    Raises:
        DataError: the file is cut off, is not UTF-8, or holds NUL characters; its address names the line.
    """
    with Lines(path, path.name) as lines:
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
