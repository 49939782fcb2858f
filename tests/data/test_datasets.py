"""Columns are found where one reading is possible, ids are never named silently, and the test split stays sealed."""

import json
from collections import Counter
from typing import ClassVar

import pandas as pd
import pytest

from labeltune.data.datasets import load, open_dataset, refuse_leaks
from labeltune.data.naming import resolve
from labeltune.data.settings import DataConfig
from labeltune.errors import DataError, LabeltuneError, SettingsError
from labeltune.schema import Span

AG = ("World", "Sports", "Business", "Sci/Tech")


def opened(rows, task=None, labelled=True, **settings):
    return list(open_dataset(rows, DataConfig(**settings), task, labelled=labelled, name="train"))


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# The columns


@pytest.mark.parametrize(
    ("row", "task", "text", "label"),
    [
        ({"text": "a b", "label": 1}, "classification", "a b", "1"),
        ({"sentence": "a b", "category": "x", "id": 3}, "classification", "a b", "x"),
        ({"Title": "t", "Description": "d", "Class Index": 2}, "classification", "t\nd", "2"),
        ({"url": "u", "date": "d", "title": "t", "body": "b", "category": "x"}, "classification", "t\nb", "x"),
        ({"remark": "only text", "label": 1}, "classification", "only text", "1"),
        ({"text": "a b", "mood": "x"}, "classification", "a b", "x"),
        ({"text": "a b", "labels": ["y", "x"]}, "multilabel", "a b", ("x", "y")),
        ({"text": "a b", "labels": []}, "multilabel", "a b", ()),
        ({"text": "a b", "labels": '["y", "x"]'}, "multilabel", "a b", ("x", "y")),
        ({"tokens": ["a", "b"], "label": True}, "classification", "a b", "true"),
        ({"text": "a b", "score": 0.25}, "regression", "a b", 0.25),
        ({"text": "a b", "label": "3.11"}, "classification", "a b", "3.11"),
    ],
)
def test_columns_and_task_are_guessed_where_unambiguous(row, task, text, label):
    loaded = load(DataConfig(), None, data=[row], dev=[row])
    example = next(iter(loaded.train))
    assert (loaded.task, example.text, example.label) == (task, text, label)
    assert any("label from" in sentence for sentence in loaded.said)


def test_a_frame_may_have_a_column_called_features():
    frame = pd.DataFrame({"text": ["a b", "c d"], "label": ["x", "y"], "features": [1, 2]})
    assert [row.text for row in load(DataConfig(), None, data=frame, dev=frame).train] == ["a b", "c d"]


def test_many_fractions_in_a_table_are_measures(tmp_path):
    for rows, task in ((12, "classification"), (40, "regression")):
        path = tmp_path / f"{rows}.csv"
        path.write_text("text,label\n" + "".join(f"the hen {n},{n}.5\n" for n in range(rows)))
        assert load(DataConfig(), None, data=path, dev=path).task == task


@pytest.mark.parametrize(
    "row",
    [
        {"tokens": ["New", "York"], "ner_tags": ["B-x", "I-x"]},
        {"words": ["New", "York"], "labels": ["B-x", "I-x"]},
        {"tokens": "New York", "tags": "B-x I-x"},
        {"text": "New York", "entities": [{"start": 0, "end": 8, "label": "x"}]},
        {"text": "New York", "spans": '[[0, 8, "x"]]', "id": 1},
        {"tokens": ["New", "York"], "pos_tags": [1, 2], "chunk_tags": [0, 0], "ner_tags": ["B-x", "I-x"]},
    ],
)
def test_tagging_is_guessed_from_tags_and_spans(row):
    loaded = load(DataConfig(), None, data=[row], dev=[row])
    example = next(iter(loaded.train))
    assert (loaded.task, example.text, example.spans) == ("tagging", "New York", (Span(0, 8, "x"),))


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (
            {"text": "a", "sentence": "b", "label": 1},
            "the text may be 'text' or 'sentence'; choose: data.text = 'text'",
        ),
        ({"text": "a", "label": 1, "class": 2}, "the label may be 'label' or 'class'"),
        ({"text": "a", "label": 1, "spans": [[0, 1, "x"]]}, "carry labels .'label'. and tags or spans"),
        ({"tokens": ["a"], "tags": ["O"], "ner": ["O"]}, "the tags may be 'tags' or 'ner'"),
        ({"text": "a"}, "no column is clearly the label among 'text'"),
        ({"one": "a", "two": "b", "label": 1}, "no column is clearly the text among 'one', 'two', 'label'"),
        ({"3": "a b", "Some title": "c"}, "a file without header needs data.columns"),
    ],
)
def test_what_is_ambiguous_lists_the_columns_and_the_setting(row, says):
    with pytest.raises(DataError, match=says) as caught:
        load(DataConfig(), None, data=[row] * 3, dev=[row])
    assert caught.value.at == "train"


