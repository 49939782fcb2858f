"""labeltune as scikit-learn's estimators: in pipelines, grid searches and cross-validation, with texts for features.

    from labeltune.sklearn import LabelTuneClassifier
    LabelTuneClassifier("meta-llama/Llama-3.2-1B", epochs=3).fit(texts, labels).predict(new_texts)

`save` writes a folder that `load` reads, without joblib; nothing in it is pickled.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import Tags, check_array, check_random_state
from sklearn.utils.multiclass import check_classification_targets, unique_labels
from sklearn.utils.validation import check_consistent_length, check_is_fitted, column_or_1d, validate_data

from labeltune.data.examples import normalised, token_places
from labeltune.errors import DataError, RunError
from labeltune.fitting import train
from labeltune.labels import align, spans_of, tags_of
from labeltune.metrics import span_hits, span_scores
from labeltune.portable import PortableRun
from labeltune.schema import Span
from labeltune.storage import atomic_folder, read_json, write_json

ESTIMATOR, RUN = "estimator.json", "run"


class _Estimator(BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """What both estimators share: parameters, training, and the way to disk and back."""

    def __init__(
        self,
        model: str = "mini",
        *,
        lr: float | None = None,
        epochs: int | None = None,
        dev: float | str = 0.1,
        settings: Mapping[str, Any] | None = None,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.model = model
        self.lr = lr
        self.epochs = epochs
        self.dev = dev
        self.settings = settings
        self.random_state = random_state

    def _train(self, rows: Sequence[Mapping[str, object]], task: str, more: Mapping[str, Any]) -> PortableRun:
        named = {"train.lr": self.lr, "train.epochs": self.epochs}
        settings = {name: value for name, value in named.items() if value is not None}
        if self.random_state is not None:
            settings["train.seed"] = int(check_random_state(self.random_state).randint(2**31 - 1))
        own = PortableRun()
        settings |= {**more, **(self.settings or {})}
        train(rows, model=self.model, dev=self.dev, task=task, out=own.folder, settings=settings)
        return own

    @property
    def predictor_(self) -> Any:
        """The `labeltune.Predictor` behind it."""
        check_is_fitted(self)
        return self.held_.predictor

    def save(self, path: str | Path) -> None:
        """Write the fitted estimator as a new folder: parameters as JSON beside the run's own files.

        Raises:
            RunError: `path` is already there. TypeError: a parameter that JSON cannot say.
        """
        check_is_fitted(self)
        fitted = {name: _plain(value) for name, value in vars(self).items() if name.endswith("_") and name != "held_"}
        facts = {"estimator": type(self).__name__, "parameters": self.get_params(deep=False), "fitted": fitted}
        with atomic_folder(Path(path)) as folder:
            write_json(folder / ESTIMATOR, facts)
            shutil.copytree(self.held_.folder, folder / RUN)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """The estimator that `save` has written.

        Raises:
            RunError: it is incomplete, changed, or of another class.
        """
        facts: Any = read_json(Path(path) / ESTIMATOR)
        if facts["estimator"] != cls.__name__:
            raise RunError(f"this is a {facts['estimator']}, no {cls.__name__}", at=str(path), hint="load it as that")
        own = cls(**facts["parameters"])
        for name, value in facts["fitted"].items():
            setattr(own, name, _from_plain(value))
        own.held_ = PortableRun.copied(Path(path) / RUN)
        return own

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True
        return tags


def _plain(value: Any) -> Any:
    """An array as its type and values."""
    return {"dtype": str(value.dtype), "values": value.tolist()} if isinstance(value, np.ndarray) else value


def _from_plain(value: Any) -> Any:
    return np.array(value["values"], dtype=value["dtype"]) if isinstance(value, dict) else value


class LabelTuneClassifier(ClassifierMixin, _Estimator):  # type: ignore[misc]  # scikit-learn has no types
    """A decoder LLM with LoRA and a label head as a classifier of texts.

    Features: texts; or a table, whose rows are read as their cells in words, under the columns' names where it has any.
    model: a hub id, a folder, or `mini`. lr, epochs: of the training. dev: the share of the rows that the best weights
    are chosen on, or a file. settings: any setting by its dotted name. random_state: of the training [its fixed seed].
    """

    def fit(self, X: Any, y: Any) -> Self:
        """Train on texts X (n) or a table X (n, columns) with classes y (n).

        Raises:
            ValueError: input that scikit-learn would refuse too. LabeltuneError: what the training cannot use.
        """
        if y is None:
            raise ValueError(f"{type(self).__name__} requires y to be passed, but the target y is None")
        texts = self._texts(X, reset=True)
        y = column_or_1d(y, warn=True)
        check_consistent_length(texts, y)
        check_classification_targets(y)
        self.classes_ = unique_labels(y)
        if len(self.classes_) < 2:
            raise ValueError(f"{type(self).__name__} needs at least 2 classes, and the data has only one class")
        names = [str(value) for value in np.asarray(y).tolist()]
        rows = [{"text": text, "label": name} for text, name in zip(texts, names, strict=True)]
        self.held_ = self._train(rows, "classification", {"data.text": "text", "data.label": "label"})
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities (n, classes), in the order of `classes_`, calibrated on the dev rows."""
        check_is_fitted(self)
        texts = self._texts(X, reset=False)
        names = [str(value) for value in self.classes_.tolist()]
        answers = self.predictor_.predict(texts, scores=True)
        return np.array([[(answer.scores or {}).get(name, 0.0) for name in names] for answer in answers])

    def predict(self, X: Any) -> np.ndarray:
        """Classes (n)."""
        chosen = self.predict_proba(X).argmax(axis=1)
        return np.asarray(self.classes_[chosen])

    def _texts(self, X: Any, *, reset: bool) -> list[str]:
        if _is_texts(X):
            return _no_empty(list(X))
        table = check_array(X, dtype=None, ensure_all_finite=True)
        validate_data(self, X, skip_check_array=True, reset=reset)
        columns = getattr(self, "feature_names_in_", None)
        return _no_empty([_row_text(row, columns) for row in table.tolist()])

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = True
        return tags


