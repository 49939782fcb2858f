"""The speed benchmarks run from command to result, on toy shapes."""

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
TOY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("beside")]


@pytest.fixture
def beside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)


@pytest.fixture
def toy(beside: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """One size, and few rows."""
    import material

    monkeypatch.setitem(material.SIZES, "15M", TOY)
    monkeypatch.setattr(material, "ROWS", 48)


def called(module: ModuleType, monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, words)])
    module.main()


def test_the_serving_benchmark_loses_no_answer(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import serving

    work = ("--work", tmp_path / "work")
    called(serving, monkeypatch, "run", *work, "--backbone", tiny_folder, "--requests", 60, "--rounds", 1)
    called(serving, monkeypatch, "report", *work, "--out", tmp_path / "found", "--hardware", "a toy")
    rounds = json.loads((tmp_path / "found.json").read_text())["rounds"]
    assert [one["side"] for one in rounds] == ["batched", "unbatched", "overload", "overload", "overload"]
    assert not any(one["wrong"] or one["lost"] or set(one["statuses"]) - {"200", "429"} for one in rounds)
    assert "| batched | 48 |" in (tmp_path / "found.md").read_text()


def test_the_gpu_script_answers_every_question(tmp_path) -> None:
    import gpu

    gpu.main(["--toy", "--out", str(tmp_path / "toy")])
    found = json.loads((tmp_path / "toy.json").read_text())["found"]
    assert not [each for each in found if "left_out" in each and "bitsandbytes" not in each["left_out"]]
    speed = next(each for each in found if each["question"].startswith("speed"))
    assert speed["rows_per_second"].keys() == {"labeltune", "A", "B"}
    assert len((tmp_path / "toy.md").read_text().splitlines()) == len(found) + 4


def test_the_gpu_scripts_sides_read_the_same_labels_from_the_same_weights(beside, tmp_path) -> None:
    import gpu
    import torch

    bench = gpu.Bench(tmp_path / "toy", "cpu", 1)
    with bench.built():
        stock = gpu.LlamaForSequenceClassification(gpu.configuration("toy"))
    rows = gpu.batches([5, 9, 7], 3)[0]
    with torch.no_grad():
        expected = [stock(torch.from_numpy(row.tokens)[None].long()).logits[0] for _, row in rows]
        model = gpu.label_model(bench, stock.model)
        model.members[0].head.weight.copy_(stock.score.weight)
        (logits,) = model(gpu.pack([rows]))
    torch.testing.assert_close(logits, torch.stack(expected), rtol=1e-4, atol=1e-5)


def test_training_speed_compares_every_side_and_goes_on_where_it_stopped(toy, shared, tmp_path, monkeypatch) -> None:
    import training_speed

    where = ("--data", shared / "data", "--tokenizer", shared / "models" / "llama2-tokenizer", "--work", tmp_path)
    cell = ("run", *where, "--sizes", "15M", "--texts", "sst2", "tagging", "--repeats", 1, "--rows", 16)
    called(training_speed, monkeypatch, *cell)
    turns = (tmp_path / "turns.jsonl").read_text()
    called(training_speed, monkeypatch, *cell)
    assert (tmp_path / "turns.jsonl").read_text() == turns and len(turns.splitlines()) == 8
    called(training_speed, monkeypatch, "report", "--work", tmp_path, "--out", tmp_path / "out", "--hardware", "here")
    cells = json.loads((tmp_path / "out.json").read_text())["cells"]
    assert [len(each["ratios"]) for each in cells] == [3, 2]


def test_prediction_speed_compares_equal_labels(toy, shared, tmp_path, monkeypatch) -> None:
    import prediction_speed

    where = ("--data", shared / "data", "--tokenizer", shared / "models" / "llama2-tokenizer", "--work", tmp_path)
    called(prediction_speed, monkeypatch, "run", *where, "--sizes", "15M", "--texts", "sst2", "--repeats", 1)
    called(prediction_speed, monkeypatch, "report", "--work", tmp_path, "--out", tmp_path / "out", "--hardware", "here")
    assert {turn["side"] for turn in json.loads((tmp_path / "out.json").read_text())["turns"]} == {
        "labeltune",
        "onnx",
        "openvino",
        "sorted loop",
        "pipeline",
    }


def test_the_limit_counts_the_products_of_a_pass(toy, shared, tmp_path, monkeypatch) -> None:
    import limit

    where = ("--data", shared / "data", "--tokenizer", shared / "models" / "llama2-tokenizer", "--work", tmp_path)
    called(limit, monkeypatch, *where, "--out", tmp_path / "out", "--hardware", "here", "--sizes", "15M")
    cells = json.loads((tmp_path / "out.json").read_text())["cells"]
    # Forward: 7 a layer, A once for q, k, v and once for o, B four times; the head. Backward: towards the input of each
    # but q, k, v of the first; two for each B, and for each A where its input asks for a gradient, else one; two
    # for the head. The last layer makes queries of the rows alone that are read: A once more for them.
    layers = 2
    forward = layers * (7 + 2 + 4) + 1 + 1
    backward = (7 * layers - 3) + layers * (4 * 2 + 2 * 2) - 1 + 2 + 2
    assert {each["count"] for each in cells if each["dtype"] == "fp32"} == {forward + backward}
    assert all(abs(sum(each["shares"].values()) - 1) < 1e-6 for each in cells)


def test_a_plan_is_held_against_its_training(shared, tiny_folder, tmp_path, monkeypatch) -> None:
    import plan

    toys = (plan.Setting("one", "sst2", 32, 8), plan.Setting("two", "sst2", 32, 8, processes=2))
    monkeypatch.setattr(plan, "SETTINGS", toys)
    where = ("--data", shared / "data", "--tokenizer", shared / "models" / "llama2-tokenizer", "--work", tmp_path)
    called(plan, monkeypatch, "run", *where, "--model", tiny_folder, "--clock", "cpu", "--device", "cpu")
    called(plan, monkeypatch, "report", "--work", tmp_path, "--out", tmp_path / "out", "--hardware", "here")
    found = json.loads((tmp_path / "out.json").read_text())["settings"]
    assert [each["name"] for each in found] == ["one", "two"] and [each["steps"] for each in found] == [2, 2]
    assert all(each[name] > 0 for each in found for name in ("seconds", "planned_seconds", "gib", "planned_gib"))


def test_growth_varies_one_thing_at_a_time(toy, shared, tmp_path, monkeypatch) -> None:
    import growth

    monkeypatch.setattr(growth, "BASE", growth.BASE | {"rows": 16, "length": 8})
    monkeypatch.setattr(growth, "VARIED", {"rows": (16, 32), "trials": (1, 2)})
    where = ("--data", shared / "data", "--tokenizer", shared / "models" / "llama2-tokenizer", "--work", tmp_path)
    called(growth, monkeypatch, *where, "--rounds", 1, "--out", tmp_path / "out", "--hardware", "here")
    points = json.loads((tmp_path / "out.json").read_text())["points"]
    assert [(p["rows"], p["trials"]) for p in points] == [(16, 1), (32, 1), (16, 1), (16, 2)]
    assert all(p["seconds"] > 0 for p in points) and "| trials |" in (tmp_path / "out.md").read_text()
