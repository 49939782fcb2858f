"""Each loss gives (sum over targets of weight x loss, sum of weights): the mean of a step is one division at its end.

A step's targets may come in any number of micro-batches: add up both numbers, divide once. A target without a label
(-1, or NaN) adds nothing to either. Keyword arguments are named as the settings of the `head` section.

Shapes: S targets, L logits (labels, tags, or thresholds).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional

UNLABELLED = -1
Sums = tuple[torch.Tensor, torch.Tensor]


def cross_entropy(
    logits_SL: torch.Tensor,
    labels_S: torch.Tensor,
    *,
    class_weights: torch.Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Sums:
    """Softmax cross-entropy; a target weighs as much as its label."""
    total = functional.cross_entropy(
        logits_SL.float(),
        labels_S,
        weight=class_weights,
        ignore_index=UNLABELLED,
        reduction="sum",
        label_smoothing=label_smoothing,
    )
    return total, _weights(labels_S, class_weights).sum()


def focal(
    logits_SL: torch.Tensor,
    labels_S: torch.Tensor,
    *,
    class_weights: torch.Tensor | None = None,
    focal_gamma: float = 2.0,
) -> Sums:
    """(1 - p)^gamma x cross-entropy (Lin et al. 2017): targets that are already right count less."""
    surprise_S = functional.cross_entropy(logits_SL.float(), labels_S, ignore_index=UNLABELLED, reduction="none")
    weights_S = _weights(labels_S, class_weights)
    return (weights_S * _dampen(surprise_S, focal_gamma)).sum(), weights_S.sum()


def bce(
    logits_SL: torch.Tensor,
    labels_SL: torch.Tensor,
    *,
    class_weights: torch.Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Sums:
    """Binary cross-entropy of each label, averaged over a target's labels; every target weighs 1.

    A label's class weight multiplies the loss of its positives (torch's `pos_weight`).
    """
    return _mean_over_labels(_binary(logits_SL, labels_SL, class_weights, label_smoothing), labels_SL)


def binary_focal(
    logits_SL: torch.Tensor,
    labels_SL: torch.Tensor,
    *,
    class_weights: torch.Tensor | None = None,
    focal_gamma: float = 2.0,
) -> Sums:
    """The focal loss of each label as a yes-or-no question, averaged over a target's labels."""
    surprise_SL = _dampen(_binary(logits_SL, labels_SL, None, 0.0), focal_gamma)
    if class_weights is not None:
        surprise_SL = surprise_SL * torch.where(labels_SL == 1, class_weights, 1.0)
    return _mean_over_labels(surprise_SL, labels_SL)


def mse(logits_S1: torch.Tensor, labels_S: torch.Tensor) -> Sums:
    """Squared error of the single logit."""
    known_S = ~labels_S.isnan()
    error_S = torch.where(known_S, logits_S1.float().squeeze(-1) - labels_S.nan_to_num(), 0.0)
    return error_S.square().sum(), known_S.sum().float()


def coral(logits_SL: torch.Tensor, labels_S: torch.Tensor, *, class_weights: torch.Tensor | None = None) -> Sums:
    """CORAL (Cao et al. 2020): threshold k asks whether the rank exceeds k; a target sums its thresholds."""
    above_SL = (labels_S[:, None] > torch.arange(logits_SL.shape[1], device=labels_S.device)).float()
    loss_S = functional.binary_cross_entropy_with_logits(logits_SL.float(), above_SL, reduction="none").sum(1)
    weights_S = _weights(labels_S, class_weights)
    return (weights_S * loss_S).sum(), weights_S.sum()


LOSSES: dict[str, Callable[..., Sums]] = {
    "cross_entropy": cross_entropy,
    "focal": focal,
    "bce": bce,
    "binary_focal": binary_focal,
    "mse": mse,
    "coral": coral,
}


def _weights(labels_S: torch.Tensor, class_weights: torch.Tensor | None) -> torch.Tensor:
    known_S = labels_S != UNLABELLED
    if class_weights is None:
        return known_S.float()
    return torch.where(known_S, class_weights[labels_S.clamp(min=0)], 0.0)


def _dampen(surprise: torch.Tensor, gamma: float) -> torch.Tensor:
    # -expm1(-x) is 1 - p without cancellation; its floor keeps the gradient of x**gamma finite at p = 1.
    return (-torch.expm1(-surprise)).clamp(min=1e-12).pow(gamma) * surprise


def _binary(
    logits_SL: torch.Tensor, labels_SL: torch.Tensor, weights: torch.Tensor | None, smoothing: float
) -> torch.Tensor:
    wanted_SL = labels_SL.nan_to_num() * (1 - smoothing) + smoothing / 2
    return functional.binary_cross_entropy_with_logits(
        logits_SL.float(), wanted_SL, reduction="none", pos_weight=weights
    )


def _mean_over_labels(loss_SL: torch.Tensor, labels_SL: torch.Tensor) -> Sums:
    known_S = ~labels_SL.isnan().any(1)
    return torch.where(known_S, loss_SL.mean(1), 0.0).sum(), known_S.sum().float()
