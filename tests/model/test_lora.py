"""LoRA by hooks against PEFT's own layers on a stock model, and members of one pass against members alone."""

import json
import weakref
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import peft
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from labeltune.errors import ModelError, RunError, SettingsError
from labeltune.keys import Key, keep_mask
from labeltune.model import updates
from labeltune.model.backbone import Backbone, wrap
from labeltune.model.layout import Layout, Slot
from labeltune.model.lora import Adapter, merge
from labeltune.model.settings import LoraConfig
from labeltune.model.updates import attach

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning:transformers")  # PEFT asks
KEY = Key.of(3)
FAMILIES = ["llama", "gpt2", "gpt_neox"]
LENGTHS = (5, 3, 5, 4)


def adapter_for(backbone: Backbone, *, fresh: bool = False, seed: int = 0, **settings: object) -> Adapter:
    """An adapter on the backbone's attention; unless fresh, with a B that matters."""
    config = LoraConfig(**{"rank": 4, "alpha": 6.0, "dropout": 0.0, **settings})
    adapter = Adapter.build(backbone.linear_modules(config.targets), config, KEY.fold(seed))
    if not fresh:
        generator = torch.Generator().manual_seed(seed)
        for parameter in [*adapter.B.values(), *adapter.magnitude.values()]:
            parameter.data.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return adapter


def hidden(backbone: Backbone, docs: object, adapters: Sequence[Adapter | None], keys: Sequence[Key | None]) -> Tensor:
    """All slices' hidden states in stream order, every layer causal."""
    attached = attach(dict(backbone.model.named_modules()), adapters, backbone.slot)
    layout = replace(docs.layout([(False,) * backbone.layers] * len(keys)), keys=tuple(keys), owner=attached)
    return torch.cat(backbone.hidden(docs.batch(), layout, [backbone.layers] * len(keys)))


def apart(a: Tensor, b: Tensor) -> float:
    """max|a - b| / max|b|."""
    return float((a.detach() - b.detach()).abs().max() / b.detach().abs().max())


def oracle(model: PreTrainedModel, adapter: Adapter, folder: Path) -> peft.PeftModel:
    """The stock model under PEFT, loaded from what `save` wrote, its adapter ready to train."""
    adapter.save(folder)
    return peft.PeftModel.from_pretrained(model, folder, is_trainable=True).eval()  # gpt2 has dropout of its own


def peft_gradients(model: peft.PeftModel) -> dict[str, Tensor]:
    return {n.replace(".default", ""): p.grad for n, p in model.named_parameters() if p.grad is not None}


def same_as_peft(model: peft.PeftModel, adapter: Adapter, out: Tensor, docs: object) -> None:
    """Forward and, for a loss that weighs every hidden unit, the gradients of A and B (and the magnitudes)."""
    expected = torch.cat([model(input_ids=ids[None], use_cache=False)[0][0] for ids in docs.ids])
    assert apart(out, expected) < 1e-5
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(9))
    (out * weights).sum().backward()
    (expected * weights).sum().backward()
    theirs, checked = peft_gradients(model), 0
    for name in adapter.names:
        for ending, parameters in (
            ("lora_A.weight", adapter.A),
            ("lora_B.weight", adapter.B),
            ("lora_magnitude_vector.weight", adapter.magnitude),
        ):
            if name.replace(".", "/") in parameters:
                assert (
                    apart(parameters[name.replace(".", "/")].grad, theirs[f"base_model.model.{name}.{ending}"]) < 1e-4
                )
                checked += 1
    assert checked == len(theirs)


# The oracle: PEFT


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["lora", "rslora", "dora"])
def test_forward_and_gradients_equal_peft(family, kind, tiny_model, documents, tmp_path) -> None:
    docs, backbone = documents(LENGTHS), wrap(tiny_model(family))
    adapter = adapter_for(backbone, kind=kind)
    out = hidden(backbone, docs, [adapter], [None])
    same_as_peft(oracle(tiny_model(family), adapter, tmp_path), adapter, out, docs)


