"""Frozen settings that refuse unknown names: the base of every section, and the check against a table of choices."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from labeltune.errors import SettingsError, nearest

S = TypeVar("S", bound="Settings")

ALL_SETTINGS = "`labeltune settings` lists them all"


class Settings(BaseModel):
    """A section of settings: immutable, unknown names refused; `build` it from what a user wrote."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True, protected_namespaces=()
    )


@dataclass(frozen=True)
class Choice:
    """A check that a value is one of some names; meant: what others call them."""

    names: tuple[str, ...]
    meant: Mapping[str, str] = field(compare=False)

    def __call__(self, value: str) -> str:
        """The value itself; else an error with the nearest name."""
        if value not in self.names:
            close = nearest(self.meant.get(value, value), self.names)
            way_out = f"; {close}" if close.startswith("did") else ""  # else it would list the names again
            raise ValueError(f"{value!r} is not one of {', '.join(self.names)}{way_out}")
        return value


def one_of(table: Iterable[str], *, meant: Mapping[str, str] = {}) -> AfterValidator:
    """A validator: the value is a name of `table`; the error says the nearest one, or what others mean by a name."""
    return AfterValidator(Choice(tuple(table), meant))


def build(kind: type[S], values: Mapping[str, Any], *, at: str = "") -> S:
    """Validate `values` into `kind`; a SettingsError names the setting (`train.lr`) and the way out.

    Values are taken as JSON would say them, and nothing is converted: a list is a tuple, but `"3"` is no number and 1
    no truth value. `at` is the file they came from, put before the setting's name.
    """
    try:
        return kind.model_validate_json(json.dumps(values, default=_sayable), strict=True)
    except ValidationError as error:
        raise _first(error, kind, at) from None


def _sayable(value: object) -> object:
    """NumPy's numbers and arrays as Python's; paths, and what no setting is, as text."""
    return value.tolist() if hasattr(value, "tolist") else str(value)


def _first(error: ValidationError, kind: type[Settings], at: str) -> SettingsError:
    """The clearest of the faults: where a value may be of several types, that of the type which it nearly is."""
    fault = max(error.errors(include_url=False), key=_clarity)
    if fault["type"] == "json_invalid":
        return SettingsError("a text is no Unicode", at=at or None, hint="give files names in UTF-8")
    name, description = _named(fault["loc"], kind)
    place = f"{at}: {name}" if at else name
    if fault["type"] == "extra_forbidden":
        close = nearest(name, kind.model_fields if isinstance(fault["input"], dict) else known_names(kind))
        return SettingsError("unknown setting", at=place, hint=close if len(close) < 200 else ALL_SETTINGS)
    if fault["type"] == "value_error":
        message = fault["msg"].removeprefix("Value error, ")
        return SettingsError(message, at=place, hint=None if "; " in message else description)
    message = fault["msg"].removeprefix("Input ")
    for json_word, word in _WORDS.items():
        message = message.replace(json_word, word)
    return SettingsError(f"{message} (got {fault['input']!r})", at=place, hint=description)


_WORDS = {
    "a valid array": "a list",
    "an object": "a table",
    "a valid boolean": "true or false",
    "a valid integer": "a whole number",
    "a valid ": "a ",
}
"""What TOML calls what JSON calls otherwise."""


def _clarity(fault: ErrorDetails) -> tuple[bool, int]:
    return not fault["type"].endswith(("_type", "_parsing", "literal_error")), len(fault["loc"])


def _named(loc: tuple[int | str, ...], kind: type[Settings]) -> tuple[str, str]:
    """The dotted name of a setting and what it means; what pydantic adds to tell types apart is left out."""
    parts: list[str] = []
    section: type[Settings] | None = kind
    description = ALL_SETTINGS
    for part in map(str, loc):
        parts.append(part)
        if section is None or part not in section.model_fields:
            break
        info = section.model_fields[part]
        description = f"it is: {info.description.rstrip('.')}" if info.description else description
        inner = info.annotation
        section = inner if isinstance(inner, type) and issubclass(inner, Settings) else None
        if section is None:
            break
    return ".".join(parts), description


def known_names(kind: type[Settings], prefix: str = "") -> list[str]:
    """All dotted setting names under `kind`, in order of definition."""
    names: list[str] = []
    for name, info in kind.model_fields.items():
        section = info.annotation
        if isinstance(section, type) and issubclass(section, Settings):
            names += known_names(section, f"{prefix}{name}.")
        else:
            names.append(prefix + name)
    return names
