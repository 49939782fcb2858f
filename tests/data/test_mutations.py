"""Whatever is cut, doubled or slipped into a file, a row or a template: our errors with an address, or what is there.

`make check` tries two thousand of them, `make fuzz` twenty thousand with a new seed each time.
"""

import bz2
import gzip
import io
import json
import lzma
import math
import time
from string import Formatter

import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import Table

from labeltune.data.datasets import open_dataset
from labeltune.data.encoding import Encoder
from labeltune.data.settings import DataConfig
from labeltune.data.templates import parse
from labeltune.errors import LabeltuneError
from labeltune.settings import build
from labeltune.tasks import TASKS

SLOWEST = 1.0
"""Seconds of processor time that any input may take."""

TEXTS = ["New York is big", "été à Zürich", "東京 と 大阪", "plain words here", "a, b; c\td", 'she said "no"']
LABELLED = [{"text": text, "label": "ab"[n % 2]} for n, text in enumerate(TEXTS)]
TITLED = [{"title": f"t{n}", "body": text, "label": n % 2} for n, text in enumerate(TEXTS)]
SEVERAL = [{"text": text, "labels": ["a", "b", "c"][: n % 4]} for n, text in enumerate(TEXTS)]
SCORED = [{"text": text, "score": n / 2} for n, text in enumerate(TEXTS)]
SPANNED = [{"text": text, "spans": [{"start": 0, "end": len(text.split()[0]), "label": "x"}]} for text in TEXTS]
TAGGED = [{"tokens": text.split(), "tags": ["B-x", *["I-x"] * (len(text.split()) - 1)]} for text in TEXTS]


def _lines(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def _table(rows, separator):
    plain = [[str(cell).replace(separator, " ").replace('"', "") for cell in row.values()] for row in rows]
    return "".join(separator.join(line) + "\n" for line in [list(rows[0]), *plain]).encode()


def _parquet(rows):
    file = io.BytesIO()
    pq.write_table(Table.from_pylist(rows), file)
    return file.getvalue()


def _conll(scheme):
    tags = {"IOB2": ["B-x", "I-x", "O"], "IOB1": ["I-x", "I-x", "O"], "BIOES": ["B-x", "E-x", "S-y"]}[scheme]
    return "".join("".join(f"w{n}\t{tag}\n" for n, tag in enumerate(tags)) + "\n" for _ in range(4)).encode()


ARTICLE = "http://news/1\n2011-05-01T10:00:00+0900\nタイトル\n　本文です。\n\n\uff21\uff22 ends\n".encode()
"""One of two categories of articles; the other one is intact."""

FILES = {
    "jsonl": (_lines(LABELLED), "classification", {}),
    "json": (json.dumps(LABELLED).encode(), "classification", {}),
    "names.jsonl": (_lines(TITLED), "classification", {"template": "{title}: {body}", "label_names": ["no", "yes"]}),
    "several.jsonl": (_lines(SEVERAL), "multilabel", {}),
    "scored.jsonl": (_lines(SCORED), "regression", {}),
    "ordered.jsonl": (_lines(LABELLED), "ordinal", {"label_order": ["b", "a"]}),
    "spans.jsonl": (_lines(SPANNED), "tagging", {}),
    "templated.jsonl": (_lines(SPANNED), "tagging", {"template": "read {text} now", "text": "text"}),
    "tags.jsonl": (_lines(TAGGED), "tagging", {}),
    "csv": (_table(LABELLED, ","), "classification", {}),
    "titled.csv": (_table(TITLED, ","), "classification", {"template": "{title}\n{body}", "normal_form": "NFKC"}),
    "semicolon.csv": (_table(LABELLED, ";"), "classification", {}),
    "tsv": (_table(LABELLED, "\t"), "classification", {}),
    "unquoted.tsv": (b'text\tlabel\n"so" she said\ta\nan " alone\tb\nplain\ta\n', "classification", {}),
    "txt": ("".join(f"{text}\n" for text in TEXTS).encode(), None, {}),
    "folder": (ARTICLE, "classification", {}),
    "titled.folder": (ARTICLE, "classification", {"template": "{title}\n{body}", "normal_form": "NFKC"}),
    "lines": (b"".join(b"%d %s\n" % (n % 2, text.encode()) for n, text in enumerate(TEXTS * 2)), "classification", {}),
    "conll": (_conll("IOB2"), "tagging", {}),
    "iob1.conll": (_conll("IOB1"), "tagging", {}),
    "bioes.conll": (_conll("BIOES"), "tagging", {}),
    "parquet": (_parquet(LABELLED), "classification", {}),
    "several.parquet": (_parquet(SEVERAL[1:]), "multilabel", {}),
    "jsonl.gz": (gzip.compress(_lines(LABELLED), mtime=0), "classification", {}),
    "jsonl.xz": (lzma.compress(_lines(LABELLED)), "classification", {}),
    "jsonl.zst": (zstandard.compress(_lines(LABELLED)), "classification", {}),
    "bz2": (bz2.compress(_lines(LABELLED)), "classification", {}),
}
"""Suffix -> an intact file, its task (None has no labels), the settings that it is read with."""

CHECKED = ("jsonl.gz", "jsonl.xz")
"""Their own checksums find every change."""
BINARY = ("parquet", "several.parquet", "jsonl.zst", "bz2")
"""Nothing but the format tells what a changed byte means."""

JUNK = [
    b'"',
    b"\n",
    b"\r\n",
    b"\0",
    b"\xff",
    b"{",
    b"[",
    b"]",
    b"}",
    b",",
    b"\t",
    b" ",
    b"null",
    b"NaN",
    b"1e999",
    b"-1",
]
JUNK += [
    b"\\ud800",
    b"\xed\xa0\x80",
    b"B-",
    b"-x",
    b"\xef\xbb\xbf",
    b"true",
    b"\xe2\x80\xa8",
    b"\\n",
    b'""',
    b"[" * 300,
]
CELLS = [None, True, -1, 10**30, 1.5, float("nan"), float("inf"), "", " ", "\0", "\ud800", "a" * 3000, [], {}, [[]]]
CELLS += [{"start": 0}, [0, 1, "x"], [["a"]], "[1", "[0, 99, 'x']", [None], ["a", "a"], {"a": {"b": []}}]


@st.composite
def damaged_bytes(draw):
    """A kind of file, and its content after one to four cuts, insertions, doublings and flips."""
    kind = draw(st.sampled_from(sorted(FILES)))
    content = FILES[kind][0]
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(content)))
        cut = draw(st.sampled_from([0, 0, 1, 5, 40, 10**6]))
        put = draw(st.sampled_from([*JUNK, content[place : place + 30], bytes([draw(st.integers(0, 255))])]))
        content = content[:place] + put + content[place + cut :]
    return kind, content


