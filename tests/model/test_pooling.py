"""Pooling against a loop over pieces and targets, on any segments: overlapping, with gaps, in any order."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from labeltune.model.pooling import LEARNED, POOLINGS, Pooling, _reduce, _scattered, attention, combine

NAIVE: dict[str, Callable[[Tensor], Tensor]] = {
    "first": lambda tokens: tokens[0],
    "last": lambda tokens: tokens[-1],
    "mean": lambda tokens: tokens.mean(0),
    "max": lambda tokens: tokens.amax(0),
    "attention": lambda tokens: torch.softmax(tokens @ QUERY / 3**0.5, 0) @ tokens,
}
QUERY = torch.tensor([0.3, -1.2, 0.7])
PIECES = st.lists(st.tuples(st.integers(0, 19), st.integers(1, 9)), min_size=1, max_size=8)  # start, length


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def pool(name: str, hidden: Tensor, starts: Tensor, ends: Tensor) -> Tensor:
    return attention(hidden, starts, ends, QUERY) if name in LEARNED else POOLINGS[name](hidden, starts, ends)


@pytest.mark.parametrize("name", POOLINGS)
@given(PIECES)
def test_pieces_equal_a_loop_and_so_do_gradients(name: str, pieces: list[tuple[int, int]]) -> None:
    hidden, twin = (random(28, 3).requires_grad_() for _ in range(2))
    starts = torch.tensor([start for start, _ in pieces])
    ends = starts + torch.tensor([length for _, length in pieces])
    pooled = pool(name, hidden, starts, ends)
    naive = torch.stack([NAIVE[name](twin[a:b]) for a, b in zip(starts, ends, strict=True)])
    torch.testing.assert_close(pooled, naive)
    weights = random(len(pieces), 3, seed=1)
    (pooled * weights).sum().backward()
    (naive * weights).sum().backward()
    torch.testing.assert_close(hidden.grad, twin.grad)


@pytest.mark.parametrize("how", POOLINGS)
@given(st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=4), min_size=1, max_size=5))
def test_targets_equal_a_loop_over_their_pieces(how: str, weights: list[list[int]]) -> None:
    """weights: per target, the owned tokens of each of its pieces."""
    flat = torch.tensor([float(w) for target in weights for w in target])
    owner = torch.tensor([s for s, target in enumerate(weights) for _ in target])
    pieces = random(len(flat), 3)
    joined = combine(pieces, flat, owner, len(weights), how)
    for s in range(len(weights)):
        mine, w = pieces[owner == s], flat[owner == s]
        torch.testing.assert_close(joined[s], mine.amax(0) if how == "max" else (w[:, None] * mine).sum(0) / w.sum())


@pytest.mark.parametrize("name", ["mean", "max"])
def test_pooling_in_windows_is_pooling_the_whole(name: str) -> None:
    hidden = random(10, 3)
    bounds, zeros = torch.tensor([0, 3, 4, 10]), torch.zeros(3, dtype=torch.int64)
    pieces = POOLINGS[name](hidden, bounds[:-1], bounds[1:])
    joined = combine(pieces, bounds.diff().float(), zeros, 1, name)
    torch.testing.assert_close(joined[0], NAIVE[name](hidden))


@pytest.mark.parametrize("name", POOLINGS)
def test_a_vector_does_not_depend_on_its_neighbours(name: str) -> None:
    hidden, starts = random(60, 3), torch.tensor([0, 7, 30])
    ends = starts + torch.tensor([7, 20, 30])
    together = pool(name, hidden, starts, ends)
    alone = [
        pool(name, hidden[a:b], torch.tensor([0]), torch.tensor([b - a])) for a, b in zip(starts, ends, strict=True)
    ]
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-7)


@pytest.mark.parametrize("name", POOLINGS)
def test_vectors_are_fp32_whatever_the_backbone(name: str) -> None:
    hidden = random(6, 3).bfloat16()
    pooled = Pooling(name, 3)(hidden, torch.tensor([0, 2]), torch.tensor([2, 6]))
    assert pooled.dtype == torch.float32
    torch.testing.assert_close(pooled, Pooling(name, 3)(hidden.float(), torch.tensor([0, 2]), torch.tensor([2, 6])))


def test_attention_begins_as_the_mean_and_learns() -> None:
    pooling, hidden = Pooling("attention", 3), random(6, 3)
    starts, ends = torch.tensor([0, 2]), torch.tensor([2, 6])
    pooled = pooling(hidden, starts, ends)
    torch.testing.assert_close(pooled, POOLINGS["mean"](hidden, starts, ends))
    (pooled * random(2, 3, seed=1)).sum().backward()
    assert pooling.query is not None and bool((pooling.query.grad != 0).all())


def test_large_scores_do_not_overflow() -> None:
    hidden = random(5, 3) * 1e4
    pooled = attention(hidden, torch.tensor([0]), torch.tensor([5]), QUERY)
    torch.testing.assert_close(pooled[0], NAIVE["attention"](hidden))


def test_only_learned_poolings_have_parameters() -> None:
    assert {name for name in POOLINGS if list(Pooling(name, 3).parameters())} == set(LEARNED)


@pytest.mark.parametrize("how", ["sum", "mean", "max"])
@given(st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_segments_are_reduced_alike_where_torch_has_no_kernel_for_them(how: str, lengths: list[int]) -> None:
    values, sizes = random(sum(lengths), 3), torch.tensor(lengths)
    torch.testing.assert_close(_scattered(values, sizes, how), _reduce(values, sizes, how))