def test_a_set_column_that_is_not_there_names_the_nearest():
    with pytest.raises(DataError, match=r"data.text = 'txt' is no column; did you mean 'text'"):
        load(DataConfig(text="txt"), None, data=[{"text": "a", "label": 1}])


def test_guesses_become_settings_and_open_new_rows():
    loaded = load(DataConfig(), None, data=[{"remark": "a", "label": 1}], dev=[{"remark": "a", "label": 1}])
    assert (loaded.config.text, loaded.config.label) == ("remark", "label")
    config = loaded.config
    assert [e.text for e in open_dataset(["x", "y"], config, loaded.task, labelled=False, name="input")] == ["x", "y"]


# Tasks


def test_numbers_are_class_ids_unless_the_task_says_regression():
    rows = [{"text": "a", "label": 1}, {"text": "b", "label": 2}]
    assert [e.label for e in opened(rows)] == ["1", "2"]
    assert [e.label for e in opened(rows, "regression")] == [1.0, 2.0]
    assert [e.label for e in opened([{"text": "a", "score": "2.5"}], "regression")] == [2.5]


@pytest.mark.parametrize(
    ("rows", "task", "way_out"),
    [
        ([{"premise": f"p {n}", "hypothesis": f"h {n}", "label": n % 2} for n in range(9)], None,
         r"data\.template = '\{premise\} \{hypothesis\}'"),
        ([{"text": "Bob sang", "label": [[0, 3, "PER"]]}] * 9, "classification", r"spans: data\.spans = 'label'"),
        ([{"text": "a", "label": "0,14"}], "regression", "write a point for the decimal comma"),
        ([{"tokens": ["a"], "tags": [1]}], None, r"name the numbers from 0: data\.label_names"),
        ([{"tokens": ["a"], "tags": ["NN"]}], None, "write B- before labels of single words"),
        ([{"text": f"t {n}", "label": n} for n in range(60)], None, r"a measure\? task = 'regression'"),
    ],
)  # fmt: skip
def test_what_is_clearly_meant_is_the_way_out(rows, task, way_out):
    with pytest.raises(DataError, match=way_out):
        load(DataConfig(dev=0.2), task, data=rows)


@pytest.mark.parametrize(
    ("settings", "says"),
    [({"label_order": ("a", "b")}, "numbers have no order"), ({"label_names": ("a", "b")}, "have no names")],
)
def test_numbers_have_neither_names_nor_an_order_of_labels(settings, says):
    rows = [{"text": f"t {n}", "label": n / 3} for n in range(9)]
    with pytest.raises(SettingsError, match=says):
        load(DataConfig(**settings), "regression", data=rows, dev=rows)


def test_a_fold_says_that_dev_rows_are_not_read():
    rows = [{"text": f"t {n}", "label": "ab"[n % 2]} for n in range(20)]
    loaded = load(DataConfig(fold="1/5"), None, data=rows, dev=rows[:3])
    assert len(loaded.dev) == 4 and "data.dev is not read" in loaded.said[0]
    assert "not read" not in " ".join(load(DataConfig(fold="1/5"), None, data=rows).said)


