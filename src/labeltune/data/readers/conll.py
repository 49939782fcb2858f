"""Sentences in columns: one token a line, a blank line between sentences (CoNLL)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from labeltune.data.readers.lines import Lines
from labeltune.data.readers.rows import Row
from labeltune.errors import DataError

LONGEST = 100_000
"""Tokens in one sentence; more means that the blank lines are missing."""

TOKENS, TAGS = "tokens", "tags"
_DOCUMENT = "-DOCSTART-"
_BLANK = " \t\r\n"
_SPACES = re.compile(r"[ \t]+")
_TAG = re.compile(r"O|[BIESLU](-.+)?", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Layout:
    """How a line parts into columns: by tab or by spaces, and what the columns are called."""

    tab: bool
    names: tuple[str, ...]

    def cells(self, line: str) -> list[str]:
        """The line's columns."""
        line = line.rstrip("\r\n")
        return line.split("\t") if self.tab else _SPACES.split(line.strip(" \t"))


def is_tag(cell: str) -> bool:
    """Does the cell look like a tag of IOB1, IOB2, BIOES or BILOU?"""
    return _TAG.fullmatch(cell) is not None


def read_conll(path: Path, name: str, columns: Sequence[str] | None) -> Iterator[Row]:
    """A row a sentence: a list per column. Its address is its first token's line; a fault has its own line's."""
    layout = find_layout(path, name, columns)
    with Lines(path, name) as lines:
        sentence = _Sentence(layout)
        for line in lines:
            blank = not line.strip(_BLANK)
            if not blank and _SPACES.split(line.strip(_BLANK))[0] != _DOCUMENT:
                sentence.add(line, lines.at, lines.take_fault())
            elif sentence.at:
                yield sentence.row()
                sentence = _Sentence(layout)
        if sentence.at:
            yield sentence.row()


class _Sentence:
    """The lines of one sentence on the way to a row."""

    def __init__(self, layout: Layout) -> None:
        self._layout, self.at = layout, ""
        self._columns: list[list[str]] = [[] for _ in layout.names]
        self._raw: list[str] = []
        self._fault: DataError | None = None

    def add(self, line: str, at: str, fault: DataError | None) -> None:
        cells = self._layout.cells(line)
        if not self.at and _is_comment(cells, line):
            return
        self.at = self.at or at
        if len(self._raw) >= LONGEST:
            raise DataError(
                f"this sentence has more than {LONGEST:,} tokens", at=self.at, hint="put blank lines between"
            )
        self._raw.append(line.rstrip("\r\n"))
        self._fault = self._fault or fault or _misfit(cells, self._layout, at)
        for column, cell in zip(self._columns, cells, strict=False):
            column.append(cell)

    def row(self) -> Row:
        if self._fault:
            return Row(self.at, {"raw": self._raw}, self._fault)
        return Row(self.at, dict(zip(self._layout.names, self._columns, strict=True)))


def _is_comment(cells: list[str], line: str) -> bool:
    """`# sent_id = 5`, before a sentence's first token. A token `#` has a tag behind it."""
    return line.startswith("# ") and not is_tag(cells[-1])


def _misfit(cells: list[str], layout: Layout, at: str) -> DataError | None:
    if len(cells) == len(layout.names):
        return None
    by = "tabs" if layout.tab else "spaces"
    message = f"this line has {len(cells)} columns where the file has {len(layout.names)} (parted by {by})"
    return DataError(message, at=at, hint="every token has all columns; a blank line ends a sentence")


def find_layout(path: Path, name: str, columns: Sequence[str] | None = None) -> Layout:
    """The layout that the first lines show; unless named, column 1 holds the tokens, the last one of tags the tags.

    Raises:
        DataError: `columns` names more or fewer columns than there are.
    """
    tab, rows = _sample(path, name)
    width = len(rows[0]) if rows else 2
    if columns and len(columns) != width and rows:
        message = f"data.columns names {len(columns)} columns where the file has {width}"
        raise DataError(message, at=name, hint="name every column, from the left")
    return Layout(tab, tuple(columns) if columns else _names(rows, width))


def _sample(path: Path, name: str, size: int = 1000) -> tuple[bool, list[list[str]]]:
    with Lines(path, name) as lines:
        sample = [line for line in islice(lines, size) if line.strip(_BLANK) and not line.startswith(("# ", _DOCUMENT))]
    tab = any("\t" in line for line in sample)
    layout = Layout(tab, ())
    return tab, [layout.cells(line) for line in sample]


def _names(rows: list[list[str]], width: int) -> tuple[str, ...]:
    tagged = [c for c in range(1, width) if all(len(row) != width or is_tag(row[c]) for row in rows)]
    names = [f"column_{number}" for number in range(1, width + 1)]
    names[0] = TOKENS
    if width > 1:
        names[tagged[-1] if tagged else width - 1] = TAGS
    return tuple(names)


def looks_like_conll(path: Path, name: str) -> bool:
    """Do all sampled lines have equally many columns, two or more, one of them tags?"""
    _, rows = _sample(path, name)
    widths = {len(row) for row in rows}
    if len(widths) != 1 or min(widths) < 2:
        return False
    return any(all(is_tag(row[column]) for row in rows) for column in range(1, min(widths)))
