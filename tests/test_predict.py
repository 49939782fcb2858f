"""A loaded run answers as it did at the end of its training, whatever form the rows come in."""

import io
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from labeltune import Predictor, evaluate, load, open_run, train
from labeltune.answers import with_input
from labeltune.bulk.labelling import predict_files
from labeltune.data.datasets import open_dataset
from labeltune.data.store import Store
from labeltune.errors import DataError, ModelError, RunError, SettingsError
from labeltune.ledger import Ledger
from labeltune.schema import Example, Prediction, SpanPrediction


def rows_of(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def moods(finished: Path) -> Predictor:
    return load(finished)


def test_evaluate_gives_the_figures_of_the_training(finished: Path, tagger: Path, small: Path) -> None:
    for run, kind, splits in ((finished, "moods", ("dev", "test")), (tagger, "names", ("dev",))):
        for split in splits:
            assert evaluate(run, small / f"{kind}-{split}.jsonl").metrics == open_run(run).metrics[split]


def test_a_row_is_answered_alike_alone_among_others_and_in_a_file(
    moods: Predictor, finished: Path, small: Path
) -> None:
    rows = rows_of(small / "moods-test.jsonl")
    together = moods.predict([row["text"] for row in rows], scores=True)
    filed = list(predict_files(finished, [small / "moods-test.jsonl"], scores=True))
    for row, answer, line in zip(rows, together, filed, strict=True):
        (alone,) = moods.predict(row["text"], scores=True)
        assert alone.label == answer.label == line["label"] == max(answer.scores, key=answer.scores.get)
        assert alone.score == pytest.approx(answer.score, abs=1e-5) and line["score"] == answer.score
        assert line["text"] == row["text"] and line["input_label"] == row["label"]


@pytest.mark.parametrize("form", ["dicts", "frame", "frame rows", "generator of dicts"])
def test_rows_may_be_dictionaries(moods: Predictor, small: Path, form: str) -> None:
    rows = rows_of(small / "moods-test.jsonl")
    given = {
        "dicts": rows,
        "frame": pd.DataFrame(rows),
        "frame rows": pd.DataFrame(rows).to_dict("records"),
        "generator of dicts": (r for r in rows),
    }[form]
    assert [a.label for a in moods.predict(given)] == [a.label for a in moods.predict([r["text"] for r in rows])]


def test_one_row_alone_is_a_list_of_one(moods: Predictor, small: Path) -> None:
    row = rows_of(small / "moods-test.jsonl")[0]
    (answer,) = moods.predict([row])
    assert moods.predict(row) == moods.predict(row["text"]) == list(moods.stream(row["text"])) == [answer]


def test_another_file_s_id_is_no_label(finished: Path, small: Path, tmp_path: Path) -> None:
    rows = [{"id": f"n{number}", "text": row["text"]} for number, row in enumerate(rows_of(small / "moods-test.jsonl"))]
    (tmp_path / "new.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=r"new\.jsonl: there is no column 'label'"):
        evaluate(finished, tmp_path / "new.jsonl")


def test_nothing_gives_nothing(moods: Predictor) -> None:
    assert moods.predict([]) == []


@pytest.mark.parametrize("bad", ["", " \n"])
def test_an_empty_text_is_refused_with_its_place(moods: Predictor, bad: str) -> None:
    with pytest.raises(DataError, match=r"texts\[1\]: .*empty"):
        moods.predict(["the hen", bad])


@pytest.mark.parametrize("bad", [None, 3, [1, 2, 3], {"no": "text"}, {"text": None}, {"text": 3}, b"bytes"], ids=repr)
def test_what_is_no_text_is_refused(moods: Predictor, bad: object) -> None:
    with pytest.raises(DataError, match="texts"):
        moods.predict(["the hen", bad])


def test_below_the_least_score_it_abstains(moods: Predictor) -> None:
    assert moods.predict("the hen", min_score=0.0)[0].label is not None
    assert moods.predict("the hen", min_score=1.0)[0].label is None


def test_evaluate_shows_what_abstaining_from_labels_does(finished: Path, small: Path) -> None:
    """Against the rows of `predict`, which hold the gold label beside the answer."""
    data = small / "moods-test.jsonl"
    least = sorted(line["score"] for line in predict_files(finished, [data]))[5]
    plain, report = evaluate(finished, data).metrics, evaluate(finished, data, min_scores=[least, 0]).metrics
    at = report.pop("at_min_score")
    assert report == plain and list(at) == ["0", f"{least:g}"]
    assert at["0"] == {name: plain[name] for name in at["0"] if name in plain} | {
        "selective_accuracy": plain["accuracy"]
    }
    lines = list(predict_files(finished, [data], min_score=float(f"{least:g}")))
    right = [line["label"] == line["input_label"] for line in lines if line["label"] is not None]
    assert 0 < len(right) < len(lines)
    found = at[f"{least:g}"]
    assert (found["coverage"], found["accuracy"]) == (len(right) / len(lines), sum(right) / len(lines))
    assert found["selective_accuracy"] == pytest.approx(sum(right) / len(right))


def test_evaluate_shows_what_leaving_out_spans_does(tagger: Path, small: Path) -> None:
    data = small / "names-test.jsonl"
    scores = sorted(span["score"] for line in predict_files(tagger, [data]) for span in line["spans"])
    least = round(scores[len(scores) // 2], 3)
    found = evaluate(tagger, data, min_scores=[least]).metrics["at_min_score"][f"{least:g}"]
    answered, gold, right = 0, 0, 0
    rows = open_dataset(data, open_run(tagger).config.data, "tagging", labelled=True, name="names")
    for row, line in zip(rows, predict_files(tagger, [data], min_score=least), strict=True):
        wanted = {(span.start, span.end, span.label) for span in row.spans}
        given = {(span["start"], span["end"], span["label"]) for span in line["spans"]}
        answered, gold, right = answered + len(given), gold + len(wanted), right + len(given & wanted)
    assert 0 < answered < len(scores)
    assert (found["span_precision"], found["span_recall"]) == (right / answered, right / gold)


@pytest.mark.parametrize("kind", ["finished", "tagger"])
def test_without_rows_the_dev_rows_of_the_training_are_scored(request: pytest.FixtureRequest, kind: str) -> None:
    run = open_run(request.getfixturevalue(kind))
    noted = Ledger(run.folder).lines()
    assert evaluate(run.folder).metrics == run.metrics["dev"] and Ledger(run.folder).lines() == noted
    with pytest.raises(SettingsError, match=r"data\.text: the dev rows are read as in training"):
        evaluate(run.folder, settings={"data.text": "text"})


def test_rows_held_out_for_dev_are_found_again(small: Path, tiny_folder: Path, tmp_path: Path) -> None:
    data = shutil.copy(small / "moods-train.jsonl", tmp_path / "rows.jsonl")
    run = train(data, model=str(tiny_folder), out=tmp_path / "run", settings={"train.epochs": 1})
    assert evaluate(run.folder).metrics == run.metrics["dev"]
    Path(data).write_text("{}")
    with pytest.raises(RunError, match="name the dev rows' file"):
        evaluate(run.folder)


def test_numbers_are_not_withheld(tiny_folder: Path, tmp_path: Path) -> None:
    rows = [{"text": f"number {n}", "label": n / 3} for n in range(8)]
    settings = {"train.epochs": 1, "train.lr": 1e-3}
    run = train(rows, dev=rows, task="regression", model=str(tiny_folder), out=tmp_path / "run", settings=settings)
    with pytest.raises(SettingsError, match="min_score: regression has no score"):
        evaluate(run.folder, rows, min_scores=[0.5])


def test_an_abstaining_row_still_has_its_fields(finished: Path, small: Path) -> None:
    (line, *_) = predict_files(finished, [small / "moods-test.jsonl"], min_score=1.0)
    assert line["label"] is None and 0 < line["score"] < 1


def test_a_tagger_gives_characters_of_the_text(tagger: Path, small: Path) -> None:
    for line in predict_files(tagger, [small / "names-test.jsonl"]):
        assert line["text"] == " ".join(line["tokens"])
        assert all(line["text"][s["start"] : s["end"]] == s["text"] for s in line["spans"])
    (answer,) = load(tagger).predict("Bob sang in Anna Inn")
    assert answer.spans is not None and answer.label is None


def test_a_text_file_has_a_text_on_each_line(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "new.txt").write_text("the hen\nthe ring rang\n", encoding="utf-8")
    assert [line["text"] for line in predict_files(finished, [tmp_path / "new.txt"])] == ["the hen", "the ring rang"]


@pytest.mark.parametrize("word", ["NaN", "Infinity"])
def test_what_json_cannot_say_of_a_row_is_null_in_its_answer(finished: Path, tmp_path: Path, word: str) -> None:
    (tmp_path / "new.jsonl").write_text(f'{{"text": "the hen", "price": {word}, "seen": [{word}]}}\n')
    (line,) = predict_files(finished, [tmp_path / "new.jsonl"])
    assert line["price"] is None and line["seen"] == [None]


def test_columns_of_any_type_are_written_as_json(finished: Path, tmp_path: Path) -> None:
    when = pd.Timestamp("2026-01-02")
    pd.DataFrame({"text": ["the hen"], "when": [when], "raw": [b"\x00\xff"], "n": [1.5]}).to_parquet(
        tmp_path / "n.parquet"
    )
    (line,) = predict_files(finished, [tmp_path / "n.parquet"])
    assert json.dumps(line) and line["when"].startswith("2026-01-02")


# Standard input


def piped(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))


def test_standard_input_has_texts_and_objects(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    piped(monkeypatch, '\ufeffthe hen\r\n\n{"text": "the ring", "n": 1}\n'.encode())
    lines = list(predict_files(finished, ["-"]))
    assert [(line["text"], line.get("n")) for line in lines] == [("the hen", None), ("the ring", 1)]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"the hen\n{broken\n", "stdin:2: this is no JSON"),
        (b'{"text": "a", "text": "b"}', "stdin:1: .* names 'text' twice"),
        (b'{"text": "a", "\\ud800": 1}', "stdin:1: the field .* lone surrogate"),
        (b"caf\xe9\n", "stdin:1: .*UTF-8"),
        (b"", "no rows"),
    ],
)
def test_bad_standard_input_is_refused_by_line(finished: Path, monkeypatch: pytest.MonkeyPatch, content, says) -> None:
    piped(monkeypatch, content)
    with pytest.raises(DataError, match=says):
        list(predict_files(finished, ["-"]))


@pytest.mark.parametrize("row", [{"x": "y"}, {"id": "4711"}])
def test_a_row_without_its_text_is_not_answered_by_another_column(moods: Predictor, row: dict) -> None:
    with pytest.raises(DataError, match=r"the row has no text \('text' is not there\)"):
        moods.predict([row])
    assert moods.predict([{"id": "4711", "sentence": "the hen"}])[0].label


# Evaluation


def test_rows_that_came_out_wrong_are_listed(finished: Path, small: Path, tmp_path: Path) -> None:
    report = evaluate(finished, small / "moods-test.jsonl", errors=tmp_path / "wrong.jsonl")
    wrong = rows_of(tmp_path / "wrong.jsonl")
    assert len(wrong) == report.wrong == round((1 - report.metrics["accuracy"]) * report.rows)
    assert all(row["gold"] != row["label"] and row["id"].startswith("moods-test.jsonl:") for row in wrong)


def test_the_list_of_errors_is_not_written_over(finished: Path, small: Path, tmp_path: Path) -> None:
    (tmp_path / "wrong.jsonl").write_text("mine")
    with pytest.raises(RunError, match="already there"):
        evaluate(finished, small / "moods-test.jsonl", errors=tmp_path / "wrong.jsonl")
    assert (tmp_path / "wrong.jsonl").read_text() == "mine"


def test_a_label_that_the_run_does_not_know_is_an_error_and_is_named(finished: Path, small: Path) -> None:
    rows = rows_of(small / "moods-dev.jsonl")
    report = evaluate(finished, [*rows, {"text": "the hen", "label": "brand new"}])
    assert report.metrics["unseen_labels"] == ["brand new"] and report.rows == len(rows) + 1
    assert report.metrics["accuracy"] == pytest.approx(
        open_run(finished).metrics["dev"]["accuracy"] * len(rows) / (len(rows) + 1)
    )


def test_rows_without_labels_cannot_be_scored(finished: Path) -> None:
    with pytest.raises(DataError, match=r"data\[1\]: the row has no label"):
        evaluate(finished, [{"text": "the hen", "label": "calm"}, {"text": "the ring", "label": None}])


# What may differ from the training


def test_settings_of_the_training_are_fixed(finished: Path) -> None:
    with pytest.raises(SettingsError, match=r"model\.unmask: this cannot differ from the training"):
        load(finished, settings={"model.unmask": "all"})
    with pytest.raises(SettingsError, match=r"eval\.batch_token: unknown setting; did you mean 'eval.batch_tokens'"):
        load(finished, settings={"eval.batch_token": 3})


def test_the_budget_changes_nothing_but_rounding(finished: Path, moods: Predictor, small: Path) -> None:
    texts = [row["text"] for row in rows_of(small / "moods-test.jsonl")]
    narrow = load(finished, settings={"eval.batch_tokens": 8}).predict(texts)
    assert [a.score for a in narrow] == pytest.approx([a.score for a in moods.predict(texts)], abs=1e-5)


def test_a_merged_adapter_changes_nothing_but_rounding_and_only_fp32_weights_take_it(
    finished: Path, moods: Predictor, small: Path
) -> None:
    texts = [row["text"] for row in rows_of(small / "moods-test.jsonl")]
    merged = load(finished, settings={"eval.merge": True})
    assert merged.assembly.member.adapter is None and moods.assembly.member.adapter is not None
    for one, other in zip(merged.predict(texts), moods.predict(texts), strict=True):
        assert one.label == other.label and one.score == pytest.approx(other.score, rel=1e-4)
    with pytest.raises(ModelError, match="fp32"):
        load(finished, settings={"eval.merge": True, "model.dtype": "bf16"})


def test_the_threads_that_are_asked_for_are_used(finished: Path) -> None:
    load(finished, settings={"train.threads": 2})
    try:
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


# The backbone


@pytest.fixture
def movable(small: Path, tiny_folder: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A run and its own copy of the backbone."""
    backbone = Path(shutil.copytree(tiny_folder, tmp_path / "backbone"))
    settings = {"train.steps": 1, "train.threads": 1, "lora.rank": 2}
    train(small / "moods-train.jsonl", model=str(backbone), out=tmp_path / "run", settings=settings)
    return tmp_path / "run", backbone


def test_a_backbone_with_other_weights_is_refused(movable: tuple[Path, Path]) -> None:
    run, backbone = movable
    weights = load_file(backbone / "model.safetensors")
    weights["model.norm.weight"] += 1e-3
    save_file(weights, backbone / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="its weights are not those of the training"):
        load(run)


def test_a_backbone_that_moved_is_named_anew(movable: tuple[Path, Path], tmp_path: Path) -> None:
    run, backbone = movable
    backbone.rename(tmp_path / "elsewhere")
    with pytest.raises(ModelError, match="backbone"):
        load(run)
    assert load(run, settings={"model.name": str(tmp_path / "elsewhere")}).predict("the hen")[0].label


def test_a_run_of_full_fine_tuning_needs_no_other_backbone(small: Path, tiny_folder: Path, tmp_path: Path) -> None:
    backbone = Path(shutil.copytree(tiny_folder, tmp_path / "backbone"))
    settings = {"train.steps": 2, "train.threads": 1, "lora.kind": "full"}
    train(small / "moods-train.jsonl", model=str(backbone), out=tmp_path / "run", settings=settings)
    shutil.rmtree(backbone)
    assert load(tmp_path / "run").predict("the hen")[0].label


def test_a_stream_is_answered_as_a_whole_is_neighbours_included(
    small: Path, tiny_folder: Path, tmp_path, monkeypatch
) -> None:
    settings = {"train.steps": 2, "train.threads": 1, "lora.rank": 2, "data.context": 2}
    data = small / "names-train.jsonl"
    run = train(data, dev=small / "names-dev.jsonl", model=str(tiny_folder), out=tmp_path / "run", settings=settings)
    for room in ("inference", "predict"):
        monkeypatch.setattr(f"labeltune.{room}.CHUNK", 3)
    predictor = load(run.folder)
    examples = list(open_dataset(str(data), run.config.data, "tagging", labelled=True, name="names"))
    rows = Store.build(examples, predictor.assembly.encoder.encode_many)
    whole = predictor.labeller.predict(examples, rows)
    assert list(predictor.stream(iter(examples))) == whole
    assert len(predictor.assembly.encoder.encode(examples[1]).tokens) < len(rows[1].tokens)


def test_spans_of_tokens_refer_to_the_text_beside_them() -> None:
    fields = {"tokens": ["Old", ",", "New", "York"], "text": "Old, New York", "input_text": "mine"}
    example = Example("x.jsonl:1", "Old , New York", spans=None, fields=fields)
    answer = Prediction("x.jsonl:1", spans=(SpanPrediction(6, 14, "LOC", 0.9, "New York"),))
    row = with_input(example, answer).row
    assert row["text"][6:14] == row["spans"][0]["text"] == "New York"
    assert (row["input_text"], row["input_input_text"]) == ("mine", "Old, New York")


@contextmanager
def memory_for(predictor: Predictor, tokens: int) -> Iterator[None]:
    """A machine whose memory ends at so many tokens in a forward pass."""

    def weigh(module: object, args: tuple[object, ...], words: dict[str, torch.Tensor]) -> None:
        if words["input_ids"].numel() > tokens:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    hook = predictor.assembly.backbone.model.register_forward_pre_hook(weigh, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


@pytest.mark.parametrize("kind", ["moods", "names"])
def test_where_memory_runs_out_passes_are_divided_and_the_answers_stay(
    kind: str, finished: Path, tagger: Path, small: Path, caplog: pytest.LogCaptureFixture
) -> None:
    predictor = load(finished if kind == "moods" else tagger)
    config = predictor.run.config
    examples = list(open_dataset(small / f"{kind}-train.jsonl", config.data, config.task, labelled=True, name="data"))
    rows = Store.build(examples, predictor.assembly.encoder.encode_many)
    whole = predictor.labeller.predict(examples, rows)
    most = int(rows.lengths.max())
    with memory_for(predictor, most):
        divided = predictor.labeller.predict(examples, rows)
        again = replace(predictor.labeller).predict(examples, rows)  # what is known of memory stays known
    assert "out of memory" not in caplog.text and caplog.text.count("memory ran out") >= 2
    assert predictor.labeller.limit.tokens <= 2 * most
    for answers in (divided, again):
        assert [(a.id, a.label, a.spans and [s.label for s in a.spans]) for a in answers] == [
            (a.id, a.label, a.spans and [s.label for s in a.spans]) for a in whole
        ]
    assert [a.score for a in divided] == pytest.approx([a.score for a in whole], abs=1e-5)


def test_a_row_that_no_memory_holds_is_said_so(finished: Path, small: Path) -> None:
    predictor = load(finished)
    with memory_for(predictor, 3), pytest.raises(RunError, match=r"data.max_tokens: a row of \d+ tokens needs more"):
        predictor.predict([row["text"] for row in rows_of(small / "moods-test.jsonl")])


def test_passes_that_other_processes_wait_for_are_not_divided(finished: Path) -> None:
    predictor = load(finished)
    labeller = replace(predictor.labeller, divides=False)
    (example,) = predictor.examples(["the hen"])
    with memory_for(predictor, 1), pytest.raises(torch.OutOfMemoryError):
        labeller.predict([example], [predictor.encoder.encode(example)])