@pytest.mark.parametrize("bad", ["nan", "inf", "a", True, [1]])
def test_a_regression_label_is_a_finite_number(bad):
    with pytest.raises(DataError, match="is no finite number"):
        opened([{"text": "a", "score": bad}], "regression", label="score")


def test_ordinal_labels_are_in_their_order():
    rows = [{"text": "a", "label": "good"}]
    assert opened(rows, "ordinal", label_order=("bad", "good"))[0].label == "good"
    with pytest.raises(SettingsError, match=r"data.label_order: an ordinal task needs the order"):
        opened(rows, "ordinal")
    with pytest.raises(DataError, match=r"train\[0\]: the label 'good' is not in data.label_order"):
        opened(rows, "ordinal", label_order=("bad", "goood"))


def test_a_label_given_twice_is_refused():
    with pytest.raises(DataError, match="a label is given twice"):
        opened([{"text": "a", "labels": ["x", "x"]}])


def test_an_unknown_task_names_the_nearest():
    with pytest.raises(SettingsError, match="did you mean 'tagging'"):
        opened([{"text": "a", "label": 1}], "taging")


def test_rows_without_labels_keep_their_fields_for_prediction():
    rows = [{"text": "a", "id": 7}, {"text": "b", "label": None}]
    found = opened(rows, "classification", labelled=False, label="label")
    assert [(e.label, e.fields) for e in found] == [(None, rows[0]), (None, rows[1])]


def test_a_tagger_takes_raw_text_where_it_learned_from_tokens():
    config = {"tokens": "tokens", "tags": "tags"}
    assert opened(["New York"], "tagging", labelled=False, **config)[0].units is None
    assert opened([{"tokens": ["New", "York"]}], "tagging", labelled=False, **config)[0].units == ((0, 3), (4, 8))


def test_a_normal_form_is_for_texts_without_offsets():
    assert opened([{"text": "\uff21\uff22\uff23", "label": "x"}], normal_form="NFKC")[0].text == "ABC"
    assert opened([{"tokens": ["\uff21"], "tags": ["B-x"]}], normal_form="NFKC")[0].text == "A"
    with pytest.raises(SettingsError, match=r"data.normal_form: cannot be used with spans"):
        opened([{"text": "\uff21", "spans": [[0, 1, "x"]]}], normal_form="NFKC")


# Label names


@pytest.mark.parametrize(
    ("names", "seen", "table"),
    [
        (AG, "0123", dict(zip("0123", AG, strict=True))),
        (AG, "1234", dict(zip("1234", AG, strict=True))),
        (dict(zip("0123", AG, strict=True)), "1234", dict(zip("1234", AG, strict=True))),
        (dict(zip("1234", AG, strict=True)), "0123", dict(zip("0123", AG, strict=True))),
        (dict(zip("1234", AG, strict=True)), "23", dict(zip("1234", AG, strict=True))),
        (AG, ["World", "Sports"], None),
        (("1", "0"), "01", {"0": "1", "1": "0"}),
    ],
)
def test_ids_are_named_where_only_one_counting_fits(names, seen, table):
    assert resolve(names, set(seen), "a")[0] == table


@pytest.mark.parametrize(
    ("names", "seen", "says"),
    [
        (AG, "123", "may count from 0 or from 1"),
        (AG, "01234", "the label '4' has no name"),
        (AG, "124", "has no name"),
        (AG, ["0", "World"], "the label 'World' has no name"),
        (AG, ["Wrold"], "did you mean 'World'"),
        ({"a": "x"}, "b", "the label 'b' has no name"),
    ],
)
def test_ids_that_fit_two_countings_or_none_are_refused(names, seen, says):
    with pytest.raises(DataError, match=says) as caught:
        resolve(names, set(seen), "train.csv")
    assert caught.value.at == "train.csv" and caught.value.hint


# The sealed test


def rows(first, last):
    return [{"text": f"text {n}", "label": n % 2} for n in range(first, last)]