class OurMask(nn.Module):
    """Stands where PEFT has its dropout, and draws what ours draws."""

    def __init__(self, name: str, rate: float, docs: object) -> None:
        super().__init__()
        self.name, self.rate, self.docs, self.row = name, rate, docs, 0

    def forward(self, x: Tensor) -> Tensor:
        row = torch.full((x.shape[1],), self.row)
        keep = keep_mask(KEY.fold("lora", self.name), row, torch.arange(x.shape[1]), x.shape[2], self.rate)
        self.row += 1
        return x * keep / (1 - self.rate)


@pytest.mark.parametrize("family", FAMILIES)
def test_dropout_equals_peft_with_the_same_mask(family, tiny_model, documents, tmp_path) -> None:
    docs, backbone = documents(LENGTHS), wrap(tiny_model(family))
    adapter = adapter_for(backbone, dropout=0.25)
    out = hidden(backbone, docs, [adapter], [KEY])
    model = oracle(tiny_model(family), adapter, tmp_path)
    for name, module in model.named_modules():
        if name.endswith("lora_dropout"):
            name = name.removeprefix("base_model.model.").removesuffix(".lora_dropout")
            module["default"] = OurMask(backbone.slot.first_reader[name], 0.25, docs)
    same_as_peft(model, adapter, out, docs)


def test_layers_that_read_one_tensor_share_its_dropout_whichever_are_adapted(tiny_model, documents) -> None:
    """q, k and v read one tensor, o another; an adapter on k and v alone draws what all of them draw."""
    docs, backbone = documents(LENGTHS), wrap(tiny_model("llama"))
    first = backbone.slot.first_reader
    assert {name.rpartition(".")[2]: reader.rpartition(".")[2] for name, reader in first.items()} == {
        **dict.fromkeys(("q_proj", "k_proj", "v_proj"), "q_proj"),
        **{"o_proj": "o_proj", "gate_proj": "gate_proj", "up_proj": "gate_proj", "down_proj": "down_proj"},
    }
    every, two = (adapter_for(backbone, dropout=0.3, targets=t) for t in (None, ("k_proj", "v_proj")))
    for name in set(every.names) - set(two.names):
        every.pair(name)[1].data.zero_()
    for name in two.names:
        for mine, theirs in zip(every.pair(name), two.pair(name), strict=True):
            mine.data.copy_(theirs)
    torch.testing.assert_close(hidden(backbone, docs, [every], [KEY]), hidden(backbone, docs, [two], [KEY]))


@pytest.mark.parametrize("family", FAMILIES)
def test_fresh_adapters_begin_as_those_of_peft_and_change_nothing(family, tiny_model, documents) -> None:
    docs, backbone = documents(LENGTHS), wrap(tiny_model(family))
    bare = hidden(backbone, docs, [None], [None])
    for kind in ("lora", "dora"):
        adapter = adapter_for(backbone, fresh=True, kind=kind)
        assert torch.equal(hidden(backbone, docs, [adapter], [KEY]), bare)
    for a in adapter_for(backbone, fresh=True, rank=256).A.values():
        bound = a.shape[1] ** -0.5
        assert a.abs().max() <= bound and float(a.detach().std()) == pytest.approx(bound / 3**0.5, rel=0.05)


def test_initial_values_belong_to_their_module_and_seed(tiny_model) -> None:
    backbone = wrap(tiny_model("llama"))
    one, again, other = (adapter_for(backbone, fresh=True, seed=seed) for seed in (0, 0, 1))
    fewer = adapter_for(backbone, fresh=True, targets=("v_proj",))
    name = "layers.1.self_attn.v_proj"
    assert torch.equal(one.pair(name)[0], again.pair(name)[0]) and torch.equal(one.pair(name)[0], fewer.pair(name)[0])
    assert not torch.equal(one.pair(name)[0], other.pair(name)[0])
    assert not torch.equal(one.pair(name)[0], one.pair("layers.2.self_attn.v_proj")[0])


