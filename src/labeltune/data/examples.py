"""A row as an `Example`: its text, its label or spans, each checked, each fault with the row's address."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Literal, cast

from labeltune.data import units
from labeltune.data.columns import LABEL, LABELS, NUMBER, ORDERED, TAGS, Columns
from labeltune.data.naming import label_key
from labeltune.data.readers.rows import Row, missing, written_list
from labeltune.data.settings import DataConfig
from labeltune.data.templates import Filled, Template, parse, shifted
from labeltune.errors import DataError, LabeltuneError, SettingsError, nearest
from labeltune.labels import spans_of
from labeltune.schema import Example, Label, Span

DEEPEST = 100
"""Levels of lists and objects in one field."""

Range = tuple[int, int]
Form = Literal["NFC", "NFKC"]


@dataclass(frozen=True)
class Reading:
    """How the rows of one split become examples. `ids`: names of label ids; None where the cells are names."""

    columns: Columns
    config: DataConfig
    ids: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        if self.config.normal_form != "none" and self.columns.kind == TAGS and not self.columns.tokens:
            hint = "offsets count characters of the text as it came: set it to 'none'"
            raise SettingsError("cannot be used with spans of characters", at="data.normal_form", hint=hint)
        if self._template and self._body_field:
            self._template.refuse_twice(self._body_field)
        if self._template and (field := self.config.long_field) and field not in self._template.fields:
            raise SettingsError(
                f"{field!r} is no field of the template",
                at="data.long_field",
                hint=nearest(field, self._template.fields),
            )

    @cached_property
    def _template(self) -> Template | None:
        return parse(self.columns.template) if self.columns.template else None

    @cached_property
    def _body_field(self) -> str | None:
        """The field of the template that spans and tokens sit on."""
        return self.columns.tokens or self.columns.text if self._template else None

    def example(self, row: Row) -> Example:
        """The example of a row.

        Raises:
            DataError: with the row's address and a way out.
        """
        if row.fault:
            raise row.fault
        try:
            return self._example(row)
        except LabeltuneError as error:
            if error.at is not None:
                raise
            raise DataError(error.message, at=row.at, hint=error.hint) from None

    def _example(self, row: Row) -> Example:
        refuse_unsound(row.fields)
        words = self._words(row.fields)
        filled = self._filled(row, words)
        body = filled.ranges[self._body_field] if self._body_field else None
        first, last = body or (0, len(filled.text))
        places = self._units(filled.text[first:last], words, templated=body is not None)
        spans = self._spans(row.fields, filled.text[first:last], words)
        if spans and self.config.tag_starts_only:
            spans = starts_of(spans, places or units.find(filled.text, self.config.unit))
        return Example(
            id=row.at,
            text=filled.text,
            label=self._label(row.fields),
            spans=shifted(spans, first) if spans is not None else None,
            units=None if places is None else tuple((start + first, end + first) for start, end in places),
            fields=row.fields,
            room=self._room(filled),
            body=body,
        )

    # Text

    def _words(self, fields: Mapping[str, object]) -> list[str] | None:
        """The given tokens."""
        if not self.columns.tokens:
            return None
        words = [self._normal(str(word)) for word in _listed(fields, self.columns.tokens, "token")]
        blank = next((number for number, word in enumerate(words, 1) if not word.strip()), None)
        if blank:
            raise DataError(f"token {blank} is empty", hint="leave it out, and its tag")
        return words

    def _filled(self, row: Row, words: Sequence[str] | None) -> Filled:
        """The text that the model reads, and where its fields lie in it."""
        values = row.fields if words is None else {**row.fields, cast(str, self.columns.tokens): " ".join(words)}
        if self._template:
            filled = self._template.fill(values, at=row.at, normal=self._normal)
        else:
            name = cast(str, self.columns.tokens or self.columns.text)
            text = self._normal(_text(values, name))
            filled = Filled(text, {name: (0, len(text))})
        if all(filled.text[start:end].isspace() or start == end for start, end in filled.ranges.values()):
            raise DataError("the text is empty", hint="remove the row, or set data.on_bad_row = 'skip'")
        return filled

    def _normal(self, text: str) -> str:
        return normalised(text, self.config.normal_form)

    def _room(self, filled: Filled) -> Range | None:
        if self._template is None:
            return None
        return filled.ranges[self.config.long_field] if self.config.long_field else filled.longest()

    def _units(self, text: str, words: Sequence[str] | None, *, templated: bool) -> list[Range] | None:
        """The places of given tokens; in a template those of the units found, since its own words carry no tags."""
        if words is not None:
            return token_places(words)
        return units.find(text, self.config.unit) if templated else None

    # Gold

    def _label(self, fields: Mapping[str, object]) -> Label | None:
        read = _LABEL_OF.get(self.columns.kind or "")
        return read(self, _gold_cell(fields, cast(str, self.columns.label))) if read else None

    def _one(self, cell: object) -> str:
        """A single label."""
        key = label_key(cell)
        if key is None or not key.strip():
            hint = "a single label is a text or a whole number (several: task = 'multilabel', a measure: 'regression')"
            if isinstance(cell, list) and cell and all(None not in _span_parts(part) for part in cell):
                hint = f"these look like spans: data.spans = {self.columns.label!r}"
            raise DataError(f"{_shown(cell)} is no label", hint=hint)
        return self._named(key)

    def _named(self, key: str) -> str:
        if self.ids is None:
            return key
        if key not in self.ids:
            what = "the row has no label" if key == "-1" else f"the label {key!r} has no name"
            raise DataError(what, hint=f"known ids: {', '.join(list(self.ids)[:10])}")
        return self.ids[key]

    def _ordered(self, cell: object) -> str:
        label, order = self._one(cell), self.config.label_order or ()
        if label not in order:
            raise DataError(f"the label {label!r} is not in data.label_order", hint=nearest(label, order))
        return label

    def _several(self, cell: object) -> tuple[str, ...]:
        """The labels, sorted; none is allowed."""
        cells = _parsed(cell)
        if isinstance(cells, str) and cells.startswith("[") and cells.endswith("]"):
            hint = 'write ["a", "b"], or a single label without brackets'
            raise DataError(f"{_shown(cell)} is no list of labels", hint=hint)
        labels = [self._one(part) for part in (cells if isinstance(cells, list) else [cells])]
        if len(set(labels)) < len(labels):
            raise DataError("a label is given twice", hint="name each label once")
        return tuple(sorted(labels))

    def _number(self, cell: object) -> float:
        try:
            number = float(cast(str, cell)) if not isinstance(cell, bool | list | dict) else math.nan
        except (ValueError, OverflowError):
            number = math.nan
        if not math.isfinite(number):
            decimal = isinstance(cell, str) and cell.count(",") == 1 and cell.replace(",", "").strip("+-").isdigit()
            hint = "write a point for the decimal comma" if decimal else "a regression label is a number such as 3.5"
            raise DataError(f"{_shown(cell)} is no finite number", hint=hint)
        return number

    def _spans(self, fields: Mapping[str, object], text: str, words: Sequence[str] | None) -> tuple[Span, ...] | None:
        """The gold spans of a tagging row, in characters of the column that they sit on."""
        if self.columns.tags and words is not None:
            return self._tagged(fields, words, self.columns.tags)
        return self._given(fields, text, self.columns.spans) if self.columns.spans else None

    def _tagged(self, fields: Mapping[str, object], words: Sequence[str], column: str) -> tuple[Span, ...]:
        tags = self.tags(fields, column)
        if len(tags) != len(words):
            raise DataError(f"{len(words)} tokens and {len(tags)} tags", hint="each token has one tag, O where none")
        places = token_places(words)
        # Read as IOB1, a row of any scheme loses no span; rows of IOB2 and BIOES give the same spans as in theirs.
        found = spans_of(tags, "IOB1")
        return tuple(Span(places[first][0], places[last - 1][1], label) for first, last, label in found)

    def keys(self, row: Row) -> list[str]:
        """The row's labels as they stand in the file, before ids get their names; none where it cannot be read."""
        columns = self.columns
        try:
            if columns.tags:
                return self.tags(row.fields, columns.tags)
            if columns.spans:
                return [key for cell in _several(row.fields[columns.spans]) if (key := label_key(_span_parts(cell)[2]))]
            cells = _several(row.fields[columns.label or ""])
            return [key for cell in cells if (key := label_key(cell)) is not None and key.strip() and key != "-1"]
        except (DataError, KeyError):
            return []

    def tags(self, fields: Mapping[str, object], column: str) -> list[str]:
        """The row's tags, by name."""
        keys = [label_key(cell) for cell in _listed(fields, column, "tag")]
        wrong = next((number for number, key in enumerate(keys, 1) if not key), None)
        if wrong:
            raise DataError(f"tag {wrong} is empty or no text", hint="a token without a label has the tag O")
        return [self._named(key) for key in keys if key]

    def _given(self, fields: Mapping[str, object], text: str, column: str) -> tuple[Span, ...]:
        if missing(fields.get(column)):
            raise DataError(f"the row has no spans ({column!r} is empty)", hint="a row without entities has []")
        cells = _parsed(fields[column])
        if not isinstance(cells, list):
            raise DataError(f"{column!r} is no list", hint=_SPAN_FORM)
        spans = sorted((self._span(cell, text) for cell in cells), key=lambda span: (span.start, span.end))
        for before, after in pairwise(spans):
            if after.start < before.end:
                how = "lies inside" if after.end <= before.end else "overlaps"
                message = f"the span {_place(after)} {how} the span {_place(before)}"
                raise DataError(message, hint="a character has one label: keep one of the two")
        return tuple(spans)

    def _span(self, cell: object, text: str) -> Span:
        start, end, label = _span_parts(cell)
        key = label_key(label)
        if not (_whole(start) and _whole(end)) or not key:
            raise DataError(f"{_shown(cell)} is no span", hint=_SPAN_FORM)
        span = Span(int(cast(int, start)), int(cast(int, end)), self._named(key))
        if span.start >= span.end or span.start < 0 or span.end > len(text):
            inside = min(span.start, span.end) >= 0 and max(span.start, span.end) <= len(text)
            order = "is empty" if span.start == span.end else "ends before it begins"
            what = order if inside else "lies outside the text"
            message = f"the span {_place(span)} {what} ({len(text)} characters)"
            raise DataError(message, hint="spans count characters from 0, the end exclusive")
        return span


