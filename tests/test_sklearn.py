"""The scikit-learn estimators do what scikit-learn's own checks ask, and work where its tools put them."""

import json
import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.estimator_checks import check_estimator

from labeltune import evaluate
from labeltune.errors import DataError, RunError
from labeltune.sklearn import LabelTuneClassifier, LabelTuneTagger

QUICK = {"train.steps": 2, "train.threads": 1, "lora.rank": 2}
NUMBERS = "feeds a matrix of numbers, and a tagger reads lists of tokens"

CLASSIFIER = {"check_classifiers_train": "wants accuracy on points in a plane, after two steps of a random backbone"}
TAGGER = dict.fromkeys(
    """check_fit_score_takes_y check_estimators_overwrite_params check_dont_overwrite_parameters
    check_estimators_fit_returns_self check_readonly_memmap_input check_n_features_in_after_fitting
    check_positive_only_tag_during_fit check_estimators_dtypes check_complex_data check_dtype_object
    check_estimators_empty_data_messages check_pipeline_consistency check_estimators_nan_inf check_estimator_sparse_tag
    check_estimator_sparse_array check_estimator_sparse_matrix check_estimators_pickle
    check_f_contiguous_array_estimator check_methods_sample_order_invariance check_methods_subset_invariance
    check_fit2d_1sample check_fit2d_1feature check_dict_unchanged check_fit_idempotent check_fit_check_is_fitted
    check_n_features_in check_fit2d_predict1d check_requires_y_none""".split(),
    NUMBERS,
)
"""By check: why it cannot pass. All others do, and so will these be seen if they ever can."""


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def moods(small: Path) -> tuple[list[str], list[str]]:
    rows = rows_of(small / "moods-train.jsonl")
    return [row["text"] for row in rows], [row["label"] for row in rows]


@pytest.fixture(scope="module")
def names(small: Path) -> tuple[list[list[str]], list[list[str]]]:
    rows = rows_of(small / "names-train.jsonl")
    return [row["tokens"] for row in rows], [row["tags"] for row in rows]


@pytest.fixture(scope="module")
def classifier(moods, tiny_folder: Path) -> LabelTuneClassifier:
    settings = {"train.threads": 1, "lora.rank": 4}
    return LabelTuneClassifier(str(tiny_folder), lr=1e-2, epochs=4, settings=settings, random_state=1).fit(*moods)


@pytest.fixture(scope="module")
def tagger(names, tiny_folder: Path) -> LabelTuneTagger:
    return LabelTuneTagger(str(tiny_folder), lr=1e-2, epochs=3, settings={"train.threads": 1}).fit(*names)


# scikit-learn's own checks


