"""The baselines learn what is plain to see, answer in the house's nouns, and never break a word or a tag sequence."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from labeltune.baselines import BASELINES, TagBaseline, TextBaseline, shape, word_features
from labeltune.data import units
from labeltune.schema import Example, Span
from labeltune.tasks import TASKS

TEXTS = [
    Example(f"train[{n}]", text, label=label)
    for n, (text, label) in enumerate(
        [("my money back", "refund"), ("where is it", "status"), ("great shop", "praise")] * 4
    )
]
PAIRS = [("kettle", "Hove"), ("old lamp", "New York"), ("rug", "Leeds"), ("desk", "Bath")]


def told(number: int, thing: str, place: str) -> Example:
    text = f"the {thing} went to {place}"
    spans = (Span(4, 4 + len(thing), "product"), Span(len(text) - len(place), len(text), "place"))
    return Example(f"train[{number}]", text, spans=spans)


TAGGED = [told(number, *pair) for number, pair in enumerate(PAIRS * 3)]
FITTED = TagBaseline.fit(TAGGED)


def test_every_baseline_is_named_by_a_task() -> None:
    assert set(BASELINES) <= set(TASKS)


def test_the_text_baseline_learns_words_and_gives_probabilities() -> None:
    fitted = TextBaseline.fit(TEXTS)
    answers = fitted.predict(TEXTS)
    assert [answer.label for answer in answers] == [example.label for example in TEXTS]
    for answer in answers:
        assert sum(answer.scores.values()) == pytest.approx(1, abs=1e-5)
        assert answer.score == max(answer.scores.values())


def test_the_tag_baseline_finds_the_spans_it_was_shown() -> None:
    figures = TASKS["tagging"].score(TAGGED, FITTED.predict(TAGGED), FITTED.labels)
    assert figures["span_f1"] == 1.0


@given(st.text(max_size=40))
def test_predicted_spans_are_whole_units_of_the_text(text: str) -> None:
    answer = FITTED.predict([Example("x", text)])[0]
    found = units.find(text)
    starts, ends = {start for start, _ in found}, {end for _, end in found}
    for span in answer.spans:
        assert span.start in starts
        assert span.end in ends
        assert span.text == text[span.start : span.end]


def test_a_text_without_units_has_no_spans_and_keeps_its_place() -> None:
    answers = FITTED.predict([Example("a", ""), TAGGED[0], Example("b", "  ")])
    assert [len(answer.spans) for answer in answers] == [0, 2, 0]


def test_a_span_that_tears_a_word_teaches_nothing() -> None:
    torn = Example("train[0]", "the kettles", spans=(Span(4, 10, "product"),))
    whole = Example("train[1]", "the kettle", spans=(Span(4, 10, "product"),))
    answers = TagBaseline.fit([torn, whole] * 3).predict([whole])
    assert [(span.start, span.end) for span in answers[0].spans] in ([], [(4, 10)])


def test_a_word_sees_itself_and_two_neighbours_to_each_side_and_no_further() -> None:
    words = ["aa", "bb", "cc", "dd", "ee", "ff"]
    for place, features in enumerate(" ".join(row) for row in word_features(words)):
        near = {word for offset, word in enumerate(words) if abs(offset - place) <= 2}
        assert {word for word in words if word in features} == near


def test_shapes_forget_letters_and_long_runs() -> None:
    assert [shape(word) for word in ("Harrowmouth", "Bz-330619", "£9", "ÄRGER")] == ["Xxxx", "Xx-000", "£0", 3 * "X"]


def test_features_are_as_many_as_words() -> None:
    assert np.shape(word_features([])) == (0,)
    assert len(word_features(["one"])) == 1
