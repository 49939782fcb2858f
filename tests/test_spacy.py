"""In a spaCy pipeline a run sets the entities or the categories that it gives by itself."""

import json
from pathlib import Path

import pytest

from labeltune import load, train
from labeltune.errors import SettingsError

spacy = pytest.importorskip("spacy", reason='needs spaCy: pip install "labeltune[spacy]"')
pytest.importorskip("labeltune.spacy")  # where labeltune is installed, spaCy finds it by itself


def texts_of(path: Path) -> list[str]:
    rows = map(json.loads, path.read_text().splitlines())
    return [row.get("text") or " ".join(row["tokens"]) for row in rows]


def test_a_tagger_sets_the_entities(tagger: Path, small: Path) -> None:
    nlp = spacy.blank("en")
    nlp.add_pipe("labeltune", config={"run": str(tagger)})
    texts = texts_of(small / "names-train.jsonl")
    answers = load(tagger).predict(texts)
    assert any(answer.spans for answer in answers)
    for doc, answer in zip(nlp.pipe(texts, batch_size=5), answers, strict=True):
        spans = [(span.start, span.end, span.label) for span in answer.spans]
        assert [(ent.start_char, ent.end_char, ent.label_) for ent in doc.ents] == spans
        assert doc.spans["labeltune"].attrs["scores"] == pytest.approx([span.score for span in answer.spans], abs=1e-5)


def test_a_template_moves_no_entity(small: Path, tiny_folder: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (small / "names-train.jsonl").read_text().splitlines()]
    spanned = [{"text": " ".join(row["tokens"]), "spans": [[0, len(row["tokens"][0]), "PER"]]} for row in rows]
    settings = {"train.steps": 60, "train.lr": 3e-2, "train.threads": 1, "data.template": "Read Bob: {text}"}
    run = train(spanned, dev=spanned[:5], model=str(tiny_folder), out=tmp_path / "run", settings=settings)
    assert run.metrics["dev"]["span_f1"] > 0.5
    nlp = spacy.blank("en")
    nlp.add_pipe("labeltune", config={"run": str(run.folder)})
    for row, answer in zip(spanned, load(run.folder).predict([row["text"] for row in spanned]), strict=True):
        assert [(span.start, row["text"][span.start : span.end]) for span in answer.spans] == [
            (span.start, span.text) for span in answer.spans
        ]
        assert [ent.text for ent in nlp(row["text"]).ents] == [span.text for span in answer.spans]


def test_a_least_score_is_a_probability(tagger: Path) -> None:
    with pytest.raises(SettingsError, match="min_score: 70 is no probability"):
        spacy.blank("en").add_pipe("labeltune", config={"run": str(tagger), "min_score": 70})


def test_a_classifier_sets_the_categories_and_white_space_has_none(finished: Path, small: Path, tmp_path: Path) -> None:
    nlp = spacy.blank("en")
    nlp.add_pipe("labeltune", config={"run": str(finished)})
    (text, *_) = texts_of(small / "moods-test.jsonl")
    (answer,) = load(finished).predict(text, scores=True)
    assert nlp(text).cats == pytest.approx(dict(answer.scores), abs=1e-6)
    assert nlp(" \n").cats == {} and [doc.text for doc in nlp.pipe(["", text])] == ["", text]
    nlp.to_disk(tmp_path / "nlp")
    assert spacy.load(tmp_path / "nlp")(text).cats == nlp(text).cats


def test_below_the_least_score_there_is_nothing(finished: Path, tagger: Path) -> None:
    for run in (finished, tagger):
        nlp = spacy.blank("en")
        nlp.add_pipe("labeltune", config={"run": str(run), "min_score": 1.0})
        doc = nlp("Bob sang in Anna Inn")
        assert doc.cats == {} and not doc.ents
