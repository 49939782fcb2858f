"""A linear-chain CRF over a document's tags in order: it scores whole sequences, and only legal ones exist.

Documents of any length are packed without padding; the recursions walk over positions and carry, at each, the documents
that are still running (sorted by length, the running ones come first).

Shapes: S targets, T tags, D documents.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from labeltune.labels import legal_transitions


@dataclass(frozen=True)
class _Order:
    """Documents from longest to shortest. first_D: where each begins; running: per position, how many still run."""

    first_D: torch.Tensor
    last_D: torch.Tensor
    running: tuple[int, ...]

    @classmethod
    def of(cls, target_document_S: torch.Tensor) -> _Order:
        """target_document_S: ascending; documents without targets do not occur in it and count for nothing."""
        lengths_D = torch.unique_consecutive(target_document_S, return_counts=True)[1]
        order_D = torch.argsort(lengths_D, descending=True, stable=True)
        first_D = (lengths_D.cumsum(0) - lengths_D)[order_D]
        longest = int(lengths_D.max()) if len(lengths_D) else 0
        running = (lengths_D[:, None] > torch.arange(longest, device=lengths_D.device)).sum(0).tolist()
        return cls(first_D, first_D + lengths_D[order_D] - 1, tuple(running))

    def rows(self) -> Iterator[torch.Tensor]:
        """Per position, the targets of the documents that run there."""
        for position, count in enumerate(self.running):
            yield self.first_D[:count] + position


class CRF(nn.Module):
    """Transition scores beside the head's emissions; all start at zero.

    tags: the head's width, 2 x labels + 1, numbered as in `labels.py`.
    """

    legal_start: torch.Tensor
    legal_follow: torch.Tensor

    def __init__(self, tags: int) -> None:
        super().__init__()
        start, follow = legal_transitions((tags - 1) // 2)
        self.register_buffer("legal_start", torch.from_numpy(start), persistent=False)
        self.register_buffer("legal_follow", torch.from_numpy(follow), persistent=False)
        self.start = nn.Parameter(torch.zeros(tags))
        self.end = nn.Parameter(torch.zeros(tags))
        self.follow = nn.Parameter(torch.zeros(tags, tags))

    def _scores(self) -> tuple[torch.Tensor, torch.Tensor]:
        illegal = float("-inf")
        return self.start.masked_fill(~self.legal_start, illegal), self.follow.masked_fill(~self.legal_follow, illegal)

    def loss(
        self, emissions_ST: torch.Tensor, tags_S: torch.Tensor, target_document_S: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(Sum over documents of -log p(tags), number of documents); one with an unlabelled (-1) unit is left out."""
        if not len(tags_S):
            return emissions_ST.sum() * 0.0, emissions_ST.new_zeros(())
        emissions_ST = emissions_ST.float()
        documents, of_S = torch.unique_consecutive(target_document_S, return_inverse=True)
        unknown_D = torch.zeros(len(documents), device=of_S.device).index_add(0, of_S, (tags_S < 0).float()) > 0
        keep_S = ~unknown_D[of_S]
        emissions_ST, tags_S, of_S = emissions_ST[keep_S], tags_S[keep_S], of_S[keep_S]
        total = self._log_partition(emissions_ST, _Order.of(of_S)).sum() - self._gold(emissions_ST, tags_S, of_S)
        return total, (~unknown_D).sum().float()

    def _gold(self, emissions_ST: torch.Tensor, tags_S: torch.Tensor, of_S: torch.Tensor) -> torch.Tensor:
        """The summed score of the given tags of all documents."""
        start, follow = self._scores()
        seam = of_S[1:] != of_S[:-1]
        edge = torch.ones(min(1, len(of_S)), dtype=torch.bool, device=of_S.device)
        first_S, last_S = torch.cat([edge, seam]), torch.cat([seam, edge])
        return (
            emissions_ST.gather(1, tags_S[:, None]).sum()
            + start[tags_S[first_S]].sum()
            + follow[tags_S[:-1][~seam], tags_S[1:][~seam]].sum()
            + self.end[tags_S[last_S]].sum()
        )

    def _log_partition(self, emissions_ST: torch.Tensor, order: _Order) -> torch.Tensor:
        """(D): the log of the summed exp scores of all legal tag sequences, longest document first."""
        start, follow = self._scores()
        alpha_DT = start + emissions_ST[order.first_D]
        for running, rows in zip(order.running[1:], list(order.rows())[1:], strict=True):
            stepped = torch.logsumexp(alpha_DT[:running, :, None] + follow, dim=1) + emissions_ST[rows]
            alpha_DT = torch.cat([stepped, alpha_DT[running:]])
        return torch.logsumexp(alpha_DT + self.end, dim=1)

    @torch.no_grad()
    def decide(self, emissions_ST: torch.Tensor, target_document_S: torch.Tensor) -> torch.Tensor:
        """int64 (S): each document's best legal tag sequence (Viterbi)."""
        order = _Order.of(target_document_S)
        rows = list(order.rows())
        start, follow = self._scores()
        best_DT = start + emissions_ST.float()[order.first_D]
        came_from: list[torch.Tensor] = []
        for running, targets in zip(order.running[1:], rows[1:], strict=True):
            stepped, source = (best_DT[:running, :, None] + follow).max(dim=1)
            came_from.append(source)
            best_DT = torch.cat([stepped + emissions_ST.float()[targets], best_DT[running:]])
        tags_S = torch.zeros(len(emissions_ST), dtype=torch.int64, device=emissions_ST.device)
        tag_D = (best_DT + self.end).argmax(1)
        tags_S[order.last_D] = tag_D
        for targets, source in zip(reversed(rows[1:]), reversed(came_from), strict=True):
            tags_S[targets - 1] = source.gather(1, tags_S[targets][:, None]).squeeze(1)
        return tags_S

    def marginals(self, emissions_ST: torch.Tensor, target_document_S: torch.Tensor) -> torch.Tensor:
        """float32 (S, T): the probability of each tag at each unit.

        The gradient of the log partition function by the emissions is exactly that (forward-backward is its autograd).
        """
        with torch.inference_mode(False), torch.enable_grad():
            emissions_ST = emissions_ST.detach().float().clone().requires_grad_()
            total = self._log_partition(emissions_ST, _Order.of(target_document_S.clone())).sum()
            return torch.autograd.grad(total, emissions_ST)[0]
