"""Where portions are answered: here, one after the other, or by the workers of a Ray cluster, in any order."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from labeltune.answers import Answered
from labeltune.bulk.backends import How
from labeltune.errors import ModelError, RunError, SettingsError
from labeltune.inference import Progress
from labeltune.portions import Portion
from labeltune.run import Run

AHEAD = 2
"""Portions that wait at each worker."""

Engine = Callable[[How, Run, int | None, Iterable[Portion], Progress], Iterator[tuple[int, list[Answered]]]]
"""(how, run, workers, portions, progress) -> the number and the answered rows of each portion, in any order."""


def local(
    how: How, run: Run, workers: int | None, portions: Iterable[Portion], progress: Progress
) -> Iterator[tuple[int, list[Answered]]]:
    """In this process, in order."""
    answering = how.load(run)
    for portion in portions:
        yield portion.number, answering.answered(portion, progress)


def ray(
    how: How, run: Run, workers: int | None, portions: Iterable[Portion], progress: Progress
) -> Iterator[tuple[int, list[Answered]]]:
    """By actors on Ray, the cluster of RAY_ADDRESS or one on this machine; each loads the run once.

    workers: how many [one for each GPU, else for each machine]. The run's folder must be readable on all machines.

    Raises:
        RunError: a worker died. ModelError: Ray is not installed.
    """
    try:
        import ray as cluster
    except ImportError:
        raise ModelError("ray is not installed", hint='pip install "labeltune[ray]"') from None
    started = not cluster.is_initialized()
    if started:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would report home
        cluster.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        yield from _mapped(cluster, how, workers, portions, progress)
    except cluster.exceptions.RayTaskError as error:
        raise (error.cause if isinstance(error.cause, Exception) else error) from None
    except cluster.exceptions.RayError as error:
        said = " ".join(str(error).split())[:200]
        raise RunError(f"a Ray worker failed ({said})", hint="what is answered is kept: go on with --resume") from error
    finally:
        if started:
            cluster.shutdown()


def _mapped(
    cluster: Any, how: How, workers: int | None, portions: Iterable[Portion], progress: Progress
) -> Iterator[tuple[int, list[Answered]]]:
    actors = _actors(cluster, how, workers)
    waiting: dict[Any, tuple[int, int]] = {}  # a result to come -> portion, actor
    left = iter(portions)
    loads = [0] * len(actors)
    while True:
        while len(waiting) < AHEAD * len(actors) and (portion := next(left, None)) is not None:
            actor = min(range(len(actors)), key=loads.__getitem__)
            waiting[actors[actor].answered.remote(portion)] = portion.number, actor
            loads[actor] += 1
        if not waiting:
            return
        (done,), _ = cluster.wait(list(waiting), num_returns=1)
        number, actor = waiting.pop(done)
        loads[actor] -= 1
        rows = cluster.get(done)
        progress(len(rows))
        yield number, rows


def _actors(cluster: Any, how: How, workers: int | None) -> list[Any]:
    count, share = shares([node["Resources"] for node in cluster.nodes() if node["Alive"]], workers)
    return [cluster.remote(_Worker).options(**share).remote(how) for _ in range(count)]


def shares(nodes: Sequence[Mapping[str, float]], workers: int | None) -> tuple[int, dict[str, float]]:
    """How many workers, and what each is given, so that all of them have room; one that has none is waited for in vain.

    nodes: the resources of each machine. workers: as many as are asked for [one a GPU, else one a machine].

    Raises:
        SettingsError: more workers than CPUs.
    """
    gpus = sum(int(node.get("GPU", 0)) for node in nodes)
    if gpus:
        count = workers or gpus
        return count, {"num_gpus": 1 / -(-count // gpus)}
    cpus = [int(node["CPU"]) for node in nodes if node.get("CPU", 0) >= 1]
    count = workers or len(cpus)
    if count > sum(cpus) or not cpus:
        raise SettingsError(
            f"{count} workers on {sum(cpus)} CPUs", at="--workers", hint=f"at most {sum(cpus)} have room"
        )
    each = next(n for n in range(sum(cpus) // count, 0, -1) if sum(here // n for here in cpus) >= count)
    return count, {"num_cpus": each}


class _Worker:
    """A run, loaded on a machine of the cluster."""

    def __init__(self, how: How) -> None:
        self._answering = how.load()

    def answered(self, portion: Portion) -> list[Answered]:
        return self._answering.answered(portion)


ENGINES: dict[str, Engine] = {"local": local, "ray": ray}
