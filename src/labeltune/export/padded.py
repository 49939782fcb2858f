"""Encoded rows as the arrays of an exported graph: windows padded at the right, and which tokens each target reads.

A graph of ours takes a batch of windows and, for each target, places in it with their shares: one token for `first` and
`last`, all of a target's for `mean` and `max`. A target in several windows has the tokens of all of them, so windows,
words and whole texts are one case. Needs numpy alone.

Shapes: B windows of T tokens, N tokens without padding, P pieces, R reads, S targets, M reads of a target.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from labeltune.schema import Encoded

READS = ("first", "last", "mean", "max")
"""Poolings that a graph can compute."""

Feed = dict[str, np.ndarray]


def feed(rows: Sequence[Encoded], pooling: str) -> Feed:
    """`input_ids`, `attention_mask` int64 (B, T); `reads` int64 (S, M), places in the flat batch; `shares` fp32 (S, M).

    A share of 0 is no read. The shares of a target sum to 1, as the tokens that its windows own ask for.
    """
    lengths_B = np.concatenate([row.window_lengths for row in rows]).astype(np.int64)
    window_N, position_N = _places(lengths_B)
    longest = int(lengths_B.max())
    ids_BT = np.zeros((len(lengths_B), longest), np.int64)
    mask_BT = np.zeros_like(ids_BT)
    ids_BT[window_N, position_N] = np.concatenate([row.tokens for row in rows])
    mask_BT[window_N, position_N] = 1
    reads, shares = _reads(rows, pooling, window_N * longest + position_N)
    return {"input_ids": ids_BT, "attention_mask": mask_BT, "reads": reads, "shares": shares}


def documents_of(rows: Sequence[Encoded]) -> np.ndarray:
    """int64 (S): the row of each target."""
    return np.repeat(np.arange(len(rows)), [len(row.target_span) for row in rows])


def _reads(rows: Sequence[Encoded], pooling: str, place_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(reads, shares), (S, M) each."""
    tokens, targets = _before(len(r.tokens) for r in rows), _before(len(r.target_span) for r in rows)
    starts_P, ends_P, target_P = (
        np.concatenate([getattr(row, name) + shift for row, shift in zip(rows, shifts, strict=True)]).astype(np.int64)
        for name, shifts in (("piece_start", tokens), ("piece_end", tokens), ("piece_target", targets))
    )
    weight_P = np.concatenate([row.piece_weight for row in rows]).astype(np.float64)
    piece_R, read_R = _tokens_read(starts_P, ends_P, pooling)
    target_R, count = target_P[piece_R], sum(len(row.target_span) for row in rows)
    counts_S = np.bincount(target_R, minlength=count)
    _, slot_R = _places(counts_S)
    total_S = np.bincount(target_P, weight_P, minlength=count)
    reads = np.zeros((count, int(counts_S.max(initial=1))), np.int64)
    shares = np.zeros(reads.shape, np.float32)
    reads[target_R, slot_R] = place_N[read_R]
    shares[target_R, slot_R] = weight_P[piece_R] / np.bincount(piece_R)[piece_R] / total_S[target_R]
    return reads, shares


def _tokens_read(starts_P: np.ndarray, ends_P: np.ndarray, pooling: str) -> tuple[np.ndarray, np.ndarray]:
    """(piece, token) of each read, by piece."""
    if pooling in ("first", "last"):
        return np.arange(len(starts_P)), starts_P if pooling == "first" else ends_P - 1
    piece_R, place_R = _places(ends_P - starts_P)
    return piece_R, starts_P[piece_R] + place_R


def _places(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which group each member is in, and its place there, for groups of these sizes."""
    group = np.repeat(np.arange(len(counts)), counts)
    return group, np.arange(len(group)) - (np.cumsum(counts) - counts)[group]


def _before(counts: Iterable[int]) -> np.ndarray:
    sizes = np.fromiter(counts, np.int64)
    return np.cumsum(sizes) - sizes
