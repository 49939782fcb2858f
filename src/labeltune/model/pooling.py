"""Turn the tokens of a labelled span into one vector.

Two steps: `POOLINGS[name]` makes each piece one vector, `combine` joins a target's pieces by the tokens they own. All
sums run within one piece in token order, so a vector does not depend on the neighbours, on any device. Vectors are
fp32 whatever the backbone's dtype.

Shapes: N tokens, M tokens read (over all pieces), P pieces, S targets, D features (hidden units, or labels).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

PoolFn = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def first(hidden_ND: torch.Tensor, starts_P: torch.Tensor, ends_P: torch.Tensor) -> torch.Tensor:
    """The first token."""
    return hidden_ND.index_select(0, starts_P).float()


def last(hidden_ND: torch.Tensor, starts_P: torch.Tensor, ends_P: torch.Tensor) -> torch.Tensor:
    """The last token."""
    return hidden_ND.index_select(0, ends_P - 1).float()


def mean(hidden_ND: torch.Tensor, starts_P: torch.Tensor, ends_P: torch.Tensor) -> torch.Tensor:
    """The mean over tokens."""
    tokens_MD, lengths_P = _read(hidden_ND, starts_P, ends_P)
    return _reduce(tokens_MD, lengths_P, "mean")


def maximum(hidden_ND: torch.Tensor, starts_P: torch.Tensor, ends_P: torch.Tensor) -> torch.Tensor:
    """The largest value of each feature; tokens that tie share the gradient."""
    tokens_MD, lengths_P = _read(hidden_ND, starts_P, ends_P)
    return _reduce(tokens_MD, lengths_P, "max")


def attention(
    hidden_ND: torch.Tensor, starts_P: torch.Tensor, ends_P: torch.Tensor, query_D: torch.Tensor | None = None
) -> torch.Tensor:
    """The mean weighted by the softmax of `token . query / sqrt(D)`; a query of zeros, or none, is the plain mean."""
    if query_D is None:
        return mean(hidden_ND, starts_P, ends_P)
    tokens_MD, lengths_P = _read(hidden_ND, starts_P, ends_P)
    scores_M1 = (tokens_MD @ query_D / len(query_D) ** 0.5).unsqueeze(1)
    highest_P1 = _reduce(scores_M1.detach(), lengths_P, "max")
    weights_M1 = torch.exp(scores_M1 - highest_P1.repeat_interleave(lengths_P, 0, output_size=len(tokens_MD)))
    return _reduce(weights_M1 * tokens_MD, lengths_P, "sum") / _reduce(weights_M1, lengths_P, "sum")


POOLINGS: dict[str, PoolFn] = {"first": first, "last": last, "mean": mean, "max": maximum, "attention": attention}
"""(hidden_ND, starts_P, ends_P) -> pieces_PD, by the name in `model.pooling`. No piece is empty."""

LEARNED = ("attention",)
"""Poolings with a query of their own."""


def places(name: str, starts_P: torch.Tensor, ends_P: torch.Tensor) -> torch.Tensor:
    """The tokens that this pooling reads, int64 (M), piece by piece."""
    if name in ONE_TOKEN:
        return ONE_TOKEN[name](starts_P, ends_P)
    return _places(starts_P, ends_P)[0]


ONE_TOKEN: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "first": lambda starts_P, _: starts_P,
    "last": lambda _, ends_P: ends_P - 1,
}
"""Poolings that read one token of a piece, and which."""


def combine(
    pieces_PD: torch.Tensor, weights_P: torch.Tensor, piece_target_P: torch.Tensor, targets: int, how: str
) -> torch.Tensor:
    """Join each target's pieces, (S, D): the largest value for `max`, else the mean weighted by owned tokens.

    piece_target_P: ascending; every target has a piece, so with as many pieces as targets each is its target's only
    one and nothing is to do.
    """
    if len(pieces_PD) == targets:
        return pieces_PD
    counts_S = torch.bincount(piece_target_P, minlength=targets)
    if how == "max":
        return _reduce(pieces_PD, counts_S, "max")
    weights_P1 = weights_P.unsqueeze(1)
    return _reduce(pieces_PD * weights_P1, counts_S, "sum") / _reduce(weights_P1, counts_S, "sum")


class Pooling(nn.Module):
    """One member's pooling: a name of the table, and the query where it is learned (zeros at first: the mean)."""

    def __init__(self, name: str, hidden_size: int) -> None:
        super().__init__()
        self.name = name
        self.query = nn.Parameter(torch.zeros(hidden_size)) if name in LEARNED else None

    def forward(self, hidden_ND: torch.Tensor, starts_P: torch.Tensor, ends_P: torch.Tensor) -> torch.Tensor:
        """Pieces as vectors, (P, D) in fp32."""
        if self.query is None:
            return POOLINGS[self.name](hidden_ND, starts_P, ends_P)
        return attention(hidden_ND, starts_P, ends_P, self.query)


def _read(hidden_ND: torch.Tensor, starts_P: torch.Tensor, ends_P: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The tokens of all pieces, one after the other (M, D) in fp32, and each piece's length."""
    places_M, lengths_P = _places(starts_P, ends_P)
    return hidden_ND.index_select(0, places_M).float(), lengths_P


def _places(starts_P: torch.Tensor, ends_P: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Where the tokens of all pieces lie, one after the other (M), and each piece's length."""
    lengths_P = ends_P - starts_P
    shift_P = starts_P - (lengths_P.cumsum(0) - lengths_P)  # from a place in M to a place in N
    shift_M = torch.repeat_interleave(shift_P, lengths_P)
    return shift_M + torch.arange(len(shift_M), device=shift_M.device), lengths_P


def _reduce(values_MD: torch.Tensor, lengths_P: torch.Tensor, how: str) -> torch.Tensor:
    """Sum, mean or maximum over consecutive segments, (P, D)."""
    if values_MD.device.type in ("cpu", "cuda"):
        return torch.segment_reduce(values_MD, how, lengths=lengths_P, axis=0, unsafe=True)
    return _scattered(values_MD, lengths_P, how)


def _scattered(values_MD: torch.Tensor, lengths_P: torch.Tensor, how: str) -> torch.Tensor:
    """The same where torch has no kernel for segments (MPS)."""
    segment_M = torch.repeat_interleave(torch.arange(len(lengths_P), device=lengths_P.device), lengths_P)
    sums_PD = values_MD.new_zeros(len(lengths_P), values_MD.shape[1])
    if how == "max":
        places_MD = segment_M[:, None].expand_as(values_MD)
        return sums_PD.scatter_reduce(0, places_MD, values_MD, "amax", include_self=False)
    sums_PD = sums_PD.index_add(0, segment_M, values_MD)
    return sums_PD / lengths_P[:, None] if how == "mean" else sums_PD
