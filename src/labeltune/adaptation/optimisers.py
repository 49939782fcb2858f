"""AdamW for everything, or Muon for the matrices of the blocks and AdamW for the rest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

ADAM_BETAS = (0.9, 0.95)


@dataclass(frozen=True)
class Weights:
    """What is trained: the matrices inside the blocks (or an adapter's), and embeddings, norms, biases and the head."""

    matrices: tuple[nn.Parameter, ...]
    others: tuple[nn.Parameter, ...]


@dataclass(frozen=True)
class Rates:
    """The peak learning rates of AdamW and of Muon, and the decoupled weight decay of the matrices."""

    lr: float
    matrix_lr: float
    weight_decay: float


class Muon(torch.optim.Optimizer):
    """Momentum orthogonalised by Newton-Schulz iterations (Jordan et al. 2024), in the parameters' own precision.

    torch.optim.Muon iterates in bfloat16, which a CPU without bf16 units emulates about thirty times slower. Equal
    shapes are stacked, so that a model's matrices take a handful of batched products. The update is scaled to AdamW's
    usual root mean square (0.2), as in torch's `adjust_lr_fn="match_rms_adamw"`. Of a stack of matrices (experts)
    each is updated by itself.
    """

    def __init__(
        self, matrices: Sequence[nn.Parameter], lr: float, *, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        shapes: dict[torch.Size, list[nn.Parameter]] = {}
        for matrix in matrices:
            shapes.setdefault(matrix.shape, []).append(matrix)
        groups = [{"params": same} for same in shapes.values()]
        super().__init__(groups, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # nobody evaluates the loss again
        """One update of every matrix that has a gradient."""
        for group in self.param_groups:
            matrices = [matrix for matrix in group["params"] if matrix.grad is not None]
            if not matrices:
                continue
            steps = torch.stack([self._nesterov(matrix, group["momentum"]) for matrix in matrices])
            updates = orthogonal(steps.flatten(0, -3)).view_as(steps)
            scale = group["lr"] * 0.2 * max(steps.shape[-2:]) ** 0.5
            for matrix, update in zip(matrices, updates, strict=True):
                matrix.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-scale)

    def _nesterov(self, matrix: nn.Parameter, momentum: float) -> torch.Tensor:
        gradient = matrix.grad
        assert gradient is not None
        buffer: torch.Tensor = self.state[matrix].setdefault("momentum", torch.zeros_like(matrix))
        buffer.lerp_(gradient, 1 - momentum)
        return gradient.lerp(buffer, momentum)


def orthogonal(x: torch.Tensor) -> torch.Tensor:
    """The nearest semi-orthogonal matrices, roughly: five quintic Newton-Schulz iterations over a stack (M, a, b)."""
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.775 * gram + 2.0315 * gram @ gram) @ x
    return x.mT if tall else x


def adamw(weights: Weights, rates: Rates) -> list[torch.optim.Optimizer]:
    """AdamW with weight decay on the matrices."""
    groups = [
        {"params": list(parameters), "lr": rates.lr, "weight_decay": decay}
        for parameters, decay in ((weights.matrices, rates.weight_decay), (weights.others, 0.0))
        if parameters
    ]
    return [_with_peak(torch.optim.AdamW(groups, betas=ADAM_BETAS, foreach=True))]


def muon(weights: Weights, rates: Rates) -> list[torch.optim.Optimizer]:
    """Muon for the matrices, AdamW without weight decay for the rest."""
    matrices = Muon(weights.matrices, rates.matrix_lr, weight_decay=rates.weight_decay)
    rest = adamw(Weights((), weights.others), rates) if weights.others else []
    return [_with_peak(matrices), *rest]


def _with_peak(optimiser: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Note each group's peak rate, which the schedule multiplies."""
    for group in optimiser.param_groups:
        group["peak"] = group["lr"]
    return optimiser


OPTIMISERS: dict[str, Callable[[Weights, Rates], list[torch.optim.Optimizer]]] = {"adamw": adamw, "muon": muon}
