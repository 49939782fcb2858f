"""From points to results: all at once, in rungs that leave the worse ones behind, or as Optuna asks for them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from labeltune.config import Config
from labeltune.errors import ModelError, SettingsError
from labeltune.facts import Listener
from labeltune.keys import Key
from labeltune.run import WORK
from labeltune.storage import read_json, write_json
from labeltune.sweeps.axes import Grid, Point, Range, all_points, random_points
from labeltune.sweeps.engines import Engine
from labeltune.sweeps.facts import Pruned
from labeltune.sweeps.pack import PAUSED, Pack, journal_path
from labeltune.sweeps.settings import SweepConfig
from labeltune.sweeps.trials import (
    PRUNED,
    RESULT,
    SCORED,
    Result,
    Spec,
    company,
    read_result,
    repeats,
    specs_of,
    write_result,
)

TRIALS_OF_A_SEARCH = 20
"""Points of a random or TPE search where the budget names none."""

TRIES = 200
"""Points that TPE may ask for until one agrees with `when`."""

Better = Callable[[float, float], bool]


@dataclass(frozen=True)
class Rounds:
    """What decides the trials of a sweep. metric: of dev; higher: whether more of it is better."""

    folder: Path
    base: Config
    sweep: SweepConfig
    grids: Sequence[Grid]
    engine: Engine
    listen: Listener
    metric: str
    higher: bool

    def points(self) -> tuple[list[Point], int]:
        """The points of a grid or a random search, and how many combinations occurred again."""
        return fixed_points(self.grids, self.base, self.sweep)

    def run(self, points: Sequence[Point]) -> list[Spec]:
        """Run all trials of fixed points; the trials."""
        specs = specs_of(points, self.base, self.sweep)
        self._train(specs)
        return specs

    def _train(self, specs: Sequence[Spec], stage: str = "") -> None:
        rungs = self.sweep.halving.rungs if self.sweep.halving else ()
        going = list(specs)
        for leg, until in enumerate((*sorted(rungs), None)):
            self.engine.run(self._packs(going, f"{stage}leg{leg}", leg, until))
            if until is not None:
                going = self._better(going, leg, until)

    def _packs(self, specs: Sequence[Spec], name: str, leg: int, until: int | None) -> list[Pack]:
        """A pack for each backbone and worker, but for those that ended before."""
        together: dict[Any, list[Spec]] = {}
        for spec in specs:
            together.setdefault(company(spec), []).append(spec)
        packs = []
        for number, members in enumerate(together.values()):
            groups = min(self._groups(), len(members))
            for part in range(groups):
                chosen = tuple(members[part::groups])
                label = f"{name}-{number}" + (f"-{part}" if groups > 1 else "")
                packs.append(Pack(label, chosen, leg, until, self.sweep.together))
        return [pack for pack in packs if not self._is_over(pack)]

    def _groups(self) -> int:
        """Into how many packs trials of one backbone go: as when the sweep began, for the packs' journals say so."""
        path = self.folder / WORK / "groups.json"
        if not path.exists():
            write_json(path, self.engine.groups)
        return int(str(read_json(path)))

    def _is_over(self, pack: Pack) -> bool:
        """Whether a finished sweep is only looked at again: its journals are gone, and its trials have ended."""
        if journal_path(self.folder, pack).exists():
            return False  # run_pack knows
        results = [read_result(spec.folder(self.folder)) for spec in pack.specs]
        return all(result is not None and result.status not in ("running", PAUSED) for result in results)

    # Halving

    def _better(self, specs: Sequence[Spec], leg: int, until: int) -> list[Spec]:
        """The trials of the points that go on; the others are marked. A decision is written down, and stands."""
        assert self.sweep.halving is not None
        path = self.folder / WORK / f"rung-{leg}.json"
        if not path.exists():
            scores = self._scores(specs)
            most = math.ceil(len(scores) / self.sweep.halving.factor)
            order = sorted(scores, key=lambda point: (-scores[point] if self.higher else scores[point], point))
            kept = order[:most]
            going = [spec.number for spec in specs if spec.point in kept and self._status(spec) == PAUSED]
            scored = {str(point): scores[point] for point in order}
            write_json(path, {"epoch": until, "scores": scored, "kept": kept, "going": going})
        facts: Any = read_json(path)
        for spec in specs:
            if spec.point not in facts["kept"]:
                self._prune(spec)
        self.listen(Pruned(until, len(facts["kept"]), len({spec.point for spec in specs}) - len(facts["kept"])))
        return [spec for spec in specs if spec.number in facts["going"]]

    def _scores(self, specs: Sequence[Spec]) -> dict[int, float]:
        """By point, the mean of its trials' best dev scores; a point with a trial that failed has none."""
        values: dict[int, list[float | None]] = {}
        for spec in specs:
            result = read_result(spec.folder(self.folder))
            values.setdefault(spec.point, []).append(result.value if result is not None else None)
        return {point: float(np.mean(found)) for point, found in values.items() if None not in found}  # type: ignore[arg-type]  # no None is left

    def _prune(self, spec: Spec) -> None:
        """Mark a trial that is left behind; one that failed or ended before stays what it is."""
        folder = spec.folder(self.folder)
        facts: Any = read_json(folder / RESULT) if (folder / RESULT).exists() else {}
        if facts.get("status") == PAUSED:
            kept = {name: facts[name] for name in ("step", "epoch", "value", "dev") if name in facts}
            write_result(folder, spec, status=PRUNED, **kept)

    def _status(self, spec: Spec) -> str | None:
        result = read_result(spec.folder(self.folder))
        return result.status if result is not None else None

    # Optuna

    def search(self) -> list[Spec]:
        """Ask for a group of points, train them, tell their scores, until the budget is used up; the trials.

        The sampler is seeded and told in order, so a search that goes on asks for the same points again.
        """
        try:
            import optuna
        except ImportError:
            raise ModelError("optuna is not installed", hint='pip install "labeltune[optuna]"') from None
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        seed = Key.of(self.base.train.seed).fold("sweep").value % 2**32
        sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=max(4, (self.sweep.together or 4)))
        study = optuna.create_study(direction="maximize" if self.higher else "minimize", sampler=sampler)
        specs: list[Spec] = []
        count, points = allowed(self.grids, self.base, self.sweep) or TRIALS_OF_A_SEARCH, 0
        while points < count:
            pairs = [self._asked(study) for _ in range(min(self.sweep.together or 4, count - points))]
            asked, drawn = [trial for trial, _ in pairs], [point for _, point in pairs]
            new = specs_of(drawn, self.base, self.sweep, first=points)
            self._train(new, f"ask{points}-")
            scores = self._final(new)
            for place, trial in enumerate(asked, points):
                state = optuna.trial.TrialState.COMPLETE if place in scores else optuna.trial.TrialState.FAIL
                study.tell(trial, scores.get(place), state)
            points += len(asked)
            specs += new
        return specs

    def _asked(self, study: Any) -> tuple[Any, Point]:
        """A trial and its point, one that `when` allows; the others are told to have failed."""
        import optuna

        for _ in range(TRIES):
            trial = study.ask()
            grid, point = self._suggested(trial)
            if grid.agrees(point):
                return trial, point
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
        raise SettingsError("hardly any combination agrees with `when`", at="sweep.grid", hint="list them as grids")

    def _suggested(self, trial: Any) -> tuple[Grid, Point]:
        """A grid, and a value for each of its axes, by Optuna's names."""
        grid = self.grids[0]
        if len(self.grids) > 1:
            grid = self.grids[trial.suggest_categorical("grid", list(range(len(self.grids))))]
        point = {}
        for name, values in grid.axes.items():
            label = name if len(self.grids) == 1 else f"{self.grids.index(grid)}:{name}"
            if isinstance(values, tuple):
                point[name] = values[trial.suggest_categorical(label, list(range(len(values))))]
            else:
                point[name] = _suggest(trial, label, values)
        return grid, point

    def _final(self, specs: Sequence[Spec]) -> dict[int, float]:
        """By point, the mean dev score of its ended trials; a point with one that failed has none."""
        values: dict[int, list[float]] = {}
        broken = set()
        for spec in specs:
            result = read_result(spec.folder(self.folder))
            value = score_of(result, self.metric)
            if value is None:
                broken.add(spec.point)
            else:
                values.setdefault(spec.point, []).append(value)
        return {point: float(np.mean(found)) for point, found in values.items() if point not in broken}


