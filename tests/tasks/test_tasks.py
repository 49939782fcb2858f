"""One contract for every row of TASKS, and what is particular to each."""

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional

from labeltune.answers import Wish
from labeltune.data.settings import DataConfig
from labeltune.errors import DataError, SettingsError
from labeltune.labels import LabelSet
from labeltune.metrics import METRICS
from labeltune.model.crf import CRF
from labeltune.model.settings import HeadConfig
from labeltune.schema import Example, Span
from labeltune.tasks import TASKS, Calibration

TEXT = "Ann saw Bo in Rome"
UNITS = [(0, 3), (4, 7), (8, 10), (11, 13), (14, 18)]
DATA = DataConfig(label_order=None)
ORDER = DataConfig(label_order=("low", "mid", "high"))
GOLD = {
    "classification": ["b", "a", "c", "a"],
    "multilabel": [("a", "c"), (), ("b",), "c"],
    "regression": [0.5, 2.0, "-1", 0.25],
    "ordinal": ["low", "high", "mid", "low"],
    "tagging": [
        (Span(0, 3, "PER"), Span(8, 10, "PER"), Span(14, 18, "LOC")),
        (),
        (Span(0, 7, "ORG"),),
        (Span(4, 10, "PER"), Span(11, 18, "PER")),
    ],
}


def examples(name, gold=None):
    kind = "spans" if name == "tagging" else "label"
    return [Example(f"x.jsonl:{i + 1}", TEXT, **{kind: g}) for i, g in enumerate(gold or GOLD[name])]


def settled(name, rows=None):
    return TASKS[name].label_set(rows or examples(name), ORDER if name == "ordinal" else DATA)


def units(name):
    return UNITS if name == "tagging" else [(0, len(TEXT))]


def perfect(name, targets, labels):
    """Logits that leave no doubt about the targets."""
    width = TASKS[name].width(labels)
    if name == "regression":
        return targets[:, None]
    if name == "multilabel":
        return 20 * (2 * targets - 1)
    if name == "ordinal":
        return 20.0 * (2 * (targets[:, None] > np.arange(width)) - 1)
    return 20 * np.eye(width, dtype=np.float32)[targets]


def answered(name, rows, labels, logits):
    spans = [np.array(units(name))] * len(rows)
    documents = np.repeat(np.arange(len(rows)), len(units(name)))
    decisions = TASKS[name].decide(torch.as_tensor(logits), torch.as_tensor(documents), labels)
    return TASKS[name].predictions(rows, spans, decisions, labels)


def targets_of(name, rows, labels):
    label_of = TASKS[name].label_of(labels)
    return np.concatenate([label_of(row, units(name)) for row in rows])


@pytest.mark.parametrize("name", TASKS)
def test_perfect_logits_give_the_gold_and_perfect_figures(name):
    task, rows, labels = TASKS[name], examples(name), settled(name)
    targets = targets_of(name, rows, labels)
    logits = perfect(name, targets, labels)
    assert logits.shape == (len(targets), task.width(labels))
    predictions = answered(name, rows, labels, logits)
    figures = task.score(rows, predictions, labels)
    assert set(figures) == set(task.metrics) <= set(METRICS)
    for metric, value in figures.items():
        assert value == pytest.approx(1.0 if task.higher_is_better(metric) else 0.0, abs=1e-6), metric
    documents = torch.from_numpy(np.repeat(np.arange(len(rows)), len(units(name))))
    total, weight = task.loss(HeadConfig(), labels, None)(
        torch.from_numpy(np.float32(logits)), torch.from_numpy(targets), documents
    )
    assert total.item() == pytest.approx(0, abs=1e-5) and weight == len(targets)