def _is_texts(X: Any) -> bool:
    """Is it a list, an array or a column of texts?"""
    one_d = getattr(X, "ndim", 1) == 1 and hasattr(X, "__len__") and not isinstance(X, str | bytes | Mapping)
    return one_d and len(X) > 0 and all(isinstance(text, str) for text in X)


def _no_empty(texts: list[str]) -> list[str]:
    empty = next((number for number, text in enumerate(texts) if not text.strip()), None)
    if empty is not None:
        raise DataError("the text is empty", at=f"X[{empty}]", hint="remove the row")
    return texts


def _row_text(row: Sequence[object], columns: Sequence[str] | None) -> str:
    """The cells of a row as lines `name: value`; without names, and where there is one only, the values alone."""
    words = [format(cell, ".6g") if isinstance(cell, float) else str(cell) for cell in row]
    if columns is None or len(words) == 1:
        return " ".join(words)
    return "\n".join(f"{name}: {word}" for name, word in zip(columns, words, strict=True))


class LabelTuneTagger(_Estimator):
    """A decoder LLM with LoRA and a label head as a tagger of tokens.

    Features: a list of tokens for each row; targets: a list of as many tags (IOB2, IOB1 or BIOES). Parameters are those
    of `LabelTuneClassifier`.
    """

    def fit(self, X: Any, y: Any) -> Self:
        """Train on token lists X (n) with tag lists y (n).

        Raises:
            ValueError: no token lists. LabeltuneError: what the training cannot use, such as a tag too many.
        """
        rows = [{"tokens": tokens} for tokens in _token_lists(X)]
        if y is None:
            raise ValueError(f"{type(self).__name__} requires y to be passed, but the target y is None")
        check_consistent_length(rows, y)
        rows = [{**row, "tags": list(map(str, tags))} for row, tags in zip(rows, y, strict=True)]
        self.held_ = self._train(rows, "tagging", {"data.tokens": "tokens", "data.tags": "tags"})
        self.labels_ = np.array(self.held_.predictor.labels)
        return self

    def predict(self, X: Any) -> np.ndarray:
        """A list of IOB2 tags for each list of tokens: an array (n) of lists, which scikit-learn's tools can join."""
        check_is_fitted(self)
        rows = _token_lists(X)
        answers = iter(self.predictor_.predict([{"tokens": tokens} for tokens in rows if tokens]))
        found = np.empty(len(rows), object)
        form = self.predictor_.run.config.data.normal_form
        found[:] = [_tags(tokens, next(answers).spans, form) if tokens else [] for tokens in rows]
        return found

    def score(self, X: Any, y: Any) -> float:
        """The span F1 of the predicted tags: a span counts where both ends and the label are right."""
        gold = [set(spans_of(list(map(str, tags)), "IOB1")) for tags in y]
        found = [set(spans_of(tags)) for tags in self.predict(X)]
        return float(span_scores(span_hits(gold, found))["span_f1"])

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array, tags.target_tags.required = False, True
        return tags


def _token_lists(X: Any) -> list[list[str]]:
    rows = [list(map(str, row)) if isinstance(row, Sequence) and not isinstance(row, str) else None for row in X]
    if not rows or any(row is None for row in rows):
        raise ValueError("X is no list of token lists, such as [['Bob', 'sang'], ['rain']]")
    return [row for row in rows if row is not None]


def _tags(tokens: Sequence[str], spans: Sequence[Span], form: str) -> list[str]:
    """The tags of the tokens; spans count characters of the tokens as they were read, in this normal form."""
    places = token_places([normalised(token, form) for token in tokens])
    found = align([Span(span.start, span.end, span.label) for span in spans], places)
    return tags_of(found.unit_spans, len(tokens))
