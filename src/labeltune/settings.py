"""Frozen settings that refuse unknown names: the base of every section, and the check against a table of choices."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from labeltune.errors import SettingsError, nearest

S = TypeVar("S", bound="Settings")


class Settings(BaseModel):
    """A section of settings: immutable, typed strictly enough that `"3"` is no number, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=())


def one_of(table: Iterable[str]) -> AfterValidator:
    """A validator: the value is a name of `table`; the error says the nearest one."""
    names = tuple(table)

    def check(value: str) -> str:
        if value not in names:
            raise ValueError(f"{value!r} is not one of {', '.join(names)}; {nearest(value, names)}")
        return value

    return AfterValidator(check)


def build(kind: type[S], values: Mapping[str, Any], *, at: str = "") -> S:
    """Validate `values` into `kind`; a SettingsError names the setting (`train.lr`) and the way out.

    `at` is the file the values came from, put before the setting's name.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise _first(error, kind, at) from None


def _first(error: ValidationError, kind: type[Settings], at: str) -> SettingsError:
    fault = error.errors(include_url=False)[0]
    name = ".".join(str(part) for part in fault["loc"])
    place = f"{at}: {name}" if at and name else at or name or kind.__name__
    if fault["type"] == "extra_forbidden":
        return SettingsError("unknown setting", at=place, hint=nearest(name, known_names(kind)))
    message = fault["msg"].removeprefix("Value error, ")
    given = f" (got {fault['input']!r})" if fault["type"] != "value_error" and name else ""
    return SettingsError(message[:1].lower() + message[1:] + given, at=place)


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