_LABEL_OF: Mapping[str, Callable[[Reading, object], Label]] = {
    LABEL: Reading._one,
    ORDERED: Reading._ordered,
    LABELS: Reading._several,
    NUMBER: Reading._number,
}

_SPAN_FORM = 'a span is {"start": 0, "end": 5, "label": "person"} or [0, 5, "person"]'


def normalised(text: str, form: str) -> str:
    """The text in a Unicode normal form; as it is for `none`."""
    return text if form == "none" else unicodedata.normalize(cast(Form, form), text)


def token_places(words: Sequence[str]) -> list[Range]:
    """The character ranges of tokens joined by one space."""
    places, start = [], 0
    for word in words:
        places.append((start, start + len(word)))
        start += len(word) + 1
    return places


def starts_of(spans: Sequence[Span], places: Sequence[Range]) -> tuple[Span, ...]:
    """Each span cut to the first unit that it begins, for `data.tag_starts_only`; one that begins none stays whole."""
    ends = {start: end for start, end in places}
    return tuple(Span(span.start, min(span.end, ends.get(span.start, span.end)), span.label) for span in spans)


# Cells


def _text(values: Mapping[str, object], name: str) -> str:
    value = values.get(name)
    if missing(value):
        raise DataError(f"the row has no text ({name!r} is empty)", hint="fill it, or remove the row")
    if not isinstance(value, str):
        hint = "the text column holds texts; choose another with data.text"
        raise DataError(f"the text {name!r} is {_shown(value)}", hint=hint)
    return value


