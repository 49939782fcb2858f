"""Laws of sweeps: which trials there are, that neighbours and kills change nothing, that dev chooses, the tables."""

import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from labeltune import Interrupted, Sweep, evaluate, load, open_run, plan_sweep, sweep, train
from labeltune.config import Config, make, read_toml
from labeltune.errors import RunError, SettingsError
from labeltune.model.backbone import Backbone
from labeltune.sweep_screen import _short
from labeltune.sweeps import report
from labeltune.sweeps.axes import Range, all_points, grids_of, random_points
from labeltune.sweeps.facts import Began, Ended, Moved, Pruned
from labeltune.sweeps.rounds import allowed
from labeltune.sweeps.selection import Trust, sentences
from labeltune.sweeps.settings import SweepConfig
from labeltune.sweeps.tables import TIMES

QUICK = {"train.epochs": 1, "train.batch_rows": 8, "train.threads": 1, "lora.rank": 2}


@pytest.fixture(scope="module")
def folder(small: Path, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a sweep file begins: the data and the backbone by name."""
    place = tmp_path_factory.mktemp("sweeps")
    for split in ("train", "dev", "test"):
        shutil.copy(small / f"moods-{split}.jsonl", place / f"{split}.jsonl")
    shutil.copytree(tiny_folder, place / "tiny")
    return place


def written(folder: Path, text: str, name: str = "sweep.toml", **settings: object) -> Path:
    """A sweep file over the folder's data."""
    quick = {**QUICK, "train.lr": 3e-3, **settings}
    sections: dict[str, list[str]] = {}
    for setting, value in quick.items():
        section, key = setting.split(".")
        sections.setdefault(section, []).append(f"{key} = {json.dumps(value)}")
    head = '[data]\ntrain = "train.jsonl"\ndev = "dev.jsonl"\ntest = "test.jsonl"\n[model]\nname = "tiny"\n'
    body = "".join(f"[{section}]\n" + "\n".join(lines) + "\n" for section, lines in sections.items())
    path = folder / name
    path.write_text(head + body + text)
    return path


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def weights(run: Path) -> dict[str, torch.Tensor]:
    found = {}
    for path in (run / "adapter" / "adapter_model.safetensors", run / "head.safetensors"):
        found |= load_file(path)
    return found


def furthest(one: Path, other: Path) -> float:
    """The largest relative change of a tensor."""
    a, b = weights(one), weights(other)
    assert a.keys() == b.keys()
    return max(float((a[n] - w).norm() / w.norm().clamp(min=1e-12)) for n, w in b.items())


def test_the_processes_of_torchrun_do_not_share_a_folder(folder: Path, tmp_path: Path, monkeypatch) -> None:
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "here", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RunError, match=r"torchrun has started 2; start it without torchrun; .* = 'ray'"):
        sweep(written(folder, '[sweep.axes]\n"lora.rank" = [1, 2]\n'), out=tmp_path / "s")
    assert not (tmp_path / "s").exists()


# Points


def points(axes: object = None, grid: object = (), base: Config | None = None, **settings: object) -> list[dict]:
    config = SweepConfig(axes=axes or {}, grid=tuple(grid), **settings)
    base = base or make({})
    if settings.get("search") == "random":
        return random_points(grids_of(config, base, "s.toml"), base, settings["budget"]["trials"])
    return all_points(grids_of(config, base, "s.toml"), base)[0]


def test_a_grid_is_the_product_of_its_axes_and_a_sweep_the_union_of_its_grids() -> None:
    axes = {"train.lr": [1e-4, 3e-4], "lora.rank": [4, 8]}
    assert len(points(axes)) == 4
    found = points(axes, [{"train.lr": [1e-4, 1e-3], "lora": {"rank": 4}}])
    assert len(found) == 5 and found[-1] == {"train.lr": 1e-3, "lora.rank": 4}


def test_equal_settings_are_one_point_however_they_are_written() -> None:
    assert len(points({"lora.rank": [32, 16]}, [{"train.batch_rows": [16]}])) == 2  # both are defaults


def test_conditions_keep_what_agrees_with_them() -> None:
    grid = {"model.pooling": ["last", "mean", "max"], "model.pool_on": ["hidden", "logits"]}
    found = points(grid=[grid | {"when": {"model.pooling": ["mean", "max"]}}, {"model.pooling": "last"}])
    assert len(found) == 5


def test_random_points_are_drawn_from_lists_and_ranges_the_same_for_a_seed() -> None:
    axes = {"train.lr": {"low": 1e-5, "high": 1e-2, "log": True}, "lora.rank": {"low": 2, "high": 8, "step": 2}}
    found = points(axes | {"model.pooling": ["last", "max"]}, search="random", budget={"trials": 30})
    assert len(found) == 30 and found == points(
        axes | {"model.pooling": ["last", "max"]}, search="random", budget={"trials": 30}
    )
    assert {p["lora.rank"] for p in found} == {2, 4, 6, 8} and {p["model.pooling"] for p in found} == {"last", "max"}
    logs = np.log10([p["train.lr"] for p in found])
    assert -5 <= logs.min() < -4 and -3 < logs.max() <= -2


