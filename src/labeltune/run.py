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
from labeltune.errors import LabeltuneError, RunError
from labeltune.labels import LabelSet
from labeltune.storage import read_json, safe_child, sha256_file, write_atomic, write_json

VERSION = 1
FORMAT, CONFIG, LABELS, METRICS = "format", "config.toml", "labels.json", "metrics.json"
HEAD, ADAPTER, BACKBONE, TOKENIZER, WORK = "head.safetensors", "adapter", "backbone", "tokenizer", "work"
SPLITS, LOG, CARD = "splits.json", "log.jsonl", "README.md"
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


def write_run(folder: Path, config: Config, labels: LabelSet, decision: Mapping[str, Any], state: str) -> None:
    """Write the settings, the labels and, last, `format`. Weights and tokenizer must already be there."""
    write_atomic(folder / CONFIG, to_toml(config))
    write_json(folder / LABELS, {"task": config.task, "labels": list(labels.names), "decision": dict(decision)})
    seal(folder, state)


def seal(folder: Path, state: str) -> None:
    """Write `format`: the version, the state and the checksum of each decisive file."""
    files = sorted(p for pattern in DECISIVE for p in folder.glob(pattern) if p.is_file())
    sums = {p.relative_to(folder).as_posix(): sha256_file(p) for p in files}
    write_json(folder / FORMAT, {"labeltune": VERSION, "state": state, "files": sums})


def open_run(path: str | Path) -> Run:
    """Open and verify a run folder; a RunError says what is missing or changed."""
    folder = Path(path)
    if not folder.is_dir():
        raise RunError("there is no such run folder", at=str(folder))
    if not (folder / FORMAT).exists():
        if (folder / CONFIG).exists():
            raise RunError("this training did not end", at=str(folder), hint="go on with the same command and --resume")
        raise RunError("this is no run folder (it has no file `format`)", at=str(folder))
    state = _verify(folder)
    tree = read_toml(folder / CONFIG)
    labels = read_json(folder / LABELS)
    if not isinstance(labels, dict):
        raise RunError("this is no list of labels", at=str(folder / LABELS))
    return Run(
        folder, make(tree, at=str(folder / CONFIG)), LabelSet(tuple(labels["labels"])), labels["decision"], state
    )


def _verify(folder: Path) -> str:
    facts = read_json(folder / FORMAT)
    if not isinstance(facts, dict) or facts.get("labeltune") != VERSION:
        found = facts.get("labeltune") if isinstance(facts, dict) else facts
        raise RunError(f"format {found!r} is not {VERSION}", at=str(folder), hint="use the version that wrote it")
    for name, expected in facts["files"].items():
        file = safe_child(folder, name)
        if not file.exists():
            raise RunError("this file of the run is missing", at=str(file), hint="copy the folder again, whole")
        if sha256_file(file) != expected:
            raise RunError("this file was changed after training", at=str(file), hint="copy the folder again")
    here = {p.relative_to(folder).as_posix() for pattern in DECISIVE for p in folder.glob(pattern) if p.is_file()}
    if extra := sorted(here - set(facts["files"])):
        raise RunError("this file does not belong to the run", at=str(folder / extra[0]), hint="remove it")
    return str(facts["state"])


def refuse_existing(folder: Path) -> None:
    """A run folder is never written over."""
    if folder.exists() and (not folder.is_dir() or any(p.name != ".lock" for p in folder.iterdir())):
        unfinished = (folder / CONFIG).exists() and not _finished(folder)
        hint = "add --resume to go on with it" if unfinished else "choose another --out"
        raise RunError("this folder exists already and is not empty", at=str(folder), hint=hint)


def _finished(folder: Path) -> bool:
    try:
        return open_run(folder).state == "finished"
    except LabeltuneError:
        return False


def finite(value: float) -> float | None:
    """JSON has no NaN and no infinity: they become null."""
    return value if math.isfinite(value) else None


def plain_metrics(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Figures that JSON can say."""
    return {name: finite(value) if isinstance(value, float) else value for name, value in metrics.items()}