@st.composite
def damaged_rows(draw):
    """A kind of JSONL file, and rows of it after one to four changes of cells and names."""
    kind = draw(st.sampled_from([kind for kind in sorted(FILES) if kind.endswith("jsonl")]))
    rows = [json.loads(line) for line in FILES[kind][0].splitlines()]
    for _ in range(draw(st.integers(1, 4))):
        row = draw(st.sampled_from(rows))
        name = draw(st.sampled_from([*row, "new", "", "text.", "0"]))
        if draw(st.booleans()):
            row[name] = draw(st.sampled_from([*CELLS, *row.values()]))
        else:
            row.pop(name, None)
    return kind, "".join(json.dumps(row) + "\n" for row in rows).encode()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("damaged")


def read(place, kind, content, tokenizer, policy):
    """The examples of a file, encoded too; LabeltuneError is all that may come of it, and within a second."""
    _, task, given = FILES[kind]
    path = place / f"damaged.{kind}"
    if kind.endswith("folder"):
        _articles(path, content)
    else:
        path.write_bytes(content)
    began = time.process_time()
    try:
        config = build(DataConfig, {**given, "on_bad_row": policy})
        how = {"labelled": task is not None, "name": "train", "quarantine": place / "quarantine"}
        found = list(open_dataset(path, config, task, **how))
        if task is None:
            return found
        labels = TASKS[task].label_set(found, config)
        targets, label_of = TASKS[task].targets, TASKS[task].label_of(labels)
        encoder = Encoder(tokenizer, config=config, max_tokens=24, targets=targets, label_of=label_of)
        list(encoder.encode_many(found))
    finally:
        assert time.process_time() - began < SLOWEST
    return found


