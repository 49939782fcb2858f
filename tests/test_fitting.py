"""One training from text to run folder: complete, repeatable, reloaded exactly, resumed to the bit."""

import json
import shutil
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaModel

from labeltune import Interrupted, Run, load, open_run, sweep, train
from labeltune.config import Config, read_toml
from labeltune.errors import RunError
from labeltune.facts import Ready, Said, Scored
from labeltune.run import HEAD
from labeltune.training.checkpoint import Tensors
from labeltune.training.trainer import Step

QUICK = {"train.lr": 1e-2, "train.epochs": 1, "train.batch_rows": 8, "train.threads": 1, "lora.rank": 2}
WEIGHTS = ("adapter/adapter_model.safetensors", "head.safetensors", "labels.json")
TIMINGS = ("seconds", "rows_per_second", "tokens_per_second", "peak_memory_gib")


def rows_of(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def untimed(metrics: Mapping[str, Mapping[str, object]]) -> dict[str, dict[str, object]]:
    return {split: {n: v for n, v in figures.items() if n not in TIMINGS} for split, figures in metrics.items()}


def same(one: Path, other: Path) -> None:
    """The same weights bit for bit, the same labels and decision, the same figures."""
    for name in WEIGHTS:
        if (one / name).exists() or (other / name).exists():
            assert (one / name).read_bytes() == (other / name).read_bytes(), name
    figures = [untimed(json.loads((folder / "metrics.json").read_text())) for folder in (one, other)]
    assert figures[0] == figures[1]


@pytest.fixture
def fit(small: Path, tiny_folder: Path, tmp_path: Path):
    """A function: a quick training on `moods` into `tmp_path / out`, settings on top."""

    def fit(out: str = "run", *, settings: Mapping[str, object] = {}, kind: str = "moods", **words: object) -> Run:
        given = {"dev": small / f"{kind}-dev.jsonl", "model": str(tiny_folder), **words}
        return train(
            given.pop("data", small / f"{kind}-train.jsonl"), out=tmp_path / out, settings=QUICK | settings, **given
        )

    return fit


# The folder


def test_a_run_folder_is_complete(finished: Path) -> None:
    names = {p.relative_to(finished).as_posix() for p in finished.rglob("*") if p.is_file()}
    assert names == {
        ".lock",
        "README.md",
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
        "config.toml",
        "format",
        "head.safetensors",
        "labels.json",
        "ledger.jsonl",
        "log.jsonl",
        "metrics.json",
        "splits.json",
        "tokenizer/tokenizer.json",
        "tokenizer/tokenizer_config.json",
    }
    assert set(open_run(finished).metrics) == {"train", "dev", "test"}


def test_the_card_says_data_hashes_settings_figures_and_versions(finished: Path, small: Path) -> None:
    card = (finished / "README.md").read_text(encoding="utf-8")
    splits = json.loads((finished / "splits.json").read_text())
    metrics = open_run(finished).metrics
    said = [
        *(facts["sha256"] for facts in splits.values()),
        str(small / "moods-train.jsonl"),
        f"{metrics['dev']['accuracy']:.4f}",
        "`calm`, `loud`, `odd`",
        "Learning rate 0.01",
        "seed 42",
        f"torch {torch.__version__}",
        read_toml(finished / "config.toml")["model"]["weights_sha256"],
    ]
    assert [text for text in said if text not in card] == []


def test_the_config_repeats_the_training_bit_for_bit(finished: Path, tmp_path: Path, typed) -> None:
    assert typed("train", finished / "config.toml", "--out", tmp_path / "again").code == 0
    same(finished, tmp_path / "again")
    assert (finished / "config.toml").read_text() == (tmp_path / "again/config.toml").read_text()


def test_the_log_has_a_line_for_each_step(finished: Path) -> None:
    lines = rows_of(finished / "log.jsonl")
    assert [line["step"] for line in lines] == list(range(1, 10))
    assert [line["step"] for line in lines if "dev" in line] == [3, 6, 9]


def test_the_dev_loss_of_a_classifier_is_its_log_loss(finished: Path) -> None:
    dev = [line["dev"] for line in rows_of(finished / "log.jsonl") if "dev" in line]
    assert [figures["loss"] for figures in dev] == pytest.approx([figures["log_loss"] for figures in dev], rel=1e-5)


@pytest.mark.parametrize("crf", [False, True])
def test_of_equal_span_figures_the_lowest_loss_on_dev_chooses_the_weights(fit, small: Path, crf: bool) -> None:
    nothing_to_find = [row | {"tags": ["O"] * len(row["tags"])} for row in rows_of(small / "names-dev.jsonl")]
    run = fit(kind="names", dev=nothing_to_find, settings={"train.epochs": 3, "head.crf": crf})
    dev = {line["epoch"]: line["dev"] for line in rows_of(run.folder / "log.jsonl") if "dev" in line}
    assert {figures["span_f1"] for figures in dev.values()} == {0.0}
    assert run.metrics["train"]["best_epoch"] == min(dev, key=lambda epoch: dev[epoch]["loss"]) != 1


# What may be trained on


def in_memory(rows: list[dict[str, object]]) -> dict[str, object]:
    return {
        "dicts": rows,
        "frame": pd.DataFrame(rows),
        "texts and labels": ([row["text"] for row in rows], [row["label"] for row in rows]),
    }


@pytest.mark.parametrize("form", ["dicts", "frame", "texts and labels", "csv"])
def test_every_form_of_the_same_rows_gives_the_same_weights(
    fit, finished: Path, small: Path, tmp_path: Path, form
) -> None:
    rows = rows_of(small / "moods-train.jsonl")
    pd.DataFrame(rows).to_csv(tmp_path / "rows.csv", index=False)
    data = tmp_path / "rows.csv" if form == "csv" else in_memory(rows)[form]
    run = fit(data=data, settings={"train.epochs": 3}, test=small / "moods-test.jsonl")
    for name in WEIGHTS:
        assert (run.folder / name).read_bytes() == (finished / name).read_bytes()


def test_without_dev_rows_a_tenth_is_held_out_and_its_ids_are_kept(fit) -> None:
    run = fit(dev=None)
    splits = json.loads((run.folder / "splits.json").read_text())
    assert len(splits["dev"]["ids"]) == splits["dev"]["rows"] > 0
    assert all(name.startswith("moods-train.jsonl:") for name in splits["dev"]["ids"])
    assert splits["dev"]["rows"] + splits["train"]["rows"] == 24


# Every choice trains, is saved, and gives the same logits again

CHOICES: dict[str, dict[str, object]] = {
    "rslora": {"lora.kind": "rslora"},
    "dora": {"lora.kind": "dora", "lora.dropout": 0.0},
    "head only": {"lora.kind": "none"},
    "full": {"lora.kind": "full", "train.lr": 1e-3},
    "full, half the depth": {"lora.kind": "full", "model.depth": 2},
    "unmasked": {"model.unmask": "all"},
    "half unmasked, depth": {"model.unmask": "first:2", "model.depth": 3},
    "pooled first": {"model.pooling": "first", "model.unmask": "all"},
    "pooled mean": {"model.pooling": "mean", "model.pool_special": True},
    "pooled max": {"model.pooling": "max", "model.pool_on": "logits"},
    "pooled by attention": {"model.pooling": "attention"},
    "bf16": {"model.dtype": "bf16"},
    "checkpointing": {"model.checkpointing": "on"},
    "patience": {"train.patience": 1, "train.epochs": 4, "train.lr": 1e-9},
    "evaluated by steps": {"train.eval_every": 2, "train.checkpoint_steps": 1},
    "batches of tokens": {"train.batch_tokens": 200, "train.micro_tokens": 64},
    "accumulated": {"train.accumulate": 3},
    "steps": {"train.steps": 2, "train.schedule": "cosine", "train.warmup": 1},
    "weights and smoothing": {"head.class_weights": "balanced", "head.label_smoothing": 0.1, "head.bias": True},
    "a table of weights": {"head.class_weights": {"odd": 2.0}, "head.dropout": 0.1},
    "focal": {"head.loss": "focal"},
    "windows": {"data.max_tokens": 16, "data.overlap": 4},
    "eos": {"data.eos": True, "data.bos": False},
    "clip and decay off": {"train.clip": 0.0, "train.weight_decay": 0.0},
    "chosen by loss": {"train.select": "log_loss"},
}
TAGGED: dict[str, dict[str, object]] = {
    "plain": {},
    "causal": {"model.unmask": "none", "model.pooling": "last"},
    "crf": {"head.crf": True},
    "windows": {"data.max_tokens": 8, "data.overlap": 2},
    "neighbours": {"data.context": 1},
}


@pytest.mark.parametrize("choice", CHOICES)
def test_a_choice_trains_and_reloads_exactly(fit, small: Path, choice: str, typed) -> None:
    run = fit(settings=CHOICES[choice])
    ended = run.metrics["dev"]
    found = typed("evaluate", run.folder, "--data", small / "moods-dev.jsonl", "--json")
    said = json.loads(found.out)
    assert {name: said[name] for name in ended} == ended and {*said} - {*ended} <= {"labels", "confused"}


@pytest.mark.parametrize("choice", TAGGED)
def test_a_tagger_trains_and_reloads_exactly(fit, small: Path, choice: str, typed) -> None:
    run = fit(kind="names", settings=TAGGED[choice])
    found = typed("evaluate", run.folder, "--data", small / "names-dev.jsonl", "--json")
    said = json.loads(found.out)
    assert said.pop("labels") and said == run.metrics["dev"]


OTHER_TASKS = {
    "multilabel": ([["a"], ["a", "b"], []], {}),
    "regression": ([0.5, 1.5, -1.0], {}),
    "ordinal": (["low", "mid", "high"], {"data.label_order": ["low", "mid", "high"]}),
}


@pytest.mark.parametrize("task", OTHER_TASKS)
def test_another_task_trains_and_reloads_exactly(fit, small: Path, task: str) -> None:
    from labeltune import evaluate

    labels, settings = OTHER_TASKS[task]
    rows = [{"text": row["text"], "label": labels[i % 3]} for i, row in enumerate(rows_of(small / "moods-train.jsonl"))]
    run = fit(data=rows, dev=rows[:9], task=task, settings=settings)
    assert evaluate(run.folder, rows[:9]).metrics == run.metrics["dev"]


def test_numbers_are_learned_in_any_unit(fit, small: Path) -> None:
    rows = rows_of(small / "moods-train.jsonl")
    moods = sorted({row["label"] for row in rows})
    texts = [row["text"] for row in rows[:8]]

    def learned(out: str, unit: float, zero: float) -> tuple[np.ndarray, dict]:
        scored = [{"text": row["text"], "label": zero + unit * moods.index(row["label"])} for row in rows]
        settings = {"train.epochs": 12, "train.lr": 3e-2, "model.pooling": "max", "model.unmask": "all"}
        run = fit(out, data=scored, dev=scored[:9], task="regression", settings=settings)
        variance = float(np.var([row["label"] for row in scored[:9]]))
        assert run.metrics["dev"]["mse"] < variance / 4
        assert run.config.head.std == pytest.approx(unit * np.std([moods.index(row["label"]) for row in rows]))
        return np.array([answer.value for answer in load(run.folder).predict(texts)]), run.metrics["dev"]

    plain, before = learned("plain", 1.0, 0.0)
    prices, after = learned("prices", 3e4, 2e5)
    np.testing.assert_allclose((prices - 2e5) / 3e4, plain, atol=2e-3)
    assert after["mse"] / 3e4**2 == pytest.approx(before["mse"], abs=1e-3)


def test_a_start_keeps_the_unit_that_its_numbers_are_counted_in(fit, small: Path) -> None:
    texts = [row["text"] for row in rows_of(small / "moods-train.jsonl")]
    rows = [{"text": text, "label": 100.0 + 10 * len(text)} for text in texts]
    first = fit("first", data=rows, dev=rows[:9], task="regression")
    nothing = {"train.steps": 1, "train.lr": 1e-9}
    lower = [{**row, "label": row["label"] / 4} for row in rows]
    again = fit("again", data=lower, dev=rows[:9], task="regression", init=first.folder, settings=nothing)
    assert again.config.head.std == first.config.head.std
    assert again.metrics["dev"]["mse"] == pytest.approx(first.metrics["dev"]["mse"], rel=1e-3)


def test_a_trained_model_has_learned_what_a_word_tells(fit, small: Path) -> None:
    run = fit(settings={"train.epochs": 12, "train.lr": 3e-2, "model.pooling": "max", "model.unmask": "all"})
    assert run.metrics["dev"]["accuracy"] >= 0.9


# Interrupted and resumed


def stopped(fit, step: int, out: str = "stopped", **words: object) -> Interrupted:
    """A training that is sent SIGINT when `step` is done."""

    def listen(fact: object) -> None:
        if isinstance(fact, Step) and fact.step == step:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted) as caught:
        fit(out, listen=listen, **words)
    return caught.value


