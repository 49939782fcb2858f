"""Divide long text into overlapping windows of which exactly one owns each token, or shorten it, counted.

    positions   0         1         2         3         4
    window 0    |=========|====-----|                        = owned   - context only
    window 1              |----=====|====-----|
    window 2                        |----=====|=========|

Text is divided at *cuts*, positions between tokens that lie inside no unit. Neighbouring windows share at least
`overlap` tokens where the units allow it; the border of ownership is the cut nearest the middle of what they share, so
each unit is owned by the window in which the smaller of its two contexts is largest (an end of the text is no lack of
context). Lengths here count content tokens; special tokens are the encoder's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Cuts:
    """Where n tokens may be divided. before[i], after[i]: int64 (n + 1), the nearest cut <= i and >= i."""

    before: np.ndarray
    after: np.ndarray

    @classmethod
    def around(cls, starts: np.ndarray, ends: np.ndarray, count: int) -> Cuts:
        """Cuts everywhere but inside the ranges `starts:ends` of the `count` tokens."""
        depth = np.zeros(count + 2, np.int64)
        long = ends - starts > 1
        np.add.at(depth, starts[long] + 1, 1)
        np.add.at(depth, ends[long], -1)
        return cls.at(depth.cumsum()[: count + 1] == 0)

    @classmethod
    def at(cls, allowed: np.ndarray) -> Cuts:
        """Cuts where `allowed`, bool (n + 1), which holds at both ends."""
        place = np.arange(len(allowed))
        before = np.maximum.accumulate(np.where(allowed, place, 0))
        after = np.minimum.accumulate(np.where(allowed, place, len(allowed) - 1)[::-1])[::-1]
        return cls(before, after)


@dataclass(frozen=True, slots=True)
class Windows:
    """W windows over n tokens: window w holds starts[w]:ends[w] and owns borders[w]:borders[w + 1]. All int64."""

    starts: np.ndarray
    ends: np.ndarray
    borders: np.ndarray

    def __len__(self) -> int:
        return len(self.starts)

    def owner(self, tokens: np.ndarray) -> np.ndarray:
        """The window that owns each of `tokens`."""
        return np.searchsorted(self.borders[1:-1], tokens, side="right")


def whole(count: int) -> Windows:
    """One window over all tokens."""
    return Windows(np.array([0]), np.array([count]), np.array([0, count]))


def plan(cuts: Cuts, *, capacity: int, overlap: int) -> Windows:
    """Windows of at most `capacity` tokens; no stretch between two cuts is longer than that.

    A window begins `overlap` tokens (at most half the capacity) before the last one's end, at a cut; the last one
    reaches back as far as it fits. One that would own nothing, since its middle lies inside a unit, is left out.
    """
    count = len(cuts.before) - 1
    if count <= capacity:
        return whole(count)
    starts, ends = _ranges(cuts, count, capacity, min(overlap, capacity // 2))
    return _owned(starts, ends, _borders(cuts, starts, ends))


def _ranges(cuts: Cuts, count: int, capacity: int, overlap: int) -> tuple[np.ndarray, np.ndarray]:
    starts, ends = [0], [int(cuts.before[capacity])]
    while ends[-1] < count:
        end = ends[-1]
        # Far enough back for the overlap, but not so far that the stretch after `end` would not fit: each window
        # must reach beyond the last one.
        start = max(cuts.before[max(0, end - overlap)], cuts.after[max(0, cuts.after[end + 1] - capacity)])
        if start + capacity >= count:
            start = cuts.after[count - capacity]
        starts.append(int(start))
        ends.append(int(cuts.before[min(count, start + capacity)]))
    return np.array(starts), np.array(ends)


def _borders(cuts: Cuts, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    twice_middle = starts[1:] + ends[:-1]
    left, right = cuts.before[twice_middle // 2], cuts.after[twice_middle // 2]
    inner = np.where(left + right < twice_middle, right, left)
    return np.concatenate(([0], inner, [ends[-1]]))


def _owned(starts: np.ndarray, ends: np.ndarray, borders: np.ndarray) -> Windows:
    keep = borders[1:] > borders[:-1]
    return Windows(starts[keep], ends[keep], np.concatenate((borders[:-1][keep], borders[-1:])))


def shorten(cuts: Cuts, *, capacity: int, room: tuple[int, int]) -> tuple[int, int] | None:
    """The token range to take out of `room` so that at most `capacity` tokens remain, or None where it is too small.

    It ends at the room's end, so what follows the room (a template's suffix) stays.
    """
    count = len(cuts.before) - 1
    first, last = int(cuts.after[room[0]]), int(cuts.before[room[1]])
    cut = last - (count - capacity)
    if cut < first or cuts.before[cut] < first:
        return None
    return int(cuts.before[cut]), last