@pytest.mark.parametrize("name", TASKS)
def test_targets_have_the_dtype_of_the_batch_and_unlabelled_ones_no_weight(name):
    task, labels = TASKS[name], settled(name)
    row = Example("x", TEXT)
    targets = task.label_of(labels)(row, units(name))
    assert targets.dtype == targets_of(name, examples(name), labels).dtype
    assert targets.dtype == (np.int64 if name in ("classification", "ordinal", "tagging") else np.float32)
    logits = torch.randn(len(targets), task.width(labels))
    sums = task.loss(HeadConfig(), labels, None)(
        logits, torch.from_numpy(targets), torch.zeros(len(targets), dtype=torch.int64)
    )
    assert sums == (0, 0)


@pytest.mark.parametrize("name", TASKS)
def test_a_row_without_gold_cannot_be_scored_or_trained_on_and_is_named(name):
    rows = [*examples(name), Example("x.jsonl:9", TEXT)]
    with pytest.raises(DataError, match=r"x\.jsonl:9"):
        settled(name, rows)


@pytest.mark.parametrize("name", TASKS)
def test_a_metric_of_another_task_does_not_select(name):
    with pytest.raises(SettingsError, match=r"train\.select"):
        TASKS[name].higher_is_better("bits_per_byte")
    assert TASKS[name].select in TASKS[name].metrics


@pytest.mark.parametrize("name", ["classification", "multilabel", "tagging"])
def test_labels_are_sorted_and_training_alone_decides_them(name):
    labels = settled(name)
    assert labels.names == tuple(sorted(labels.names)) and len(labels) == 3


# Single labels


@pytest.mark.parametrize("name", ["classification", "ordinal"])
def test_an_unseen_gold_label_is_an_error_and_is_named(name):
    task, rows, labels = TASKS[name], examples(name), settled(name)
    logits = perfect(name, targets_of(name, rows, labels), labels)
    odd = [*rows[:3], Example("x.jsonl:4", TEXT, label="new")]
    assert targets_of(name, odd, labels)[-1] == -1
    figures = task.score(odd, answered(name, odd, labels, logits), labels)
    assert figures["accuracy"] == 0.75 and figures["macro_f1"] < 0.8 and figures["log_loss"] > 3
    assert task.unseen(odd, labels) == ("new",)


def test_abstentions_have_no_label_and_are_counted():
    task, rows, labels = TASKS["classification"], examples("classification"), settled("classification")
    logits = perfect("classification", targets_of("classification", rows, labels), labels)
    logits[0] = [0.0, 0.1, 0.0]
    predictions = list(map(Wish(0.9).of, answered("classification", rows, labels, logits)))
    assert [p.label for p in predictions] == [None, "a", "c", "a"]
    figures = task.score(rows, predictions, labels)
    assert figures["coverage"] == figures["accuracy"] == 0.75


def test_scores_are_softmax_probabilities_divided_by_the_temperature():
    labels, logits = LabelSet(("a", "b", "c")), np.array([[1.0, 2.0, 4.0]])
    task = TASKS["classification"]
    decisions = task.decide(logits, np.array([0]), labels, Calibration(2.0))
    (prediction,) = task.predictions([Example("x", TEXT)], [np.array([(0, 18)])], decisions, labels)
    wanted = torch.softmax(torch.tensor(logits[0]) / 2, 0).tolist()
    assert dict(prediction.scores) == pytest.approx(dict(zip("abc", wanted, strict=True)))
    assert prediction.label == "c" and prediction.score == prediction.scores["c"]


def test_several_labels_are_refused_where_one_is_taken():
    with pytest.raises(DataError, match=r"x.jsonl:1: 2 labels where classification takes one; set task = 'multilabel'"):
        settled("classification", examples("classification", [("a", "b")]))


# Ordinal


def test_ordinal_needs_its_order_and_keeps_to_it():
    task, rows = TASKS["ordinal"], examples("ordinal")
    with pytest.raises(SettingsError, match="label_order"):
        task.label_set(rows, DATA)
    assert task.label_set(rows, ORDER).names == ("low", "mid", "high")
    with pytest.raises(DataError, match=r"x.jsonl:1: label 'hihg' .* did you mean 'high'"):
        task.label_set(examples("ordinal", ["hihg"]), ORDER)


