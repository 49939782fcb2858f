"""A packed step against stock transformers, document by document; the schedule; going on with the same bits."""

import math
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, PreTrainedModel

from labeltune.adaptation.loop import Pace, Reader, Work, steps
from labeltune.adaptation.objectives import OBJECTIVES, Masking
from labeltune.adaptation.optimisers import OPTIMISERS, Rates, Weights
from labeltune.adaptation.setup import _weights_of
from labeltune.errors import ModelError
from labeltune.keys import Key
from labeltune.model import lora, updates
from labeltune.model.backbone import wrap
from labeltune.model.causal import Causal
from labeltune.model.layout import plain_layout
from labeltune.model.settings import LoraConfig
from labeltune.training.checkpoint import load_state, save_state
from labeltune.training.order import Order
from labeltune.training.settings import TrainConfig

SIZE = dict(vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4)
SIZE |= dict(num_key_value_heads=2, max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2)
WINDOWED = dict(sliding_window=3, layer_types=["sliding_attention", "full_attention", "sliding_attention"])
TINY = {
    "mixtral": {},
    "gpt_oss": {},
    "llama": dict(tie_word_embeddings=True),
    "gemma2": dict(head_dim=8, query_pre_attn_scalar=8, final_logit_softcapping=0.5, attn_logit_softcapping=0.5),
    "cohere2": dict(logit_scale=0.3),
}
LENGTHS = (9, 5, 1, 9, 14)
MASK = Masking(0.4, 3, Key.of(5))


def stock(name: str = "llama", **changes: object) -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = AutoConfig.for_model(name, **{**SIZE, **TINY[name], **changes})
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
        for weight in model.parameters():
            weight.data.add_(torch.randn_like(weight) * 0.1)
    return model


def reader_of(model: PreTrainedModel, objective: str, unmask: str | None = None, **words: object) -> Reader:
    causal = Causal(model, wrap(model, trainable=True), model.config)
    policy = causal.backbone.policy(unmask or OBJECTIVES[objective].unmask)
    return Reader(causal, OBJECTIVES[objective], policy, MASK.share, MASK.token, nullcontext, **words)


EXPERTS = {"mixtral": dict(num_local_experts=4), "gpt_oss": dict(num_local_experts=4, head_dim=8)}


@pytest.mark.parametrize("name", EXPERTS)
def test_the_matrices_of_experts_are_trained_as_matrices_and_their_biases_are_not(name: str):
    model = stock(name, **EXPERTS[name])
    weights = _weights_of(Causal(model, wrap(model, trainable=True), model.config), None)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    matrices, others = (
        {names[id(p)].rpartition("layers.0.")[2] for p in part} for part in (weights.matrices, weights.others)
    )
    assert {"mlp.experts.gate_up_proj", "mlp.experts.down_proj", "self_attn.q_proj.weight"} <= matrices
    assert {"input_layernorm.weight", "model.embed_tokens.weight", "lm_head.weight"} <= others
    assert not any("bias" in name or "norm" in name for name in matrices)


@pytest.fixture
def rows(rows_of):
    generator = np.random.default_rng(0)
    return rows_of([generator.integers(4, 40, n).tolist() for n in LENGTHS])


