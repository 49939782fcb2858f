"""Settings from where they were given: names that are no paths, and what a folder that goes on was begun with."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from labeltune.adaptation.adapt import adapt
from labeltune.adaptation.gathering import gather, read, same_as_before, write
from labeltune.adaptation.result import card
from labeltune.config import gather as gather_training
from labeltune.errors import RunError, SettingsError


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_mini_is_the_bundled_model_beside_a_folder_of_that_name(tmp_path: Path):
    (tmp_path / "mini").mkdir()
    (tmp_path / "s.toml").write_text('model.name = "mini"\n')
    assert gather(None, {"model.name": "mini"}, {}).model.name == "mini"
    assert gather(tmp_path / "s.toml", {}, {}).model.name == "mini"
    assert gather_training(None, {"model.name": "mini"}, {}).model.name == "mini"
    assert gather_training(tmp_path / "s.toml", {}, {}).model.name == "mini"


def test_passes_given_over_a_file_take_the_place_of_its_tokens(tmp_path: Path):
    (tmp_path / "s.toml").write_text("adapt.tokens = 5000\n")
    asked = gather(tmp_path / "s.toml", {}, {"adapt.epochs": 2}).adapt
    assert (asked.epochs, asked.tokens) == (2, None)


def test_the_same_name_is_the_same_model_once_a_folder_has_it(tmp_path: Path):
    before = gather(None, {"model.name": "owner/name"}, {})
    (tmp_path / "owner" / "name").mkdir(parents=True)
    now = gather(None, {"model.name": "owner/name"}, {})
    assert same_as_before(now, before, tmp_path) == before


def test_an_output_folder_with_the_name_of_the_hubs_model_is_refused(text_file: Path):
    with pytest.raises(SettingsError, match="--out owner/name: has the name of the model; choose another --out"):
        adapt(text_file, model="owner/name", out="owner/name")
    assert not Path("owner").exists()


def test_auto_is_whatever_was_found(tmp_path: Path):
    settings = {"adapt.device": "auto", "model.dtype": "auto"}
    found = gather(None, {"model.name": "m"}, {"adapt.device": "cpu", "model.dtype": "fp32"})
    write(tmp_path, found)
    before = read(tmp_path)
    assert same_as_before(gather(None, {}, settings), before, tmp_path) == before
    with pytest.raises(RunError, match=r"adapt.device was 'cpu'"):
        same_as_before(gather(None, {}, {"adapt.device": "cuda"}), before, tmp_path)


@pytest.mark.parametrize("held", [False, True])
def test_an_output_folder_inside_what_is_read_is_refused(held: bool, tmp_path: Path, text_file: Path):
    (tmp_path / "texts").mkdir()
    sources = {"texts": text_file, "heldout": "texts"} if held else {"texts": "texts"}
    with pytest.raises(RunError, match=r"lies in .*texts, and would be read with it; choose a place outside"):
        adapt(**sources, model="mini", out="texts/below/out")
    assert not any((tmp_path / "texts").iterdir())


@pytest.mark.parametrize(("name", "told"), [("owner/name", True), ("mini", False)])
def test_the_card_names_a_base_model_of_the_hub(name: str, told: bool):
    setup = SimpleNamespace(
        config=gather(None, {"model.name": name}, {}),
        corpus=SimpleNamespace(train=SimpleNamespace(facts=SimpleNamespace(documents=2))),
        causal=SimpleNamespace(backbone=SimpleNamespace(dtype=torch.float32)),
        adapter=None,
    )
    text = card(setup, {"train": {"tokens": 9, "seconds": 1.0}})
    assert (f"\nbase_model: {name}\n" in text) == told


def test_settings_are_no_text(text_file: Path):
    with pytest.raises(SettingsError, match=r"adapt.toml: holds settings, and is no text to train on"):
        adapt(["old/adapt.toml", text_file], model="mini", out="out")
