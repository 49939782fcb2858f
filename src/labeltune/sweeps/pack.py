"""Trials that train side by side in one process, on one backbone, until all have ended or paused.

Seats are filled in order; who leaves makes room for the next. Everything that decides a bit (who sits where, and since
which turn) is replayed after a kill: a snapshot holds all seated trials as of one turn, and a line of the journal makes
it count. What the journal says after the last snapshot is forgotten and done again, with the same result.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labeltune.answers import answer_fields
from labeltune.bench import Bench
from labeltune.data.batches import MICRO_TOKENS
from labeltune.errors import LabeltuneError, ModelError
from labeltune.facts import Listener, quiet
from labeltune.fitting import threads
from labeltune.interrupt import Interrupted, Stop
from labeltune.job import (
    FAILURES,
    Job,
    begin,
    decided,
    dev_answers,
    follow,
    prepare,
    report,
    save_checkpoint,
    train_figures,
    write,
)
from labeltune.run import LOG, WORK, plain_metrics
from labeltune.schema import Prediction, SpanPrediction
from labeltune.shortage import memory_ran_out
from labeltune.storage import append_jsonl, read_jsonl, to_json, write_atomic
from labeltune.sweeps.facts import Began, Ended, Moved
from labeltune.sweeps.trials import FAILED, SKIPPED, Spec, write_result
from labeltune.training.checkpoint import Tensors
from labeltune.training.settings import TrainConfig
from labeltune.training.trainer import Group, Step
from labeltune.training.trainer import train as steps

PACKS, ANSWERS = "packs", "dev.jsonl"
PAUSED = "paused"


@dataclass(frozen=True)
class Pack:
    """Trials of one backbone, and where they stop.

    name: of its journal. leg: how many rungs are behind it. until: epochs after which trials pause; None for the end.
    seats: trials side by side [what fits into train.micro_tokens].
    """

    name: str
    specs: tuple[Spec, ...]
    leg: int = 0
    until: int | None = None
    seats: int | None = None


@dataclass
class _Seat:
    """A trial at work. initial: its weights before the first step, which stay where none after them is any good."""

    spec: Spec
    job: Job
    initial: Tensors


class Journal:
    """The order of events in one pack, one line each; cut back to its last snapshot when it is opened again."""

    def __init__(self, path: Path) -> None:
        self._path = path
        lines = list(read_jsonl(path)) if path.exists() else []
        last = max((n for n, line in enumerate(lines) if line["event"] in ("snapshot", "end")), default=-1)
        self.lines: list[dict[str, Any]] = lines[: last + 1]
        write_atomic(path, "".join(to_json(line) + "\n" for line in self.lines))

    def note(self, event: str, **facts: object) -> None:
        """Add a line."""
        line = {"event": event, **facts}
        append_jsonl(self._path, line)
        self.lines.append(line)

    @property
    def snapshot(self) -> Mapping[str, Any]:
        """The last snapshot; before the first one nobody is seated."""
        found = [line for line in self.lines if line["event"] == "snapshot"]
        return found[-1] if found else {"number": 0, "seated": [], "apart": False}

    @property
    def left(self) -> set[int]:
        """Trials that have left."""
        return {line["trial"] for line in self.lines if line["event"] == "left"}

    @property
    def ended(self) -> bool:
        """Whether all have left."""
        return bool(self.lines) and self.lines[-1]["event"] == "end"


def journal_path(sweep: Path, pack: Pack) -> Path:
    """Where a pack's journal lies."""
    return sweep / WORK / PACKS / f"{pack.name}.jsonl"


def run_pack(
    pack: Pack,
    sweep: Path,
    bench: Bench,
    listen: Listener = quiet,
    *,
    stop: Stop | None = None,
    may_begin: Callable[[], bool] = lambda: True,
    interval: float = 10.0,
) -> None:
    """Train the trials of a pack; each ends as a run folder with `trial.json` and `dev.jsonl`, or pauses.

    may_begin: asked before a trial that has not begun is seated. interval: least seconds between snapshots.
    Raises Interrupted when `stop.asked`; run again, it goes on.
    """
    running = _Running(pack, sweep, bench, listen, stop or Stop(), may_begin, interval)
    if not running.journal.ended:
        with threads(pack.specs[0].config.train.threads):
            running.run()


