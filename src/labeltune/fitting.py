"""Train one model, from labelled text to a run folder. The page to read first.

    settings -> rows -> backbone (checked for Company and Sight) -> encoded rows -> member -> trial -> the loop
    -> best weights -> dev and test scored as `predict` would -> the folder, sealed

Interrupted anywhere, the same call with `resume=True` goes on and ends with the same bits.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from labeltune.bench import Bench
from labeltune.config import Config, gather
from labeltune.data.datasets import QUARANTINE
from labeltune.errors import RunError
from labeltune.facts import Listener, Said, quiet
from labeltune.folder import asked_before, claimed, is_finished, refuse_inside
from labeltune.interrupt import Interrupted, Stop, graceful, heard
from labeltune.job import (
    CHECKPOINT,
    FAILURES,
    Job,
    begin,
    follow,
    prepare,
    save_checkpoint,
    score,
    train_figures,
    write,
)
from labeltune.ledger import Ledger
from labeltune.run import WORK, Run, open_run, refuse_existing
from labeltune.tasks import Calibration
from labeltune.training.distributed import World, joined
from labeltune.training.trainer import Group
from labeltune.training.trainer import train as steps


def train(
    data: object = None,
    *,
    out: str | Path,
    model: str | None = None,
    dev: object = None,
    test: object = None,
    task: str | None = None,
    config: Config | str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    init: str | Path | None = None,
    resume: bool = False,
    listen: Listener = quiet,
) -> Run:
    """Train one model into the folder `out` and return the opened run.

    data, dev, test: a path or `hf:` id, a fraction (dev, test), or rows in memory: a DataFrame, a list of dicts, a
    `datasets.Dataset`, `(texts, labels)`.
    config: a Config or a recipe file; the arguments win over it, and `settings` (`{"train.lr": 3e-4}`) over those.
    init: a run whose adapter and head to start from. listen: called with every fact, for progress.
    Raises LabeltuneError for what a user can fix, and `Interrupted` after Ctrl-C, with a loadable folder left behind.
    """
    folder = Path(out)
    named, given = named_and_given(data, dev, test)
    start = None if init is None else str(init)
    asked = gather(config, {**named, "model.name": model, "task": task, "train.init": start}, settings or {})
    if resume:
        asked = asked_before(folder, asked)
        if is_finished(folder):
            listen(Said(f"{folder} is finished already"))
            return open_run(folder)
    else:
        refuse_existing(folder)
        refuse_inside(folder, (asked.data.train, asked.data.dev, asked.data.test))
    with joined(sharded=asked.train.shard, device=asked.train.device) as world, threads(asked.train.threads):
        world.wait()  # all have read what is in the folder
        with _place(folder, world) as own:
            if not resume and world.rank == 0:
                refuse_existing(folder)  # again, for another training may just have ended here
            _train(asked, own, folder / WORK / CHECKPOINT, given, listen if world.rank == 0 else quiet, world)
        world.wait()
    return open_run(folder)


@contextmanager
def _place(folder: Path, world: World) -> Iterator[Path]:
    """Where this process writes: the first one into the run's folder, the others where nobody looks."""
    if world.rank == 0:
        with claimed(folder):
            yield folder
    else:
        with TemporaryDirectory(prefix="labeltune-") as place:
            yield Path(place) / folder.name


def _train(
    config: Config, folder: Path, checkpoint: Path, given: tuple[object, ...], listen: Listener, world: World
) -> None:
    """One training in its folder, from the checkpoint where there is one, to the sealed run."""
    ledger = Ledger(folder)
    bench = Bench(folder / WORK, ledger, folder / QUARANTINE)
    with heard():
        job = prepare(config, folder, bench, listen, given=given, fresh=not checkpoint.exists(), world=world)
    with graceful() as stop:
        begin(job, checkpoint, listen)
        world.wait()
        _loop(job, stop, listen)
    try:
        with heard():
            figures = score(job, listen, ledger)
    except KeyboardInterrupt:
        raise _leave(job) from None
    with graceful():
        if world.rank == 0:
            write(job, *figures, "finished")
        shutil.rmtree(folder / WORK, ignore_errors=True)


def named_and_given(*sources: object) -> tuple[dict[str, object], tuple[object, ...]]:
    """Sources that settings can name, and those that only memory holds."""
    given = {f"data.{name}": source for name, source in zip(("train", "dev", "test"), sources, strict=True)}
    named = {name: _in_words(source) for name, source in given.items() if _can_be_named(source)}
    return named, tuple(None if _can_be_named(source) else source for source in sources)


def _can_be_named(source: object) -> bool:
    """A path, a fraction, or a table of paths."""
    if isinstance(source, Mapping):
        return bool(source) and all(isinstance(part, str | Path) for part in source.values())
    return isinstance(source, str | Path | float)


def _in_words(source: object) -> object:
    if isinstance(source, Mapping):
        return {str(name): str(part) for name, part in source.items()}
    return str(source) if isinstance(source, Path) else source


def _loop(job: Job, stop: Stop, listen: Listener) -> None:
    """Consume the facts of the training: log, checkpoint, listener."""
    world = job.world
    group = Group(job.assembly.backbone, world=world)
    if job.trial.status == "running":
        group.admit(job.trial)
    facts = steps(group)
    while not world.any(stop.asked) and (step := next(facts, None)) is not None:
        if follow(job, step) and world.rank == 0:
            save_checkpoint(job, job.checkpoint)
        listen(step)
    if world.any(stop.asked):
        raise _leave(job)
    if job.trial.status in FAILURES and not job.trial.best:
        message, hint = FAILURES[job.trial.status]
        raise RunError(message.format(job.trial.step), at=str(job.folder), hint=hint.format(job.trial.config.lr))


def _leave(job: Job) -> Interrupted:
    """Leave a folder that can be used as it is, and gone on with; what to tell the user."""
    trial = job.trial
    if trial.status == "running":
        save_checkpoint(job, job.checkpoint)
    trial.finish()
    if job.world.rank == 0:
        write(job, {"train": train_figures(job)}, Calibration(), "interrupted")
    return Interrupted(
        f"stopped at step {trial.step:,} of {trial.order.total:,}; {job.folder} can be used as it is",
        hint="the same command with --resume goes on",
    )


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Compute with so many CPU threads, and with as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
