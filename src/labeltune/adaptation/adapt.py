"""Go on pretraining a model on unlabelled text, or train a fresh one: from files of text to a plain model folder.

    settings -> text (rows of tokens on disk) -> model (checked for Company and Sight) -> the loop, held-out text on the
    way -> weights, tokenizer, figures

Interrupted anywhere, the same call with `resume=True` goes on and ends with the same bits.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil, isfinite
from pathlib import Path
from typing import Any

import torch

from labeltune.adaptation import gathering
from labeltune.adaptation.gathering import gather, refuse_hidden, same_as_before
from labeltune.adaptation.loop import Score, Step, diverged, score, steps
from labeltune.adaptation.result import LOG, WORK, is_finished, refuse_existing, scored, write_figures, write_model
from labeltune.adaptation.settings import Adaptation
from labeltune.adaptation.setup import Setup, set_up
from labeltune.data.datasets import QUARANTINE
from labeltune.errors import ModelError, RunError
from labeltune.facts import Checked, Listener, Said, quiet
from labeltune.folder import claimed, refuse_inside
from labeltune.interrupt import Interrupted, Stop, graceful, heard
from labeltune.model.checkpoints import DTYPE_OF
from labeltune.run import ADAPTATION, finite, is_claimed, refuse_others
from labeltune.storage import append_jsonl, read_jsonl, to_json, write_atomic
from labeltune.training.checkpoint import State, load_state, save_state
from labeltune.training.meter import Meter

CORPUS, CHECKPOINT = "corpus", "checkpoint.safetensors"


@dataclass(frozen=True)
class Ready:
    """Everything is loaded and checked; training begins (or goes on) at `step` of `total`."""

    config: Adaptation
    trained_parameters: int
    step: int
    total: int
    tokens: int


@dataclass(frozen=True)
class Looked:
    """What the held-out text said after `step` (None where there is none); `whole` where all of it was read.

    pace: training tokens a second. seconds_left: of training; both 0 before the first step.
    """

    step: int
    score: Score | None
    whole: bool
    pace: float
    seconds_left: float


def adapt(
    texts: str | Path | Sequence[str | Path] = (),
    *,
    out: str | Path,
    model: str | None = None,
    from_config: str | Path | None = None,
    tokenizer: str | Path | None = None,
    objective: str | None = None,
    heldout: str | float | None = None,
    config: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    resume: bool = False,
    listen: Listener = quiet,
) -> Path:
    """Train on text without labels and return the folder, which `model=` and plain transformers load.

    texts: text files (documents parted by an empty line) or data files with a text column, compressed or not.
    from_config, tokenizer: a config.json and a tokenizer's folder, for a fresh model instead of `model`.
    heldout: a file, or the share of the documents that no step trains on. config: a settings file (`adapt.toml`).
    settings: by dotted name (`{"adapt.lr": 1e-4}`), over the arguments, over the file.
    Raises LabeltuneError for what a user can fix, and `Interrupted` after Ctrl-C, with a loadable folder left behind.
    """
    folder = Path(out)
    named = [str(text) for text in ([texts] if isinstance(texts, str | Path) else texts)]
    flags = {
        "adapt.texts": tuple(named) or None,
        "adapt.heldout": heldout,
        "adapt.objective": objective,
        "adapt.from_config": None if from_config is None else str(from_config),
        "adapt.tokenizer": None if tokenizer is None else str(tokenizer),
        "model.name": model,
    }
    asked = gather(config, flags, settings or {})
    if resume:
        refuse_others(folder, "adapt")
        if (folder / ADAPTATION).exists():
            asked = same_as_before(asked, gathering.read(folder), folder)
        elif not is_claimed(folder):
            raise RunError("there is nothing to go on with", at=str(folder), hint="leave --resume out")
        if is_finished(folder):
            listen(Said(f"{folder} is finished already"))
            return folder
    else:
        refuse_existing(folder)
        refuse_hidden(asked, folder)
        refuse_inside(folder, (*asked.adapt.texts, asked.adapt.heldout))
    with claimed(folder, ADAPTATION):
        with heard():
            job = _prepare(asked, folder, listen)
        with graceful() as stop:
            _loop(job, stop, listen)
        _finish(job, listen)
    return folder


@dataclass
class _Job:
    """One adaptation under way. before: the held-out figures of the model as it came."""

    folder: Path
    setup: Setup
    meter: Meter = field(default_factory=Meter)
    before: dict[str, Any] | None = None


def _prepare(config: Adaptation, folder: Path, listen: Listener) -> _Job:
    (folder / QUARANTINE).unlink(missing_ok=True)
    setup = set_up(config, folder / WORK / CORPUS, folder / QUARANTINE)
    listen(Checked(setup.selfcheck))
    for sentence in setup.said:
        listen(Said(sentence))
    job = _Job(folder, setup)
    gathering.write(folder, setup.config)
    _go_on(job)
    work = setup.work
    trained = sum(parameter.numel() for parameter in work.parameters.values())
    tokens = int(work.rows.lengths.sum())
    listen(Ready(setup.config, trained, work.step, work.order.total, tokens))
    if job.before is None:
        job.before = _figures(_look(job, listen, whole=True))
    return job


def _go_on(job: _Job) -> None:
    """Take up the checkpoint, if there is one, and cut the log back to it."""
    path = job.folder / WORK / CHECKPOINT
    kept: list[Mapping[str, Any]] = []
    if path.exists():
        state = load_state(path)
        job.setup.work.restore(state)
        job.meter.rows, job.meter.tokens, job.meter.seconds = state.facts["meter"]
        job.before = state.facts["before"]
        kept = [line for line in read_jsonl(job.folder / LOG) if int(str(line["step"])) <= job.setup.work.step]
    write_atomic(job.folder / LOG, "".join(to_json(line) + "\n" for line in kept))


def _loop(job: _Job, stop: Stop, listen: Listener) -> None:
    """Consume the facts of the training: meter, log, held-out text, checkpoint, listener."""
    work, config = job.setup.work, job.setup.config.adapt
    every = config.eval_steps or min(500, ceil(work.order.total / 10))
    facts = steps(work)
    while not stop.asked:
        began = time.monotonic()
        step = _next(facts)
        if step is None:
            return
        job.meter.add(step.rows, step.tokens, time.monotonic() - began)
        due = step.step % every == 0 and step.step < step.total
        listen(step)
        looked = _look(job, listen, whole=False) if due else None
        _log(job, step, looked)
        if step.step % (config.checkpoint_steps or every) == 0 or step.step == step.total:
            _checkpoint(job)
    if work.step < work.order.total:
        raise _leave(job)


def _leave(job: _Job) -> Interrupted:
    """Leave a folder that can be gone on with and, once something was learned, used as it is; what to tell the user."""
    work, hint = job.setup.work, "the same command with --resume goes on"
    if not work.step:
        return Interrupted("stopped before the first step", hint=hint)
    _checkpoint(job)
    write_model(job.setup, job.folder)
    told = f"stopped at step {work.step:,} of {work.order.total:,}; {job.folder} can be used as it is"
    return Interrupted(told, hint=hint)


def _next(facts: Iterator[Step]) -> Step | None:
    try:
        return next(facts, None)
    except torch.OutOfMemoryError as error:
        hint = "lower adapt.micro_tokens, set model.checkpointing = 'on', or train an adapter with lora.rank"
        raise ModelError("the device has too little memory for a step", at="adapt.micro_tokens", hint=hint) from error


def _look(job: _Job, listen: Listener, *, whole: bool) -> Score | None:
    """Read held-out text: all of it, or as much as a look on the way may cost; None where there is none."""
    setup = job.setup
    limit = None if whole else setup.config.adapt.eval_tokens
    rows, micro_tokens = setup.corpus.heldout, setup.work.pace.micro_tokens
    key = setup.work.key.fold("heldout")
    found = score(setup.reader, rows, micro_tokens, key, limit) if len(rows) else None
    if found is not None and not isfinite(found.loss):
        raise diverged("held-out loss", setup.work.step)
    listen(Looked(setup.work.step, found, whole, *_pace(job)))
    return found


def _pace(job: _Job) -> tuple[float, float]:
    """Tokens a second so far, and the seconds that the rest takes at this pace."""
    work, meter = job.setup.work, job.meter
    if not meter.seconds:
        return 0.0, 0.0
    return meter.tokens / meter.seconds, meter.seconds / work.step * (work.order.total - work.step)


def _figures(found: Score | None) -> dict[str, Any]:
    return found.as_json() if found is not None else {}


def _log(job: _Job, step: Step, looked: Score | None) -> None:
    line: dict[str, Any] = {
        "step": step.step,
        "epoch": step.epoch,
        "loss": finite(step.loss),
        "lr": step.lr,
        "grad_norm": finite(step.grad_norm),
        "tokens": step.tokens,
        "seconds": round(job.meter.seconds, 3),
    }
    append_jsonl(job.folder / LOG, line | ({"heldout": looked.as_json()} if looked else {}))


def _checkpoint(job: _Job) -> None:
    state, meter = job.setup.work.state(), job.meter
    facts = {**state.facts, "meter": [meter.rows, meter.tokens, meter.seconds], "before": job.before}
    save_state(job.folder / WORK / CHECKPOINT, State(state.now, state.best, state.moments, facts))


def _finish(job: _Job, listen: Listener) -> None:
    """Read all held-out text with the weights as they are saved, write everything, and drop what only training needed.

    An adapter is read beside its model: the two are merged where nothing else needs the memory.
    """
    if job.setup.adapter is None:
        job.setup.causal.round_to(DTYPE_OF[job.setup.config.adapt.save_dtype])
    try:
        with heard():
            after = _figures(_look(job, listen, whole=True))
    except KeyboardInterrupt:
        raise _leave(job) from None
    with graceful():
        _write(job, after)


def _write(job: _Job, after: Mapping[str, Any]) -> None:
    work = job.setup.work
    train = job.meter.facts() | {
        "tokens": job.meter.tokens,
        "steps": work.step,
        "trained_parameters": sum(parameter.numel() for parameter in work.parameters.values()),
    }
    write_model(job.setup, job.folder)
    write_figures(
        job.setup, job.folder, {"train": train, "before": job.before, "heldout": after, "scored": scored(job.setup)}
    )
    shutil.rmtree(job.folder / WORK, ignore_errors=True)
