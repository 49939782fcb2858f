"""An answer as names and numbers, for wire forms that know classifiers only."""

from __future__ import annotations

from typing import Literal

import numpy as np
from scipy.special import expit, softmax

from labeltune.answers import Wish
from labeltune.serve.hosted import Answer, Hosted
from labeltune.serve.refusals import Refusal

VALUE = "value"
"""What a regression's one number is called where a label is expected."""
ALL = Wish(scores=True)

Apply = Literal["sigmoid", "softmax", "none"]
"""A function from logits to scores, in place of the run's own, which is calibrated."""


def class_names(hosted: Hosted) -> list[str]:
    """The names that the numbers of `class_scores` belong to.

    Raises:
        Refusal: the run tags words.
    """
    if hosted.task.targets == "units":
        raise Refusal(422, f"{hosted.name!r} tags words: ask it by /runs/{hosted.name}/predict or token-classification")
    return [VALUE] if hosted.config.task == "regression" else list(hosted.labels.names)


def class_scores(answer: Answer, apply: Apply | None = None) -> list[float]:
    """A number for each of `class_names`: probabilities as the run gives them, or a function of its logits.

    Raises:
        Refusal: the run's logits do not stand for labels one by one.
    """
    if apply is not None:
        return _applied(answer, apply)
    said = answer.prediction
    if said.scores is not None:
        return [said.scores[name] for name in answer.hosted.labels.names]
    return [said.value or 0.0]


def _applied(answer: Answer, apply: Apply) -> list[float]:
    logits_L: np.ndarray = answer.logits[0]
    if len(logits_L) != len(class_names(answer.hosted)):
        raise Refusal(422, f"the logits of {answer.hosted.name!r} are thresholds, not one for each label")
    if apply != "none":
        logits_L = softmax(logits_L) if apply == "softmax" else expit(logits_L)
    return [float(logit) for logit in logits_L]


def ranked(answer: Answer, apply: Apply | None = None) -> list[dict[str, object]]:
    """`{"label": …, "score": …}`, the highest score first."""
    pairs = zip(class_names(answer.hosted), class_scores(answer, apply), strict=True)
    return [{"label": label, "score": score} for label, score in sorted(pairs, key=lambda pair: -pair[1])]
