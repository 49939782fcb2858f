"""`inspect` counts what is there, reads nothing else, and prints it."""

import io
import json
import shutil
from pathlib import Path

import pytest
from rich.console import Console
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from labeltune.data.cutting import TooLong
from labeltune.errors import SettingsError
from labeltune.inspection import inspect, show

TEXTS = [("the cat sat", "animal"), ("a stone fell", "thing"), ("the dog ran off", "animal"), ("the cat sat", "thing")]


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    path = tmp_path / "train.jsonl"
    lines = [json.dumps({"text": f"{text} {i}", "label": label}) for i, (text, label) in enumerate(TEXTS * 8)]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def tagged(tmp_path: Path) -> Path:
    path = tmp_path / "tagged.jsonl"
    text = "Ann met Bob Stone in Rome and went on to see the sights of the old town"
    spans = [{"start": 0, "end": 3, "label": "person"}, {"start": 8, "end": 17, "label": "person"}]
    late = [{"start": 21, "end": 25, "label": "place"}, {"start": 68, "end": 70, "label": "place"}]  # 68:70 is "ow"
    lines = [json.dumps({"text": f"{text} {i}", "spans": spans + late}) for i in range(20)]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_labels_and_rows_are_counted_by_split(labelled: Path) -> None:
    found = inspect(labelled, dev=0.25)
    assert found.task == "classification" and found.rows["train"] + found.rows["dev"] == 32
    assert sum(found.labels["train"].values()) == found.rows["train"]
    assert found.tokens == {} and found.seen == ()


def test_tokens_are_those_the_encoder_gives(labelled: Path, tiny_folder: Path, tiny_tokenizer) -> None:
    tokens = inspect(labelled, dev=0.25, model=str(tiny_folder)).tokens["train"]
    rows = [json.loads(line) for line in labelled.read_text().splitlines()]
    lengths = [len(tiny_tokenizer(row["text"]).input_ids) for row in rows]
    assert min(lengths) <= tokens.shortest <= tokens.longest <= max(lengths)
    assert (tokens.windows, tokens.cut_rows, tokens.cut_units) == (0, 0, 0)


def test_what_a_limit_would_lose_is_counted_in_words_and_spans(tagged: Path, tiny_folder: Path) -> None:
    found = inspect(tagged, dev=0.25, model=str(tiny_folder), settings={"data.max_tokens": 18, "data.overlap": 4})
    tokens = found.tokens["train"]
    assert tokens.windows == tokens.rows == tokens.cut_rows
    assert tokens.cut_units > 0 and tokens.cut_spans > 0
    assert tokens.torn == tokens.rows  # the span that ends inside a word, once a row


def test_rows_beyond_the_windows_that_are_allowed_are_counted_not_raised(tagged: Path, tiny_folder: Path) -> None:
    few = {"data.max_tokens": 18, "data.overlap": 4, "data.max_windows": 2}
    found = inspect(tagged, dev=0.25, model=str(tiny_folder), settings=few)
    assert found.tokens["train"].refused == found.rows["train"]


def test_rows_that_the_tokenizer_cannot_read_are_counted(labelled: Path, tiny_folder: Path, tmp_path: Path) -> None:
    words = Tokenizer(models.WordLevel({"<unk>": 0, "the": 1, "cat": 2}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    shutil.copytree(tiny_folder, tmp_path / "words")
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>").save_pretrained(tmp_path / "words")
    known, unknown = (
        inspect(labelled, dev=0.25, model=str(folder)).tokens["train"] for folder in (tiny_folder, tmp_path / "words")
    )
    assert known.unknown == 0 and unknown.unknown == unknown.rows


def test_the_first_rows_are_shown_with_what_is_read(labelled: Path, tiny_folder: Path) -> None:
    found = inspect(labelled, dev=0.25, model=str(tiny_folder))
    roles = [token.role for token in found.seen[0][1]]
    assert roles[0] == "special" and roles[-1] == "read" and roles.count("read") == 1
    console = Console(record=True, width=100, file=io.StringIO())
    show(found, console)
    assert "animal" in console.export_text()
    json.dumps(found.as_json())


def test_rows_that_are_padded_as_text_are_counted(labelled: Path, tiny_folder: Path) -> None:
    settings = {"data.pad_as_text": "block:2", "data.long": "truncate"}
    plain, padded = (inspect(labelled, model=str(tiny_folder), settings=words) for words in ({}, settings))
    assert padded.tokens == plain.tokens


def test_a_limit_beyond_the_context_is_refused(labelled: Path, tiny_folder: Path) -> None:
    with pytest.raises(SettingsError, match="context"):
        inspect(labelled, model=str(tiny_folder), settings={"data.max_tokens": 10_000})


def test_rows_that_cannot_be_cut_are_counted_where_they_are_read_in_windows(tiny_folder: Path) -> None:
    rows = [{"title": f"a title {n}", "body": "some words", "label": "xy"[n % 2]} for n in range(20)]
    rows[3] |= {"title": "long " * 40, "body": "more " * 40}
    settings = {"data.template": "{title}\n{body}", "data.max_tokens": 32, "data.long_field": "body"}
    found = inspect(rows, dev=rows[:2], model=str(tiny_folder), settings=settings).tokens["train"]
    assert (found.windows, found.uncut) == (1, 1)
    with pytest.raises(TooLong, match="even without the field"):
        inspect(rows, dev=rows[:2], model=str(tiny_folder), settings={**settings, "data.long": "truncate"})


def test_labels_are_shown_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"text": f"row {n}", "label": (":smile:", "tail\\\\", "[red]")[n % 3]} for n in range(30)]
    show(inspect(rows, dev=rows[:6]), Console(width=100))
    printed = capsys.readouterr().out
    assert all(label in printed for label in (":smile:", "tail\\\\ ", "[red]"))