def test_the_test_file_is_refused_for_training_under_any_name(tmp_path):
    write(tmp_path / "train.jsonl", rows(0, 9))
    write(tmp_path / "copy.jsonl", rows(0, 9))
    for settings in ({"train": "train.jsonl"}, {"train": "train.jsonl", "dev": "copy.jsonl"}):
        with pytest.raises(DataError, match=r"is the same file as data.test"):
            load(DataConfig(**settings, test="copy.jsonl"), None, base=tmp_path)


def test_most_of_the_test_rows_in_training_are_refused_and_a_few_are_not():
    def leaks(overlap):
        load(
            DataConfig(test=None),
            None,
            data=rows(0, 20),
            dev=rows(50, 60),
            test=rows(20 - overlap, 30 - overlap),
        )

    leaks(5)
    with pytest.raises(
        DataError, match=r"6 of 10 test rows are in data.train .first: test.0., test.1., test.2."
    ) as caught:
        leaks(6)
    assert caught.value.hint


def test_the_same_text_under_another_label_is_no_leak():
    flipped = [{**row, "label": 1 - row["label"]} for row in rows(0, 10)]
    data = [open_dataset(part, DataConfig(), None, labelled=True, name="x") for part in (rows(0, 10), flipped)]
    refuse_leaks({"train": data[0]}, data[1])


def test_the_ledger_is_told_before_the_test_split_is_read(tmp_path):
    class Ledger:
        notes: ClassVar[list[tuple[str, str]]] = []

        def note(self, purpose, source, **facts):
            self.notes.append((purpose, source))
            assert not purpose.startswith("opening") or (tmp_path / "test.jsonl").read_text() == "broken"

    write(tmp_path / "train.jsonl", rows(0, 20))
    (tmp_path / "test.jsonl").write_text("broken")
    with pytest.raises(LabeltuneError):
        load(DataConfig(train="train.jsonl", test="test.jsonl"), None, base=tmp_path, ledger=Ledger())
    load(DataConfig(train="train.jsonl", test=0.2), None, base=tmp_path, ledger=Ledger())
    sources = [str(tmp_path / name) for name in ("test.jsonl", "train.jsonl")]
    assert Ledger.notes == [("opening", sources[0]), ("splitting", sources[1])]


# A data set


def test_a_data_set_is_read_anew_each_time_and_notices_a_change(tmp_path):
    path = write(tmp_path / "train.jsonl", rows(0, 5))
    data = open_dataset(path, DataConfig(), None, labelled=True, name="train")
    assert list(data) == list(data) and len(data) == 5
    assert data.source == str(path) and len(data.sha256) == 64
    path.write_text(path.read_text() + '{"text": "more", "label": 1}\n')
    with pytest.raises(DataError, match="has changed since it was opened"):
        list(data)


def test_rows_in_memory_have_no_checksum():
    assert open_dataset(rows(0, 2), DataConfig(), None, labelled=True, name="train").sha256 is None


# Real data


def real(shared, task=None, **settings):
    return load(DataConfig(**settings), task, base=shared / "data")


@pytest.mark.parametrize(
    ("kind", "sizes", "labels"), [("binary", [6920, 872, 1821], "01"), ("fine", [8544, 1101, 2210], "01234")]
)
def test_sst_has_the_rows_it_says(shared, kind, sizes, labels):
    files = {"train": f"sst/stsa.{kind}.train", "dev": f"sst/stsa.{kind}.dev", "test": f"sst/stsa.{kind}.test"}
    loaded = real(shared, **files)
    assert [len(loaded.train), len(loaded.dev), len(loaded.test)] == sizes
    assert sorted({example.label for example in loaded.train}) == list(labels)
    assert loaded.task == "classification"


def test_ag_news_loads_as_it_lies(shared):
    files = {"train": "ag_news/train_subset_derived.jsonl", "test": "ag_news/test.csv"}
    loaded = real(shared, **files, columns=("label", "title", "description"), label_names=AG)
    assert (len(loaded.train) + len(loaded.dev), len(loaded.test)) == (14_547, 7_600)
    assert Counter(example.label for example in loaded.test) == dict.fromkeys(AG, 1_900)
    first = next(iter(loaded.test))
    assert (first.id, first.label, first.text.split("\n")[0]) == (
        "test.csv:1",
        "Business",
        "Fears for T N pension after talks",
    )


