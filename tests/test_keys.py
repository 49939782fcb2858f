"""Keys are the same everywhere, and masks independent along every coordinate (oracles: the tests of scipy)."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, chisquare

from labeltune.keys import Key, generator, hashes_of, keep_mask, keep_masks, kept, numbers_of, permutation

KEY = Key.of(7)
ROW, INDEX = (t.flatten() for t in torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij"))
PARTS = st.lists(st.one_of(st.integers(-(2**70), 2**70), st.text(max_size=8)), max_size=4)


def draw(key: Key = KEY, *, row: torch.Tensor = ROW, index: torch.Tensor = INDEX, rate: float = 0.5) -> torch.Tensor:
    return keep_mask(key, row, index, 257, rate)


def test_keys_are_the_same_on_every_platform() -> None:
    assert Key.of(42).fold("dropout", 3).value == 0x3CDB6F420A2B2B48
    assert permutation(Key.of(42), 8).tolist() == [0, 1, 6, 5, 4, 3, 2, 7]


@given(PARTS, PARTS)
def test_folding_parts_at_once_is_folding_one_by_one(first: list[int | str], second: list[int | str]) -> None:
    assert KEY.fold(*first, *second) == KEY.fold(*first).fold(*second)


@given(st.integers(0, 10**6))
def test_a_number_and_its_name_are_different_purposes(number: int) -> None:
    assert len({KEY.fold(number), KEY.fold(str(number)), KEY.fold(-number - 1), KEY}) == 4
    assert KEY.fold(np.int64(number)) == KEY.fold(number)


def test_permutations_are_uniform() -> None:
    orders = [tuple(permutation(KEY.fold(n), 4)) for n in range(4800)]
    _, counts = np.unique(orders, axis=0, return_counts=True)
    assert len(counts) == 24 and chisquare(counts).pvalue > 1e-3


def test_a_permutation_holds_every_number_once() -> None:
    assert sorted(permutation(KEY, 1000)) == list(range(1000))
    assert len(permutation(KEY, 0)) == 0


def test_a_generator_starts_anew_each_time() -> None:
    first, again, other = (torch.rand(9, generator=generator(key)) for key in (KEY, KEY, KEY.fold(1)))
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.5, 0.9])
def test_the_share_that_is_dropped_is_the_rate(rate: float) -> None:
    mask = draw(rate=rate)
    assert binomtest(int((~mask).sum()), mask.numel(), rate).pvalue > 1e-3


@pytest.mark.parametrize("axis", [0, 1])
def test_no_token_and_no_feature_is_dropped_more_often(axis: int) -> None:
    dropped = (~draw(rate=0.1)).sum(axis).double()
    trials, expected = draw().shape[axis], draw().shape[axis] * 0.1
    z = (dropped - expected) / (trials * 0.1 * 0.9) ** 0.5
    assert abs(float((z**2).mean()) - 1) < 5 * (2 / len(z)) ** 0.5  # chi-square over its degrees of freedom


NEIGHBOURS = {
    "row": lambda: draw(row=ROW + 1),
    "far row": lambda: draw(row=ROW + 2**33),
    "token": lambda: draw(index=INDEX + 1),
    "row for token": lambda: draw(row=INDEX + 1000, index=ROW),
    "layer": lambda: draw(KEY.fold("lora", "layers.1.q_proj")),
    "step": lambda: draw(KEY.fold(1)),
    "seed": lambda: draw(Key.of(8)),
    "next key": lambda: draw(Key(KEY.value + 1)),
    "high bit of the key": lambda: draw(Key(KEY.value ^ 1 << 63)),
    "feature": lambda: draw().roll(1, 1),
    "pair of features": lambda: draw().roll(2, 1),
    "half of the features": lambda: draw().roll(128, 1),
}


@pytest.mark.parametrize("what", NEIGHBOURS)
def test_masks_of_neighbouring_addresses_are_independent(what: str) -> None:
    one, other = draw().double() - 0.5, NEIGHBOURS[what]().double() - 0.5
    z = float((one * other).sum()) * 4 / one.numel() ** 0.5
    assert abs(z) < 4


def test_no_two_tokens_share_their_mask() -> None:
    agree = (draw().double() * 2 - 1) @ (draw().double() * 2 - 1).T / 257**0.5
    agree.fill_diagonal_(0)
    assert float(agree.abs().max()) < 6.5  # the largest of half a million normal values
    assert float(agree[agree != 0].square().mean()) == pytest.approx(1, abs=0.02)


def test_a_quarter_of_a_million_tokens_have_as_many_masks() -> None:
    """A hash of 32 bits would give about eight pairs of tokens the same mask."""
    count = 2**18
    mask = keep_mask(KEY, torch.arange(count) // 512, torch.arange(count) % 512, 64, 0.5)
    assert len(np.unique(np.packbits(mask.numpy(), axis=1).view(np.uint64))) == count


def test_pairs_of_features_fall_into_all_four_cells_alike() -> None:
    mask = draw().long()
    for shift in (1, 2, 3, 64, 100):
        cells = torch.bincount((2 * mask + mask.roll(shift, 1)).flatten())
        assert chisquare(cells.numpy()).pvalue > 1e-4


@given(st.permutations(range(40)), st.integers(1, 39))
def test_masks_do_not_depend_on_packing_or_order(order: list[int], cut: int) -> None:
    row, index = ROW[500:540], INDEX[500:540]
    whole = keep_mask(KEY, row, index, 31, 0.3)
    packed = [keep_mask(KEY, row[part], index[part], 31, 0.3) for part in (order[:cut], order[cut:])]
    assert torch.equal(torch.cat(packed), whole[order])


def test_a_narrower_mask_is_the_beginning_of_a_wider_one() -> None:
    assert torch.equal(keep_mask(KEY, ROW, INDEX, 33, 0.3), keep_mask(KEY, ROW, INDEX, 96, 0.3)[:, :33])


@given(st.lists(st.tuples(st.integers(0, 9), st.sampled_from([0.0, 0.1, 0.7]), st.booleans()), min_size=1, max_size=5))
def test_masks_of_many_slices_equal_each_slice_alone(slices: list[tuple[int, float, bool]]) -> None:
    bounds = [0, *np.cumsum([size for size, _, _ in slices]).tolist()]
    keys = [KEY.fold(k) if keyed else None for k, (_, _, keyed) in enumerate(slices)]
    row, index = ROW[: bounds[-1]], INDEX[: bounds[-1]]
    joint = keep_masks(keys, [rate for _, rate, _ in slices], bounds, row, index, 10)
    for key, (_, rate, _), start, end in zip(keys, slices, bounds, bounds[1:], strict=False):
        alone = keep_mask(key or KEY, row[start:end], index[start:end], 10, rate if key else 0.0)
        assert torch.equal(joint[start:end], alone)


@given(
    st.lists(st.tuples(st.integers(0, 9), st.floats(0, 1), st.integers(0, 2**64 - 1)), min_size=1, max_size=4),
    st.integers(1, 33),
    st.integers(-(2**62), 2**62),
)
def test_the_formula_for_a_compiler_draws_the_same_masks(slices, features, far) -> None:
    sizes, rates, values = map(list, zip(*slices, strict=True))
    keys = [Key(value) for value in values]
    bounds = [0, *np.cumsum(sizes).tolist()]
    row, index = ROW[: bounds[-1]] + far, INDEX[: bounds[-1]]
    numbers, limits = torch.tensor(numbers_of(keys, rates)).repeat_interleave(torch.tensor(sizes), dim=1)
    mask = kept(hashes_of(numbers, row, index), limits, features)
    assert torch.equal(mask, keep_masks(keys, rates, bounds, row, index, features))


def test_rates_at_the_edge_keep_everything_or_nearly_nothing() -> None:
    assert bool(draw(rate=0.0).all())
    assert int(draw(rate=0.9999999).sum()) < 20
