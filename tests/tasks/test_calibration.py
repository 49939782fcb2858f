"""Temperature and thresholds: known values are found again, and what is fitted survives JSON."""

import json

import numpy as np
import pytest
import sklearn.metrics as sk

from labeltune.errors import RunError
from labeltune.labels import LabelSet
from labeltune.schema import Example
from labeltune.tasks import TASKS, Calibration
from labeltune.tasks.calibration import RANGE, fit_thresholds

LABELS = LabelSet(("a", "b", "c"))
GENERATOR = np.random.default_rng(0)


def drawn(rows, temperature):
    """Logits that are too sure by `temperature`, and labels drawn from the true probabilities."""
    logits = GENERATOR.normal(size=(rows, 3)) * 2
    gumbel = GENERATOR.gumbel(size=logits.shape)
    return logits * temperature, (logits + gumbel).argmax(1)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_fit_recovers_a_known_temperature(temperature):
    logits, gold = drawn(6000, temperature)
    fitted = TASKS["classification"].calibrate(logits, gold, LABELS)
    assert fitted.temperature == pytest.approx(temperature, rel=0.08)
    assert fitted.log_loss_after <= fitted.log_loss_before + 1e-9
    assert fitted.ece_after < 0.03


def test_a_multilabel_temperature_is_recovered_too():
    logits = GENERATOR.normal(size=(3000, 3)) * 2
    gold = (logits + GENERATOR.logistic(size=logits.shape) > 0).astype(np.float32)
    fitted = TASKS["multilabel"].calibrate(logits * 2, gold, LABELS)
    assert fitted.temperature == pytest.approx(2, rel=0.1)


def test_the_errors_of_an_order_are_those_of_its_answers():
    """An ordinal answer is the median, not the likeliest label."""
    task, random = TASKS["ordinal"], np.random.default_rng(1)
    logits = 1.5 * random.normal(size=(400, 1)) + np.array([[1.2, 0.0, -1.2]])
    gold = random.integers(0, 4, 400)
    order = LabelSet(("a", "b", "c", "d"))
    fitted = task.calibrate(logits, gold, order)
    rows = [Example(f"x:{n}", "t", label=order.names[g]) for n, g in enumerate(gold)]
    for temperature, found in ((1.0, fitted.ece_before), (fitted.temperature, fitted.ece_after)):
        decided = task.decide(logits, np.arange(400), order, Calibration(temperature))
        assert (decided.answers != decided.probabilities.argmax(1)).any()
        said = task.predictions(rows, [np.array([[0, 1]])] * 400, decided, order)
        assert task.score(rows, said, order)["ece"] == pytest.approx(found, abs=1e-6)


@pytest.mark.parametrize("name", ["classification", "tagging"])
def test_unlabelled_rows_do_not_matter_and_none_at_all_fit_nothing(name):
    labels = LABELS if name == "classification" else LabelSet(("x",))
    logits, gold = drawn(200, 2.0)
    more = np.concatenate([logits, 9 * logits[:50]]), np.concatenate([gold, np.full(50, -1)])
    assert TASKS[name].calibrate(*more, labels) == TASKS[name].calibrate(logits, gold, labels)
    assert TASKS[name].calibrate(logits, np.full(200, -1), labels) == Calibration()


def test_a_small_dev_set_without_error_does_not_ask_for_certainty():
    logits = np.eye(3)[[0, 1, 2, 0, 1, 2, 0, 1]] * 2.0
    fitted = TASKS["classification"].calibrate(logits, logits.argmax(1), LABELS)
    answer = TASKS["classification"].decide(logits, np.arange(8), LABELS, fitted)
    assert fitted.temperature > RANGE[0] * 2
    assert 0.85 < answer.probabilities.max() < 0.98


def test_thresholds_have_the_best_f1_of_all_cuts():
    probabilities = GENERATOR.random((60, 4)).round(1)  # with ties
    gold = (GENERATOR.random((60, 4)) < 0.3 + 0.4 * probabilities).astype(np.float32)
    for k, threshold in enumerate(fit_thresholds(probabilities, gold)):
        cuts = [sk.f1_score(gold[:, k], probabilities[:, k] >= cut) for cut in np.linspace(0, 1, 101)]
        found = sk.f1_score(gold[:, k], probabilities[:, k] >= threshold)
        assert found == pytest.approx(max(cuts))


def test_a_label_that_dev_lacks_keeps_one_half():
    assert fit_thresholds(np.array([[0.9], [0.1]]), np.zeros((2, 1))) == (0.5,)


def test_what_was_fitted_survives_json():
    fitted = Calibration(1.37, (0.1, 1 / 3), 0.5, 0.4, 0.1, 0.05)
    assert Calibration.from_json(json.loads(json.dumps(fitted.to_json()))) == fitted
    assert Calibration.from_json({}) == Calibration()
    assert Calibration().to_json() == {"temperature": 1.0}


@pytest.mark.parametrize(
    "facts", [{"temperature": 0}, {"temperature": "1"}, {"heat": 1}, {"thresholds": 0.5}, {"thresholds": ["x"]}]
)
def test_a_decision_that_cannot_be_is_refused(facts):
    if facts == {"thresholds": 0.5}:
        facts = {"thresholds": None}
    with pytest.raises(RunError):
        Calibration.from_json(facts)
