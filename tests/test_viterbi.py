"""Constrained Viterbi against brute force over every legal tag sequence."""

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from labeltune.labels import legal_transitions
from labeltune.viterbi import best_legal

START, FOLLOW = legal_transitions(2)


def legal(tags):
    return START[tags[0]] and all(FOLLOW[a, b] for a, b in itertools.pairwise(tags))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=6), st.integers(0, 2**32 - 1))
def test_each_document_gets_its_best_legal_sequence(lengths, seed):
    scores = np.random.default_rng(seed).normal(size=(sum(lengths), 5))
    documents = np.repeat(3 * np.arange(len(lengths)), lengths)
    found = np.split(best_legal(scores, documents), np.cumsum(lengths)[:-1])
    for tags, part in zip(found, np.split(scores, np.cumsum(lengths)[:-1]), strict=True):
        sequences = filter(legal, itertools.product(range(5), repeat=len(part)))
        best = max(part[np.arange(len(part)), list(s)].sum() for s in sequences)
        assert legal(tags)
        assert np.isclose(part[np.arange(len(part)), tags].sum(), best)


def test_no_units_have_no_tags():
    assert best_legal(np.empty((0, 5)), np.empty(0, dtype=np.int64)).shape == (0,)


def test_certain_scores_of_tags_that_cannot_be_still_give_a_legal_sequence():
    scores = np.full((3, 5), -1e30)
    scores[:, 2] = 0.0  # I-x everywhere
    assert best_legal(scores, np.zeros(3, dtype=np.int64)).tolist() == [1, 2, 2]
