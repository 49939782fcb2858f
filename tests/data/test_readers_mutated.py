"""Damaged files give our errors with an address or the rows that are really there, never a crash or another text."""

import csv
import gzip
import io
import json

from hypothesis import given
from hypothesis import strategies as st

from labeltune.data.datasets import load, open_dataset
from labeltune.data.settings import DataConfig
from labeltune.errors import LabeltuneError

ROWS = [{"text": f"some words {n}", "label": "ab"[n % 2]} for n in range(6)]
TAGGED = [{"tokens": ["a", "b"], "tags": ["B-x", "O"]}, {"text": "a b", "spans": [[0, 1, "x"]]}]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
TABLE = b"text,label\n" + b"".join(f"{row['text']},{row['label']}\n".encode() for row in ROWS)
WHOLE = {
    "jsonl": LINES,
    "tagged.jsonl": "".join(json.dumps(row) + "\n" for row in TAGGED).encode(),
    "json": json.dumps(ROWS).encode(),
    "csv": TABLE,
    "tsv": TABLE.replace(b",", b"\t"),
    "conll": b"-DOCSTART- O\n\nEU B-x\nok O\n\nde I-x\n",
    "train": b"1 good film\n0 bad film\n",
    "jsonl.gz": gzip.compress(LINES, mtime=0),
}
JUNK = [b'"', b"\n", b"\r", b"\0", b"\xff", b"{", b"[", b"]", b"}", b",", b"\t", b" ", b"null", b"NaN", b"1e999", b"-1"]
JUNK += [b"\\ud800", b"\xed\xa0\x80", b"B-", b"\xef\xbb\xbf", b"true", b"\xe2\x80\xa8"]


@st.composite
def damaged(draw, kinds=tuple(WHOLE)):
    """A kind of file, and its bytes with one to four cuts and insertions."""
    kind = draw(st.sampled_from(kinds))
    content = WHOLE[kind]
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(content)))
        cut = draw(st.sampled_from([0, 0, 1, 5, 40]))
        content = content[:place] + draw(st.sampled_from([b"", *JUNK])) + content[place + cut :]
    return kind, content


def read(folder, kind, content, **settings):
    path = folder / f"damaged.{kind}"
    path.write_bytes(content)
    return list(load(DataConfig(**settings), None, data=path, dev=ROWS).train)


@given(damaged(), st.sampled_from(["error", "skip"]))
def test_damage_raises_our_errors_only(tmp_path_factory, damage, policy):
    path = tmp_path_factory.mktemp("damaged") / f"damaged.{damage[0]}"
    path.write_bytes(damage[1])
    try:
        list(open_dataset(path, DataConfig(on_bad_row=policy), None, labelled=True, name="train"))
    except LabeltuneError as error:
        assert error.at and error.message


@given(damaged(kinds=("jsonl",)))
def test_rows_that_are_read_from_json_are_those_that_json_says(tmp_path_factory, damage):
    lines = damage[1].removeprefix(b"\xef\xbb\xbf").split(b"\n")
    try:
        found = read(tmp_path_factory.mktemp("damaged"), *damage, text="text", label="label", on_bad_row="skip")
    except LabeltuneError:
        return
    for example in found:
        row = json.loads(lines[int(example.id.rsplit(":", 1)[1]) - 1].decode())
        assert (example.text, example.label) == (row["text"], _written(row["label"]))


def _written(label):
    return json.dumps(label) if isinstance(label, bool | int) else label


@given(damaged(kinds=("csv",)))
def test_cells_that_are_read_are_those_of_the_csv_module(tmp_path_factory, damage):
    try:
        found = read(tmp_path_factory.mktemp("damaged"), *damage, text="text", label="label")
    except LabeltuneError:
        return
    text = damage[1].decode("utf-8-sig")
    separator = "," if "," in text.lstrip("\r\n").split("\n")[0] else ";"
    rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator)
    assert [dict(example.fields) for example in found] == list(rows)
