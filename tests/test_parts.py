"""One model over several files, scores by file; entity starts in place of entities."""

import json
from pathlib import Path

import pytest

import labeltune
from labeltune.data.datasets import load
from labeltune.data.settings import DataConfig
from labeltune.errors import DataError
from labeltune.schema import Span
from tests.conftest import QUICK, moods, names, write_jsonl


@pytest.fixture
def files(tmp_path):
    return written(tmp_path, "train", 24, 0)


def written(folder, split, rows, start):
    """`rows` rows in either of two files, from `start` on."""
    starts = (("de", start), ("ja", start + 40))
    return {name: write_jsonl(folder / f"{name}-{split}.jsonl", moods(rows, first)) for name, first in starts}


def test_a_model_over_several_files_has_figures_by_file(tmp_path, tiny_folder, files):
    out, settings = tmp_path / "run", QUICK | {"train.epochs": 2}
    new = written(tmp_path, "test", 8, 100)
    run = labeltune.train(files, dev=files, test=new, model=str(tiny_folder), out=out, settings=settings)
    parts = run.metrics["test"]["parts"]
    report = {name: labeltune.evaluate(out, path).metrics for name, path in new.items()}
    for name in files:
        assert parts[name]["accuracy"] == report[name]["accuracy"]
        assert parts[name]["log_loss"] == pytest.approx(report[name]["log_loss"], abs=1e-6)
    assert run.metrics["test"]["accuracy"] == pytest.approx(sum(p["accuracy"] for p in parts.values()) / 2)
    assert set(labeltune.evaluate(out, new).metrics["parts"]) == {"de", "ja"}
    assert "| ja |" in (out / "README.md").read_text()


def test_a_recipe_names_a_file_for_each_part(tmp_path, tiny_folder, files):
    table = "".join(f'{name} = "{path.name}"\n' for name, path in files.items())
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(f"[data.train]\n{table}[data.dev]\n{table}[train]\nlr = 0.01\nepochs = 1\nthreads = 1\n")
    run = labeltune.train(config=recipe, model=str(tiny_folder), out=tmp_path / "run")
    assert set(run.metrics["dev"]["parts"]) == {"de", "ja"}


def test_entity_starts_are_scored_where_a_published_file_has_only_those(tmp_path, tiny_folder):
    data = write_jsonl(tmp_path / "names.jsonl", names(24))
    settings = QUICK | {"data.tag_starts_only": True, "train.epochs": 1}
    run = labeltune.train(data, dev=data, model=str(tiny_folder), out=tmp_path / "run", settings=settings)
    assert run.metrics["dev"]["switches"] == ["data.tag_starts_only"]
    starts, whole = (
        list(load(DataConfig(train=str(data), dev=str(data), tag_starts_only=on), None).train) for on in (True, False)
    )
    for one, other in zip(starts, whole, strict=True):
        expected = [Span(s.start, s.start + len(one.text[s.start :].split()[0]), s.label) for s in other.spans]
        assert list(one.spans) == expected
    assert any(len(one.text[s.start : s.end].split()) == 2 for one in whole for s in one.spans)


def test_starts_that_match_can_be_spans_that_do_not(tmp_path, tiny_folder):
    # The defect's size: a tagger of starts finds every start, and no entity of two words whole.
    data = write_jsonl(tmp_path / "names.jsonl", names(48))
    settings = {"train.lr": 1e-2, "train.epochs": 15, "train.threads": 1, "lora.rank": 8, "data.tag_starts_only": True}
    run = labeltune.train(data, dev=data, model=str(tiny_folder), out=tmp_path / "run", settings=settings)
    strict = labeltune.evaluate(run.folder, data, settings={"data.tag_starts_only": False}).metrics
    assert run.metrics["dev"]["span_f1"] == 1.0 and "switches" not in strict
    two_words = sum("I-LOC" in json.loads(line)["tags"] for line in data.read_text().splitlines())
    assert strict["span_f1"] == pytest.approx(1 - two_words / 48)


def test_a_column_that_has_the_name_of_the_files_is_refused(tmp_path: Path) -> None:
    for name in ("de", "ja"):
        rows = [{"text": f"{name} {n}", "label": "xy"[n % 2], "part": "mine"} for n in range(20)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = {name: str(tmp_path / f"{name}.jsonl") for name in ("de", "ja")}
    with pytest.raises(DataError, match=r"de\.jsonl:1: the column 'part' is taken"):
        load(DataConfig(train=files, dev=0.2), None)
