"""Which point is best, by dev alone, and how much that choice can be trusted.

A point's score is the mean over its seeds and dev parts. What chance does to the choice is estimated from the dev rows:
a paired bootstrap of the two best points, McNemar's test on their first trainings, and the optimism of taking the best
of n (Efron 1983): dev rows are drawn anew, the best point is chosen on them, and its score there is compared with its
score on all rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binomtest, spearmanr

from labeltune.keys import Key
from labeltune.labels import LabelSet
from labeltune.schema import Example, Prediction
from labeltune.sweeps.axes import Point
from labeltune.sweeps.pack import ANSWERS, read_answers
from labeltune.sweeps.rounds import score_of
from labeltune.sweeps.trials import Result, Spec
from labeltune.tasks import Task

DRAWS = 200
FEWEST = 5
"""Points from which on the optimism of the choice is estimated."""


@dataclass(frozen=True)
class Scored:
    """A point with all that came of it.

    dev: its score, None where a training has none; dev_sd: over its trainings, 0 for one.
    """

    number: int
    settings: Point
    specs: tuple[Spec, ...]
    results: tuple[Result | None, ...]
    dev: float | None
    dev_sd: float

    @property
    def model(self) -> str:
        """Its backbone."""
        return str(self.specs[0].config.model.name)

    def test(self, metric: str) -> tuple[float, float] | None:
        """Mean and standard deviation of a test figure over its trainings; None where one was not tested."""
        found = [result.test.get(metric) if result else None for result in self.results]
        return mean_sd(found)


def mean_sd(values: Sequence[Any]) -> tuple[float, float] | None:
    """Mean and sample standard deviation (0 for one value); None where one is no number."""
    if not values or not all(isinstance(value, int | float) for value in values):
        return None
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def scored_points(specs: Sequence[Spec], results: Mapping[int, Result], metric: str) -> list[Scored]:
    """The points in order."""
    points: dict[int, list[Spec]] = {}
    for spec in specs:
        points.setdefault(spec.point, []).append(spec)
    found = []
    for number, members in points.items():
        outcome = tuple(results.get(spec.number) for spec in members)
        score = mean_sd([score_of(result, metric) for result in outcome])
        dev, sd = score if score is not None else (None, 0.0)
        found.append(Scored(number, members[0].settings, tuple(members), outcome, dev, sd))
    return found


def ranked(points: Sequence[Scored], higher: bool) -> list[Scored]:
    """Points with a score, the best first; of equal ones the earlier."""
    able = [point for point in points if point.dev is not None]
    return sorted(able, key=lambda point: (-_dev(point) if higher else _dev(point), point.number))


def _dev(point: Scored) -> float:
    assert point.dev is not None
    return point.dev


@dataclass(frozen=True)
class Trust:
    """What the dev rows say of the choice.

    difference, low, high: of the best point over the second, with the bootstrap's 95 % interval.
    mcnemar: exact p value on single labels. optimism: expected surplus of the best dev score, and of how many points.
    correlation: Spearman's, of dev and test scores over the tested points.
    """

    difference: float | None = None
    low: float | None = None
    high: float | None = None
    mcnemar: float | None = None
    optimism: float | None = None
    points: int = 0
    correlation: float | None = None
    tested: int = 0


Score = Callable[[np.ndarray], float]
"""Row numbers -> the score of one point on these rows."""


def trust(
    order: Sequence[Scored],
    folder: Path,
    gold: Sequence[Example],
    task: Task,
    labels: LabelSet,
    metric: str,
    *,
    higher: bool,
    seed: int,
) -> Trust:
    """Estimate what chance does to the choice among `order`, the points with the best first."""
    tested = [(_dev(point), found[0]) for point in order if (found := point.test(metric)) is not None]
    facts: dict[str, Any] = {"correlation": _correlation(tested), "tested": len(tested), "points": len(order)}
    if not order or any(spec.fold is not None for point in order for spec in point.specs):
        return Trust(**facts)  # other dev rows in every part
    answers = [[read_answers(spec.folder(folder) / ANSWERS) for spec in point.specs] for point in order]
    draws = np.random.Generator(np.random.Philox(key=Key.of(seed).fold("trust").value))
    sign = 1.0 if higher else -1.0
    scores: list[Score] = [_score(gold, each, task, labels, metric, sign) for each in answers]
    rows = [draws.integers(0, len(gold), len(gold)) for _ in range(DRAWS)]
    if len(order) > 1:
        ahead = np.array([scores[0](chosen) - scores[1](chosen) for chosen in rows])
        low, high = np.quantile(ahead, [0.025, 0.975])
        facts |= {"difference": sign * (_dev(order[0]) - _dev(order[1])), "low": float(low), "high": float(high)}
        facts["mcnemar"] = _mcnemar(gold, answers[0][0], answers[1][0])
    if len(order) >= FEWEST:
        facts["optimism"] = _optimism(scores, rows[: max(20, DRAWS * 10 // len(order))], len(gold))
    return Trust(**facts)


def _score(
    gold: Sequence[Example],
    answers: Sequence[Sequence[Prediction]],
    task: Task,
    labels: LabelSet,
    metric: str,
    sign: float,
) -> Score:
    """The mean over a point's trainings, larger is better."""

    def score(rows: np.ndarray) -> float:
        chosen = [gold[row] for row in rows]
        return sign * float(np.mean([task.score(chosen, [a[row] for row in rows], labels)[metric] for a in answers]))

    return score


