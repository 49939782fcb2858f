"""All settings of one run in one frozen value: read from TOML and `--set`, written back whole.

Flags and `--set` win over the file, the file over the defaults. Paths in a file are relative to that file.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import tomli_w
from pydantic.fields import FieldInfo

from labeltune.data.settings import DataConfig
from labeltune.errors import SettingsError
from labeltune.model.settings import MINI, HeadConfig, LoraConfig, ModelConfig
from labeltune.settings import Settings, build
from labeltune.storage import is_there
from labeltune.switches import SWITCHES
from labeltune.training.settings import EvalConfig, TrainConfig

PATHS = ("data.train", "data.dev", "data.test", "model.name", "train.init")
"""Settings that may name a file or folder."""

RIVALS = (("train.epochs", "train.steps"), ("train.batch_rows", "train.batch_tokens"), ("adapt.epochs", "adapt.tokens"))
"""Two measures of one thing. Given at once the second counts; given later (over a file, as an axis) the later one."""


class Config(Settings):
    """The settings of one run, by section."""

    task: str | None = None
    """classification, multilabel, regression, ordinal or tagging [guessed from the columns, and said]."""
    recipe: str | None = None
    """The published recipe that these settings are of (`labeltune recipes`)."""
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    lora: LoraConfig = LoraConfig()
    head: HeadConfig = HeadConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()


Tree = dict[str, Any]


def read_toml(path: Path) -> Tree:
    """The tables of a TOML file, its relative paths resolved against the file's folder."""
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise SettingsError("there is no such recipe", at=str(path), hint="`labeltune init` writes one") from None
    except OSError as error:
        raise SettingsError(f"the recipe cannot be read: {error.strerror}", at=str(path), hint="name a file") from None
    except (ValueError, RecursionError) as error:  # no TOML, no UTF-8, nested without end
        hint = "mend the line, or let `labeltune init` write a recipe"
        raise SettingsError(f"this is no valid TOML ({error})", at=str(path), hint=hint) from None
    for name in PATHS:
        section, key = name.split(".")
        values = tree.get(section)
        if isinstance(values, dict) and key in values:
            values[key] = beside(path.parent, values[key], name)
    return tree


def beside(folder: Path, value: Any, setting: str) -> Any:
    """A relative path that exists in `folder`, made absolute; anything else (a hub id, a fraction) as it is.

    `mini` is the bundled backbone, whatever lies in `folder`.
    """
    if isinstance(value, dict):
        return {name: beside(folder, part, setting) for name, part in value.items()}
    if (setting, value) == ("model.name", MINI):
        return value
    if isinstance(value, str) and not Path(value).is_absolute() and is_there(folder / value):
        return str((folder / value).resolve())
    return value


def parse_set(text: str) -> tuple[str, Any]:
    """`train.lr=3e-4` as a name and a TOML value; what is no TOML value is a string."""
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise SettingsError("--set wants section.name=value", at=text, hint="for example --set train.lr=3e-4")
    try:
        return name.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return name.strip(), value.strip()


def put(tree: Tree, name: str, value: Any) -> None:
    """Set a dotted name in nested tables."""
    *sections, last = name.split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
        if not isinstance(tree, dict):
            raise SettingsError("this has a value already", at=section, hint="write section.name=value")
    tree[last] = value


def put_over(tree: Tree, values: Mapping[str, Any]) -> None:
    """Set dotted names over what is there; another measure of the same thing that was there gives way."""
    for name, value in values.items():
        put(tree, name, value)
    for one, other in RIVALS:
        if values.get(other) is not None:
            _drop(tree, one)
        elif values.get(one) is not None:
            _drop(tree, other)


def _drop(tree: Tree, name: str) -> None:
    section, _, key = name.partition(".")
    tree[section].pop(key, None)


def lay_over(
    tree: Tree, flags: Mapping[str, Any], settings: Mapping[str, Any], placed: Callable[[str, Any], Any]
) -> None:
    """Put flags (None is not given) over what is there, and settings over these; placed: (name, value) -> the value."""
    given = {name: value for name, value in flags.items() if value is not None}
    for values in (given, settings):
        put_over(tree, {name: placed(name, value) for name, value in values.items()})


def make(tree: Mapping[str, Any], *, at: str = "") -> Config:
    """Validate nested tables into a Config."""
    return build(Config, tree, at=at)


