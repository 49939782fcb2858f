"""Who runs the packs: this process, one after another, or the workers of a Ray cluster."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from labeltune.bench import Bench
from labeltune.data.datasets import QUARANTINE
from labeltune.errors import ModelError, RunError
from labeltune.facts import Listener
from labeltune.interrupt import Interrupted, Stop
from labeltune.ledger import Ledger
from labeltune.run import WORK
from labeltune.sweeps.facts import Ended
from labeltune.sweeps.pack import Pack, run_pack
from labeltune.sweeps.trials import ENDED, read_result

ROWS = "rows"


class Engine(Protocol):
    """Runs packs to their ends."""

    groups: int
    """Into how many packs the trials of one backbone are divided."""

    def run(self, packs: Sequence[Pack]) -> None:
        """Return when all packs have ended; Interrupted when the user stops."""


class Local:
    """Packs one after another in this process; they share its bench."""

    groups = 1

    def __init__(
        self, sweep: Path, bench: Bench, listen: Listener, stop: Stop, may_begin: Callable[[], bool], interval: float
    ) -> None:
        self._sweep, self._bench, self._listen = sweep, bench, listen
        self._stop, self._may_begin, self._interval = stop, may_begin, interval

    def run(self, packs: Sequence[Pack]) -> None:
        """Run each pack."""
        for pack in packs:
            run_pack(
                pack,
                self._sweep,
                self._bench,
                self._listen,
                stop=self._stop,
                may_begin=self._may_begin,
                interval=self._interval,
            )


class Ray:
    """Packs as tasks of a Ray cluster; a task whose worker dies is run again and goes on from its snapshot.

    The sweep's folder must be one that all workers see.
    """

    def __init__(self, sweep: Path, listen: Listener, stop: Stop, workers: int, interval: float) -> None:
        try:
            import ray
        except ImportError:
            raise ModelError("ray is not installed", hint='pip install "labeltune[ray]"') from None
        self._ray: Any = ray
        self._sweep, self._listen, self._stop, self._interval = sweep.resolve(), listen, stop, interval
        self.groups = workers
        if not ray.is_initialized():
            ray.init(log_to_driver=False, include_dashboard=False, configure_logging=False)

    def run(self, packs: Sequence[Pack]) -> None:
        """Start all packs as tasks and tell of each trial that ends."""
        gpus = 1 if torch.cuda.is_available() else 0
        threads = max((pack.specs[0].config.train.threads or 1 for pack in packs), default=1)
        task = self._ray.remote(num_cpus=threads, num_gpus=gpus, max_retries=5)(_task)
        waiting = [task.remote(pack, str(self._sweep), self._interval) for pack in packs]
        told = self._ended(packs)
        while waiting:
            done, waiting = self._ray.wait(waiting, timeout=1.0)
            self._tell(packs, told)
            for one in done:
                self._get(one)
            if self._stop.asked:
                for one in waiting:
                    self._ray.cancel(one, force=True)
                message = "stopped; the groups on the cluster have been told to end"
                raise Interrupted(message, at=str(self._sweep), hint="the same command with --resume goes on")

    def _get(self, task: Any) -> None:
        try:
            self._ray.get(task)
        except self._ray.exceptions.RayError as error:
            said = " ".join(str(error).split())[-300:]
            raise RunError(
                f"a group ended on the cluster: {said}", at=str(self._sweep), hint="--resume goes on"
            ) from None

    def _ended(self, packs: Sequence[Pack]) -> set[int]:
        specs = (spec for pack in packs for spec in pack.specs)
        results = ((spec.number, read_result(spec.folder(self._sweep))) for spec in specs)
        return {number for number, result in results if result is not None and result.status in ENDED}

    def _tell(self, packs: Sequence[Pack], told: set[int]) -> None:
        for spec in (spec for pack in packs for spec in pack.specs):
            result = read_result(spec.folder(self._sweep)) if spec.number not in told else None
            if result is not None:
                told.add(spec.number)
                self._listen(Ended(spec, result.status, result.value, result.reason))


def _task(pack: Pack, sweep: str, interval: float) -> float:
    """What a worker does: the same as this process would, with a bench of its own."""
    began, folder = time.monotonic(), Path(sweep)
    run_pack(pack, folder, bench_of(folder), interval=interval)
    return time.monotonic() - began


def bench_of(sweep: Path) -> Bench:
    """A bench whose encoded rows lie in the sweep's folder."""
    return Bench(sweep / WORK / ROWS, Ledger(sweep), sweep / QUARANTINE)
