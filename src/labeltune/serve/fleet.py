"""Which runs are served: found by name, loaded and unloaded while others answer, each on the engine of its backbone."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from labeltune.assembly import load_backbone
from labeltune.config import Config
from labeltune.data.batches import MICRO_TOKENS
from labeltune.errors import RunError, SettingsError, nearest
from labeltune.model.checkpoints import resolve
from labeltune.predict import answering
from labeltune.run import Run, open_run
from labeltune.serve.engine import BUSY, Departed, Engine, Pass
from labeltune.serve.hosted import Hosted, host
from labeltune.serve.settings import ServeConfig

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
BUSY_WITH_RUNS = 300.0
"""Seconds that requests of a leaving run get to be answered."""

Key = tuple[str, ...]


class Unknown(RunError):
    """No run of this name is served."""


@dataclass(frozen=True)
class _Place:
    hosted: Hosted
    engine: Engine


@dataclass(frozen=True)
class Named:
    """A run folder and the name that it is served under."""

    name: str
    folder: Path


def named(words: Sequence[str]) -> list[Named]:
    """`RUN` or `NAME=RUN`, as on the command line; a run is called like its folder.

    Raises:
        SettingsError: a name that does not go into an address, or two of one name.
    """
    found: dict[str, Named] = {}
    for word in words:
        name, equals, folder = word.partition("=")
        path = Path(folder if equals else word)
        name = check_name(name if equals else Path(os.path.abspath(path)).name)
        if name in found:
            message = f"two runs are called {name!r}"
            raise SettingsError(message, at=word, hint="give one another name: NAME=RUN")
        found[name] = Named(name, path)
    return list(found.values())


def check_name(name: str) -> str:
    """The name, which can stand in an address.

    Raises:
        SettingsError: it cannot.
    """
    if not NAME.fullmatch(name):
        hint = "letters, digits, '.', '_' and '-'; choose one with NAME=RUN"
        raise SettingsError(f"{name!r} is no name for a run", hint=hint)
    return name


class Fleet:
    """The runs of a server and their engines. `load` and `unload` block; everything else returns at once.

    settings: dotted names that may differ from the runs' own (`train.device`, `model.dtype`). hear: told of each pass.
    """

    def __init__(
        self,
        config: ServeConfig,
        settings: Mapping[str, Any] | None = None,
        hear: Callable[[Pass], None] = lambda done: None,
    ) -> None:
        self.config, self._settings, self._hear = config, dict(settings or {}), hear
        self._places: dict[str, _Place] = {}
        self._engines: dict[Key, list[Engine]] = {}
        self._loading = threading.Lock()
        if threads := self._settings.get("train.threads"):
            torch.set_num_threads(threads)

    def __len__(self) -> int:
        return len(self._places)

    @property
    def hosted(self) -> list[Hosted]:
        """The runs that are served, by name."""
        return [place.hosted for _, place in sorted(self._places.items())]

    @property
    def engines(self) -> list[Engine]:
        """One for each backbone."""
        return [engine for engines in list(self._engines.values()) for engine in engines]

    def find(self, name: str) -> Hosted:
        """The run of this name.

        Raises:
            Unknown: there is none.
        """
        return self._place(name).hosted

    def engine_of(self, hosted: Hosted) -> Engine:
        """Where a run is answered for.

        Raises:
            Departed: it has been taken out, or loaded anew, in the meantime.
        """
        place = self._places.get(hosted.name)
        if place is None or place.hosted is not hosted:
            raise Departed("the run has been taken out", at=hosted.name)
        return place.engine

    def load_all(self, runs: Sequence[Named]) -> None:
        """Load the runs, the deepest first, so that all fit on its backbone.

        Raises:
            RunError, ModelError, SettingsError: one that cannot be loaded.
        """
        opened = [(one, self._open(one.folder)) for one in runs]
        for one, (run, config) in sorted(opened, key=lambda pair: -(pair[1][1].model.depth or 0)):
            with self._loading:
                self._load(one.name, run, config)

    def load(self, name: str, folder: str | Path) -> Hosted:
        """Load a run, or load it anew in place of the one of this name, which answers until the new one can.

        Raises:
            RunError, ModelError, SettingsError: it cannot be loaded; what was served before still is.
        """
        check_name(name)
        with self._loading:
            return self._load(name, *self._open(Path(folder)))

    def unload(self, name: str) -> None:
        """Take a run out, once its requests are answered; a backbone that nobody uses any more goes too.

        Raises:
            Unknown: there is none of this name.
        """
        with self._loading:
            place = self._place(name)
            del self._places[name]
            self._dismiss(place)

    def stop(self) -> None:
        """End all engines."""
        for engine in self.engines:
            engine.stop()

    # Loading

    def _open(self, folder: Path) -> tuple[Run, Config]:
        run = open_run(folder)
        return run, answering(run, self._settings)

    def _load(self, name: str, run: Run, config: Config) -> Hosted:
        engine, is_new = self._engine_for(config)
        try:
            hosted = host(name, run, config, engine.backbone)
            engine.admit(hosted).result()
        except BaseException:
            if is_new:
                self._close(engine)
            raise
        before = self._places.get(name)
        self._places[name] = _Place(hosted, engine)
        if before is not None:
            self._dismiss(before)
        return hosted

    def _engine_for(self, config: Config) -> tuple[Engine, bool]:
        """The engine of the run's backbone, deep enough for it; and whether it was made just now."""
        engines = self._engines.setdefault(_key(config), [])
        depth = config.model.depth or 0
        for engine in engines:
            if engine.backbone.layers >= depth:
                return engine, False
        with BUSY:
            backbone = load_backbone(config)
        budget = self.config.batch_tokens or config.eval.batch_tokens or MICRO_TOKENS
        engines.append(Engine(backbone, budget=budget, max_wait=self.config.max_wait, hear=self._hear))
        return engines[-1], True

    def _dismiss(self, place: _Place) -> None:
        place.engine.dismiss(place.hosted).result(BUSY_WITH_RUNS)
        if not any(other.engine is place.engine for other in self._places.values()):
            self._close(place.engine)

    def _close(self, engine: Engine) -> None:
        engine.stop()
        self._engines = {key: left for key, es in self._engines.items() if (left := [e for e in es if e is not engine])}

    def _place(self, name: str) -> _Place:
        place = self._places.get(name)
        if place is None:
            raise self._unknown(name)
        return place

    def _unknown(self, name: str) -> Unknown:
        hint = nearest(name, sorted(self._places)) if self._places else "none is"
        return Unknown(f"no run {name[:100]!r} is served", hint=hint)


def _key(config: Config) -> Key:
    """What must be the same for two runs to share a backbone."""
    model = config.model
    return (
        resolve(model),
        str(model.revision),
        str(model.weights_sha256),
        str(model.dtype),
        model.quantization,
        config.train.device,
    )
