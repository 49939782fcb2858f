"""Names of labels, and tags as spans: the four tagging schemes, legal transitions, characters to units and back.

A unit span is `(first, last, label)`, half-open in units: `[(0, 2, "PER")]` covers units 0 and 1. Inside the house tags
are IOB2 and numbered `O, B-x, I-x, B-y, I-y, …` in the order of the label set, so tag 0 is outside, odd tags begin and
even tags continue label `(tag - 1) // 2`.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from labeltune.errors import DataError, nearest
from labeltune.schema import Span

OUTSIDE = "O"
SCHEMES = ("IOB2", "IOB1", "BIOES", "BILOU")
_ENDS = {"BIOES": ("E", "S"), "BILOU": ("L", "U")}
"""Of the schemes that mark a span's end: the letters of a last unit and of a single one."""
_PREFIXES = {"B": "B", "I": "I", "E": "E", "S": "S", "L": "E", "U": "S"}  # BILOU is BIOES under other letters

UnitSpan = tuple[int, int, str]


@dataclass(frozen=True)
class LabelSet:
    """The labels a model knows, in the order of its logits (for tagging: of its span labels, without prefixes)."""

    names: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self._ids) != len(self.names):
            raise ValueError(f"label names repeat: {self.names}")

    @classmethod
    def of(cls, names: Iterable[str]) -> LabelSet:
        """The distinct names, sorted."""
        return cls(tuple(sorted(set(names))))

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self.names)}

    def __len__(self) -> int:
        return len(self.names)

    def index(self, name: str) -> int:
        """The place of `name`; DataError with the nearest label where it is unknown."""
        if name not in self._ids:
            raise DataError(f"label {name!r} is not in the label set", hint=nearest(name, self.names))
        return self._ids[name]

    def find(self, name: str) -> int:
        """The place of `name`, or -1 for a label that the model does not know."""
        return self._ids.get(name, -1)


# Tags and unit spans


def split_tag(tag: str) -> tuple[str, str]:
    """`B-PER` -> (`B`, `PER`), `O` -> (`O`, ``); a bare `B` carries the label `_`. Raises DataError for all else."""
    if tag == OUTSIDE:
        return OUTSIDE, ""
    letter, dash, label = tag.partition("-")
    if letter not in _PREFIXES or (dash and not label):
        hint = "tags are O, or B-, I- (E-, S-) before a label, as in B-PER; write B- before labels of single words"
        if tag.isdigit():
            hint = "name the numbers from 0: data.label_names = ['O', 'B-PER', 'I-PER', …]"
        raise DataError(f"{tag!r} is no tag", hint=hint)
    return _PREFIXES[letter], label or "_"


def recognise(rows: Iterable[Sequence[str]]) -> str:
    """The scheme of a data set's tags: BIOES where E- or S- occur, BILOU where L- or U- do; else IOB2 or IOB1.

    It is IOB2 where every span begins with B-.

    Rows that mix IOB1 and IOB2 are read as IOB1, which loses no span.
    """
    scheme = "IOB2"
    for row in rows:
        parts = [split_tag(tag) for tag in row]
        for ending, letters in _ENDS.items():
            if any(tag.partition("-")[0] in letters for tag in row):
                return ending
        if any(label != before for before, label in _inner(parts)):
            scheme = "IOB1"
    return scheme


