"""A server's answers are those of offline prediction, however requests are mixed."""

import weakref
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import pytest
import torch

import labeltune
from labeltune.answers import answer_fields

from .conftest import Running, Start, sentences

TASKS = ("moods", "names", "multilabel", "regression", "ordinal", "classification")


def rows_for(name: str, count: int) -> list[Any]:
    texts = sentences(count)
    return [{"one": text, "two": text[::-1]} for text in texts] if name == "classification" else texts


def offline(run: Path, rows: list[Any]) -> list[dict[str, Any]]:
    return [answer_fields(answer) for answer in labeltune.load(run).predict(rows, scores=True)]


def online(running: Running, name: str, rows: list[Any]) -> list[dict[str, Any]]:
    kind = "rows" if isinstance(rows[0], dict) else "texts"
    reply = running.client.post(f"/runs/{name}/predict", json={kind: rows, "scores": True})
    assert reply.status_code == 200, reply.text
    return reply.json()["predictions"]


def assert_same(one: Any, other: Any) -> None:
    """Equal labels and places, numbers to rounding."""
    if isinstance(one, dict):
        assert list(one) == list(other)
        for name in one:
            assert_same(one[name], other[name])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for pair in zip(one, other, strict=True):
            assert_same(*pair)
    else:
        assert one == (pytest.approx(other, abs=2e-5) if isinstance(other, float) else other)


@pytest.mark.parametrize("name", TASKS)
def test_answers_are_those_of_offline_prediction(served: Running, runs: dict[str, Path], name: str) -> None:
    rows = rows_for(name, 20)
    assert_same(online(served, name, rows), offline(runs[name], rows))


def test_requests_for_all_runs_at_once_do_not_change_an_answer(served: Running, runs: dict[str, Path]) -> None:
    asked = [(name, [row]) for name in TASKS for row in rows_for(name, 12)]
    asked = [asked[i * 5 % len(asked)] for i in range(len(asked))]  # neighbours are of different runs
    with ThreadPoolExecutor(24) as pool:
        got = list(pool.map(lambda one: online(served, *one), asked))
    expected = {name: offline(runs[name], rows_for(name, 12)) for name in TASKS}
    for (name, rows), answer in zip(asked, got, strict=True):
        assert_same(answer, [expected[name][rows_for(name, 12).index(rows[0])]])


def test_all_runs_stand_on_one_backbone(served: Running) -> None:
    assert len(served.server.fleet.engines) == 1
    assert len(served.client.get("/runs").json()["runs"]) == len(TASKS)


def test_a_run_on_another_backbone_gets_an_engine_of_its_own(
    runs: dict[str, Path], small: Path, tiny_folder: Path, start: Start, tmp_path: Path
) -> None:
    own = tmp_path / "full"
    settings = {"lora.kind": "full", "train.steps": 2, "train.lr": 1e-3}
    labeltune.train(small / "moods-train.jsonl", model=str(tiny_folder), out=own, settings=settings)
    with start({"moods": runs["moods"], "full": own}) as running:
        assert len(running.server.fleet.engines) == 2
        for name, folder in (("moods", runs["moods"]), ("full", own)):
            assert_same(online(running, name, sentences(8)), offline(folder, sentences(8)))


def test_abstention_and_scores_are_each_requests_own(served: Running, runs: dict[str, Path]) -> None:
    texts = sentences(6)
    predictor = labeltune.load(runs["moods"])
    for min_score, scores in islice(cycle([(None, False), (0.9, True), (0.2, False)]), 3):
        asked = {"texts": texts, "min_score": min_score, "scores": scores}
        got = served.client.post("/runs/moods/predict", json=asked).json()["predictions"]
        wanted = predictor.predict(texts, min_score=min_score, scores=scores)
        assert_same(got, [answer_fields(one) for one in wanted])


def test_tokens_of_a_tagger_come_back_with_the_text_that_spans_count_in(served: Running) -> None:
    asked = {"rows": [{"tokens": ["then", "Bob", "sang"]}]}
    (answer,) = served.client.post("/runs/names/predict", json=asked).json()["predictions"]
    assert answer["text"] == "then Bob sang"
    assert all(answer["text"][s["start"] : s["end"]] == s["text"] for s in answer["spans"])


def test_a_pass_for_which_memory_runs_out_is_gone_before_its_halves(runs: dict[str, Path], start: Start) -> None:
    class Activations:
        pass

    alive: list[int] = []
    held: list[weakref.ref[Activations]] = []

    def weigh(module: object, args: tuple[object, ...], words: dict[str, torch.Tensor]) -> None:
        alive.append(sum(ref() is not None for ref in held))
        activations = Activations()
        held.append(weakref.ref(activations))
        if words["input_ids"].numel() > 40:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    with start({"moods": runs["moods"]}) as running:
        expected = running.client.post("/runs/moods/predict", json={"texts": sentences(9)[:8]}).json()
        hook = running.server.fleet.engines[0].backbone.model.register_forward_pre_hook(weigh, with_kwargs=True)
        found = running.client.post("/runs/moods/predict", json={"texts": sentences(9)[:8]}).json()
        hook.remove()
    assert [one["label"] for one in found["predictions"]] == [one["label"] for one in expected["predictions"]]
    assert len(alive) > 2 and not any(alive)
