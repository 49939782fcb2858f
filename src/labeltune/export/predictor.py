"""Answer with an exported graph: labels, scores and spans without torch and without transformers.

Needs numpy, tokenizers and the graph's runtime. The encoder is the run's own, so templates, windows, words and
sequence repetition are read as they were in training.

    from labeltune.export.predictor import load
    load("exports/onnx").predict(["where is my parcel?"])
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import expit, log_softmax, softmax
from tokenizers import Tokenizer

from labeltune.data.encoding import Encoder
from labeltune.data.items import Items
from labeltune.data.settings import DataConfig
from labeltune.errors import RunError
from labeltune.export.padded import documents_of, feed
from labeltune.export.sessions import SESSIONS, Session
from labeltune.labels import LabelSet, characters_of, spans_of_ids
from labeltune.schema import Encoded, Example, Prediction, SpanPrediction, in_column
from labeltune.settings import build
from labeltune.storage import read_json
from labeltune.viterbi import best_legal

FACTS, TOKENIZER = "export.json", "tokenizer.json"
CHUNK, BUDGET = 2048, 8192
"""Rows that are sorted by length together; most tokens of one pass, padding included."""


class PlainTokenizer:
    """A `tokenizer.json` with the few methods that the encoder asks a tokenizer for."""

    is_fast = True

    def __init__(self, path: Path, specials: Mapping[str, int | None]) -> None:
        self.backend_tokenizer = Tokenizer.from_file(str(path))
        self.backend_tokenizer.no_padding()
        self.backend_tokenizer.no_truncation()
        self.bos_token_id, self.eos_token_id = specials["bos"], specials["eos"]
        self.get_vocab, self.decode = self.backend_tokenizer.get_vocab, self.backend_tokenizer.decode

    def __call__(
        self, text: str | list[str], *, add_special_tokens: bool = True, return_offsets_mapping: bool = False, **_: bool
    ) -> dict[str, Any]:
        """`input_ids` and `offset_mapping` of a text, or of each of several."""
        several = [text] if isinstance(text, str) else text
        found = self.backend_tokenizer.encode_batch(several, add_special_tokens=add_special_tokens)
        ids, offsets = [one.ids for one in found], [one.offsets for one in found]
        if isinstance(text, str):
            return {"input_ids": ids[0], "offset_mapping": offsets[0]}
        return {"input_ids": ids, "offset_mapping": offsets}


@dataclass(frozen=True)
class GraphPredictor:
    """An exported graph that answers.

    thresholds: for multilabel, the probability from which each label is given.
    """

    task: str
    labels: LabelSet
    thresholds: np.ndarray | float
    pooling: str
    data: DataConfig
    encoder: Encoder
    session: Session

    def predict(self, texts: Sequence[str | Mapping[str, object]]) -> list[Prediction]:
        """One prediction for each text, or row with the columns of the training data.

        Spans count characters of the text as it was given, whatever the run's template puts around it.
        """
        examples = [self._items.read(item, f"texts[{number}]") for number, item in enumerate(texts)]
        answers: list[Prediction] = []
        for first in range(0, len(examples), CHUNK):
            answers += self.answer(examples[first : first + CHUNK])
        return list(map(in_column, examples, answers))

    def logits(self, rows: Sequence[Encoded]) -> np.ndarray:
        """(S, L) of all targets of the rows, in one pass."""
        return self.session(feed(rows, self.pooling))

    def answer(self, examples: Sequence[Example]) -> list[Prediction]:
        """One prediction for each example; they are sorted by length among themselves."""
        return self.decide(examples, list(self.encoder.encode_many(examples)))

    def decide(
        self,
        examples: Sequence[Example],
        rows: Sequence[Encoded],
        *,
        budget: int = BUDGET,
        progress: Callable[[int], None] = lambda rows: None,
    ) -> list[Prediction]:
        """One prediction for each example; `rows` are the examples, encoded. progress: told the rows of each pass.

        budget: most tokens of a pass, padding included.
        """
        answers: list[Prediction | None] = [None] * len(rows)
        for places in batches([len(row.tokens) for row in rows], budget):
            some = [rows[place] for place in places]
            logits_SL, document_S = self.logits(some), documents_of(some)
            said = DECISIONS[self.task](self, [examples[place] for place in places], some, logits_SL, document_S)
            for place, answer in zip(places, said, strict=True):
                answers[place] = answer
            progress(len(places))
        return [answer for answer in answers if answer is not None]

    @cached_property
    def _items(self) -> Items:
        return Items(self.data, self.task)


def batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Places of rows of like length, longest first; padded, a batch holds at most `budget` tokens, or is one row."""
    batch: list[int] = []
    for place in np.argsort(-np.asarray(lengths), kind="stable").tolist():
        if batch and lengths[batch[0]] * (len(batch) + 1) > budget:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


# Logits -> answers, by task

Decide = Callable[[GraphPredictor, Sequence[Example], Sequence[Encoded], np.ndarray, np.ndarray], list[Prediction]]