def outcome(estimator: object) -> tuple[set[str], set[str]]:
    """The checks that passed, and those that did not."""
    found = check_estimator(estimator, on_fail=None, on_skip=None)
    by = {state: {one["check_name"] for one in found if one["status"] == state} for state in ("passed", "failed")}
    return by["passed"], by["failed"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:invalid value encountered in cast:RuntimeWarning")
def test_a_classifier_passes_every_check_but_those_with_a_reason(tiny_folder: Path) -> None:
    passed, failed = outcome(LabelTuneClassifier(str(tiny_folder), settings=QUICK))
    assert failed == set(CLASSIFIER) and len(passed) >= 48


def test_a_tagger_passes_every_check_but_those_that_feed_numbers(tiny_folder: Path) -> None:
    class ForMatrices(LabelTuneTagger):
        """As if it took matrices, for scikit-learn runs no check of anything else."""

        def __sklearn_tags__(self) -> object:
            tags = super().__sklearn_tags__()
            tags.input_tags.two_d_array = True
            return tags

    passed, failed = outcome(ForMatrices(str(tiny_folder), settings=QUICK))
    assert failed == set(TAGGER) and len(passed) >= 10


# Where scikit-learn puts them


def test_probabilities_are_in_the_order_of_the_classes(classifier: LabelTuneClassifier, moods) -> None:
    texts, labels = moods
    chances = classifier.predict_proba(texts)
    assert list(classifier.classes_) == sorted(set(labels)) and chances.shape == (len(texts), 3)
    assert np.allclose(chances.sum(axis=1), 1)
    assert list(classifier.predict(texts)) == list(classifier.classes_[chances.argmax(axis=1)])
    answers = classifier.predictor_.predict(texts)
    assert [answer.label for answer in answers] == list(classifier.predict(texts))
    assert classifier.score(texts, labels) == np.mean(classifier.predict(texts) == np.array(labels))


@pytest.mark.slow
def test_it_stands_at_the_end_of_a_pipeline_and_in_a_grid(moods, tiny_folder: Path) -> None:
    texts, labels = moods
    lower = FunctionTransformer(lambda some: [text.lower() for text in some])
    pipeline = make_pipeline(lower, LabelTuneClassifier(str(tiny_folder), settings=QUICK))
    grid = {"labeltuneclassifier__lr": [1e-4, 1e-2]}
    search = GridSearchCV(pipeline, grid, cv=2, error_score="raise").fit(texts, labels)
    assert set(search.predict(texts)) <= set(labels) and len(search.cv_results_["params"]) == 2


@pytest.mark.slow
def test_cross_validation_answers_every_row(moods, names, tiny_folder: Path) -> None:
    estimator = LabelTuneClassifier(str(tiny_folder), settings=QUICK)
    assert cross_val_predict(estimator, *moods, cv=2, method="predict_proba").shape == (len(moods[0]), 3)
    tagger = LabelTuneTagger(str(tiny_folder), settings=QUICK)
    found = cross_val_predict(tagger, *names, cv=2)
    assert [len(row) for row in found] == [len(row) for row in names[0]]
    search = GridSearchCV(tagger, {"lr": [1e-4, 1e-2]}, cv=2, error_score="raise").fit(*names)
    assert 0 <= search.best_score_ <= 1


@pytest.mark.slow
def test_a_clone_with_the_same_seed_is_the_same(classifier: LabelTuneClassifier, moods) -> None:
    again = clone(classifier)
    assert not hasattr(again, "classes_") and again.get_params() == classifier.get_params()
    assert np.array_equal(again.fit(*moods).predict_proba(moods[0]), classifier.predict_proba(moods[0]))


@pytest.mark.slow
@pytest.mark.parametrize("classes", [[3, 7, 11], [True, False], np.array(["x", "y"], dtype=object)], ids=repr)
def test_classes_come_back_as_they_were(classes, tiny_folder: Path, tmp_path: Path) -> None:
    texts = [f"the hen {number}" for number in range(20)]
    y = np.array([classes[number % len(classes)] for number in range(20)])
    fitted = LabelTuneClassifier(str(tiny_folder), settings=QUICK).fit(np.array(texts), y)
    fitted.save(tmp_path / "saved")
    for one in (fitted, LabelTuneClassifier.load(tmp_path / "saved")):
        assert one.classes_.dtype == y.dtype and set(one.predict(pd.Series(texts))) <= set(y.tolist())


def test_a_table_is_read_by_its_columns_names(tiny_folder: Path) -> None:
    table = pd.DataFrame({"title": [f"hen {n}" for n in range(20)], "price": np.arange(20) / 3})
    fitted = LabelTuneClassifier(str(tiny_folder), settings=QUICK).fit(table, ["a", "b"] * 10)
    assert fitted._texts(table[:1], reset=False) == ["title: hen 0\nprice: 0"]
    assert list(fitted.feature_names_in_) == ["title", "price"]
    with pytest.raises(ValueError, match="feature names"):
        fitted.predict(table[["price", "title"]])


def test_what_cannot_be_read_is_refused(classifier: LabelTuneClassifier, tagger: LabelTuneTagger) -> None:
    with pytest.raises(DataError, match=r"X\[1\]: the text is empty"):
        classifier.predict(["the hen", " "])
    for wrong in ("a text", ["a text"], [3], []):
        with pytest.raises(ValueError, match="token lists"):
            tagger.predict(wrong)
    with pytest.raises(ValueError, match="one class"):
        clone(classifier).fit(["a", "b"], ["x", "x"])


# To disk and back


def test_saved_or_pickled_it_answers_alike(classifier: LabelTuneClassifier, moods, tmp_path: Path) -> None:
    before = classifier.predict_proba(moods[0])
    classifier.save(tmp_path / "saved")
    loaded = LabelTuneClassifier.load(tmp_path / "saved")
    assert loaded.get_params() == classifier.get_params()
    for other in (loaded, pickle.loads(pickle.dumps(classifier))):
        assert np.array_equal(other.predict_proba(moods[0]), before)
    with pytest.raises(RunError, match="already there"):
        classifier.save(tmp_path / "saved")
    with pytest.raises(RunError, match="this is a LabelTuneClassifier, no LabelTuneTagger"):
        LabelTuneTagger.load(tmp_path / "saved")


def test_what_is_saved_is_a_run_folder_too(classifier: LabelTuneClassifier, moods, tmp_path: Path) -> None:
    from labeltune import load

    classifier.save(tmp_path / "saved")
    answers = load(tmp_path / "saved" / "run").predict(moods[0])
    assert [answer.label for answer in answers] == list(classifier.predict(moods[0]))


@pytest.mark.parametrize("settings", [{"data.template": "Read Bob: {tokens}"}, {"data.normal_form": "NFKC"}], ids=str)
def test_tags_sit_on_the_tokens_as_they_were_given(names, tiny_folder: Path, tmp_path: Path, settings) -> None:
    company = "\u337f"  # one sign, of which NFKC makes four
    tokens = [[company, *row] for row in names[0]]
    tags = [["O", "B-PER", *["O"] * (len(row) - 2)] for row in tokens]
    learn = {"train.threads": 1, **settings}
    fitted = LabelTuneTagger(str(tiny_folder), lr=1e-2, epochs=40, settings=learn).fit(tokens, tags)
    fitted.save(tmp_path / "saved")
    rows = [{"tokens": words, "tags": gold} for words, gold in zip(tokens, tags, strict=True)]
    found = evaluate(tmp_path / "saved" / "run", rows).metrics["span_f1"]
    assert fitted.score(tokens, tags) == pytest.approx(found) and found > 0.5


def test_a_tagger_gives_a_tag_for_each_token(tagger: LabelTuneTagger, names, tmp_path: Path) -> None:
    tokens, tags = names
    found = tagger.predict(tokens)
    assert [len(row) for row in found] == [len(row) for row in tokens]
    assert {tag for row in found for tag in row} <= {"O", "B-PER", "B-LOC", "I-LOC"}
    assert list(tagger.predict([[], tokens[0], []])) == [[], found[0], []]
    assert 0 <= tagger.score(tokens, tags) <= 1 and tagger.score(tokens, found) in (0.0, 1.0)
    tagger.save(tmp_path / "saved")
    for other in (LabelTuneTagger.load(tmp_path / "saved"), pickle.loads(pickle.dumps(tagger))):
        assert list(other.predict(tokens)) == list(found) and list(other.labels_) == ["LOC", "PER"]
