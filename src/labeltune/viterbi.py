"""The best legal tag sequence of each document under per-unit scores: what plain tagging decides by.

Only an I-x must follow B-x or I-x, everything else may follow everything, so a step costs T comparisons and not T x T;
and where the best tags of all units happen to be legal they are the answer.

Shapes: S targets (units), T tags, D documents.
"""

from __future__ import annotations

import numpy as np


def best_legal(scores_ST: np.ndarray, target_document_S: np.ndarray) -> np.ndarray:
    """int64 (S): per document the legal tags with the largest sum of scores. target_document_S is ascending."""
    tags_S = np.asarray(scores_ST.argmax(1))
    starts_S = np.diff(target_document_S, prepend=-1) != 0
    before_S = np.where(starts_S, 0, np.roll(tags_S, 1))
    inside_S = (tags_S > 0) & (tags_S % 2 == 0)
    broken_S = inside_S & ((before_S - 1) // 2 != (tags_S - 1) // 2)
    if broken_S.any():
        document_S = np.cumsum(starts_S) - 1
        again_S = np.isin(document_S, document_S[broken_S])
        lengths_D = np.bincount(document_S[again_S])
        tags_S[again_S] = _viterbi(scores_ST[again_S], lengths_D[lengths_D > 0])
    return tags_S


def _viterbi(scores_ST: np.ndarray, lengths_D: np.ndarray) -> np.ndarray:
    """All documents step together, the longest first, so that those still running are a prefix."""
    order_D = np.argsort(-lengths_D, kind="stable")
    first_D, lengths_D = (np.cumsum(lengths_D) - lengths_D)[order_D], lengths_D[order_D]
    running = [int(np.searchsorted(-lengths_D, -position)) for position in range(int(lengths_D[0]))]
    best_DT = scores_ST[first_D].astype(np.float64)
    best_DT[:, 2::2] = -np.inf  # no document begins inside
    came_from = []
    for position, count in enumerate(running[1:], start=1):
        before = best_DT[:count]
        begun, inside = before[:, 1::2], before[:, 2::2]
        came_from.append((before.argmax(1), inside > begun))
        anything = before.max(1, keepdims=True)
        step = scores_ST[first_D[:count] + position].astype(np.float64)
        step[:, 2::2] += np.maximum(begun, inside)
        step[:, 1::2] += anything
        step[:, :1] += anything
        best_DT[:count] = step
    tags_S = np.empty(len(scores_ST), dtype=np.int64)
    tags_S[first_D + lengths_D - 1] = best_DT.argmax(1)
    for position in range(len(running) - 1, 0, -1):
        targets = first_D[: running[position]] + position
        tags_S[targets - 1] = _back(tags_S[targets], *came_from[position - 1])
    return tags_S


def _back(tags: np.ndarray, anything: np.ndarray, from_inside: np.ndarray) -> np.ndarray:
    """The tags before `tags`: an I-x came from B-x or I-x, the others from the best of all."""
    inside = (tags > 0) & (tags % 2 == 0)
    label = np.where(inside, (tags - 1) // 2, 0)
    within = np.where(from_inside[np.arange(len(tags)), label], tags, tags - 1)
    return np.where(inside, within, anything)
