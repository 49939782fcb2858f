"""A state comes back to the bit, and a damaged one says so."""

from pathlib import Path

import pytest
import torch
from torch import nn

from labeltune.errors import RunError
from labeltune.training.checkpoint import State, load_state, moments_of, restore_moments, save_state


def test_a_state_comes_back_to_the_bit(tmp_path: Path) -> None:
    now = {"head.weight": torch.randn(3, 4), "adapter.a/b": torch.randn(2)}
    save_state(tmp_path / "c", State(now, {"head.weight": torch.ones(1)}, {"0.step": torch.tensor(3.0)}, {"step": 7}))
    state = load_state(tmp_path / "c")
    assert state.facts == {"step": 7}
    assert all(torch.equal(state.now[name], tensor) for name, tensor in now.items())
    assert set(state.best) == {"head.weight"} and set(state.moments) == {"0.step"}


def test_adamw_goes_on_with_the_same_bits(tmp_path: Path) -> None:
    def fresh() -> tuple[nn.Parameter, torch.optim.AdamW]:
        parameter = nn.Parameter(torch.linspace(-1, 1, 6))
        return parameter, torch.optim.AdamW([parameter], lr=0.1)

    def walk(parameter: nn.Parameter, optimiser: torch.optim.AdamW, steps: range) -> None:
        for step in steps:
            parameter.grad = torch.cos(parameter.detach() * (step + 1))
            optimiser.step()

    whole, optimiser = fresh()
    walk(whole, optimiser, range(6))
    first, before = fresh()
    walk(first, before, range(3))
    save_state(tmp_path / "c", State({"p": first}, {}, moments_of(before), {}))
    state = load_state(tmp_path / "c")
    second, after = fresh()
    with torch.no_grad():
        second.copy_(state.now["p"])
    restore_moments(after, state.moments)
    walk(second, after, range(3, 6))
    assert torch.equal(whole, second)


@pytest.mark.parametrize("damage", [b"", b"no safetensors at all"])
def test_a_damaged_checkpoint_is_an_error_with_an_address(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "c").write_bytes(damage)
    with pytest.raises(RunError, match="cannot be read"):
        load_state(tmp_path / "c")
