"""Padding as text: what published scripts do, by a setting, and what it does to answers."""

import numpy as np
import pytest

from labeltune import SettingsError, load, train
from labeltune.data.encoding import Encoder
from labeltune.data.settings import DataConfig
from labeltune.schema import Example
from tests.conftest import QUICK

TEXTS = ["the hen", "a ring sang in the other inn and then the tin rang again", "on", "the thin hen on the ring"]
PUBLISHED = {"data.pad_as_text": "block:2", "data.long": "truncate"}


def encoder(tokenizer, *, targets="document", edge="inside", **settings) -> Encoder:
    config = DataConfig(**{"long": "truncate", **settings})
    return Encoder(tokenizer, config=config, max_tokens=64, targets=targets, label_of=no_labels, edge=edge)


def no_labels(example, spans) -> np.ndarray:
    return np.zeros(len(spans), np.int64)


def rows(tokenizer, **settings):
    return list(encoder(tokenizer, **settings).encode_many(Example(str(n), text) for n, text in enumerate(TEXTS)))


@pytest.mark.parametrize(("targets", "edge"), [("document", "inside"), ("document", "last"), ("units", "inside")])
def test_rows_are_padded_to_the_longest_of_their_block_as_the_stock_tokenizer_pads(tiny_tokenizer, targets, edge):
    padded = rows(tiny_tokenizer, targets=targets, edge=edge, pad_as_text="block:2")
    plain = rows(tiny_tokenizer, targets=targets, edge=edge)
    tiny_tokenizer.pad_token = tiny_tokenizer.eos_token
    try:
        stock = [
            ids
            for start in (0, 2)
            for ids in tiny_tokenizer(TEXTS[start : start + 2], padding="longest", padding_side="right")["input_ids"]
        ]
    finally:
        tiny_tokenizer.pad_token = None
    assert [row.tokens.tolist() for row in padded] == stock
    grows = targets == "document" and edge == "inside"
    for one, other in zip(padded, plain, strict=True):
        missing = len(one.tokens) - len(other.tokens)
        assert (one.piece_end == other.piece_end + (missing if grows else 0)).all()
        assert (one.piece_start == other.piece_start).all() and one.window_lengths.tolist() == [len(one.tokens)]


@pytest.mark.parametrize(
    ("settings", "depends"),
    [
        ({"model.unmask": "all", "model.pooling": "max", "model.pool_on": "logits", **PUBLISHED}, True),
        ({"model.unmask": "all", "model.pooling": "max", "model.pool_on": "logits"}, False),
        ({"model.unmask": "none", "model.pooling": "last", **PUBLISHED}, False),
    ],
    ids=["unmasked, padding as text", "unmasked, clean", "causal, last token"],
)
def test_only_padding_as_text_lets_an_answer_depend_on_the_row_beside_it(
    tmp_path, small, tiny_folder, settings, depends
):
    run = train(
        small / "moods-train.jsonl",
        dev=small / "moods-dev.jsonl",
        model=str(tiny_folder),
        out=tmp_path / "run",
        settings=QUICK | settings,
    )
    predictor = load(run.folder)
    first, second = (predictor.predict([TEXTS[0], beside])[0].score for beside in (TEXTS[1], TEXTS[2]))
    assert (abs(first - second) > 1e-5) == depends
    assert ("data.pad_as_text" in run.metrics["dev"].get("switches", [])) == ("data.pad_as_text" in settings)


def test_windows_cannot_be_padded_as_text(tiny_tokenizer):
    with pytest.raises(SettingsError, match=r'data\.pad_as_text: .* data\.long to "truncate"'):
        encoder(tiny_tokenizer, pad_as_text="block:2", long="window")
