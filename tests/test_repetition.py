"""A text written twice lets a causal model read each word knowing the whole text."""

import pytest

import labeltune
from tests.conftest import write_jsonl

WORDS = ("hen", "ring", "tin", "inn")


def pairs(rows):
    """Two words and a number; the first word's tag is told by the second word alone."""
    found = []
    for i in range(rows):
        first, second = WORDS[(i // 4) % 4], WORDS[i % 4]
        tag = "B-BIRD" if second in ("hen", "inn") else "B-THING"
        found.append({"tokens": [first, second], "tags": [tag, "O"]})
    return found


@pytest.mark.parametrize(
    ("settings", "learns"),
    [
        ({"model.unmask": "none"}, False),
        ({"model.unmask": "none", "data.repeat": 1}, True),
        ({"model.unmask": "all"}, True),
    ],
    ids=["causal", "causal, repeated", "unmasked"],
)
def test_what_the_next_word_tells_needs_repetition_or_an_unmasked_model(tmp_path, tiny_folder, settings, learns):
    data = write_jsonl(tmp_path / "pairs.jsonl", pairs(64))
    fixed = {"train.lr": 1e-2, "train.epochs": 20, "train.threads": 1, "lora.dropout": 0.0, "lora.rank": 8}
    run = labeltune.train(data, dev=data, model=str(tiny_folder), out=tmp_path / "run", settings=fixed | settings)
    assert (run.metrics["dev"]["span_f1"] == 1.0) == learns
    assert learns or run.metrics["dev"]["span_f1"] <= 0.6