class _Running:
    """One pack while it runs."""

    def __init__(
        self,
        pack: Pack,
        sweep: Path,
        bench: Bench,
        listen: Listener,
        stop: Stop,
        may_begin: Callable[[], bool],
        interval: float,
    ) -> None:
        self.pack, self.sweep, self.bench, self.listen = pack, sweep, bench, listen
        self.stop, self.may_begin, self.interval = stop, may_begin, interval
        self.journal = Journal(journal_path(sweep, pack))
        self.seats: dict[int, _Seat] = {}
        depths = {spec.config.model.depth for spec in pack.specs}
        self.whole = len(depths) > 1
        self.group: Group | None = None
        self.waiting = self._waiting()
        self._since, self._cost = time.monotonic(), 0.0

    def _waiting(self) -> list[Spec]:
        seated, left = self.journal.snapshot["seated"], self.journal.left
        return [spec for spec in self.pack.specs if spec.number not in seated and spec.number not in left]

    def run(self) -> None:
        """Seat, step, leave, until nobody is left; who may no longer begin is marked."""
        self._clear(self.journal.snapshot["number"])
        specs = {spec.number: spec for spec in self.pack.specs}
        for number in self.journal.snapshot["seated"]:
            self._seat(specs[number], self._snapshot_path(specs[number], self.journal.snapshot["number"]))
        self._fill()
        facts = steps(self.group) if self.group else iter(())
        while (step := next(facts, None)) is not None:
            self._step(step)
            if step.turn_ends:
                self._turn_ends()
        for spec in self.waiting:
            self._fail(spec, "sweep.budget.minutes was used up", SKIPPED)
        self.journal.note("end")
        self._clear(None)

    # Seats

    def _fill(self) -> None:
        """Seat those who wait while there is room."""
        while self.waiting and (not self.seats or len(self.seats) < self._room()):
            if not self.may_begin():
                return
            spec = self.waiting.pop(0)
            self._seat(spec, self._pause_path(spec, self.pack.leg - 1))

    def _room(self) -> int:
        """How many sit side by side."""
        trial = next(iter(self.seats.values())).job.trial
        mean = float(trial.rows.lengths.mean())
        return self.pack.seats or that_fit(trial.config, trial.config.micro_tokens or MICRO_TOKENS, mean)

    def _seat(self, spec: Spec, checkpoint: Path) -> None:
        """Load a trial and let it train with the others; one that cannot be trained is marked with its reason."""
        try:
            job = prepare(spec.config, spec.folder(self.sweep), self.bench, quiet, whole=self.whole)
            seat = _Seat(spec, job, job.trial.weights())
            begin(job, checkpoint, quiet)
        except LabeltuneError as error:
            self._fail(spec, str(error))
            return
        except (RuntimeError, MemoryError) as error:
            if not memory_ran_out(error):
                raise
            self._fail(spec, "the backbone needs more memory than there is")
            return
        self.group = self.group or Group(job.assembly.backbone, apart=self.journal.snapshot["apart"])
        self.seats[id(job.trial)] = seat
        self.group.admit(job.trial)
        self.listen(Began(spec, job.trial.step, job.trial.order.total))

    def _step(self, step: Step) -> None:
        """Log a step; one that ends its trial, or its leg, makes room."""
        seat = self.seats[id(step.trial)]
        follow(seat.job, step)
        self.listen(Moved(seat.spec, step.step, step.total, step.trial.best_value))
        if step.last:
            self._end(seat)
        elif self._at_the_rung(step):
            self._pause(seat, step)
        else:
            return
        self._fill()

    def _at_the_rung(self, step: Step) -> bool:
        return self.pack.until is not None and step.epoch >= self.pack.until and step.trial.order.at(step.step - 1)[2]

    # Leaving

    def _end(self, seat: _Seat) -> None:
        """Write the run folder of a trial that is done, whatever way it ended."""
        job, trial = seat.job, seat.job.trial
        if trial.status in FAILURES and not trial.best:
            trial.put(seat.initial)
        try:
            labeller = decided(job)
            answers = dev_answers(job, labeller)
        except ModelError as error:  # weights whose answers are no numbers
            self._leave(seat)
            self._fail(seat.spec, str(error))
            return
        figures = {"train": train_figures(job), "dev": report(labeller, *job.dev, answers)}
        write(job, figures, labeller.calibration, "finished")
        write_answers(job.folder / ANSWERS, answers)
        self._note(seat, trial.status)
        self._leave(seat)

    def _pause(self, seat: _Seat, step: Step) -> None:
        """Keep the state of a trial that has come to the rung; whether it goes on is decided when all have.

        Where its settings do not look at dev here, this is for the comparison alone: the trial stays what it is.
        """
        save_checkpoint(seat.job, self._pause_path(seat.spec, self.pack.leg))
        trial = seat.job.trial
        looked = trial.evaluate() if step.evaluation is None and trial.evaluate else None
        self._note(seat, PAUSED, looked)
        assert self.group is not None
        self.group.retire(seat.job.trial)
        self._leave(seat)

    def _note(self, seat: _Seat, status: str, looked: Mapping[str, float] | None = None) -> None:
        """Write down how a trial stands. looked: its dev figures now, where no evaluation of its own has them."""
        trial, folder = seat.job.trial, seat.job.folder
        best = [line["dev"] for line in read_jsonl(folder / LOG) if line.get("best")]
        value = trial.best_value
        if looked is not None and trial.is_better(looked[trial.select[0]]):
            value, best = looked[trial.select[0]], [plain_metrics(looked)]
        reason = FAILURES[status][0].format(trial.step) if status in FAILURES else None
        facts = {
            "step": trial.step,
            "epoch": trial.best_epoch,
            "value": value,
            "dev": best[-1] if best else {},
            **({} if reason is None else {"reason": reason}),
        }
        write_result(folder, seat.spec, status=status, **facts)
        self.journal.note("left", trial=seat.spec.number, status=status)
        self.listen(Ended(seat.spec, status, value, reason))

    def _fail(self, spec: Spec, reason: str, status: str = FAILED) -> None:
        write_result(spec.folder(self.sweep), spec, status=status, reason=reason)
        self.journal.note("left", trial=spec.number, status=status)
        self.listen(Ended(spec, status, None, reason))

    def _leave(self, seat: _Seat) -> None:
        """Take a trial's hooks off the backbone."""
        seat.job.labeller.model.detach()
        del self.seats[id(seat.job.trial)]

    # Snapshots

    def _turn_ends(self) -> None:
        """All seated trials stand at one turn: the moment of a snapshot, and to stop."""
        if self.stop.asked or time.monotonic() - self._since > max(self.interval, 20 * self._cost):
            self._snapshot()
        if self.stop.asked:
            done = len(self.journal.left)
            message = f"stopped with {done} of {len(self.pack.specs)} trainings of this group done"
            raise Interrupted(message, at=str(self.sweep), hint="the same command with --resume goes on")

    def _snapshot(self) -> None:
        began = time.monotonic()
        number = self.journal.snapshot["number"] + 1
        for seat in self.seats.values():
            save_checkpoint(seat.job, self._snapshot_path(seat.spec, number))
        assert self.group is not None
        seated = [seat.spec.number for seat in self.seats.values()]
        self.journal.note("snapshot", number=number, seated=seated, apart=self.group.apart)
        self._clear(number)
        self._since = time.monotonic()
        self._cost = self._since - began

    def _clear(self, keep: int | None) -> None:
        """Remove the states of other snapshots than `keep`."""
        for spec in self.pack.specs:
            for path in (spec.folder(self.sweep) / WORK).glob(f"{self.pack.name}-snapshot-*.safetensors"):
                if keep is None or path != self._snapshot_path(spec, keep):
                    path.unlink()

    def _snapshot_path(self, spec: Spec, number: int) -> Path:
        return spec.folder(self.sweep) / WORK / f"{self.pack.name}-snapshot-{number}.safetensors"

    def _pause_path(self, spec: Spec, leg: int) -> Path:
        return spec.folder(self.sweep) / WORK / f"rung-{leg}.safetensors"


def that_fit(train: TrainConfig, limit: int, mean: float) -> int:
    """Trials whose steps fill one forward pass of `limit` tokens together, with rows of `mean` tokens."""
    return max(1, int(limit / (train.batch_tokens or train.batch_rows * mean)))


def write_answers(path: Path, answers: Sequence[Prediction]) -> None:
    """A line per dev row, to compare trials row by row."""
    rows = ({"id": answer.id, **answer_fields(answer)} for answer in answers)
    write_atomic(path, "".join(to_json(row) + "\n" for row in rows))


def read_answers(path: Path) -> list[Prediction]:
    """What `write_answers` wrote."""
    found = []
    for row in read_jsonl(path):
        facts: dict[str, Any] = dict(row)
        if facts.get("labels") is not None:
            facts["labels"] = tuple(facts["labels"])
        if facts.get("spans") is not None:
            facts["spans"] = tuple(SpanPrediction(**span) for span in facts["spans"])
        found.append(Prediction(**facts))
    return found
