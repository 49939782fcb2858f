"""The main job on what the package ships: two tasks, with and without the causal mask, beside plain baselines.

    demo_data -> four trainings in two processes, through `labeltune.train` -> test figures and answers
              -> two baselines in this process meanwhile                    -> test figures

Each process computes on one thread: two of them keep two cores busy better than two threads would, whose small
matrices wait for Python, and the figures do not depend on how many cores there are. The settings below were chosen on
dev; the test split is opened when everything is chosen.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from importlib import resources
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from labeltune.baselines import BASELINES
from labeltune.data.datasets import open_dataset
from labeltune.data.settings import DataConfig
from labeltune.errors import RunError
from labeltune.fitting import train
from labeltune.interrupt import Interrupted
from labeltune.metrics import Figures
from labeltune.model.checkpoints import resolve
from labeltune.model.settings import MINI, ModelConfig
from labeltune.predict import load as load_run
from labeltune.schema import Example, Prediction, Span
from labeltune.storage import read_json
from labeltune.tasks import TASKS

COLUMNS: dict[str, dict[str, str]] = {
    "classification": {"text": "text", "label": "intent"},
    "tagging": {"text": "text", "spans": "entities"},
}
"""By task, where its labels are: each row carries both."""
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
FOR_MINI: dict[str, Any] = {
    "model.pooling": "mean",
    "lora.rank": 32,
    "lora.dropout": 0.0,
    "lora.targets": LINEAR,
    "train.lr": 3e-3,
    "train.head_lr": 1e-2,
    "train.epochs": 4,
}
"""What the bundled backbone wants, by dev; of another one, these would be a wrong guess, and the defaults stand."""
POLICIES = {"none": "causal", "all": "mask removed"}
SPLITS = ("train", "dev", "test")
PROCESSES = 2
PATIENCE = 10.0
"""Seconds that a process has to end in order."""
SHOWN = 6
TRAINING_FACTS = "training.json"
Say = Callable[[str], None]


@dataclass(frozen=True)
class Entry:
    """One line of the table.

    unmask: the layers whose mask is removed; None for a baseline. figures: by split.
    seconds: from the files to the chosen and scored model, on the clock. train_rows_per_second: None for a baseline.
    rows_per_second: test messages answered per second, encoding included.
    """

    task: str
    name: str
    unmask: str | None
    settings: Mapping[str, Any]
    figures: Mapping[str, Figures]
    seconds: float
    train_rows_per_second: float | None
    rows_per_second: float


@dataclass(frozen=True)
class Shown:
    """A test message, what the decoders that dev prefers say of it, and its gold."""

    text: str
    intent: Prediction
    entities: Prediction
    gold_intent: str
    gold_entities: tuple[Span, ...]


@dataclass(frozen=True)
class Result:
    """What the demo found.

    pretraining: the backbone's `training.json`, where it has one. rows: by split.
    seconds: on the clock; cpu_seconds: of all processes together (0 where the system does not say).
    """

    model: str
    pretraining: Mapping[str, Any]
    rows: Mapping[str, int]
    entries: tuple[Entry, ...]
    shown: tuple[Shown, ...]
    seconds: float
    cpu_seconds: float

    def as_json(self) -> dict[str, Any]:
        """All of it in plain values."""
        return asdict(self)


def run_demo(model: str = MINI, listen: Say | None = None, settings: Mapping[str, Any] | None = None) -> Result:
    """Train, score and compare; nothing is written but in a temporary folder, and nothing is downloaded for `mini`.

    settings: dotted names that win over the demo's own. listen: called with a sentence whenever something is done.
    Raises LabeltuneError where the backbone is missing or cannot do it.
    """
    began, busy = time.perf_counter(), _cpu_seconds()
    facts, extra = _pretraining(model), dict(settings or {})
    with tempfile.TemporaryDirectory(prefix="labeltune-demo-") as folder:
        jobs = [_Job(model, task, unmask, Path(folder), extra) for task in COLUMNS for unmask in POLICIES]
        done = _do_all(jobs, listen or (lambda sentence: None))
    return Result(
        model=model,
        pretraining=facts,
        rows={split: len(_examples_of("classification", split)) for split in SPLITS},
        entries=tuple(entry for entry, _ in done),
        shown=_shown(done),
        seconds=time.perf_counter() - began,
        cpu_seconds=_cpu_seconds() - busy,
    )


def best(entries: Iterable[Entry], task: str, split: str) -> Entry:
    """The entry of a task with the best selecting figure on a split."""
    return max((e for e in entries if e.task == task), key=lambda entry: entry.figures[split][TASKS[task].select])


def _pretraining(model: str) -> dict[str, Any]:
    """What is known of the backbone's own training."""
    path = Path(resolve(ModelConfig(name=model))) / TRAINING_FACTS
    facts = read_json(path) if path.is_file() else {}
    return facts if isinstance(facts, dict) else {}


def _cpu_seconds() -> float:
    """User and system time of this process and of its children that have ended."""
    return sum(os.times()[:4])


# Data


def demo_file(split: str) -> Path:
    """The packaged rows of a split."""
    return Path(str(resources.files("labeltune") / "demo_data" / f"{split}.jsonl"))


@cache
def _examples_of(task: str, split: str) -> list[Example]:
    """The rows of a split with the labels of a task."""
    config = DataConfig(**COLUMNS[task])  # type: ignore[arg-type]  # names of columns are strings
    return list(open_dataset(str(demo_file(split)), config, task, labelled=True, name=split))


