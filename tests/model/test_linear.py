"""oneDNN in place of MKL: the values and gradients of torch's own layers, and nothing replaced where they differ."""

import pytest
import torch
from torch import nn

from labeltune.errors import SettingsError
from labeltune.model import linear
from labeltune.model.backbone import load
from labeltune.model.layout import plain_layout
from labeltune.model.linear import ROWS, FrozenLinear, freeze_linears, onednn_pays
from labeltune.model.settings import ModelConfig
from labeltune.settings import build

onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")


def layer(k: int = 256, n: int = 384, *, bias: bool = True) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(k, n, bias=bias).requires_grad_(False)


@onednn
@pytest.mark.parametrize("shape", [(ROWS,), (ROWS + 1,), (2, 70), (1, 333)])
@pytest.mark.parametrize("bias", [True, False])
def test_values_and_gradients_are_those_of_torch(shape, bias) -> None:
    stock = layer(bias=bias)
    model = nn.Sequential(layer(bias=bias))
    assert freeze_linears(model) and isinstance(model[0], FrozenLinear)
    x = torch.randn(*shape, 256)
    got, expected = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, z = model(got), stock(expected)
    torch.testing.assert_close(y, z, rtol=1e-5, atol=1e-5)
    weights = torch.randn(384, *shape).movedim(0, -1)  # a gradient that does not lie in rows
    (y * weights).sum().backward()
    (z * weights).sum().backward()
    torch.testing.assert_close(got.grad, expected.grad, rtol=1e-5, atol=1e-4)
    with torch.inference_mode():
        assert torch.equal(model(x), y)


@onednn
def test_few_rows_and_other_dtypes_are_torch_s(monkeypatch) -> None:
    model, stock = nn.Sequential(layer()), layer()
    freeze_linears(model)
    monkeypatch.setattr(linear, "_product", lambda *_: pytest.fail("this is torch's to compute"))
    few = torch.randn(ROWS - 1, 256)
    assert torch.equal(model(few), stock(few))
    many = torch.randn(2 * ROWS, 256, dtype=torch.bfloat16)
    assert torch.equal(model.bfloat16()(many), stock.bfloat16()(many))


@onednn
def test_only_large_frozen_plain_layers_are_replaced_and_keep_their_weights() -> None:
    class Other(nn.Linear):
        pass

    model = nn.ModuleDict({
        "large": layer(),
        "small": layer(64, 64),
        "trained": nn.Linear(256, 384),
        "sixteen": layer().bfloat16(),
        "other": Other(256, 384).requires_grad_(False),
    })  # fmt: skip
    before = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
    assert freeze_linears(model)
    assert [name for name, module in model.items() if isinstance(module, FrozenLinear)] == ["large"]
    assert {name: tensor.data_ptr() for name, tensor in model.state_dict().items()} == before


@pytest.mark.parametrize("wrong", [lambda *_: torch.zeros(ROWS + 1, 384), lambda *_: torch.ops.mkldnn.no_such_thing()])
def test_a_onednn_that_does_not_agree_changes_nothing(monkeypatch, wrong) -> None:
    model = nn.Sequential(layer())
    monkeypatch.setattr(linear, "_product", wrong)
    assert not freeze_linears(model) and type(model[0]) is nn.Linear


@onednn
def test_a_backbone_computes_the_same_and_says_which() -> None:
    stock, ours = (load(ModelConfig(name="mini", matmul=name), device="cpu") for name in ("stock", "onednn"))
    assert ours.onednn and not stock.onednn
    assert not any(isinstance(module, FrozenLinear) for module in stock.model.modules())
    ids, positions = torch.randint(5, 6000, (200,)), torch.cat([torch.arange(150), torch.arange(50)])
    layout = plain_layout((150, 50), (False,) * 8, torch.device("cpu"))
    states, gradients = [], []
    for backbone in (stock, ours):
        weight = backbone.model.get_input_embeddings().weight.requires_grad_()
        states.append(backbone(ids, positions, layout))
        gradients.append(torch.autograd.grad(states[-1].square().sum(), weight)[0])
    torch.testing.assert_close(*states, rtol=1e-4, atol=1e-4)
    assert (gradients[0] - gradients[1]).abs().max() <= 1e-4 * gradients[0].abs().max()


@pytest.mark.parametrize(
    ("maker", "capability", "pays"),
    [
        ("vendor_id : AuthenticAMD", "AVX512", True),
        ("vendor_id : AuthenticAMD", "AVX2", False),
        ("vendor_id : GenuineIntel", "AVX512", False),
    ],
)
def test_the_rule_looks_at_the_processor(monkeypatch, maker, capability, pays) -> None:
    monkeypatch.setattr(linear, "_maker", lambda: maker)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    assert onednn_pays() is pays


def test_an_unknown_way_to_multiply_is_refused() -> None:
    with pytest.raises(SettingsError, match="matmul"):
        build(ModelConfig, {"matmul": "cublas"}, at="model")
