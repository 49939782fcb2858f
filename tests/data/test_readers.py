"""Every format gives the same examples, keeps its addresses, and names what is wrong with a row."""

import gzip
import json
import lzma
import random
from enum import Enum
from pathlib import Path

import datasets
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from labeltune.data.datasets import load, open_dataset
from labeltune.data.readers import READERS, open_source, recognise_format
from labeltune.data.settings import DataConfig
from labeltune.errors import DataError, LabeltuneError
from labeltune.schema import Example

TEXTS = ["plain words here", 'a "quoted, one"', "naïve 日本語 🙂", "tab-free; semi", "  leading space"]
LABELS = ["pos", "neg", "pos", "neg", "pos"]
ROWS = [{"text": text, "label": label} for text, label in zip(TEXTS, LABELS, strict=True)]
COMPRESS = {".gz": gzip.compress, ".xz": lzma.compress, ".zst": zstandard.ZstdCompressor().compress}


def content(examples):
    """All of an example but its address."""
    return [(e.text, e.label, e.spans, e.units, dict(e.fields), e.room) for e in examples]


def write(path: Path, rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def examples(data, task=None, base=Path(), **settings) -> list[Example]:
    return list(open_dataset(data, DataConfig(**settings), task, labelled=True, name="train", base=base))


def as_file(kind: str, folder: Path):
    """The rows in one of the formats; what `open_dataset` takes."""
    frame = pd.DataFrame(ROWS)
    path = folder / f"rows.{kind}"
    match kind:
        case "jsonl":
            write(path, ROWS)
        case "json":
            path.write_text(json.dumps(ROWS, indent=1, ensure_ascii=False), encoding="utf-8")
        case "csv" | "tsv":
            frame.to_csv(path, index=False, sep="," if kind == "csv" else "\t")
        case "semicolon.csv" | "pipe.csv":
            frame.to_csv(path, index=False, sep=";" if kind == "semicolon.csv" else "|")
        case "unquoted.tsv":
            path.write_text("text\tlabel\n" + "".join(f"{t}\t{n}\n" for t, n in zip(TEXTS, LABELS, strict=True)))
        case "train":
            path.write_text("".join(f"__label__{n} {t}\n" for t, n in zip(TEXTS, LABELS, strict=True)))
        case "parquet":
            frame.to_parquet(path)
        case "saved":
            datasets.Dataset.from_list(ROWS).save_to_disk(str(path))
        case "table":
            for name in ("pos", "neg"):
                (folder / f"{name}.txt").write_text("".join(r["text"] + "\n" for r in ROWS if r["label"] == name))
            return {name: str(folder / f"{name}.txt") for name in ("pos", "neg")}
        case _:
            return {
                "dicts": ROWS,
                "frame": frame,
                "columns": {"text": TEXTS, "label": LABELS},
                "lists": (TEXTS, LABELS),
                "pairs": list(zip(TEXTS, LABELS, strict=True)),
                "dataset": datasets.Dataset.from_list(ROWS),
            }[kind]
    return path


KINDS = ["json", "csv", "tsv", "semicolon.csv", "pipe.csv", "unquoted.tsv", "train", "parquet", "saved", "table"]
MEMORY = ["dicts", "frame", "columns", "lists", "pairs", "dataset"]


@pytest.mark.parametrize("kind", KINDS + MEMORY)
def test_same_rows_through_every_reader_give_equal_examples(kind, tmp_path):
    expected = content(examples(as_file("jsonl", tmp_path)))
    found = content(examples(as_file(kind, tmp_path)))
    if kind == "table":  # file by file
        expected, found = sorted(expected, key=str), sorted(found, key=str)
    assert found == expected


def test_category_folders_give_the_rows_of_jsonl(tmp_path):
    for number, row in enumerate(ROWS):
        folder = tmp_path / "texts" / row["label"]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.txt").write_text(row["text"], encoding="utf-8")
        (folder / "LICENSE.txt").write_text("not an article")
    found = examples(tmp_path / "texts")
    assert {(e.text, e.label) for e in found} == set(zip(TEXTS, LABELS, strict=True))
    assert [e.id for e in found][:2] == ["texts/neg/1.txt", "texts/neg/3.txt"]


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "train"])
def test_compression_changes_nothing(kind, suffix, tmp_path):
    path = as_file(kind, tmp_path)
    packed = path.with_name(path.name + suffix)
    packed.write_bytes(COMPRESS[suffix](path.read_bytes()))
    assert content(examples(packed)) == content(examples(path))