def _inner(parts: Sequence[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """(label before, label) of every I- tag."""
    before = ""
    for prefix, label in parts:
        if prefix == "I":
            yield before, label
        before = label


def spans_of(tags: Sequence[str], scheme: str = "IOB2") -> list[UnitSpan]:
    """The unit spans of a row of tags.

    IOB2 is strict, as seqeval's `mode="strict", scheme=IOB2`: an I- that continues nothing is outside. IOB1 and BIOES
    are read without loss: a span begins at B- and S-, and at an I- or E- that continues nothing; E- and S- end it.
    """
    spans: list[UnitSpan] = []
    first, open_label = 0, ""
    for unit, (prefix, label) in enumerate(map(split_tag, tags)):
        if open_label and prefix in "IE" and label == open_label:
            pass
        else:
            if open_label:
                spans.append((first, unit, open_label))
            begins = prefix in "BS" or (prefix in "IE" and scheme != "IOB2")
            first, open_label = unit, label if begins else ""
        if prefix in "ES" and open_label:
            spans.append((first, unit + 1, open_label))
            open_label = ""
    if open_label:
        spans.append((first, len(tags), open_label))
    return spans


def first_fault(tags: Sequence[str], scheme: str) -> tuple[int, str] | None:
    """(unit, what is wrong) for the first tag that breaks the scheme, or None."""
    for unit, (tag, regular) in enumerate(zip(tags, _regular(tags, scheme), strict=True)):
        if split_tag(tag) != split_tag(regular):
            return unit, f"{tag} where {scheme} has {regular}"
    return None


def _regular(tags: Sequence[str], scheme: str) -> list[str]:
    """The row as its scheme would write the spans read from it without loss."""
    regular = [OUTSIDE] * len(tags)
    before = (-1, "")  # where the last span ended, and its label
    for first, last, label in spans_of(tags, "IOB1"):
        letters = ["I"] * (last - first)
        if scheme != "IOB1" or before == (first, label):
            letters[0] = "B"
        if ends := _ENDS.get(scheme):
            letters[-1] = ends[last - first == 1]
        regular[first:last] = [f"{letter}-{label}" for letter in letters]
        before = (last, label)
    return regular


def tags_of(unit_spans: Iterable[UnitSpan], units: int) -> list[str]:
    """IOB2 tags of `units` units; the inverse of `spans_of`."""
    tags = [OUTSIDE] * units
    for first, last, label in unit_spans:
        tags[first:last] = [f"B-{label}"] + [f"I-{label}"] * (last - first - 1)
    return tags


# Tags as numbers


def tag_names(labels: LabelSet) -> tuple[str, ...]:
    """`(O, B-x, I-x, B-y, I-y, …)`: the names of the tag numbers."""
    return (OUTSIDE, *(f"{letter}-{name}" for name in labels.names for letter in "BI"))


def tag_ids(unit_spans: Iterable[UnitSpan], units: int, labels: LabelSet) -> np.ndarray:
    """int64 (units): the tag numbers; -1 on the units of a label that is not in the label set."""
    ids = np.zeros(units, dtype=np.int64)
    for first, last, name in unit_spans:
        label = labels.find(name)
        ids[first:last] = -1 if label < 0 else 2 * label + 2
        if label >= 0:
            ids[first] -= 1
    return ids


def spans_of_ids(ids: np.ndarray, labels: LabelSet) -> list[UnitSpan]:
    """The unit spans of legal tag numbers (S,), as `decide` returns them."""
    firsts = np.flatnonzero(ids % 2 == 1)
    stops = np.append(np.flatnonzero((ids == 0) | (ids % 2 == 1)), len(ids))
    lasts = stops[np.searchsorted(stops, firsts, side="right")]
    return [(int(a), int(b), labels.names[(int(ids[a]) - 1) // 2]) for a, b in zip(firsts, lasts, strict=True)]


def legal_transitions(labels: int) -> tuple[np.ndarray, np.ndarray]:
    """Boolean (T,) and (T, T) for T = 2 * labels + 1 tags: may a document start with tag t; may tag j follow tag i.

    Everything may follow everything, but I-x only B-x and I-x.
    """
    tags = np.arange(2 * labels + 1)
    inside = (tags > 0) & (tags % 2 == 0)
    same = (tags[:, None] - 1) // 2 == (tags[None, :] - 1) // 2
    return ~inside, ~inside[None, :] | (same & (tags > 0)[:, None])


# Characters and units


@dataclass(frozen=True)
class Alignment:
    """Character spans in units. `lost`: spans that do not align, since they begin or end inside a unit or hold none."""

    unit_spans: tuple[UnitSpan, ...]
    lost: tuple[Span, ...]


def align(spans: Iterable[Span], units: Sequence[tuple[int, int]]) -> Alignment:
    """Map character spans to the units they cover; white space at a span's ends belongs to no unit and is no hindrance.

    units: character ranges, sorted, not overlapping.
    """
    starts, ends = [a for a, _ in units], [b for _, b in units]
    found: list[UnitSpan] = []
    lost: list[Span] = []
    for span in spans:
        first, last = bisect_left(starts, span.start), bisect_right(ends, span.end)
        # Units that the span touches but does not hold whole would lie just outside [first, last).
        torn = (first > 0 and ends[first - 1] > span.start) or (last < len(units) and starts[last] < span.end)
        if torn or first >= last:
            lost.append(span)
        else:
            found.append((first, last, span.label))
    return Alignment(tuple(found), tuple(lost))


def characters_of(unit_spans: Iterable[UnitSpan], units: Sequence[tuple[int, int]]) -> list[Span]:
    """Character spans from the first unit's start to the last unit's end."""
    return [Span(units[first][0], units[last - 1][1], label) for first, last, label in unit_spans]