# The format


@pytest.mark.parametrize("kind", ["lora", "rslora", "dora"])
def test_save_and_load_are_exact(kind, tiny_model, tmp_path) -> None:
    adapter = adapter_for(wrap(tiny_model("gpt2")), kind=kind, dropout=0.0 if kind == "dora" else 0.1, alpha=0.5)
    adapter.save(tmp_path / "a", "some/model", "main")
    loaded = Adapter.load(tmp_path / "a")
    assert (loaded.kind, loaded.rank, loaded.scaling, loaded.dropout) == (kind, 4, adapter.scaling, adapter.dropout)
    assert {n: p.tolist() for n, p in loaded.named_parameters()} == {
        n: p.tolist() for n, p in adapter.named_parameters()
    }
    loaded.save(tmp_path / "b", "some/model", "main")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_an_adapter_that_peft_trained_loads(tiny_model, documents, tmp_path) -> None:
    config = peft.LoraConfig(r=3, lora_alpha=5, target_modules=["q_proj", "up_proj"], init_lora_weights=False)
    theirs = peft.get_peft_model(tiny_model("llama"), config)
    theirs.save_pretrained(tmp_path)
    docs, backbone = documents(LENGTHS), wrap(tiny_model("llama"))
    expected = torch.cat([theirs(input_ids=ids[None], use_cache=False)[0][0] for ids in docs.ids])
    assert apart(hidden(backbone, docs, [Adapter.load(tmp_path)], [None]), expected) < 1e-5


def test_a_damaged_folder_is_refused(tiny_model, tmp_path) -> None:
    weights = tmp_path / "adapter_model.safetensors"
    adapter = adapter_for(wrap(tiny_model("llama")))
    with pytest.raises(RunError, match="missing"):
        Adapter.load(tmp_path)
    adapter.save(tmp_path)
    tensors = load_file(weights)
    some = next(iter(tensors))
    for damaged in (
        {k: t for k, t in tensors.items() if k != some},
        {**tensors, "more": tensors[some].clone()},
        {**tensors, some: tensors[some][:1, :1].clone()},
    ):
        save_file(damaged, weights)
        with pytest.raises(RunError, match=r"adapter_model\.safetensors"):
            Adapter.load(tmp_path)
    weights.write_bytes(b"\x08")
    with pytest.raises(RunError, match="damaged"):
        Adapter.load(tmp_path)


@pytest.mark.parametrize(
    "changed",
    [dict(rank_pattern={"q": 2}), dict(bias="all"), dict(init_lora_weights="pissa_niter_4"), dict(lora_bias=True)],
)
def test_what_peft_does_and_we_do_not_is_refused(changed, tiny_model, tmp_path) -> None:
    adapter_for(wrap(tiny_model("llama"))).save(tmp_path)
    config = tmp_path / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **changed}))
    with pytest.raises(RunError, match="does not run"):
        Adapter.load(tmp_path)


def test_an_adapter_for_another_backbone_is_refused(tiny_model) -> None:
    adapter = adapter_for(wrap(tiny_model("llama")))
    for other in (tiny_model("gpt2"), tiny_model("llama", hidden_size=16), tiny_model("llama", num_hidden_layers=2)):
        with pytest.raises(ModelError, match="the backbone that it was trained on"):
            attach(dict(other.named_modules()), [adapter], Slot())


# Merging


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_merging_in_fp32_changes_nothing_beyond_1e_5(family, kind, tiny_model, documents) -> None:
    docs, backbone = documents(LENGTHS), wrap(tiny_model(family))
    adapter = adapter_for(backbone, kind=kind)
    before = hidden(backbone, docs, [adapter], [None])
    bare = hidden(backbone, docs, [None], [None])
    merge(dict(backbone.model.named_modules()), adapter)
    after = hidden(backbone, docs, [None], [None])
    assert apart(after, before) < 1e-5 and apart(after, bare) > 1e-2


