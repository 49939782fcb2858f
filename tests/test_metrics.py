"""Metrics against scikit-learn, seqeval and scipy."""

import warnings

import numpy as np
import pytest
import sklearn.metrics as sk
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.preprocessing import MultiLabelBinarizer

from labeltune import metrics
from labeltune.labels import LabelSet, spans_of, tag_names

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from seqeval.metrics import v1 as seqeval
    from seqeval.scheme import IOB2

names = st.sampled_from(["a", "b", "c", "d"])
rows = st.lists(st.tuples(names, names), min_size=1, max_size=30)
sets = st.sets(names, max_size=3)


@settings(max_examples=80, deadline=None)
@given(rows)
def test_single_label_figures_equal_scikit_learn(pairs):
    gold, answers = map(list, zip(*pairs, strict=True))
    ours = metrics.single_label(gold, answers)
    assert ours.pop("coverage") == 1
    wanted = {"accuracy": sk.accuracy_score(gold, answers), "mcc": mcc_of_sklearn(gold, answers)}
    for average in ("macro", "micro", "weighted"):
        figures = sk.precision_recall_fscore_support(gold, answers, average=average, zero_division=0)
        wanted |= dict(zip((f"{average}_precision", f"{average}_recall", f"{average}_f1"), figures, strict=False))
    assert ours == pytest.approx({name: wanted[name] for name in ours})


def mcc_of_sklearn(gold, answers):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return sk.matthews_corrcoef(gold, answers)


@settings(max_examples=80, deadline=None)
@given(rows)
def test_per_label_table_and_confusion_equal_scikit_learn(pairs):
    gold, answers = map(list, zip(*pairs, strict=True))
    found = tuple(sorted({*gold, *answers}))
    if len(found) < 2:  # scikit-learn warns
        return
    table = sk.confusion_matrix(gold, answers, labels=found)
    np.fill_diagonal(table, 0)
    confused = metrics.confused(gold, answers)
    assert {(g, a): n for g, a, n in confused} == {(found[g], found[a]): table[g, a] for g, a in np.argwhere(table)}
    assert [one.rows for one in confused] == sorted((one.rows for one in confused), reverse=True)
    wanted = sk.precision_recall_fscore_support(gold, answers, zero_division=0)
    per_label = metrics.label_hits(gold, answers).per_label()
    assert tuple(row.label for row in per_label) == found
    ours = [[row.precision, row.recall, row.f1, row.support] for row in per_label]
    assert np.allclose(np.array(ours).T, np.array(wanted))


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(sets, sets), min_size=1, max_size=20))
def test_multi_label_figures_equal_scikit_learn(pairs):
    gold, answers = map(list, zip(*pairs, strict=True))
    ours = metrics.multi_label(gold, answers)
    binary = MultiLabelBinarizer().fit([*gold, *answers])
    if len(binary.classes_) < 2:  # scikit-learn takes one column for a yes-or-no label
        return
    wanted, given_ = binary.transform(gold), binary.transform(answers)
    assert ours["accuracy"] == pytest.approx(sk.accuracy_score(wanted, given_))
    for average in ("macro", "micro", "weighted"):
        f1 = sk.f1_score(wanted, given_, average=average, zero_division=0)
        assert ours[f"{average}_f1"] == pytest.approx(f1)


TAGS = tag_names(LabelSet(("LOC", "ORG", "PER")))
tag_row = st.lists(st.tuples(st.sampled_from(TAGS), st.sampled_from(TAGS)), min_size=1, max_size=10)


@settings(max_examples=1000, deadline=None)
@given(st.lists(tag_row, min_size=1, max_size=4))
def test_span_scores_equal_seqevals_strict_ones(pairs):
    gold = [[a for a, _ in row] for row in pairs]
    answers = [[b for _, b in row] for row in pairs]
    hits = metrics.span_hits(map(spans_of, gold), map(spans_of, answers))
    ours = metrics.span_scores(hits)
    if not hits.gold and not hits.answered:
        assert set(ours.values()) == {0.0}
        return
    for average, prefix in (("micro", "span_"), ("macro", "macro_span_")):
        figures = seqeval.precision_recall_fscore_support(gold, answers, average=average, scheme=IOB2, zero_division=0)
        wanted = dict(zip((f"{prefix}precision", f"{prefix}recall", f"{prefix}f1"), figures, strict=False))
        for name in wanted.keys() & ours.keys():
            assert ours[name] == pytest.approx(float(wanted[name])), name


def test_spans_of_different_rows_never_match():
    hits = metrics.span_hits([[(0, 1, "x")], []], [[], [(0, 1, "x")]])
    assert metrics.span_scores(hits)["span_f1"] == 0


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=2, max_size=20))
def test_numbers_equal_scikit_learn_and_scipy(pairs):
    gold, answers = np.array(pairs, dtype=np.float64).T
    ours = metrics.numbers(gold, answers)
    assert ours["mse"] == pytest.approx(sk.mean_squared_error(gold, answers))
    if np.ptp(gold) and np.ptp(answers):
        assert ours["spearman"] == pytest.approx(stats.spearmanr(gold, answers).statistic)
    else:
        assert ours["spearman"] == 0


def test_log_loss_equals_scikit_learn_also_for_certain_errors():
    generator = np.random.default_rng(0)
    probabilities = generator.dirichlet(np.full(4, 0.3), size=50).astype(np.float32)
    probabilities[0] = [1, 0, 0, 0]
    gold = np.concatenate([[1], generator.integers(0, 4, 49)])
    wanted = sk.log_loss(gold, probabilities, labels=range(4))
    assert metrics.log_loss(probabilities[np.arange(50), gold]) == pytest.approx(wanted, rel=1e-4)


def test_ece_equals_a_loop_over_15_bins():
    generator = np.random.default_rng(0)
    confidence, right = generator.random(500), generator.random(500) < 0.6
    wanted = 0.0
    for k in range(15):
        inside = (confidence > k / 15) & (confidence <= (k + 1) / 15)
        if inside.any():
            wanted += abs(right[inside].mean() - confidence[inside].mean()) * inside.mean()
    assert metrics.ece(confidence, right) == pytest.approx(wanted)
    assert metrics.ece(np.ones(4), np.array([True, True, True, False])) == pytest.approx(0.25)


def test_an_unknown_gold_label_counts_as_an_error():
    known = metrics.single_label(["a", "a"], ["a", "a"])
    unknown = metrics.single_label(["a", "a", "new"], ["a", "a", "a"])
    assert known["accuracy"] == known["macro_f1"] == 1
    assert unknown["accuracy"] == pytest.approx(2 / 3)
    assert unknown["macro_f1"] == pytest.approx((0.8 + 0) / 2)


def test_an_abstention_is_an_error_and_lowers_coverage():
    figures = metrics.single_label(["a", "b", "b", "a"], ["a", None, "b", "b"])
    assert figures["accuracy"] == 0.5 and figures["coverage"] == 0.75
    assert figures["micro_f1"] == pytest.approx(4 / 7)
    assert metrics.confused(["a", "b", "b"], ["a", None, "a"]) == [("b", "a", 1)]


def test_nothing_to_score_is_zero_not_an_error():
    assert set(metrics.single_label([], []).values()) == {0.0}
    assert set(metrics.multi_label([], []).values()) == {0.0}
    assert set(metrics.span_scores(metrics.span_hits([], [])).values()) == {0.0}
    assert set(metrics.numbers(np.empty(0), np.empty(0)).values()) == {0.0}
    assert metrics.log_loss(np.empty(0)) == metrics.ece(np.empty(0), np.empty(0, bool)) == 0