def gather(base: Config | str | Path | None, flags: Mapping[str, Any], settings: Mapping[str, Any]) -> Config:
    """A recipe or a Config, then flags (None is not given), then settings by dotted name, over the defaults.

    Only what was given is set on the result (`model_fields_set`). An error in a file names the file.
    """
    if isinstance(base, Config):
        tree = base.model_dump(exclude_unset=True)
    else:
        tree = read_toml(Path(base)) if base else {}
        if "sweep" in tree:
            raise SettingsError("these are the settings of a sweep", at=str(base), hint=f"labeltune sweep {base}")
        make(tree, at=str(base or ""))
    lay_over(tree, flags, settings, _placed)
    return make(tree)


def _placed(name: str, value: Any) -> Any:
    return beside(Path.cwd(), value, name) if name in PATHS else value


def with_settings(config: Config, values: Mapping[str, Any]) -> Config:
    """A replacement of `config` with dotted names set; those that are None stay as they are."""
    tree = config.model_dump(exclude_none=True)
    put_over(tree, {name: value for name, value in values.items() if value is not None})
    return make(tree)


def switches(config: Config) -> tuple[str, ...]:
    """The settings of published protocols that are on, in the order of SWITCHES."""
    values, plain = ({name: get(one, name) for name in SWITCHES} for one in (config, Config()))
    return tuple(name for name in SWITCHES if values[name] != plain[name])


def get(config: Config, name: str) -> Any:
    """The value of a dotted name."""
    value: Any = config
    for part in name.split("."):
        value = getattr(value, part)
    return value


def to_toml(config: Config) -> str:
    """Every setting that has a value, as TOML; what is absent has no value (its default)."""
    tree = config.model_dump(mode="json", exclude_none=True)
    return tomli_w.dumps({name: value for name, value in tree.items() if value != {}})


def describe(section: str | None = None, root: type[Settings] = Config) -> list[tuple[str, str, str, str]]:
    """(name, type, default, meaning) of every setting of `root`, or of a section; none where there is no such one.

    A table inside a section has a line, and one for each of its keys (`sweep.halving.factor`).
    """
    rows = []
    for name, info in root.model_fields.items():
        kind = table_of(info.annotation)
        if kind is None:
            rows += [_describe(name, info)] if section is None else []
        elif section in (None, name):
            rows += _describe_keys(name, kind)
    return rows


def _describe_keys(prefix: str, kind: type[Settings]) -> list[tuple[str, str, str, str]]:
    rows = []
    for key, info in kind.model_fields.items():
        rows.append(_describe(f"{prefix}.{key}", info))
        inner = table_of(info.annotation)
        rows += _describe_keys(f"{prefix}.{key}", inner) if inner else []
    return rows


def table_of(kind: Any) -> type[Settings] | None:
    """The settings that a field's type holds: itself, one that may be left out, or a list of them; else none."""
    if isinstance(kind, type) and issubclass(kind, Settings):
        return kind
    return next((found for part in get_args(kind) if (found := table_of(part))), None)


def _describe(name: str, info: FieldInfo) -> tuple[str, str, str, str]:
    meaning = " ".join((info.description or "").split())
    kind = Annotated[info.annotation, *info.metadata] if info.metadata else info.annotation
    return name, _type_name(kind), "(required)" if info.is_required() else _shown(info.default), meaning


def _shown(default: Any) -> str:
    """As TOML says it, texts without quotation marks; nothing for what has no default or is a table."""
    if default is None or isinstance(default, Settings):
        return ""
    return default if isinstance(default, str) else json.dumps(default)


def _type_name(kind: Any) -> str:
    """`str | float` for the type of a field, without None; names for a choice of them; a tuple is TOML's list."""
    if get_origin(kind) is Annotated:
        names = [getattr(getattr(rule, "func", None), "names", ()) for rule in kind.__metadata__]
        return " | ".join(map(json.dumps, sum(names, ()))) or _type_name(get_args(kind)[0])
    if get_origin(kind) in (Union, UnionType):
        return " | ".join(dict.fromkeys(_type_name(part) for part in get_args(kind) if part is not NoneType))
    if get_origin(kind) is Literal:
        return " | ".join(json.dumps(value) for value in get_args(kind))
    if get_args(kind):
        inner = ", ".join(_type_name(part) for part in get_args(kind) if part is not Ellipsis)
        return f"{_type_name(get_origin(kind))}[{inner}]"
    if isinstance(kind, type) and issubclass(kind, Settings):
        return "table"
    return "list" if kind is tuple else str(getattr(kind, "__name__", kind))
