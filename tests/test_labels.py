"""Labels: schemes against seqeval, transitions by brute force, characters to units and back."""

import itertools
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labeltune.errors import DataError
from labeltune.labels import (
    LabelSet,
    align,
    characters_of,
    first_fault,
    legal_transitions,
    recognise,
    spans_of,
    spans_of_ids,
    tag_ids,
    tag_names,
    tags_of,
)
from labeltune.schema import Span

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from seqeval.scheme import BILOU, IOB1, IOB2, IOBES, Entities

LABELS = LabelSet(("LOC", "ORG", "PER"))
any_tags = st.lists(st.sampled_from(tag_names(LABELS)), max_size=12)


@st.composite
def unit_spans(draw):
    """Some disjoint labelled ranges of units, and the number of units."""
    cuts = sorted(draw(st.sets(st.integers(0, 12), max_size=8)))
    spans = [(a, b, draw(st.sampled_from(LABELS.names))) for a, b in itertools.pairwise(cuts)]
    return [span for span in spans if draw(st.booleans())], 13


def seqeval_spans(tags, scheme):
    return sorted((e.start, e.end, e.tag) for e in Entities([list(tags)], scheme).entities[0])


@settings(max_examples=3000, deadline=None)
@given(any_tags)
def test_iob2_spans_equal_seqevals_strict_ones(tags):
    assert spans_of(tags, "IOB2") == seqeval_spans(tags, IOB2)


ENDS = {"BIOES": "ES", "BILOU": "LU"}


def rewrite(spans, units, scheme):
    """The textbook definition of each scheme, written out per span."""
    tags, before = ["O"] * units, (-1, "")
    for first, last, label in spans:
        for unit in range(first, last):
            letter = "I"
            if scheme in ENDS:
                end, single = ENDS[scheme]
                letter = single if last - first == 1 else "B" if unit == first else end if unit == last - 1 else "I"
            elif unit == first and before == (first, label):
                letter = "B"
            tags[unit] = f"{letter}-{label}"
        before = (last, label)
    return tags


@settings(max_examples=300, deadline=None)
@given(unit_spans())
def test_every_scheme_gives_the_spans_it_was_written_from(drawn):
    spans, units = drawn
    assert spans_of(tags_of(spans, units), "IOB2") == spans
    assert spans_of(rewrite(spans, units, "IOB1"), "IOB1") == spans
    assert seqeval_spans(rewrite(spans, units, "IOB1"), IOB1) == spans
    for scheme, seqeval_s in (("BIOES", IOBES), ("BILOU", BILOU)):
        assert spans_of(rewrite(spans, units, scheme), scheme) == spans
        assert seqeval_spans(rewrite(spans, units, scheme), seqeval_s) == spans


@settings(max_examples=300, deadline=None)
@given(unit_spans())
def test_a_regular_row_has_no_fault_and_its_scheme_is_recognised(drawn):
    spans, units = drawn
    assert first_fault(tags_of(spans, units), "IOB2") is None
    assert first_fault(rewrite(spans, units, "IOB1"), "IOB1") is None
    for scheme in ENDS:
        assert first_fault(rewrite(spans, units, scheme), scheme) is None
    assert recognise([tags_of(spans, units)]) == "IOB2"
    if spans:
        assert all(recognise([rewrite(spans, units, scheme)]) == scheme for scheme in ENDS)
        assert recognise([rewrite(spans, units, "IOB1")]) == "IOB1"


def test_lossless_schemes_drop_no_labelled_unit():
    assert spans_of(["I-PER", "B-PER", "O", "I-LOC"], "IOB1") == [(0, 1, "PER"), (1, 2, "PER"), (3, 4, "LOC")]
    assert spans_of(["B-PER", "I-PER", "O", "E-LOC"], "BIOES") == [(0, 2, "PER"), (3, 4, "LOC")]
    assert spans_of(["U-PER", "B-LOC", "L-LOC"], "BIOES") == [(0, 1, "PER"), (1, 3, "LOC")]


def test_a_fault_is_named_with_its_unit():
    assert first_fault(["O", "I-PER"], "IOB2") == (1, "I-PER where IOB2 has B-PER")
    assert first_fault(["O", "B-PER"], "IOB1") == (1, "B-PER where IOB1 has I-PER")
    assert first_fault(["B-PER", "O"], "BIOES") == (0, "B-PER where BIOES has S-PER")
    assert first_fault(["B-PER", "O"], "BILOU") == (0, "B-PER where BILOU has U-PER")


@pytest.mark.parametrize("tag", ["", "PER", "X-PER", "B-", "b-PER", "0"])
def test_what_is_no_tag_is_refused(tag):
    with pytest.raises(DataError, match="is no tag"):
        spans_of([tag])


@settings(max_examples=300, deadline=None)
@given(unit_spans())
def test_tag_numbers_round_trip_and_agree_with_tag_names(drawn):
    spans, units = drawn
    ids = tag_ids(spans, units, LABELS)
    assert [tag_names(LABELS)[i] for i in ids] == tags_of(spans, units)
    assert spans_of_ids(ids, LABELS) == spans


def test_units_of_an_unknown_label_are_marked():
    assert tag_ids([(0, 2, "NEW"), (2, 3, "PER")], 4, LABELS).tolist() == [-1, -1, 5, 0]


def test_legal_transitions_are_those_that_lose_no_tag():
    names = tag_names(LABELS)
    start, follows = legal_transitions(len(LABELS))
    for i, a in enumerate(names):
        assert start[i] == (a == "O" or bool(spans_of([a])))
        for j, b in enumerate(names):
            opened = [a.replace("I-", "B-"), b]
            covered = sum(last - first for first, last, _ in spans_of(opened))
            assert follows[i, j] == (covered == sum(tag != "O" for tag in opened)), (a, b)


UNITS = [(0, 3), (4, 9), (9, 10), (12, 15)]


@settings(max_examples=500, deadline=None)
@given(st.integers(0, 16), st.integers(1, 16))
def test_a_span_is_lost_exactly_when_a_boundary_lies_inside_a_unit_or_it_holds_none(start, length):
    span = Span(start, start + length, "x")
    inside = any(a < edge < b for a, b in UNITS for edge in (span.start, span.end))
    held = [k for k, (a, b) in enumerate(UNITS) if span.start <= a and b <= span.end]
    found = align([span], UNITS)
    assert found.lost == ((span,) if inside or not held else ())
    assert found.unit_spans == (() if inside or not held else ((held[0], held[-1] + 1, "x"),))


@settings(max_examples=300, deadline=None)
@given(unit_spans())
def test_unit_spans_survive_the_way_through_characters(drawn):
    spans, count = drawn
    units = [(5 * k, 5 * k + 4) for k in range(count)]
    assert list(align(characters_of(spans, units), units).unit_spans) == spans


def test_label_sets_number_their_names_and_name_what_is_near():
    labels = LabelSet.of(["b", "a", "b"])
    assert labels.names == ("a", "b")
    assert (labels.index("b"), labels.find("b"), labels.find("c"), len(labels)) == (1, 1, -1, 2)
    with pytest.raises(DataError, match="did you mean 'world'"):
        LabelSet(("sport", "world")).index("wrld")


def test_tag_numbers_are_int64():
    assert tag_ids([], 2, LABELS).dtype == np.int64