def fixed_points(grids: Sequence[Grid], base: Config, sweep: SweepConfig) -> tuple[list[Point], int]:
    """The points of a grid, or random ones of a search, and how many combinations occurred again."""
    count = allowed(grids, base, sweep)
    if sweep.search != "grid":
        return random_points(grids, base, count or TRIALS_OF_A_SEARCH), 0
    points, twice = all_points(grids, base)
    return points[:count], twice


def allowed(grids: Sequence[Grid], base: Config, sweep: SweepConfig) -> int | None:
    """Points that the budget allows; None where it says nothing.

    Raises:
        SettingsError: a budget of epochs that one point exceeds, or of points that take more or fewer of them.
    """
    budget, epochs = sweep.budget, base.train.epochs
    found = [] if budget.trials is None else [budget.trials]
    if budget.epochs is not None:
        axes = {name for grid in grids for name in grid.axes}
        if axes & {"train.epochs", "train.steps"}:
            hint = "count trials or minutes"
            raise SettingsError("the epochs are an axis, and cannot be counted", at="sweep.budget.epochs", hint=hint)
        if epochs is None:
            message = "the budget counts epochs, and the trainings do not say how many they take"
            raise SettingsError(message, at="sweep.budget", hint="set train.epochs, or count trials or minutes")
        needed = epochs * repeats(sweep)
        if budget.epochs < needed:
            hint = f"give it at least {needed:g}, or count trials or minutes"
            raise SettingsError(f"one setting takes {needed:g} epochs", at="sweep.budget.epochs", hint=hint)
        found.append(int(budget.epochs / needed + 1e-9))
    return min(found) if found else None


