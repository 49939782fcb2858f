"""A split is stratified, seeded, the same for every order of the file, and keeps together what belongs together."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import settings as run
from hypothesis import strategies as st

from labeltune.data.datasets import load
from labeltune.data.settings import DataConfig
from labeltune.errors import DataError, SettingsError


def held_out(rows, dev=0.2, task=None, seed=42, **settings):
    """The texts of each split."""
    loaded = load(DataConfig(dev=dev, **settings), task, data=rows, seed=seed)
    splits = {"train": loaded.train, "dev": loaded.dev, "test": loaded.test}
    return {name: [example.text for example in split] for name, split in splits.items() if split is not None}


def classes(**sizes):
    return [{"text": f"{label} number {n}", "label": label} for label, size in sizes.items() for n in range(size)]


@given(st.dictionaries(st.sampled_from("abcdef"), st.integers(2, 60), min_size=1), st.floats(0.05, 0.5))
@run(max_examples=50)
def test_each_label_gives_its_fraction(sizes, fraction):
    dev = Counter(text[0] for text in held_out(classes(**sizes), dev=fraction)["dev"])
    assert dev == {label: max(1, round(fraction * size)) for label, size in sizes.items()}


@given(st.randoms())
@run(max_examples=20)
def test_the_order_of_the_file_changes_nothing(random):
    rows = classes(a=30, b=20) + classes(a=5)
    shuffled = random.sample(rows, len(rows))
    first, second = held_out(rows, test=0.2), held_out(shuffled, test=0.2)
    assert {name: sorted(texts) for name, texts in first.items()} == {n: sorted(t) for n, t in second.items()}


def test_the_seed_decides_and_every_row_is_in_one_split():
    rows = classes(a=50, b=50)
    one, again, other = held_out(rows, test=0.1), held_out(rows, test=0.1), held_out(rows, test=0.1, seed=1)
    assert one == again != other
    assert sorted(one["train"] + one["dev"] + one["test"]) == sorted(row["text"] for row in rows)


def test_another_dev_fraction_leaves_the_test_split_alone():
    rows = classes(a=50, b=50)
    assert held_out(rows, dev=0.1, test=0.2)["test"] == held_out(rows, dev=0.3, test=0.2)["test"]


def test_duplicates_stay_on_one_side_whatever_their_case_and_white_space():
    rows = [{"text": form, "label": n % 2} for n in range(40) for form in (f"Text {n}", f"text  {n}", f"TEXT {n} ")]
    parts = held_out(rows)
    seen = [{" ".join(text.lower().split()) for text in texts} for texts in parts.values()]
    assert not seen[0] & seen[1]
    assert len(parts["dev"]) == 24


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 12)), min_size=20, max_size=60))
@run(max_examples=30)
def test_groups_and_duplicates_stay_together(pairs):
    rows = [{"text": f"t{text}", "user": group, "label": 1.0} for group, text in pairs]
    try:
        loaded = load(DataConfig(dev=0.3, group="user"), "regression", data=rows)
    except DataError:  # everything hangs together
        return
    sides = [{(e.text, e.fields["user"]) for e in split} for split in (loaded.train, loaded.dev)]
    for part in (0, 1):
        assert not {pair[part] for pair in sides[0]} & {pair[part] for pair in sides[1]}


def test_entities_are_spread_by_the_rarest_of_a_row():
    tags = {"rare": ["B-rare", "B-often"], "often": ["O", "B-often"], "none": ["O", "O"]}
    sizes = {"rare": 10, "often": 50, "none": 40}
    rows = [{"tokens": [k, str(n)], "tags": tags[k]} for k, size in sizes.items() for n in range(size)]
    assert Counter(text.split()[0] for text in held_out(rows)["dev"]) == {"rare": 2, "often": 10, "none": 8}


def test_numbers_are_spread_by_size():
    rows = [{"text": str(n), "score": n / 7} for n in range(100)]
    dev = sorted(int(text) for text in held_out(rows, dev=0.1, task="regression")["dev"])
    assert [n // 10 for n in dev] == list(range(10))


def test_a_fraction_that_would_empty_a_class_is_refused():
    with pytest.raises(DataError, match="leave dev without the label 'b'") as caught:
        held_out(classes(a=10, b=1))
    assert "data.dev as a file" in str(caught.value)


def test_a_rare_entity_stays_in_training():
    rows = [{"tokens": ["x", str(n)], "tags": ["O", "B-once" if n == 7 else "O"]} for n in range(20)]
    assert "x 7" in held_out(rows)["train"]


def test_fractions_must_leave_something():
    with pytest.raises(DataError, match="leave nothing to train on"):
        held_out(classes(a=10), dev=0.6, test=0.5)


def test_the_addresses_of_what_is_held_out_are_kept():
    loaded = load(DataConfig(dev=0.2, test=0.1), None, data=classes(a=20, b=20))
    assert loaded.split_ids == {name: [e.id for e in getattr(loaded, name)] for name in ("dev", "test")}


@pytest.mark.parametrize("test", [None, 0.2])
def test_folds_are_disjoint_and_together_all_that_the_test_split_leaves(test):
    rows = classes(a=30, b=20)
    parts = [held_out(rows, fold=f"{k}/5", test=test) for k in range(1, 6)]
    devs = [text for part in parts for text in part["dev"]]
    sealed = parts[0].get("test", [])
    assert sorted(devs + sealed) == sorted(row["text"] for row in rows)
    for part in parts:
        assert part.get("test", []) == sealed and not set(part["train"]) & set(part["dev"])
        assert {text[0] for text in part["dev"]} == {"a", "b"}


def test_the_seed_of_the_split_may_be_another_than_the_training_s():
    rows = classes(a=30, b=20)
    assert held_out(rows, seed=1, split_seed=7) == held_out(rows, seed=2, split_seed=7) == held_out(rows, seed=7)


def test_there_may_be_hundreds_of_folds():
    rows = classes(a=220, b=220)
    parts = [held_out(rows, fold=f"{k}/200")["dev"] for k in (1, 150, 200)]
    assert all(parts) and len(set().union(*parts)) == sum(map(len, parts))


@pytest.mark.parametrize("fold", ["6/5", "1/1"])
def test_a_fold_that_is_no_part_is_told(fold):
    with pytest.raises(SettingsError, match="is no part of a whole"):
        held_out(classes(a=30), fold=fold)


# A part of the training rows


@given(st.dictionaries(st.sampled_from("abcdef"), st.integers(3, 60), min_size=1), st.integers(6, 200), st.randoms())
@run(max_examples=50)
def test_a_draw_is_stratified_and_does_not_depend_on_the_order(sizes, count, random):
    rows = classes(**sizes)
    split = held_out(rows, train_rows=count)
    pool = held_out(rows)["train"]
    assert set(split["train"]) <= set(pool) and split["dev"] == held_out(rows)["dev"]
    assert len(split["train"]) == min(count, len(pool))
    drawn, there = Counter(text[0] for text in split["train"]), Counter(text[0] for text in pool)
    assert all(drawn[label] >= 1 and abs(drawn[label] - count * n / len(pool)) < len(there) + 1
               for label, n in there.items() if count < len(pool))  # fmt: skip
    shuffled = held_out(random.sample(rows, len(rows)), train_rows=count)
    assert sorted(shuffled["train"]) == sorted(split["train"])


def test_another_seed_draws_other_rows_and_fewer_are_part_of_more():
    rows = classes(a=80, b=80)

    def draw(count, seed):
        return set(held_out(rows, train_rows=count, split_seed=7, seed=seed)["train"])

    assert draw(20, 1) == draw(20, 1) != draw(20, 2)
    assert draw(10, 1) < draw(20, 1) < draw(100, 1) and len(draw(20, 1)) == 20


def test_fewer_rows_than_labels_are_refused():
    with pytest.raises(SettingsError, match=r"data.train_rows: 2 rows cannot hold 3 labels"):
        held_out(classes(a=5, b=5, c=5), train_rows=2)


@given(st.dictionaries(st.sampled_from("abcdef"), st.integers(5, 40), min_size=1), st.sampled_from(["", 0.2]))
@run(max_examples=30, deadline=None)
def test_folds_are_alike_in_labels_and_in_size(sizes, test):
    rows = classes(**{label: size + 10 for label, size in sizes.items()})
    devs = [held_out(rows, fold=f"{k}/5", **({"test": test} if test else {}))["dev"] for k in range(1, 6)]
    assert max(map(len, devs)) - min(map(len, devs)) <= 1
    for label in sizes:
        counts = [sum(text.startswith(f"{label} ") for text in dev) for dev in devs]
        assert max(counts) - min(counts) <= 1


def test_rows_of_a_number_that_is_nearly_all_there_is_are_told_apart():
    rows = [{"text": f"row {n}", "label": 0.0 if n < 190 else n + 0.5} for n in range(200)]
    for seed in range(5):
        dev = held_out(rows, dev=0.2, task="regression", seed=seed)["dev"]
        assert sum(int(text.split()[1]) >= 190 for text in dev) == 2


def test_a_row_without_a_group_is_refused_in_a_table_too(tmp_path):
    (tmp_path / "a.csv").write_text(
        "text,label,user\n" + "".join(f"row {n},{n % 2},{n % 3 or ''}\n" for n in range(30))
    )
    with pytest.raises(DataError, match="the row has no group"):
        load(DataConfig(train=str(tmp_path / "a.csv"), dev=0.2, group="user"), None)


def test_one_group_for_all_is_named_where_a_label_cannot_be_drawn():
    rows = [{**row, "user": "one"} for row in classes(a=30, b=30)]
    with pytest.raises(DataError, match="rows of one text or one group stay together"):
        held_out(rows, group="user")
