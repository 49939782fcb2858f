"""Hold out a fraction of the rows: stratified, seeded, the same whatever the order of the file.

What belongs together (the same text, the same group) is a *block* and stays on one side. Blocks are sorted by content,
then drawn by an addressed permutation, stratum by stratum.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from labeltune.data.survey import Survey
from labeltune.errors import DataError, SettingsError
from labeltune.keys import Key, permutation
from labeltune.wording import counted

BINS = 10
"""Quantile bins of a regression label."""


def hold_out(
    survey: Survey, fractions: Mapping[str, float], key: Key, *, strict: bool, at: str
) -> dict[str, np.ndarray]:
    """Draw each named part: bool (G) over the good rows; the rest is what remains for training.

    A fraction is of all rows of a stratum; a stratum gives each part at least one block and keeps at least one.
    strict: whether a stratum with too few blocks for that is an error (a class), or stays in training (a rare entity).

    Raises:
        DataError: a label whose rows cannot be in all parts, or fractions that leave nothing to train on.
    """
    if sum(fractions.values()) >= 1:
        told = " + ".join(f"{name} {fraction}" for name, fraction in fractions.items())
        raise DataError(f"the fractions {told} leave nothing to train on", at=at, hint="make them smaller")
    blocks = blocks_of(survey.texts, survey.groups)
    strata, names = strata_of(survey)
    draw = _Draw(blocks, strata)
    for name, fraction in fractions.items():
        for stratum in range(len(names)):
            draw.take(name, stratum, fraction, key.fold("split", name, names[stratum]), spare=len(fractions))
    parts = {name: draw.part(name) for name in fractions}
    if strict:
        rest = ~np.logical_or.reduce(list(parts.values()))
        _refuse_empty({**parts, "train": rest}, strata, names, at, grouped=survey.groups is not None)
    return parts


def fold_share(fold: str) -> float:
    """`2/5` is a fifth of the rows.

    Raises:
        SettingsError: there is no such part.
    """
    number, of = map(int, fold.split("/"))
    if not number <= of > 1:
        raise SettingsError(
            f"{fold!r} is no part of a whole", at="data.fold", hint="for example 2/5: the second of five"
        )
    return 1 / of


def hold_out_fold(
    survey: Survey, fractions: Mapping[str, float], key: Key, *, strict: bool, at: str, fold: str
) -> dict[str, np.ndarray]:
    """As `hold_out`, but dev is part k of n disjoint parts, which together are all that a test split leaves."""
    number, of = map(int, fold.split("/"))
    test = {name: share for name, share in fractions.items() if name != "dev"}
    strata, names = strata_of(survey)
    draw = _Draw(blocks_of(survey.texts, survey.groups), strata)
    for name, share in test.items():
        for stratum in range(len(names)):
            draw.take(name, stratum, share, key.fold("split", name, names[stratum]), spare=len(test) + of - 1)
    folds = draw.deal(of, [key.fold("split", "folds", name) for name in names])
    parts = {name: draw.part(name) for name in test}
    if strict:
        each = {f"fold {n + 1}": folds == n for n in range(of)}
        _refuse_empty({**parts, **each}, strata, names, at, grouped=survey.groups is not None)
    return parts | {"dev": folds == number - 1}


def draw_rows(survey: Survey, count: int, key: Key, *, at: str) -> np.ndarray:
    """Bool (G): `count` of the rows, each stratum its share and at least one row; all where there are no more.

    A stratum's rows are sorted by content and drawn by an addressed permutation, so the order of the file does not
    matter, and of one key fewer rows are part of more, but where shares are rounded.

    Raises:
        SettingsError: fewer rows than labels.
    """
    strata, names = strata_of(survey)
    sizes = np.bincount(strata, minlength=len(names))
    if count >= len(strata):
        return np.ones(len(strata), bool)
    if count < np.count_nonzero(sizes):
        hint = "name at least as many"
        raise SettingsError(
            f"{counted(count, 'row', 'rows')} cannot hold {counted(len(names), 'label', 'labels')}", at=at, hint=hint
        )
    chosen = np.zeros(len(strata), bool)
    for stratum, quota in enumerate(_quotas(sizes, count).tolist()):
        rows = np.flatnonzero(strata == stratum)
        rows = rows[np.argsort(survey.texts[rows], kind="stable")]
        chosen[rows[permutation(key.fold("rows", names[stratum]), len(rows))[:quota]]] = True
    return chosen


def _quotas(sizes: np.ndarray, count: int) -> np.ndarray:
    """So many of each, in proportion, at least one of what is there: the largest remainders first."""
    exact = sizes * (count / sizes.sum())
    quotas = np.minimum(sizes, np.maximum(np.floor(exact).astype(int), sizes > 0))
    while quotas.sum() != count:
        step = 1 if quotas.sum() < count else -1
        able = quotas < sizes if step > 0 else quotas > 1
        quotas[np.argmax(np.where(able, step * (exact - quotas), -np.inf))] += step
    return np.asarray(quotas)


def _is_number(name: str) -> bool:
    return name.lstrip("+-").replace(",", ".", 1).replace(".", "", 1).isdigit()


def _refuse_empty(
    parts: Mapping[str, np.ndarray], strata: np.ndarray, names: Sequence[str], at: str, *, grouped: bool
) -> None:
    together = "rows of one text or one group" if grouped else "rows of one text"
    for part, rows in parts.items():
        empty = np.flatnonzero(np.bincount(strata[rows], minlength=len(names)) == 0)
        if len(empty):
            told = ", ".join(repr(names[label]) for label in empty[:5])
            more = f" and {len(empty) - 5} more" if len(empty) > 5 else ""
            labels = "the label" if len(empty) == 1 else "the labels"
            message = f"the fraction would leave {part} without {labels} {told}{more} ({together} stay together)"
            hint = f"give data.{part if part == 'test' else 'dev'} as a file, add rows of the label, or remove it"
            if all(map(_is_number, names)) and 4 * len(names) > len(strata):
                hint = "are these a measure? task = 'regression'; or " + hint
            raise DataError(message, at=at, hint=hint)


class _Draw:
    """Blocks of rows, and which part each has been drawn for (0: none yet)."""

    def __init__(self, blocks: np.ndarray, strata: np.ndarray) -> None:
        self._blocks = blocks
        self._sizes = np.bincount(blocks)  # (B) rows of each block
        rarity = np.argsort(np.bincount(strata), kind="stable")
        rank = np.empty_like(rarity)
        rank[rarity] = np.arange(len(rarity))
        first = np.full(len(self._sizes), len(rarity))
        np.minimum.at(first, blocks, rank[strata])  # a block of several labels counts for its rarest
        self._stratum = rarity[first]
        self._owner = np.zeros(len(self._sizes), np.int32)
        self._parts: list[str] = []

    def take(self, name: str, stratum: int, fraction: float, key: Key, *, spare: int) -> None:
        """Draw about `fraction` of the stratum's rows for a part, while enough blocks remain for the others."""
        if name not in self._parts:
            self._parts.append(name)
        own = np.flatnonzero(self._stratum == stratum)
        wanted = max(1, round(fraction * int(self._sizes[own].sum())))
        free = own[self._owner[own] == 0]
        most = len(free) - (spare - len(self._parts) + 1)  # one block for each part to come, one for training
        if most < 1:
            return
        order = free[permutation(key, len(free))]
        self._owner[_fitting(order, self._sizes[order], wanted, most)] = len(self._parts)

    def deal(self, folds: int, keys: Sequence[Key]) -> np.ndarray:
        """Int (G): a fold for each row that no part has, from 0; -1 for the others. keys: by stratum.

        Stratum by stratum the largest blocks go first, each to the fold with the fewest rows of the stratum, of those
        to the one with the fewest rows: so folds are alike in labels and in size.
        """
        fold = np.full(len(self._sizes), -1)
        totals = [0] * folds
        for stratum, key in enumerate(keys):
            free = np.flatnonzero((self._stratum == stratum) & (self._owner == 0))
            order = free[permutation(key, len(free))]
            order = order[np.argsort(-self._sizes[order], kind="stable")]
            heap = [(0, total, place) for place, total in enumerate(totals)]
            heapq.heapify(heap)
            for block, size in zip(order.tolist(), self._sizes[order].tolist(), strict=True):
                rows, total, place = heap[0]
                fold[block], totals[place] = place, total + size
                heapq.heapreplace(heap, (rows + size, total + size, place))
        return np.asarray(fold[self._blocks])

    def part(self, name: str) -> np.ndarray:
        """Bool (G): the rows drawn for a part."""
        return np.asarray((self._owner == self._parts.index(name) + 1)[self._blocks])