def _gold_cell(fields: Mapping[str, object], name: str) -> object:
    cell = fields.get(name)
    if missing(cell):
        what = "is NaN" if isinstance(cell, float) else "is empty" if name in fields else "is not there"
        hint = "label the row, or remove it (predict takes rows without labels)"
        raise DataError(f"the row has no label ({name!r} {what})", hint=hint)
    return cell


def _listed(fields: Mapping[str, object], name: str, what: str) -> list[object]:
    """A list, or a table's cell that holds one: JSON, or words parted by white space."""
    cell = fields.get(name)
    if missing(cell):
        raise DataError(f"the row has no {what}s ({name!r} is empty)", hint="fill it, or remove the row")
    cell = _parsed(cell)
    if isinstance(cell, str):
        return list(cell.split())
    if not isinstance(cell, list) or not cell:
        raise DataError(f"{name!r} is no list of {what}s but {_shown(cell)}", hint='for example ["New", "York"]')
    if what == "token" and (odd := next((part for part in cell if not isinstance(part, str)), None)) is not None:
        raise DataError(f"the token {_shown(odd)} is no text", hint="tokens are texts")
    return cell


def _parsed(cell: object) -> object:
    """A list written in a table's cell, as a list."""
    found = written_list(cell) if isinstance(cell, str) else None
    return cell if found is None else found


def _several(cell: object) -> list[object]:
    found = _parsed(cell)
    return found if isinstance(found, list) else [] if missing(found) else [found]


def _span_parts(cell: object) -> tuple[object, object, object]:
    if isinstance(cell, Mapping):
        return cell.get("start"), cell.get("end"), cell.get("label", cell.get("type"))
    if isinstance(cell, list) and len(cell) == 3:
        return cell[0], cell[1], cell[2]
    return None, None, None


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _place(span: Span) -> str:
    return f"{span.start}:{span.end} ({span.label})"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "…"


def refuse_unsound(fields: Mapping[str, object]) -> None:
    """Raise for a NUL character, a lone surrogate or endless nesting anywhere in a row."""
    todo: list[tuple[str, object, int]] = [(name, value, 0) for name, cell in fields.items() for value in (name, cell)]
    while todo:
        name, value, depth = todo.pop()
        if depth > DEEPEST:
            raise DataError(f"the field {name!r} is nested deeper than {DEEPEST} levels", hint="flatten it")
        if isinstance(value, str):
            _refuse_unsound_text(name, value)
        elif isinstance(value, list):
            todo += [(name, part, depth + 1) for part in value]
        elif isinstance(value, Mapping):
            todo += [(name, part, depth + 1) for pair in value.items() for part in pair]


def _refuse_unsound_text(name: str, text: str) -> None:
    if "\0" in text:
        message = f"the field {name!r} has a NUL character at character {text.index(chr(0)) + 1}"
        raise DataError(message, hint="remove it; a file full of them is UTF-16, save it as UTF-8")
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        message = f"the field {name!r} has a lone surrogate at character {error.start + 1}"
        raise DataError(message, hint="half of a character outside the basic plane: write the text again") from None
