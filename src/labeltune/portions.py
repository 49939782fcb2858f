"""A long stream of rows in portions that can be answered apart, in any order and anywhere, with the same answers.

A portion carries the neighbours that its rows may read (`data.context`). Texts that occur several times in a portion
are answered once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from labeltune.data.encoding import Encoder
from labeltune.data.padding import block_of
from labeltune.data.settings import DataConfig
from labeltune.inference import CHUNK
from labeltune.schema import Encoded, Example, Prediction

Decide = Callable[[Sequence[Example], Sequence[Encoded]], list[Prediction]]
"""Examples and their encoded rows -> an answer for each."""


@dataclass(frozen=True, slots=True)
class Portion:
    """Rows that follow each other. number: its place among the portions. before, after: rows around it, as context."""

    number: int
    rows: Sequence[Example]
    before: Sequence[Example] = ()
    after: Sequence[Example] = ()


def portions(examples: Iterable[Example], config: DataConfig, rows: int = CHUNK) -> Iterator[Portion]:
    """Portions of `rows` examples, the last one smaller; of whole blocks where `data.pad_as_text` is set."""
    margin, block = config.context, block_of(config)
    size = max(1, rows // block) * block
    stream = iter(examples)
    before: list[Example] = []
    held = list(islice(stream, size + margin))
    number = 0
    while held:
        now, after = held[:size], held[size:]
        yield Portion(number, now, before, after)
        before = [*before, *now][-margin:] if margin else []
        held = after + list(islice(stream, size + margin - len(after)))
        number += 1


def answer(portion: Portion, encoder: Encoder, decide: Decide) -> list[Prediction]:
    """One prediction for each row of the portion, in order."""
    if encoder.config.context or encoder.padding:  # a row's company is part of what is read
        return decide(portion.rows, encoder.encode_between(portion.before, portion.rows, portion.after))
    place: dict[object, int] = {}
    places = [place.setdefault((row.text, row.units, row.room), len(place)) for row in portion.rows]
    firsts: dict[int, Example] = {}
    for row, where in zip(portion.rows, places, strict=True):
        firsts.setdefault(where, row)
    distinct = list(firsts.values())
    found = decide(distinct, list(encoder.encode_many(distinct)))
    return [_of_row(row, found[where]) for row, where in zip(portion.rows, places, strict=True)]


def _of_row(row: Example, prediction: Prediction) -> Prediction:
    return prediction if prediction.id == row.id else replace(prediction, id=row.id)
