"""Rows come out of files as they went in, each with its answer, whatever form they are read from and written in."""

import asyncio
import csv
import gzip
import io
import json
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from labeltune import Predictor, load, train
from labeltune.bulk.inputs import rows_in, sources_of
from labeltune.bulk.labelling import Watch, open_job, predict_files, predict_to
from labeltune.data.settings import DataConfig
from labeltune.errors import DataError, SettingsError
from labeltune.portions import portions

ROWS = [
    {"text": "the hen", "n": 1, "tags": ["a"]},
    {"text": "the ring rang", "n": None, "score": "mine"},
    {"text": "the hen", "n": 2.5, "tags": []},
    {"text": 'a "quoted", line\nand another', "n": 3, "label": "calm", "input_label": "kept"},
]


@pytest.fixture(scope="module")
def moods(finished: Path) -> Predictor:
    return load(finished)


class Heard(Watch):
    """What is said, and how many rows are told."""

    def __init__(self) -> None:
        self.sentences, self.rows = [], 0

    def say(self, sentence: str) -> None:
        self.sentences.append(sentence)

    def advance(self, rows: int) -> None:
        self.rows += rows


def written(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def answered(run: Path, source: Path, to: Path, **how: object) -> Path:
    predict_to(to, open_job(run, [source], **how))
    return to


# Forms


def test_an_output_of_any_form_holds_the_same_rows(finished: Path, tmp_path: Path) -> None:
    source = written(tmp_path / "in.jsonl", ROWS)
    expected = list(predict_files(finished, [source], scores=True))
    assert [(e["text"], e.get("input_score"), e.get("input_input_label")) for e in expected] == [
        (row["text"], row.get("score"), row.get("label")) for row in ROWS
    ]
    lines = answered(finished, source, tmp_path / "out.jsonl", scores=True, rows=3).read_text().splitlines()
    assert list(map(json.loads, lines)) == expected
    with gzip.open(answered(finished, source, tmp_path / "out.jsonl.gz", scores=True, rows=3), "rt") as file:
        assert file.read().splitlines() == lines

    table = pq.read_table(answered(finished, source, tmp_path / "out.parquet", scores=True, rows=3))
    assert table.schema.names[-3:] == ["label", "score", "scores"]
    assert table.schema.field("score").type == pa.float32() and table.schema.field("n").type == pa.float64()
    assert table.schema.field("tags").type == pa.list_(pa.string())
    for row, line in zip(table.to_pylist(), expected, strict=True):
        assert row["label"] == line["label"] and row["score"] == pytest.approx(line["score"], rel=1e-6)
        assert list(row["scores"]) == list(line["scores"])
        for name in ("text", "n", "tags", "input_score", "input_input_label", "input_label"):
            assert row[name] == line.get(name), name

    with answered(finished, source, tmp_path / "out.csv", rows=3).open(newline="", encoding="utf-8") as file:
        for row, line in zip(csv.DictReader(file), expected, strict=True):
            assert (row["text"], row["label"]) == (line["text"], line["label"])
            assert float(row["score"]) == pytest.approx(line["score"], rel=1e-6)
            assert json.loads(row["tags"] or "null") == line.get("tags")


def test_columns_of_a_parquet_file_keep_their_types(finished: Path, tmp_path: Path) -> None:
    table = pa.table(
        {
            "text": ["the hen", "the ring", "a bell"],
            "small": pa.array([1, None, 3], pa.int16()),
            "part": pa.array([0.1, 0.2, None], pa.float32()),
            "when": pa.array([1_700_000_000_123_456, None, 0], pa.timestamp("us", "UTC")),
            "day": pa.array([20000, None, 1], pa.date32()),
            "raw": pa.array([b"\x00\xff", None, b""], pa.binary()),
            "kind": pa.array(["x", "y", "x"]).dictionary_encode(),
            "inside": pa.array([{"a": 1, "b": ["c"]}, None, {"a": None, "b": []}]),
            "nothing": pa.nulls(3),
            "label": pa.array([7, 8, 9], pa.int8()),
        }
    )
    pq.write_table(table, tmp_path / "in.parquet")
    found = pq.read_table(answered(finished, tmp_path / "in.parquet", tmp_path / "out.parquet", rows=2))
    assert found.column("input_label").type == pa.int8()
    for name in table.schema.names[:-1]:
        assert found[name].type == table[name].type and found[name].to_pylist() == table[name].to_pylist(), name


def test_spans_are_arrow_structs_that_lie_in_the_text(tagger: Path, small: Path, tmp_path: Path) -> None:
    found = pq.read_table(answered(tagger, small / "names-test.jsonl", tmp_path / "out.parquet"))
    kinds = {field.name: field.type for field in found.schema.field("spans").type.value_type}
    assert kinds == {
        "start": pa.int32(),
        "end": pa.int32(),
        "label": pa.string(),
        "score": pa.float32(),
        "text": pa.string(),
    }
    for row, line in zip(found.to_pylist(), predict_files(tagger, [small / "names-test.jsonl"]), strict=True):
        assert [span | {"score": 0} for span in row["spans"]] == [span | {"score": 0} for span in line["spans"]]
        assert all(row["text"][span["start"] : span["end"]] == span["text"] for span in row["spans"])


def test_what_has_no_common_type_is_written_as_text(finished: Path, tmp_path: Path) -> None:
    cells = [1, "one", {}, [1, "a"], 2**70, None, True]
    source = written(tmp_path / "in.jsonl", [{"text": "the hen", "x": cell} for cell in cells])
    texts = ["1", "one", "{}", '[1, "a"]', str(2**70), None, "true"]
    for rows in (1, 3, 100):
        (tmp_path / "out.parquet").unlink(missing_ok=True)
        found = pq.read_table(answered(finished, source, tmp_path / "out.parquet", rows=rows))
        assert found["x"].to_pylist() == texts


# Inputs


def test_files_of_many_forms_and_patterns_are_read_in_order(finished: Path, tmp_path: Path) -> None:
    texts = [f"the hen {number}" for number in range(8)]
    pd.DataFrame({"text": texts[:2]}).to_csv(tmp_path / "a.csv", index=False)
    pd.DataFrame({"text": texts[2:4]}).to_parquet(tmp_path / "b1.parquet")
    pd.DataFrame({"text": texts[4:6]}).to_parquet(tmp_path / "b2.parquet")
    with gzip.open(tmp_path / "c.jsonl.gz", "wt") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in texts[6:])
    files = [tmp_path / "a.csv", f"{tmp_path}/b*.parquet", tmp_path / "c.jsonl.gz"]
    assert [row["text"] for row in predict_files(finished, files, rows=3)] == texts
    assert rows_in(sources_of(files, DataConfig())) == pytest.approx(8, abs=1)  # a header is a line
    with pytest.raises(DataError, match="no file is named so"):
        list(predict_files(finished, [f"{tmp_path}/none*.csv"]))


