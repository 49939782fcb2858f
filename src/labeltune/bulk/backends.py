"""What computes the answers: the run itself on torch, or its exported graph on onnxruntime or OpenVINO.

A graph is taken from where `labeltune export` puts it, and must be the certified export of this very run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from labeltune.answers import Answered, Wish, with_input
from labeltune.config import Config, with_settings
from labeltune.data.encoding import Encoder
from labeltune.errors import RunError, SettingsError, nearest
from labeltune.export import predictor as graphs
from labeltune.export.certificate import FILE
from labeltune.export.exporting import EXPORTS
from labeltune.export.predictor import GraphPredictor
from labeltune.export.sessions import SESSIONS
from labeltune.inference import Progress, no_progress
from labeltune.portions import Portion, answer
from labeltune.predict import load_run
from labeltune.run import FORMAT, Run, open_run
from labeltune.schema import Encoded, Example, Prediction
from labeltune.storage import read_json, safe_child, sha256_file

TORCH = "torch"
BACKENDS = (TORCH, *SESSIONS)
OF_GRAPHS = ("train.threads", "eval.batch_tokens", "data.text", "data.tokens", "data.columns", "data.on_bad_row")
"""Settings that a graph, which is what it is, can follow."""

BUDGET = 1024
"""Tokens of a pass through a graph, padding included."""


class Answerer(Protocol):
    """Answers portions."""

    def answer(self, portion: Portion, wish: Wish, progress: Progress) -> list[Prediction]:
        """One prediction for each row of the portion."""


@dataclass(frozen=True)
class How:
    """How a run answers; it can be sent to another machine that has the same folders."""

    run: Path
    settings: Mapping[str, Any]
    wish: Wish = field(default_factory=Wish)
    backend: str = TORCH

    def __post_init__(self) -> None:
        if self.backend not in BACKENDS:
            raise SettingsError(f"{self.backend!r} is no backend", at="--backend", hint=nearest(self.backend, BACKENDS))
        for name in self.settings if self.backend != TORCH else ():
            if name not in OF_GRAPHS:
                hint = f"a graph follows {', '.join(OF_GRAPHS)}: use --backend torch, or export again"
                raise SettingsError(f"this cannot be set with --backend {self.backend}", at=name, hint=hint)

    @property
    def graph(self) -> Path:
        """Where the exported graph lies."""
        return self.run / EXPORTS / self.backend

    def load(self, run: Run | None = None) -> Answering:
        """Load what answers. run: the run, where it is opened already.

        Raises:
            RunError: the run or its export is missing, changed, or of another run. ModelError: no such runtime.
        """
        opened = run or open_run(self.run)
        if self.backend == TORCH:
            return Answering(self, load_run(opened, self.settings))
        config = with_settings(opened.config, self.settings)
        refuse_other(self.graph, opened)
        return Answering(self, _Graph(graphs.load(self.graph, threads=_threads(config, self.settings)), self._budget))

    @property
    def _budget(self) -> int:
        return int(self.settings.get("eval.batch_tokens") or BUDGET)


def _threads(config: Config, settings: Mapping[str, Any]) -> int | None:
    return config.train.threads if "train.threads" in settings else None


@dataclass(frozen=True)
class Answering:
    """What is loaded, with what is asked of it."""

    how: How
    answerer: Answerer

    def answered(self, portion: Portion, progress: Progress = no_progress) -> list[Answered]:
        """The rows of a portion with their answers. progress: told how many rows more are done, as it goes."""
        told = 0

        def count(rows: int) -> None:
            nonlocal told
            told += rows
            progress(rows)

        how = self.how
        found = self.answerer.answer(portion, how.wish, count)
        progress(len(portion.rows) - told)  # rows whose text had been answered already
        return list(map(with_input, portion.rows, found))


def refuse_other(folder: Path, run: Run) -> None:
    """Raise where `folder` is not the whole and unchanged export of this run.

    Raises:
        RunError: with the command that exports it.
    """
    again = f"labeltune export {run.folder} --to {folder.name}"
    if not folder.is_dir():
        raise RunError("the run has no such export", at=str(folder), hint=again)
    certificate: Any = read_json(folder / FILE)
    if certificate["run_sha256"] != sha256_file(run.folder / FORMAT):
        raise RunError("this is the export of another run", at=str(folder), hint=f"remove it, then: {again}")
    for name, expected in certificate["files"].items():
        path = safe_child(folder, name)
        if not path.is_file() or sha256_file(path) != expected:
            raise RunError("this file of the export was changed", at=str(path), hint=f"remove it, then: {again}")


@dataclass(frozen=True)
class _Graph:
    """A graph that answers portions. budget: tokens of a pass, padding included."""

    graph: GraphPredictor
    budget: int

    @property
    def encoder(self) -> Encoder:
        return self.graph.encoder

    def answer(self, portion: Portion, wish: Wish, progress: Progress) -> list[Prediction]:
        def decide(examples: Sequence[Example], rows: Sequence[Encoded]) -> list[Prediction]:
            found = self.graph.decide(examples, rows, budget=self.budget, progress=progress)
            return [wish.of(prediction) for prediction in found]

        return answer(portion, self.encoder, decide)
