"""An exported graph, and workers on Ray, give the rows that the run gives here."""

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from labeltune import train
from labeltune.bulk.engines import shares
from labeltune.bulk.labelling import open_job, predict_files, predict_to
from labeltune.errors import DataError, RunError, SettingsError
from labeltune.export.exporting import export

QUICK = {"train.lr": 1e-2, "train.steps": 6, "train.threads": 1, "lora.rank": 2}


@pytest.fixture(scope="module")
def many(small: Path, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with several labels a row."""
    rows = [json.loads(line) for line in (small / "moods-train.jsonl").read_text().splitlines()]
    rows = [{"text": r["text"], "labels": [r["label"]] + ["even"] * (n % 2 == 0)} for n, r in enumerate(rows)]
    out = tmp_path_factory.mktemp("many") / "run"
    train(rows, dev=rows[:8], model=str(tiny_folder), out=out, settings=QUICK, task="multilabel")
    return out


def close(one: object, other: object) -> bool:
    if isinstance(one, float):
        return one == pytest.approx(other, abs=1e-4)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(close, one, other))
    if isinstance(one, dict):
        return list(one) == list(other) and all(close(one[name], other[name]) for name in one)
    return one == other


@pytest.mark.parametrize(
    ("nodes", "workers", "expected"),
    [
        ([{"CPU": 8.0}], None, (1, {"num_cpus": 8})),
        ([{"CPU": 8.0}, {"CPU": 2.0}], None, (2, {"num_cpus": 4})),  # both on the first
        ([{"CPU": 3.0}, {"CPU": 3.0}], 4, (4, {"num_cpus": 1})),
        ([{}, {"CPU": 4.0}], None, (1, {"num_cpus": 4})),  # a head that computes nothing
        ([{"CPU": 9.0, "GPU": 2.0}], 3, (3, {"num_gpus": 0.5})),
        ([{"CPU": 9.0, "GPU": 2.0}], None, (2, {"num_gpus": 1.0})),
    ],
)
def test_every_worker_of_ray_has_room(nodes, workers, expected) -> None:
    assert shares(nodes, workers) == expected


def test_workers_without_room_are_refused() -> None:
    with pytest.raises(SettingsError, match=r"--workers: 4 workers on 2 CPUs; at most 2 have room"):
        shares([{"CPU": 2.0}], 4)


@pytest.mark.slow
@pytest.mark.parametrize(("run", "backend"), [("finished", "onnx"), ("tagger", "openvino"), ("many", "onnx")])
def test_a_graph_gives_the_answers_of_the_run(request, small: Path, tmp_path: Path, run: str, backend: str) -> None:
    folder = Path(shutil.copytree(request.getfixturevalue(run), tmp_path / "run"))
    rows = small / ("names-train.jsonl" if run == "tagger" else "moods-train.jsonl")
    dev = None if run != "many" else [json.loads(line) for line in rows.read_text().splitlines()][:8]
    if dev:
        dev = [{"text": r["text"], "labels": [r["label"]] + ["even"] * (n % 2 == 0)} for n, r in enumerate(dev)]
    export(folder, backend, data=dev)
    settings = {"train.threads": 1}
    for how in ({}, {"scores": True}, {"min_score": 0.36}):
        if run == "tagger" and "scores" in how:
            continue
        expected = list(predict_files(folder, [rows], settings=settings, **how))
        found = list(predict_files(folder, [rows], settings=settings, backend=backend, rows=10, **how))
        assert all(map(close, expected, found)) and len(expected) == len(found) == 24, how


@pytest.mark.slow
def test_the_export_of_another_run_is_refused(finished: Path, small: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(finished, tmp_path / "run"))
    export(folder, "onnx")
    for name, content, says in (
        ("export.json", "{}", "was changed"),
        ("certificate.json", '{"run_sha256": "0"}', "of another run"),
    ):
        (folder / "exports" / "onnx" / name).write_text(content)
        with pytest.raises(RunError, match=says):
            list(predict_files(folder, [small / "moods-test.jsonl"], backend="onnx"))


def test_a_backend_that_cannot_be_used_says_the_way_out(finished: Path, small: Path) -> None:
    rows = small / "moods-test.jsonl"
    with pytest.raises(RunError, match=r"has no such export; labeltune export .* --to onnx"):
        list(predict_files(finished, [rows], backend="onnx"))
    with pytest.raises(SettingsError, match="did you mean 'onnx'"):
        open_job(finished, [rows], backend="onxx")
    with pytest.raises(SettingsError, match="cannot be set with --backend onnx"):
        open_job(finished, [rows], backend="onnx", settings={"model.dtype": "bf16"})
    with pytest.raises(SettingsError, match="did you mean 'ray'"):
        predict_to(Path("out.jsonl"), open_job(finished, [rows]), engine="rai")


def test_several_labels_a_row_are_one_column_whatever_occurs(many: Path, small: Path, tmp_path: Path) -> None:
    rows = small / "moods-train.jsonl"
    expected = list(predict_files(many, [rows]))
    predict_to(tmp_path / "out.parquet", open_job(many, [rows], rows=5))
    found = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert [row["labels"] for row in found] == [row["labels"] for row in expected]
    for row, line in zip(found, expected, strict=True):
        assert {name for name, score in row["scores"].items() if score is not None} == set(line["labels"])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
def test_two_workers_of_ray_give_the_same_bytes_and_go_on_like_one(
    finished: Path, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = pytest.importorskip("ray")
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps({"text": f"the hen {n % 50}", "n": n}) + "\n" for n in range(400)))
    how = {"rows": 32, "scores": True, "settings": {"train.threads": 1}}
    predict_to(tmp_path / "whole.jsonl", open_job(finished, [source], **how))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        predict_to(tmp_path / "out.jsonl", open_job(finished, [source], **how), engine="ray", workers=2)
        assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
        with source.open("a") as file:
            file.write('{"text": ""}\n')
        to = tmp_path / "again.jsonl"
        with pytest.raises(DataError, match=r"in\.jsonl:401"):
            predict_to(to, open_job(finished, [source], **how), engine="ray", workers=2)
        how["settings"] |= {"data.on_bad_row": "skip"}
        predict_to(to, open_job(finished, [source], **how), resume=True)
        assert to.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    finally:
        ray.shutdown()
