"""What a training will take before anything is spent: tokens, memory by part, the pass that fits, time, cost.

Memory is reckoned (`memory`). Time is measured: a few real steps and answers on this machine, and then multiplied.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import numpy as np
import torch

from labeltune.bench import Bench, Given
from labeltune.config import Config, gather, with_settings
from labeltune.data.batches import GPU_MICRO_TOKENS, MICRO_TOKENS
from labeltune.data.datasets import QUARANTINE
from labeltune.errors import SettingsError
from labeltune.facts import Checked, Listener, quiet
from labeltune.fitting import named_and_given
from labeltune.inspection import Tokens, inspect
from labeltune.job import Job, prepare
from labeltune.keys import Key
from labeltune.ledger import Ledger
from labeltune.memory import Memory, gibibytes, reckon, shape_of, trained_parameters
from labeltune.training.meter import peak_memory
from labeltune.training.order import Order
from labeltune.training.schedule import scheduled
from labeltune.training.settings import TrainConfig
from labeltune.training.trainer import Group
from labeltune.training.trainer import train as steps

S = TypeVar("S")
LOOKED_AT = 6
"""Steps of the measurement; the first one only warms up."""


@dataclass(frozen=True)
class Measured:
    """What a few steps on this machine say: tokens a second in training and on dev, the process's peak in GiB."""

    train_tokens_per_second: float
    dev_tokens_per_second: float
    peak_memory_gib: float

    def seconds(self, config: Config, tokens: Mapping[str, Tokens]) -> float:
        """Training, the evaluations on the way, and the final one with its calibration."""
        train, dev = tokens["train"].total, tokens["dev"].total
        passes, rounds = passes_and_looks(config.train, tokens["train"])
        return train * passes / self.train_tokens_per_second + dev * (rounds + 2) / self.dev_tokens_per_second


def passes_and_looks(config: TrainConfig, tokens: Tokens) -> tuple[float, int]:
    """How often a training reads its rows, and how often it looks at dev meanwhile."""
    config = scheduled(config, tokens.rows, tokens.total)
    steps = tokens.total / config.batch_tokens if config.batch_tokens else tokens.rows / config.batch_rows
    passes = config.steps / steps if config.steps is not None else config.epochs or 0.0
    looks = passes * steps / config.eval_every if isinstance(config.eval_every, int) else passes
    return passes, max(1, int(looks))


@dataclass(frozen=True)
class Plan:
    """What a training will take. steps, epochs as the settings have them; seconds and cost None without a measurement.

    trained_parameters: of the adapter and the head, or of everything.
    """

    config: Config
    rows: Mapping[str, int]
    tokens: Mapping[str, Tokens]
    steps: int
    trained_parameters: int
    memory: Memory
    measured: Measured | None
    seconds: float | None
    cost: float | None

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        facts = asdict(replace(self, config=Config()))
        facts["config"] = self.config.model_dump(mode="json", exclude_none=True, exclude_unset=True)
        return facts | {"memory": {**facts["memory"], "total": self.memory.total}}


