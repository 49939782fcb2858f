"""Which rows go together, and how they become one packed stream without padding.

An epoch is planned in two steps that know nothing of each other: `plan_epoch` says which rows an optimiser step holds,
`micro_batches` divides a step by what the device can carry. A row, with all its windows, is never divided.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from itertools import chain

import numpy as np
import torch

from labeltune.schema import Batch, Encoded
from labeltune.transfer import sent

MICRO_TOKENS, GPU_MICRO_TOKENS = 1024, 16_384
"""Tokens of a forward pass where the settings leave it open: the CPU's sweet spot, and another device's."""

# Planning


def plan_epoch(
    lengths: np.ndarray,
    *,
    permutation: np.ndarray,
    batch_rows: int | None = None,
    batch_tokens: int | None = None,
) -> list[list[int]]:
    """The rows of each optimiser step, in the order of `permutation`: `batch_rows` each, or up to `batch_tokens`.

    lengths: tokens per row. A row longer than `batch_tokens` is a step of its own; the last step may be smaller.
    """
    if (batch_rows is None) == (batch_tokens is None):
        raise ValueError("exactly one of batch_rows and batch_tokens is needed")
    if batch_rows is not None:
        return [permutation[at : at + batch_rows].tolist() for at in range(0, len(permutation), batch_rows)]
    return _filled(permutation, lengths, batch_tokens or 0)


def sorted_batches(lengths: np.ndarray, budget: int) -> list[list[int]]:
    """All rows for evaluation, the longest first, up to `budget` tokens a batch (a longer row is alone).

    The row numbers say where each answer belongs. Memory runs out at once or not at all.
    """
    return _filled(np.argsort(-lengths, kind="stable"), lengths, budget)


def _filled(order: np.ndarray, lengths: np.ndarray, budget: int) -> list[list[int]]:
    """Rows in order; a batch closes before the row that would exceed the budget."""
    batches: list[list[int]] = []
    used = budget + 1
    for row, length in zip(order.tolist(), lengths[order].tolist(), strict=True):
        if used + length > budget:
            batches.append([])
            used = 0
        batches[-1].append(row)
        used += length
    return batches


def micro_batches(
    rows: Sequence[int], lengths: np.ndarray, *, micro_tokens: int | None = None, count: int | None = None
) -> list[list[int]]:
    """Divide a step's rows into parts of nearly equal tokens: `count` of them, or as few as `micro_tokens` allows.

    A part exceeds `micro_tokens` only where it is one row. There are never more parts than rows; in each, the shortest
    rows come first, for neighbours of one length share a call of the attention kernel.
    """
    if (micro_tokens is None) == (count is None):
        raise ValueError("exactly one of micro_tokens and count is needed")
    if micro_tokens is None:
        return _balanced(rows, lengths, count or 1)
    parts = -(-int(lengths[list(rows)].sum()) // micro_tokens)
    while True:
        divided = _balanced(rows, lengths, parts)
        if all(len(part) == 1 or lengths[part].sum() <= micro_tokens for part in divided):
            return divided
        parts += 1


def _balanced(rows: Sequence[int], lengths: np.ndarray, parts: int) -> list[list[int]]:
    """The longest row first, each into the part with the fewest tokens."""
    places: list[list[int]] = [[] for _ in range(max(1, min(parts, len(rows))))]
    loads = [(0, part) for part in range(len(places))]
    for place in sorted(range(len(rows)), key=lambda place: -int(lengths[rows[place]])):
        load, part = heapq.heappop(loads)
        places[part].append(place)
        heapq.heappush(loads, (load + int(lengths[rows[place]]), part))
    by_length = [sorted(part, key=lambda place: (int(lengths[rows[place]]), place)) for part in places]
    return [[rows[place] for place in part] for part in by_length]


# Packing


def pack(slices: Sequence[Sequence[tuple[int, Encoded]]], device: torch.device | str = "cpu") -> Batch:
    """One stream of K slices, each of (row number, encoded row): N tokens, D windows, P pieces, S targets.

    A token's address is its row number and its place in the row, whatever stands beside it. A slice may be empty.
    """
    flat = list(chain.from_iterable(slices))
    rows = [encoded for _, encoded in flat]
    tokens = _counts(len(row.tokens) for row in rows)
    documents = _counts(len(row.window_lengths) for row in rows)
    pieces = _counts(len(row.piece_start) for row in rows)
    targets = _counts(len(row.target_span) for row in rows)
    windows = _joined([row.window_lengths for row in rows])
    cu_seqlens = _bounds(windows)
    place = np.arange(cu_seqlens[-1])
    first_token = np.repeat(_bounds(tokens)[:-1], pieces)
    numbers = np.array([number for number, _ in flat], np.int64)

    def tensor(array: np.ndarray) -> torch.Tensor:
        return sent(torch.from_numpy(array), device)

    of_slice = _bounds(np.array([len(part) for part in slices], np.int64))
    return Batch(
        input_ids=tensor(_joined([row.tokens for row in rows])),
        position_ids=tensor(place - np.repeat(cu_seqlens[:-1], windows)),
        token_row=tensor(np.repeat(numbers, tokens)),
        token_index=tensor(place - np.repeat(_bounds(tokens)[:-1], tokens)),
        cu_seqlens=torch.from_numpy(cu_seqlens),
        piece_starts=tensor(_joined([row.piece_start for row in rows]) + first_token),
        piece_ends=tensor(_joined([row.piece_end for row in rows]) + first_token),
        piece_target=tensor(_joined([row.piece_target for row in rows]) + np.repeat(_bounds(targets)[:-1], pieces)),
        piece_weights=tensor(_joined([row.piece_weight for row in rows]).astype(np.float32)),
        target_document=tensor(np.repeat(np.arange(len(rows)), targets)),
        slice_tokens=_of_slices(tokens, of_slice),
        slice_documents=_of_slices(documents, of_slice),
        slice_pieces=_of_slices(pieces, of_slice),
        slice_targets=_of_slices(targets, of_slice),
        labels=tuple(tensor(_labels([encoded.labels for _, encoded in part])) for part in slices),
        rows=tuple(tuple(number for number, _ in part) for part in slices),
    )


def _labels(arrays: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(arrays) if arrays else np.empty(0, np.int64)  # a slice may be empty


def _counts(sizes: Iterable[int]) -> np.ndarray:
    return np.fromiter(sizes, np.int64)


def _joined(arrays: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(arrays, dtype=np.int64)


def _bounds(sizes: np.ndarray) -> np.ndarray:
    return np.concatenate(([0], np.cumsum(sizes)))


def _of_slices(sizes: np.ndarray, of_slice: np.ndarray) -> tuple[int, ...]:
    return tuple(_bounds(sizes)[of_slice].tolist())
