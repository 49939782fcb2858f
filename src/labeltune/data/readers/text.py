"""Rows of text files: JSON by line or as an array, comma and tab separated tables, `LABEL text` lines, plain lines."""

from __future__ import annotations

import codecs
import csv
import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from labeltune.data.readers.lines import LONGEST, Lines, open_bytes, read_bytes
from labeltune.data.readers.rows import Row, faulty
from labeltune.errors import DataError

FASTTEXT = "__label__"
_SPACE = " \t\r\n"

Columns = Sequence[str] | None


# JSON


def read_jsonl(path: Path, name: str, columns: Columns) -> Iterator[Row]:
    """One JSON object a line."""
    with Lines(path, name) as lines:
        for line in lines:
            fault = lines.take_fault()
            if fault:
                yield Row(lines.at, {"raw": line}, fault)
            elif line.strip(_SPACE):
                yield object_row(line, lines.at)


def object_row(text: str, at: str) -> Row:
    """The row in a JSON object; a fault where it is none."""
    try:
        value = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        message = f"this is no JSON: {error.msg.lower()} at character {error.pos + 1}"
        return faulty(at, message, "each line holds one JSON object", _short(text))
    except (ValueError, RecursionError) as error:  # a name twice, an integer of thousands of digits, endless nesting
        return faulty(at, f"this JSON cannot be used: {error}", "mend the row", _short(text))
    return value_row(value, at)


def value_row(value: object, at: str) -> Row:
    """The row that a parsed JSON value is; a fault where it is no object."""
    if isinstance(value, dict):
        return Row(at, value)
    kind = {list: "list", str: "string", type(None): "null"}.get(type(value), "number or truth value")
    return faulty(at, f"this row is a {kind}, not an object", 'a row looks like {"text": "…", "label": "…"}', value)


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"it names {twice!r} twice")
    return fields


def _short(text: str) -> str:
    return text.rstrip("\r\n")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique)


def read_json(path: Path, name: str, columns: Columns) -> Iterator[Row]:
    """A JSON array of objects, read piece by piece; addresses count from 0: `train.json[17]`."""
    array = _Array(path, name)
    for index, value in enumerate(array):
        yield value_row(value, f"{name}[{index}]")


class _Array:
    """The elements of a JSON array, with a buffer that grows to the longest element only."""

    def __init__(self, path: Path, name: str) -> None:
        self._path, self._name = path, name
        self._buffer, self._index = "", 0

    def __iter__(self) -> Iterator[object]:
        with open_bytes(self._path, self._name) as file:
            self._chunks = _characters(file, self._name)
            self._expect("[")
            if self._peek() == "]":
                self._expect("]")
            else:
                yield from self._elements()
            if self._peek():
                raise self._broken("there is text after the array")

    def _elements(self) -> Iterator[object]:
        while True:
            yield self._element()
            self._index += 1
            if self._peek() == "]":
                return self._expect("]")
            self._expect(",")

    def _element(self) -> object:
        self._peek()
        while True:
            try:
                value, end = _DECODER.raw_decode(self._buffer)
            except json.JSONDecodeError as error:
                ends = error.pos > len(self._buffer) - 16 or error.msg.startswith("Unterminated")
                if not (ends and self._grow()):
                    raise self._broken(error.msg.lower()) from None
            except (ValueError, RecursionError) as error:
                raise self._broken(str(error)) from None
            else:
                if end < len(self._buffer) or not self._grow():
                    self._buffer = self._buffer[end:]
                    return value

    def _peek(self) -> str:
        """The next character that is no white space, or nothing."""
        while True:
            self._buffer = self._buffer.lstrip(_SPACE)
            if self._buffer or not self._grow():
                return self._buffer[:1]

    def _expect(self, character: str) -> None:
        if self._peek() != character:
            raise self._broken(f"expecting {character!r}")
        self._buffer = self._buffer[1:]

    def _grow(self) -> bool:
        """Twice the buffer, or as much as there is; no element may pass the limit."""
        if len(self._buffer) > LONGEST:
            raise self._broken("it is longer than 64 MiB")
        wanted = len(self._buffer) + 1
        pieces = []
        while wanted > 0 and (piece := next(self._chunks, "")):
            pieces.append(piece)
            wanted -= len(piece)
        self._buffer += "".join(pieces)
        return bool(pieces)

    def _broken(self, message: str) -> DataError:
        hint = "a .json file holds one array of objects; one object a line is .jsonl"
        return DataError(f"this is no JSON: {message}", at=f"{self._name}[{self._index}]", hint=hint)


def _characters(file: BinaryIO, name: str) -> Iterator[str]:
    decoder, done = codecs.getincrementaldecoder("utf-8-sig")(), 0
    while True:
        try:
            chunk = read_bytes(file, 1 << 16, name)
            text = decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:
            raise DataError(f"byte {done + error.start + 1} is not UTF-8", at=name, hint="save it as UTF-8") from None
        done += len(chunk)
        if text:
            yield text
        elif not chunk:
            return


# Tables


def read_csv(path: Path, name: str, columns: Columns) -> Iterator[Row]:
    """Comma separated, strictly quoted."""
    return _table(path, name, columns, ",", csv.QUOTE_MINIMAL)