def _optimism(scores: Sequence[Score], draws: Sequence[np.ndarray], rows: int) -> float:
    """Mean over draws of: the best score on the drawn rows, less the same point's score on all rows."""
    whole = [score(np.arange(rows)) for score in scores]
    surplus = []
    for drawn in draws:
        here = [score(drawn) for score in scores]
        best = int(np.argmax(here))
        surplus.append(here[best] - whole[best])
    return float(np.mean(surplus))


def _mcnemar(gold: Sequence[Example], one: Sequence[Prediction], other: Sequence[Prediction]) -> float | None:
    """The exact test on rows that just one of two models has right; None where there are no single labels."""
    if any(answer.spans is not None or answer.labels is not None or answer.value is not None for answer in one):
        return None
    right = [[answer.label == example.label for answer, example in zip(a, gold, strict=True)] for a in (one, other)]
    first = sum(a and not b for a, b in zip(*right, strict=True))
    second = sum(b and not a for a, b in zip(*right, strict=True))
    return float(binomtest(first, first + second).pvalue) if first + second else 1.0


def _correlation(pairs: Sequence[tuple[float, float]]) -> float | None:
    """Spearman's; None for fewer than three pairs, and where one side does not vary."""
    sides = list(zip(*pairs, strict=True))
    if len(pairs) < 3 or any(len(set(side)) == 1 for side in sides):
        return None
    return float(spearmanr(*sides).statistic)


def sentences(found: Trust, metric: str, *, higher: bool) -> list[str]:
    """What a reader should know before believing the best score."""
    said = []
    if found.difference is not None and found.low is not None and found.high is not None:
        noise = "inside noise" if found.low <= 0 <= found.high else "outside noise"
        said.append(
            f"the best point is {found.difference:.4f} {metric} ahead of the second on dev, {noise} "
            f"(95 % interval {found.low:+.4f} to {found.high:+.4f}, {DRAWS} paired bootstrap draws)"
        )
    if found.mcnemar is not None:
        said.append(f"McNemar's exact test on their first trainings: p = {found.mcnemar:.3f}")
    if found.optimism is not None:
        said.append(
            f"the best of {found.points} dev scores is about {found.optimism:.4f} too {'high' if higher else 'low'}: "
            "it was chosen on these rows"
        )
    if found.correlation is not None:
        said.append(
            f"dev and test {metric} of {found.tested} tested points: Spearman correlation {found.correlation:.2f}"
        )
    return said
