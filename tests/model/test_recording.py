"""Recorded passes: padded to a shape and replayed, they train as the passes do.

What CUDA's graphs do is played here by running the pass again, over the recording's own tensors; everything around it,
padding, transfer, gradients and refusals, is the real thing. On a GPU the recorder compares each recording with the
pass itself before it uses it.
"""

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from labeltune.data.batches import pack
from labeltune.keys import Key
from labeltune.model import attention, recording
from labeltune.model.backbone import wrap
from labeltune.model.dropout import Dropout, _drop
from labeltune.model.layout import Layout
from labeltune.model.member import LabelModel, build
from labeltune.model.recording import Gradients, Padded, Recorder, Shape
from labeltune.model.settings import HeadConfig, LoraConfig, ModelConfig
from labeltune.schema import Batch, Encoded


class Replayed:
    """Graphs that compute: the recording's tensors may change, the function not."""

    def __init__(self, run, gradients: Gradients, pool: object) -> None:
        self.run, self.gradients, self.live = run, gradients, None

    def forward(self) -> Tensor:
        with torch.enable_grad():
            self.live = self.run()
        return self.live.detach()

    def backward(self, gradient: Tensor) -> None:
        found = torch.autograd.grad(self.live, self.gradients.parameters, gradient)
        for part, each in zip(self.gradients.parts, found, strict=True):
            part.add_(each)


class Inputs(recording.Inputs):
    """A CPU's attention takes each document's length from the layout, and its dropout the keys."""

    def fill(self, batch: Batch, layout: Layout, padded: Padded) -> None:
        super().fill(batch, layout, padded)
        self.layout = replace(self.layout, lengths=tuple(padded.lengths.tolist()), keys=layout.keys)


def row(number: int, length: int) -> Encoded:
    zero, whole = np.zeros(1, np.int32), np.array([length], np.int32)
    tokens = np.random.default_rng(number).integers(3, 40, length).astype(np.int32)
    return Encoded(tokens, whole, zero, whole, whole, zero, np.array([[0, 1]], np.int32), np.array([number % 2]))


def model(tiny_model, slices: int, unmask: str = "none", pooling: str = "mean", rate: float = 0.3) -> LabelModel:
    backbone = wrap(tiny_model("llama"))
    words = {"task_unmask": unmask, "task_pooling": pooling, "task_bias": True, "width": 2}
    members = [
        build(backbone, ModelConfig(), LoraConfig(rank=2 + k, dropout=rate), HeadConfig(), key=Key.of(k), **words)
        for k in range(slices)
    ]
    for member in members:
        for weight in member.adapter.B.values():
            torch.nn.init.normal_(weight, 0, 0.1, generator=torch.Generator().manual_seed(1))
    return LabelModel(backbone, members)


def recorded(plain: LabelModel, monkeypatch: pytest.MonkeyPatch) -> Recorder:
    monkeypatch.setattr(recording, "Inputs", Inputs)
    monkeypatch.setattr(recording, "SIGHTINGS", 1)
    plain.backbone.records = True
    plain._recorder.record = Replayed
    return plain._recorder


def step(of: LabelModel, slices: list[list[tuple[int, int]]], seed: int = 0) -> list[Tensor]:
    """The logits of one pass; its gradients are added to what is there."""
    batch = pack([[(number, row(number, length)) for number, length in part] for part in slices])
    logits = of(batch, [Key.of(seed + k) for k in range(len(slices))])
    losses = [torch.nn.functional.cross_entropy(*each) for each in zip(logits, batch.labels, strict=True)]
    torch.stack(losses).sum().backward()
    return [each.detach() for each in logits]


def gradients(of: LabelModel) -> Tensor:
    found = [p.grad.flatten() for p in of.parameters() if p.grad is not None]
    return torch.cat(found)


ONE = [[[(1, 5), (2, 9), (3, 4)]], [[(4, 6), (5, 8), (6, 5)]], [[(7, 7), (8, 7), (9, 7)]]]
MANY = [[[(1, 5), (2, 9)], [(3, 4)], [(4, 17)]], [[(5, 3), (6, 8)], [(7, 9)], [(1, 12), (2, 2)]]]


