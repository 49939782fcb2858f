"""Which tokens a unit reads, from the characters that its tokenizer says each token covers.

A token's characters are its offsets without white space at the ends; a token of nothing but a space mark
(SentencePiece's `▁`) has none, though tokenizers give it the first letter's. A token belongs to the first unit that it
overlaps, and a unit's piece runs from its first token to its last. A unit without a token of its own reads the last
token that begins before the unit ends: the one that it shares with its neighbour, or, where the tokenizer dropped its
characters, the nearest one before it. So every unit has a piece.

Shapes: n tokens of a text, t units.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Spans = Sequence[tuple[int, int]]

_SPACE = np.array([chr(code).isspace() for code in range(0x3002)])  # the last stands for all above: none is white space


def align(
    text: str, starts: np.ndarray, ends: np.ndarray, blank: np.ndarray, spans: Spans
) -> tuple[np.ndarray, np.ndarray]:
    """The tokens first:last that each unit reads, int64 (t) each; the rule stands at the top of this file.

    starts, ends: the tokens' characters, ascending; blank: bool (n), tokens without characters whatever their offsets.
    spans: the units' characters, sorted, not overlapping.
    """
    unit_starts, unit_ends = np.array(spans, np.int64).reshape(-1, 2).T
    solid_starts, solid_ends = _trimmed(text, starts, ends)
    owner = unit_ends.searchsorted(solid_starts, side="right")  # the first unit that ends behind the token's start
    begin = np.concatenate((unit_starts, [len(text) + 1]))[owner]
    tokens = np.flatnonzero((begin < solid_ends) & (solid_starts < solid_ends) & ~blank)
    owned = owner[tokens]
    nearest = np.maximum(starts.searchsorted(unit_ends) - 1, 0)
    if len(tokens) == 0:
        return nearest, nearest + 1
    numbers = np.arange(len(unit_starts))
    low, high = owned.searchsorted(numbers), owned.searchsorted(numbers, side="right")
    first = np.where(low < high, tokens[np.minimum(low, len(tokens) - 1)], nearest)
    return first, np.where(low < high, tokens[high - 1], nearest) + 1


def _trimmed(text: str, starts: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The tokens' characters without white space at the ends; tokens of nothing else end where they start."""
    codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    solid = ~_SPACE[np.minimum(codes, len(_SPACE) - 1)]
    places = np.concatenate((solid.nonzero()[0], [len(text)]))
    before = np.concatenate(([0], solid.cumsum()))  # solid characters before each character
    low, high = before[starts], before[ends]
    trimmed = places[low]
    return trimmed, np.where(low < high, places[high - 1] + 1, trimmed)


def blank_tokens(tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """Bool, by token id: tokens that are nothing but space marks."""
    vocabulary = tokenizer.get_vocab()
    table = np.zeros(max(vocabulary.values()) + 1, bool)
    for token, number in vocabulary.items():
        table[number] = not token.strip("▁Ġ") and not str(tokenizer.decode([number])).strip()
    return table