def test_merging_into_fewer_bits_is_refused_before_anything_changes(tiny_model) -> None:
    backbone = wrap(tiny_model("llama", dtype=torch.bfloat16))
    before = {n: p.clone() for n, p in backbone.model.named_parameters()}
    with pytest.raises(ModelError, match="fp32"):
        merge(dict(backbone.model.named_modules()), adapter_for(backbone))
    assert all(torch.equal(p, before[n]) for n, p in backbone.model.named_parameters())


# Many members in one pass

MIXED = [
    dict(rank=2),
    None,
    dict(rank=5, dropout=0.3, kind="rslora"),
    dict(kind="dora"),
    dict(rank=3, dropout=0.1, targets=("v_proj",)),
]


def test_mixed_members_in_one_pass_equal_separate_passes(tiny_model, documents) -> None:
    """Ranks, rates, kinds, targets and sizes differ; forward and gradients are those of each member alone."""
    backbone = wrap(tiny_model("llama"))
    lengths, slices = (5, 3, 4, 6, 2, 7), (0, 2, 3, 4, 5, 6)
    adapters = [adapter_for(backbone, seed=k, **s) if s is not None else None for k, s in enumerate(MIXED)]
    keys = [KEY.fold(k) for k in range(5)]
    docs = documents(lengths, slices=slices)
    joint = hidden(backbone, docs, adapters, keys)
    joint.square().sum().backward()
    together = [[p.grad.clone() for p in a.parameters()] if a is not None else [] for a in adapters]
    for k, adapter in enumerate(adapters):
        alone = hidden_alone(backbone, docs, slices[k], slices[k + 1], adapter, keys[k])
        start, end = sum(lengths[: slices[k]]), sum(lengths[: slices[k + 1]])
        torch.testing.assert_close(joint[start:end], alone, rtol=1e-5, atol=1e-5)
        if adapter is not None:
            adapter.zero_grad()
            alone.square().sum().backward()
            for one, other in zip(adapter.parameters(), together[k], strict=True):
                torch.testing.assert_close(one.grad, other, rtol=1e-4, atol=1e-5)


def hidden_alone(backbone: Backbone, docs: object, first: int, last: int, adapter: Adapter | None, key: Key) -> Tensor:
    """Some documents of `docs` by themselves, under their old addresses."""
    part = type(docs)(docs.lengths[first:last])
    part.ids = docs.ids[first:last]
    attached = attach(dict(backbone.model.named_modules()), [adapter], backbone.slot)
    layout = part.layout([(False,) * backbone.layers])
    layout = replace(layout, keys=(key,), owner=attached, token_row=layout.token_row + first)
    return backbone.hidden(part.batch(), layout, [backbone.layers])[0]


@given(
    ranks=st.lists(st.integers(1, 4), min_size=2, max_size=4),
    tokens=st.integers(1, 3),
    rate=st.sampled_from([0.0, 0.4]),
)
def test_stacked_slices_equal_looped_slices(ranks: list[int], tokens: int, rate: float) -> None:
    """The path for equal slices on a GPU, taken here by hand; padded ranks leave no trace, nor a gradient."""
    module, slices = nn.Linear(6, 8), len(ranks)
    adapters = [
        Adapter.build({"m": module}, LoraConfig(rank=r, dropout=rate), KEY.fold(k)) for k, r in enumerate(ranks)
    ]
    for adapter in adapters:
        adapter.B["m"].data.normal_(generator=torch.Generator().manual_seed(adapter.rank))
    attached = attach({"m": module}, adapters, Slot())
    update = next(iter(module._forward_hooks.values()))
    x, y = (torch.randn(slices * tokens, n, generator=torch.Generator().manual_seed(1)) for n in (6, 8))
    layout = flat_layout(slices, tokens, attached)
    reading = update.source.read(x, layout)
    looped, stacked = update.looped(module, y, reading), update.stacked(reading.x_NI, y, reading.scales)
    torch.testing.assert_close(stacked, looped)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(2))
    parameters = [p for adapter in adapters for p in adapter.parameters()]
    one, other = (torch.autograd.grad((out * weights).sum(), parameters) for out in (looped, stacked))
    torch.testing.assert_close(one, other)


