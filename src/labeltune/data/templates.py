"""Fields of a row into one text: `"{title}: {body}"`. Names only, no attributes, no indices; spans shift along."""

from __future__ import annotations

import string
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from labeltune.errors import DataError, SettingsError, nearest
from labeltune.schema import Span

AT = "data.template"


@dataclass(frozen=True, slots=True)
class Filled:
    """The text, and the character range of each field's first appearance in it."""

    text: str
    ranges: Mapping[str, tuple[int, int]]

    def longest(self) -> tuple[int, int]:
        """The range of the longest field."""
        return max(self.ranges.values(), key=lambda place: place[1] - place[0])


@dataclass(frozen=True, slots=True)
class Template:
    """Literal texts and the field names between them: `literals[0] {fields[0]} literals[1] …`."""

    literals: tuple[str, ...]
    fields: tuple[str, ...]

    def fill(self, values: Mapping[str, object], *, at: str, normal: Callable[[str], str] = str) -> Filled:
        """The text of a row; `normal` is applied to what the fields hold.

        Raises:
            DataError: a field is missing or empty (null), or holds no text or number.
        """
        text = self.literals[0]
        ranges: dict[str, tuple[int, int]] = {}
        for name, literal in zip(self.fields, self.literals[1:], strict=True):
            value = normal(_written(name, values, at))
            ranges.setdefault(name, (len(text), len(text) + len(value)))
            text += value + literal
        return Filled(text, ranges)

    def refuse_missing(self, columns: Iterable[str], *, at: str) -> None:
        """Raise a DataError for the first field that is no column."""
        known = list(columns)
        for name in self.fields:
            if name not in known:
                raise _missing(name, known, at)

    def refuse_twice(self, name: str) -> None:
        """Raise a SettingsError where `name`, which carries spans, does not appear exactly once."""
        if self.fields.count(name) != 1:
            often = "does not name" if name not in self.fields else "names more than once"
            message = f"the template {often} the column {name!r}, which the labels sit on"
            raise SettingsError(message, at=AT, hint=f"write {{{name}}} once")


def _missing(name: str, known: list[str], at: str) -> DataError:
    plain = "" if name.isidentifier() else " (a template takes names of columns, no attributes and no indices)"
    return DataError(f"{AT} names {name!r}, which is no column{plain}", at=at, hint=nearest(name, known))


def _written(name: str, values: Mapping[str, object], at: str) -> str:
    if name not in values:
        raise _missing(name, list(values), at)
    value = values[name]
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float) and value == value:
        return str(value)
    empty = value is None or isinstance(value, float)
    what = "is empty" if empty else f"is a {type(value).__name__}, not a text"
    raise DataError(
        f"the field {name!r} of the template {what}", at=at, hint="fill it, or leave it out of the template"
    )


def parse(template: str) -> Template:
    """Read a template; `{{` and `}}` are braces.

    Raises:
        SettingsError: unbalanced braces, no field, a field without name, a conversion or a format.
    """
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        message = f"cannot be read: {error}"
        raise SettingsError(message, at=AT, hint="write a field as {name}, a brace as {{ or }}") from None
    literals, fields = [""], []
    for literal, name, form, conversion in parts:
        literals[-1] += literal
        if name is not None:
            fields.append(_checked(name, form, conversion))
            literals.append("")
    if not fields:
        raise SettingsError("the template names no field", at=AT, hint="for example {text} or {title}\\n{body}")
    return Template(tuple(literals), tuple(fields))


def _checked(name: str, form: str | None, conversion: str | None) -> str:
    if form or conversion:
        message = f"the field {name!r} has a format or a conversion"
        raise SettingsError(message, at=AT, hint=f"write {{{name}}}: a template only puts texts together")
    if not name or name.isdecimal():
        raise SettingsError("a field is named by position", at=AT, hint="name the column: {text}")
    return name


def shifted(spans: Iterable[Span], by: int) -> tuple[Span, ...]:
    """The spans, moved along with the text they sit on."""
    return tuple(Span(span.start + by, span.end + by, span.label) for span in spans)