def test_rows_are_counted_before_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = written(tmp_path / "in.jsonl", [{"text": f"the hen {number:05}"} for number in range(2_000)])
    monkeypatch.setattr("labeltune.bulk.inputs._LOOKED_AT", 1_000)
    assert rows_in(sources_of([source], DataConfig())) == pytest.approx(2_000, rel=0.05)
    (tmp_path / "in.json").write_text('[{"text": "a"}]')
    assert rows_in(sources_of([source, tmp_path / "in.json"], DataConfig())) is None


def test_a_bad_row_stops_it_or_is_passed_over_and_told(finished: Path, tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text('{"text": "the hen"}\n{broken\n{"text": ""}\n{"text": "the hen"}\n')
    with pytest.raises(DataError, match=r"in\.jsonl:2: this is no JSON"):
        answered(finished, source, tmp_path / "out.jsonl")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl"]
    heard = Heard()
    predict_to(tmp_path / "out.jsonl", open_job(finished, [source], settings={"data.on_bad_row": "skip"}), watch=heard)
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 2 == heard.rows
    assert heard.sentences == ["in.jsonl: 2 rows could not be used and have no answer"]
    source.write_text('{"text": ""}\n')
    with pytest.raises(DataError, match="no row can be used"):
        list(predict_files(finished, [source], settings={"data.on_bad_row": "skip"}))


def test_standard_input_is_answered_portion_by_portion(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Line(io.BytesIO):
        read_lines = 0

        def __next__(self) -> bytes:
            self.read_lines += 1
            return super().__next__()

    pipe = Line(b"the hen\n" * 500)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(pipe))
    rows = predict_files(finished, ["-"], rows=100)
    next(rows)
    assert pipe.read_lines <= 200 and len(list(rows)) == 499


# Portions


def test_texts_that_come_twice_are_computed_once(moods: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    model = moods.labeller.model
    forward = type(model).forward
    monkeypatch.setattr(type(model), "forward", lambda self, batch: seen.extend(batch.rows[0]) or forward(self, batch))
    answers = moods.predict(["the hen", "a bell", "the hen", "the hen"])
    assert len(seen) == 2 and [a.id for a in answers] == [f"texts[{number}]" for number in range(4)]
    assert answers[0].score == answers[2].score == answers[3].score != answers[1].score


@pytest.mark.parametrize("size", [1, 2, 5, 7, 100])
def test_portions_give_what_the_whole_stream_gives_neighbours_included(
    small: Path, tiny_folder: Path, tmp_path: Path, size: int
) -> None:
    settings = {"train.steps": 1, "train.threads": 1, "lora.rank": 2, "data.context": 2}
    run = train(small / "names-train.jsonl", model=str(tiny_folder), out=tmp_path / "run", settings=settings)
    predictor = load(run.folder)
    rows = list(predictor.examples([json.loads(x) for x in (small / "names-train.jsonl").read_text().splitlines()]))
    whole = list(predictor.encoder.encode_many(rows))
    found = [
        encoded
        for portion in portions(rows, predictor.encoder.config, size)
        for encoded in predictor.encoder.encode_between(portion.before, portion.rows, portion.after)
    ]
    assert [one.tokens.tolist() for one in found] == [one.tokens.tolist() for one in whole]
    assert len(next(portions(rows, predictor.encoder.config, size)).rows) == min(size, len(rows))


def test_portions_smaller_than_the_context_have_all_of_it() -> None:
    found = list(portions(list("abcdefgh"), DataConfig(context=3), 2))
    assert ["".join(portion.before) for portion in found] == ["", "ab", "bcd", "def"]
    assert ["".join(portion.after) for portion in found] == ["cde", "efg", "gh", ""]


# Plain lines


@pytest.mark.parametrize(
    "lines",
    [
        [f"{word} is parcel {number}" for number in range(40) for word in ("how", "what")],
        ["2 parcels are missing", "3 parcels are missing"],
        ["I need more vitamin B"],
    ],
    ids=["few first words", "numbers", "a letter that is a tag"],
)
def test_plain_lines_are_texts_whatever_they_begin_or_end_with(
    finished: Path, tmp_path: Path, lines: list[str]
) -> None:
    (tmp_path / "in.txt").write_text("\n".join(lines) + "\n")
    assert [row["text"] for row in predict_files(finished, [tmp_path / "in.txt"])] == lines


def test_lines_of_the_runs_own_labels_are_read_as_in_training_and_that_is_said(finished: Path, tmp_path: Path) -> None:
    label, heard = load(finished).labels[0], Heard()
    (tmp_path / "in.txt").write_text(f"{label} the hen\n{label} the ring\n")
    found = list(predict_files(finished, [tmp_path / "in.txt"], watch=heard))
    assert [(row["input_label"], row["text"]) for row in found] == [(label, "the hen"), (label, "the ring")]
    assert heard.sentences == ["in.txt is read as lines of `LABEL text`"]


def test_a_file_that_was_cut_off_is_named(finished: Path, tmp_path: Path, typed) -> None:
    whole = gzip.compress("".join(json.dumps({"text": f"the hen {n * 7919}"}) + "\n" for n in range(4000)).encode())
    (tmp_path / "in.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    found = typed("predict", finished, tmp_path / "in.jsonl.gz", "--out", tmp_path / "out.jsonl")
    assert found.code == 1 and "in.jsonl.gz" in found.err and "cut off" in found.err


@pytest.mark.parametrize("form", ["out.csv", "out.tsv"])
def test_bytes_are_written_into_tables_as_rows_say_them(finished: Path, tmp_path: Path, form: str) -> None:
    table = pa.table({"text": ["the hen", "the ring"], "raw": [b"\xff\x00", None]})
    pq.write_table(table, tmp_path / "in.parquet")
    with answered(finished, tmp_path / "in.parquet", tmp_path / form).open(newline="", encoding="utf-8") as file:
        found = list(csv.DictReader(file, delimiter="\t" if form.endswith("tsv") else ","))
    assert [row["raw"] for row in found] == ['{"bytes": "ff00"}', ""]


# What is said


def test_texts_of_another_column_than_in_training_are_said(finished: Path, tmp_path: Path) -> None:
    for column, said in (("text", []), ("headline", ["in.jsonl: the text is read from 'headline'"])):
        source, heard = written(tmp_path / "in.jsonl", [{column: "the hen", "n": 1}]), Heard()
        list(predict_files(finished, [source], watch=heard))
        assert [sentence.split(";")[0] for sentence in heard.sentences] == said


def test_rows_without_an_answer_lie_beside_the_output(finished: Path, tmp_path: Path) -> None:
    source, heard = written(tmp_path / "in.jsonl", [{"text": "the hen"}, {"text": " "}]), Heard()
    to = tmp_path / "there" / "out.csv"
    to.parent.mkdir()
    predict_to(to, open_job(finished, [source], settings={"data.on_bad_row": "quarantine"}), watch=heard)
    (line,) = (to.parent / "out.csv.quarantine.jsonl").read_text().splitlines()
    assert json.loads(line)["at"] == "in.jsonl:2"
    assert heard.sentences == [
        f"in.jsonl: 1 row could not be used and has no answer (they are in {to.parent / 'out.csv.quarantine.jsonl'})"
    ]


def test_an_earlier_quarantine_is_seen_before_anything_is_answered(finished: Path, tmp_path: Path) -> None:
    source, to = written(tmp_path / "in.jsonl", [{"text": "the hen"}]), tmp_path / "out.jsonl"
    old = tmp_path / "out.jsonl.quarantine.jsonl"
    old.write_text("mine")
    for resume in (False, True):
        with pytest.raises(DataError, match=r"quarantine\.jsonl: an earlier quarantine is already there"):
            predict_to(to, open_job(finished, [source], settings={"data.on_bad_row": "quarantine"}), resume=resume)
    assert old.read_text() == "mine" and not to.exists()
    assert [source.name for source in sources_of([tmp_path / "*.jsonl"], DataConfig())] == ["in.jsonl"]


def test_an_output_that_is_no_name_is_a_sentence(finished: Path, tmp_path: Path, typed) -> None:
    source = written(tmp_path / "in.jsonl", [{"text": "the hen"}])
    for name in (".", tmp_path, tmp_path / ("n" * 250), "", tmp_path / ("n" * 300)):
        for more in ((), ("--resume",)):
            found = typed("predict", finished, source, "--out", name, *more)
            assert found.code == 1 and "Traceback" not in found.err, found.err


@pytest.mark.parametrize("least", [-0.1, 2.0])
def test_a_score_is_a_probability(finished: Path, moods: Predictor, tmp_path: Path, least: float) -> None:
    with pytest.raises(SettingsError, match=r"min_score: .* is no probability; give 0 to 1"):
        moods.predict("the hen", min_score=least)
    with pytest.raises(SettingsError, match="is no probability"):
        open_job(finished, [written(tmp_path / "in.jsonl", ROWS)], min_score=least)


# Python


def test_a_stream_is_answered_while_it_comes(moods: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("labeltune.predict.CHUNK", 50)
    taken = []
    endless = (taken.append(number) or f"the hen {number % 7}" for number in range(10**9))
    answers = moods.stream(endless)
    first = [next(answers) for _ in range(120)]
    assert len(taken) <= 200
    assert [a.label for a in first] == [a.label for a in moods.predict([f"the hen {n % 7}" for n in range(120)])]


def test_many_may_wait_at_once(moods: Predictor) -> None:
    async def all_of(texts: list[str]) -> list:
        return await asyncio.gather(*(moods.apredict(text) for text in texts))

    texts = [f"the hen {number}" for number in range(12)]
    found = asyncio.run(all_of(texts))
    assert [a.label for (a,) in found] == [a.label for a in moods.predict(texts)]