HARD = {"train.epochs": 3, "lora.dropout": 0.2, "head.dropout": 0.1}


@pytest.mark.parametrize("step", [1, 3, 8])
def test_an_interrupted_training_is_loadable_and_resumes_to_the_same_bits(fit, tmp_path: Path, step: int) -> None:
    error = stopped(fit, step, settings=HARD)
    folder = tmp_path / "stopped"
    assert error.exit_code == 130 and str(folder) in str(error) and "--resume" in str(error)
    assert open_run(folder).state == "interrupted" and load(folder).predict("the hen")[0].label
    assert "interrupted" in (folder / "README.md").read_text()
    fit("stopped", settings=HARD, resume=True)
    whole = fit("whole", settings=HARD)
    same(folder, whole.folder)
    assert not (folder / "work").exists() and len(rows_of(folder / "log.jsonl")) == 9


def test_interrupted_in_the_final_scoring_nothing_is_lost(fit, tmp_path: Path, small: Path) -> None:
    def listen(fact: object) -> None:
        if isinstance(fact, Scored):
            raise KeyboardInterrupt

    test = small / "moods-test.jsonl"
    with pytest.raises(Interrupted):
        fit("stopped", test=test, listen=listen)
    assert open_run(tmp_path / "stopped").state == "interrupted"
    steps: list[object] = []
    fit("stopped", test=test, resume=True, listen=steps.append)
    assert not any(isinstance(fact, Step) for fact in steps)
    same(tmp_path / "stopped", fit("whole", test=test).folder)


