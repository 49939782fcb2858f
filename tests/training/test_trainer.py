"""The loop against padded stock transformers, and its laws: Mean, addressed randomness, resume, best weights."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice

import numpy as np
import pytest
import torch
from transformers import AutoModel

from labeltune.keys import Key
from labeltune.model.settings import HeadConfig, LoraConfig, ModelConfig
from labeltune.training.checkpoint import load_state, save_state
from labeltune.training.order import Order
from labeltune.training.settings import TrainConfig
from labeltune.training.trainer import Group, Step, train
from labeltune.training.trial import Trial, restore, state_of

DROPPED = LoraConfig(rank=4, dropout=0.3)


def run(trial: Trial, steps: int | None = None) -> list[Step]:
    group = Group(trial.backbone)
    group.admit(trial)
    done = list(islice(train(group), steps))
    group.model.detach()
    return done


def difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The largest relative change of a tensor, ‖Δw‖/‖w‖."""
    return max(float((one[n] - w).norm() / w.norm().clamp(min=1e-12)) for n, w in other.items())


def stock_gradients(trial: Trial, folder: object, pooling: str, pool_on: str) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of the first step: stock `AutoModel`, padded rows, PyTorch alone (B = 0, so A has none)."""
    _, rows, _ = trial.order.at(0)
    encoded = [trial.rows[row] for row in rows]
    body = AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
    longest = max(len(e.tokens) for e in encoded)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    mask = torch.zeros(len(rows), longest, dtype=torch.long)
    for i, e in enumerate(encoded):
        ids[i, : len(e.tokens)] = torch.from_numpy(e.tokens.astype("int64"))
        mask[i, : len(e.tokens)] = 1
    adapted = {}
    adapter = trial.member.adapter
    modules = dict(body.named_modules())
    for name in adapter.names:
        a, b = (p.detach().clone().requires_grad_() for p in adapter.pair(name))
        adapted[name] = (a, b)
        modules[name].register_forward_hook(
            lambda m, x, y, a=a, b=b: y + adapter.scaling * (x[0] @ a.T @ b.T)  # stock LoRA, written out
        )
    head = trial.member.head.weight.detach().clone().requires_grad_()
    hidden = body(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    pooled = []
    for i, e in enumerate(encoded):
        inside = hidden[i, 1 : len(e.tokens)]  # the row without its BOS
        if pool_on == "logits":
            pooled.append((inside @ head.T).amax(0))
        else:
            vector = {"last": inside[-1], "mean": inside.mean(0), "max": inside.amax(0)}[pooling]
            pooled.append(vector @ head.T)
    labels = torch.tensor([int(e.labels[0]) for e in encoded])
    loss = torch.nn.functional.cross_entropy(torch.stack(pooled), labels)
    loss.backward()
    gradients = {"head.weight": head.grad}
    for name, (a, b) in adapted.items():
        gradients[f"A {name}"], gradients[f"B {name}"] = a.grad, b.grad
    return loss.item(), gradients


@pytest.mark.parametrize(
    ("pooling", "pool_on"), [("last", "hidden"), ("mean", "hidden"), ("max", "hidden"), ("max", "logits")]
)
def test_a_packed_step_has_the_loss_and_gradients_of_a_padded_stock_step(
    make_trial, tiny_folder, pooling, pool_on
) -> None:
    trial = make_trial(model=ModelConfig(pooling=pooling, pool_on=pool_on), clip=0)
    with torch.no_grad():  # B leaves zero, so that A has gradients
        for name in trial.member.adapter.names:
            _, b = trial.member.adapter.pair(name)
            b.copy_(torch.linspace(-0.3, 0.3, b.numel()).reshape(b.shape))
    loss, stock = stock_gradients(trial, tiny_folder, pooling, pool_on)
    (step,) = run(trial, 1)
    ours = {"head.weight": trial.member.head.weight.grad}
    for name in trial.member.adapter.names:
        a, b = trial.member.adapter.pair(name)
        ours[f"A {name}"], ours[f"B {name}"] = a.grad, b.grad
    assert step.loss == pytest.approx(loss, rel=1e-5)
    for name, gradient in stock.items():
        scale = float(gradient.abs().max())
        assert float((ours[name] - gradient).abs().max()) <= 1e-4 * scale, name


@pytest.mark.parametrize("change", [{"accumulate": 3}, {"micro_tokens": 40}, {"accumulate": 8}], ids=str)
def test_accumulation_and_micro_batches_change_nothing_but_rounding(make_trial, change) -> None:
    plain, divided = (
        make_trial(lora=DROPPED, head=HeadConfig(dropout=0.2)),
        make_trial(lora=DROPPED, head=HeadConfig(dropout=0.2), **change),
    )
    run(plain), run(divided)
    assert difference(divided.weights(), plain.weights()) <= 1e-4


def test_the_order_of_rows_in_a_step_changes_nothing_but_rounding(make_trial) -> None:
    forth, back = make_trial(lora=DROPPED), make_trial(lora=DROPPED)
    at = back.order.at
    back.order.at = lambda step: (at(step)[0], at(step)[1][::-1], at(step)[2])
    run(forth), run(back)
    assert difference(back.weights(), forth.weights()) <= 1e-4


def test_class_weights_divide_by_the_weights_of_the_whole_step(make_trial) -> None:
    head = HeadConfig(class_weights={"a": 3.0, "b": 0.5})
    plain, divided = make_trial(head=head), make_trial(head=head, accumulate=4)
    run(plain), run(divided)
    assert difference(divided.weights(), plain.weights()) <= 1e-4


def test_checkpointing_changes_no_bit_of_the_dropout(make_trial) -> None:
    plain, again = make_trial(lora=DROPPED), make_trial(lora=DROPPED, model=ModelConfig(checkpointing="on"))
    run(plain), run(again)
    assert difference(again.weights(), plain.weights()) <= 1e-6


def test_dropout_differs_between_epochs_and_rows_of_equal_text(make_trial) -> None:
    trial = make_trial(lora=DROPPED, order=[0] * 8, warmup=0)
    other = make_trial(order=[0] * 8, warmup=0)
    losses = [step.loss for step in run(trial)]
    run(other)
    assert difference(trial.weights(), other.weights()) > 1e-3 and losses[0] != losses[1]


@pytest.mark.parametrize("stop", [1, 4, 7])
def test_a_restored_trial_ends_with_the_same_bits(make_trial, tmp_path, stop) -> None:
    def figures() -> dict[str, float]:
        return {"macro_f1": next(values)}

    values = iter([0.3, 0.9])
    whole = make_trial(lora=DROPPED, evaluate=figures)
    run(whole)
    values = iter([0.3, 0.9])
    first = make_trial(lora=DROPPED, evaluate=figures)
    group = Group(first.backbone)
    group.admit(first)
    list(islice(train(group), stop))
    save_state(tmp_path / "c", state_of(first))
    second = make_trial(lora=DROPPED, evaluate=figures)
    restore(second, load_state(tmp_path / "c"))
    run(second)
    assert all(torch.equal(w, whole.weights()[name]) for name, w in second.weights().items())
    assert (second.best_step, second.best_value) == (whole.best_step, whole.best_value)


def test_the_best_weights_are_copied_and_put_back(make_trial) -> None:
    seen = []
    values = iter([0.9, 0.1, 0.2])
    trial = make_trial(epochs=3, evaluate=lambda: seen.append(trial.weights()) or {"macro_f1": next(values)})
    run(trial)
    assert trial.best_epoch == 1
    assert all(torch.equal(w, seen[0][name]) for name, w in trial.weights().items())


@pytest.mark.parametrize(("losses", "epoch"), [([0.9, 0.7, 0.8], 2), ([0.7, 0.7, 0.9], 1), ([0.9, 0.8, 0.1], 3)])
def test_of_equal_scores_the_lowest_dev_loss_wins_and_is_no_progress(make_trial, losses, epoch) -> None:
    values = iter(losses)
    trial = make_trial(epochs=4, patience=2, evaluate=lambda: {"macro_f1": 0.0, "loss": next(values)})
    seen = [step.evaluation.best for step in run(trial) if step.evaluation]
    assert (trial.status, trial.best_epoch, trial.best_loss) == ("stopped early", epoch, min(losses))
    assert seen == [loss < min(losses[:number], default=1) for number, loss in enumerate(losses)]


def test_patience_stops_the_trial(make_trial) -> None:
    values = iter([0.9, 0.1, 0.2, 0.95])
    trial = make_trial(epochs=4, patience=2, evaluate=lambda: {"macro_f1": next(values)})
    steps = run(trial)
    assert trial.status == "stopped early" and steps[-1].epoch == 3


def test_a_loss_that_is_no_longer_finite_ends_the_trial_with_its_best_weights(make_trial) -> None:
    trial = make_trial(lr=1e30, clip=0, epochs=3)
    steps = run(trial)
    assert trial.status == "diverged" and steps[-1].last


def test_trials_side_by_side_end_as_they_do_alone(make_trial) -> None:
    settings = [
        dict(lr=1e-3, seed=1),
        dict(lr=5e-4, lora=DROPPED, batch_rows=5),
        dict(lr=1e-3, model=ModelConfig(unmask="all")),
    ]
    alone = [make_trial(**s) for s in settings]
    for trial in alone:
        run(trial)
    backbone = make_trial().backbone
    together = [make_trial(backbone=backbone, **s) for s in settings]
    group = Group(backbone)
    for trial in together:
        group.admit(trial)
    list(train(group))
    for one, other in zip(together, alone, strict=True):
        assert difference(one.weights(), other.weights()) <= 1e-4


def test_a_step_of_all_trials_is_one_pass_of_the_backbone(make_trial) -> None:
    backbone = make_trial().backbone
    group, passes = Group(backbone), []
    for seed in range(3):
        group.admit(make_trial(backbone=backbone, batch_rows=2 + seed, steps=4))
    handle = backbone.blocks[0].register_forward_hook(lambda *_: passes.append("forward"))
    last = backbone.blocks[-1].register_full_backward_hook(lambda *_: passes.append("backward"))
    steps = list(train(group))
    handle.remove()
    last.remove()
    assert len(steps) == 3 * 4 and passes == ["forward", "backward"] * 4


@pytest.mark.parametrize("words", [{"batch_rows": 3}, {"batch_tokens": 20}])
@pytest.mark.parametrize("epochs", [1, 2.5, 7])
def test_a_plan_lays_the_epochs_end_to_end(words, epochs) -> None:
    lengths = np.array([5, 9, 3, 7, 8, 20, 2, 4, 6, 1])
    plan = Order(lengths, TrainConfig(epochs=epochs, **words), Key.of(1))
    each = [plan.epoch_steps(epoch) for epoch in range(8)]
    flat = [(e, rows, rows is steps[-1]) for e, steps in enumerate(each) for rows in steps]
    assert plan.total == sum(map(len, each[: int(epochs)])) + math.ceil((epochs % 1) * len(each[int(epochs)]))
    assert [plan.at(step) for step in range(len(flat))] == flat
    assert [plan.at(step) for step in reversed(range(len(flat)))] == flat[::-1]


def test_a_late_step_is_found_without_the_epochs_before_it(monkeypatch) -> None:
    plan, laid = Order(np.ones(1000), TrainConfig(epochs=50), Key.of(1)), []
    monkeypatch.setattr(Order, "_epoch_steps", lambda self, epoch: laid.append(epoch) or [[0]] * 63)
    assert plan.at(49 * 63 + 5)[0] == 49 and plan.at(49 * 63 + 6)[0] == 49
    assert set(laid) <= {49}


def test_every_row_is_trained_on_once_an_epoch(make_trial) -> None:
    trial = make_trial()
    seen: list[int] = []
    for step in range(5):
        epoch, rows, _ = trial.order.at(step)
        seen += rows
        assert epoch == 0
    assert sorted(seen) == list(range(40))


@contextmanager
def memory_for(trial: Trial, tokens: int) -> Iterator[None]:
    """A machine whose memory ends at so many tokens in a forward pass."""

    def weigh(module: object, args: tuple[object, ...], words: dict[str, torch.Tensor]) -> None:
        if words["input_ids"].numel() > tokens:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    hook = trial.backbone.model.register_forward_pre_hook(weigh, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


def test_where_memory_runs_out_the_step_is_done_in_halves_and_ends_the_same(make_trial) -> None:
    plain, small = make_trial(lora=DROPPED), make_trial(lora=DROPPED)
    run(plain)
    most = int(max(small.rows.lengths))
    with memory_for(small, most):
        steps = run(small)
    assert small.status == "finished" and small.micro_tokens is not None and small.micro_tokens <= 2 * most
    assert steps[0].micro_tokens is not None and difference(small.weights(), plain.weights()) <= 1e-4


def test_trials_that_do_not_fit_side_by_side_go_one_by_one(make_trial) -> None:
    alone = [make_trial(seed=1, lora=DROPPED), make_trial(seed=2, batch_rows=5)]
    for trial in alone:
        run(trial)
    backbone = make_trial().backbone
    trials = [make_trial(backbone=backbone, seed=1, lora=DROPPED), make_trial(backbone=backbone, seed=2, batch_rows=5)]
    group = Group(backbone)
    for trial in trials:
        group.admit(trial)
    with memory_for(trials[0], int(max(trials[0].rows.lengths)) * 8):
        list(train(group))
    assert group.apart
    for one, other in zip(trials, alone, strict=True):
        assert difference(one.weights(), other.weights()) <= 1e-4


def test_a_row_that_no_memory_holds_ends_its_trial_and_no_other(make_trial) -> None:
    backbone = make_trial().backbone
    trials = [make_trial(backbone=backbone, seed=1), make_trial(backbone=backbone, seed=2, order=[0] * 8)]
    group = Group(backbone)
    for trial in trials:
        group.admit(trial)
    with memory_for(trials[0], int(trials[1].rows.lengths[0])):
        steps = list(train(group))
    assert [t.status for t in trials] == ["out of memory", "finished"]
    assert [step.last for step in steps if step.trial is trials[0]][-1]


def test_other_faults_of_a_pass_are_not_taken_for_it(make_trial) -> None:
    trial = make_trial()
    hook = trial.backbone.model.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("a fault")))
    with pytest.raises(RuntimeError, match="a fault"):
        run(trial)
    hook.remove()


def test_a_step_says_what_padding_would_have_been(make_trial) -> None:
    trial = make_trial()
    for step in run(trial, 3):
        _, rows, _ = trial.order.at(step.step - 1)
        lengths = trial.rows.lengths[rows]
        assert step.tokens == lengths.sum() and step.padded_tokens == len(rows) * lengths.max() >= step.tokens