def flat_layout(slices: int, tokens: int, owner: object) -> Layout:
    bounds, count = tuple(range(0, slices * tokens + 1, tokens)), slices * tokens
    place = torch.arange(count)
    return Layout(
        (tokens,) * slices,
        torch.tensor(bounds),
        bounds,
        tuple(range(slices + 1)),
        (),
        place,
        place,
        (KEY,) * slices,
        owner,
    )


def test_adapters_act_in_their_own_passes_only(tiny_model, documents) -> None:
    docs, backbone = documents(LENGTHS), wrap(tiny_model("llama"))
    bare = hidden(backbone, docs, [None], [None])
    one, other = (adapter_for(backbone, seed=seed) for seed in (1, 2))
    expected = hidden(backbone, docs, [one], [None])
    assert not torch.allclose(hidden(backbone, docs, [other], [None]), expected)
    assert torch.equal(hidden(backbone, docs, [one], [None]), expected)
    assert torch.equal(hidden(backbone, docs, [None], [None]), bare)


def test_a_pass_that_ran_out_of_memory_leaves_nothing_behind(tiny_model, documents) -> None:
    backbone, left = wrap(tiny_model("llama")), []

    def fail(*_: object) -> None:  # after q, k and v have begun to read one tensor
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    backbone.blocks[0].register_forward_hook(lambda _, __, output: left.append(weakref.ref(output)))
    backbone.blocks[1].self_attn.k_proj.register_forward_pre_hook(fail)
    with pytest.raises(torch.OutOfMemoryError):
        hidden(backbone, documents(LENGTHS), [adapter_for(backbone)], [KEY])
    assert len(left) == 1 and left[0]() is None


def test_removed_hooks_are_gone(tiny_model) -> None:
    model = tiny_model("llama")
    adapter = adapter_for(wrap(model))
    before = [len(m._forward_hooks) for m in model.modules()]
    attached = attach(dict(model.named_modules()), [adapter], Slot())
    added = [len(m._forward_hooks) - b for m, b in zip(model.modules(), before, strict=True)]
    attached.remove()
    assert sum(added) == len(adapter.names) and [len(m._forward_hooks) for m in model.modules()] == before


# Where it runs


@pytest.mark.parametrize("checkpointing", [False, True])
def test_dropout_survives_checkpointing_packing_and_micro_batches(checkpointing, tiny_model, documents) -> None:
    plain, backbone = wrap(tiny_model("llama")), wrap(tiny_model("llama"), checkpointing=checkpointing)
    docs, one, other = documents(LENGTHS), adapter_for(plain, dropout=0.3), adapter_for(plain, dropout=0.3)
    whole = hidden(plain, docs, [one], [KEY])
    whole.square().sum().backward()
    parts = [hidden_alone(backbone, docs, first, last, other, KEY) for first, last in ((0, 1), (1, 4))]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-5, atol=1e-5)
    for part in parts:  # backward after both forwards: each recomputes its own pass
        part.square().sum().backward()
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-4)


def test_equal_length_rows_draw_the_same_masks(tiny_model, documents) -> None:
    """GPT-J runs in rows of equal length; PEFT with our mask, row by row, is the oracle."""
    docs, backbone = documents(LENGTHS), wrap(tiny_model("gptj"))
    assert not backbone.packed
    adapter = adapter_for(backbone, dropout=0.3)
    whole = hidden(backbone, docs, [adapter], [KEY])
    alone = torch.cat([hidden_alone(backbone, docs, d, d + 1, adapter, KEY) for d in range(4)])
    assert apart(whole, alone) < 1e-5


