"""The `sweep` section: which settings vary, how trials are chosen, and which tables are written."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from labeltune.settings import Settings, one_of

SEARCHES = ("grid", "random", "tpe")
ENGINES = ("local", "ray")


class Halving(Settings):
    """Successive halving, synchronous: after each rung the better part goes on."""

    factor: Annotated[float, Field(gt=1)] = 3
    """One in so many settings goes on from a rung to the next."""
    rungs: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] = (1,)
    """Epochs after which settings are compared."""


class Budget(Settings):
    """Where a sweep stops."""

    trials: Annotated[int, Field(ge=1)] | None = None
    """Most settings that are tried (all of a grid; 20 for random and tpe)."""
    epochs: Annotated[float, Field(gt=0)] | None = None
    """Most epochs of all trainings together."""
    minutes: Annotated[float, Field(gt=0)] | None = None
    """No training begins after so many minutes; which ones did depends on the machine, and is marked."""


class TableConfig(Settings):
    """One table of the report: the best setting for each value of one axis."""

    name: Annotated[str, Field(pattern=r"^[\w.-]+$")]
    """The table's file name."""
    by: str
    """The setting that has a row per value."""
    where: dict[str, Any] = Field(default={})
    """Only settings with these values (a value or a list of them)."""
    sort: Annotated[str, one_of(("value", "dev", "test"))] = "value"
    """Rows by the value of `by`, or the best dev or test score first."""


class SweepConfig(Settings):
    """What varies between the trials."""

    axes: dict[str, Any] = Field(default={})
    """Setting -> list of values, or a range {low, high, log, step} (random, tpe): every combination is a trial."""
    grid: tuple[dict[str, Any], ...] = ()
    """More axes of the same kind; the sweep is the union. `when = {axis = value}` keeps what agrees with it."""
    seeds: Annotated[int, Field(ge=1)] | Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = 1
    """Trainings per setting, from train.seed upwards; or the seeds themselves."""
    folds: Annotated[int, Field(ge=2)] | None = None
    """Cross-validation: each setting is trained once for each of so many dev parts of the training rows."""
    search: Annotated[str, one_of(SEARCHES)] = "grid"
    """All combinations, random ones, or those that Optuna's TPE asks for."""
    halving: Halving | None = None
    """Early pruning by dev score [none]."""
    budget: Budget = Budget()
    """Where the sweep stops."""
    together: Annotated[int, Field(ge=1)] | None = None
    """Trials that share a forward pass [as many as fit into train.micro_tokens]."""
    engine: Annotated[str, one_of(ENGINES)] = "local"
    """Groups of trials in this process, or as tasks of a Ray cluster."""
    workers: Annotated[int, Field(ge=1)] = 2
    """Groups at a time (ray)."""
    table: tuple[TableConfig, ...] = ()
    """Tables beside all.csv and best.csv."""


class SweepFile(Settings):
    """The section beside those of a training."""

    sweep: SweepConfig = SweepConfig()
