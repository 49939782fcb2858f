"""Two processes end with the weights of one at the same global batch, the backbone whole or in parts."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from labeltune import load, open_run, train

pytestmark = pytest.mark.slow

SETTINGS = {
    "train.lr": 1e-3,
    "train.epochs": 17,
    "train.batch_rows": 8,
    "train.threads": 1,
    "train.eval_every": 10,
    "lora.rank": 4,
    "lora.dropout": 0.3,
    "head.dropout": 0.1,
}
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def command(small: Path, tiny: Path, out: Path, processes: int, *words: str) -> list[str]:
    sets = [word for name, value in SETTINGS.items() for word in ("--set", f"{name}={value}")]
    start = [sys.executable, "-m"]
    if processes > 1:
        start += ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m"]
    data = [str(small / "moods-train.jsonl"), "--dev", str(small / "moods-dev.jsonl")]
    data += ["--test", str(small / "moods-test.jsonl")]
    return [*start, "labeltune.cli", "train", *data, "--model", str(tiny), "--out", str(out), *sets, *words]


def run(*words: object) -> str:
    done = subprocess.run([str(w) for w in words], capture_output=True, text=True, env=ENVIRONMENT, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


def furthest(one: Path, other: Path) -> float:
    found = []
    for name in ("adapter/adapter_model.safetensors", "head.safetensors"):
        a, b = load_file(one / name), load_file(other / name)
        found += [float((a[n] - w).norm() / w.norm().clamp(min=1e-12)) for n, w in b.items()]
    return max(found)


@pytest.fixture(scope="module")
def alone(small: Path, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("one") / "run"
    data, dev, test = (small / f"moods-{split}.jsonl" for split in ("train", "dev", "test"))
    train(data, dev=dev, test=test, model=str(tiny_folder), out=out, settings=SETTINGS)
    return out


SCORE = """
import json, sys
from dataclasses import replace
from labeltune import load
from labeltune.data.datasets import open_dataset
from labeltune.training.distributed import joined, shard

run, data, out, sharded = sys.argv[1:]
with joined(sharded=sharded == "True") as world:
    predictor = load(run)
    config, assembly, passes = predictor.run.config, predictor.assembly, []
    if world.sharded:
        shard(assembly.backbone.model, list(assembly.backbone.blocks), world)

    def each(function, batches):
        return world.map(lambda batch: (passes.append(batch), function(batch))[1], batches)

    labeller = replace(predictor.labeller, budget=16, each=each)
    examples = list(open_dataset(data, config.data, config.task, labelled=True, name="data"))
    rows = list(assembly.encoder.encode_many(examples))
    loss = assembly.task.loss(config.head, assembly.labels, None, assembly.member.head)
    figures = labeller.score(examples, rows, loss)
    answers = [[p.label, p.score] for p in labeller.predict(examples, rows)]
    temperature = labeller.calibrate(rows).temperature
    with open(f"{out}/{world.size}-{world.rank}.json", "w") as file:
        json.dump([len(passes), figures, answers, temperature], file)
"""


def numbers(found: list) -> torch.Tensor:
    """Figures, scores and temperature, one after the other."""
    figures, answers, temperature = found
    return torch.tensor([*figures.values(), *(score for _, score in answers), temperature], dtype=torch.float64)


@pytest.mark.parametrize("sharded", [False, True])
def test_two_processes_share_out_what_is_scored_and_have_the_bits_of_one(
    sharded: bool, small, alone: Path, tmp_path: Path
) -> None:
    script = tmp_path / "score.py"
    script.write_text(SCORE)
    words = [script, alone, small / "moods-train.jsonl", tmp_path]
    run(sys.executable, *words, False)
    run(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *words, sharded)
    passes, *one = json.loads((tmp_path / "1-0.json").read_text())
    shares = [json.loads((tmp_path / f"2-{rank}.json").read_text()) for rank in (0, 1)]
    for _, *found in shares:
        if sharded:  # a divided backbone computes all rows of its last block, a whole one those that are read
            torch.testing.assert_close(numbers(found), numbers(one), rtol=1e-5, atol=1e-6)
            assert [label for label, _ in found[1]] == [label for label, _ in one[1]]
        else:
            assert found == one
    each = [-(-passes // 2), passes // 2]
    assert passes >= 9 and [count for count, *_ in shares] == ([each[0]] * 2 if sharded else each)


@pytest.mark.parametrize("words", [(), ("--set", "train.shard=true")], ids=["whole", "sharded"])
def test_two_processes_end_as_one_does(words, small, tiny_folder, alone: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    said = run(*command(small, tiny_folder, out, 2, *words))
    assert furthest(out, alone) <= 1e-4
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert len(log) == 51 and [line["step"] for line in log] == [*range(1, 52)]
    assert said.count("self-check:") == 1  # one process speaks
    assert ("is divided among 2 processes" in " ".join(said.split())) == bool(words)
    openings = (out / "ledger.jsonl").read_text().splitlines()
    assert sum("final evaluation" in line for line in openings) == 1
    assert not (out / "work").exists()
    texts = [json.loads(line)["text"] for line in (small / "moods-test.jsonl").read_text().splitlines()]
    answers = [[(p.label, round(p.score, 4)) for p in load(path).predict(texts)] for path in (out, alone)]
    assert answers[0] == answers[1]


def test_a_killed_training_of_two_goes_on_with_one_and_says_so(small, tiny_folder, alone: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = command(small, tiny_folder, out, 2, "--set", "train.checkpoint_steps=5")
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT, start_new_session=True)
    until = time.monotonic() + 200
    while not (out / "work" / "checkpoint.safetensors").exists() and time.monotonic() < until:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    subprocess.run(["pkill", "-9", "-f", str(out)], check=False)
    process.communicate()
    said = run(*command(small, tiny_folder, out, 1, "--set", "train.checkpoint_steps=5", "--resume"))
    assert "begun with 2 processes, goes on with 1" in " ".join(said.split())
    assert open_run(out).state == "finished" and furthest(out, alone) <= 1e-4


def test_what_cannot_be_sharded_is_told(small, tiny_folder, tmp_path: Path) -> None:
    words = command(small, tiny_folder, tmp_path / "run", 2, "--set", "train.shard=true", "--set", "lora.kind=full")
    done = subprocess.run(words, capture_output=True, text=True, env=ENVIRONMENT, timeout=300)
    assert done.returncode != 0 and "a sharded backbone does not go with full" in done.stderr
    assert not torch.distributed.is_initialized() and not (tmp_path / "run").exists()
