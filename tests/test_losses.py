"""Losses against torch's own, against naive loops, and their sums over parts of a step."""

import math

import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

from labeltune.labels import LabelSet
from labeltune.losses import LOSSES, bce, binary_focal, coral, cross_entropy, focal, mse
from labeltune.model.settings import HeadConfig
from labeltune.tasks import TASKS

S, L = 12, 4
GENERATOR = torch.Generator().manual_seed(0)
LOGITS = 3 * torch.randn(S, L, generator=GENERATOR)
LABELS = torch.randint(0, L, (S,), generator=GENERATOR)
MULTI = torch.randint(0, 2, (S, L), generator=GENERATOR).float()
NUMBERS = torch.randn(S, generator=GENERATOR)
WEIGHTS = torch.tensor([0.5, 1.0, 2.0, 3.0])


def mean(sums):
    return sums[0] / sums[1]


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_cross_entropy_equals_torchs_mean(weights, smoothing):
    ours = mean(cross_entropy(LOGITS, LABELS, class_weights=weights, label_smoothing=smoothing))
    wanted = functional.cross_entropy(LOGITS, LABELS, weight=weights, label_smoothing=smoothing)
    torch.testing.assert_close(ours, wanted)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_bce_equals_torchs_mean(weights):
    wanted = functional.binary_cross_entropy_with_logits(LOGITS, MULTI, pos_weight=weights)
    torch.testing.assert_close(mean(bce(LOGITS, MULTI, class_weights=weights)), wanted)


def test_bce_smoothing_moves_both_answers_to_the_middle():
    wanted = functional.binary_cross_entropy_with_logits(LOGITS, 0.9 * MULTI + 0.05)
    torch.testing.assert_close(mean(bce(LOGITS, MULTI, label_smoothing=0.1)), wanted)


def test_mse_equals_torchs():
    torch.testing.assert_close(mean(mse(LOGITS[:, :1], NUMBERS)), functional.mse_loss(LOGITS[:, 0], NUMBERS))


STOCK = {
    "classification": (AutoModelForSequenceClassification, "single_label_classification", LABELS),
    "multilabel": (AutoModelForSequenceClassification, "multi_label_classification", MULTI),
    "regression": (AutoModelForSequenceClassification, "regression", NUMBERS),
    "tagging": (AutoModelForTokenClassification, None, torch.randint(0, 2 * L + 1, (S, 6), generator=GENERATOR)),
}


@pytest.mark.parametrize("task", STOCK)
def test_the_loss_of_a_task_is_the_one_that_stock_transformers_trains_on(task, tiny_folder):
    model, problem, targets = STOCK[task]
    labels = LabelSet(tuple("abcd") if task != "regression" else ())
    width = TASKS[task].width(labels)
    stock = model.from_pretrained(tiny_folder, num_labels=width, problem_type=problem, pad_token_id=0).eval()
    with torch.no_grad():
        out = stock(input_ids=torch.randint(1, 50, (S, 6), generator=GENERATOR), labels=targets)
    loss = TASKS[task].loss(HeadConfig(), labels, None)
    per_target = targets if task == "multilabel" else targets.reshape(-1)
    found = mean(loss(out.logits.reshape(-1, width), per_target, torch.arange(len(per_target))))
    assert found == pytest.approx(out.loss.item(), rel=1e-5)


def test_focal_equals_its_formula_and_gamma_0_is_cross_entropy():
    p = LOGITS.softmax(1)[torch.arange(S), LABELS]
    wanted = (WEIGHTS[LABELS] * (1 - p) ** 2 * -p.log()).sum() / WEIGHTS[LABELS].sum()
    torch.testing.assert_close(mean(focal(LOGITS, LABELS, class_weights=WEIGHTS)), wanted)
    plain = cross_entropy(LOGITS, LABELS, class_weights=WEIGHTS)
    torch.testing.assert_close(focal(LOGITS, LABELS, class_weights=WEIGHTS, focal_gamma=0.0), plain)


def test_binary_focal_equals_its_formula_and_gamma_0_is_bce():
    p = torch.where(MULTI == 1, LOGITS.sigmoid(), 1 - LOGITS.sigmoid())
    wanted = (torch.where(MULTI == 1, WEIGHTS, 1.0) * (1 - p) ** 2 * -p.log()).mean()
    torch.testing.assert_close(mean(binary_focal(LOGITS, MULTI, class_weights=WEIGHTS)), wanted)
    plain = bce(LOGITS, MULTI, class_weights=WEIGHTS)
    torch.testing.assert_close(binary_focal(LOGITS, MULTI, class_weights=WEIGHTS, focal_gamma=0.0), plain)


def test_focal_has_a_finite_gradient_on_a_certain_target():
    logits = torch.tensor([[100.0, -100.0]], requires_grad=True)
    focal(logits, torch.tensor([0]), focal_gamma=0.5)[0].backward()
    assert logits.grad.isfinite().all()


def test_coral_equals_a_naive_loop():
    total = 0.0
    for row, rank in zip(LOGITS.tolist(), LABELS.tolist(), strict=True):
        for threshold, logit in enumerate(row):
            p = 1 / (1 + math.exp(-logit))
            total += -math.log(p if rank > threshold else 1 - p)
    ours, weight = coral(LOGITS, LABELS)
    assert ours.item() == pytest.approx(total, rel=1e-5) and weight == S


def labels_for(name):
    return {"bce": MULTI, "binary_focal": MULTI, "mse": NUMBERS}.get(name, LABELS)


@pytest.mark.parametrize("name", LOSSES)
def test_parts_of_a_step_add_up_to_the_whole(name):
    logits, labels = LOGITS[:, :1] if name == "mse" else LOGITS, labels_for(name)
    whole = LOSSES[name](logits, labels)
    parts = [LOSSES[name](logits[part], labels[part]) for part in (slice(0, 5), slice(5, 6), slice(6, S))]
    torch.testing.assert_close(tuple(sum(column) for column in zip(*parts, strict=True)), whole)


@pytest.mark.parametrize("name", LOSSES)
def test_an_unlabelled_target_changes_neither_sum_nor_gradient(name):
    width = 1 if name == "mse" else L
    logits = LOGITS[:, :width].clone().requires_grad_()
    labels = labels_for(name).clone()
    labels[3:] = -1 if labels.dtype == torch.int64 else float("nan")
    sums = LOSSES[name](logits, labels)
    torch.testing.assert_close(sums, LOSSES[name](logits[:3], labels[:3]))
    sums[0].backward()
    assert logits.grad.isfinite().all() and not logits.grad[3:].any()


@pytest.mark.parametrize("name", LOSSES)
def test_no_targets_give_zero(name):
    logits, labels = LOGITS[:0, : 1 if name == "mse" else L], labels_for(name)[:0]
    assert LOSSES[name](logits, labels) == (0, 0)