@pytest.mark.parametrize("passes", [ONE, MANY], ids=["one member", "three members"])
@pytest.mark.parametrize("unmask", ["none", "all", "first:2"])
def test_recorded_passes_give_the_values_and_sum_the_gradients_of_the_passes(
    tiny_model, apart, monkeypatch, passes, unmask
) -> None:
    plain, ours = (model(tiny_model, len(passes[0]), unmask) for _ in range(2))
    recorder = recorded(ours, monkeypatch)
    for seed, slices in enumerate(passes):
        for a, b in zip(step(ours, slices, seed), step(plain, slices, seed), strict=True):
            assert apart(a, b) < 1e-5
    assert recorder.passes == len(passes)
    assert apart(gradients(ours), gradients(plain)) < 1e-4
    for each in (ours, plain):
        each.zero_grad()  # to None, as the trainer does
        step(each, passes[0], 9)
    assert apart(gradients(ours), gradients(plain)) < 1e-4


def test_a_pass_that_is_not_recorded_adds_to_one_that_is(tiny_model, apart, monkeypatch) -> None:
    plain, ours = model(tiny_model, 1), model(tiny_model, 1)
    recorder = recorded(ours, monkeypatch)
    for times, records in enumerate((False, True, False, True)):
        ours.backbone.records = records
        step(ours, ONE[times % 3], times)
        step(plain, ONE[times % 3], times)
    assert recorder.passes == 2 and apart(gradients(ours), gradients(plain)) < 1e-4


def test_what_is_not_recorded(tiny_model, monkeypatch) -> None:
    ours = model(tiny_model, 2)
    recorder = recorded(ours, monkeypatch)
    step(ours, [[(1, 5)], [(2, 3)]])
    with torch.no_grad():
        ours(pack([[(1, row(1, 5))], [(2, row(2, 3))]]))
    ours(pack([[(1, row(1, 5))], []]))  # a slice without rows
    ours.members[1].depth = 2
    ours(pack([[(1, row(1, 5))], [(2, row(2, 3))]]))
    monkeypatch.setattr(recording, "MOST_TOKENS", 7)
    ours.members[1].depth = 4
    ours(pack([[(1, row(1, 5))], [(2, row(2, 3))]]))
    monkeypatch.setattr(recording, "MOST_TOKENS", 4096)
    monkeypatch.setattr(recording, "SPARE", 0)
    ours(pack([[(n, row(n, 60)) for n in range(10)], [(2, row(2, 3))]]))  # more padding than text
    monkeypatch.undo()
    assert recorder.passes == 1


def test_a_shape_is_recorded_when_it_comes_again_and_only_so_many(tiny_model, monkeypatch) -> None:
    ours = model(tiny_model, 1)
    recorder = recorded(ours, monkeypatch)
    monkeypatch.setattr(recording, "SIGHTINGS", 3)
    monkeypatch.setattr(recording, "RECORDINGS", 1)
    for _ in range(4):
        step(ours, [[(1, 5)]])
    for _ in range(4):
        step(ours, [[(1, 40)]])
    assert recorder.passes == 2 and len(recorder._recordings) == 1


def test_weights_that_were_moved_are_recorded_anew(tiny_model, apart, monkeypatch) -> None:
    plain, ours = model(tiny_model, 1), model(tiny_model, 1)
    recorder = recorded(ours, monkeypatch)
    step(ours, ONE[0])
    before = recorder._recordings.copy()
    for each in (ours, plain):
        each.zero_grad()
        for weight in each.members[0].adapter.parameters():
            weight.data = weight.data * 0.5
        step(each, ONE[0])
    assert recorder._recordings and recorder._recordings != before
    assert apart(gradients(ours), gradients(plain)) < 1e-4


def test_a_backward_pass_that_comes_too_late_is_refused(tiny_model, monkeypatch) -> None:
    ours = model(tiny_model, 1)
    recorded(ours, monkeypatch)
    first, second = (ours(pack([[(1, row(1, 5))]]), [Key.of(1)])[0].sum() for _ in range(2))
    with pytest.raises(RuntimeError, match="before the next one begins"):
        first.backward()
    second.backward()


@pytest.mark.parametrize("fault", ["values", "gradients", "nothing can be recorded"])
def test_a_recording_that_is_wrong_is_not_used_and_the_log_says_so(
    tiny_model, apart, monkeypatch, caplog, fault
) -> None:
    class Faulty(Replayed):
        def __init__(self, *words: object) -> None:
            if fault.startswith("nothing"):
                raise RuntimeError("operation not permitted when stream is capturing\nand more")
            super().__init__(*words)

        def forward(self) -> Tensor:
            return super().forward() * (1.5 if fault == "values" else 1)

        def backward(self, gradient: Tensor) -> None:
            super().backward(gradient * (1.5 if fault == "gradients" else 1))

    plain, ours = model(tiny_model, 1), model(tiny_model, 1)
    recorder = recorded(ours, monkeypatch)
    recorder.record = Faulty
    with caplog.at_level(logging.WARNING):
        for seed, slices in enumerate(ONE):
            step(ours, slices, seed)
            step(plain, slices, seed)
    assert recorder.passes == 0 and len(caplog.records) == 1
    assert "small ones are slower" in caplog.text and "and more" not in caplog.text
    assert apart(gradients(ours), gradients(plain)) < 1e-6