def _fitting(order: np.ndarray, sizes: np.ndarray, wanted: int, most: int) -> np.ndarray:
    """The first blocks that together have at most `wanted` rows; the smallest one where none fits."""
    chosen: list[int] = []
    room = wanted
    for place, size in enumerate(sizes.tolist()):
        if size <= room and len(chosen) < most:
            chosen.append(place)
            room -= size
        if room == 0:
            break
    return order[chosen or [int(sizes.argmin())]]


def blocks_of(texts: np.ndarray, groups: np.ndarray | None) -> np.ndarray:
    """int64 (G): the block of each row, numbered by content. Rows of one text or one group are in one block."""
    if groups is None:
        return np.unique(texts, return_inverse=True)[1].reshape(-1)
    _, text = np.unique(texts, return_inverse=True)
    _, group = np.unique(groups, return_inverse=True)
    size = int(text.max(initial=-1)) + 1
    edges = coo_matrix((np.ones(len(text), bool), (text, group + size)), shape=(size + len(group),) * 2)
    part = connected_components(edges, directed=False)[1][text]
    first = np.full(int(part.max(initial=-1)) + 1, np.iinfo(np.uint64).max, np.uint64)
    np.minimum.at(first, part, texts)  # a block is called by its smallest text
    return np.unique(first[part], return_inverse=True)[1].reshape(-1)


def strata_of(survey: Survey) -> tuple[np.ndarray, list[str]]:
    """int64 (G) and names: by label; by a row's rarest label where it has several, or none; by quantile for numbers."""
    if survey.labels.dtype == np.float64:
        return _bins(survey.labels)
    counts = np.bincount(survey.labels, minlength=len(survey.sets))
    rows: dict[str, int] = {}
    for labels, count in zip(survey.sets, counts.tolist(), strict=True):
        for label in labels:
            rows[label] = rows.get(label, 0) + count
    rarest = [min(labels, key=lambda label: (rows[label], label), default="") for labels in survey.sets]
    names = sorted(set(rarest))
    return np.array([names.index(name) for name in rarest], np.int64)[survey.labels], names


def _bins(numbers: np.ndarray) -> tuple[np.ndarray, list[str]]:
    count = max(1, min(BINS, len(numbers) // BINS))
    edges = np.unique(np.quantile(numbers, np.linspace(0, 1, count + 1)[1:-1])) if len(numbers) else np.empty(0)
    if len(edges) == 1 and count > 2:  # one number is nearly all there is: what lies below and above is told apart
        edges = np.array([edges[0], np.nextafter(edges[0], np.inf)])
    return np.searchsorted(edges, numbers, side="right"), [f"bin {number}" for number in range(len(edges) + 1)]
