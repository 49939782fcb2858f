"""Run a sweep, from its file to its tables. The page to read first in this room.

    axes -> points -> trials (a point with a seed) -> packs (trials of one backbone) -> run folders
    -> points ranked by dev -> the selected ones scored on test -> tables, plots, report

Killed anywhere, the same call with `resume=True` goes on and ends with the same bits.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tomli_w

from labeltune.assembly import task_of
from labeltune.bench import Bench
from labeltune.card import write_card
from labeltune.config import Config, gather, make, put, read_toml
from labeltune.errors import RunError, SettingsError
from labeltune.facts import Listener, Said, quiet
from labeltune.fitting import threads
from labeltune.folder import claimed, keep_rows, refuse_inside
from labeltune.interrupt import Interrupted, Stop, graceful
from labeltune.job import final_evaluation, prepare
from labeltune.ledger import Ledger
from labeltune.predict import answering
from labeltune.run import METRICS, SPLITS, SWEEP, WORK, open_run, refuse_existing, refuse_others
from labeltune.settings import build
from labeltune.storage import read_json, sha256_file, write_atomic, write_json
from labeltune.sweeps.axes import Grid, Point, grids_of, resolved
from labeltune.sweeps.engines import Engine, Local, Ray, bench_of
from labeltune.sweeps.facts import Moved, Planned, Tested
from labeltune.sweeps.report import write_plots, write_report
from labeltune.sweeps.rounds import Rounds, done_of, refuse_impossible
from labeltune.sweeps.selection import Scored, Trust, ranked, scored_points, sentences, trust
from labeltune.sweeps.settings import SweepConfig
from labeltune.sweeps.tables import Table, Tables, check_table, hpprc, write_tables
from labeltune.sweeps.trials import ENDED, SCORED, TRIALS, Result, Spec, read_result, repeats
from labeltune.tasks import Calibration, Task
from labeltune.training.distributed import asked_for
from labeltune.wording import counted

DONE = "sweep.json"
COLUMNS = ("labeltune", "hpprc")
COUNTED_EVERY = 5.0
"""Seconds between two notes of the minutes used."""


@dataclass(frozen=True)
class Sweep:
    """A finished sweep. best: the settings of the best point, by dev; said: what to know before believing it."""

    folder: Path
    best: Point
    run: Path
    tables: tuple[Table, ...]
    said: tuple[str, ...]

    def table(self, name: str) -> Table:
        """A table by name."""
        return next(table for table in self.tables if table.name == name)


def sweep(
    file: str | Path,
    *,
    out: str | Path,
    settings: Mapping[str, Any] | None = None,
    engine: str | None = None,
    columns: str = "labeltune",
    test_all: bool = False,
    resume: bool = False,
    listen: Listener = quiet,
    snapshot_seconds: float = 10.0,
) -> Sweep:
    """Train every trial of a sweep file into the folder `out`, choose by dev, score the chosen on test, write tables.

    settings: dotted names over the file's (`train.epochs`, `sweep.seeds`). engine: `local` or `ray`.
    columns: `hpprc` for llm-lora-classification's. test_all: score every trial on test, each a line in the ledger.
    snapshot_seconds: least time between two snapshots of the running trials.
    Raises LabeltuneError for what a user can fix, and `Interrupted` after Ctrl-C.
    """
    if columns not in COLUMNS:
        raise SettingsError(f"no columns {columns!r}", at="--columns", hint="known: " + ", ".join(COLUMNS))
    folder = Path(out)
    _refuse_several(folder)
    base, config = read_sweep(Path(file), settings or {}, engine)
    grids = grids_of(config, base, str(file))
    refuse_impossible(grids, base, config)
    axes = tuple(dict.fromkeys(name for grid in grids for name in grid.axes))
    for table in config.table:
        check_table(table, axes)
    if resume:
        _refuse_another(folder, base, config)
    else:
        refuse_existing(folder, "sweep")
        refuse_inside(folder, (base.data.train, base.data.dev, base.data.test))
    with claimed(folder, SWEEP), threads(base.train.threads), graceful() as stop:
        work = _Work(folder, base, config, grids, listen, stop, snapshot_seconds)
        write_atomic(folder / SWEEP, _to_toml(base, config))
        try:
            return work.run(columns, test_all)
        except Interrupted:
            work.count()
            raise


def _refuse_several(folder: Path) -> None:
    """Refuse the processes of torchrun, each of which would run the whole sweep in the one folder."""
    if (processes := asked_for()) > 1:
        message = f"a sweep is led by one process, and torchrun has started {processes}"
        hint = "start it without torchrun; sweep.engine = 'ray' shares its trainings among GPUs and machines"
        raise RunError(message, at=str(folder), hint=hint)


def read_sweep(file: Path, settings: Mapping[str, Any], engine: str | None = None) -> tuple[Config, SweepConfig]:
    """The base settings and the `sweep` section of a file, `settings` over both.

    Raises:
        SettingsError: an unknown setting, a value that does not fit, no file.
    """
    tree = read_toml(file)
    section = tree.pop("sweep", {})
    if not isinstance(section, dict):
        raise SettingsError("this is a section", at=f"{file}: sweep", hint="write [sweep]")
    own = {name: value for name, value in settings.items() if name.split(".")[0] == "sweep"}
    for name, value in own.items():
        if "." not in name:
            raise SettingsError("this is a section", at=name, hint="set one of its settings, as in sweep.seeds=3")
        put(section, name.removeprefix("sweep."), value)
    section["axes"] = resolved(section.get("axes", {}), file.parent)
    section["grid"] = resolved(section.get("grid", []), file.parent)
    if engine is not None:
        section["engine"] = engine
    make(tree, at=str(file))
    base = gather(make(tree), {}, {name: value for name, value in settings.items() if name not in own})
    return base, build(SweepConfig, section, at=f"{file}: sweep")


def _to_toml(base: Config, config: SweepConfig) -> str:
    """Every setting of the sweep; what is absent has its default."""
    trees = {**base.model_dump(mode="json", exclude_none=True, exclude_unset=True)}
    trees["sweep"] = config.model_dump(mode="json", exclude_none=True, exclude={"engine", "workers"})
    return tomli_w.dumps({name: value for name, value in trees.items() if value != {}})


def _refuse_another(folder: Path, base: Config, config: SweepConfig) -> None:
    refuse_others(folder, "sweep")
    path = folder / SWEEP
    if not path.exists():
        raise RunError("there is no sweep to go on with", at=str(folder), hint="leave --resume out")
    if path.read_text(encoding="utf-8") != _to_toml(base, config):
        hint = f"use {path}, or another folder"
        raise RunError("these are the results of another sweep", at=str(folder), hint=hint)


def _refuse_changed(folder: Path) -> None:
    """Refuse files of finished trials, named by the axes perhaps, that are not what was trained on."""
    splits: list[Any] = [read_json(path) for path in sorted((folder / TRIALS).glob(f"*/{SPLITS}"))]
    sums = {split["source"]: split["sha256"] for facts in splits for split in facts.values()}
    for source, expected in sums.items():
        if expected is not None and Path(source).is_file() and sha256_file(Path(source)) != expected:
            message, hint = f"{source} has changed since trials read it", "restore it, or sweep into a new folder"
            raise RunError(message, at=str(folder), hint=hint)


class _Work:
    """One sweep while it runs."""

    def __init__(
        self,
        folder: Path,
        base: Config,
        config: SweepConfig,
        grids: Sequence[Grid],
        listen: Listener,
        stop: Stop,
        interval: float,
    ) -> None:
        self.folder, self.base, self.config, self._say = folder, base, config, listen
        self.listen: Listener = self._hear
        self.ledger = Ledger(folder)
        self.bench: Bench = bench_of(folder)
        self._began = self._counted = time.monotonic()
        self._before = self._minutes_before()
        loaded, said = self.bench.open(base)
        keep_rows(folder, loaded)
        _refuse_changed(folder)
        for sentence in said:
            listen(Said(sentence))
        self.loaded = loaded
        self.task: Task = task_of(base.model_copy(update={"task": loaded.task}))
        self.metric = base.train.select or self.task.select
        self.higher = self.task.higher_is_better(self.metric)
        engine: Engine = (
            Ray(folder, self.listen, stop, config.workers, interval)
            if config.engine == "ray"
            else Local(folder, self.bench, self.listen, stop, self._may_begin, interval)
        )
        self.rounds = Rounds(folder, base, config, grids, engine, self.listen, self.metric, self.higher)

    def run(self, columns: str, test_all: bool) -> Sweep:
        """All trials, the choice, the test scores, the tables."""
        specs = self._trials()
        points = scored_points(specs, done_of(specs, self.folder), self.metric)
        order = ranked(points, self.higher)
        if not order:
            raise RunError("no trial has a score", at=str(self.folder), hint=self._why(points))
        tables = Tables(points, self.task.metrics, self.metric, self.higher, self.config)
        chosen = order if test_all else tables.selected()
        self._test(chosen)
        points = scored_points(specs, done_of(specs, self.folder), self.metric)
        return self._write(points, columns)

    def _trials(self) -> list[Spec]:
        if self.config.search == "tpe":
            return self.rounds.search()
        points, twice = self.rounds.points()
        if not points:
            raise SettingsError("no combination is left", at="sweep.axes", hint="loosen `when`")
        if twice:
            self.listen(Said(f"{twice:,} combinations are there twice: they run once"))
        count = len(points) * repeats(self.config)
        done = sum(result.status in ENDED for result in self._results())
        self.listen(Planned(len(points), count, done, self.metric))
        return self.rounds.run(points)

    def _results(self) -> list[Result]:
        """What is there of trials that an earlier call has run."""
        found = (read_result(path) for path in (self.folder / TRIALS).glob("*"))
        return [result for result in found if result is not None]

    def _why(self, points: Sequence[Scored]) -> str:
        reasons = [result.reason for point in points for result in point.results if result and result.reason]
        return f"the first reason: {reasons[0]}" if reasons else "see trials/*/log.jsonl"

    # Minutes

    def _may_begin(self) -> bool:
        minutes = self.config.budget.minutes
        return minutes is None or self.count() < minutes

    def count(self) -> float:
        """The minutes so far, those of earlier calls included, written down for the next one."""
        spent = self._before + (time.monotonic() - self._began) / 60
        write_json(self.folder / WORK / "minutes.json", round(spent, 3))
        self._counted = time.monotonic()
        return spent

    def _hear(self, fact: object) -> None:
        """Keep the count of a long training, which a kill may end at any step."""
        if isinstance(fact, Moved) and time.monotonic() - self._counted > COUNTED_EVERY:
            self.count()
        self._say(fact)

    def _minutes_before(self) -> float:
        path = self.folder / WORK / "minutes.json"
        return float(str(read_json(path))) if path.exists() else 0.0

    # Test

    def _test(self, chosen: Sequence[Scored]) -> None:
        """Score the trials of the chosen points on test, each once."""
        if self.loaded.test is None:
            return
        for point in chosen:
            for spec, result in zip(point.specs, point.results, strict=True):
                if result is not None and result.status in SCORED and not result.test:
                    self._test_one(spec)

    def _test_one(self, spec: Spec) -> None:
        folder = spec.folder(self.folder)
        run = open_run(folder)
        config = answering(run, {"train.device": run.config.train.device})
        job = prepare(config, folder, self.bench, quiet, fresh=False)
        job.assembly.member.load(folder)
        assert job.loaded.test is not None
        labeller = replace(job.labeller, calibration=Calibration.from_json(run.decision))
        figures = final_evaluation(job, labeller, job.loaded.test, self.ledger, Ledger(folder))
        labeller.model.detach()
        write_json(folder / METRICS, {**run.metrics, "test": figures})
        write_card(run)
        self.listen(Tested(spec, figures))

    # Tables

    def _write(self, points: Sequence[Scored], columns: str) -> Sweep:
        order = ranked(points, self.higher)
        tables = Tables(points, self.task.metrics, self.metric, self.higher, self.config)
        written = tables.all()
        found = self._trust(order)
        said = [self._counts(points), *sentences(found, self.metric, higher=self.higher)]
        shown_tables = hpprc(written, points, self.metric) if columns == "hpprc" else written
        write_tables(shown_tables, self.folder)
        plots = write_plots(self.folder, points, tables.axes, self.metric, self.higher)
        write_report(self.folder, f"Sweep {self.folder.name}", said, shown_tables, plots)
        best = order[0]
        facts = {"best": dict(best.settings), "run": f"{TRIALS}/{best.specs[0].name}", "said": said}
        write_json(self.folder / DONE, facts | {"metric": self.metric, "dev": best.dev})
        shutil.rmtree(self.folder / WORK, ignore_errors=True)
        for path in (self.folder / TRIALS).glob(f"*/{WORK}"):
            shutil.rmtree(path, ignore_errors=True)
        for sentence in said:
            self.listen(Said(sentence))
        return Sweep(self.folder, best.settings, best.specs[0].folder(self.folder), tuple(shown_tables), tuple(said))

    def _trust(self, order: Sequence[Scored]) -> Trust:
        labels = self.task.label_set(self.loaded.train, self.loaded.config)
        gold = self.bench.examples(self.loaded.dev)
        varied = any(name.startswith("data.") and name != "data.template" for point in order for name in point.settings)
        return trust(
            [] if varied else order,  # other dev rows, perhaps
            self.folder,
            gold,
            self.task,
            labels,
            self.metric,
            higher=self.higher,
            seed=self.base.train.seed,
        )

    def _counts(self, points: Sequence[Scored]) -> str:
        results = [result for point in points for result in point.results]
        statuses = [result.status if result is not None else "not run" for result in results]
        parts = [f"{statuses.count(name):,} {name}" for name in dict.fromkeys(statuses)]
        minutes = (
            " (sweep.budget.minutes: which trials ran depends on the machine)" if self.config.budget.minutes else ""
        )
        counts = counted(len(points), "point", "points"), counted(len(results), "training", "trainings")
        return f"{', '.join(counts)}: {', '.join(parts)}{minutes}"