def _articles(path, content):
    for category, article in (("one", content), ("two", ARTICLE)):
        (path / category).mkdir(parents=True, exist_ok=True)
        (path / category / "1.txt").write_bytes(article)


def look(place, damage, tokenizer, policy):
    """Read a damaged file; an error has an address, a row that is read is in the file."""
    kind, content = damage
    try:
        found = read(place, kind, content, tokenizer, policy)
    except LabeltuneError as error:
        assert error.at and error.message
        return
    if kind in CHECKED:
        whole = [(row["text"], row["label"]) for row in LABELLED]
        assert [(example.text, example.label) for example in found] == whole
    elif kind.endswith("jsonl"):
        lines = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
        for example in found:
            said_by_json(kind, example, json.loads(lines[int(example.id.rsplit(":", 1)[1]) - 1]))
    elif kind not in (*BINARY, "json", "titled.csv", "titled.folder"):
        there = content.decode(errors="replace") + (ARTICLE.decode() if kind == "folder" else "")
        assert all(word in there for example in found for word in example.text.split())


def said_by_json(kind, example, row):
    """Text and label are what the JSON row says; where a column was lost in every row, another may stand for it."""
    _, task, given = FILES[kind]
    if "tokens" in row and "text" not in row:
        assert example.text == " ".join(row["tokens"])
    elif "template" in given:
        parts = Formatter().parse(given["template"])
        assert example.text == "".join(lead + ("" if name is None else _plain(row[name])) for lead, name, *_ in parts)
    else:
        assert example.text in ([row["text"]] if "text" in row else row.values())
    label = row.get({"multilabel": "labels", "regression": "score"}.get(task, "label"), ...)
    if task == "regression" and label is not ...:
        assert example.label == float(label)
    elif task == "multilabel" and isinstance(label, list):
        assert sorted(map(_plain, label)) == list(example.label)
    elif task in ("classification", "ordinal") and label is not ...:
        names = {"0": "no", "1": "yes"} if "label_names" in given else {}
        assert example.label == names.get(_plain(label), _plain(label))
    elif task == "tagging" and isinstance(row.get("spans"), list):
        assert len(example.spans) == len(row["spans"])


def _plain(cell):
    if isinstance(cell, float) and math.isinf(cell):
        return str(cell)
    if isinstance(cell, float) and cell.is_integer():
        cell = int(cell)
    return json.dumps(cell) if isinstance(cell, bool | int | float) else cell


POLICIES = st.sampled_from(["error", "skip", "quarantine"])


@given(damaged_bytes(), POLICIES)
def test_damaged_files_give_our_errors_or_what_is_in_them(place, tiny_tokenizer, damage, policy):
    look(place, damage, tiny_tokenizer, policy)


@given(damaged_rows(), POLICIES)
def test_damaged_rows_give_our_errors_or_what_is_in_them(place, tiny_tokenizer, damage, policy):
    look(place, damage, tiny_tokenizer, policy)


@given(st.text(alphabet="{}ab!:.[0]\n\ud800\0 ", max_size=12))
def test_any_template_fills_fields_by_name_or_is_refused(template):
    values = {"a": "one", "b": "two"}
    try:
        filled = parse(template).fill(values, at="row")
    except LabeltuneError as error:
        assert error.at and error.message
        return
    assert filled.text == template.format(**values)


@pytest.mark.slow
@settings(max_examples=1_000)
@given(damaged_bytes(), POLICIES)
def test_a_thousand_damaged_files(place, tiny_tokenizer, damage, policy):
    look(place, damage, tiny_tokenizer, policy)


@pytest.mark.slow
@settings(max_examples=1_000)
@given(damaged_rows(), POLICIES)
def test_a_thousand_damaged_rows(place, tiny_tokenizer, damage, policy):
    look(place, damage, tiny_tokenizer, policy)


@pytest.mark.fuzz
@settings(max_examples=10_000, derandomize=False)
@given(damaged_bytes(), POLICIES)
def test_ten_thousand_damaged_files(place, tiny_tokenizer, damage, policy):
    look(place, damage, tiny_tokenizer, policy)


@pytest.mark.fuzz
@settings(max_examples=10_000, derandomize=False)
@given(damaged_rows(), POLICIES)
def test_ten_thousand_damaged_rows(place, tiny_tokenizer, damage, policy):
    look(place, damage, tiny_tokenizer, policy)
