"""A plan says what a training then does: tokens, steps, trained parameters; memory by the published sums."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig

from labeltune import SettingsError, open_run, plan, train
from labeltune.config import make
from labeltune.memory import gibibytes, reckon, shape_of, trained_parameters


@pytest.fixture
def seven_billion(tmp_path: Path) -> str:
    """The configuration of a 7B Llama; of its weights there is nothing but a name."""
    config = LlamaConfig(
        vocab_size=32000,
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=32,
    )
    config.save_pretrained(tmp_path / "llama")
    save_file({"x": torch.zeros(1)}, tmp_path / "llama" / "model.safetensors")
    return str(tmp_path / "llama")


PAPER = {"rank": 12, "targets": ["q_proj", "v_proj"]}


@pytest.mark.parametrize(
    ("model", "tokens", "gib"),
    [
        ({"dtype": "bf16"}, 8 * 64, 15.7),
        ({"dtype": "bf16", "checkpointing": "on"}, 32 * 512, 21.1),
        ({"dtype": "bf16", "quantization": "nf4"}, 8 * 64, 7.0),
    ],
    ids=str,
)
def test_memory_of_the_7b_settings_is_what_the_sums_say(seven_billion, model, tokens, gib) -> None:
    config = make({"model": {"name": seven_billion, **model}, "lora": PAPER})
    shape = shape_of(config)
    assert shape.inside == 32 * (4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096)
    trained = trained_parameters(config, shape, 2)
    assert trained == 32 * 2 * 12 * 2 * 4096 + 2 * 4096
    assert reckon(config, shape, trained, tokens, None).total == pytest.approx(gib, rel=0.1)


def test_what_fits_grows_with_the_card_and_nothing_may_fit(seven_billion) -> None:
    config = make({"model": {"name": seven_billion, "dtype": "bf16"}, "lora": PAPER})
    shape = shape_of(config)
    fits = [reckon(config, shape, 0, 512, gib).fits for gib in (8.0, 24.0, 80.0)]
    assert fits[0] is None and 0 < fits[1] < fits[2]
    full = reckon(config, shape, 0, fits[1], 24.0)
    assert full.total <= 24.0 < reckon(config, shape, 0, fits[1] + 8, 24.0).total


def test_a_plan_is_what_the_training_then_does(finished: Path, small: Path, tiny_folder: Path) -> None:
    run = open_run(finished)
    settings = {"train.epochs": 3, "train.batch_rows": 8, "train.threads": 1, "lora.rank": 2}
    found = plan(
        small / "moods-train.jsonl", dev=small / "moods-dev.jsonl", model=str(tiny_folder), settings=settings, price=1.0
    )
    log = [json.loads(line) for line in (finished / "log.jsonl").read_text().splitlines()]
    assert found.steps == len(log) and found.rows["train"] == 24
    assert found.tokens["train"].total == sum(line["tokens"] for line in log) / 3
    assert found.trained_parameters == run.metrics["train"]["trained_parameters"]
    assert found.measured is not None and found.seconds is not None and found.cost == found.seconds / 3600
    assert "test" not in found.rows


def test_a_test_split_that_is_a_share_of_the_rows_is_not_trained_on(small: Path, tiny_folder: Path, tmp_path) -> None:
    settings = {"train.epochs": 2, "train.batch_rows": 4, "train.threads": 1, "lora.rank": 2, "data.test": 0.4}
    words = {"dev": 0.2, "model": str(tiny_folder), "settings": settings}
    found = plan(small / "moods-train.jsonl", measure=False, **words)
    run = train(small / "moods-train.jsonl", out=tmp_path / "run", **words)
    assert found.steps == run.metrics["train"]["steps"] and set(found.rows) == {"train", "dev"}


def test_on_the_command_line(typed, small: Path, tiny_folder: Path) -> None:
    words = ("plan", small / "moods-train.jsonl", "--dev", small / "moods-dev.jsonl", "--model", tiny_folder)
    shown = typed(*words, "--gpu", "24GB", "--no-measure")
    assert shown.code == 0 and "fits" in shown.out and "measured" not in shown.out
    facts = json.loads(typed(*words, "--no-measure", "--json").out)
    assert facts["measured"] is None and facts["memory"]["total"] > 0.1 and facts["config"]["model"]["name"]


def test_several_processes_share_a_step_and_do_as_many_of_them(small: Path, tiny_folder: Path) -> None:
    words = {"dev": small / "moods-dev.jsonl", "model": str(tiny_folder), "settings": {"train.batch_rows": 8}}
    one, two = (plan(small / "moods-train.jsonl", processes=n, **words) for n in (1, 2))
    assert two.steps == one.steps and two.memory.tokens < one.memory.tokens
    assert two.measured is not None and two.seconds is not None


@pytest.mark.parametrize("text", ["", "many", "-3GB", "0GB", "inf", "nan"])
def test_a_size_that_is_none_is_told(text: str) -> None:
    with pytest.raises(SettingsError, match="is no size"):
        gibibytes(text)
    assert gibibytes("24GB") == gibibytes("24 GiB") == gibibytes("24") == 24.0


def test_a_plan_needs_a_model(small: Path) -> None:
    with pytest.raises(SettingsError, match="a plan needs a model"):
        plan(small / "moods-train.jsonl")
