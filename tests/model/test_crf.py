"""The CRF against brute force over every legal tag sequence."""

import itertools

import pytest
import torch

from labeltune.labels import legal_transitions
from labeltune.model.crf import CRF

TAGS = 5  # two labels
LENGTHS = (3, 1, 4, 2)


@pytest.fixture
def crf():
    """A CRF with random scores."""
    module = CRF(TAGS)
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return module


@pytest.fixture
def emissions():
    """Random emissions of all documents."""
    return torch.randn(sum(LENGTHS), TAGS, generator=torch.Generator().manual_seed(1))


DOCUMENTS = torch.repeat_interleave(torch.tensor([0, 2, 3, 7]), torch.tensor(LENGTHS))


def sequences(crf, emissions):
    """Every legal tag sequence of one document with its score."""
    start, follow = legal_transitions(TAGS // 2)
    for tags in itertools.product(range(TAGS), repeat=len(emissions)):
        if start[tags[0]] and all(follow[a, b] for a, b in itertools.pairwise(tags)):
            score = crf.start[tags[0]] + crf.end[tags[-1]] + sum(emissions[i, t] for i, t in enumerate(tags))
            yield tags, score + sum(crf.follow[a, b] for a, b in itertools.pairwise(tags))


def test_loss_equals_brute_force_and_counts_documents(crf, emissions):
    gold = torch.tensor([1, 2, 0, 3, 0, 1, 2, 3, 3, 4])
    total, documents = crf.loss(emissions, gold, DOCUMENTS)
    wanted = 0.0
    for part, tags in zip(emissions.split(LENGTHS), gold.split(LENGTHS), strict=True):
        scores = dict(sequences(crf, part))
        wanted += torch.logsumexp(torch.stack(list(scores.values())), 0) - scores[tuple(tags.tolist())]
    assert documents == 4
    torch.testing.assert_close(total, wanted)


def test_gradient_of_the_loss_equals_brute_force(crf, emissions):
    gold = torch.tensor([1, 2, 0, 3, 0, 1, 2, 3, 3, 4])
    crf.loss(emissions, gold, DOCUMENTS)[0].backward()
    ours = [parameter.grad.clone() for parameter in crf.parameters()]
    crf.zero_grad()
    for part, tags in zip(emissions.split(LENGTHS), gold.split(LENGTHS), strict=True):
        scores = dict(sequences(crf, part))
        (torch.logsumexp(torch.stack(list(scores.values())), 0) - scores[tuple(tags.tolist())]).backward()
    for grad, parameter in zip(ours, crf.parameters(), strict=True):
        torch.testing.assert_close(grad, parameter.grad)


def test_decision_equals_brute_force(crf, emissions):
    decided = crf.decide(emissions, DOCUMENTS).split(LENGTHS)
    for part, tags in zip(emissions.split(LENGTHS), decided, strict=True):
        assert tuple(tags.tolist()) == max(sequences(crf, part), key=lambda pair: pair[1].item())[0]


def test_marginals_equal_brute_force_also_in_inference_mode(crf, emissions):
    with torch.inference_mode():
        found = crf.marginals(emissions * 1.0, DOCUMENTS).split(LENGTHS)
    for part, marginals in zip(emissions.split(LENGTHS), found, strict=True):
        tags, scores = zip(*sequences(crf, part), strict=True)
        shares = torch.softmax(torch.stack(scores), 0)
        wanted = torch.zeros(len(part), TAGS)
        for sequence, share in zip(tags, shares, strict=True):
            for unit, tag in enumerate(sequence):
                wanted[unit, tag] += share.detach()
        torch.testing.assert_close(marginals, wanted)


def test_documents_do_not_see_each_other(crf, emissions):
    together = crf.marginals(emissions, DOCUMENTS).split(LENGTHS)
    for part, found in zip(emissions.split(LENGTHS), together, strict=True):
        alone = crf.marginals(part, torch.zeros(len(part), dtype=torch.int64))
        torch.testing.assert_close(found, alone)


def test_a_document_with_an_unlabelled_unit_counts_for_nothing(crf, emissions):
    gold = torch.tensor([1, 2, 0, 3, 0, 1, 2, 3, 3, 4])
    full, _ = crf.loss(emissions[:4], gold[:4], DOCUMENTS[:4])
    gold[5:8] = -1
    gold[8] = -1
    total, documents = crf.loss(emissions, gold, DOCUMENTS)
    assert documents == 2
    torch.testing.assert_close(total, full)


def test_no_targets_at_all_give_zero_and_a_gradient(crf):
    emissions = torch.zeros(0, TAGS, requires_grad=True)
    nothing = torch.zeros(0, dtype=torch.int64)
    total, documents = crf.loss(emissions, nothing, nothing)
    total.backward()
    assert total == 0 and documents == 0
    assert crf.decide(emissions, nothing).shape == (0,)
    assert crf.marginals(emissions, nothing).shape == (0, TAGS)


def test_all_documents_unlabelled_give_zero(crf, emissions):
    total, documents = crf.loss(emissions, torch.full((10,), -1), DOCUMENTS)
    assert total == 0 and documents == 0
