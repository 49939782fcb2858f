"""Train one model, from labelled text to a run folder. The page to read first.

    settings -> rows -> backbone (checked for Company and Sight) -> encoded rows -> member -> trial -> the loop
    -> best weights -> dev and test scored as `predict` would -> the folder, sealed

Interrupted anywhere, the same call with `resume=True` goes on and ends with the same bits.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from labeltune.assembly import Assembly, assemble, task_of, untested
from labeltune.card import write_card
from labeltune.config import Config, gather, switches, to_toml, with_settings
from labeltune.data.datasets import QUARANTINE, Dataset, Loaded, load
from labeltune.data.lint import lint
from labeltune.data.specials import unknown_token
from labeltune.data.store import Store
from labeltune.errors import RunError
from labeltune.facts import Checked, Listener, Ready, Said, Scored, quiet
from labeltune.folder import asked_before, claimed, content_of, facts_of, is_finished, parts, refuse_other
from labeltune.inference import Labeller, NotFinite, caveats, lost
from labeltune.initial import start_from
from labeltune.interrupt import Interrupted, Stop, graceful
from labeltune.keys import Key
from labeltune.ledger import Ledger
from labeltune.model.member import LabelModel
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
    unseal,
    write_run,
)
from labeltune.schema import Example
from labeltune.storage import (
    append_jsonl,
    atomic_folder,
    read_json,
    read_jsonl,
    to_json,
    write_atomic,
    write_json,
)
from labeltune.tasks import Calibration, Loss
from labeltune.training.checkpoint import State, load_state, save_state
from labeltune.training.meter import Meter
from labeltune.training.trainer import MICRO_TOKENS, Group, Step, Trial, restore
from labeltune.training.trainer import train as steps

CHECKPOINT = "checkpoint.safetensors"


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
    with claimed(folder), _threads(asked.train.threads):
        if not resume:
            refuse_existing(folder)  # again, for another training may just have ended here
        job = _prepare(asked, folder, given, listen)
        with graceful() as stop:
            _begin(job, listen)
            _loop(job, stop, listen)
        try:
            figures = _score(job, listen)
        except KeyboardInterrupt:
            raise _leave(job) from None
        with graceful():
            _write(job, *figures, "finished")
            shutil.rmtree(folder / WORK, ignore_errors=True)
    return open_run(folder)


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


@dataclass(frozen=True)
class _Job:
    """What one training works on. lost: what was cut off the training rows."""

    folder: Path
    loaded: Loaded
    assembly: Assembly
    trial: Trial
    group: Group
    labeller: Labeller
    dev: tuple[list[Example], Store]
    meter: Meter
    ledger: Ledger
    lost: Mapping[str, int]


def _prepare(config: Config, folder: Path, given: tuple[object, ...], listen: Listener) -> _Job:
    """Load, check and encode everything; nothing is trained yet, and bad input stops here."""
    ledger = Ledger(folder)
    loaded = _load(config, folder, given, ledger)
    for sentence in (*loaded.said, *_linted(loaded, ledger)):
        listen(Said(sentence))
    config = with_settings(config.model_copy(update={"data": loaded.config}), {"task": loaded.task})
    task = task_of(config)
    labels = task.label_set(loaded.train, config.data)
    assembly = assemble(config, labels)
    listen(Checked(assembly.selfcheck))
    if warning := untested(assembly.backbone.device):
        listen(Said(f"warning: {warning}"))
    rows = _encode(loaded.train, assembly, folder / WORK)
    dev_rows = list(loaded.dev)
    dev_store = Store.build(dev_rows, assembly.encoder.encode_many)
    cut = {"train": lost(task, loaded.train, rows), "dev": lost(task, dev_rows, dev_store)}
    for sentence in _unreadable(dev_store, assembly):
        listen(Said(sentence))
    for name, counts in cut.items():
        for sentence in caveats({"lost": counts}):
            listen(Said(f"{name}: {sentence}"))
    labeller = _labeller(assembly)
    trial = _trial(assembly, rows, lambda loss: _dev_figures(labeller, dev_rows, dev_store, loss))
    if config.train.init is not None and not (folder / WORK / CHECKPOINT).exists():
        listen(Said(start_from(assembly, Path(config.train.init))))
    group = Group(assembly.backbone)
    return _Job(folder, loaded, assembly, trial, group, labeller, (dev_rows, dev_store), Meter(), ledger, cut["train"])


def _load(config: Config, folder: Path, given: tuple[object, ...], ledger: Ledger) -> Loaded:
    data, dev, test = given
    return load(
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


def _begin(job: _Job, listen: Listener) -> None:
    """Write down what is trained on what, and take up the checkpoint, if there is one."""
    _settle_folder(job)
    _go_on(job)
    counts = {name: len(split) for name, split in parts(job.loaded).items()}
    trained = sum(p.numel() for p in job.trial.parameters.values())
    trial, assembly = job.trial, job.assembly
    listen(Ready(assembly.config, counts, len(assembly.labels), trained, trial.step, trial.plan.total))


def _linted(loaded: Loaded, ledger: Ledger) -> Iterator[str]:
    """The linter in short: its warnings, and how much else `inspect` would list."""
    findings = lint(loaded, ledger=ledger)
    warnings = [finding for finding in findings if finding.level == "warning"]
    yield from (f"warning: {finding}" for finding in warnings)
    if rest := len(findings) - len(warnings):
        yield f"{rest} more {'notes' if rest > 1 else 'note'} on the data: `labeltune inspect` lists them"


def _unreadable(dev: Store, assembly: Assembly) -> Iterator[str]:
    """Whether there is text that the tokenizer has no token for; the dev rows stand for all."""
    nothing = unknown_token(assembly.tokenizer)
    rows = 0 if nothing is None else sum(nothing in row.tokens for row in dev)
    if rows:
        of = f"{rows:,} of {len(dev):,} dev rows"
        yield f"warning: {of} hold text that the tokenizer has no token for; the model cannot read it"


def _encode(dataset: Dataset, assembly: Assembly, folder: Path) -> Store:
    """The training rows in the run's work folder, where a resumed training finds them again."""
    key = _encoding_key(dataset, assembly)
    return Store.build(dataset, assembly.encoder.encode_many, folder, key=key)


