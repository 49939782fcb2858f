"""Train one model, from labelled text to a run folder. The page to read first.

    settings -> rows -> backbone (checked for Company and Sight) -> encoded rows -> member -> trial -> the loop
    -> best weights -> dev and test scored as `predict` would -> the folder, sealed

Interrupted anywhere, the same call with `resume=True` goes on and ends with the same bits.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from labeltune.assembly import Assembly, assemble, task_of
from labeltune.card import write_card
from labeltune.config import Config, gather, make, read_toml, to_toml, with_settings
from labeltune.data.datasets import Dataset, Loaded, load
from labeltune.data.store import Store
from labeltune.errors import RunError
from labeltune.inference import Labeller
from labeltune.initial import start_from
from labeltune.interrupt import Interrupted, Stop, graceful
from labeltune.keys import Key
from labeltune.ledger import LEDGER, Ledger
from labeltune.model.member import LabelModel
from labeltune.model.selfcheck import Report
from labeltune.run import (
    BACKBONE,
    CONFIG,
    LOG,
    METRICS,
    SPLITS,
    TOKENIZER,
    WORK,
    Run,
    finite,
    open_run,
    plain_metrics,
    refuse_existing,
    write_run,
)
from labeltune.schema import Example
from labeltune.storage import append_jsonl, lock, read_json, read_jsonl, write_atomic, write_json
from labeltune.tasks import Calibration
from labeltune.training.checkpoint import State, load_state, save_state
from labeltune.training.meter import Meter
from labeltune.training.trainer import MICRO_TOKENS, Evaluate, Group, Step, Trial, restore
from labeltune.training.trainer import train as steps

CHECKPOINT, QUARANTINE = "checkpoint.safetensors", "quarantine.jsonl"
Listener = Callable[[object], None]


@dataclass(frozen=True)
class Said:
    """A sentence for the user."""

    text: str


@dataclass(frozen=True)
class Checked:
    """The loaded model passed the self-check."""

    report: Report


@dataclass(frozen=True)
class Ready:
    """Everything is loaded and checked; training begins (or goes on) at `step` of `total`."""

    config: Config
    rows: Mapping[str, int]
    labels: int
    trained_parameters: int
    step: int
    total: int


@dataclass(frozen=True)
class Scored:
    """The final figures of one split."""

    split: str
    metrics: Mapping[str, Any]


def quiet(fact: object) -> None:
    """The listener that hears nothing."""


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
    asked = gather(config, {**named, "model.name": model, "task": task}, settings or {})
    if resume:
        asked = _asked_before(folder, asked)
        if _is_finished(folder):
            listen(Said(f"{folder} is finished already"))
            return open_run(folder)
    else:
        refuse_existing(folder)
    with _claimed(folder), graceful() as stop:
        job = _prepare(asked, folder, given, init, listen)
        _loop(job, stop, listen)
        _finish(job, listen)
    return open_run(folder)


def named_and_given(*sources: object) -> tuple[dict[str, object], tuple[object, ...]]:
    """Sources that settings can name, and those that only memory holds."""
    named: dict[str, object] = {
        f"data.{name}": str(source) if isinstance(source, Path) else source
        for name, source in zip(("train", "dev", "test"), sources, strict=True)
        if isinstance(source, str | Path | float)
    }
    return named, tuple(None if isinstance(source, str | Path | float) else source for source in sources)


@dataclass(frozen=True)
class _Job:
    """What one training works on."""

    folder: Path
    loaded: Loaded
    assembly: Assembly
    trial: Trial
    group: Group
    labeller: Labeller
    dev: tuple[list[Example], Store]
    meter: Meter
    ledger: Ledger


def _prepare(
    config: Config, folder: Path, given: tuple[object, ...], init: str | Path | None, listen: Listener
) -> _Job:
    """Load, check and encode everything; nothing is trained yet, and bad input stops here."""
    if config.train.threads is not None:
        torch.set_num_threads(config.train.threads)
    ledger = Ledger(folder)
    data, dev, test = given
    loaded = load(
        config.data,
        config.task,
        base=Path.cwd(),
        data=data,
        dev=dev,
        test=test,
        ledger=ledger,
        seed=config.train.seed,
        quarantine=folder / QUARANTINE,
    )
    for sentence in loaded.said:
        listen(Said(sentence))
    config = with_settings(config.model_copy(update={"data": loaded.config}), {"task": loaded.task})
    labels = task_of(config).label_set(loaded.train, config.data)
    assembly = assemble(config, labels)
    listen(Checked(assembly.selfcheck))
    rows = _encode(loaded.train, assembly, folder / WORK)
    dev_rows = list(loaded.dev)
    dev_store = Store.build(dev_rows, assembly.encoder.encode_many)
    labeller = _labeller(assembly)
    trial = _trial(assembly, rows, lambda: labeller.score(dev_rows, dev_store))
    job = _Job(
        folder, loaded, assembly, trial, Group(assembly.backbone), labeller, (dev_rows, dev_store), Meter(), ledger
    )
    _settle_folder(job)
    if init is not None:
        listen(Said(start_from(assembly, Path(init))))
    _go_on(job)
    counts = {"train": len(rows), "dev": len(dev_rows)} | ({"test": len(loaded.test)} if loaded.test else {})
    trained = sum(p.numel() for p in trial.parameters.values())
    listen(Ready(assembly.config, counts, len(labels), trained, trial.step, trial.plan.total))
    return job


def _encode(dataset: Dataset, assembly: Assembly, folder: Path) -> Store:
    """The training rows in the run's work folder, where a resumed training finds them again."""
    key = assembly.encoder.key(str(dataset.sha256), dataset.name, *assembly.labels.names)
    return Store.build(dataset, assembly.encoder.encode_many, folder, key=key)