@pytest.mark.parametrize("suffix", COMPRESS)
def test_cut_off_archive_is_an_error_with_address(suffix, tmp_path):
    path = tmp_path / f"train.jsonl{suffix}"
    noise = random.Random(0)
    rows = "".join(json.dumps({"text": noise.randbytes(20).hex(), "label": "a"}) + "\n" for _ in range(3000))
    whole = COMPRESS[suffix](rows.encode())
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=rf"train\.jsonl\{suffix}: the data cannot be read"):
        examples(path)


def test_several_zstandard_frames_are_one_file(tmp_path):
    path = tmp_path / "train.jsonl.zst"
    path.write_bytes(b"".join(COMPRESS[".zst"](json.dumps(row).encode() + b"\n") for row in ROWS))
    assert [e.text for e in examples(path)] == TEXTS


TAGGED = [(["EU", "rejects", "New", "York"], ["B-ORG", "O", "B-LOC", "I-LOC"]), (["Ok"], ["O"])]
TAG_ROWS = [{"tokens": tokens, "tags": tags} for tokens, tags in TAGGED]


def conll(separator: str, extra: tuple[str, ...] = ()) -> str:
    lines = ["-DOCSTART- -X- O", ""]
    for tokens, tags in TAGGED:
        lines += [separator.join((token, *extra, tag)) for token, tag in zip(tokens, tags, strict=True)] + [""]
    return "\n".join(lines)


@pytest.mark.parametrize(
    "text", [conll("\t"), conll(" "), conll("\t").replace("\n\n", "\n\t\n"), conll("\t").replace("\n", "\r\n")]
)
def test_columns_give_the_examples_of_jsonl(text, tmp_path):
    path = tmp_path / "train.conll"
    path.write_text(text, newline="")
    expected = content(examples(write(tmp_path / "t.jsonl", TAG_ROWS)))
    assert content(examples(path)) == expected
    assert [(s.start, s.end, s.label) for s in examples(path)[0].spans] == [(0, 2, "ORG"), (11, 19, "LOC")]


def test_any_column_can_be_the_tags(tmp_path):
    path = tmp_path / "train.conll"
    path.write_text("EU NNP B-ORG I-NP\nrules VB O I-VP\n")
    found = examples(path, columns=("word", "pos", "ner", "chunk"), tags="ner")
    assert found[0].spans[0].label == "ORG"
    assert examples(path)[0].spans[0].label == "NP"  # the last column, unless named


@pytest.mark.parametrize(
    ("tags", "scheme"),
    [("B-x I-x O B-x", "IOB2"), ("I-x I-x O I-x", "IOB1"), ("B-x E-x O S-x", "BIOES"), ("B-x L-x O U-x", "BILOU")],
)
def test_every_scheme_gives_the_same_spans(tags, scheme, tmp_path):
    rows = write(tmp_path / "a.jsonl", [{"tokens": ["a", "b", "c", "d"], "tags": tags.split()}])
    data = open_dataset(rows, DataConfig(), None, labelled=True, name="train")
    assert [(s.start, s.end) for s in next(iter(data)).spans] == [(0, 3), (6, 7)]
    assert data.survey.scheme == scheme


def test_tags_as_ids_take_the_names_of_the_data_set(tmp_path):
    names = ["O", "B-ORG", "I-ORG", "B-LOC", "I-LOC"]
    features = datasets.Features(
        {"tokens": datasets.List(datasets.Value("string")), "ner_tags": datasets.List(datasets.ClassLabel(names=names))}
    )
    rows = [{"tokens": tokens, "ner_tags": tags} for tokens, tags in TAGGED]
    data = datasets.Dataset.from_list(rows, features=features)
    data.to_parquet(tmp_path / "train.parquet")
    expected = [e.spans for e in examples(TAG_ROWS)]
    assert [e.spans for e in examples(data)] == expected
    assert [e.spans for e in examples(tmp_path / "train.parquet")] == expected