@pytest.mark.parametrize(
    ("axes", "said"),
    [
        ({"train.lrate": [1]}, r'sweep\.axes\."train\.lrate": unknown setting.*train\.lr'),
        ({"train.lr": []}, r'"train\.lr": this axis has no values'),
        ({"train.lr": [1e-3, "fast"]}, r'sweep\.axes\."train\.lr"'),
        ({"train.lr": {"low": 1e-5, "high": 1e-2}}, "a grid has no ranges"),
        ({"data.fold": ["1/2"]}, "the sweep sets this itself"),
        ({name: list(range(1, 11)) for name in ("lora.rank", "train.batch_rows", "train.epochs", "train.seed",
          "train.warmup", "lora.alpha", "model.depth")}, r"10,000,000 combinations"),
    ],
    ids=str,
)  # fmt: skip
def test_axes_that_cannot_be_are_told(axes: dict, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        points(axes)


# Whole sweeps


SWEEP = """
[sweep]
seeds = 2
[sweep.axes]
"train.lr" = [3e-3, 1e-2]
"lora.rank" = [2, 4]
[[sweep.table]]
name = "rates"
by = "train.lr"
"""


@pytest.fixture(scope="module")
def swept(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    """A finished sweep: two rates, two ranks, two seeds."""
    return sweep(written(folder, SWEEP), out=tmp_path_factory.mktemp("swept") / "s")


def test_every_trial_is_a_run_folder_that_answers(swept: Sweep) -> None:
    table = rows(swept.folder / "all.csv")
    assert len(table) == 8 and {row["status"] for row in table} == {"finished"}
    assert [row["seed"] for row in table] == ["42", "43"] * 4
    for row in table:
        metrics = json.loads((swept.folder / "trials" / row["trial"] / "metrics.json").read_text())
        assert float(row["dev_macro_f1"]) == metrics["dev"]["macro_f1"]
    assert load(swept.run).predict("the hen")[0].label
    assert not list(swept.folder.rglob("work"))


def test_dev_alone_chooses_and_only_the_chosen_are_scored_on_test(swept: Sweep) -> None:
    table = rows(swept.folder / "all.csv")
    means: dict[tuple[str, str], float] = {}
    for row in table:
        point = row["train.lr"], row["lora.rank"]
        means[point] = means.get(point, 0) + float(row["dev_macro_f1"]) / 2
    best = max(means, key=lambda point: means[point])
    (chosen,) = rows(swept.folder / "best.csv")
    assert (chosen["train.lr"], chosen["lora.rank"]) == best
    assert float(chosen["dev_macro_f1"]) == pytest.approx(means[best])
    tested = {(row["train.lr"], row["lora.rank"]) for row in table if row["test_accuracy"]}
    assert len(tested) == len(rows(swept.folder / "rates.csv")) == 2 and best in tested
    openings = [json.loads(line) for line in (swept.folder / "ledger.jsonl").read_text().splitlines()]
    assert sum(line["purpose"] == "final evaluation" for line in openings) == 4
    mean = np.mean([float(r["test_accuracy"]) for r in table if (r["train.lr"], r["lora.rank"]) == best])
    assert float(chosen["test_accuracy"]) == pytest.approx(mean)


def test_a_trial_is_the_training_that_its_settings_name(swept: Sweep, tmp_path: Path) -> None:
    config = swept.folder / "trials" / "0005" / "config.toml"
    train(config=config, out=tmp_path / "alone")
    assert furthest(swept.folder / "trials" / "0005", tmp_path / "alone") <= 1e-4


def test_gone_on_with_a_finished_sweep_says_the_same_and_another_one_is_refused(swept: Sweep, folder: Path) -> None:
    before = {path: path.read_bytes() for path in swept.folder.rglob("*") if path.is_file()}
    sweep(written(folder, SWEEP), out=swept.folder, resume=True)
    after = {path: path.read_bytes() for path in swept.folder.rglob("*") if path.is_file()}
    assert {p for p in before if before[p] != after.get(p) and p.name != "ledger.jsonl"} == set()
    with pytest.raises(RunError, match="the results of another sweep"):
        sweep(written(folder, SWEEP), out=swept.folder, resume=True, settings={"sweep.seeds": 3})
    with pytest.raises(RunError, match="not empty"):
        sweep(written(folder, SWEEP), out=swept.folder)


@pytest.mark.parametrize("changed", ["train", "dev", "other"])
def test_a_sweep_goes_on_with_its_own_rows_alone(folder: Path, tmp_path: Path, changed: str) -> None:
    place = tmp_path / "data"
    shutil.copytree(folder, place)
    shutil.copy(place / "train.jsonl", place / "other.jsonl")
    file = written(place, '[sweep.axes]\n"data.train" = ["train.jsonl", "other.jsonl"]\n')
    sweep(file, out=tmp_path / "s")
    sweep(file, out=tmp_path / "s", resume=True)
    with (place / f"{changed}.jsonl").open("a") as rows:
        rows.write('{"text": "the hen sang", "label": "calm"}\n')
    with pytest.raises(RunError, match=rf"{changed}.*(not those|has changed)"):
        sweep(file, out=tmp_path / "s", resume=True)


def test_trials_compute_with_the_threads_that_they_record(folder: Path, tmp_path: Path) -> None:
    text = '[sweep.axes]\n"train.threads" = [1, 2]\n'
    before, used = torch.get_num_threads(), []

    def heard(fact: object) -> None:
        if isinstance(fact, Moved):
            used.append(torch.get_num_threads())

    done = sweep(written(folder, text), out=tmp_path / "s", listen=heard)
    assert sorted(set(used)) == [1, 2] and torch.get_num_threads() == before
    settings = [make(read_toml(done.folder / "trials" / n / "config.toml")).train.threads for n in ("0000", "0001")]
    assert settings == [1, 2]


def test_columns_of_llm_lora_classification(swept: Sweep, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "s"
    shutil.copytree(swept.folder, out)
    sweep(written(folder, SWEEP), out=out, resume=True, columns="hpprc")
    (row, *_) = rows(out / "best.csv")
    assert [*row] == ["model_name", "lr", "batch_size", "lora_r", "template_type", "best-val-epoch", "best-val-f1",
                      "loss", "accuracy", "precision", "recall", "f1"]  # fmt: skip
    assert row["batch_size"] == "8" and float(row["f1"]) <= 1
    assert int(row["best-val-epoch"]) == json.loads((swept.run / "metrics.json").read_text())["train"]["best_epoch"]


def test_a_trial_that_fails_or_diverges_is_marked_and_touches_no_other(folder: Path, tmp_path: Path) -> None:
    text = '[sweep]\ntogether = 3\n[sweep.axes]\n"train.lr" = [1e-2, 1e30]\n"model.depth" = [4, 99]\n'
    done = sweep(written(folder, text, **{"train.clip": 0}), out=tmp_path / "s")
    table = {(row["train.lr"], row["model.depth"]): row for row in rows(done.folder / "all.csv")}
    assert table["0.01", "4"]["status"] == "finished"
    assert "there is no block 99" in table["0.01", "99"]["reason"] and table["0.01", "99"]["status"] == "failed"
    wild = table["1e+30", "4"]
    assert wild["reason"].startswith("the loss is no longer finite after step")
    assert wild["status"] == "diverged" and wild["dev_macro_f1"] and int(wild["step"]) < 3
    alone = sweep(written(folder, '[sweep.axes]\n"train.lr" = [1e-2]\n', **{"train.clip": 0}), out=tmp_path / "a")
    assert furthest(done.folder / "trials" / "0000", alone.run) <= 1e-4


def test_a_trial_that_memory_has_no_room_for_is_marked_and_changes_no_bit_of_the_others(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = '"train.lr" = [3e-3, 1e-2]\n'
    without = sweep(written(folder, f"[sweep]\ntogether = 1\n[[sweep.grid]]\n{rates}"), out=tmp_path / "without")
    log = (without.folder / "trials" / "0000" / "log.jsonl").read_text().splitlines()
    run, most = Backbone._run, max(json.loads(line)["tokens"] for line in log)  # a step of theirs just fits

    def weigh(self: Backbone, ids: torch.Tensor, *others: object, **words: object) -> object:
        if torch.is_grad_enabled() and ids.numel() > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return run(self, ids, *others, **words)

    monkeypatch.setattr(Backbone, "_run", weigh)
    long = f'"data.template" = ["{"long " * most}{{text}}"]\n'
    for together in (1, 3):  # side by side, all go one by one once a pass of them is too large
        text = f"[sweep]\ntogether = {together}\n[[sweep.grid]]\n{rates}[[sweep.grid]]\n{long}"
        done = sweep(written(folder, text), out=tmp_path / f"with-{together}")
        table = rows(done.folder / "all.csv")
        assert [row["status"] for row in table] == ["finished", "finished", "out of memory"]
        assert table[2]["reason"] == "a single row needs more memory than there is, after step 0"
        for trial in sorted((without.folder / "trials").iterdir()):
            same_trial(done.folder / "trials" / trial.name, trial, but=("config.toml", "trial.json"))


def test_a_swept_full_fine_tuning_is_scored_on_test_as_its_run_is(folder: Path, tmp_path: Path) -> None:
    text = '[sweep.axes]\n"train.lr" = [1e-3]\n'
    done = sweep(written(folder, text, **{"lora.kind": "full"}), out=tmp_path / "s")
    (row,) = rows(done.folder / "all.csv")
    again = evaluate(done.run, folder / "test.jsonl").metrics
    assert float(row["test_log_loss"]) == pytest.approx(again["log_loss"], rel=1e-6)


def test_halving_leaves_the_worse_points_at_the_rung(folder: Path, tmp_path: Path) -> None:
    text = '[sweep]\nhalving = { factor = 2, rungs = [1] }\n[sweep.axes]\n"train.lr" = [1e-5, 1e-2, 2e-2, 1e-4]\n'
    heard: list[object] = []
    done = sweep(written(folder, text, **{"train.epochs": 3}), out=tmp_path / "s", listen=heard.append)
    table = rows(done.folder / "all.csv")
    first = []
    for trial in sorted((done.folder / "trials").iterdir()):
        log = [json.loads(line) for line in (trial / "log.jsonl").read_text().splitlines()]
        first.append(next(line["dev"]["macro_f1"] for line in log if "dev" in line))
    better = sorted(range(4), key=lambda number: -first[number])[:2]
    assert [row["status"] for row in table] == ["finished" if n in better else "pruned" for n in range(4)]
    assert [row["step"] for row in table] == ["9" if n in better else "3" for n in range(4)]
    assert [fact for fact in heard if isinstance(fact, Pruned)] == [Pruned(1, 2, 2)]
    kept = done.folder / "trials" / f"{better[0]:04d}"
    train(config=kept / "config.toml", out=tmp_path / "alone")
    assert furthest(kept, tmp_path / "alone") <= 1e-4  # a pause changes nothing


def test_a_rung_where_no_trial_evaluates_compares_them_all_the_same(folder: Path, tmp_path: Path) -> None:
    text = '[sweep]\nhalving = { factor = 2, rungs = [1] }\n[sweep.axes]\n"train.lr" = [1e-5, 1e-2, 2e-2, 1e-4]\n'
    done = sweep(written(folder, text, **{"train.epochs": 3, "train.eval_every": 100}), out=tmp_path / "s")
    looked = sweep(written(folder, text, **{"train.epochs": 3}), out=tmp_path / "looked")
    assert [row["status"] for row in rows(done.folder / "all.csv")] == [
        row["status"] for row in rows(looked.folder / "all.csv")
    ]
    (kept, *_) = [row["trial"] for row in rows(done.folder / "all.csv") if row["status"] == "finished"]
    train(config=done.folder / "trials" / kept / "config.toml", out=tmp_path / "alone")
    assert furthest(done.folder / "trials" / kept, tmp_path / "alone") <= 1e-4  # the look changes nothing


@pytest.mark.parametrize("kind", ["dora", "lora"])
def test_interrupted_after_a_rung_it_goes_on_to_the_same_end(folder: Path, tmp_path: Path, kind: str) -> None:
    text = "[sweep]\ntogether = 1\nhalving = { factor = 1.01, rungs = [1] }\n"
    text += '[sweep.axes]\n"train.lr" = [1e-3, 2e-3, 3e-3]\n'
    settings = {"train.epochs": 2, "lora.kind": kind, "lora.dropout": 0.0}
    file, ended = written(folder, text, f"{kind}.toml", **settings), 0

    def stop_in_the_second_leg(fact: object) -> None:
        nonlocal ended
        ended += isinstance(fact, Ended) and fact.status == "finished"
        if ended == 1 and isinstance(fact, Moved):
            ended += 1
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted):
        sweep(file, out=tmp_path / "s", listen=stop_in_the_second_leg)
    again = sweep(file, out=tmp_path / "s", resume=True)
    assert same(again, sweep(file, out=tmp_path / "whole"))


def test_interrupted_it_goes_on_to_the_same_end(folder: Path, tmp_path: Path) -> None:
    file = written(folder, '[sweep]\ntogether = 2\n[sweep.axes]\n"train.lr" = [1e-3, 2e-3, 3e-3]\n')

    def stop_at_the_fourth_step(fact: object) -> None:
        nonlocal steps
        steps += isinstance(fact, Moved)
        if steps == 4:
            signal.raise_signal(signal.SIGINT)

    steps = 0
    with pytest.raises(Interrupted, match=r"stopped with 0 of 3 trainings of this group done; .*--resume goes on"):
        sweep(file, out=tmp_path / "s", listen=stop_at_the_fourth_step)
    again = sweep(file, out=tmp_path / "s", resume=True)
    assert same(again, sweep(file, out=tmp_path / "whole"))


BITS = (
    "adapter/adapter_model.safetensors",
    "head.safetensors",
    "trial.json",
    "dev.jsonl",
    "config.toml",
    "splits.json",
)


def same_trial(one: Path, other: Path, but: tuple[str, ...] = ()) -> None:
    """What does not depend on the clock is equal, to the bit."""
    for name in BITS:
        assert (one / name).exists() == (other / name).exists(), name
        if name not in but and (one / name).exists():
            assert (one / name).read_bytes() == (other / name).read_bytes(), one / name


def same(one: Sweep, other: Sweep) -> bool:
    """Whether all that does not depend on the clock is equal, to the bit."""
    trials = [sorted((done.folder / "trials").iterdir()) for done in (one, other)]
    assert [trial.name for trial in trials[0]] == [trial.name for trial in trials[1]]
    for pair in zip(*trials, strict=True):
        same_trial(*pair)
    for table in one.tables:
        found = [[{k: v for k, v in row.items() if k not in TIMES} for row in rows(s.folder / f"{table.name}.csv")]
                 for s in (one, other)]  # fmt: skip
        assert found[0] == found[1], table.name
    return True


def test_folds_share_out_the_training_rows(folder: Path, tmp_path: Path) -> None:
    text = '[sweep]\nfolds = 3\n[sweep.axes]\n"train.lr" = [1e-2]\n'
    done = sweep(written(folder, text), out=tmp_path / "s", settings={"data.dev": 0.1})
    ids = []
    for trial in sorted((done.folder / "trials").iterdir()):
        ids += json.loads((trial / "splits.json").read_text())["dev"]["ids"]
    assert len(ids) == len(set(ids)) == 24 and [row["fold"] for row in rows(done.folder / "all.csv")] == [
        "1/3",
        "2/3",
        "3/3",
    ]


def test_optuna_is_asked_and_told_in_groups_the_same_for_a_seed(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    text = '[sweep]\nsearch = "tpe"\nbudget = { trials = 6 }\ntogether = 3\n'
    text += '[sweep.axes]\n"train.lr" = { low = 1e-4, high = 3e-2, log = true }\n"model.pooling" = ["last", "mean"]\n'
    first, second = (sweep(written(folder, text), out=tmp_path / name) for name in "ab")
    assert [row["train.lr"] for row in rows(first.folder / "all.csv")] == [
        row["train.lr"] for row in rows(second.folder / "all.csv")
    ]
    assert first.best == second.best and len(rows(first.folder / "all.csv")) == 6


def test_optuna_tries_only_what_the_conditions_allow(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    text = '[sweep]\nsearch = "tpe"\nbudget = { trials = 4 }\n[[sweep.grid]]\n"train.lr" = [1e-3, 2e-3, 3e-3, 4e-3]\n'
    text += '"lora.dropout" = [0.0, 0.1, 0.2]\nwhen = { "lora.dropout" = [0.1] }\n'
    found = rows(sweep(written(folder, text), out=tmp_path / "s").folder / "all.csv")
    assert {row["lora.dropout"] for row in found} == {"0.1"}


def test_the_minutes_of_a_call_that_was_stopped_count(folder: Path, tmp_path: Path) -> None:
    text = '[sweep]\nbudget = { minutes = 1000 }\n[sweep.axes]\n"train.lr" = [1e-3]\n'

    def stop(fact: object) -> None:
        if isinstance(fact, Moved):
            time.sleep(0.3)
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted):
        sweep(written(folder, text, **{"train.epochs": 9}), out=tmp_path / "s", listen=stop)
    assert json.loads((tmp_path / "s" / "work" / "minutes.json").read_text()) >= 0.005


@pytest.mark.parametrize(
    ("axis", "says"),
    [
        ('{ low = "1e-4", high = 1e-3 }', r"low: '1e-4' is no number"),
        ("{ low = 1e-4, high = 1e-3, step = 0 }", "step: 0 is no step"),
        ("{ low = 1e-4, high = 1e-3, step = -1e-4 }", "step: -0.0001 is no step"),
        ("{ low = 1e-3, high = 1e-4 }", "from a low to a high"),
        ("{ low = 1e-3, high = 1e-2, log = true, step = 1e-3 }", "a log range has no equal steps"),
    ],
)
def test_a_range_that_is_none_is_named(folder: Path, tmp_path: Path, axis: str, says: str) -> None:
    text = f'[sweep]\nsearch = "random"\n[sweep.axes]\n"train.lr" = {axis}\n'
    with pytest.raises(SettingsError, match=says):
        sweep(written(folder, text), out=tmp_path / "s")


@pytest.mark.parametrize("log", [False, True])
def test_whole_numbers_of_a_range_are_drawn_as_optuna_draws_them(log: bool) -> None:
    """Its sampler of independent numbers; with equal steps or equal ratios the ends are not rarer than the rest."""
    us = (np.arange(40_000) + 0.5) / 40_000
    drawn = np.array([Range(2, 6, log=log).draw(u) for u in us])
    optuna = pytest.importorskip("optuna")
    sampler, space = optuna.samplers.RandomSampler(seed=0), optuna.distributions.IntDistribution(2, 6, log=log)
    stock = np.array([sampler.sample_independent(None, None, "x", space) for _ in range(20_000)])
    for number in range(2, 7):
        assert (drawn == number).mean() == pytest.approx((stock == number).mean(), abs=0.012)
    assert set(drawn) == {2, 3, 4, 5, 6}


@pytest.mark.parametrize("higher", [True, False])
def test_a_plot_s_line_joins_the_best_of_each_value(higher: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = []
    monkeypatch.setattr("matplotlib.axes.Axes.plot", lambda self, x, y, **_: lines.append((list(x), list(y))))
    report._plot("train.lr", [(1, 0.9), (1, 0.1), (2, 0.5), (2, 0.3)], "mse", max if higher else min)
    assert lines == [([1, 2], [0.9, 0.5] if higher else [0.1, 0.3])]


def test_settings_are_shown_by_their_own_names_but_for_those_that_others_share() -> None:
    names = ("lora.dropout", "head.dropout", "train.lr", "seeds")
    assert list(_short(names).values()) == ["lora.dropout", "head.dropout", "lr", "seeds"]


@pytest.mark.parametrize(("higher", "word"), [(True, "high"), (False, "low")])
def test_a_chosen_error_is_too_low_where_a_chosen_score_is_too_high(higher: bool, word: str) -> None:
    assert f"about 0.1000 too {word}:" in " ".join(sentences(Trust(optimism=0.1, points=4), "mse", higher=higher))


def test_a_range_of_fractions_between_whole_ends_has_fractions() -> None:
    axes = {"train.warmup": {"low": 0, "high": 1, "step": 0.25}}
    found = points(axes, search="random", budget={"trials": 5})
    assert sorted(p["train.warmup"] for p in found) == [0, 0.25, 0.5, 0.75, 1]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"sweep": 1}, "sweep: this is a section"),
        ({"sweep.seeds": []}, "seeds: "),
        ({"sweep.engine": "ray", "sweep.budget.minutes": 5}, "do not count minutes"),
        ({"sweep.budget.epochs": 0.5}, "sweep.budget.epochs: one setting takes . epochs; give it at least"),
        ({"sweep.budget.epochs": 9, "sweep.axes": {"train.epochs": [1, 20]}}, "the epochs are an axis"),
        (
            {"sweep.grid": [{"lora.rank": [2], "when": {"lora.kind": "lora"}}]},
            r'when."lora.kind": a condition is about',
        ),
    ],
)
def test_a_sweep_that_cannot_be_is_refused_before_anything_runs(folder, tmp_path, settings, says) -> None:
    with pytest.raises(SettingsError, match=says):
        sweep(written(folder, AXES), out=tmp_path / "s", settings=settings)
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(("epochs", "points"), [(0.3, 3), (0.29, 2), (1.0, 10)])
def test_a_budget_of_epochs_is_counted_to_the_last_whole_setting(epochs: float, points: int) -> None:
    config, base = SweepConfig(axes={}, budget={"epochs": epochs}), make({"train": {"epochs": 0.1}})
    assert allowed(grids_of(config, base, "s.toml"), base, config) == points


def test_a_budget_of_minutes_lets_no_more_trials_begin_and_says_so(folder: Path, tmp_path: Path) -> None:
    text = '[sweep]\ntogether = 1\nbudget = { minutes = 1e-6 }\n[sweep.axes]\n"train.lr" = [1e-2, 1e-3, 1e-4]\n'
    with pytest.raises(RunError, match=r"no trial has a score.*sweep\.budget\.minutes"):
        sweep(written(folder, text), out=tmp_path / "s")


def test_a_table_over_what_does_not_vary_is_refused_before_anything_runs(folder: Path, tmp_path: Path) -> None:
    text = '[sweep.axes]\n"train.lr" = [1e-2]\n[[sweep.table]]\nname = "ranks"\nby = "lora.rank"\n'
    with pytest.raises(SettingsError, match=r"'lora\.rank' is no axis of this sweep"):
        sweep(written(folder, text), out=tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_the_report_warns_of_noise_and_of_the_best_of_many(folder: Path, tmp_path: Path) -> None:
    text = '[sweep.axes]\n"train.lr" = [1e-2, 9e-3, 8e-3, 7e-3, 6e-3]\n'
    done = sweep(written(folder, text), out=tmp_path / "s", test_all=True)
    report = (done.folder / "report.md").read_text()
    assert "McNemar" in report and "is about" in report and "too high" in report
    assert all(row["test_accuracy"] for row in rows(done.folder / "all.csv"))
    assert (done.folder / "plots" / "train.lr.svg").read_text().startswith("<?xml")


# Neighbours


MIXED = [
    {"train.lr": 1e-3},
    {"train.lr": 5e-4, "lora.rank": 4},
    {"train.lr": 1e-4, "data.template": "mood: {text}"},
    {"train.batch_rows": 5},
    {"model.pooling": "mean"},
    {"model.pooling": "max", "model.pool_on": "logits"},
    {"model.unmask": "all"},
    {"model.unmask": "first:2", "train.lr": 3e-4},
    {"train.seed": 7},
    {"lora.dropout": 0.5},
    {"model.depth": 3},
    {"head.bias": True, "train.schedule": "constant"},
]


def mixed_sweep(folder: Path, out: Path) -> Sweep:
    grids = "".join(
        "[[sweep.grid]]\n" + "".join(f"{json.dumps(name)} = [{json.dumps(value)}]\n" for name, value in point.items())
        for point in MIXED
    )
    settings = {"train.lr": 8e-4, "train.epochs": 17, "lora.dropout": 0.3, "train.eval_every": 50}
    return sweep(written(folder, "[sweep]\ntogether = 12\n" + grids, "mixed.toml", **settings), out=out)


@pytest.mark.slow
def test_twelve_mixed_trials_end_as_each_does_alone_and_a_shared_stream_would_not(folder, tmp_path, monkeypatch):
    together = mixed_sweep(folder, tmp_path / "s")
    assert len(list((together.folder / "trials").iterdir())) == 12
    for trial in sorted((together.folder / "trials").iterdir()):
        alone = tmp_path / "alone" / trial.name
        train(config=trial / "config.toml", out=alone, settings={"data.test": None})
        assert furthest(trial, alone) <= 1e-4, trial.name
        texts = [json.loads(line)["text"] for line in (folder / "dev.jsonl").read_text().splitlines()]
        labels = [[p.label for p in load(run).predict(texts)] for run in (trial, alone)]
        assert labels[0] == labels[1]

    def shared(keys, rates, boundaries, token_row, token_index, features):
        return torch.rand(len(token_row), features) >= max(rates)

    monkeypatch.setattr("labeltune.model.dropout.keep_masks", shared)
    other = mixed_sweep(folder, tmp_path / "shared")
    assert furthest(other.folder / "trials" / "0000", tmp_path / "alone" / "0000") > 1e-3


# Kills and clusters


KILLED = """
[sweep]
seeds = 2
together = 3
halving = { factor = 2, rungs = [2] }
[sweep.axes]
"train.lr" = [3e-3, 1e-2, 2e-2]
[[sweep.table]]
name = "rates"
by = "train.lr"
"""
RUN = """
import sys
from labeltune import sweep
file, out, resume = sys.argv[1:]
sweep(file, out=out, resume=resume == "1", snapshot_seconds=0)
"""


def steps_logged(out: Path) -> int:
    """Lines in the logs of all trials."""
    return sum(log.read_bytes().count(b"\n") for log in out.glob("trials/*/log.jsonl"))


def openings_noted(out: Path) -> int:
    """Openings of the test split that the sweep's ledger has."""
    ledger = out / "ledger.jsonl"
    return ledger.read_bytes().count(b"final evaluation") if ledger.exists() else 0


def killed_at(file: Path, out: Path, seen: Callable[[Path], int], least: int, pause: float) -> bool:
    """Run the sweep until so much is seen and a moment longer, and kill it; whether the kill hit it at work."""
    words = [sys.executable, "-c", RUN, str(file), str(out), str(int((out / "sweep.toml").exists()))]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 300
    while seen(out) < least and process.poll() is None and time.monotonic() < until:
        time.sleep(0.002)
    time.sleep(pause)
    process.kill()
    _, said = process.communicate()
    assert process.returncode in (0, -signal.SIGKILL), said
    return process.returncode == -signal.SIGKILL and seen(out) >= least


@pytest.mark.slow
def test_killed_at_ten_moments_no_trial_is_lost_doubled_or_changed(folder: Path, tmp_path: Path) -> None:
    file = written(folder, KILLED, "killed.toml", **{"train.epochs": 6, "lora.dropout": 0.2})
    whole = sweep(file, out=tmp_path / "whole", snapshot_seconds=0)
    out, chance = tmp_path / "s", random.Random(7)
    moments = sorted(chance.sample(range(1, steps_logged(whole.folder) - 8), 8))
    killed = sum(killed_at(file, out, steps_logged, least, chance.uniform(0, 0.05)) for least in moments)
    killed += sum(killed_at(file, out, openings_noted, least, 0) for least in (1, 3))
    assert killed == 10 and not (out / "sweep.json").exists()
    assert same(sweep(file, out=out, resume=True), whole)


@pytest.mark.slow
def test_ray_runs_the_groups_and_replaces_a_worker_that_is_killed(folder: Path, tmp_path: Path) -> None:
    ray = pytest.importorskip("ray")
    text = '[sweep]\ntogether = 1\n[sweep.axes]\n"train.lr" = [1e-3, 2e-3, 3e-3, 4e-3]\n'
    file = written(folder, text, "ray.toml", **{"train.epochs": 30})
    ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False)
    victims: list[int] = []

    def kill_one(fact: object) -> None:
        if isinstance(fact, Ended) and not victims:
            victims.extend(workers())
            os.kill(victims[0], signal.SIGKILL)

    try:
        done = sweep(file, out=tmp_path / "s", engine="ray", listen=kill_one, snapshot_seconds=0)
    finally:
        ray.shutdown()
    assert victims
    local = sweep(file, out=tmp_path / "local")
    assert [row["status"] for row in rows(done.folder / "all.csv")] == ["finished"] * 4
    for trial in (local.folder / "trials").iterdir():
        assert furthest(done.folder / "trials" / trial.name, trial) <= 1e-4


def workers() -> list[int]:
    """Processes of Ray that train just now."""
    listed = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True).stdout
    return [int(line.split()[0]) for line in listed.splitlines() if "ray::_task" in line]


