"""A text's tokens and its targets, cut to what the settings let in: whole, refused, or with a counted loss.

Shapes: n tokens of a text (special ones left out), t targets.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from labeltune.data import units, windows
from labeltune.data.alignment import Spans, align
from labeltune.data.settings import DataConfig
from labeltune.data.specials import Specials, capacity
from labeltune.data.tokenising import Tokeniser, Tokens
from labeltune.data.windows import Cuts, Windows
from labeltune.errors import DataError
from labeltune.schema import Example

Targets = Literal["document", "units"]


class TooLong(DataError):
    """A text of more tokens than the settings let in."""


@dataclass(frozen=True, slots=True)
class Row:
    """A text fitted to the settings.

    ids: int32 (n), what is left of the tokens; source: int64 (n), their places in the whole text.
    first, last: int64 (t), the tokens first:last of each unit; empty for a document.
    spans: the characters of the t targets.
    """

    ids: np.ndarray
    source: np.ndarray
    first: np.ndarray
    last: np.ndarray
    spans: Spans
    dropped_units: int = 0
    dropped_characters: int = 0

    def cuts(self) -> Cuts:
        """Where windows may begin and end."""
        return Cuts.around(self.first, self.last, len(self.ids))

    def without(self, keep: np.ndarray) -> Row:
        """Only the tokens that bool (n) keeps; units that lose all of theirs are left with an empty range."""
        place = np.concatenate(([0], np.cumsum(keep)))
        first, last = place[self.first], place[self.last]
        return replace(self, ids=self.ids[keep], source=self.source[keep], first=first, last=last)


class Cutter:
    """What `data.long` says, for one kind of target.

    max_tokens: the longest window, special tokens included. capacity: the tokens of the text that such a window holds.

    Raises:
        SettingsError: no token fits between the special ones.
    """

    def __init__(
        self, tokeniser: Tokeniser, specials: Specials, *, config: DataConfig, max_tokens: int, targets: Targets
    ) -> None:
        self._tokeniser, self._specials, self._config = tokeniser, specials, config
        self._max_tokens, self._targets = max_tokens, targets
        self.capacity = capacity(max_tokens, specials, config.repeat + 1)

    def fit(self, example: Example, text: Tokens) -> Row:
        """The row as the settings let it in.

        Raises:
            TooLong: `error`, or what must stay does not fit. DataError: there is no token at all.
        """
        if len(text.ids) + len(self._specials) == 0:
            raise DataError("the tokenizer makes no token of this text", at=example.id, hint="remove the row")
        row = self._whole(example, text)
        if len(row.ids) <= self.capacity:
            return row
        if self._config.long == "error":
            raise self._too_long(example, len(row.ids))
        if (row.last - row.first > self.capacity).any():
            row = self._unit_tails_cut(row)
        if self._config.long == "truncate" and len(row.ids) > self.capacity:
            row = self._shortened(example, text, row)
        return replace(row, dropped_characters=_characters_lost(text, row.source))

    def windows(self, example: Example, row: Row) -> Windows:
        """The windows that a fitted row takes.

        Raises:
            TooLong: there would be more than `data.max_windows`.
        """
        if len(row.ids) <= self.capacity:
            return windows.whole(len(row.ids))
        plan = windows.plan(row.cuts(), capacity=self.capacity, overlap=self._config.overlap)
        most = self._config.max_windows
        if len(plan) > most:
            raise TooLong(
                f"the text needs {len(plan)} windows of {self._max_tokens} tokens, and {most} are allowed",
                at=example.id,
                hint='raise data.max_windows or data.max_tokens, or set data.long to "truncate"',
            )
        return plan

    def _whole(self, example: Example, text: Tokens) -> Row:
        source = np.arange(len(text.ids))
        if self._targets == "document":
            nothing = np.empty(0, np.int64)
            return Row(text.ids, source, nothing, nothing, [(0, len(example.text))])
        spans = self._units(example)
        return Row(text.ids, source, *self._aligned(example, text, spans), spans)

    def _units(self, example: Example) -> Spans:
        return units.find(example.text, self._config.unit) if example.units is None else example.units

    def _aligned(self, example: Example, text: Tokens, spans: Spans) -> tuple[np.ndarray, np.ndarray]:
        return align(example.text, text.starts, text.ends, self._tokeniser.blank[text.ids], spans)

    def _unit_tails_cut(self, row: Row) -> Row:
        """A unit that no window holds keeps its first tokens; one that shared a lost token reads the last one left."""
        keep = np.ones(len(row.ids), bool)
        for unit in np.flatnonzero(row.last - row.first > self.capacity):
            keep[row.first[unit] + self.capacity : row.last[unit]] = False
        row = row.without(keep)
        return replace(row, first=np.minimum(row.first, row.last - 1))

    def _shortened(self, example: Example, text: Tokens, row: Row) -> Row:
        room = (0, len(row.ids))
        if example.room is not None:
            starts, ends = text.starts[row.source], text.ends[row.source]
            first = int(np.searchsorted(starts, example.room[0]))
            room = first, max(first, int(np.searchsorted(ends, example.room[1], side="right")))
        cut = windows.shorten(row.cuts(), capacity=self.capacity, room=room)
        if cut is None:
            raise self._too_long(example, len(row.ids), fixed=True)
        keep = np.ones(len(row.ids), bool)
        keep[slice(*cut)] = False
        short = row.without(keep)
        if self._targets == "document":
            return replace(short, dropped_units=self._words_lost(example, text, keep))
        whole = np.flatnonzero(short.last > short.first)
        spans = [row.spans[unit] for unit in whole.tolist()]
        lost = len(row.spans) - len(spans)
        return replace(short, first=short.first[whole], last=short.last[whole], spans=spans, dropped_units=lost)

    def _words_lost(self, example: Example, text: Tokens, keep: np.ndarray) -> int:
        """The words of a document that keep no token: bool (n) says which tokens stay."""
        first, last = self._aligned(example, text, self._units(example))
        kept = np.concatenate(([0], np.cumsum(keep)))
        return int((kept[last] == kept[first]).sum())

    def _too_long(self, example: Example, count: int, *, fixed: bool = False) -> TooLong:
        what = f"the text has {count + len(self._specials)} tokens, special tokens included, and {self._max_tokens} fit"
        if fixed:
            what += ", even without the field that may be shortened"
            return TooLong(what, at=example.id, hint="raise data.max_tokens, or name another data.long_field")
        hint = 'raise data.max_tokens, or set data.long to "window" or "truncate"'
        return TooLong(what, at=example.id, hint=hint)


def _characters_lost(text: Tokens, source: np.ndarray) -> int:
    """How many characters lost a token, of which one character may have several."""
    cut = np.ones(len(text.ids), bool)
    cut[source] = False
    if not cut.any():
        return 0
    covered = np.zeros(int(text.ends.max()) + 1, np.int64)
    np.add.at(covered, text.starts[cut], 1)
    np.add.at(covered, text.ends[cut], -1)
    return int((covered.cumsum() > 0).sum())
