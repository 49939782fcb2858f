"""The linter finds what is planted, with addresses and counts, changes nothing, and is silent on clean data."""

import json
from dataclasses import asdict

import pytest

from labeltune.data.datasets import load
from labeltune.data.lint import lint
from labeltune.data.settings import DataConfig

WORDS = ["apple", "bread", "cloud", "dance", "eagle", "flame", "grape", "house", "ivory", "jewel"]


def texts(n, offset=0):
    """Texts without anything in common."""
    return [f"{WORDS[i % 10]} {WORDS[(i // 10) % 10]} {WORDS[(7 * i) % 10]} row {i + offset}." for i in range(n)]


def clean(n=40, offset=0):
    return [{"text": text, "label": "even" if i % 2 else "odd"} for i, text in enumerate(texts(n, offset))]


def findings(train, dev=None, test=None, task=None, **settings):
    loaded = load(DataConfig(**settings), task, data=train, dev=dev or clean(20, 1000), test=test)
    return {(finding.kind, finding.split): finding for finding in lint(loaded)}


def tagged(rows):
    return [{"tokens": tokens.split(), "tags": tags.split()} for tokens, tags in rows]


def test_clean_rows_have_no_findings():
    assert findings(clean()) == {}


def test_duplicates_within_a_split():
    found = findings([*clean(), {"text": clean()[3]["text"].upper(), "label": "even"}])["duplicates", "train"]
    assert (found.count, found.at, found.level) == (1, ("train[40]",), "note")


def test_duplicates_across_splits_are_counted_where_they_are_scored():
    found = findings(clean(), test=[*clean(8, 2000), *clean()[:2]])["duplicates_across", "test"]
    assert (found.count, found.at) == (2, ("test[8]", "test[9]"))
    assert "raises the test score by up to 20.0%" in found.effect


def test_one_text_with_different_labels():
    found = findings([*clean(), {"text": clean()[0]["text"], "label": "even"}])["conflicting_labels", "train"]
    assert (found.count, found.at) == (2, ("train[0]", "train[40]"))


def test_labels_with_one_row_and_labels_that_training_never_sees():
    found = findings([*clean(), {"text": "a lonely one", "label": "once"}], dev=[{"text": "new one", "label": "new"}])
    assert found["one_example_label", "train"].at == ("train[40]",)
    assert found["unseen_label", "dev"].at == ("dev[0]",)
    assert "100.0% of the rows" in found["unseen_label", "dev"].effect


def test_labels_that_differ_in_case_only():
    found = findings([*clean(), *[{"text": text, "label": "Odd"} for text in texts(5, 500)]])
    assert found["similar_labels", "train"].count == 2


def test_imbalance_says_what_always_the_same_answer_scores():
    rows = [{"text": text, "label": "rare" if i < 2 else "often"} for i, text in enumerate(texts(100))]
    assert "an accuracy of 0.980" in findings(rows, dev=rows[:3])["imbalance", "train"].effect


def test_lengths_out_of_line():
    found = findings([*clean(), {"text": "long " * 1000, "label": "odd"}, {"text": "x", "label": "odd"}])
    assert found["long_texts", "train"].at == ("train[40]",)
    assert found["short_texts", "train"].at == ("train[41]",)


def test_rows_that_cannot_be_used_are_counted():
    found = findings([*clean(), {"text": "", "label": "odd"}], on_bad_row="skip")
    assert found["bad_rows", "train"].count == 1


def test_tags_that_only_begin():
    rows = tagged([(f"New York {i}", "B-x B-x O") for i in range(6)])
    found = findings(rows, dev=rows[:1])["only_b_tags", "train"]
    assert (found.level, found.count) == ("warning", 6)


def test_mixed_schemes():
    rows = tagged([("a b c", "B-x I-x O"), ("d e f", "O I-x I-x")])
    found = findings(rows, dev=rows[:1])["mixed_schemes", "train"]
    assert found.at == ("train[0]",)  # the file is read as IOB1, where a span begins with B- after its like only


def test_spans_in_white_space_and_inside_a_word():
    rows = [{"text": "in New York now", "spans": [[2, 11, "x"]]}, {"text": "in Newark now", "spans": [[3, 6, "x"]]}]
    found = findings(rows, dev=rows[:1])
    assert found["span_white_space", "train"].at == ("train[0]",)
    assert found["span_inside_unit", "train"].at == ("train[1]",)
    assert "at most 0.500" in found["span_inside_unit", "train"].effect


def test_a_field_of_the_template_that_tells_the_label():
    rows = [{**row, "source": "feed-7" if row["label"] == "odd" else "feed-8"} for row in clean()]
    found = findings(rows, dev=rows[:3], template="{source}: {text}")["label_given_away", "train"]
    assert found.count == 40


def test_a_label_named_in_its_own_texts():
    rows = [{"text": f"{row['text']} by Sports Watch!", "label": "sports-watch"} for row in clean(20)] + clean(20, 300)
    found = findings(rows)["label_given_away", "train"]
    assert "20 of 20 texts of 'sports-watch' hold the label's name" in found.message


def test_a_finding_is_a_sentence_and_json():
    found = findings([*clean(), clean()[0]])["duplicates", "train"]
    assert str(found).startswith("train: 1 rows repeat the text of an earlier row (train[40]); ")
    assert json.loads(json.dumps(asdict(found)))["count"] == 1


@pytest.mark.parametrize(("kind", "split", "count"), [("duplicates", "train", 9), ("duplicates_across", "test", 2)])
def test_the_duplicates_of_sst_are_found(shared, kind, split, count):
    files = {name: f"sst/stsa.binary.{name}" for name in ("train", "dev", "test")}
    found = {(f.kind, f.split): f for f in lint(load(DataConfig(**files), None, base=shared / "data"))}
    assert found[kind, split].count == count


def test_the_ledger_is_told(tmp_path):
    class Ledger:
        def note(self, purpose, source, **facts):
            notes.append(purpose)

    notes = []
    loaded = load(DataConfig(), None, data=clean(), dev=clean(20, 1000), test=clean(20, 2000))
    lint(loaded, ledger=Ledger())
    assert notes == ["linting"]
