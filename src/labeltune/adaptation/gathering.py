"""All settings of an adaptation from where they were given: a file, flags, `--set`, or the folder that goes on."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli_w

from labeltune.adaptation.settings import Adaptation
from labeltune.config import lay_over
from labeltune.data.readers import PREFIX
from labeltune.errors import RunError, SettingsError, nearest
from labeltune.folder import contradicts
from labeltune.model.settings import MINI
from labeltune.run import ADAPTATION
from labeltune.settings import build
from labeltune.storage import expanded, write_atomic

PATHS = ("adapt.texts", "adapt.heldout", "adapt.from_config", "adapt.tokenizer", "model.name")
READ = {
    "data": ("text", "tokens", "columns", "template", "normal_form", "bos", "eos", "on_bad_row"),
    "model": (
        *("name", "revision", "weights_sha256", "unmask"),
        *("dtype", "quantization", "checkpointing", "trust_remote_code"),
    ),
}
"""The settings of other commands that an adaptation reads; the rest would change nothing, and is refused."""

Tree = dict[str, Any]


def gather(base: str | Path | None, flags: Mapping[str, Any], settings: Mapping[str, Any]) -> Adaptation:
    """A settings file, then flags (None is not given), then settings by dotted name, over the defaults.

    Relative paths begin at the file's folder, or at the working directory.

    Raises:
        SettingsError: an unknown or impossible setting, or one that has no meaning here.
    """
    tree = _read(Path(base)) if base else {}
    lay_over(tree, flags, settings, _given)
    config = build(Adaptation, tree, at=str(base or ""))
    _refuse_settings_as_text(config.adapt.texts)
    _refuse_unread(config)
    return config


def _given(name: str, value: Any) -> Any:
    return _placed(name, value, Path.cwd()) if name in PATHS else value


def read(folder: Path) -> Adaptation:
    """The settings that a folder was begun with."""
    return build(Adaptation, _read(folder / ADAPTATION), at=str(folder / ADAPTATION))


def write(folder: Path, config: Adaptation) -> None:
    """Put the settings beside the weights: `labeltune adapt FOLDER/adapt.toml --out NEW` repeats them."""
    tree = config.model_dump(mode="json", exclude_none=True)
    for section, names in READ.items():
        tree[section] = {name: value for name, value in tree[section].items() if name in names}
    write_atomic(folder / ADAPTATION, tomli_w.dumps(tree))


def same_as_before(config: Adaptation, before: Adaptation, folder: Path) -> Adaptation:
    """`before`, where nothing that is given now says otherwise.

    Raises:
        RunError: a setting is not what the training began with.
    """
    was = _flat(before)
    for name, value in _flat(config, given=True).items():
        if contradicts(was.get(name), value):
            message = f"{name} was {was.get(name)!r} when this training began and is {value!r} now"
            raise RunError(message, at=str(folder), hint="leave it out, or choose another --out")
    return before


def _read(path: Path) -> Tree:
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SettingsError("there is no such file", at=str(path)) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"this is no valid TOML ({error})", at=str(path)) from None
    for name in PATHS:
        section, key = name.split(".")
        values = tree.get(section)
        if isinstance(values, dict) and key in values:
            values[key] = _placed(name, values[key], path.parent)
    return tree


def refuse_hidden(config: Adaptation, folder: Path) -> None:
    """Refuse an output folder that would hide the model: by its name the hub's would no longer be found.

    Raises:
        SettingsError: the folder has the name of the hub's model.
    """
    name = config.model.name
    if name not in (None, MINI) and Path(name).resolve() == folder.resolve():
        raise SettingsError("has the name of the model", at=f"--out {folder}", hint="choose another --out")


def _placed(name: str, value: Any, folder: Path) -> Any:
    """A path setting with its paths made absolute; `mini` is the bundled model, whatever lies beside it."""
    return value if (name, value) == ("model.name", MINI) else _absolute(value, folder)


def _absolute(value: Any, folder: Path) -> Any:
    """A path that exists, made absolute; anything else (a hub id, a share, a path that is wrong) as it is."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return tuple(_absolute(part, folder) for part in value)
    if isinstance(value, str | Path) and not str(value).startswith(PREFIX):
        path = folder / expanded(value)
        return str(path.resolve()) if path.exists() else str(value)
    return value


def _refuse_settings_as_text(texts: Sequence[str]) -> None:
    for text in texts:
        if text.endswith(".toml"):
            hint = "give it alone, and the texts by --set adapt.texts='[…]'; from Python, config="
            raise SettingsError("holds settings, and is no text to train on", at=text, hint=hint)


def _refuse_unread(config: Adaptation) -> None:
    for section, names in READ.items():
        for name in sorted(getattr(config, section).model_fields_set - set(names)):
            message = "has no meaning for `labeltune adapt`"
            raise SettingsError(message, at=f"{section}.{name}", hint=nearest(name, names))


def _flat(config: Adaptation, *, given: bool = False) -> Tree:
    """Dotted name -> value; only what was given, on request."""
    tree = config.model_dump(exclude_unset=given, exclude_none=True)
    return {f"{section}.{name}": value for section, values in tree.items() for name, value in values.items()}