# Before anything is spent


AXES = '[sweep]\nseeds = 2\n[sweep.axes]\n"train.lr" = [1e-3, 3e-3]\n"lora.rank" = [2, 4]\n'


def test_a_plan_says_what_a_sweep_then_does(folder: Path, tmp_path: Path) -> None:
    file = written(folder, AXES, "planned.toml")
    found = plan_sweep(file, price=2.0)
    (side,) = found.sides
    assert (found.points, found.trainings, found.epochs, side.trainings) == (4, 8, 8.0, 8)
    assert side.measured is not None and found.seconds and found.cost == found.seconds / 3600 * 2.0
    seated = [0]

    def listen(fact: object) -> None:
        if isinstance(fact, Began | Ended):
            seated.append(seated[-1] + (1 if isinstance(fact, Began) else -1))

    done = sweep(file, out=tmp_path / "out", listen=listen)
    assert max(seated) == side.seats > 1 and len(done.table("all").rows) == found.trainings
    trials = sorted((tmp_path / "out" / "trials").iterdir())
    trained = [open_run(trial).metrics["train"]["trained_parameters"] for trial in trials]
    one, all_ = (plan_sweep(file, settings={"sweep.together": n}, measure=False).sides[0].memory for n in (1, 8))
    assert all_.trained == pytest.approx(sum(trained) * one.trained / trained[0])  # one backbone, eight adapters
    assert all_.weights == one.weights and all_.tokens == 8 * one.tokens


