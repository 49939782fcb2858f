"""Whatever JSON rows hold, and however they are cut into shards, a table of them has every row, whole and in order."""

import csv
import json
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from labeltune.answers import Answered
from labeltune.bulk.forms import FORMS, form_of

NAMES = st.sampled_from(["a", "a.b", "c d", "ü"])
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(2**53, 2**66)
    | st.floats(allow_nan=False, allow_infinity=False)
)
CELLS = st.recursive(
    LEAVES | st.text(st.characters(exclude_categories=["Cs"]), max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=5,
)
ROWS = st.lists(st.dictionaries(NAMES, CELLS, max_size=3), min_size=1, max_size=8)
CUTS = st.sets(st.integers(1, 7))
ANSWER = {"label": "x", "score": 0.5, "scores": {"x": 0.5, "y": 0.5}}


def joined(rows: list[dict], cuts: set[int], folder: Path, suffix: str) -> Path:
    """The output of some rows, kept in shards that end at `cuts`."""
    form, shards = FORMS[suffix], []
    ends = [0, *sorted(cut for cut in cuts if cut < len(rows)), len(rows)]
    for first, last in pairwise(ends):
        shards.append(folder / f"{first}.shard")
        with shards[-1].open("wb") as file:
            form.write(file, [Answered(row, ANSWER) for row in rows[first:last]], ["x", "y"])
    form.join(shards, folder / f"out{suffix}", f"out{suffix}", None)
    return folder / f"out{suffix}"


def same(cell: object, found: object) -> bool:
    """A cell as it was, or its words where its column is text; objects of a column may have gained null fields."""
    if cell is None:
        return found is None
    if isinstance(cell, dict) and isinstance(found, dict):
        return all(same(cell.get(name), found.get(name)) for name in {*cell, *found})
    if isinstance(cell, list) and isinstance(found, list):
        return len(cell) == len(found) and all(map(same, cell, found))
    if isinstance(found, str) and not isinstance(cell, str):
        return same(cell, json.loads(found))
    return bool(cell == found) or (isinstance(cell, int) and isinstance(found, float) and float(cell) == found)


@example(rows=[{"a": 2**60 + 1}, {"a": 0.5}], cuts={1})
@example(rows=[{"a": [2**60 + 1]}, {"a": [0.5]}], cuts={1})
@example(rows=[{"a": {"b": 1}}, {"a": {"b": "x"}}], cuts={1})
@given(rows=ROWS, cuts=CUTS)
def test_parquet_holds_every_row(tmp_path_factory, rows: list[dict], cuts: set[int]) -> None:
    found = pq.read_table(joined(rows, cuts, tmp_path_factory.mktemp("rows"), ".parquet"))
    assert found.schema.names == [*dict.fromkeys(name for row in rows for name in row), *ANSWER]
    assert found.schema.field("scores").type == pa.struct([("x", pa.float32()), ("y", pa.float32())])
    for row, line in zip(rows, found.to_pylist(), strict=True):
        assert all(same(row.get(name), line[name]) for name in found.schema.names[:-3]), (row, line)
        assert {name: line[name] for name in ANSWER} == ANSWER


@example(rows=[{"a": "x\ry"}, {"a": "\r"}], cuts=set())
@given(rows=ROWS, cuts=CUTS)
def test_csv_holds_every_row(tmp_path_factory, rows: list[dict], cuts: set[int]) -> None:
    with joined(rows, cuts, tmp_path_factory.mktemp("rows"), ".csv").open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert [line["label"] for line in lines] == ["x"] * len(rows)
    for row, line in zip(rows, lines, strict=True):
        for name, cell in row.items():
            if isinstance(cell, str):
                assert line[name] == cell


def test_csv_keeps_each_object_as_it_was(tmp_path: Path) -> None:
    cells = [{"a": 1}, {"b": [None, 2]}, None, {}]
    path = joined([{"x": cell} for cell in cells], {1}, tmp_path, ".csv")
    with path.open(newline="", encoding="utf-8") as file:
        found = [json.loads(line["x"]) if line["x"] else None for line in csv.DictReader(file)]
    assert found == cells and b"\r" not in path.read_bytes()


def test_objects_of_many_keys_are_text_in_parquet(tmp_path: Path) -> None:
    cells = [{f"user{number}": number} for number in range(300)]
    table = pq.read_table(joined([{"x": cell} for cell in cells], set(), tmp_path, ".parquet"))
    assert [json.loads(cell) for cell in table["x"].to_pylist()] == cells


@pytest.mark.parametrize("name", ["a.csv.GZ", "a.TSV.zst", "a.PQ", "a.jsonl.GZ"])
def test_a_suffix_says_the_same_in_any_case(name: str) -> None:
    assert form_of(name) is form_of(name.lower())