def plan(
    data: object = None,
    *,
    model: str | None = None,
    dev: object = None,
    task: str | None = None,
    config: Config | str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    gpu: str | None = None,
    price: float | None = None,
    processes: int = 1,
    measure: bool = True,
    listen: Listener = quiet,
) -> Plan:
    """Reckon what a training will take; the test split is not opened. Arguments as in `train`.

    gpu: memory to fit into, `24GB`, of each process. price: of an hour. processes: as many as torchrun will start, on
    devices like this one; what they tell each other is not reckoned. measure: load the model and do a few steps here;
    without it nothing but its configuration is read.
    """
    limit = None if gpu is None else gibibytes(gpu)
    named, given = named_and_given(data, dev, None)
    asked = gather(config, {**named, "model.name": model, "task": task}, settings or {})
    if asked.model.name is None:
        raise SettingsError("a plan needs a model", at="model.name", hint="--model mini, say")
    if not isinstance(asked.data.test, float):  # a share of the training rows is none of them
        asked = asked.model_copy(update={"data": asked.data.model_copy(update={"test": None})})
    seen = inspect(data if given[0] is not None else None, dev=dev if given[1] is not None else None, config=asked)
    seen = replace(seen, rows=_without_test(seen.rows), tokens=_without_test(seen.tokens))
    train = scheduled(asked.train, seen.tokens["train"].rows, seen.tokens["train"].total)
    asked = with_settings(asked, {"task": seen.task}).model_copy(update={"train": train})
    shape = shape_of(asked)
    trained = trained_parameters(asked, shape, len(seen.labels.get("train", {})) or 1)
    share = _share(asked, processes)
    largest = pass_tokens(share, seen.tokens["train"])
    memory = reckon(asked, shape, trained, largest, limit)
    measured, total = (
        _measure(asked, share, given, listen)
        if measure
        else (None, _steps(asked, seen.rows["train"], seen.tokens["train"].total))
    )
    seconds = None if measured is None else measured.seconds(asked, seen.tokens) / processes
    cost = None if seconds is None or price is None else seconds / 3600 * price
    return Plan(asked, seen.rows, seen.tokens, total, trained, memory, measured, seconds, cost)


def _without_test(splits: Mapping[str, S]) -> dict[str, S]:
    return {name: of for name, of in splits.items() if name != "test"}


def pass_tokens(config: Config, tokens: Tokens) -> int:
    """Tokens of the largest forward pass: the settings' limit, or one long row."""
    batch = config.train.batch_tokens or round(config.train.batch_rows * tokens.mean)
    return max(min(pass_limit(config), batch), min(tokens.longest, tokens.limit))


def pass_limit(config: Config) -> int:
    """Most tokens of a forward pass, as set or as this machine's default has it."""
    return config.train.micro_tokens or (GPU_MICRO_TOKENS if torch.cuda.is_available() else MICRO_TOKENS)


# Time


def _steps(config: Config, rows: int, tokens: int) -> int:
    """As the loop counts them, for rows of the mean length."""
    lengths = np.full(rows, max(1, tokens // rows))
    return Order(lengths, config.train, Key.of(config.train.seed)).total


def _share(config: Config, processes: int) -> Config:
    """The same training in steps of what one process has of them."""
    name = "batch_tokens" if config.train.batch_tokens else "batch_rows"
    return with_settings(config, {f"train.{name}": math.ceil(getattr(config.train, name) / processes)})


def _measure(config: Config, share: Config, given: Given, listen: Listener) -> tuple[Measured, int]:
    """A few steps of a process's share and a few answers, in a folder that nobody keeps; how many steps there are."""
    with TemporaryDirectory(prefix="labeltune-plan-") as place:
        folder = Path(place)
        job = prepare(share, folder, Bench(folder, Ledger(folder), folder / QUARANTINE), quiet, given=given)
        listen(Checked(job.assembly.selfcheck))
        total = Order(job.trial.rows.lengths, config.train, job.trial.key).total
        return look([job]), total


def look(jobs: Sequence[Job]) -> Measured:
    """Some steps of trainings side by side on one backbone, and some answers of the first one."""
    group = Group(jobs[0].assembly.backbone)
    for job in jobs:
        job.trial.evaluate = None
        group.admit(job.trial)
    done = list(islice(steps(group), LOOKED_AT * len(jobs)))
    counted = done[len(jobs) :] or done
    speed = sum(step.tokens for step in counted) / sum(step.seconds for step in counted)
    return Measured(speed, _dev_speed(jobs[0]), peak_memory())


def _dev_speed(job: Job) -> float:
    """Tokens a second of answering, over some dev rows of all lengths."""
    examples, rows = job.dev
    chosen = np.linspace(0, len(rows) - 1, min(len(rows), 64)).round().astype(int).tolist()
    some = [rows[number] for number in chosen]
    began = time.monotonic()
    job.labeller.predict([examples[number] for number in chosen], some)
    return float(sum(len(row.tokens) for row in some)) / (time.monotonic() - began)
