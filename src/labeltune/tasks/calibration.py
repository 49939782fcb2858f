"""What is fitted on dev after training and saved with the run: a temperature, and thresholds for label sets.

Temperature scaling (Guo et al. 2017) divides all logits by one number, so that a score of 0.8 is right eight times in
ten. It never changes the best label.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

import numpy as np
from scipy.optimize import minimize_scalar

from labeltune import metrics
from labeltune.errors import RunError

RANGE = (0.05, 20.0)
_FLOOR = 1e-30  # keeps the logarithm of a probability that underflowed


@dataclass(frozen=True)
class Calibration:
    """How logits become answers; the default leaves them as they are.

    thresholds: for multilabel, per label the probability from which it is given; None is 0.5 for all.
    log_loss_before … ece_after: of the rows that the temperature was fitted on, without and with it.
    """

    temperature: float = 1.0
    thresholds: tuple[float, ...] | None = None
    log_loss_before: float | None = None
    log_loss_after: float | None = None
    ece_before: float | None = None
    ece_after: float | None = None

    def to_json(self) -> dict[str, object]:
        """Only what was fitted."""
        facts = {name: value for name, value in asdict(self).items() if value is not None}
        return facts | ({"thresholds": list(self.thresholds)} if self.thresholds is not None else {})

    @classmethod
    def from_json(cls, facts: Mapping[str, object]) -> Calibration:
        """The inverse of `to_json`; a RunError where the values cannot be."""
        for name, value in facts.items():
            numbers = value if name == "thresholds" and isinstance(value, list) else [value]
            if name not in cls.__dataclass_fields__ or not all(map(_is_number, numbers)):
                raise RunError(f"{name} = {value!r} is no part of a decision")
        fitted = cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in facts.items()})  # type: ignore[arg-type]  # checked
        if fitted.temperature <= 0:
            raise RunError(f"a temperature of {fitted.temperature} is not above 0")
        return fitted


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


Probabilities = Callable[[float], np.ndarray]
"""temperature -> probabilities (n, C) of n questions with C answers each."""
Choose = Callable[[np.ndarray], np.ndarray]
"""probabilities (n, C) -> the answers, int (n)."""


def likeliest(probabilities: np.ndarray) -> np.ndarray:
    """The answer with the highest probability."""
    return np.asarray(probabilities.argmax(1))


def fit_temperature(probabilities: Probabilities, gold: np.ndarray, choose: Choose = likeliest) -> Calibration:
    """The temperature that makes the gold answers (int64 (n), -1 unlabelled) most likely; the errors are of `choose`.

    The gold is smoothed by 1 / (n + 2), as Platt (1999) did, so that a small dev set without an error does not ask for
    certainty.
    """
    known = np.flatnonzero(gold >= 0)
    if not len(known):
        return Calibration()
    smoothing = 1 / (len(known) + 2)

    def surprise(log_temperature: float) -> float:
        logs = np.log(np.maximum(probabilities(float(np.exp(log_temperature)))[known], _FLOOR))
        of_gold = logs[np.arange(len(known)), gold[known]]
        return -float((1 - smoothing) * of_gold.mean() + smoothing * logs.mean())

    found = minimize_scalar(surprise, bounds=tuple(np.log(RANGE)), method="bounded", options={"xatol": 1e-4})
    temperature = float(np.exp(found.x))
    before, after = (_figures(probabilities(t)[known], gold[known], choose) for t in (1.0, temperature))
    return Calibration(temperature, None, before[0], after[0], before[1], after[1])


def _figures(probabilities: np.ndarray, gold: np.ndarray, choose: Choose) -> tuple[float, float]:
    rows, answers = np.arange(len(gold)), choose(probabilities)
    return metrics.log_loss(probabilities[rows, gold]), metrics.ece(probabilities[rows, answers], answers == gold)


def fit_thresholds(probabilities_SL: np.ndarray, gold_SL: np.ndarray) -> tuple[float, ...]:
    """Per label the threshold with the best F1 on these rows; 0.5 for a label that does not occur in them."""
    return tuple(_threshold(p, g) for p, g in zip(probabilities_SL.T, gold_SL.T, strict=True))


def _threshold(probabilities_S: np.ndarray, gold_S: np.ndarray) -> float:
    """Half way between the last answer given and the first withheld."""
    if not gold_S.any():
        return 0.5
    order = np.argsort(-probabilities_S, kind="stable")
    given = probabilities_S[order].astype(np.float64)
    f1 = 2 * np.cumsum(gold_S[order]) / (np.arange(1, len(order) + 1) + gold_S.sum())
    withheld = np.append(given[1:], 0.0)
    f1[:-1][given[:-1] == given[1:]] = -1.0  # equal probabilities cannot be parted
    best = int(f1.argmax())
    return float((given[best] + withheld[best]) / 2)
