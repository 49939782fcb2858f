"""The shipped demo messages are what their data card says: exact spans, balanced splits, no near-duplicates."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from importlib.resources import files
from itertools import chain, combinations

import pytest

SPLITS = ("train", "dev", "test")
INTENTS = {
    "account_access",
    "cancel_order",
    "change_address",
    "complaint_service",
    "order_status",
    "payment_problem",
    "praise_feedback",
    "product_question",
    "refund_status",
    "return_item",
    "warranty_repair",
    "wrong_or_damaged_item",
}
ENTITIES = {"product", "order_number", "date", "place", "person", "amount"}


@pytest.fixture(scope="module")
def splits() -> dict[str, list[dict]]:
    folder = files("labeltune.demo_data")
    return {
        name: [json.loads(line) for line in (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
        for name in SPLITS
    }


@pytest.fixture(scope="module")
def rows(splits) -> list[dict]:
    return list(chain.from_iterable(splits.values()))


def words_outside_entities(row: dict) -> tuple[str, ...]:
    """The case-folded words that remain once every entity is cut out."""
    text = row["text"]
    for entity in sorted(row["entities"], key=lambda entity: entity["start"], reverse=True):
        text = text[: entity["start"]] + " " + text[entity["end"] :]
    return tuple(re.findall(r"[^\W_]+(?:['’][^\W_]+)*", text.casefold()))


def test_there_are_900_messages_and_300_to_test_on(splits, rows):
    assert len(rows) >= 900
    assert len(splits["test"]) >= 300
    assert len(splits["train"]) > len(splits["test"]) > len(splits["dev"])


def test_every_row_has_the_three_fields_and_nothing_else(rows):
    for row in rows:
        assert list(row) == ["text", "intent", "entities"]
        assert row["text"] == row["text"].strip() != ""
        assert row["intent"] in INTENTS
        assert all(entity.keys() == {"start", "end", "label"} for entity in row["entities"])
        assert {entity["label"] for entity in row["entities"]} <= ENTITIES


@pytest.mark.parametrize("name", SPLITS)
def test_every_split_holds_every_intent_alike_and_every_entity_type(splits, name):
    intents = Counter(row["intent"] for row in splits[name])
    assert intents.keys() == INTENTS
    assert max(intents.values()) <= 1.2 * min(intents.values())
    assert {entity["label"] for row in splits[name] for entity in row["entities"]} == ENTITIES


def test_spans_are_sorted_disjoint_and_inside_the_text(rows):
    for row in rows:
        edges = [edge for entity in row["entities"] for edge in (entity["start"], entity["end"])]
        assert edges == sorted(set(edges)), row["text"]
        assert all(0 <= edge <= len(row["text"]) for edge in edges), row["text"]


def test_spans_begin_and_end_at_word_boundaries(rows):
    for row in rows:
        for entity in row["entities"]:
            span = row["text"][entity["start"] : entity["end"]]
            around = row["text"][: entity["start"]][-1:], row["text"][entity["end"] :][:1]
            assert span == span.strip(), row["text"]
            assert not any(character.isalnum() for character in around), row["text"]


def test_at_most_four_entities_and_none_in_a_sixth_to_a_quarter_of_the_rows(rows):
    counts = Counter(len(row["entities"]) for row in rows)
    assert max(counts) <= 4
    assert 0.15 <= counts[0] / len(rows) <= 0.25


def test_no_two_messages_have_the_same_words_outside_their_entities(rows):
    counted = Counter(words_outside_entities(row) for row in rows)
    assert [words for words, count in counted.items() if count > 1] == []


def test_no_two_messages_share_more_than_six_tenths_of_their_word_trigrams(rows):
    trigrams = [set(zip(words, words[1:], words[2:], strict=False)) for words in map(words_outside_entities, rows)]
    holders = defaultdict(list)
    for number, found in enumerate(trigrams):
        for trigram in found:
            holders[trigram].append(number)
    shared = Counter(pair for numbers in holders.values() for pair in combinations(numbers, 2))
    for (one, other), common in shared.items():
        jaccard = common / len(trigrams[one] | trigrams[other])
        assert jaccard <= 0.6, (rows[one]["text"], rows[other]["text"])


def test_the_data_card_counts_what_is_there(splits):
    card = (files("labeltune.demo_data") / "README.md").read_text(encoding="utf-8")
    assert "Apache-2.0" in card
    for name in SPLITS:
        row = f"| `{name}.jsonl` | {len(splits[name])} |"
        assert row in card
