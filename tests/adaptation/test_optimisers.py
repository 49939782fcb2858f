"""Muon and AdamW against torch's own."""

import torch
from torch import nn

from labeltune.adaptation.optimisers import OPTIMISERS, Muon, Rates, Weights, orthogonal


def matrices(*shapes: tuple[int, int]) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def walk(optimiser: torch.optim.Optimizer, parameters: list[nn.Parameter], steps: int = 3) -> list[torch.Tensor]:
    for step in range(steps):
        for parameter in parameters:
            parameter.grad = torch.cos(parameter.detach() * (step + 1))
        optimiser.step()
    return [parameter.detach() for parameter in parameters]


def test_orthogonal_keeps_the_directions_and_evens_the_sizes():
    for shape in ((16, 16), (8, 24), (24, 8)):
        (matrix,) = matrices(shape)
        u, _, v = torch.linalg.svd(matrix.detach(), full_matrices=False)
        inside = u.mT @ orthogonal(matrix.detach()[None])[0] @ v.mT
        sizes = inside.diagonal()
        assert (inside - torch.diag(sizes)).abs().max() < 1e-4
        assert sizes.min() > 0.5 and sizes.max() < 1.5


def test_muon_goes_where_torch_muon_goes_but_for_bfloat16():
    shapes = ((8, 24), (16, 16), (8, 24))
    ours, theirs, start = matrices(*shapes), matrices(*shapes), matrices(*shapes)
    words = dict(lr=0.1, momentum=0.95, weight_decay=0.1)
    got = walk(Muon(ours, **words), ours)
    want = walk(torch.optim.Muon(theirs, nesterov=True, adjust_lr_fn="match_rms_adamw", **words), theirs)
    for mine, its, before in zip(got, want, start, strict=True):
        assert (mine - its).norm() / (its - before).norm() < 0.03


def test_each_matrix_of_a_stack_goes_as_it_would_alone():
    alone, (stack,) = matrices((3, 5), (3, 5)), matrices((2, 3, 5))
    with torch.no_grad():
        for matrix, part in zip(alone, stack, strict=True):
            matrix.copy_(part)
    (got,) = walk(Muon([stack], lr=0.1, weight_decay=0.1), [stack])
    want = walk(Muon(alone, lr=0.1, weight_decay=0.1), alone)
    torch.testing.assert_close(got, torch.stack(want))


def test_adamw_is_torchs_with_weight_decay_on_matrices_alone():
    ours, theirs = matrices((4, 4), (4, 1)), matrices((4, 4), (4, 1))
    weights = Weights((ours[0],), (ours[1],))
    (optimiser,) = OPTIMISERS["adamw"](weights, Rates(lr=0.1, matrix_lr=0.2, weight_decay=0.3))
    groups = [{"params": [theirs[0]], "weight_decay": 0.3}, {"params": [theirs[1]], "weight_decay": 0.0}]
    want = walk(torch.optim.AdamW(groups, lr=0.1, betas=(0.9, 0.95)), theirs)
    assert all(torch.equal(a, b) for a, b in zip(walk(optimiser, ours), want, strict=True))


def test_muon_leaves_what_has_no_gradient():
    (matrix,) = matrices((4, 4))
    before = matrix.detach().clone()
    Muon([matrix], 0.1, weight_decay=0.1).step()
    assert torch.equal(matrix, before)