def test_ordinal_answers_follow_from_the_thresholds():
    task, labels = TASKS["ordinal"], LabelSet(("low", "mid", "high"))
    above = np.array([[0.2, 0.1], [0.7, 0.4], [0.9, 0.8], [0.3, 0.6]])  # the last one crosses
    logits = np.log(above / (1 - above))
    decisions = task.decide(logits, np.arange(4), labels)
    assert decisions.answers.tolist() == [0, 1, 2, 0]
    assert np.allclose(decisions.probabilities[1], [0.3, 0.3, 0.4])
    assert np.allclose(decisions.probabilities[3], [0.7, 0.0, 0.3])
    rows = [Example(str(i), TEXT) for i in range(4)]
    values = [p.value for p in task.predictions(rows, [np.array([(0, 18)])] * 4, decisions, labels)]
    assert values == pytest.approx([0.3, 1.1, 1.7, 0.6])


def test_ordinal_without_a_bias_is_refused():
    with pytest.raises(SettingsError, match=r"head\.bias"):
        TASKS["ordinal"].loss(HeadConfig(bias=False), LabelSet(("low", "high")), None)


# Multilabel and regression


def test_multilabel_obeys_its_thresholds():
    labels, task = LabelSet(("a", "b")), TASKS["multilabel"]
    decisions = task.decide(np.zeros((1, 2)), np.array([0]), labels, Calibration(thresholds=(0.5, 0.6)))
    (prediction,) = task.predictions([Example("x", TEXT)], [np.array([(0, 18)])], decisions, labels)
    assert prediction.labels == ("a",) and prediction.scores == {"a": 0.5, "b": 0.5}
    assert Wish().of(prediction).scores == {"a": 0.5}


def test_an_unseen_label_in_a_set_is_an_error():
    rows, labels = examples("multilabel"), settled("multilabel")
    logits = perfect("multilabel", targets_of("multilabel", rows, labels), labels)
    odd = [Example("x.jsonl:1", TEXT, label=("a", "c", "new")), *rows[1:]]
    figures = TASKS["multilabel"].score(odd, answered("multilabel", odd, labels, logits), labels)
    assert figures["accuracy"] == 0.75 and figures["macro_f1"] == 0.75
    assert figures["log_loss"] > 1


@pytest.mark.parametrize("value", ["many", float("nan"), "inf", ("a",)])
def test_what_is_no_number_is_named(value):
    with pytest.raises(DataError, match=r"x.jsonl:1: label .* is no number"):
        settled("regression", examples("regression", [value]))


@pytest.mark.parametrize(("given", "mean", "std"), [({}, 2, 1), ({"mean": 0.0}, 0, 1), ({"mean": 1, "std": 5}, 1, 5)])
def test_the_unit_of_numbers_is_that_of_the_training_rows(given, mean, std):
    found = TASKS["regression"].in_units(HeadConfig(**given), examples("regression", [1.0, 3.0]))
    assert (found.mean, found.std) == (mean, std)


def test_numbers_too_close_for_32_bits_are_refused():
    with pytest.raises(DataError, match=r"head.mean: the numbers lie within 15 of 1.7e\+09.*; subtract"):
        TASKS["regression"].in_units(HeadConfig(), examples("regression", [1.7e9 - 15, 1.7e9 + 15]))


def test_equal_numbers_have_a_unit_too():
    assert TASKS["regression"].in_units(HeadConfig(), examples("regression", [7.0, 7.0])).std == 1


@pytest.mark.parametrize("name", [name for name in GOLD if name != "regression"])
def test_labels_have_no_unit(name):
    with pytest.raises(SettingsError, match=f"head.std: {name} learns no numbers"):
        TASKS[name].in_units(HeadConfig(std=2.0), examples(name))