def test_masters_stay_fp32_on_a_bf16_backbone(tiny_model, documents) -> None:
    docs, exact = documents(LENGTHS), wrap(tiny_model("llama"))
    rough = wrap(tiny_model("llama", dtype=torch.bfloat16))
    one, other = adapter_for(exact), adapter_for(rough)
    out = hidden(rough, docs, [other], [None])
    assert out.dtype == torch.bfloat16 and apart(out.float(), hidden(exact, docs, [one], [None])) < 0.05
    out.float().square().sum().backward()
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in other.parameters())


@pytest.mark.parametrize("bits", [4, 8])
def test_quantised_layers_take_adapters(bits) -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    stock = nn.Linear(64, 64)
    kind = bitsandbytes.nn.Linear4bit if bits == 4 else bitsandbytes.nn.Linear8bitLt
    words = dict(quant_type="nf4") if bits == 4 else dict(has_fp16_weights=False)
    module = kind(64, 64, **words)
    module.load_state_dict(stock.state_dict())
    module.to("cpu")
    slot, x = Slot(), torch.randn(6, 64, generator=torch.Generator().manual_seed(0))
    adapter = Adapter.build({"m": module}, LoraConfig(rank=4, dropout=0.0), KEY)
    adapter.B["m"].data.fill_(0.1)
    bare = module(x)
    attached = attach({"m": module}, [adapter], slot)
    with slot.using(flat_layout(1, 6, attached)):
        out = module(x)
    torch.testing.assert_close(out, bare + x @ adapter.update("m").T, rtol=1e-4, atol=1e-4)
    out.sum().backward()
    assert adapter.A["m"].grad is not None
    for refused in (
        lambda: merge({"m": module}, adapter),
        lambda: Adapter.build({"m": module}, LoraConfig(kind="dora", dropout=0), KEY),
    ):
        with pytest.raises(ModelError, match=r"fp32|quantised"):
            refused()


def test_a_layer_that_does_not_see_every_token_is_refused(tiny_model) -> None:
    module, slot = nn.Linear(4, 4), Slot()
    attached = attach({"m": module}, [Adapter.build({"m": module}, LoraConfig(dropout=0), KEY)], slot)
    with slot.using(flat_layout(1, 5, attached)), pytest.raises(ModelError, match="reads 3 of 5 tokens"):
        module(torch.zeros(3, 4))


def test_dora_with_dropout_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"lora\.dropout = 0"):
        Adapter.build({"m": nn.Linear(4, 4)}, LoraConfig(kind="dora"), KEY)


def test_conv1d_is_adapted_in_its_own_orientation() -> None:
    module = Conv1D(9, 4)  # 4 inputs, 9 outputs
    a, b = Adapter.build({"m": module}, LoraConfig(rank=2), KEY).pair("m")
    assert (a.shape, b.shape) == ((2, 4), (9, 2))


def test_an_output_that_is_a_view_made_inside_a_function_is_not_written_into():
    class Viewed(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone().view(1, 4, 6)

        @staticmethod
        def backward(ctx, gradient):
            return gradient.view(4, 6)

    output = Viewed.apply(torch.ones(4, 6, requires_grad=True))
    assert output._is_view()
    with pytest.raises(RuntimeError, match="modified inplace"):
        output.add_(1)
    adapter = SimpleNamespace(pair=lambda name: (None, torch.full((6, 2), 3.0)))
    reading = SimpleNamespace(thin=lambda k, name: torch.ones(4, 2), scales=(0.5,))
    added = updates._Update.added(SimpleNamespace(adapters=(adapter,), name="layer"), output, reading)
    torch.testing.assert_close(added, torch.full((1, 4, 6), 1 + 0.5 * 2 * 3))