def test_splits_of_a_saved_data_set_are_found_by_name(tmp_path):
    part = datasets.Dataset.from_list(ROWS)
    other = datasets.Dataset.from_list([{"text": "only here", "label": "pos"}])
    datasets.DatasetDict({"train": part, "validation": other}).save_to_disk(str(tmp_path / "saved"))
    loaded = load(DataConfig(train="saved", dev="validation"), None, base=tmp_path)
    assert [len(loaded.train), len(loaded.dev)] == [5, 1]
    with pytest.raises(DataError, match="no split 'validatio' but train, validation; did you mean 'validation'"):
        load(DataConfig(train="saved", dev="validatio"), None, base=tmp_path)


def test_quoted_line_ends_keep_the_address_of_the_row(tmp_path):
    path = tmp_path / "train.csv"
    path.write_text('text,label\n"two\nlines",a\nnext,b\n"three\n\nlines",a\nlast,b\n')
    assert [e.id for e in examples(path)] == ["train.csv:2", "train.csv:4", "train.csv:5", "train.csv:8"]


def test_addresses_of_every_kind_of_source(tmp_path):
    assert [e.id for e in examples(ROWS)][:2] == ["train[0]", "train[1]"]
    assert examples(as_file("parquet", tmp_path))[1].id == "rows.parquet:2"
    assert examples(as_file("jsonl", tmp_path))[1].id == "rows.jsonl:2"
    assert examples(as_file("json", tmp_path))[1].id == "rows.json[1]"
    (tmp_path / "en").mkdir()
    table = {"en": str(write(tmp_path / "en" / "rows.jsonl", ROWS)), "de": str(tmp_path / "rows.jsonl")}
    found = examples(table)
    assert (found[0].id, found[5].id) == ("en:rows.jsonl:1", "de:rows.jsonl:1")
    assert found[5].fields["part"] == "de"


@pytest.mark.parametrize(
    ("lines", "kind"),
    [
        ('{"text": "a"}', "jsonl"),
        ('[{"text": "a"}]', "json"),
        ("1 good\n0 bad", "lines"),
        ("__label__x some text", "lines"),
        ("pos good\nneg bad\n" * 10, "lines"),
        ("EU\tB-ORG\nok\tO", "conll"),
        ("EU B-ORG\nok O", "conll"),
        ("text\tlabel\nsome words\tx", "tsv"),
        ("some words of text\nand others", "text"),
        ("It is good\nA film\nThe end", "text"),
    ],
)
def test_content_settles_the_format_where_the_suffix_does_not(lines, kind, tmp_path):
    path = tmp_path / "data.unknown"
    path.write_text(lines)
    assert recognise_format(path, "data.unknown") == kind
    assert kind in READERS