def _suggest(trial: Any, label: str, values: Range) -> float:
    ask = trial.suggest_int if values.whole else trial.suggest_float
    step = {"step": values.step} if values.step is not None else {}
    found: float = ask(label, values.low, values.high, log=values.log, **step)
    return found


def score_of(result: Result | None, metric: str) -> float | None:
    """A trial's final dev score; None where it has none."""
    if result is None or result.status not in SCORED:
        return None
    value = result.dev.get(metric)
    return float(value) if isinstance(value, int | float) else None


def refuse_impossible(grids: Sequence[Grid], base: Config, sweep: SweepConfig) -> None:
    """Settings of a sweep that exclude each other.

    Raises:
        SettingsError: TPE learns from final scores, so it has no rungs; who runs on a cluster counts no minutes; the
            budget cannot be kept (see `allowed`).
    """
    allowed(grids, base, sweep)
    if sweep.engine == "ray" and sweep.budget.minutes is not None:
        hint = 'use sweep.budget.trials, or sweep.engine = "local"'
        raise SettingsError("the groups on a cluster do not count minutes", at="sweep.budget.minutes", hint=hint)
    if sweep.search == "tpe" and sweep.halving is not None:
        hint = 'use sweep.search = "random" with halving, or TPE without'
        raise SettingsError("TPE learns from final scores", at="sweep.halving", hint=hint)


def done_of(specs: Sequence[Spec], folder: Path) -> Mapping[int, Result]:
    """By trial number, what came of it."""
    found = {spec.number: read_result(spec.folder(folder)) for spec in specs}
    return {number: result for number, result in found.items() if result is not None}