def test_memory_that_runs_out_while_a_recording_is_compared_costs_no_gradient(
    tiny_model, apart, monkeypatch, caplog
) -> None:
    class Large(Replayed):
        def backward(self, gradient: Tensor) -> None:
            super().backward(gradient)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    plain, ours = model(tiny_model, 1), model(tiny_model, 1)
    recorder = recorded(ours, monkeypatch)
    recorder.record = Large
    monkeypatch.setattr(recording, "SIGHTINGS", 2)
    with caplog.at_level(logging.WARNING):
        for seed in range(3):  # the second pass is to be recorded, and adds to the first
            step(ours, ONE[0], seed)
            step(plain, ONE[0], seed)
    assert recorder.passes == 0 and "CUDA out of memory" in caplog.text
    assert apart(gradients(ours), gradients(plain)) < 1e-6


@pytest.mark.parametrize(
    ("name", "records"), [("llama", True), ("mistral", True), ("gemma2", False), ("gpt_oss", False)]
)
def test_only_families_that_take_the_flash_kernel_are_recorded(tiny_model, monkeypatch, name, records) -> None:
    assert not wrap(tiny_model(name)).recordable()  # a CPU
    monkeypatch.setattr(attention, "_VARLEN", frozenset({"scale", "window_size", "enable_gqa"}))
    monkeypatch.setattr(attention, "_kernel", lambda query, *_, **__: torch.zeros_like(query))
    monkeypatch.setattr(attention, "_flash_can", lambda _, __, rule: rule.plain)
    assert wrap(tiny_model(name)).recordable() is records


def test_one_layer_without_the_flash_kernel_is_enough_not_to_be_recorded(tiny_model, monkeypatch) -> None:
    backbone, layers = wrap(tiny_model("llama")), iter([True, True, False, True])
    monkeypatch.setattr(attention, "_VARLEN", frozenset({"scale", "window_size", "enable_gqa"}))
    monkeypatch.setattr(attention, "_kernel", lambda query, *_, **__: torch.zeros_like(query))
    monkeypatch.setattr(attention, "_flash_can", lambda *_: next(layers))
    assert not backbone.recordable()


def test_padding_is_documents_of_its_own_none_longer_than_the_longest(documents) -> None:
    layout = documents((5, 9, 4, 30), slices=(0, 3, 4)).layout([(False,), (False,)])
    shape = Shape.of(layout, None)
    assert (shape.slices, shape.tokens, shape.longest) == (2, 32, 32) and shape.documents == 8
    tight = Shape(2, 48, 8, 30, (False, False))
    padded = Padded.of(layout, tight)
    lengths = padded.lengths.reshape(2, 8)
    assert lengths.tolist() == [[5, 9, 4, 30, 0, 0, 0, 0], [30, 18, 0, 0, 0, 0, 0, 0]]
    source = padded.source.reshape(2, 48)
    assert source[0, :18].tolist() == list(range(18)) and (source[0, 18:] == -1).all()
    assert source[1, :30].tolist() == list(range(18, 48)) and (source[1, 30:] == -1).all()


@pytest.mark.parametrize("tokens", [1, 16, 17, 100, 208, 1025, 8192])
def test_shapes_are_few_and_at_most_a_quarter_larger(documents, tokens) -> None:
    shape = Shape.of(documents((tokens,)).layout([(False,)]), 2048)
    assert tokens <= shape.tokens <= max(16, 1.25 * tokens + 16)
    assert shape.longest <= max(2048, tokens)


def test_the_numbers_of_a_pass_draw_what_its_keys_draw(documents) -> None:
    layout = replace(documents((5, 9, 4), slices=(0, 2, 3)).layout([(False,), (False,)]), keys=(Key.of(3), None))
    dropout = Dropout({"first": [0.3, 0.5], "other": [0.0, 0.1], "third": [0.6, 0.2]})
    dropout.use(layout, dropout.table(layout))
    for name in ("first", "third"):
        x = torch.randn(18, 7)
        drawn = _drop(x, *dropout._numbers(layout, torch.device("cpu"))[name])
        assert torch.equal(drawn, dropout(x, name, layout)) and not torch.equal(drawn, x)
    assert dropout(x, "other", layout) is x
