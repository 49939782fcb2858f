"""The one kernel of addressed dropout against the same arithmetic step by step."""

import logging

import pytest
import torch

from labeltune.keys import Key, hashes_of, keep_mask, numbers_of
from labeltune.model import dropout
from labeltune.model.dropout import _Drop
from labeltune.model.fused import Fused, close

KEY, RATE = Key.of(3), 0.3
ROW, INDEX = torch.arange(12) // 5 + 7, torch.arange(12) % 5


def facts() -> list[torch.Tensor]:
    numbers, limits = torch.tensor(numbers_of([KEY], [RATE])).expand(2, 12)
    return [hashes_of(numbers, ROW, INDEX), limits]


def drawn(x: torch.Tensor) -> torch.Tensor:
    return torch.where(keep_mask(KEY, ROW, INDEX, x.shape[1], RATE), x, 0.0)


def test_values_and_gradients_are_those_of_the_mask() -> None:
    x = torch.randn(12, 33, generator=torch.Generator().manual_seed(0))
    one, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dropout, "fused", dropout._drop)
        a, b = _Drop.apply(one, *facts()), drawn(other)
        a.sin().sum().backward()
    b.sin().sum().backward()
    assert torch.equal(a, b) and torch.equal(one.grad, other.grad)


@pytest.mark.slow  # compiles
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the compiler's own imports
def test_the_compiled_kernel_draws_the_same_bits(caplog: pytest.LogCaptureFixture) -> None:
    fused = Fused(dropout._drop, "dropout")
    for features in (33, 64, 5):
        x = torch.randn(12, features)
        assert torch.equal(fused(x, *facts()), drawn(x))
    assert fused._kernel is not fused.plain
    hashed = Fused(hashes_of, "addresses")
    many = torch.randint(-(2**62), 2**62, (3, 12))
    assert torch.equal(hashed(many, ROW, INDEX), hashes_of(many, ROW, INDEX))
    assert not [record for record in caplog.records if record.name.startswith("labeltune")]


def test_where_nothing_compiles_it_goes_on_step_by_step_and_says_so(monkeypatch, caplog) -> None:
    def broken(plain: object, dynamic: bool) -> object:
        def kernel(*_: object) -> torch.Tensor:
            raise RuntimeError("no compiler\nand a long story")

        return kernel

    monkeypatch.setattr(torch, "compile", broken)
    fused, x = Fused(dropout._drop, "dropout"), torch.randn(12, 8)
    with caplog.at_level(logging.WARNING):
        assert torch.equal(fused(x, *facts()), drawn(x)) and torch.equal(fused(x, *facts()), drawn(x))
    assert [record.getMessage() for record in caplog.records if record.name.startswith("labeltune")] == [
        "no fused dropout, training is slower: torch.compile failed (no compiler)"
    ]


def test_a_kernel_that_draws_otherwise_is_not_used(monkeypatch, caplog) -> None:
    monkeypatch.setattr(torch, "compile", lambda plain, dynamic: lambda x, *_: x)
    x = torch.randn(12, 8)
    assert torch.equal(Fused(dropout._drop, "dropout")(x, *facts()), drawn(x))
    assert "gives other values" in caplog.text


def test_what_counts_as_close() -> None:
    x = torch.randn(64).bfloat16()
    assert close(x, x) and close(x * (1 + 2**-8), x)
    assert not close(x * 1.1, x) and not close(torch.full_like(x, torch.nan), x)