def read_csv_semicolon(path: Path, name: str, columns: Columns) -> Iterator[Row]:
    """Semicolon separated, strictly quoted, as spreadsheets write where the comma is a decimal sign."""
    return _table(path, name, columns, ";", csv.QUOTE_MINIMAL)


def read_csv_pipe(path: Path, name: str, columns: Columns) -> Iterator[Row]:
    """Parted by `|`, strictly quoted."""
    return _table(path, name, columns, "|", csv.QUOTE_MINIMAL)


def read_tsv(path: Path, name: str, columns: Columns) -> Iterator[Row]:
    """Tab separated, strictly quoted."""
    return _table(path, name, columns, "\t", csv.QUOTE_MINIMAL)


def read_tsv_unquoted(path: Path, name: str, columns: Columns) -> Iterator[Row]:
    """Tab separated, quotation marks being characters like any other."""
    return _table(path, name, columns, "\t", csv.QUOTE_NONE)


def _table(path: Path, name: str, columns: Columns, delimiter: str, quoting: int) -> Iterator[Row]:
    """Rows by column name: `columns`, or the first row. A first row that repeats `columns` is passed over."""
    with Lines(path, name) as lines:
        records = _records(lines, delimiter, quoting)
        header = list(columns) if columns else None
        for at, cells, fault in records:
            if header is None:
                header = _header(at, cells, fault)
            elif fault or len(cells) != len(header):
                yield Row(at, {"raw": cells}, fault or _width(at, cells, header, named=columns is not None))
            elif lines.number > 1 or cells != header:
                yield Row(at, dict(zip(header, cells, strict=True)))


def _records(lines: Lines, delimiter: str, quoting: int) -> Iterator[tuple[str, list[str], DataError | None]]:
    """(address of the first line, cells, fault) of every record that is not blank."""
    csv.field_size_limit(max(csv.field_size_limit(), LONGEST))
    reader = csv.reader(lines, delimiter=delimiter, quoting=quoting, strict=True)  # type: ignore[arg-type]  # int is meant
    while True:
        at = f"{lines.name}:{lines.number + 1}"
        try:
            cells = next(reader, None)
            fault = lines.take_fault()
        except csv.Error as error:
            cells, fault = [], lines.take_fault() or _unquoted(at, error)
            if str(error).startswith(("unexpected end", "field larger")):
                raise fault from None
        if cells is None:
            return
        if cells or fault:
            yield at, cells, fault


def _unquoted(at: str, error: csv.Error) -> DataError:
    hint = 'a cell with a quotation mark is written in quotation marks, each one inside doubled: "a ""b"" c"'
    return DataError(f"the quoting is broken: {error}", at=at, hint=hint)


def _header(at: str, cells: list[str], fault: DataError | None) -> list[str]:
    if fault:
        raise fault
    twice = next((cell for cell in cells if cells.count(cell) > 1), None)
    if twice is not None:
        raise DataError(
            f"the header names {twice!r} twice", at=at, hint="rename one, or set data.columns if it is a row"
        )
    return cells


def _width(at: str, cells: list[str], header: list[str], *, named: bool) -> DataError:
    promised = "data.columns names" if named else "the header has"
    hint = "a cell with a separator or a line end in it is written in quotation marks"
    return DataError(f"this row has {len(cells)} columns where {promised} {len(header)}", at=at, hint=hint)


def plausible_table(path: Path, name: str, delimiter: str, quoting: int, rows: int = 1000) -> bool:
    """Do the first rows have two columns or more, equally many, and no fault?"""
    with Lines(path, name) as lines:
        try:
            found = list(islice(_records(lines, delimiter, quoting), rows))
        except DataError:
            return False
    widths = {len(cells) for _, cells, _ in found}
    return len(widths) == 1 and min(widths) > 1 and not any(fault for _, _, fault in found)


# Lines


def read_lines(path: Path, name: str, columns: Columns) -> Iterator[Row]:
    """`LABEL text`, as in the stsa files; fastText's `__label__x __label__y text` may carry several labels."""
    for row in read_text(path, name, columns):
        yield row if row.fault else Row(row.at, _labelled(str(row.fields["text"])))


def _labelled(line: str) -> dict[str, object]:
    labels: list[str] = []
    rest = line
    while not labels or (rest.startswith(FASTTEXT) and labels[0].startswith(FASTTEXT)):
        word, rest = first_word(rest)
        labels.append(word)
    names = [label.removeprefix(FASTTEXT) for label in labels]
    return {"label": names[0] if len(names) == 1 else names, "text": rest}


def first_word(line: str) -> tuple[str, str]:
    """(first word, the rest), parted at one space or tab."""
    cut = next((place for place, character in enumerate(line) if character in " \t"), len(line))
    return line[:cut], line[cut + 1 :]


def read_text(path: Path, name: str, columns: Columns) -> Iterator[Row]:
    """A text a line; blank lines are none."""
    with Lines(path, name) as lines:
        for line in lines:
            if line.strip(_SPACE):
                yield Row(lines.at, {"text": line.rstrip("\r\n")}, lines.take_fault())
