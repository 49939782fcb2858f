"""Each document's attention as one node of autograd: the public function's values and gradients, to the bit."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.checkpoint import checkpoint

from labeltune.model import documents
from labeltune.model.documents import Three, agrees, attend_each, attend_publicly, can_attend
from labeltune.model.runs import Run

RUNS = st.lists(st.builds(Run, st.integers(1, 3), st.integers(1, 9), st.booleans()), min_size=1, max_size=5)


def streams(runs: list[Run], heads: int, groups: int, size: int) -> Three:
    """Queries, keys and values as a model gives them: transposed views, asking for gradients."""
    tokens = sum(run.documents * run.length for run in runs)
    noise = torch.Generator().manual_seed(tokens)
    counts = (heads, heads // groups, heads // groups)
    drawn = (torch.randn(1, tokens, n, size, generator=noise).transpose(1, 2).requires_grad_() for n in counts)
    return tuple(drawn)


@given(RUNS, st.sampled_from([(4, 1), (4, 2), (2, 2)]), st.sampled_from([4, 16, 24]))
def test_values_and_gradients_are_those_of_the_public_function(runs, heads, size) -> None:
    tensors = streams(runs, *heads, size)
    found = []
    for attend in (attend_each, attend_publicly):
        out = attend(tensors, runs, 0.3)
        weights = torch.linspace(-1, 1, out.numel()).view(out.shape)
        found.append((out.detach(), *torch.autograd.grad((out * weights).sum(), tensors)))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    with torch.no_grad():
        torch.testing.assert_close(attend_each(tensors, runs, 0.3), found[0][0], rtol=0, atol=0)


def test_what_the_kernel_cannot_take_is_left_to_the_public_function() -> None:
    query, key, value = streams([Run(1, 4, False)], 4, 2, 8)
    assert can_attend((query, key, value))
    assert not can_attend((query.bfloat16(), key.bfloat16(), value.bfloat16()))
    assert not can_attend((query, key, value[..., :4]))
    assert not can_attend((query.mT.contiguous().mT, key, value))


def test_a_kernel_that_disagrees_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    stock = documents._forward
    monkeypatch.setattr(documents, "_forward", lambda *words: ((out * 1.01, sums) for out, sums in stock(*words)))
    assert not agrees.__wrapped__(8, 1)
    monkeypatch.undo()
    assert agrees.__wrapped__(8, 1)
    monkeypatch.setattr(documents, "_KERNEL", "no_such_kernel")
    assert not agrees.__wrapped__(8, 1)


def test_all_that_is_kept_for_the_backward_pass_can_be_dropped_by_checkpointing() -> None:
    runs, kept = [Run(2, 3, False), Run(1, 5, True)], []
    tensors = streams(runs, 4, 2, 8)
    whole = attend_each(tensors, runs, 0.3)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        out = attend_each(tensors, runs, 0.3)
    values = sum(t.numel() for t in tensors) + out.numel() + out.shape[1] * out.shape[2]
    assert sum(kept) == values
    again = checkpoint(attend_each, tensors, runs, 0.3, use_reentrant=False)
    found = [torch.autograd.grad(each.square().sum(), tensors) for each in (whole, again)]
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_the_kernel_can_be_asked_for_within_a_checkpointed_block() -> None:
    (query, *_) = streams([Run(1, 3, False)], 2, 2, 8)

    def block(x: torch.Tensor) -> torch.Tensor:
        assert agrees.__wrapped__(8, 1)
        return (x * x).sum()

    checkpoint(block, query, use_reentrant=False).backward()
    torch.testing.assert_close(query.grad, 2 * query)