def _single(found: GraphPredictor, probabilities_SL: np.ndarray, chosen_S: np.ndarray) -> Iterator[dict[str, Any]]:
    names = found.labels.names
    for p, choice in zip(probabilities_SL, chosen_S, strict=True):
        yield {"label": names[choice], "score": float(p[choice]), "scores": dict(zip(names, p.tolist(), strict=True))}


def _classification(
    found: GraphPredictor, examples: Sequence[Example], rows: Sequence[Encoded], logits: np.ndarray, _: np.ndarray
) -> list[Prediction]:
    p = softmax(logits.astype(np.float64), axis=1)
    return [Prediction(e.id, **said) for e, said in zip(examples, _single(found, p, p.argmax(1)), strict=True)]


def _ordinal(
    found: GraphPredictor, examples: Sequence[Example], rows: Sequence[Encoded], logits: np.ndarray, _: np.ndarray
) -> list[Prediction]:
    above = np.minimum.accumulate(expit(logits.astype(np.float64)), axis=1)
    ends = np.ones((len(above), 1))
    p = np.concatenate([ends, above], axis=1) - np.concatenate([above, 0 * ends], axis=1)
    chosen = (1 - np.cumsum(p, axis=1)[:, :-1] > 0.5).sum(1)
    values = p @ np.arange(p.shape[1])
    said = zip(examples, _single(found, p, chosen), values.tolist(), strict=True)
    return [Prediction(e.id, value=value, **one) for e, one, value in said]


def _multilabel(
    found: GraphPredictor, examples: Sequence[Example], rows: Sequence[Encoded], logits: np.ndarray, _: np.ndarray
) -> list[Prediction]:
    names, yes = found.labels.names, expit(logits.astype(np.float64)).astype(np.float32)
    given = yes >= found.thresholds
    return [
        Prediction(
            e.id,
            labels=tuple(name for name, is_so in zip(names, g, strict=True) if is_so),
            scores=dict(zip(names, p.tolist(), strict=True)),
        )
        for e, p, g in zip(examples, yes, given, strict=True)
    ]


def _regression(
    found: GraphPredictor, examples: Sequence[Example], rows: Sequence[Encoded], logits: np.ndarray, _: np.ndarray
) -> list[Prediction]:
    return [Prediction(e.id, value=value) for e, value in zip(examples, logits.reshape(-1).tolist(), strict=True)]


def _tagging(
    found: GraphPredictor,
    examples: Sequence[Example],
    rows: Sequence[Encoded],
    logits: np.ndarray,
    document_S: np.ndarray,
) -> list[Prediction]:
    log_p = log_softmax(logits.astype(np.float64), axis=1)
    tags = best_legal(log_p, document_S)
    log_p_S = log_p[np.arange(len(tags)), tags]
    bounds = np.searchsorted(document_S, np.arange(len(rows) + 1))
    pairs = zip(examples, rows, bounds[:-1], bounds[1:], strict=True)
    return [
        Prediction(e.id, spans=_spans(found, e.text, row, tags[first:last], log_p_S[first:last]))
        for e, row, first, last in pairs
    ]


def _spans(
    found: GraphPredictor, text: str, row: Encoded, tags: np.ndarray, log_p: np.ndarray
) -> tuple[SpanPrediction, ...]:
    units = spans_of_ids(tags, found.labels)
    places = zip(units, characters_of(units, row.target_span.tolist()), strict=True)
    return tuple(
        SpanPrediction(s.start, s.end, s.label, float(np.exp(log_p[a:b].mean())), text[s.start : s.end])
        for (a, b, _), s in places
    )


DECISIONS: dict[str, Decide] = {
    "classification": _classification,
    "multilabel": _multilabel,
    "ordinal": _ordinal,
    "regression": _regression,
    "tagging": _tagging,
}


# Loading


def load(folder: str | Path, *, threads: int | None = None) -> GraphPredictor:
    """Open a folder that `labeltune export --to onnx` or `--to openvino` has written.

    Raises:
        RunError: something is missing or damaged. ModelError: the runtime is not installed.
    """
    folder = Path(folder)
    facts: Any = read_json(folder / FACTS)
    if not isinstance(facts, dict) or facts.get("format") not in SESSIONS:
        raise RunError("this is no exported graph", at=str(folder / FACTS), hint="export the run again")
    data = build(DataConfig, facts["data"])
    tokenizer: Any = PlainTokenizer(folder / TOKENIZER, facts["specials"])
    encoder = Encoder(
        tokenizer,
        config=data,
        max_tokens=facts["max_tokens"],
        targets=facts["targets"],
        whole_special=facts["whole_special"],
        edge=facts["edge"],
        label_of=lambda example, spans: np.full(len(spans), -1, np.int64),
    )
    return GraphPredictor(
        facts["task"],
        LabelSet(tuple(facts["labels"])),
        0.5 if facts["thresholds"] is None else np.array(facts["thresholds"]),
        facts["pooling"],
        data,
        encoder,
        SESSIONS[facts["format"]](folder, threads),
    )
