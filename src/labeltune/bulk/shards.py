"""Shards beside an output: what a kill leaves, and what `--resume` goes on with; joined, they become the output.

`.NAME.shards/` holds a manifest of what is answered how, and a file for each portion, whole or not there. The output is
put in place in one step, then the shards go; `joined` marks the moment in between.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from labeltune.answers import Answered
from labeltune.bulk.forms import Form
from labeltune.errors import RunError
from labeltune.storage import atomic_file, is_there, lock, read_json, refuse_file, told, write_atomic, write_json

MANIFEST, JOINED = "manifest.json", "joined"


@dataclass(frozen=True)
class Shards:
    """The shards of the output `to`, kept as `form` says. labels: those that the run knows."""

    to: Path
    form: Form
    labels: Sequence[str]

    @property
    def folder(self) -> Path:
        """Where they lie."""
        return self.to.with_name(f".{self.to.name}.shards")

    @property
    def _old(self) -> Path:
        return self.to.with_name(f".{self.to.name}.shards.old")

    @contextmanager
    def opened(self, manifest: Mapping[str, Any], *, resume: bool) -> Iterator[bool]:
        """Hold them alone; whether there is anything left to do. A failure before the first shard leaves nothing.

        Raises:
            RunError: the output is there, or shards are (without `resume`), or those of something else.
        """
        with told(self.to):  # a name may be too long for what stands beside it
            ended = resume and is_there(self.to) and ((self.folder / JOINED).exists() or self._old.exists())
            if self._old.exists():
                shutil.rmtree(self._old)
        if not ended:
            refuse_file(self.to)
        if self.folder.exists() and not resume and self.done():
            hint = f"add --resume to go on with it, or remove {self.folder} to begin again"
            raise RunError("a prediction that did not end lies beside it", at=str(self.to), hint=hint)
        try:
            with lock(self.folder):
                try:
                    self._claim(manifest)
                    yield not ended
                    self._retire()
                finally:
                    if self.folder.exists() and not self.done():
                        self._retire()
        finally:  # the lock lies in it, and some file systems keep a file that is open
            shutil.rmtree(self._old, ignore_errors=True)

    def _claim(self, manifest: Mapping[str, Any]) -> None:
        """Write down what is answered how, or see that it is what was begun."""
        path = self.folder / MANIFEST
        plain = json.loads(json.dumps(manifest))
        if not self.done():
            write_json(path, plain)
            return
        begun: Any = read_json(path) if path.exists() else None
        known = begun if isinstance(begun, dict) else {}  # without it nobody knows what the shards hold
        other = [name for name in plain if name not in known or known[name] != plain[name]]
        if other:
            hint = f"give what was given then, or remove {self.folder} to begin again"
            raise RunError(f"it was begun with other {' and '.join(other)}", at=str(self.to), hint=hint)

    def _retire(self) -> None:
        os.replace(self.folder, self._old)

    def drop(self) -> None:
        """Keep nothing of what was written, for it cannot be gone on with."""
        for shard in self.done():
            shard.unlink()

    def path(self, number: int) -> Path:
        """The file of a portion."""
        return self.folder / f"{number:08}{self.form.ending}"

    def done(self) -> list[Path]:
        """The shards that are there, in order."""
        return sorted(self.folder.glob(f"[0-9]*{self.form.ending}"))

    def write(self, number: int, rows: Sequence[Answered]) -> None:
        """Keep a portion, whole or not at all."""
        with atomic_file(self.path(number)) as partial, partial.open("wb") as file:
            self.form.write(file, rows, self.labels)

    def join(self, count: int, given: pa.Schema | None) -> None:
        """The first `count` shards as the output."""
        shards = [self.path(number) for number in range(count)]
        if is_there(self.to):
            hint = "move it away; the same command with --resume goes on"
            raise RunError("this file has come to be there meanwhile", at=str(self.to), hint=hint)
        with atomic_file(self.to) as partial:
            self.form.join(shards, partial, self.to.name, given)
            write_atomic(self.folder / JOINED, "")
