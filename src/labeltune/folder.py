"""The folder that a training works in: claimed by one process, and compared when it is taken up again.

Who goes on must want what was begun: the same settings where they are given, the same rows, the same tokenizer.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from labeltune.config import Config, make, read_toml
from labeltune.data.datasets import QUARANTINE, Dataset, Loaded
from labeltune.errors import RunError
from labeltune.interrupt import graceful
from labeltune.ledger import LEDGER
from labeltune.run import CONFIG, LOG, SPLITS, WORK, is_claimed, refuse_others, state_of
from labeltune.storage import HOLDER_NAME, LOCK_NAME, expanded, is_there, lock, read_json, told, write_json


def asked_before(folder: Path, config: Config) -> Config:
    """The settings that the folder was begun with; a flag that says otherwise is refused."""
    refuse_others(folder, "train")
    path = folder / CONFIG
    if not path.exists():
        if not is_claimed(folder):
            raise RunError("there is no training to go on with", at=str(folder), hint="leave --resume out")
        return config
    saved = make(read_toml(path), at=str(path))
    was = _flat(saved.model_dump())
    for name, value in _flat(config.model_dump(exclude_unset=True)).items():
        if contradicts(was.get(name), value):
            raise RunError(
                f"{name} was {was.get(name)!r} when this training began and is {value!r} now",
                at=str(folder),
                hint="leave it out, or train into a new folder",
            )
    return saved


def contradicts(was: object, now: object) -> bool:
    """Whether a setting that is given now is another one than a training began with; `auto` is whatever was found."""
    return was != now and now != "auto" and not _same_path(was, now)


def _same_path(was: object, now: object) -> bool:
    return isinstance(was, str) and isinstance(now, str) and Path(was).resolve() == Path(now).resolve()


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict) and prefix == "":
            flat |= _flat(value, f"{name}.")
        elif value is not None:
            flat[prefix + name] = value
    return flat


def is_finished(folder: Path) -> bool:
    """Whether the folder is finished; what a kill left of the work is cleared away."""
    finished = state_of(folder) == "finished"
    if finished:
        shutil.rmtree(folder / WORK, ignore_errors=True)
    return finished


def refuse_inside(folder: Path, sources: Iterable[object]) -> None:
    """Refuse to write into a folder that is read: what is written there would be read as well.

    sources: paths, tables of paths, and what is neither.

    Raises:
        RunError: `folder` is one of them, or lies in one.
    """
    place = folder.resolve()
    for source in sources:
        if isinstance(source, Mapping):
            refuse_inside(folder, source.values())
        elif isinstance(source, str) and _is_in(place, expanded(source)):
            message = f"lies in {source}, and would be read with it"
            raise RunError(message, at=f"--out {folder}", hint="choose a place outside")


def _is_in(place: Path, folder: Path) -> bool:
    return is_there(folder) and folder.is_dir() and folder.resolve() in (place, *place.parents)


@contextmanager
def claimed(folder: Path, begun: str = CONFIG) -> Iterator[None]:
    """Lock the folder; where training never began, leave no trace of it, at whatever moment it is interrupted.

    What lay there before stays: it may be the work of an earlier call. begun: the file whose presence says that
    training began.
    """
    with told(folder):
        made = [part for part in (folder, *folder.parents) if not part.exists()]
    empty = False
    with ExitStack() as stack:
        try:
            with graceful() as stop:
                stack.enter_context(lock(folder))
                empty = all(path.name in (LOCK_NAME, HOLDER_NAME) for path in folder.iterdir())
            if stop.asked:
                raise KeyboardInterrupt
            yield
        finally:
            if empty and not (folder / begun).exists():
                _sweep(folder, made)


def _sweep(folder: Path, made: list[Path]) -> None:
    """Remove what was written before training began, and the folders `made` for it if nothing else is in them."""
    shutil.rmtree(folder / WORK, ignore_errors=True)
    for name in (LEDGER, LOG, SPLITS, QUARANTINE):
        (folder / name).unlink(missing_ok=True)
    if made:
        for name in (LOCK_NAME, HOLDER_NAME):
            (folder / name).unlink(missing_ok=True)
    for part in made:
        if not any(part.iterdir()):
            part.rmdir()


def parts(loaded: Loaded) -> dict[str, Dataset]:
    """The splits that there are, by name."""
    splits = {"train": loaded.train, "dev": loaded.dev, "test": loaded.test}
    return {name: split for name, split in splits.items() if split is not None}


def facts_of(split: Dataset, ids: list[str] | None) -> dict[str, Any]:
    """Where a split's rows come from, what they are, and their ids where they were taken from another split."""
    return {
        "source": split.source,
        "sha256": split.sha256,
        "rows": len(split),
        "content": split.content,
        "ids": ids,
    }


def keep_rows(folder: Path, loaded: Loaded, encoded: str | None = None) -> None:
    """Write down which rows are worked on, or compare them with those that were begun with.

    encoded: stands for how the training rows are read, where that is known.

    Raises:
        RunError: other rows, or rows that are read in another way.
    """
    splits = {name: facts_of(split, loaded.split_ids.get(name)) for name, split in parts(loaded).items()}
    if encoded is not None:
        splits["train"]["encoded"] = encoded
    path = folder / SPLITS
    if path.exists():
        before: Any = read_json(path)
        for name in splits.keys() | before.keys():
            refuse_other(name, before.get(name), splits.get(name), folder)
    write_json(path, splits)


def refuse_other(name: str, before: Mapping[str, Any] | None, now: Mapping[str, Any] | None, folder: Path) -> None:
    """Refuse to go on with other rows, or with rows that are read in another way."""
    hint = "restore it, or train into a new folder"
    if before is None or now is None:
        raise RunError(
            f"this training began {'without' if before is None else 'with'} a {name} split", at=str(folder), hint=hint
        )
    if any(before.get(fact) != now[fact] for fact in ("rows", "content", "ids")):
        raise RunError(
            f"the {name} rows ({now['source']}) are not those that this training began with", at=str(folder), hint=hint
        )
    if before.get("encoded") != now.get("encoded"):
        raise RunError("the tokenizer is not the one that this training began with", at=str(folder), hint=hint)