@given(st.lists(st.dictionaries(st.sampled_from(["text", "x"]), st.text() | st.none() | st.integers()), min_size=1))
def test_a_streamed_array_is_what_json_says(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("json") / "a.json"
    path.write_bytes(json.dumps(rows, indent=2).encode())
    assert [dict(row.fields) for row in open_source(path, name="a", base=Path()).rows()] == rows


# Bad input


def line_17(bad: str) -> bytes:
    good = '{"text": "some words", "label": "a"}\n'
    return (good * 16 + bad + "\n" + good).encode("utf-8", "surrogateescape")


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ('{"text": "broken', "this is no JSON"),
        ('["a", "b"]', "this row is a list, not an object"),
        ("17", "this row is a number or truth value"),
        ('{"text": "a"}', "the row has no label"),
        ('{"text": "a", "label": NaN}', "the row has no label .'label' is NaN"),
        ('{"text": "a", "label": null}', "the row has no label .'label' is empty"),
        ('{"text": "a", "label": {"x": 1}}', "is no label"),
        ('{"text": "a", "label": 0.5}', "0.5 is no label"),
        ('{"text": " \\t", "label": "a"}', "the text is empty"),
        ('{"text": null, "label": "a"}', "the row has no text"),
        ('{"text": 3, "label": "a"}', "the text 'text' is 3"),
        ('{"text": "a\\u0000", "label": "a"}', "NUL character at character 2"),
        ('{"text": "a\\ud800", "label": "a"}', "lone surrogate at character 2"),
        ('{"text": "a\udce9", "label": "a"}', r"byte 12 .0xe9. is not UTF-8"),
        ('{"text": "a", "text": "b", "label": "a"}', "names 'text' twice"),
        ('{"text": "a", "label": ' + "[" * 99999, "JSON"),
        ('{"text": "a", "label": ' + "9" * 5000 + "}", "JSON"),
    ],
)
def test_a_bad_row_is_named_with_its_line_and_a_way_out(bad, says, tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_bytes(line_17(bad))
    with pytest.raises(DataError, match=says) as caught:
        examples(path)
    assert caught.value.at == "train.jsonl:17"
    assert caught.value.hint


@pytest.mark.parametrize("policy", ["skip", "quarantine"])
def test_bad_rows_are_counted_and_kept(policy, tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_bytes(line_17('{"text": "broken') + b'{"text": "no label"}\n')
    kept = tmp_path / "bad.jsonl"
    config = DataConfig(on_bad_row=policy)
    data = open_dataset(path, config, None, labelled=True, name="train", quarantine=kept)
    assert (len(data), data.bad_rows, len(list(data))) == (17, 2, 17)
    if policy == "quarantine":
        rows = [json.loads(line) for line in kept.read_text().splitlines()]
        assert [row["at"] for row in rows] == ["train.jsonl:17", "train.jsonl:19"]
        assert rows[1]["row"] == {"text": "no label"}


def test_an_old_quarantine_is_not_written_over(tmp_path):
    write(tmp_path / "train.jsonl", [*ROWS, {"text": "no label"}])
    (tmp_path / "quarantine.jsonl").write_text("earlier")
    with pytest.raises(DataError, match="already there"):
        load(DataConfig(train="train.jsonl", on_bad_row="quarantine"), None, base=tmp_path)
    assert (tmp_path / "quarantine.jsonl").read_text() == "earlier"


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"tokens": ["a", "b"], "tags": ["O"]}, "2 tokens and 1 tags"),
        ({"tokens": ["a", "b"], "tags": ["O", "X-x"]}, "'X-x' is no tag"),
        ({"tokens": ["a", ""], "tags": ["O", "O"]}, "token 2 is empty"),
        ({"tokens": [], "tags": []}, "no list of tokens"),
        ({"tokens": ["a"]}, "the row has no tags"),
    ],
)
def test_bad_tags_are_named(row, says):
    with pytest.raises(DataError, match=says) as caught:
        examples([*TAG_ROWS, row])
    assert caught.value.at == "train[2]"


@pytest.mark.parametrize(
    ("spans", "says"),
    [
        ([{"start": 0, "end": 99, "label": "x"}], "lies outside the text"),
        ([{"start": -1, "end": 3, "label": "x"}], "lies outside the text"),
        ([{"start": 2, "end": 2, "label": "x"}], "is empty"),
        ([[0, 5, "x"], [3, 7, "y"]], "the span 3:7 .y. overlaps the span 0:5 .x."),
        ([[0, 5, "x"], [1, 3, "y"]], "the span 1:3 .y. lies inside the span 0:5 .x."),
        ([[0, 5]], "is no span"),
        ([["0", 5, "x"]], "is no span"),
        (None, "the row has no spans"),
    ],
)
def test_bad_spans_are_named(spans, says):
    with pytest.raises(DataError, match=says) as caught:
        examples([{"text": "ten letters", "spans": [[0, 3, "x"]]}, {"text": "ten letters", "spans": spans}])
    assert caught.value.at == "train[1]"


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("train.jsonl", b"", "there are no rows"),
        ("train.data", b"\n\n", "this file is empty"),
        ("train.csv", b"", "this file is empty"),
        ("train.csv", b"text,label\n", "there are no rows"),
        ("train.csv", b'text,label\n"a"b,c\n', "train.csv:2: the quoting is broken"),
        ("train.csv", b'text,label\nx,y\n"open,c\n', "train.csv:3: the quoting is broken"),
        ("train.csv", b"text,label\na,b,c\n", "train.csv:2: this row has 3 columns where the header has 2"),
        ("train.csv", b"text,text\na,b\n", "the header names 'text' twice"),
        ("train.csv", b"text,label\n\xe9,x\n", "train.csv:2: byte 1 .0xe9. is not UTF-8"),
        ("train.jsonl", '{"text": "a"}'.encode("utf-16"), "this file is UTF-16"),
        ("train.jsonl.gz", b"no gzip", "is no gz file"),
        ("train.parquet", b"PAR1 but not really", "this is no Parquet file"),
        ("train.json", b'[{"text": "a", "label": "b"}, {"text"', r"train.json\[1\]: this is no JSON"),
        ("train.json", b'[{"text": "a", "label": "b"}] x', "text after the array"),
        ("train.conll", b"EU\tB-ORG\nok\n", "train.conll:2: this line has 1 columns where the file has 2"),
        ("train.txt", b"some text\nother text\n", "no column is clearly the label"),
    ],
)
def test_a_file_that_cannot_be_used_says_why(name, content, says, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=says) as caught:
        examples(tmp_path / name)
    assert name in str(caught.value)
    assert caught.value.hint