def test_regression_does_not_abstain():
    (said, *_) = answered("regression", examples("regression"), LabelSet(()), np.zeros((4, 1)))
    assert Wish(scores=True).of(said) == said
    with pytest.raises(SettingsError, match="min_score"):
        Wish(0.5).of(said)


# Tagging


def test_full_gold_counts_cut_units_and_torn_spans_as_missed():
    task = TASKS["tagging"]
    gold = (Span(0, 3, "PER"), Span(8, 9, "PER"), Span(14, 18, "LOC"))  # found, torn, cut off
    rows, labels = examples("tagging", [gold]), LabelSet(("LOC", "PER"))
    read = np.array(UNITS[:4])
    targets = task.label_of(labels)(rows[0], read)
    assert targets.tolist() == [3, 0, 0, 0]
    decisions = task.decide(20 * np.eye(5)[targets], np.zeros(4, dtype=np.int64), labels)
    figures = task.score(rows, task.predictions(rows, [read], decisions, labels), labels)
    assert figures["span_precision"] == 1 and figures["span_recall"] == pytest.approx(1 / 3)
    assert task.read_part(rows[0], read).spans == gold[:2]


def test_a_span_has_characters_text_and_the_geometric_mean_of_its_units():
    task, labels = TASKS["tagging"], LabelSet(("PER",))
    p = np.array([[0.2, 0.7, 0.1], [0.1, 0.1, 0.8], [0.9, 0.05, 0.05], [0.9, 0.05, 0.05], [0.6, 0.3, 0.1]])
    decisions = task.decide(np.log(p), np.zeros(5, dtype=np.int64), labels)
    rows = examples("tagging", [()])
    ((span,),) = (p.spans for p in task.predictions(rows, [np.array(UNITS)], decisions, labels))
    assert (span.start, span.end, span.label, span.text) == (0, 7, "PER", "Ann saw")
    assert span.score == pytest.approx((0.7 * 0.8) ** 0.5)
    (said,) = task.predictions(rows, [np.array(UNITS)], decisions, labels)
    assert Wish(0.8).of(said).spans == () and Wish(0.7).of(said) == said


def test_documents_without_units_have_no_spans_and_shift_nobody():
    task, labels = TASKS["tagging"], LabelSet(("PER",))
    rows = [Example("1", ""), Example("2", TEXT), Example("3", "")]
    spans = [np.empty((0, 2), dtype=np.int32), np.array(UNITS), np.empty((0, 2), dtype=np.int32)]
    decisions = task.decide(20 * np.eye(3)[[1, 0, 0, 0, 0]], np.ones(5, dtype=np.int64), labels)
    assert [len(p.spans) for p in task.predictions(rows, spans, decisions, labels)] == [0, 1, 0]


class Chain:
    """A head, as far as a task looks at it."""

    def __init__(self, tags):
        self.crf = CRF(tags)


def test_a_crf_is_the_loss_and_the_decision():
    task, labels, head = TASKS["tagging"], LabelSet(("PER",)), Chain(3)
    head.crf.follow.data = torch.randn(3, 3, generator=torch.Generator().manual_seed(0))
    logits, documents = torch.randn(6, 3, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 0, 0, 1, 1, 1])
    tags = torch.tensor([1, 2, 0, 0, 1, 1])
    assert task.loss(HeadConfig(crf=True), labels, None, head)(logits, tags, documents)[1] == 2
    decisions = task.decide(logits, documents, labels, None, head)
    assert decisions.answers.tolist() == head.crf.decide(logits, documents).tolist()
    wanted = head.crf.marginals(logits, documents)[torch.arange(6), torch.from_numpy(decisions.answers)]
    assert np.allclose(decisions.probabilities, wanted)
    assert task.calibrate(logits, tags.numpy(), labels, head) == Calibration()


# Losses


def test_balanced_weights_are_scikit_learns():
    rows = ["a"] * 6 + ["b"] * 3 + ["c"]
    labels = LabelSet.of(rows)
    wanted = compute_class_weight("balanced", classes=np.array(labels.names), y=np.array(rows))
    assert np.allclose(TASKS["classification"].class_weights("balanced", labels, np.array([6, 3, 1])), wanted)


