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
    encoder: of encoders, whose masked language model answers at the hidden token itself.
    whole: every token is predicted from those before it, so the loss is a code length and bits per byte make sense.
    """

    make: Make
    unmask: str
    whole: bool
    encoder: bool = False


def clm(row: Row, masking: Masking) -> Encoded:
    """Causal language modelling: each new token, an end token too, from those before it."""
    places = np.arange(max(row.first, 1), len(row.tokens))
    return _targets(row.tokens, places - 1, row.tokens[places])


def mntp(row: Row, masking: Masking) -> Encoded:
    """Masked next-token prediction (LLM2Vec, arXiv 2404.05961): a hidden token from the place before it.

    The place before, because that is where a causal model was trained to answer.
    """
    shown, hidden = _hidden(row, masking, max(row.first, 1))
    return _targets(shown, hidden - 1, row.tokens[hidden])


def mlm(row: Row, masking: Masking) -> Encoded:
    """Masked language modelling (BERT, arXiv 1810.04805): a hidden token at its own place; all of them are masked."""
    shown, hidden = _hidden(row, masking, row.first)
    return _targets(shown, hidden, row.tokens[hidden])


def _hidden(row: Row, masking: Masking, first: int) -> tuple[np.ndarray, np.ndarray]:
    """The row with some of its new tokens hidden, and their places (t)."""
    chosen = np.arange(first, row.last)
    numbers = torch.full((len(chosen),), row.number, dtype=torch.int64)
    kept = keep_mask(masking.key, numbers, torch.from_numpy(chosen), 1, masking.share)
    hidden = chosen[~kept.numpy().ravel()]
    shown = row.tokens.copy()
    shown[hidden] = masking.token
    return shown, hidden


def _targets(shown: np.ndarray, places: np.ndarray, labels: np.ndarray) -> Encoded:
    """A row that shows `shown` and is asked at `places` (t) for the tokens `labels` (t)."""
    count = len(places)
    return Encoded(
        tokens=shown,
        window_lengths=np.array([len(shown)], np.int32),
        piece_start=places.astype(np.int32),
        piece_end=(places + 1).astype(np.int32),
        piece_weight=np.ones(count, np.int32),
        piece_target=np.arange(count, dtype=np.int32),
        target_span=np.zeros((count, 2), np.int32),
        labels=labels.astype(np.int64),
    )


OBJECTIVES = {
    "clm": Objective(clm, unmask="none", whole=True),
    "mntp": Objective(mntp, unmask="all", whole=False),
    "mlm": Objective(mlm, unmask="all", whole=False, encoder=True),
}
"""Name -> objective. `clm` with a removed mask would copy the answer, so it is refused."""
