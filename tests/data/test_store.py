import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from labeltune.data.store import INDEX, Store
from labeltune.errors import RunError
from labeltune.schema import Encoded, Example

LABELS = {
    "class": lambda rng, targets: rng.integers(-1, 5, targets),
    "number": lambda rng, targets: rng.random(targets).astype(np.float32),
    "multi-hot": lambda rng, targets: rng.random((targets, 3)).astype(np.float32),
}


def encoded(seed: int, kind: str = "class") -> Encoded:
    rng = np.random.default_rng(seed)
    windows, targets = rng.integers(1, 5, rng.integers(1, 4)).astype(np.int32), int(rng.integers(0, 5))
    start = rng.integers(0, windows.sum(), targets).astype(np.int32)
    return Encoded(
        tokens=rng.integers(0, 9, windows.sum()).astype(np.int32),
        window_lengths=windows,
        piece_start=start,
        piece_end=start + 1,
        piece_weight=np.ones(targets, np.int32),
        piece_target=np.arange(targets, dtype=np.int32),
        target_span=rng.integers(0, 9, (targets, 2)).astype(np.int32),
        labels=LABELS[kind](rng, targets),
        dropped_units=int(rng.integers(0, 3)),
        dropped_characters=int(rng.integers(0, 3)),
    )


def assert_same(one: Encoded, other: Encoded) -> None:
    for name, value in dataclasses.asdict(one).items():
        found = getattr(other, name)
        np.testing.assert_array_equal(value, found)
        assert np.asarray(value).dtype == np.asarray(found).dtype


def examples(count: int) -> list[Example]:
    return [Example(f"träin.jsonl:{number}", "x") for number in range(count)]


@given(st.integers(0, 12), st.sampled_from(sorted(LABELS)))
def test_a_store_equals_the_list_of_its_rows(count, kind):
    rows = [encoded(seed % 7, kind) for seed in range(count)]
    store = Store.build(examples(count), lambda _, rows=rows: iterated(_, rows))
    assert len(store) == count
    for one, other in zip(rows, store, strict=True):
        assert_same(one, other)
    assert store.lengths.tolist() == [len(row.tokens) for row in rows]
    assert store.targets.tolist() == [len(row.target_span) for row in rows]
    assert list(store.ids) == [example.id for example in examples(count)]


def iterated(source, rows):
    """An encoder that reads all examples ahead."""
    list(source)
    return iter(rows)


@pytest.mark.parametrize("kind", sorted(LABELS))
@pytest.mark.parametrize("count", [0, 1, 300])
def test_a_mapped_store_equals_the_one_in_memory(tmp_path, kind, count):
    rows = [encoded(seed, kind) for seed in range(count)]
    mapped = Store.build(examples(count), lambda source: iterated(source, rows), tmp_path, key="k")
    assert [path.name for path in tmp_path.iterdir()] == ["k"]
    for one, other in zip(rows, mapped, strict=True):
        assert_same(one, other)
    assert list(mapped.ids) == [example.id for example in examples(count)]


def test_a_complete_store_is_opened_and_not_built_again(tmp_path):
    rows = [encoded(seed) for seed in range(5)]
    Store.build(examples(5), lambda source: iterated(source, rows), tmp_path, key="k")

    def never(source):
        raise AssertionError("built again")

    assert len(Store.build(examples(5), never, tmp_path, key="k")) == 5
    with pytest.raises(AssertionError, match="built again"):
        Store.build(examples(5), never, tmp_path, key="other")


@pytest.mark.parametrize("damage", ["tokens", INDEX])
def test_an_incomplete_store_is_built_again(tmp_path, damage):
    rows = [encoded(seed) for seed in range(5)]
    Store.build(examples(5), lambda source: iterated(source, rows), tmp_path, key="k")
    path = tmp_path / "k" / damage
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(RunError, match="no complete store"):
        Store.open(tmp_path / "k")
    again = Store.build(examples(5), lambda source: iterated(source, rows), tmp_path, key="k")
    assert_same(rows[4], again[4])


def test_a_failed_build_leaves_nothing(tmp_path):
    def broken(source):
        yield encoded(0)
        raise KeyError("row 2")

    with pytest.raises(KeyError):
        Store.build(examples(5), lambda source: (list(source), broken(source))[1], tmp_path, key="k")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written"):
        Store.build(examples(1), lambda source: iterated(source, [encoded(0)]), tmp_path / "file", key="k")


def test_rows_are_read_only_views(tmp_path):
    store = Store.build(examples(1), lambda source: iterated(source, [encoded(0)]), tmp_path, key="k")
    with pytest.raises(ValueError, match="read-only"):
        store[0].tokens[0] = 1
    with pytest.raises(IndexError):
        store[1]


def test_ids_are_a_sequence():
    store = Store.build(examples(3), lambda source: iterated(source, [encoded(seed) for seed in range(3)]))
    assert store.ids[1:] == ["träin.jsonl:1", "träin.jsonl:2"] and store.ids[-1] == "träin.jsonl:2"
