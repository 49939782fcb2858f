"""Settings are what was written: a file, a flag or nothing; written back they are read as the same."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from labeltune.config import Config, gather, make, parse_set, read_toml, to_toml, with_settings
from labeltune.errors import LabeltuneError, SettingsError
from labeltune.settings import known_names

TEXTS = st.text(st.characters(codec="utf-8"), max_size=12)
NUMBERS = st.floats(1e-6, 1e6)
VALUES: dict[str, st.SearchStrategy[object]] = {
    "task": st.sampled_from(["classification", "tagging"]),
    "data.train": st.one_of(TEXTS.filter(bool), st.dictionaries(TEXTS, TEXTS.filter(bool), min_size=1, max_size=3)),
    "data.dev": st.one_of(TEXTS.filter(bool), st.floats(0.01, 0.99)),
    "data.columns": st.lists(TEXTS, max_size=3),
    "data.label_names": st.one_of(st.lists(TEXTS, max_size=3), st.dictionaries(TEXTS, TEXTS, max_size=3)),
    "data.bos": st.sampled_from([True, False, "auto"]),
    "data.template": TEXTS,
    "lora.alpha": NUMBERS,
    "lora.targets": st.lists(TEXTS, min_size=1, max_size=2),
    "head.bias": st.booleans(),
    "head.class_weights": st.one_of(st.just("balanced"), st.dictionaries(TEXTS, NUMBERS, max_size=3)),
    "train.lr": NUMBERS,
    "train.clip": st.one_of(st.just(0.0), NUMBERS),
    "train.seed": st.integers(0, 2**63 - 1),
    "train.eval_every": st.one_of(st.just("epoch"), st.integers(1, 99)),
}


@st.composite
def trees(draw: DrawFn) -> dict[str, object]:
    names = draw(st.lists(st.sampled_from(sorted(VALUES)), unique=True))
    return {name: draw(VALUES[name]) for name in names}


@given(trees())
def test_settings_written_and_read_again_are_the_same(tmp_path_factory: pytest.TempPathFactory, values) -> None:
    config = gather(None, {}, values)
    path = tmp_path_factory.getbasetemp() / "round.toml"
    path.write_text(to_toml(config), encoding="utf-8", newline="")
    assert make(read_toml(path)) == config


@given(trees(), trees())
def test_what_is_set_later_wins_and_the_rest_stays(before, after) -> None:
    both = with_settings(gather(None, {}, before), after)
    expected = gather(None, {}, before | after)
    assert both == expected


def test_a_measure_that_is_given_later_takes_the_place_of_the_other(tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text("[train]\nsteps = 100\nbatch_tokens = 2048\n")
    asked = gather(tmp_path / "s.toml", {}, {"train.epochs": 3, "train.batch_rows": 8}).train
    assert (asked.epochs, asked.steps, asked.batch_rows, asked.batch_tokens) == (3, None, 8, None)
    again = with_settings(gather(None, {}, {"train.epochs": 3}), {"train.steps": 7, "train.batch_tokens": 512}).train
    assert (again.epochs, again.steps, again.batch_tokens) == (None, 7, 512)
    assert gather(tmp_path / "s.toml", {}, {"train.epochs": None}).train.steps == 100


def test_of_two_measures_given_at_once_the_second_counts() -> None:
    for values in ({"train.epochs": 3, "train.steps": 7}, {"train.steps": 7, "train.epochs": 3}):
        asked = gather(None, {}, values).train
        assert (asked.epochs, asked.steps) == (None, 7)


@given(st.sampled_from(known_names(Config)), TEXTS)
@example("train.lr", "1e999")
@example("train.seed", "0x10")
@example("data.dev", "'a'\nlr = 3")
def test_any_text_of_a_setting_is_a_config_or_an_error_of_ours(name: str, text: str) -> None:
    try:
        assert isinstance(gather(None, {}, dict([parse_set(f"{name}={text}")])), Config)
    except LabeltuneError as error:
        assert str(error)


@given(TEXTS)
def test_any_name_of_a_setting_is_known_or_refused(name: str) -> None:
    with pytest.raises(SettingsError):
        gather(None, {}, {f"train.{name}-": 1})


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-4", 3e-4),
        ("3", 3),
        ("true", True),
        ("mean", "mean"),
        ('"3"', "3"),
        ("[1, 2]", [1, 2]),
        ("", ""),
        ("a=b", "a=b"),
    ],
)
def test_a_value_is_what_toml_says_else_a_text(text: str, value: object) -> None:
    assert parse_set(f"x.y={text}") == ("x.y", value)


def test_paths_in_a_file_begin_at_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here/rows.jsonl").write_text("")
    (tmp_path / "here/r.toml").write_text('[data]\ntrain = "rows.jsonl"\ndev = "hf:a/b"\n[model]\nname = "gpt2"\n')
    monkeypatch.chdir(tmp_path)
    config = gather("here/r.toml", {}, {})
    assert config.data.train == str(tmp_path / "here/rows.jsonl")
    assert (config.data.dev, config.model.name) == ("hf:a/b", "gpt2")


def test_flags_win_over_the_file_and_settings_over_flags(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text("[train]\nlr = 1.0\nepochs = 1.0\nseed = 1\n")
    config = gather(tmp_path / "r.toml", {"train.epochs": 2.0, "train.seed": 2, "task": None}, {"train.seed": 3})
    assert (config.train.lr, config.train.epochs, config.train.seed) == (1.0, 2.0, 3)


def test_numbers_of_numpy_are_numbers() -> None:
    settings = {"train.epochs": np.int64(3), "train.lr": np.float32(0.5), "train.batch_rows": np.int32(8)}
    config = with_settings(make({}), settings)
    assert (config.train.epochs, config.train.lr, config.train.batch_rows) == (3, 0.5, 8)


def test_only_what_was_given_counts_as_given() -> None:
    config = gather(None, {"model.name": "x"}, {"train.lr": 1.0})
    assert json.loads(config.model_dump_json(exclude_unset=True)) == {"model": {"name": "x"}, "train": {"lr": 1.0}}
