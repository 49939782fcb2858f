"""The head: fp32, initialised as stock transformers does, dropout by address, saved and loaded exactly."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from labeltune.errors import RunError
from labeltune.keys import Key
from labeltune.model.crf import CRF
from labeltune.model.heads import Head, load_tensors, save_tensors

KEY = Key.of(5)


def head(labels: int = 3, features: int = 8, *, bias: bool = True, dropout: float = 0.0, **words: object) -> Head:
    return Head(features, labels, bias=bias, dropout=dropout, key=KEY, **words)


def vectors(rows: int, features: int = 8) -> Tensor:
    return torch.randn(rows, features, generator=torch.Generator().manual_seed(0))


def address(rows: int) -> tuple[Tensor, Tensor]:
    return torch.arange(rows), torch.arange(rows) * 7


def test_logits_are_one_linear_layer_in_fp32() -> None:
    one, x = head(), vectors(4)
    assert torch.equal(one(x, KEY, *address(4)), F.linear(x, one.weight, one.bias))
    rough = one(x.bfloat16(), None, *address(4))
    assert rough.dtype == torch.float32
    assert torch.equal(rough, F.linear(x.bfloat16().float(), one.weight, one.bias))


def test_fresh_weights_are_normal_and_small() -> None:
    one = head(100, 400)
    assert float(one.weight.detach().std()) == pytest.approx(0.02, rel=0.02)
    assert abs(float(one.weight.detach().mean())) < 5 * 0.02 / 200
    assert not one.bias.any() and head(bias=False).bias is None


def test_dropout_belongs_to_the_address() -> None:
    one, x, (row, index) = head(dropout=0.5), vectors(40), address(40)
    out = one(x, KEY, row, index)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(one(x[order], KEY, row[order], index[order]), out[order])
    assert not torch.allclose(one(x, KEY.fold(1), row, index), out)
    assert not torch.allclose(one(x, KEY, row + 40, index), out)
    assert torch.equal(one(x, None, row, index), F.linear(x, one.weight, one.bias))


def test_dropout_keeps_the_expectation() -> None:
    one, x = head(1, 64, dropout=0.3), torch.ones(20_000, 64)
    outs = one(x, KEY, *address(20_000)).detach()
    expected = float(one.weight.detach().sum())
    assert abs(float(outs.mean()) - expected) < 5 * float(outs.std()) / 20_000**0.5


def test_a_shared_head_differs_between_logits_by_biases_alone() -> None:
    one, x = head(3, shared=True), vectors(4)
    one.bias.data = torch.tensor([0.0, 1.0, 3.0])
    out = one(x, None, *address(4)).detach()
    assert one.weight.shape == (1, 8)
    torch.testing.assert_close(out - out[:, :1], torch.tensor([[0.0, 1.0, 3.0]]).expand(4, 3))


def test_a_fresh_shared_head_finds_every_label_between_its_thresholds_equally_likely() -> None:
    above = torch.sigmoid(head(4, shared=True)(torch.zeros(1, 8), None, *address(1)).detach())
    between = -torch.diff(above, prepend=torch.ones(1, 1), append=torch.zeros(1, 1))
    torch.testing.assert_close(between, torch.full((1, 5), 0.2))


def test_save_and_load_are_exact(tmp_path: Path) -> None:
    one, other = head(5, crf=CRF(5)), Head(8, 5, bias=True, dropout=0.0, key=KEY.fold(1), crf=CRF(5))
    for parameter in one.parameters():
        parameter.data.normal_(generator=torch.Generator().manual_seed(2))
    save_tensors(tmp_path / "head.safetensors", one)
    load_tensors(tmp_path / "head.safetensors", other)
    assert {n: p.tolist() for n, p in one.named_parameters()} == {n: p.tolist() for n, p in other.named_parameters()}
    assert {"crf.start", "crf.end", "crf.follow"} < dict(other.named_parameters()).keys()


def test_what_is_missing_left_over_damaged_or_of_another_shape_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "head.safetensors"
    with pytest.raises(RunError, match="missing"):
        load_tensors(path, head())
    save_tensors(path, head())
    tensors = load_file(path)
    bad = [
        {"weight": tensors["weight"]},
        {**tensors, "more": torch.zeros(1)},
        {**tensors, "bias": torch.zeros(4)},
        {**tensors, "weight": tensors["weight"].bfloat16()},
    ]
    for damaged in bad:
        save_file(damaged, path)
        one = head()
        before = one.weight.clone()
        with pytest.raises(RunError, match=r"head\.safetensors"):
            load_tensors(path, one)
        assert torch.equal(one.weight, before)
    path.write_bytes(b"no tensors")
    with pytest.raises(RunError, match="damaged"):
        load_tensors(path, head())
