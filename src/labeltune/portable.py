"""A run folder that an object owns: in a temporary place while in use, packed into the object where that is pickled."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from functools import cached_property
from pathlib import Path

from labeltune.predict import Predictor, load


class PortableRun:
    """A folder that vanishes with the object, and what answers from it, loaded when first asked."""

    def __init__(self) -> None:
        self._place = Path(tempfile.mkdtemp(prefix="labeltune-"))
        weakref.finalize(self, shutil.rmtree, self._place, ignore_errors=True)

    @property
    def folder(self) -> Path:
        """Where the run lies, or is to be written."""
        return self._place / "run"

    @cached_property
    def predictor(self) -> Predictor:
        """The run, loaded."""
        return load(self.folder)

    @classmethod
    def copied(cls, folder: Path) -> PortableRun:
        """A copy of a run folder."""
        own = cls()
        shutil.copytree(folder, own.folder)
        return own

    def __getstate__(self) -> dict[str, bytes]:
        files = (path for path in sorted(self.folder.rglob("*")) if path.is_file())
        return {path.relative_to(self.folder).as_posix(): path.read_bytes() for path in files}

    def __setstate__(self, state: dict[str, bytes]) -> None:
        PortableRun.__init__(self)
        for name, content in state.items():
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / name).write_bytes(content)