def gradients(model: PreTrainedModel, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def apart(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    scale = max(float(g.abs().max()) for g in b.values())
    return max(float((a[name] - b[name]).abs().max()) / scale for name in b)


# One step against stock


@pytest.mark.parametrize(
    ("name", "changes"),
    [*((name, {}) for name in TINY), *((name, WINDOWED) for name in ("gemma2", "cohere2"))],
    ids=[*TINY, "gemma2-windows", "cohere2-windows"],
)
def test_a_packed_clm_step_is_the_stock_loss_of_each_document(name, changes, rows):
    oracle, model = stock(name, **changes), stock(name, **changes)
    total = torch.zeros(())
    for row in (row for row in rows if len(row.tokens) > 1):
        ids = torch.from_numpy(row.tokens).long()[None]
        total = total + oracle(input_ids=ids, labels=ids, use_cache=False).loss * (len(row.tokens) - 1)
    loss, count = reader_of(model, "clm").losses(rows, range(len(rows)), MASK.key, None)
    assert count == sum(LENGTHS) - len(LENGTHS)
    assert abs(loss.item() / total.item() - 1) <= 1e-6
    assert apart(gradients(model, loss), gradients(oracle, total)) <= 1e-5


@pytest.mark.parametrize("name", TINY)
def test_mntp_is_a_padded_stock_pass_without_a_causal_mask(name, rows):
    oracle, model = stock(name), stock(name)
    made = [OBJECTIVES["mntp"].make(row, MASK) for row in rows]
    ids = torch.zeros(len(rows), max(LENGTHS), dtype=torch.long)
    for place, encoded in enumerate(made):
        ids[place, : len(encoded.tokens)] = torch.from_numpy(encoded.tokens)
    real = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]  # (D, T), right padding
    mask = torch.zeros(len(rows), 1, *[max(LENGTHS)] * 2).masked_fill(~real[:, None, None], torch.finfo().min)
    logits = oracle(input_ids=ids, attention_mask=mask, use_cache=False).logits
    total = torch.zeros(())
    for place, encoded in enumerate(made):
        asked = logits[place, torch.from_numpy(encoded.piece_start).long()]
        total = total + F.cross_entropy(asked, torch.from_numpy(encoded.labels), reduction="sum")
    loss, count = reader_of(model, "mntp").losses(rows, range(len(rows)), MASK.key, None)
    assert count == sum(len(encoded.labels) for encoded in made) > 5
    assert abs(loss.item() / total.item() - 1) <= 1e-6
    assert apart(gradients(model, loss), gradients(oracle, total)) <= 1e-5


ENCODERS = {
    "bert": dict(type_vocab_size=2),
    "roberta": dict(type_vocab_size=1, max_position_embeddings=80),
    "modernbert": dict(local_attention=4, cls_token_id=1, sep_token_id=2),
}


@pytest.mark.parametrize("name", ENCODERS)
def test_mlm_is_each_document_in_a_stock_masked_model(name, rows):
    sizes = {k: v for k, v in SIZE.items() if k != "num_key_value_heads"} | ENCODERS[name]

    def masked() -> PreTrainedModel:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            config = AutoConfig.for_model(name, **sizes)
            return AutoModelForMaskedLM.from_config(config, attn_implementation="eager").eval()

    oracle, model = masked(), masked()
    made = [OBJECTIVES["mlm"].make(row, MASK) for row in rows]
    total = torch.zeros(())
    for encoded, row in zip(made, rows, strict=True):
        ids = torch.from_numpy(encoded.tokens).long()[None]
        labels = torch.full_like(ids, -100)
        places = torch.from_numpy(encoded.piece_start).long()
        assert (ids[0, places] == MASK.token).all()
        labels[0, places] = torch.from_numpy(row.tokens).long()[places]
        if len(places):
            total = total + oracle(input_ids=ids, labels=labels).loss * len(places)
    loss, count = reader_of(model, "mlm").losses(rows, range(len(rows)), MASK.key, None)
    assert count == sum(len(encoded.labels) for encoded in made) > 5
    assert abs(loss.item() / total.item() - 1) <= 1e-6
    assert apart(gradients(model, loss), gradients(oracle, total)) <= 1e-5


@pytest.mark.parametrize(("objective", "moved"), [("clm", False), ("mntp", True)])
def test_mntp_sees_later_tokens_and_clm_does_not(objective, moved):
    reader = reader_of(stock(), objective)
    layout = plain_layout((14,), reader.directions, torch.device("cpu"))
    ids = torch.arange(4, 18)
    changed = ids.clone()
    changed[13] = 30
    one, two = (reader.causal.logits(t, torch.arange(14), layout, torch.arange(13)) for t in (ids, changed))
    assert torch.allclose(one, two, atol=1e-5) != moved


def test_bf16_compute_is_close_and_its_gradients_are_fp32(rows):
    model = stock()
    reader = reader_of(model, "clm")
    plain, _ = reader.losses(rows, range(len(rows)), MASK.key, None)
    rough = Reader(
        reader.causal, reader.objective, reader.directions, 0.2, 3, lambda: torch.autocast("cpu", torch.bfloat16)
    )
    loss, _ = rough.losses(rows, range(len(rows)), MASK.key, None)
    assert 0 < abs(loss.item() / plain.item() - 1) < 0.01
    assert all(g.dtype == torch.float32 for g in gradients(model, loss).values())


# The loop


class Table(list):
    """Rows by hand, with what the loop asks of them."""

    @property
    def lengths(self) -> np.ndarray:
        return np.array([len(row.tokens) for row in self])


def work_of(rows, *, objective: str = "clm", optimiser: str = "adamw", adapter: bool = False, micro: int = 16) -> Work:
    model = stock()
    made, attached = None, None
    backbone_reader = reader_of(model, objective)
    parameters = dict(model.named_parameters())
    if adapter:
        model.requires_grad_(False)
        backbone = backbone_reader.causal.backbone
        modules = backbone.linear_modules()
        made = lora.Adapter.build(modules, LoraConfig(rank=2, dropout=0.3), Key.of(3))
        attached = updates.attach(dict(backbone.model.named_modules()), [made], backbone.slot)
        parameters = dict(made.named_parameters())
    reader = Reader(
        backbone_reader.causal, backbone_reader.objective, backbone_reader.directions, 0.4, 3, nullcontext, attached
    )
    inside = {id(p) for p in reader.causal.backbone.blocks.parameters() if p.ndim == 2}
    matrices = [p for p in parameters.values() if adapter or id(p) in inside]
    others = [p for p in parameters.values() if not adapter and id(p) not in inside]
    optimisers = OPTIMISERS[optimiser](Weights(tuple(matrices), tuple(others)), Rates(1e-2, 1e-2, 0.01))
    order = Order(rows.lengths, TrainConfig(epochs=4, batch_tokens=24), Key.of(1))
    return Work(reader, parameters, optimisers, rows, order, Pace(0.1, 0.5, 1.0, micro), Key.of(1))


def run(work: Work, until: int) -> list[float]:
    losses = []
    for step in steps(work):
        losses.append(step.loss)
        if step.step == until:
            break
    return losses


@pytest.mark.parametrize(
    "kind",
    [dict(), dict(optimiser="muon"), dict(objective="mntp", optimiser="muon"), dict(adapter=True, objective="mntp")],
    ids=["adamw", "muon", "mntp", "adapter"],
)
def test_going_on_from_a_checkpoint_ends_with_the_same_bits(kind, rows, tmp_path: Path):
    rows = Table(rows)
    whole = work_of(rows, **kind)
    losses = run(whole, 8)
    first = work_of(rows, **kind)
    run(first, 3)
    save_state(tmp_path / "c", first.state())
    second = work_of(rows, **kind)
    second.restore(load_state(tmp_path / "c"))
    torch.rand(7)  # randomness has addresses, not a state
    assert run(second, 8) == losses[3:]
    assert all(torch.equal(whole.parameters[name], p) for name, p in second.parameters.items())


@pytest.mark.parametrize("adapter", [False, True])
def test_micro_batches_change_nothing_but_rounding(adapter, rows):
    rows = Table(rows)
    one, many = (work_of(rows, objective="mntp", adapter=adapter, micro=micro) for micro in (10_000, 9))
    losses = [run(work, 5) for work in (one, many)]
    assert np.allclose(*losses, rtol=1e-4)


def test_training_lowers_the_loss(rows):
    for optimiser in OPTIMISERS:
        losses = run(work_of(Table(rows), optimiser=optimiser), 8)
        assert losses[-1] < losses[0]


def test_an_adapter_that_was_never_trained_changes_nothing(rows):
    rows = Table(rows)
    plain = reader_of(stock(), "clm").losses(rows, range(5), MASK.key, None)
    fresh = work_of(rows, adapter=True).reader.losses(rows, range(5), MASK.key, Key.of(0))
    assert plain[0].item() == fresh[0].item()


def test_a_loss_that_is_not_finite_stops_before_the_weights_are_touched(rows):
    work = work_of(Table(rows))
    work.parameters["model.norm.weight"].data[0] = math.inf
    before = {name: p.detach().clone() for name, p in work.parameters.items()}
    with pytest.raises(ModelError, match=r"adapt.lr: the loss is no longer finite in step 1"):
        run(work, 3)
    assert all(torch.equal(before[name], p) for name, p in work.parameters.items())


def test_the_learning_rate_rises_stays_and_falls_to_its_end():
    pace = Pace(warmup=4, decay=0.5, clip=None, micro_tokens=1)
    factors = [pace.factor(step, 20) for step in range(20)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0] and factors[4:11] == [1.0] * 7
    assert np.allclose(factors[10:], np.arange(10, 0, -1) / 10)
    assert [Pace(0.1, 0.0, None, 1).factor(step, 20) for step in (0, 1, 19)] == [0.5, 1.0, 1.0]
