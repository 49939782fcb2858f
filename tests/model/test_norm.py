"""The frozen norm against the stock modules whose place it takes."""

import pytest
import torch
from torch import nn

from labeltune.model.backbone import wrap
from labeltune.model.norm import FrozenRMSNorm, freeze_norms

FAMILIES = {"llama": 9, "gemma2": 17, "qwen3": 17, "olmo3": 17, "phi3": 9}  # norms of four layers and the last one


@pytest.mark.parametrize("family", FAMILIES)
def test_values_and_gradients_are_the_stock_norms(family, tiny_model, documents, alone, apart) -> None:
    docs, stock, backbone = documents((5, 3, 6)), tiny_model(family), wrap(tiny_model(family))
    assert sum(isinstance(m, FrozenRMSNorm) for m in backbone.modules()) == FAMILIES[family]
    ours, theirs = (dict(model.named_modules()) for model in (backbone.model, stock))
    for name, norm in ours.items():
        if isinstance(norm, FrozenRMSNorm):
            x = torch.randn(2, 3, len(norm.weight), generator=torch.Generator().manual_seed(1))
            one, other = x.clone().requires_grad_(), x.clone().requires_grad_()
            a, b = norm(one), theirs[name](other)
            assert apart(a, b) < 1e-6 and apart(norm(x), b) < 1e-6
            a.sin().sum().backward()
            b.sin().sum().backward()
            assert apart(one.grad, other.grad) < 1e-5
    layout = docs.layout([(False,) * backbone.layers])
    out = backbone.hidden(docs.batch(), layout, [backbone.layers])[0]
    assert apart(out, alone(stock, docs, (False,) * backbone.layers)) < 1e-5


def test_gradients_hold_against_finite_differences() -> None:
    norm = FrozenRMSNorm(nn.Parameter(torch.tensor([0.5, -1.0, 2.0]), requires_grad=False), 1.0, 1e-3)
    x, direction = torch.tensor([[0.3, -0.7, 1.1]], requires_grad=True), torch.tensor([[0.2, 1.0, -0.4]])
    norm(x).square().sum().backward()
    with torch.no_grad():
        high, low = (norm(x + step * direction).square().sum() for step in (1e-2, -1e-2))
    assert float((high - low) / 2e-2) == pytest.approx(float((x.grad * direction).sum()), rel=1e-2)


def test_names_and_weights_stay_those_of_the_stock_model(tiny_model) -> None:
    stock = tiny_model("gemma2")
    weights = dict(stock.state_dict())
    backbone = wrap(stock)
    assert backbone.model.state_dict().keys() == weights.keys()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in backbone.model.state_dict().items())


def test_a_norm_that_is_trained_or_gives_other_values_stays(tiny_model) -> None:
    class OddRMSNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.eps = nn.Parameter(torch.ones(4)), 1e-6

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 2 * self.eps) * self.weight

    model = nn.Sequential(OddRMSNorm(), nn.LayerNorm(4))
    freeze_norms(model)
    assert [type(m) for m in model] == [OddRMSNorm, nn.LayerNorm]
    trained = wrap(tiny_model("llama"), trainable=True)
    assert not any(isinstance(m, FrozenRMSNorm) for m in trained.modules())


def test_sixteen_bits_differ_by_rounding_alone(tiny_model) -> None:
    ours, exact, stock = (
        wrap(tiny_model("llama", dtype=torch.bfloat16)).model.norm,
        *[tiny_model("llama", dtype=dtype).norm for dtype in (torch.float32, torch.bfloat16)],
    )
    x = torch.randn(64, 32, generator=torch.Generator().manual_seed(2)).bfloat16()
    exact.weight.data.copy_(ours.weight)
    error, theirs = ((norm(x).float() - exact(x.float())).abs().mean() for norm in (ours, stock))
    assert ours(x).dtype == torch.bfloat16 and error <= theirs
