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
    assert str(found).startswith("train: 1 row repeats the text of an earlier row (train[40]); ")
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


def test_one_faulty_row_does_not_speak_for_the_scheme_of_a_file():
    rows = tagged([(f"Rome row {n}", "B-LOC O O") for n in range(40)] + [("Rome again", "I-LOC O")])
    found = findings(rows, dev=tagged([("Oslo", "B-LOC")]))["mixed_schemes", "train"]
    assert (found.count, found.at) == (1, ("train[40]",))
    assert "IOB2" in found.message


@pytest.mark.parametrize("twins", [("café", "cafe\u0301"), ("ab", "a\u200bb"), ("AB", "\uff21\uff22")])
def test_labels_that_look_the_same_are_called_alike(twins):
    rows = [{"text": text, "label": twins[n % 2]} for n, text in enumerate(texts(40))]
    assert findings(rows, dev=rows[:2])["similar_labels", "train"].count == 2


def test_a_label_of_dev_that_is_another_but_for_case_is_told():
    dev = [{"text": f"{text} x", "label": label} for text, label in zip(texts(20), ["Even", "odd"] * 10, strict=True)]
    assert "'Even' is 'even' but for case" in findings(clean(), dev=dev)["unseen_label", "dev"].message


def test_rows_with_several_unseen_labels_are_counted_once():
    train = [{"text": text, "label": ["even" if n % 2 else "odd"]} for n, text in enumerate(texts(40))]
    dev = [{"text": text, "label": ["x", "y", "z"]} for text in texts(3, 500)]
    found = findings(train, dev=dev, task="multilabel")["unseen_label", "dev"]
    assert found.count == 3
    assert "100.0% of the rows" in found.effect


def test_a_dev_split_with_one_label_is_not_said_to_be_always_right():
    found = findings(clean(), dev=[{"text": text, "label": "odd"} for text in texts(20, 900)])["imbalance", "dev"]
    assert found.effect == "the dev score says nothing of the other labels"


def test_spans_at_other_places_are_other_labels_and_white_space_is_none():
    spanned = [{"text": "may may come", "spans": [[0, 3, "X"]]}, {"text": "may may come", "spans": [[4, 7, "X"]]}]
    spaced = [{"text": "in New York", "spans": [[3, 11, "X"]]}, {"text": "in  New  York", "spans": [[4, 13, "X"]]}]
    others = [{"text": text, "spans": []} for text in texts(20)]
    dev = [{"text": "a new row", "spans": [[2, 5, "X"]]}]
    assert findings([*spanned, *others], dev=dev, task="tagging")["conflicting_labels", "train"].count == 2
    assert ("conflicting_labels", "train") not in findings([*spaced, *others], dev=dev, task="tagging")


def test_numbers_of_one_text_are_no_lost_rows():
    rows = [{"text": text, "label": n + 0.5} for n, text in enumerate(texts(40))]
    found = findings([*rows, {"text": rows[0]["text"], "label": 7.5}], dev=rows[:5], task="regression")
    assert "no model can avoid" in found["conflicting_labels", "train"].effect


def test_a_label_s_name_in_all_texts_gives_nothing_away_whatever_the_order_of_the_rows():
    rows = [{"text": f"film and food {n} okay then", "label": ("food", "film")[n % 2]} for n in range(40)]
    assert ("label_given_away", "train") not in findings(rows)


def test_groups_of_given_files_that_meet_are_told():
    train = [{**row, "user": f"u{n % 5}"} for n, row in enumerate(clean())]
    dev = [{**row, "user": f"u{n % 10}"} for n, row in enumerate(clean(20, 1000))]
    found = findings(train, dev=dev, group="user")["groups_across", "dev"]
    assert (found.count, found.level) == (10, "warning")
