"""The optimiser against transformers' schedules and torch's own clip."""

import pytest
import torch
from torch import nn
from transformers import (
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
    get_linear_schedule_with_warmup,
)

from labeltune.training.checkpoint import moments_of, restore_moments
from labeltune.training.optimiser import SCHEDULES, adamw, lr_factor, scale_and_clip, warmup_steps
from labeltune.training.settings import SCHEDULE_NAMES, TrainConfig

STOCK = {
    "linear": get_linear_schedule_with_warmup,
    "cosine": get_cosine_schedule_with_warmup,
    "constant": lambda optimiser, warm, total: get_constant_schedule_with_warmup(optimiser, warm),
}


@pytest.mark.parametrize("name", SCHEDULE_NAMES)
@pytest.mark.parametrize("warmup", [0.0, 0.06, 0.5, 7])
def test_schedules_equal_those_of_transformers(name: str, warmup: float) -> None:
    total = 40
    config = TrainConfig(lr=1.0, schedule=name, warmup=warmup)
    optimiser = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    stock = STOCK[name](optimiser, warmup_steps(warmup, total), total)
    for step in range(total):
        assert lr_factor(step, total, config) == pytest.approx(stock.get_last_lr()[0], abs=1e-12)
        optimiser.step()
        stock.step()


@pytest.mark.parametrize("name", SCHEDULE_NAMES)
def test_a_warm_up_leaves_the_last_step_its_peak(name: str) -> None:
    config = TrainConfig(lr=1.0, schedule=name, warmup=100)
    assert lr_factor(0, 1, config) == 1
    assert [lr_factor(step, 5, config) for step in range(5)] == [0, 0.25, 0.5, 0.75, 1]


def test_every_schedule_of_the_settings_exists() -> None:
    assert tuple(SCHEDULES) == SCHEDULE_NAMES


def test_clip_equals_torchs_on_the_mean_gradient() -> None:
    ours, stock = nn.Parameter(torch.zeros(5, 3)), nn.Parameter(torch.zeros(5, 3))
    summed = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)) * 10
    ours.grad, stock.grad = summed.clone(), summed / 4
    norm = scale_and_clip([ours], 4.0, 1.0)
    expected = torch.nn.utils.clip_grad_norm_([stock], 1.0)
    assert norm == pytest.approx(float(expected), rel=1e-6)
    torch.testing.assert_close(ours.grad, stock.grad)


def test_the_head_has_its_own_rate_and_vectors_no_decay() -> None:
    matrix, vector, head = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3, 2))
    groups = adamw([head], [matrix, vector], TrainConfig(lr=1e-4, head_lr=1e-3, weight_decay=0.1)).param_groups
    found = {id(p): (g["peak"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert found == {id(matrix): (1e-4, 0.1), id(vector): (1e-4, 0.0), id(head): (1e-3, 0.1)}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_short_weights_are_stepped_in_fp32_and_their_copies_go_on(dtype: torch.dtype) -> None:
    config = TrainConfig(lr=2e-5, weight_decay=0.1)
    start = torch.linspace(-1, 1, 15).view(5, 3).to(dtype)
    gradients = torch.randn(30, 5, 3, generator=torch.Generator().manual_seed(1)).to(dtype)
    short, whole = nn.Parameter(start.clone()), nn.Parameter(start.float())
    ours, stock = adamw([], [short], config), adamw([], [whole], config)
    for step, gradient in enumerate(gradients):
        short.grad, whole.grad = gradient.clone(), gradient.float()
        ours.step()
        stock.step()
        if step == 10:  # as a training that goes on elsewhere
            state, other = moments_of(ours), nn.Parameter(short.detach().clone())
            ours, short = adamw([], [other], config), other
            restore_moments(ours, state)
    assert torch.equal(short, whole.to(dtype))
    assert not torch.equal(short, start)
