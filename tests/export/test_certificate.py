"""An export is kept where its own runtime, reading it anew, answers as the run does; else nothing is left of it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, pipeline

from labeltune import load, train
from labeltune.errors import DataError, RunError, SettingsError
from labeltune.export.certificate import ParityError, compare
from labeltune.export.exporting import export
from labeltune.export.onnx import build
from labeltune.export.padded import feed
from labeltune.export.predictor import load as graph
from labeltune.export.tuned import Answers, NotExpressible, read
from labeltune.run import open_run

QUICK = {"train.lr": 1e-2, "train.epochs": 1, "train.batch_rows": 8, "train.threads": 1, "lora.rank": 2}
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
}
GROUPED = SIZES | {"num_key_value_heads": 2, "head_dim": 8}
FAMILIES = {
    "llama": GROUPED,
    "mistral": GROUPED | {"sliding_window": 8},
    "qwen2": GROUPED,
    "qwen3": GROUPED,
    "gemma2": GROUPED | {"sliding_window": 8},
    "gpt_neox": SIZES,
}


def backbone(family: str, tokenizer, folder: Path) -> Path:
    config = AutoConfig.for_model(family, vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=1, **FAMILIES[family])
    config.pad_token_id = None
    with torch.random.fork_rng():
        torch.manual_seed(1)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def trained(small: Path, model: Path, out: Path, kind: str = "moods", **settings: object) -> Path:
    data, dev = (small / f"{kind}-{split}.jsonl" for split in ("train", "dev"))
    given = {name.replace("__", "."): value for name, value in settings.items()}
    train(data, dev=dev, model=str(model), out=out, settings=QUICK | given)
    return out


def certified(run: Path, to: str, out: Path) -> dict:
    export(run, to, out=out)
    found = json.loads((out / "certificate.json").read_text())
    assert found["holds"] and found["change"]["rows"] in (6, 8) and found["change"]["max_logit"] > 0
    assert found["change"]["max_logit_change"] <= 1e-4 * max(1, found["change"]["max_logit"])
    return found


@pytest.mark.parametrize(
    "to",
    ["transformers", "peft", *(pytest.param(name, marks=pytest.mark.slow) for name in ("onnx", "openvino"))],
)
@pytest.mark.parametrize("kind", ["finished", "tagger"])
def test_every_format_of_a_llama_is_certified(request, tmp_path: Path, to: str, kind: str) -> None:
    certified(request.getfixturevalue(kind), to, tmp_path / "x")


@pytest.mark.slow
def test_int8_weights_are_written_and_their_change_is_certified(finished: Path, tmp_path: Path) -> None:
    folder = export(finished, "onnx", out=tmp_path / "x", dtype="int8").folder
    found = json.loads((folder / "certificate.json").read_text())
    assert found["change"]["rows"] == 8 and 0 < found["change"]["max_logit_change"] < found["change"]["max_logit"]
    export(finished, "onnx", out=tmp_path / "whole")
    sizes = [sum(path.stat().st_size for path in of.glob("model.onnx*")) for of in (folder, tmp_path / "whole")]
    assert sizes[0] < sizes[1] and all(path.is_file() for path in folder.iterdir())


def test_a_stock_pipeline_gives_the_labels_and_scores_of_the_run(finished: Path, small: Path, tmp_path: Path) -> None:
    export(finished, "transformers", out=tmp_path / "x")
    texts = [json.loads(line)["text"] for line in (small / "moods-test.jsonl").read_text().splitlines()]
    stock = pipeline("text-classification", model=str(tmp_path / "x"), device="cpu")(texts, batch_size=3)
    for ours, theirs in zip(load(finished).predict(texts), stock, strict=True):
        assert ours.label == theirs["label"] and ours.score == pytest.approx(theirs["score"], abs=1e-5)


@pytest.mark.slow
def test_the_predictor_of_a_graph_needs_no_torch(finished: Path, small: Path, tmp_path: Path) -> None:
    export(finished, "onnx", out=tmp_path / "x")
    code = (
        "import sys; from labeltune.export.predictor import load\n"
        f"print(load({str(tmp_path / 'x')!r}).predict(['the hen sang', 'the ring'])[1].label)\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == load(finished).predict("the ring")[0].label


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("unmask", ["none", "all"])
@pytest.mark.parametrize("kind", ["moods", "names"])
def test_families_are_certified(family, unmask, kind, small: Path, tiny_tokenizer, tmp_path: Path) -> None:
    model = backbone(family, tiny_tokenizer, tmp_path / "model")
    run = trained(small, model, tmp_path / "run", kind, model__unmask=unmask)
    for to in ("transformers", "peft", "onnx", "openvino"):
        certified(run, to, tmp_path / to)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"model__pooling": "mean"},
        {"model__pooling": "max", "model__pool_on": "logits", "model__unmask": "first:2"},
        {"model__pooling": "max", "data__max_tokens": 12, "data__overlap": 2},
        {"model__depth": 2, "head__bias": True},
        {"data__template": "mood of: {text}", "data__repeat": 1},
    ],
    ids=str,
)
def test_what_stock_classes_refuse_our_graph_expresses(settings, small, tiny_folder, tmp_path: Path) -> None:
    run = trained(small, tiny_folder, tmp_path / "run", **settings)
    with pytest.raises(NotExpressible, match="transformers cannot express this run"):
        export(run, "transformers", out=tmp_path / "no")
    certified(run, "onnx", tmp_path / "onnx")
    assert not (tmp_path / "no").exists()


def numbers(small: Path, model: Path, out: Path, **settings: float) -> Path:
    """A run whose numbers lie around 1,000."""
    lines = [json.loads(line) for line in (small / "moods-train.jsonl").read_text().splitlines()]
    rows = [{"text": line["text"], "label": 1000 + 50 * len(line["label"])} for line in lines]
    folder = out.parent / "numbers"
    folder.mkdir()
    for name, part in (("train", rows[8:]), ("dev", rows[:8])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    given = {name.replace("__", "."): value for name, value in settings.items()}
    data, dev = folder / "train.jsonl", folder / "dev.jsonl"
    train(data, dev=dev, model=str(model), out=out, task="regression", settings=QUICK | given)
    return out


@pytest.mark.parametrize("to", ["transformers", "peft"])
def test_numbers_leave_in_their_own_unit(small: Path, tiny_folder: Path, tmp_path: Path, to: str) -> None:
    certified(numbers(small, tiny_folder, tmp_path / "run", head__mean=0.0), to, tmp_path / "x")


@pytest.mark.slow
@pytest.mark.parametrize("to", ["onnx", "openvino"])
def test_a_mean_is_a_bias_of_our_graph_and_none_of_stock_classes(small, tiny_folder, tmp_path: Path, to: str) -> None:
    run = numbers(small, tiny_folder, tmp_path / "run")
    with pytest.raises(NotExpressible, match=r"head.mean=0"):
        export(run, "transformers", out=tmp_path / "no")
    certified(run, to, tmp_path / "x")
    answers = load(run).predict(["the hen sang"]), graph(tmp_path / "x").predict(["the hen sang"])
    assert answers[0][0].value == pytest.approx(answers[1][0].value, rel=1e-4) and answers[0][0].value > 500


@pytest.mark.slow
def test_a_graph_reads_a_template_as_the_run_does(small: Path, tiny_folder: Path, tmp_path: Path) -> None:
    lines = [json.loads(line) for line in (small / "names-train.jsonl").read_text().splitlines()]
    rows = [{"text": " ".join(row["tokens"]), "spans": [[0, len(row["tokens"][0]), "PER"]]} for row in lines]
    for name, part in (("train", rows[8:]), ("dev", rows[:8])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    settings = QUICK | {"data.template": "Read Bob: {text}", "train.steps": 60, "train.lr": 3e-2}
    data, dev, out = tmp_path / "train.jsonl", tmp_path / "dev.jsonl", tmp_path / "run"
    train(data, dev=dev, model=str(tiny_folder), out=out, settings=settings)
    certified(out, "onnx", tmp_path / "x")
    texts = [row["text"] for row in rows]
    ours, theirs = load(out).predict(texts), graph(tmp_path / "x").predict(texts)
    assert any(one.spans for one in ours)
    assert [[(s.start, s.end, s.label) for s in one.spans] for one in ours] == [
        [(s.start, s.end, s.label) for s in one.spans] for one in theirs
    ]


def test_the_dev_rows_of_a_hub_data_set_are_found_again(small: Path, tiny_folder: Path, tmp_path: Path, monkeypatch):
    parts = {"train": "moods-train.jsonl", "validation": "moods-dev.jsonl"}
    whole = datasets.DatasetDict(
        {name: datasets.Dataset.from_json(str(small / file), cache_dir=str(tmp_path)) for name, file in parts.items()}
    )
    monkeypatch.setattr(datasets, "load_dataset", lambda owner, config=None: whole)
    for name, dev in (("split", "validation"), ("share", 0.25)):
        train("hf:me/moods", dev=dev, model=str(tiny_folder), out=tmp_path / name, settings=QUICK)
        certified(tmp_path / name, "transformers", tmp_path / f"{name}-x")
    train(whole["train"], dev=whole["validation"], model=str(tiny_folder), out=tmp_path / "memory", settings=QUICK)
    with pytest.raises(RunError, match="the dev rows were in memory alone"):
        export(tmp_path / "memory", "transformers")
    export(tmp_path / "memory", "transformers", data=small / "moods-dev.jsonl")  # the same rows, in a file
    with pytest.raises(DataError, match="not the dev rows of the training"):
        export(tmp_path / "memory", "peft", data=small / "moods-test.jsonl")


def test_a_dev_file_that_changed_is_refused(finished: Path, small: Path, tmp_path: Path) -> None:
    other = tmp_path / "moods-dev.jsonl"
    shutil.copy(small / "moods-dev.jsonl", other)
    other.write_text(other.read_text() + '{"text": "the hen", "label": "calm"}\n')
    with pytest.raises(DataError, match="not the dev rows of the training"):
        export(finished, "transformers", data=str(other), out=tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_rows_held_out_of_the_training_file_are_found_again(small: Path, tiny_folder: Path, tmp_path: Path) -> None:
    train(small / "moods-train.jsonl", dev=0.25, model=str(tiny_folder), out=tmp_path / "run", settings=QUICK)
    done = export(tmp_path / "run", "transformers", out=tmp_path / "x")
    recorded = json.loads((tmp_path / "run" / "splits.json").read_text())["dev"]
    assert done.certificate.change.rows == len(recorded["ids"]) == recorded["rows"]


def test_an_export_that_answers_otherwise_is_not_kept(finished: Path, tmp_path: Path, monkeypatch) -> None:
    from labeltune.export import stock

    right = stock.put_head

    def wrong(tuned, model) -> None:
        right(tuned, model)
        with torch.no_grad():
            model.score.weight.mul_(1.01)

    monkeypatch.setattr(stock, "put_head", wrong)
    with pytest.raises(ParityError, match="logits differ"):
        export(finished, "transformers", out=tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_equal_logits_with_another_answer_do_not_hold() -> None:
    logits = np.ones((2, 2), np.float32)
    assert compare(Answers(logits, ("a", "b")), Answers(logits, ("a", "b"))).holds
    assert not compare(Answers(logits, ("a", "b")), Answers(logits, ("a", "c"))).holds
    assert not compare(Answers(logits, ("a", "b")), Answers(logits * np.nan, ("a", "b"))).holds


def test_in_16_bits_the_change_is_reported(finished: Path, tmp_path: Path) -> None:
    done = export(finished, "transformers", dtype="bf16", out=tmp_path / "x").certificate
    assert done.change.max_logit_change > 0
    assert (done.dtype == "bf16") == (not done.given_up) and done.change.rows_with_another_answer == 0
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "x", dtype="auto")
    assert str(model.dtype) == {"bf16": "torch.bfloat16", "fp32": "torch.float32"}[done.dtype]


def test_no_embedding_is_added_for_padding(finished: Path, tmp_path: Path, tiny_tokenizer) -> None:
    export(finished, "transformers", out=tmp_path / "x")
    config, tokenizer = AutoConfig.from_pretrained(tmp_path / "x"), AutoTokenizer.from_pretrained(tmp_path / "x")
    assert config.vocab_size == len(tokenizer) == len(tiny_tokenizer) and config.pad_token_id == tokenizer.pad_token_id


@pytest.mark.parametrize(("to", "dtype", "says"), [("tflite", "fp32", "no format"), ("onnx", "bf16", "not written")])
def test_unknown_formats_and_dtypes_are_refused_by_name(finished: Path, to: str, dtype: str, says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        export(finished, to, dtype=dtype)


def test_nothing_is_written_over(finished: Path, tmp_path: Path, typed) -> None:
    (tmp_path / "x").mkdir()
    done = typed("export", finished, "--to", "transformers", "--out", tmp_path / "x")
    assert done.code == 1 and "already there" in done.err and list((tmp_path / "x").iterdir()) == []


def test_the_command_prints_the_certificate(finished: Path, tmp_path: Path, typed) -> None:
    done = typed("export", finished, "--to", "transformers", "--out", tmp_path / "x", "--json")
    assert done.code == 0 and json.loads(done.out)["change"]["rows_with_another_answer"] == 0


@pytest.mark.slow
def test_a_damaged_graph_is_an_error_with_its_place(finished: Path, tmp_path: Path) -> None:
    from labeltune.export.predictor import load as load_graph

    export(finished, "onnx", out=tmp_path / "x")
    (tmp_path / "x" / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(RunError, match=r"model\.onnx: the graph cannot be loaded"):
        load_graph(tmp_path / "x")


def test_shares_of_a_target_sum_to_one(finished: Path) -> None:
    rows = list(load(finished).assembly.encoder.encode_many([]))
    assert rows == []
    predictor = load(finished)
    from labeltune.schema import Example

    rows = list(predictor.assembly.encoder.encode_many([Example("a", "the hen sang"), Example("b", "the ring")]))
    arrays = feed(rows, "mean")
    assert np.allclose(arrays["shares"].sum(1), 1) and arrays["attention_mask"].sum() == sum(
        len(r.tokens) for r in rows
    )


@pytest.mark.parametrize(("pooling", "rows"), [("last", 3), ("mean", None)])
def test_a_graph_computes_the_last_block_for_what_is_read(pooling, rows, small, tiny_folder, tmp_path: Path) -> None:
    tuned = read(open_run(trained(small, tiny_folder, tmp_path / "run", model__pooling=pooling)))
    seen: list[int] = []
    graph = build(tuned)
    graph.body.layers[-1].mlp.down_proj.register_forward_hook(lambda _, __, out: seen.append(out.shape[:-1].numel()))
    arrays = {name: torch.from_numpy(array) for name, array in feed(tuned.rows[:3], pooling).items()}
    logits = graph(**arrays)
    assert np.allclose(logits, tuned.expected.logits[:3], atol=1e-5)
    assert seen == [rows or arrays["input_ids"].numel()]
