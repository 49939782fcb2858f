"""Templates put texts together, reach nothing else, and keep labels on the characters they sat on."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labeltune.data.datasets import open_dataset
from labeltune.data.settings import DataConfig
from labeltune.data.templates import parse, shifted
from labeltune.errors import DataError, SettingsError
from labeltune.schema import Span

plain_text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))


@given(st.lists(st.tuples(plain_text, st.sampled_from(["title", "body"])), min_size=1), plain_text)
def test_a_template_is_what_str_format_makes_of_it(parts, tail):
    escape = str.maketrans({"{": "{{", "}": "}}"})
    template = "".join(f"{literal.translate(escape)}{{{name}}}" for literal, name in parts) + tail.translate(escape)
    values = {"title": "{T}", "body": "b\nb"}
    assert parse(template).fill(values, at="a").text == template.format(**values)


@given(plain_text, plain_text, st.data())
def test_spans_keep_their_characters(prefix, suffix, data):
    text = data.draw(plain_text.filter(str.strip))
    start = data.draw(st.integers(0, len(text) - 1))
    end = data.draw(st.integers(start + 1, len(text)))
    escape = str.maketrans({"{": "{{", "}": "}}"})
    config = DataConfig(template=prefix.translate(escape) + "{text}" + suffix.translate(escape), text="text")
    rows = [{"text": text, "spans": [[start, end, "x"]]}]
    example = next(iter(open_dataset(rows, config, "tagging", labelled=True, name="train")))
    assert example.text == prefix + text + suffix
    assert [example.text[s.start : s.end] for s in example.spans] == [text[start:end]]
    assert example.text[slice(*example.body)] == text
    assert all(example.body[0] <= a < b <= example.body[1] for a, b in example.units)


def test_given_tokens_keep_their_places_in_a_template():
    rows = [{"tokens": ["New", "York"], "tags": ["B-x", "I-x"]}]
    config = DataConfig(template="Find places: {tokens}.")
    example = next(iter(open_dataset(rows, config, None, labelled=True, name="train")))
    assert [example.text[a:b] for a, b in example.units] == ["New", "York"]
    assert [example.text[s.start : s.end] for s in example.spans] == ["New York"]


def test_room_is_the_field_that_may_be_shortened():
    filled = parse("T: {title}\n{body} end").fill({"title": "short", "body": "much longer"}, at="a")
    assert filled.text[slice(*filled.longest())] == "much longer"
    rows = [{"title": "short", "body": "much longer", "label": "x"}]
    for settings, room in (({}, "much longer"), ({"long_field": "title"}, "short")):
        config = DataConfig(template="T: {title}\n{body} end", **settings)
        example = next(iter(open_dataset(rows, config, None, labelled=True, name="train")))
        assert example.text[slice(*example.room)] == room


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("no field", "names no field"),
        ("{", "cannot be read"),
        ("{text", "cannot be read"),
        ("text}", "cannot be read"),
        ("{}", "named by position"),
        ("{0}", "named by position"),
        ("{text!r}", "a format or a conversion"),
        ("{text:>10}", "a format or a conversion"),
    ],
)
def test_a_faulty_template_is_refused(template, says):
    with pytest.raises(SettingsError, match=says):
        parse(template)


@pytest.mark.parametrize("field", ["text.__class__", "text[0]", "txet"])
def test_a_field_that_is_no_column_is_named_with_the_nearest(field):
    config = DataConfig(template=f"{{{field}}}")
    with pytest.raises(DataError, match="which is no column") as caught:
        open_dataset([{"text": "a", "label": "b"}], config, None, labelled=True, name="train")
    assert "text" in str(caught.value)


@pytest.mark.parametrize(
    ("value", "says"), [(None, "is empty"), (float("nan"), "is empty"), (["a"], "is a list, not a text")]
)
def test_a_field_without_text_has_its_row_named(value, says):
    rows = [{"title": "t", "text": "a", "label": "b"}, {"title": value, "text": "a", "label": "b"}]
    with pytest.raises(DataError, match=says) as caught:
        open_dataset(rows, DataConfig(template="{title} {text}"), None, labelled=True, name="train")
    assert caught.value.at == "train[1]"


def test_numbers_and_truth_values_are_written():
    assert parse("{a} {b}").fill({"a": 3, "b": True}, at="x").text == "3 true"


def test_the_labelled_column_appears_exactly_once():
    rows = [{"text": "a b", "spans": [], "title": "t"}]
    for template in ("{text} {text}", "{title}"):
        with pytest.raises(SettingsError, match="the column 'text', which the labels sit on"):
            open_dataset(rows, DataConfig(template=template, text="text"), None, labelled=True, name="train")


def test_shifted_spans_move_together():
    assert shifted([Span(0, 2, "a"), Span(3, 4, "b")], 5) == (Span(5, 7, "a"), Span(8, 9, "b"))