def _labeller(assembly: Assembly, calibration: Calibration | None = None) -> Labeller:
    model = LabelModel(assembly.backbone, [assembly.member])
    budget = assembly.config.eval.batch_tokens or MICRO_TOKENS
    return Labeller(model, assembly.task, assembly.labels, calibration or Calibration(), budget)


def _trial(assembly: Assembly, rows: Store, evaluate: Evaluate) -> Trial:
    config, task = assembly.config, assembly.task
    parameters = dict(assembly.member.named_parameters())
    if config.lora.kind == "full":
        body = assembly.backbone.model.named_parameters()
        parameters |= {f"{BACKBONE}.{name}": parameter for name, parameter in body}
    select = config.train.select or task.select
    counts = label_counts(rows, len(task.classes(assembly.labels)))
    return Trial(
        name=task.name,
        config=config.train,
        member=assembly.member,
        parameters=parameters,
        rows=rows,
        loss=task.loss(config.head, assembly.labels, counts, assembly.member.head),
        evaluate=evaluate,
        select=(select, task.higher_is_better(select)),
        key=Key.of(config.train.seed).fold("trial"),
    )


def label_counts(rows: Store, width: int) -> np.ndarray:
    """How often each class is a training target, int64 (width); zeros where targets are numbers."""
    labels = rows.labels
    if labels.ndim == 2:
        return np.asarray(np.nan_to_num(labels).sum(0), dtype=np.int64)
    if not np.issubdtype(labels.dtype, np.integer):
        return np.zeros(width, dtype=np.int64)
    return np.bincount(labels[labels >= 0], minlength=width)


def _settle_folder(job: _Job) -> None:
    """Write the settled settings and the splits, or compare them with those of the training that goes on."""
    splits = _splits(job.loaded)
    path = job.folder / SPLITS
    if path.exists():
        before = read_json(path)
        for name, facts in splits.items():
            if not isinstance(before, dict) or before.get(name) != facts:
                raise RunError(
                    f"the {name} rows are not those that this training began with",
                    at=str(job.folder),
                    hint="restore the data, or train into a new folder",
                )
    write_json(path, splits)
    write_atomic(job.folder / CONFIG, to_toml(job.assembly.config))


def _splits(loaded: Loaded) -> dict[str, Any]:
    """Where each split's rows came from, and their ids where a split was taken from another."""
    datasets = {"train": loaded.train, "dev": loaded.dev, "test": loaded.test}
    return {
        name: {"source": d.source, "sha256": d.sha256, "rows": len(d), "ids": loaded.split_ids.get(name)}
        for name, d in datasets.items()
        if d is not None
    }


def _go_on(job: _Job) -> None:
    """Take up the checkpoint, if there is one, and cut the log back to it."""
    path = job.folder / WORK / CHECKPOINT
    kept: list[Mapping[str, Any]] = []
    if path.exists():
        state = load_state(path)
        restore(job.trial, state)
        job.meter.rows, job.meter.tokens, job.meter.seconds = state.facts["meter"]
        kept = [line for line in read_jsonl(job.folder / LOG) if int(str(line["step"])) <= job.trial.step]
    write_atomic(job.folder / LOG, "")
    for line in kept:
        append_jsonl(job.folder / LOG, line)
    if job.trial.status == "running":
        job.group.admit(job.trial)


def _loop(job: _Job, stop: Stop, listen: Listener) -> None:
    """Consume the facts of the training: meter, log, checkpoint, listener."""
    every = job.trial.config.checkpoint_steps
    facts = steps(job.group)
    while not stop.asked:
        job.meter.start()
        step = next(facts, None)
        if step is None:
            return
        job.meter.stop(step.rows, step.tokens, step.evaluation_seconds)
        _log(job, step)
        due = step.evaluation is not None if every is None else step.step % every == 0
        if due or step.last:
            _checkpoint(job)
        listen(step)
    if job.trial.status != "running":
        return
    _checkpoint(job)
    job.trial.finish()
    _write_weights(job)
    write_run(job.folder, job.assembly.config, job.assembly.labels, {}, "interrupted")
    raise Interrupted(
        f"stopped at step {job.trial.step:,} of {job.trial.plan.total:,}; {job.folder} can be used as it is",
        hint="the same command with --resume goes on",
    )