def test_a_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + json.dumps(ROWS[0]).encode())
    (tmp_path / "a.csv").write_bytes("text,label\nx,y\n".encode("utf-8-sig"))
    assert examples(tmp_path / "a.jsonl")[0].text == TEXTS[0]
    assert examples(tmp_path / "a.csv")[0].text == "x"


def test_a_missing_path_names_its_neighbour(tmp_path):
    write(tmp_path / "train.jsonl", ROWS)
    with pytest.raises(DataError, match=r"no such file or folder; did you mean 'train\.jsonl'"):
        examples(tmp_path / "trian.jsonl")


def test_a_folder_without_categories_is_refused(tmp_path):
    write(tmp_path / "train.jsonl", ROWS)
    with pytest.raises(DataError, match="this folder holds no categories"):
        examples(tmp_path)


def test_a_parquet_column_of_the_wrong_type_is_named(tmp_path):
    pq.write_table(pa.table({"text": [1, 2], "label": ["a", "b"]}), tmp_path / "train.parquet")
    with pytest.raises(DataError, match=r"train\.parquet:1: the text 'text' is 1"):
        examples(tmp_path / "train.parquet")


@pytest.mark.parametrize("data", [(["a", "b"], ["x"]), {"text": ["a"], "label": ["x", "y"]}, 3, iter(ROWS), object()])
def test_what_holds_no_rows_is_refused(data):
    with pytest.raises(DataError):
        examples(data)


def test_pandas_missing_labels_are_missing():
    with pytest.raises(DataError, match=r"train\[1\]: the row has no label .'label' is NaN"):
        examples(pd.DataFrame({"text": ["a", "b"], "label": [1.0, float("nan")]}))
    assert examples(pd.DataFrame({"text": ["a"], "label": [1.0]}))[0].label == "1"


class Mood(Enum):
    GOOD = "good"


class Nothing:
    pass


def test_sets_enumerations_and_intervals_are_labels_and_unknown_objects_are_none():
    assert examples([{"text": "a", "label": {"y", "x"}}], "multilabel")[0].label == ("x", "y")
    assert examples([{"text": "a", "label": Mood.GOOD}])[0].label == "good"
    assert examples(pd.DataFrame({"text": ["a"], "label": pd.cut([1], [0, 2])}))[0].label == "(0, 2]"
    for row in ({"text": "a", "label": Nothing()}, {"text": Nothing(), "label": "x"}):
        with pytest.raises(DataError, match="Nothing"):
            examples([{"text": "a", "label": "x"}] * 3 + [row])


@pytest.mark.parametrize("column", ["text", "label"])
def test_a_frame_with_a_column_twice_is_refused(column):
    frame = pd.DataFrame({"text": ["a", "b"], "label": ["x", "y"]})
    with pytest.raises(DataError, match=f"there are several columns '{column}'"):
        examples(pd.concat([frame, frame[[column]]], axis=1))


def test_a_text_of_200000_characters_goes_through_every_text_format(tmp_path):
    text = "many words " * 20_000
    for kind in ("csv", "jsonl"):
        path = tmp_path / f"long.{kind}"
        pd.DataFrame({"text": [text], "label": ["a"]}).to_csv(path, index=False) if kind == "csv" else write(
            path, [{"text": text, "label": "a"}]
        )
        assert examples(path)[0].text == text


@given(
    st.binary(max_size=300), st.sampled_from(["jsonl", "json", "csv", "tsv", "conll", "txt", "parquet", "data", "gz"])
)
def test_random_bytes_raise_our_errors_only(tmp_path_factory, content, suffix):
    path = tmp_path_factory.mktemp("noise") / f"noise.{suffix}"
    path.write_bytes(content)
    try:
        examples(path)
    except LabeltuneError as error:
        assert error.at