def _encoding_key(dataset: Dataset, assembly: Assembly) -> str:
    """Stands for the rows, the labels, the tokenizer and all settings of the encoding."""
    return assembly.encoder.key(content_of(dataset), dataset.name, *assembly.labels.names)


def _labeller(assembly: Assembly) -> Labeller:
    model = LabelModel(assembly.backbone, [assembly.member])
    config = assembly.config
    return Labeller(
        model,
        assembly.task,
        assembly.labels,
        Calibration(),
        config.eval.batch_tokens or MICRO_TOKENS,
        switches(config),
        isinstance(config.data.train, dict),
    )


def _dev_figures(labeller: Labeller, examples: list[Example], rows: Store, loss: Loss) -> Mapping[str, float]:
    """The dev metrics; no numbers where the weights have run away, so that they are never the best."""
    try:
        return labeller.score(examples, rows, loss)
    except NotFinite:
        return dict.fromkeys(labeller.task.metrics, math.nan)


def _trial(assembly: Assembly, rows: Store, evaluate: Callable[[Loss], Mapping[str, float]]) -> Trial:
    config, task = assembly.config, assembly.task
    parameters = dict(assembly.member.named_parameters())
    if config.lora.kind == "full":
        body = assembly.backbone.model.named_parameters()
        parameters |= {f"{BACKBONE}.{name}": parameter for name, parameter in body}
    select = config.train.select or task.select
    counts = label_counts(rows, len(task.classes(assembly.labels)))
    loss = task.loss(config.head, assembly.labels, counts, assembly.member.head)
    return Trial(
        name=task.name,
        config=config.train,
        member=assembly.member,
        parameters=parameters,
        rows=rows,
        loss=loss,
        evaluate=lambda: evaluate(loss),
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
    splits = {name: facts_of(split, job.loaded.split_ids.get(name)) for name, split in parts(job.loaded).items()}
    splits["train"]["encoded"] = _encoding_key(job.loaded.train, job.assembly)
    path = job.folder / SPLITS
    if path.exists():
        before: Any = read_json(path)
        for name in splits.keys() | before.keys():
            refuse_other(name, before.get(name), splits.get(name), job.folder)
    write_json(path, splits)
    write_atomic(job.folder / CONFIG, to_toml(job.assembly.config))


def _go_on(job: _Job) -> None:
    """Take up the checkpoint, if there is one, and cut the log back to it."""
    path, log = job.folder / WORK / CHECKPOINT, job.folder / LOG
    kept: list[Mapping[str, Any]] = []
    if path.exists():
        state = load_state(path)
        restore(job.trial, state)
        job.meter.rows, job.meter.tokens, job.meter.seconds = state.facts["meter"]
        kept = [line for line in read_jsonl(log) if int(str(line["step"])) <= job.trial.step] if log.exists() else []
    write_atomic(log, "".join(to_json(line) + "\n" for line in kept))
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
            break
        job.meter.stop(step.rows, step.tokens, step.evaluation_seconds)
        _log(job, step)
        due = step.evaluation is not None if every is None else step.step % every == 0
        if due or step.last:
            _checkpoint(job)
        listen(step)
    if stop.asked:
        raise _leave(job)
    if job.trial.status == "diverged" and not job.trial.best:
        hint = f"train into a new folder with a lower train.lr than {job.trial.config.lr:g}"
        raise RunError(f"the loss is no longer finite after step {job.trial.step:,}", at=str(job.folder), hint=hint)


def _leave(job: _Job) -> Interrupted:
    """Leave a folder that can be used as it is, and gone on with; what to tell the user."""
    trial = job.trial
    if trial.status == "running":
        _checkpoint(job)
    trial.finish()
    _write(job, {"train": _train_figures(job)}, Calibration(), "interrupted")
    return Interrupted(
        f"stopped at step {trial.step:,} of {trial.plan.total:,}; {job.folder} can be used as it is",
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


def _score(job: _Job, listen: Listener) -> tuple[dict[str, Any], Calibration]:
    """The figures of all splits, with the chosen weights and the calibration fitted on dev, as `predict` answers."""
    job.trial.finish()
    dev_rows, dev_store = job.dev
    labeller = replace(job.labeller, calibration=job.labeller.calibrate(dev_store))
    dev = _report(labeller, dev_rows, dev_store)
    listen(Scored("dev", dev))
    figures = {"train": _train_figures(job), "dev": dev}
    listen(Said(_spent(figures["train"])))
    if job.loaded.test is not None:
        figures["test"] = _final_evaluation(job, labeller, job.loaded.test)
        listen(Scored("test", figures["test"]))
    if bad := _bad_rows(job.loaded):
        listen(Said(f"{bad:,} rows could not be used and are in no figure ({_way_of_bad_rows(job)})"))
    return figures, labeller.calibration


def _report(labeller: Labeller, examples: list[Example], rows: Store) -> dict[str, Any]:
    return plain_metrics(labeller.report(examples, rows, labeller.predict(examples, rows, all_scores=True)))


def _final_evaluation(job: _Job, labeller: Labeller, test: Dataset) -> dict[str, Any]:
    """The test split's figures; the ledger has the opening before the file is read."""
    job.ledger.note("final evaluation", test.source, rows=len(test), sha256=test.sha256)
    rows = list(test)
    return _report(labeller, rows, Store.build(rows, job.assembly.encoder.encode_many))


def _write(job: _Job, figures: Mapping[str, Any], calibration: Calibration, state: str) -> None:
    """Write the whole folder, and seal it."""
    config, member = job.assembly.config, job.assembly.member
    unseal(job.folder)
    member.save(job.folder, config.model.name, config.model.revision)
    if config.lora.kind == "full":
        with atomic_folder(job.folder / BACKBONE, replace=True) as partial:
            job.assembly.backbone.save(partial)
    with atomic_folder(job.folder / TOKENIZER, replace=True) as partial:
        job.assembly.tokenizer.save_pretrained(partial)
    write_json(job.folder / METRICS, figures)
    run = Run(job.folder, config, job.assembly.labels, calibration.to_json(), state)
    write_card(run)
    write_run(run)


def _bad_rows(loaded: Loaded) -> int:
    """Rows that could not be used; splits that were taken from one source share its count."""
    return sum({split.source: split.bad_rows for split in parts(loaded).values()}.values())


def _way_of_bad_rows(job: _Job) -> str:
    kept = job.assembly.config.data.on_bad_row == "quarantine"
    return f"they are in {job.folder / QUARANTINE}" if kept else "skipped"


def _train_figures(job: _Job) -> dict[str, Any]:
    trial = job.trial
    return job.meter.facts() | {
        "status": trial.status,
        "steps": trial.step,
        "best_step": trial.best_step,
        "best_epoch": trial.best_epoch,
        "trained_parameters": sum(p.numel() for p in trial.parameters.values()),
        "bad_rows": _bad_rows(job.loaded),
        **({"lost": dict(job.lost)} if job.lost else {}),
    }


def _spent(train: Mapping[str, Any]) -> str:
    return (
        f"training: {train['seconds']:,.1f} s in steps, {train['tokens_per_second']:,.0f} tokens a second, "
        f"peak memory {train['peak_memory_gib']:.2f} GiB"
    )


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Compute with so many CPU threads, and with as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
