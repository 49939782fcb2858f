"""What is predicted from what: shown tokens, places and labels of each objective."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from labeltune.adaptation.objectives import OBJECTIVES, Masking, Row
from labeltune.keys import Key

IDS = st.lists(st.integers(5, 50), min_size=1, max_size=40)


def make(name: str, ids: list[int], *, first: int = 1, number: int = 0, share: float = 0.2, seed: int = 0):
    row = Row(number, np.array(ids, np.int32), first, len(ids))
    return OBJECTIVES[name].make(row, Masking(share, 4, Key.of(seed)))


@given(IDS, st.integers(0, 5))
def test_clm_asks_for_every_new_token_at_the_place_before_it(ids, first):
    encoded = make("clm", ids, first=first)
    assert encoded.tokens.tolist() == ids
    assert encoded.labels.tolist() == ids[max(first, 1) :]
    assert (encoded.piece_start + 1 == np.arange(max(first, 1), max(first, 1) + len(encoded.labels))).all()


@given(IDS, st.integers(0, 5), st.floats(0.05, 0.95), st.integers(0, 9))
def test_mntp_hides_what_it_asks_for_and_nothing_else(ids, first, share, seed):
    encoded = make("mntp", ids, first=first, share=share, seed=seed)
    hidden = encoded.piece_start + 1
    assert encoded.tokens[hidden].tolist() == [4] * len(hidden)
    assert encoded.labels.tolist() == np.array(ids)[hidden].tolist()
    assert np.delete(encoded.tokens, hidden).tolist() == np.delete(ids, hidden).tolist()
    assert (hidden >= max(first, 1)).all()


def test_mntp_hides_the_share_it_should_and_others_in_another_row_or_epoch():
    ids = list(range(10_000))
    count = len(make("mntp", ids).labels)
    assert abs(count / len(ids) - 0.2) < 0.02
    first, row, epoch = make("mntp", ids), make("mntp", ids, number=1), make("mntp", ids, seed=1)
    assert np.array_equal(first.labels, make("mntp", ids).labels)
    assert not np.array_equal(first.labels, row.labels) and not np.array_equal(first.labels, epoch.labels)


def test_an_end_token_is_predicted_by_clm_and_never_hidden_by_mntp():
    row = Row(0, np.array([0, 5, 6, 1], np.int32), 1, 3)
    mask = Masking(0.99, 4, Key.of(0))
    assert OBJECTIVES["clm"].make(row, mask).labels.tolist() == [5, 6, 1]
    assert 1 not in OBJECTIVES["mntp"].make(row, mask).labels