def test_a_template_serves_the_split_that_has_its_fields_and_data_text_the_other(shared):
    files = {"train": "ag_news/train_subset_derived.jsonl", "test": "ag_news/test.csv"}
    how = {"columns": ("label", "title", "description"), "template": "{title} . {description}", "text": "text"}
    loaded = real(shared, **files, **how, label_names=AG)
    assert next(iter(loaded.test)).text.startswith("Fears for T N pension after talks . Unions")
    assert next(iter(loaded.train)).text.startswith("Update 1: Vivendi, Messier Are Fined")


def test_wnut17_has_the_sentences_and_entities_it_says(shared):
    files = ("wnut17train.conll", "emerging.dev.conll", "emerging.test.annotated")
    loaded = real(shared, **dict(zip(("train", "dev", "test"), (f"wnut17/{name}" for name in files), strict=True)))
    splits = (loaded.train, loaded.dev, loaded.test)
    assert [len(split) for split in splits] == [3_394, 1_009, 1_287]
    # An oracle of its own: the B- tags of the files as text.
    begins = [(shared / "data/wnut17" / name).read_text("utf-8").count("\tB-") for name in files]
    assert [sum(len(example.spans) for example in split) for split in splits] == begins == [1_975, 836, 1_079]
    assert len({span.label for example in loaded.train for span in example.spans}) == 6


@pytest.mark.slow
def test_livedoor_loads_from_its_folder_and_splits_as_published(shared):
    loaded = real(shared, train="livedoor/text", dev=0.1, test=0.1, normal_form="NFKC")
    splits = (loaded.train, loaded.dev, loaded.test)
    assert [len(split) for split in splits] == [5_895, 736, 736]
    labels = Counter(example.label for split in splits for example in split)
    assert sorted(labels.values()) == [511, 770, 842, 864, 870, 870, 870, 870, 900]
    assert loaded.config.template == "{title}\n{body}"
    assert not any(
        character in example.text for example in loaded.dev for character in "\uff21\uff22\uff23\uff11\uff12\uff13"
    )


def test_lists_as_python_writes_them_into_a_table_are_lists(tmp_path):
    labels = [["sport"], ["sport", "it's news"], [], ["it's news"]] * 10
    table = pd.DataFrame({"text": [f"row {n}" for n in range(40)], "labels": labels})
    table.to_csv(tmp_path / "a.csv", index=False)
    loaded = load(DataConfig(train=str(tmp_path / "a.csv"), dev=0.2), None)
    assert loaded.task == "multilabel"
    assert {label for row in loaded.train for label in row.label} == {"sport", "it's news"}


def test_labels_in_brackets_are_labels_and_half_a_list_is_refused(tmp_path):
    bracketed = [{"text": f"row {n}", "label": ("[REQ]", "[BUG]")[n % 2]} for n in range(40)]
    assert load(DataConfig(dev=0.2), None, data=bracketed).task == "classification"
    numpys = [{"text": f"row {n}", "label": "['a' 'b']"} for n in range(40)]
    with pytest.raises(DataError, match="is no list of labels"):
        load(DataConfig(dev=0.2), "multilabel", data=numpys)


def test_tokens_that_are_named_are_read_beside_a_text_that_is_not():
    rows = [{"text": f"A text {n}.", "tokens": ["some", "tokens", str(n)], "label": "xy"[n % 2]} for n in range(20)]
    assert load(DataConfig(dev=0.2), None, data=rows).train.columns.text == "text"
    loaded = load(DataConfig(dev=0.2, tokens="tokens"), None, data=rows)
    assert next(iter(loaded.train)).text.startswith("some tokens")
    assert opened(rows, labelled=False, tokens="tokens")[0].text == "some tokens 0"
