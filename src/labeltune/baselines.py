"""What a decoder has to beat: logistic regression on word counts for texts, and on word features for tags.

Both answer with the nouns of the house, so that one scorer serves them and a trained run alike.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline, make_union

from labeltune.data import units
from labeltune.data.settings import DataConfig
from labeltune.labels import LabelSet, align, tag_ids
from labeltune.schema import Example, Prediction
from labeltune.tasks import TASKS, Decisions
from labeltune.tasks.tagging import gold_spans
from labeltune.viterbi import best_legal

ITERATIONS = 1000
_FLOOR = 1e-12  # the probability of a tag that training never showed


class Baseline(Protocol):
    """A fitted baseline."""

    @property
    def name(self) -> str:
        """What a table calls it."""

    @property
    def labels(self) -> LabelSet:
        """The training rows' labels."""

    def predict(self, examples: Sequence[Example]) -> list[Prediction]:
        """One prediction per example, in order."""


@dataclass(frozen=True)
class TextBaseline:
    """TF-IDF of words, word pairs and 3 to 5 letters, and logistic regression."""

    labels: LabelSet
    pipeline: Pipeline
    name: str = "TF-IDF + logistic regression"
    task: str = "classification"

    @classmethod
    def fit(cls, examples: Sequence[Example]) -> TextBaseline:
        """Fit on labelled texts."""
        labels = TASKS[cls.task].label_set(examples, DataConfig())
        words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
        letters = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5), sublinear_tf=True)
        pipeline = make_pipeline(make_union(words, letters), LogisticRegression(max_iter=ITERATIONS))
        gold = [labels.index(str(example.label)) for example in examples]
        return cls(labels, pipeline.fit([example.text for example in examples], gold))

    def predict(self, examples: Sequence[Example]) -> list[Prediction]:
        """The most probable label."""
        probabilities_SL = self.pipeline.predict_proba([example.text for example in examples])
        rows = np.arange(len(examples))
        decisions = Decisions(probabilities_SL.argmax(1), probabilities_SL.astype(np.float32), rows)
        return TASKS[self.task].predictions(examples, [], decisions, self.labels)


@dataclass(frozen=True)
class TagBaseline:
    """Each word's form, shape, beginning, end and neighbours, logistic regression, and the best legal tags."""

    labels: LabelSet
    pipeline: Pipeline
    name: str = "word features + logistic regression"
    task: str = "tagging"

    @classmethod
    def fit(cls, examples: Sequence[Example]) -> TagBaseline:
        """Fit on texts with spans; a span that tears a word teaches nothing."""
        labels = TASKS[cls.task].label_set(examples, DataConfig())
        found = [units.find(example.text) for example in examples]
        rows = zip(examples, found, strict=True)
        gold = [tag_ids(align(gold_spans(e), spans).unit_spans, len(spans), labels) for e, spans in rows]
        counts = CountVectorizer(analyzer=list, binary=True)
        pipeline = make_pipeline(counts, LogisticRegression(max_iter=ITERATIONS, tol=1e-3))
        return cls(labels, pipeline.fit(_features(examples, found), np.concatenate(gold)))

    def predict(self, examples: Sequence[Example]) -> list[Prediction]:
        """The legal tags with the largest product of probabilities."""
        found = [units.find(example.text) for example in examples]
        document_S = np.repeat(np.arange(len(examples)), [len(spans) for spans in found])
        logs_ST = self._log_probabilities(_features(examples, found))
        tags_S = best_legal(logs_ST, document_S)
        probabilities_S = np.exp(logs_ST[np.arange(len(tags_S)), tags_S]).astype(np.float32)
        spans = [np.array(ranges, dtype=np.int64).reshape(-1, 2) for ranges in found]
        return TASKS[self.task].predictions(
            examples, spans, Decisions(tags_S, probabilities_S, document_S), self.labels
        )

    def _log_probabilities(self, features: list[list[str]]) -> np.ndarray:
        """float64 (S, T): of all tags, those that training never showed included."""
        logs_ST = np.full((len(features), 2 * len(self.labels) + 1), np.log(_FLOOR))
        if features:
            logs_ST[:, self.pipeline.classes_] = self.pipeline.predict_log_proba(features)
        return logs_ST


BASELINES: dict[str, Callable[[Sequence[Example]], Baseline]] = {
    kind.task: kind.fit for kind in (TextBaseline, TagBaseline)
}
"""Task -> fit. The regularisation is scikit-learn's own (C = 1)."""


# Word features


def _features(examples: Sequence[Example], found: Sequence[Sequence[tuple[int, int]]]) -> list[list[str]]:
    """One list of features for each word of all texts."""
    texts = ([example.text[a:b] for a, b in spans] for example, spans in zip(examples, found, strict=True))
    return [features for words in texts for features in word_features(words)]


def word_features(words: Sequence[str]) -> list[list[str]]:
    """The features of each word of one text: of itself, of two neighbours to each side, and of two pairs."""
    low = ["<", "<", *(word.lower() for word in words), ">", ">"]
    shapes = ["<", "<", *map(shape, words), ">", ">"]
    rows = []
    for place, word in enumerate(low[2:-2], start=2):
        row = [
            f"word={word}",
            f"shape={shapes[place]}",
            f"pair<{low[place - 1]}|{word}",
            f"pair>{word}|{low[place + 1]}",
        ]
        row += [f"begins={word[:size]}" for size in (1, 2, 3)] + [f"ends={word[-size:]}" for size in (1, 2, 3)]
        row += [f"{offset}={side[place + offset]}" for offset in (-2, -1, 1, 2) for side in (low, shapes)]
        rows.append(row)
    return rows


def shape(word: str) -> str:
    """`Harrowmouth` -> `Xxxx`, `BZ-3306` -> `XX-000`: letters and digits as X, x and 0, runs cut at three."""
    kinds = "".join("0" if c.isdigit() else "X" if c.isupper() else "x" if c.isalpha() else c for c in word)
    return re.sub(r"(.)\1{3,}", r"\1\1\1", kinds)
