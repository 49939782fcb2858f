"""Answers as people read them: the input's fields with the answer beside them, JSON's words for all of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from labeltune.errors import SettingsError
from labeltune.run import finite
from labeltune.schema import Example, Prediction, in_column


@dataclass(frozen=True, slots=True)
class Answered:
    """A row and its answer, both as JSON fields; no name stands in both."""

    fields: dict[str, Any]
    answer: dict[str, Any]

    @property
    def row(self) -> dict[str, Any]:
        """The input's fields, then the answer's."""
        return {**self.fields, **self.answer}


def refuse_score(least: float | None, *, numbers: bool = False) -> None:
    """Refuse a score to abstain below that is no probability; any, where answers are numbers."""
    if least is None:
        return
    if numbers:
        raise SettingsError("regression has no score to abstain by", at="min_score", hint="leave it out")
    if not 0 <= least <= 1:
        raise SettingsError(f"{least:g} is no probability", at="min_score", hint="give 0 to 1")


@dataclass(frozen=True, slots=True)
class Wish:
    """What is wanted of answers. min_score: below it the model abstains. scores: every label's probability."""

    min_score: float | None = None
    scores: bool = False

    def __post_init__(self) -> None:
        refuse_score(self.min_score)

    def of(self, prediction: Prediction) -> Prediction:
        """An answer with every score, as tasks give it, cut to what is wanted.

        Raises:
            SettingsError: a least score, and the answer is a number.
        """
        scores, least = prediction.scores or {}, self.min_score or 0.0
        if prediction.spans is not None:
            return replace(prediction, spans=tuple(span for span in prediction.spans if span.score >= least))
        if prediction.labels is not None:
            labels = tuple(name for name in prediction.labels if scores[name] >= least)
            return replace(prediction, labels=labels, scores=scores if self.scores else {n: scores[n] for n in labels})
        if prediction.score is None:
            refuse_score(self.min_score, numbers=True)
            return prediction
        label = prediction.label if prediction.score >= least else None
        return replace(prediction, label=label, scores=prediction.scores if self.scores else None)


def answer_fields(prediction: Prediction) -> dict[str, Any]:
    """The answer as JSON fields: `label`, `score`, `labels`, `scores`, `value`, `spans`; those that the task gives.

    `label` is given as null where the model abstains.
    """
    fields = {
        "score": prediction.score,
        "labels": None if prediction.labels is None else list(prediction.labels),
        "scores": None if prediction.scores is None else dict(prediction.scores),
        "value": prediction.value,
        "spans": None if prediction.spans is None else [asdict(span) for span in prediction.spans],
    }
    given = {name: value for name, value in fields.items() if value is not None}
    return {"label": prediction.label, **given} if "score" in given else given


def with_input(example: Example, prediction: Prediction) -> Answered:
    """The input's fields and the answer; an input column of the same name is kept as `input_<name>`."""
    answer = answer_fields(in_column(example, prediction))
    taken = {*answer, *example.fields}
    fields = {_free(name, taken) if name in answer else name: _sayable(cell) for name, cell in example.fields.items()}
    if prediction.spans is not None and (text := read_text(example)) not in example.fields.values():
        if "text" in fields:  # as the tokens' own words, joined by one space, it may be written in another way
            fields[_free("text", {*fields, *answer})] = fields["text"]
        fields["text"] = text  # offsets refer to it
    return Answered(fields, answer)


def _free(name: str, taken: set[str]) -> str:
    """`input_<name>`, and once more where the row has a column of that name too."""
    while name in taken:
        name = f"input_{name}"
    return name


def read_text(example: Example) -> str:
    """The text that the offsets of `in_column` refer to: in a template, the column's part of it."""
    return example.text if example.body is None else example.text[slice(*example.body)]


def _sayable(cell: object) -> object:
    """A cell as JSON can say it: NaN and infinity become null."""
    if isinstance(cell, float):
        return finite(cell)
    if isinstance(cell, list):
        return [_sayable(part) for part in cell]
    return {name: _sayable(part) for name, part in cell.items()} if isinstance(cell, Mapping) else cell