def _log(job: _Job, step: Step) -> None:
    line: dict[str, Any] = {
        "step": step.step,
        "epoch": step.epoch,
        "loss": finite(step.loss),
        "lr": step.lr,
        "grad_norm": finite(step.grad_norm),
        "rows": step.rows,
        "tokens": step.tokens,
        "seconds": round(job.meter.seconds, 3),
    }
    if step.evaluation is not None:
        line |= {"dev": plain_metrics(step.evaluation.metrics), "best": step.evaluation.best}
    append_jsonl(job.folder / LOG, line)


def _checkpoint(job: _Job) -> None:
    state = job.group.state(job.trial)
    meter = job.meter
    facts = {**state.facts, "meter": [meter.rows, meter.tokens, meter.seconds]}
    save_state(job.folder / WORK / CHECKPOINT, State(state.now, state.best, state.moments, facts))


def _write_weights(job: _Job) -> None:
    """The member, its backbone where that was trained, and the tokenizer into the folder."""
    assembly, model = job.assembly, job.assembly.config.model
    assembly.member.save(job.folder, model.name, model.revision)
    if assembly.config.lora.kind == "full":
        assembly.backbone.model.save_pretrained(job.folder / BACKBONE)
    assembly.tokenizer.save_pretrained(job.folder / TOKENIZER)


def _finish(job: _Job, listen: Listener) -> None:
    """Score with the chosen weights, write everything, and seal the folder."""
    job.trial.finish()
    assembly = job.assembly
    dev_rows, dev_store = job.dev
    calibration = job.labeller.calibrate(dev_store)
    labeller = replace(job.labeller, calibration=calibration)
    figures: dict[str, Any] = {"train": _train_figures(job), "dev": labeller.score(dev_rows, dev_store)}
    listen(Scored("dev", figures["dev"]))
    if job.loaded.test is not None:
        figures["test"] = _final_evaluation(job, labeller, job.loaded.test)
        listen(Scored("test", figures["test"]))
    labeller.model.detach()
    _write_weights(job)
    write_json(job.folder / METRICS, {split: plain_metrics(values) for split, values in figures.items()})
    write_run(job.folder, assembly.config, assembly.labels, calibration.to_json(), "finished")
    write_card(open_run(job.folder))
    shutil.rmtree(job.folder / WORK, ignore_errors=True)


def _final_evaluation(job: _Job, labeller: Labeller, test: Dataset) -> Mapping[str, Any]:
    """The test split's figures; the ledger has the opening before the file is read."""
    job.ledger.note("final evaluation", test.source, rows=len(test), sha256=test.sha256)
    rows = list(test)
    return labeller.score(rows, Store.build(rows, job.assembly.encoder.encode_many))


def _train_figures(job: _Job) -> dict[str, Any]:
    trial = job.trial
    return job.meter.facts() | {
        "status": trial.status,
        "steps": trial.step,
        "best_step": trial.best_step,
        "best_epoch": trial.best_epoch,
        "trained_parameters": sum(p.numel() for p in trial.parameters.values()),
    }


def _asked_before(folder: Path, config: Config) -> Config:
    """The settings that the folder was begun with; a flag that says otherwise is refused."""
    path = folder / CONFIG
    if not path.exists():
        if not folder.is_dir():
            raise RunError("there is no run to go on with", at=str(folder), hint="leave --resume out")
        return config
    saved = make(read_toml(path), at=str(path))
    for name, value in _flat(config.model_dump(exclude_unset=True)).items():
        was = _flat(saved.model_dump()).get(name)
        if was != value and not _same_path(was, value):
            raise RunError(
                f"{name} was {was!r} when this training began and is {value!r} now",
                at=str(folder),
                hint="leave it out, or train into a new folder",
            )
    return saved


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


def _is_finished(folder: Path) -> bool:
    return (folder / "format").exists() and open_run(folder).state == "finished"


@contextmanager
def _claimed(folder: Path) -> Iterator[None]:
    """Lock the folder; where training never began, leave no trace of it."""
    new = not folder.exists()
    with lock(folder):
        try:
            yield
        finally:
            began = (folder / CONFIG).exists()
            if not began:
                shutil.rmtree(folder / WORK, ignore_errors=True)
                for name in (LEDGER, LOG, SPLITS):
                    (folder / name).unlink(missing_ok=True)
            if new and not began:
                shutil.rmtree(folder)
