"""What a row of text is made to predict: each objective turns tokens into targets whose label is a token id.

A target is read at one place of the row (its piece is that token alone), and its label is the token to predict there.

Shapes: n tokens of a row, t targets.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from labeltune.keys import Key, keep_mask
from labeltune.schema import Encoded


@dataclass(frozen=True, slots=True)
class Row:
    """A document or a part of one, as the model reads it.

    number: its address for random choices. tokens: int32 (n), special tokens included.
    first, last: the tokens `first:last` are text that is new in this row; before stands context, behind an end token.
    """

    number: int
    tokens: np.ndarray
    first: int
    last: int


@dataclass(frozen=True)
class Masking:
    """How a masked objective chooses: the share of tokens, the token that hides them, the key of this epoch."""

    share: float
    token: int
    key: Key


Make = Callable[[Row, Masking], Encoded]


@dataclass(frozen=True)
class Objective:
    """One way to learn from text.

    make: a row to its targets. unmask: who may see whom unless `model.unmask` says otherwise.
    whole: every token is predicted from those before it, so the loss is a code length and bits per byte make sense.
    """

    make: Make
    unmask: str
    whole: bool


def clm(row: Row, masking: Masking) -> Encoded:
    """Causal language modelling: each new token, an end token too, from those before it."""
    return _targets(row.tokens, np.arange(max(row.first, 1), len(row.tokens)), row.tokens)


def mntp(row: Row, masking: Masking) -> Encoded:
    """Masked next-token prediction (LLM2Vec, arXiv 2404.05961): a hidden token from the place before it.

    The place before, because that is where a causal model was trained to answer.
    """
    chosen = np.arange(max(row.first, 1), row.last)
    numbers = torch.full((len(chosen),), row.number, dtype=torch.int64)
    kept = keep_mask(masking.key, numbers, torch.from_numpy(chosen), 1, masking.share)
    hidden = chosen[~kept.numpy().ravel()]
    shown = row.tokens.copy()
    shown[hidden] = masking.token
    return _targets(shown, hidden, row.tokens)


def _targets(shown: np.ndarray, places: np.ndarray, tokens: np.ndarray) -> Encoded:
    """A row that shows `shown` and is asked, one place earlier, for `tokens` at `places` (t)."""
    count = len(places)
    return Encoded(
        tokens=shown,
        window_lengths=np.array([len(shown)], np.int32),
        piece_start=(places - 1).astype(np.int32),
        piece_end=places.astype(np.int32),
        piece_weight=np.ones(count, np.int32),
        piece_target=np.arange(count, dtype=np.int32),
        target_span=np.zeros((count, 2), np.int32),
        labels=tokens[places].astype(np.int64),
    )


OBJECTIVES = {
    "clm": Objective(clm, unmask="none", whole=True),
    "mntp": Objective(mntp, unmask="all", whole=False),
}
"""Name -> objective. `clm` with a removed mask would copy the answer, so it is refused."""