def test_a_plan_knows_backbones_pruning_folds_and_the_budget(folder: Path) -> None:
    two = '[sweep.axes]\n"model.dtype" = ["fp32", "bf16"]\n"lora.kind" = ["lora", "full"]\n'
    sides = plan_sweep(written(folder, two), measure=False).sides
    assert [side.seats for side in sides] == [1, 1, 1, 1] and len({side.memory.weights for side in sides}) == 2
    three = '[sweep]\nhalving = { factor = 2, rungs = [1, 2] }\n[sweep.axes]\n"train.lr" = [1e-3, 2e-3, 3e-3, 4e-3]\n'
    assert plan_sweep(written(folder, three, **{"train.epochs": 4}), measure=False).epochs == 4 * (1 + 0.5 + 0.25 * 2)
    few = '[sweep]\nsearch = "tpe"\nbudget = { trials = 3 }\n[sweep.axes]\n"train.lr" = { low = 1e-4, high = 1e-2 }\n'
    assert plan_sweep(written(folder, few), measure=False).trainings == 3
    assert plan_sweep(written(folder, AXES), settings={"sweep.budget.minutes": 1e-3}).seconds == pytest.approx(0.06)


def test_a_plan_of_a_sweep_on_the_command_line(typed, folder: Path) -> None:
    file = written(folder, AXES)
    shown = typed("plan", file, "--gpu", "24GB", "--no-measure")
    assert shown.code == 0 and "4 points, 8 trainings" in shown.out and "fits" in shown.out and "about" not in shown.out
    facts = json.loads(typed("plan", file, "--no-measure", "--set", "sweep.seeds=1", "--json").out)
    assert facts["trainings"] == 4 and facts["sides"][0]["memory"]["total"] > 0 and facts["seconds"] is None
