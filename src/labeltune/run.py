"""The run folder: what a training leaves, complete enough to repeat it, checked so that nothing changed loads.

`format` lists the version, the state and the SHA-256 of every file that decides an answer; a missing, changed or
unlisted one is refused. Everything is written beside its place and renamed, `format` last.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labeltune.config import Config, make, read_toml, to_toml
from labeltune.errors import RunError
from labeltune.labels import LabelSet
from labeltune.storage import (
    HOLDER_NAME,
    LOCK_NAME,
    is_there,
    read_json,
    safe_child,
    sha256_file,
    told,
    write_atomic,
    write_json,
)

VERSION = 1
FORMAT, CONFIG, LABELS, METRICS = "format", "config.toml", "labels.json", "metrics.json"
HEAD, ADAPTER, BACKBONE, TOKENIZER, WORK = "head.safetensors", "adapter", "backbone", "tokenizer", "work"
SPLITS, LOG, CARD = "splits.json", "log.jsonl", "README.md"
SWEEP, ADAPTATION = "sweep.toml", "adapt.toml"
OWNERS = {SWEEP: "sweep", ADAPTATION: "adapt", CONFIG: "train", SPLITS: "train"}
"""File -> the command whose folder it marks; the first that is there decides, for a sweep keeps splits of its own."""
COPY_AGAIN = "copy the folder again, whole"
DECISIVE = (CONFIG, LABELS, HEAD, f"{ADAPTER}/*", f"{BACKBONE}/*", f"{TOKENIZER}/*")


@dataclass(frozen=True)
class Run:
    """An opened run folder.

    state: `finished`, or `interrupted` (loadable, and `--resume` goes on).
    decision: what `labels.json` says of thresholds and temperature, as the task wrote it.
    """

    folder: Path
    config: Config
    labels: LabelSet
    decision: Mapping[str, Any]
    state: str

    @property
    def metrics(self) -> dict[str, Any]:
        """`metrics.json`: figures of the training, of dev and of test."""
        path = self.folder / METRICS
        return dict(read_json(path)) if path.exists() else {}  # type: ignore[call-overload]  # our own file: an object


def write_run(run: Run) -> None:
    """Write the settings, the labels and, last, `format`. Weights and tokenizer must already be there."""
    labels = {"task": run.config.task, "labels": list(run.labels.names), "decision": dict(run.decision)}
    write_atomic(run.folder / CONFIG, to_toml(run.config))
    write_json(run.folder / LABELS, labels)
    seal(run.folder, run.state)


def unseal(folder: Path) -> None:
    """Take `format` away before the files that it vouches for are written anew."""
    (folder / FORMAT).unlink(missing_ok=True)


def seal(folder: Path, state: str) -> None:
    """Write `format`: the version, the state and the checksum of each decisive file."""
    sums = {name: sha256_file(folder / name) for name in sorted(_decisive(folder))}
    write_json(folder / FORMAT, {"labeltune": VERSION, "state": state, "files": sums})


def open_run(path: str | Path) -> Run:
    """Open and verify a run folder; a RunError says what is missing or changed."""
    folder = Path(path)
    if not is_there(folder) or not folder.is_dir():
        raise RunError("there is no such run folder", at=str(folder), hint="name a folder that `train` has written")
    state = state_of(folder)
    if state is None:
        if (folder / CONFIG).exists():
            raise RunError("this training did not end", at=str(folder), hint="go on with the same command and --resume")
        hint = "name a folder that `train` has written"
        raise RunError("this is no run folder (it has no file `format`)", at=str(folder), hint=hint)
    _verify(folder)
    config = make(read_toml(folder / CONFIG), at=str(folder / CONFIG))
    labels: Any = read_json(folder / LABELS)
    return Run(folder, config, LabelSet(tuple(labels["labels"])), labels["decision"], state)


def state_of(folder: Path) -> str | None:
    """`finished` or `interrupted`, not verified further; None where the folder is not sealed."""
    return str(_facts(folder)["state"]) if (folder / FORMAT).exists() else None


def _facts(folder: Path) -> Mapping[str, Any]:
    """What `format` says."""
    facts = read_json(folder / FORMAT)
    found = facts.get("labeltune") if isinstance(facts, dict) else facts
    if not isinstance(facts, dict) or found != VERSION:
        hint = "use the version that wrote it"
        raise RunError(f"the run's format is {found!r}, not {VERSION}", at=str(folder / FORMAT), hint=hint)
    if not isinstance(facts.get("files"), dict) or facts.get("state") not in ("finished", "interrupted"):
        raise RunError("this file was changed after training", at=str(folder / FORMAT), hint=COPY_AGAIN)
    return facts


def _verify(folder: Path) -> None:
    sums = _facts(folder)["files"]
    for name, expected in sums.items():
        file = safe_child(folder, name)
        if not file.is_file():
            raise RunError("this file of the run is missing", at=str(file), hint=COPY_AGAIN)
        if sha256_file(file) != expected:
            raise RunError("this file was changed after training", at=str(file), hint=COPY_AGAIN)
    if extra := sorted(_decisive(folder) - set(sums)):
        raise RunError("this file does not belong to the run", at=str(folder / extra[0]), hint="remove it")
    if absent := sorted({CONFIG, LABELS, HEAD} - set(sums)):
        raise RunError("this file of the run is missing", at=str(folder / absent[0]), hint=COPY_AGAIN)


def _decisive(folder: Path) -> set[str]:
    """The files that decide an answer, by their paths in the folder; dot files (a file manager's) do not."""
    found = {path for pattern in DECISIVE for path in folder.glob(pattern) if path.is_file()}
    return {path.relative_to(folder).as_posix() for path in found if not path.name.startswith(".")}


def refuse_existing(folder: Path, command: str = "train") -> None:
    """A folder with something in it is never written over; `command` could go on with its own."""
    with told(folder):
        taken = folder.exists() and (
            not folder.is_dir() or any(p.name not in (LOCK_NAME, HOLDER_NAME) for p in folder.iterdir())
        )
    if not taken:
        return
    if not folder.is_dir():
        raise RunError("this is a file", at=str(folder), hint="choose another --out")
    hint = "add --resume to go on with it" if _can_go_on(folder, command) else "choose another --out"
    raise RunError("this folder exists already and is not empty", at=str(folder), hint=hint)


def _can_go_on(folder: Path, command: str) -> bool:
    """Whether a training of this command was here and did not end."""
    try:
        own = owner_of(folder) in (None, command)
        return own and is_claimed(folder) and state_of(folder) != "finished"
    except RunError:  # a damaged `format`
        return False


def is_claimed(folder: Path) -> bool:
    """Whether a training was ever begun here, however it ended: it has left its lock, or its splits."""
    return (folder / LOCK_NAME).exists() or (folder / SPLITS).exists()


def owner_of(folder: Path) -> str | None:
    """The command that has begun to work in the folder, as far as its files say."""
    return next((command for name, command in OWNERS.items() if is_there(folder / name)), None)


def refuse_others(folder: Path, command: str) -> None:
    """Refuse to go on in a folder that another command has begun.

    Raises:
        RunError: it holds that command's file.
    """
    owner = owner_of(folder)
    if owner not in (None, command):
        hint = "go on with that command, or choose another --out"
        raise RunError(f"this folder belongs to `labeltune {owner}`", at=str(folder), hint=hint)


def finite(value: float) -> float | None:
    """JSON has no NaN and no infinity: they become null."""
    return value if math.isfinite(value) else None


def is_number(value: object) -> bool:
    """Whether a value of `metrics.json` is a figure; stamps such as `switches` are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def number(value: object) -> str:
    """A figure as people read it: four places, two digits where these would be zeros; a dash for what is none."""
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if not isinstance(value, float):
        return "–"
    if value and abs(value) < 0.001:
        return f"{value:.2g}"
    return f"{value:,.{4 if abs(value) < 10 else 2 if abs(value) < 10_000 else 0}f}"


def plain_metrics(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Figures that JSON can say, those of parts included."""
    return {name: plain_metrics(v) if isinstance(v, Mapping) else _plain(v) for name, v in metrics.items()}


def _plain(value: Any) -> Any:
    return finite(value) if isinstance(value, float) else value