# Trainings and baselines

Done = tuple[Entry, list[Prediction]]
"""A line of the table, and its answers to the test messages."""


@dataclass(frozen=True)
class _Job:
    """One decoder to train."""

    model: str
    task: str
    unmask: str
    folder: Path
    extra: dict[str, Any]

    @property
    def name(self) -> str:
        """As the table calls it."""
        return f"{Path(self.model).name}, {POLICIES[self.unmask]}"

    @property
    def settings(self) -> dict[str, Any]:
        """All that differs from the defaults."""
        own = FOR_MINI if self.model == MINI else {}
        return {**own, "model.unmask": self.unmask, "train.threads": 1, **self.extra}


def _do_all(jobs: Sequence[_Job], say: Say) -> list[Done]:
    """Every line of the table, by task, baselines first; the trainings go on beside the baselines."""
    with _workers() as executor:
        with _deaf():
            futures = [executor.submit(_decoder, job) for job in jobs]
        done = [_baseline(task) for task in COLUMNS]
        for entry, _ in done:
            say(_sentence(entry))
        done += _gathered(futures, say)
    return sorted(done, key=lambda one: list(COLUMNS).index(one[0].task))


@contextmanager
def _workers() -> Iterator[ProcessPoolExecutor]:
    """Fresh processes; whatever ends the demo early ends them too."""
    others = set(multiprocessing.active_children())
    context = multiprocessing.get_context("spawn")  # a fork would copy the threads' locks but not the threads
    executor = ProcessPoolExecutor(PROCESSES, mp_context=context)
    try:
        yield executor
    except BaseException as error:
        _end(set(multiprocessing.active_children()) - others)
        if isinstance(error, Interrupted):
            raise Interrupted("the demo was stopped, and nothing of it is kept", hint="run it again") from None
        if isinstance(error, BrokenProcessPool):
            hint = "it may have run out of memory: close other programs and run it again"
            raise RunError("a process of the demo was ended from outside", hint=hint) from None
        raise
    finally:
        executor.shutdown(cancel_futures=True)


def _end(children: Collection[BaseProcess]) -> None:
    """Ask the processes to end, then make them: one that ended in the middle of an answer leaves the others waiting."""
    for child in children:
        child.terminate()
    deadline = time.monotonic() + PATIENCE
    for child in children:
        child.join(max(0.0, deadline - time.monotonic()))
        child.kill()


def _gathered(futures: Sequence[Future[Done]], say: Say) -> list[Done]:
    """The results in order; each is told when it is there."""
    for future in as_completed(futures):
        say(_sentence(future.result()[0]))
    return [future.result() for future in futures]


@contextmanager
def _deaf() -> Iterator[None]:
    """Processes started in here do not hear Ctrl-C but in a training, which ends by it in order."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _sentence(entry: Entry) -> str:
    metric = TASKS[entry.task].select
    return f"{entry.task}: {entry.name}: dev {metric} {entry.figures['dev'][metric]:.3f} after {entry.seconds:.0f} s"


def _decoder(job: _Job) -> Done:
    """Train as any user would, then load the run and answer."""
    columns = {f"data.{role}": name for role, name in COLUMNS[job.task].items()}
    out = job.folder / f"{job.task}-{job.unmask}"
    began = time.perf_counter()
    run = train(
        demo_file("train"),
        dev=demo_file("dev"),
        test=demo_file("test"),
        model=job.model,
        task=job.task,
        out=out,
        settings={**columns, **job.settings},
    )
    seconds = time.perf_counter() - began
    predictor = load_run(out)
    predictions, rate = _timed(lambda rows: predictor.predict([row.text for row in rows]), job.task)
    figures = {split: run.metrics[split] for split in ("dev", "test")}
    speed = run.metrics["train"]["rows_per_second"]
    return Entry(job.task, job.name, job.unmask, job.settings, figures, seconds, speed, rate), predictions


def _baseline(task: str) -> Done:
    rows = {split: _examples_of(task, split) for split in SPLITS}
    began = time.perf_counter()
    fitted = BASELINES[task](rows["train"])
    seconds = time.perf_counter() - began
    predictions, rate = _timed(fitted.predict, task)
    answers = {"dev": fitted.predict(rows["dev"]), "test": predictions}
    figures = {split: TASKS[task].score(rows[split], given, fitted.labels) for split, given in answers.items()}
    return Entry(task, fitted.name, None, {}, figures, seconds, None, rate), predictions


def _timed(answer: Callable[[list[Example]], list[Prediction]], task: str) -> tuple[list[Prediction], float]:
    """The answers to the test messages, and how many a second."""
    rows = _examples_of(task, "test")
    began = time.perf_counter()
    predictions = answer(rows)
    return predictions, len(rows) / (time.perf_counter() - began)


# Examples


def _shown(done: Sequence[Done]) -> tuple[Shown, ...]:
    """Test messages at equal distances, not picked, answered by the decoder of each task that dev prefers."""
    decoders = [entry for entry, _ in done if entry.unmask is not None]
    chosen = [best(decoders, task, "dev") for task in COLUMNS]
    intents, entities = (next(answers for entry, answers in done if entry is one) for one in chosen)
    labelled, spanned = (_examples_of(task, "test") for task in COLUMNS)
    step = len(labelled) // SHOWN
    return tuple(
        Shown(labelled[n].text, intents[n], entities[n], str(labelled[n].label), spanned[n].spans or ())
        for n in range(step // 2, step * SHOWN, step)
    )