def test_class_weights_reach_the_loss():
    logits, gold = torch.randn(8, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0, 1, 2, 0, 0])
    settings = HeadConfig(class_weights={"b": 3.0}, label_smoothing=0.1)
    total, weight = TASKS["classification"].loss(settings, LabelSet(("a", "b", "c")), None)(logits, gold, gold)
    wanted = functional.cross_entropy(logits, gold, weight=torch.tensor([1.0, 3.0, 1.0]), label_smoothing=0.1)
    torch.testing.assert_close(total / weight, wanted)


def test_a_tagging_weight_names_a_label_or_a_tag():
    weights = TASKS["tagging"].class_weights({"PER": 2.0, "O": 0.5, "B-LOC": 3.0}, LabelSet(("LOC", "PER")), None)
    assert weights.tolist() == [0.5, 3.0, 1.0, 2.0, 2.0]


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("classification", {"crf": True}, "head.crf"),
        ("regression", {"loss": "focal"}, "head.loss"),
        ("regression", {"class_weights": "balanced"}, "head.class_weights"),
        ("regression", {"label_smoothing": 0.1}, "head.label_smoothing"),
        ("classification", {"loss": "focal", "label_smoothing": 0.1}, "head.label_smoothing"),
        ("classification", {"focal_gamma": 3.0}, "head.focal_gamma"),
        ("tagging", {"crf": True, "class_weights": "balanced"}, "head.class_weights"),
        ("classification", {"class_weights": {"aa": 1.0}}, "did you mean 'a'"),
        ("classification", {"class_weights": {"a": -1.0}}, "no weight"),
    ],
)
def test_what_a_loss_cannot_do_is_refused_by_the_setting(name, settings, said):
    with pytest.raises(SettingsError, match=said):
        TASKS[name].loss(HeadConfig(**settings), settled(name), np.ones(7))


def test_white_space_at_the_ends_of_a_gold_span_is_no_error():
    task, labels = TASKS["tagging"], LabelSet(("LOC",))
    example = Example("x.jsonl:1", "In Berlin 3 now", spans=(Span(2, 10, "LOC"),))
    units = np.array([(0, 2), (3, 9), (10, 11), (12, 15)])
    targets = task.label_of(labels)(example, units)
    logits = 20 * np.eye(task.width(labels), dtype=np.float32)[targets]
    decisions = task.decide(logits, np.zeros(len(targets), np.int64), labels)
    answers = task.predictions([example], [units], decisions, labels)
    assert [(span.start, span.end) for span in answers[0].spans] == [(3, 9)]
    assert task.score([example], answers, labels)["span_f1"] == 1
    assert task.error(example, answers[0]) == 0


def test_multilabel_calibration_is_counted_in_one_way():
    task, labels = TASKS["multilabel"], LabelSet(("a", "b"))
    rows = [Example(str(n), TEXT, label=gold) for n, gold in enumerate([("a",), (), ("a", "b"), ("b",)])]
    logits = np.array([[2, -1], [1, -2], [0.5, 0.3], [-1, -0.2]], np.float32)
    hot = np.array([[1, 0], [0, 0], [1, 1], [0, 1]], np.float32)
    fitted = task.calibrate(logits, hot, labels)
    decisions = task.decide(logits, np.arange(4), labels, fitted)
    answers = task.predictions(rows, [np.array([[0, len(TEXT)]])] * 4, decisions, labels)
    assert task.score(rows, answers, labels)["ece"] == pytest.approx(fitted.ece_after, abs=1e-5)


def test_weights_that_are_all_0_are_refused():
    with pytest.raises(SettingsError, match="all weights are 0"):
        TASKS["classification"].class_weights({"a": 0, "b": 0}, LabelSet(("a", "b")), None)