@pytest.fixture
def hears_interrupts() -> Iterator[None]:
    """Python's own handler: a test worker may ignore SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("hears_interrupts")
@pytest.mark.parametrize("moment", [Said, Ready])
def test_interrupted_before_training_nothing_is_left_or_it_can_go_on(fit, tmp_path: Path, moment: type) -> None:
    def listen(fact: object) -> None:
        if isinstance(fact, moment):
            signal.raise_signal(signal.SIGINT)

    with pytest.raises((KeyboardInterrupt, Interrupted)):
        fit("new/folder", listen=listen)
    if moment is Said:
        assert list(tmp_path.iterdir()) == []
    else:
        same(fit("new/folder", resume=True).folder, fit("whole").folder)


@pytest.mark.usefixtures("hears_interrupts")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_that_a_finaliser_swallowed_is_heard(fit, tmp_path: Path) -> None:
    """As when it arrives in one of the callbacks by which an import clears its locks away."""

    class Dying:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGINT)

    def listen(fact: object) -> None:
        if isinstance(fact, Said):
            Dying()

    with pytest.raises(KeyboardInterrupt):
        fit("new/folder", listen=listen)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_full_fine_tuning_resumes_to_the_same_bits(fit, tmp_path: Path, dtype: str) -> None:
    settings = {"lora.kind": "full", "train.lr": 1e-3, "train.epochs": 2, "model.dtype": dtype}
    stopped(fit, 4, settings=settings)
    assert load(tmp_path / "stopped").predict("the hen")[0].label
    again, whole = fit("stopped", settings=settings, resume=True), fit("whole", settings=settings)
    same(again.folder, whole.folder)
    bodies = [(run.folder / "backbone/model.safetensors").read_bytes() for run in (again, whole)]
    assert bodies[0] == bodies[1]


def test_a_run_is_not_written_into_its_data(tmp_path: Path) -> None:
    data = tmp_path / "data" / "calm"
    data.mkdir(parents=True)
    (data / "one.txt").write_text("the hen")
    with pytest.raises(RunError, match=r"lies in .*data, and would be read with it"):
        train(data.parent, out=data.parent / "run", model="mini")
    (tmp_path / "s.toml").write_text('data.train = "data"\n[[sweep.grid]]\n"train.seed" = [1, 2]\n')
    with pytest.raises(RunError, match=r"lies in .*data, and would be read with it"):
        sweep(tmp_path / "s.toml", out=data.parent / "run")
    assert [path.name for path in data.parent.iterdir()] == ["calm"]


def test_a_finished_training_is_only_said_to_be_finished(fit, small: Path) -> None:
    run = fit()
    before = {p: p.stat().st_mtime_ns for p in run.folder.rglob("*") if p.is_file() and not p.name.startswith(".")}
    heard: list[object] = []
    fit(resume=True, listen=heard.append)
    assert [fact.text for fact in heard] == [f"{run.folder} is finished already"]
    assert before == {p: p.stat().st_mtime_ns for p in before}


@pytest.mark.parametrize(
    "change", [{"train.lr": 1e-3}, {"lora.rank": 4}, {"data.long": "truncate"}, {"train.epochs": 7}], ids=str
)
def test_another_setting_on_resume_is_refused_by_name(fit, change) -> None:
    stopped(fit, 1)
    with pytest.raises(RunError, match=f"{next(iter(change))} was .* and is .* now"):
        fit("stopped", settings=change, resume=True)


def test_settings_left_open_may_be_left_open_again(fit) -> None:
    stopped(fit, 1, settings={"model.dtype": "auto", "train.device": "auto"})
    fit("stopped", settings={"model.dtype": "auto", "train.device": "auto"}, resume=True)


@pytest.mark.parametrize("split", ["train", "dev"])
def test_other_rows_on_resume_are_refused_by_split(fit, small: Path, tmp_path: Path, split: str) -> None:
    files = {name: shutil.copy(small / f"moods-{name}.jsonl", tmp_path / f"{name}.jsonl") for name in ("train", "dev")}
    stopped(fit, 1, data=files["train"], dev=files["dev"])
    text = Path(files[split]).read_text()
    Path(files[split]).write_text(text.replace("calm", "loud", 1))
    with pytest.raises(RunError, match=f"the {split} rows .* are not those that this training began with"):
        fit("stopped", data=files["train"], dev=files["dev"], resume=True)


def test_other_rows_in_memory_on_resume_are_refused(fit, small: Path) -> None:
    rows = rows_of(small / "moods-train.jsonl")
    stopped(fit, 1, data=rows)
    with pytest.raises(RunError, match="the train rows"):
        fit("stopped", data=[{**rows[0], "text": rows[0]["text"].upper()}, *rows[1:]], resume=True)


def test_a_tokenizer_that_changed_is_refused_on_resume(fit, tiny_folder: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(tiny_folder, tmp_path / "model"))
    stopped(fit, 1, model=str(model))
    file = model / "tokenizer.json"
    file.write_text(
        file.read_text()
        .replace('"add_prefix_space":false', '"add_prefix_space":true')
        .replace('"add_prefix_space": false', '"add_prefix_space": true')
    )
    with pytest.raises(RunError, match="the tokenizer is not the one"):
        fit("stopped", model=str(model), resume=True)


# The sealed test


def test_no_weight_and_no_choice_depends_on_the_test_rows(fit, small: Path, tmp_path: Path) -> None:
    rows = rows_of(small / "moods-test.jsonl")
    other = [{"text": row["text"] + " thing", "label": "unheard of"} for row in rows]
    one, two = fit("one", test=rows), fit("two", test=other)
    for name in WEIGHTS:
        assert (one.folder / name).read_bytes() == (two.folder / name).read_bytes()
    assert one.metrics["dev"] == two.metrics["dev"]
    assert two.metrics["test"]["accuracy"] == 0 and two.metrics["test"]["unseen_labels"] == ["unheard of"]


def test_each_opening_of_the_test_rows_is_a_line_of_the_ledger(finished: Path) -> None:
    lines = [line for line in rows_of(finished / "ledger.jsonl") if line["purpose"] != "evaluate"]
    assert {line["purpose"] for line in lines} == {"opening", "linting", "final evaluation"}
    assert [line["purpose"] for line in lines][-1] == "final evaluation"
    assert lines[-1]["sha256"] == json.loads((finished / "splits.json").read_text())["test"]["sha256"]


def test_so_is_an_evaluation_on_them_and_none_on_others(finished: Path, small: Path, tmp_path: Path) -> None:
    from labeltune import evaluate

    run = tmp_path / "run"
    shutil.copytree(finished, run)
    before = rows_of(run / "ledger.jsonl")
    evaluate(run, small / "moods-dev.jsonl")
    assert rows_of(run / "ledger.jsonl") == before
    shutil.copy(small / "moods-test.jsonl", tmp_path / "copy.jsonl")
    found = evaluate(run, tmp_path / "copy.jsonl")
    (line,) = rows_of(run / "ledger.jsonl")[len(before) :]
    assert (line["purpose"], line["rows"]) == ("evaluate", found.rows) and line["source"].endswith("copy.jsonl")


def test_without_a_test_split_the_ledger_is_empty(tagger: Path) -> None:
    assert not (tagger / "ledger.jsonl").exists()


# What was not read


def long_rows(rows: list[dict[str, object]]) -> list[dict[str, object]]:
    """Each row twice in itself: a person at either end."""
    return [{"tokens": row["tokens"] * 4, "tags": row["tags"] * 4} for row in rows]


def test_what_truncation_cuts_is_said_and_kept(fit, small: Path) -> None:
    rows = long_rows(rows_of(small / "names-train.jsonl"))
    test = long_rows(rows_of(small / "names-test.jsonl"))
    heard: list[object] = []
    settings = {"data.long": "truncate", "data.max_tokens": 16}
    run = fit(data=rows, dev=rows[:4], test=test, settings=settings, listen=heard.append)
    said = " ".join(fact.text for fact in heard if isinstance(fact, Said))
    assert "train: 24 rows are longer than the model reads:" in said and "dev: 4 rows" in said
    for split in ("train", "dev", "test"):
        lost = run.metrics[split]["lost"]
        assert lost["rows"] > 0 and lost["entities"] > 0 and lost["words"] > lost["entities"] < lost["characters"]
    assert "entities" in (run.folder / "README.md").read_text()


def test_a_documents_words_are_counted_too(fit, small: Path) -> None:
    rows = [{**row, "text": f"{row['text']} " * 9} for row in rows_of(small / "moods-train.jsonl")]
    run = fit(data=rows, settings={"data.long": "truncate", "data.max_tokens": 16})
    assert run.metrics["train"]["lost"]["words"] > 24 and "entities" not in run.metrics["train"]["lost"]


def test_gold_is_cut_only_on_request_and_every_report_says_so(fit, small: Path, typed) -> None:
    rows = long_rows(rows_of(small / "names-train.jsonl"))
    settings = {"data.long": "truncate", "data.max_tokens": 16, "train.epochs": 12, "train.lr": 3e-2}
    full = fit("full", data=rows, dev=rows[:8], settings=settings)
    cut = fit("cut", data=rows, dev=rows[:8], settings=settings | {"eval.truncate_gold": True, "train.select": "ece"})
    assert "switches" not in full.metrics["dev"] and cut.metrics["dev"]["switches"] == ["eval.truncate_gold"]
    assert full.metrics["dev"]["span_recall"] < 0.5
    assert "eval.truncate_gold" in (cut.folder / "README.md").read_text()
    (small / "long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:8]))
    plain = typed("evaluate", full.folder, "--data", small / "long.jsonl")
    asked = typed("evaluate", full.folder, "--data", small / "long.jsonl", "--set", "eval.truncate_gold=true")
    assert "truncate_gold" not in plain.out and "eval.truncate_gold" in asked.out
    figures = json.loads(
        typed("evaluate", full.folder, "--data", small / "long.jsonl", "--set", "eval.truncate_gold=true", "--json").out
    )
    assert figures["switches"] == ["eval.truncate_gold"] and figures["span_recall"] > full.metrics["dev"]["span_recall"]


# Starting from another run


def test_a_start_takes_the_rows_of_labels_that_both_know(fit, finished: Path, small: Path) -> None:
    rows = [row for row in rows_of(small / "moods-train.jsonl") if row["label"] != "odd"]
    rows += [{"text": f"a new thing {i}", "label": "new"} for i in range(6)]
    heard: list[object] = []
    run = fit(data=rows, init=finished, settings={"train.lr": 1e-30, "train.weight_decay": 0.0}, listen=heard.append)
    said = [fact.text for fact in heard if isinstance(fact, Said)]
    assert f"from {finished}: labels kept calm, loud; new new; dropped odd" in said
    old, new = (load(folder) for folder in (finished, run.folder))
    weights = [p.assembly.member.head.weight for p in (old, new)]
    places = [(old.labels.index(name), new.labels.index(name)) for name in ("calm", "loud")]
    assert all(torch.allclose(weights[0][a], weights[1][b]) for a, b in places)
    assert run.config.train.init == str(finished)


def begun(
    fit, small: Path, first: Mapping[str, object], then: Mapping[str, object], **words: object
) -> tuple[str, list[Tensors]]:
    """What is said of starting from a run of all moods with one whose last label is another, and both heads."""
    nothing = {"train.lr": 1e-30, "train.weight_decay": 0.0, "train.steps": 1}
    was = fit("was", settings={"train.steps": 1} | first, **words)
    rows = [
        row | {"label": {"odd": "anew"}.get(row["label"], row["label"])} for row in rows_of(small / "moods-train.jsonl")
    ]
    heard: list[object] = []
    now = fit("now", data=rows, dev=rows[:6], init=was.folder, settings=nothing | then, listen=heard.append, **words)
    said = [fact.text for fact in heard if isinstance(fact, Said) and fact.text.startswith("from ")]
    return said[0].removeprefix(f"from {was.folder}: "), [load_file(run.folder / HEAD) for run in (was, now)]


def test_a_start_of_a_stock_head_takes_its_layers_and_the_rows_of_its_last(fit, small: Path, tiny_encoder) -> None:
    stock = {"head.kind": "stock"}
    said, (was, now) = begun(fit, small, stock, stock, model=str(tiny_encoder("bert")))
    assert said == "labels kept calm, loud; new anew; dropped odd"
    dense, last = "head.stages.0.dense.weight", "head.stages.1.weight"
    assert torch.allclose(was[dense], now[dense])
    assert torch.allclose(was[last][:2], now[last][1:])


def test_a_start_says_what_it_could_not_take(fit, small: Path, tiny_encoder) -> None:
    said, _ = begun(fit, small, {}, {"head.kind": "stock", "model.pooling": "last"}, model=str(tiny_encoder("bert")))
    assert said.startswith(
        "labels kept none; new anew, calm, loud; dropped calm, loud, odd; begun anew head.stages.0.dense"
    )
    assert said.endswith("head.kind was 'linear' and is 'stock'; model.pooling was 'first' and is 'last'")


def test_a_start_takes_no_thresholds_of_other_labels(fit, small: Path) -> None:
    order = ["calm", "loud", "odd"], ["calm", "anew", "loud"]
    settings = [{"task": "ordinal", "data.label_order": names} for names in order]
    said, _ = begun(fit, small, *settings)
    assert said == "labels kept none; new anew, calm, loud; dropped calm, loud, odd; begun anew head.bias, head.weight"


def test_a_start_that_cannot_be_leaves_nothing_behind(fit, finished: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    with torch.random.fork_rng():
        torch.manual_seed(5)
        config = LlamaConfig(
            vocab_size=266,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
        )
        LlamaModel(config).save_pretrained(other)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(finished / "tokenizer" / name, other / name)
    for words, says in (({"model": str(other)}, "its backbone is"), ({"kind": "names"}, "its task is")):
        with pytest.raises(RunError, match=says):
            fit("refused", init=finished, **words)
        assert not (tmp_path / "refused").exists()


def test_settings_survive_being_written(fit, tmp_path: Path) -> None:
    from labeltune.config import make, to_toml

    run = fit(
        settings={"train.clip": 0.0, "lora.targets": ["q_proj"], "head.class_weights": {"a.b": 1.0}}
        | {"head.class_weights": {"odd": 2.0}}
    )
    (tmp_path / "c.toml").write_text(to_toml(run.config))
    assert make(read_toml(tmp_path / "c.toml")) == run.config
    assert isinstance(run.config, Config) and run.config.train.clip == 0
