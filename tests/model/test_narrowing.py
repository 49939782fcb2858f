"""Only what is read goes through the last block's output projection and MLP: the same values, the same gradients."""

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from labeltune.keys import Key
from labeltune.model.backbone import Backbone, wrap
from labeltune.model.families import FAMILIES
from labeltune.model.lora import Adapter
from labeltune.model.member import LabelModel, build
from labeltune.model.settings import HeadConfig, LoraConfig, ModelConfig
from labeltune.model.updates import attach
from labeltune.schema import Batch

LENGTHS = (5, 9, 5, 1, 7)
LAST = torch.tensor(LENGTHS).cumsum(0) - 1
KEY = Key.of(5)
PACKED = sorted(name for name, family in FAMILIES.items() if family.packed)
FEW = {"bert", "cohere2", "distilbert", "gemma2", "gpt2", "gpt_neox", "gpt_oss", "llama", "mixtral", "opt", "phi3"}
EVERY = [name if name in FEW else pytest.param(name, marks=pytest.mark.slow) for name in PACKED]
ALL_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def rows_of(module: nn.Module, run: Callable[[], object]) -> list[int]:
    """How many rows the module computes in each of its calls."""
    seen: list[int] = []
    handle = module.register_forward_hook(lambda _, __, output: seen.append(output.shape[:-1].numel()), prepend=True)
    run()
    handle.remove()
    return seen


def batch_at_last(docs: object) -> Batch:
    """Each document with one target, read at its last token by `last`."""
    ends = torch.tensor(docs.lengths).cumsum(0)
    count = len(docs.lengths)
    return replace(
        docs.batch(),
        piece_starts=ends - torch.tensor(docs.lengths),
        piece_ends=ends,
        piece_target=torch.arange(count),
        piece_weights=torch.ones(count),
        target_document=torch.arange(count),
        slice_pieces=(0, count),
        slice_targets=(0, count),
    )


def model_of(backbone: Backbone, *, pooling: str = "last", **lora: object) -> LabelModel:
    words = dict(task_unmask="none", task_pooling=pooling, task_bias=True, width=3, key=KEY)
    member = build(backbone, ModelConfig(), LoraConfig(**{"rank": 4, **lora}), HeadConfig(), **words)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in member.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return LabelModel(backbone, [member])


@pytest.mark.parametrize("name", EVERY)
def test_what_is_read_equals_documents_alone(name, tiny_model, documents, alone, apart) -> None:
    docs, stock, backbone = documents(LENGTHS), tiny_model(name).eval(), wrap(tiny_model(name))
    assert len(backbone.narrowed) >= 2, "an output projection and an MLP at least"
    policy = (True,) * 4 if backbone.family.encoder else (False,) * 4
    layout = replace(docs.layout([policy]), read=LAST)
    with torch.no_grad():
        got = backbone.hidden(docs.batch(), layout, [4])[0]
        assert apart(got[LAST], alone(stock, docs, (False,) * 4)[LAST]) <= 1e-5


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("targets", [None, ALL_LINEAR])
def test_gradients_and_dropout_are_those_of_the_whole_pass(checkpointing, targets, tiny_model, documents) -> None:
    backbone = wrap(tiny_model("llama"), checkpointing=checkpointing)
    model, batch = model_of(backbone, targets=targets, dropout=0.3), batch_at_last(documents(LENGTHS))
    found = []
    for names in (backbone.narrowed, ()):
        backbone.narrowed = names
        model.zero_grad()
        (logits,) = model(batch, [KEY])
        logits.square().sum().backward()
        found.append((logits.detach(), [p.grad.clone() for p in model.members.parameters()]))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)
    assert all(gradient.any() for gradient in found[0][1])


def test_only_the_rows_that_are_read_are_computed(tiny_model, documents) -> None:
    backbone, batch = wrap(tiny_model("llama")), batch_at_last(documents(LENGTHS))
    model, last, before = model_of(backbone), backbone.blocks[3], backbone.blocks[2]

    def rows(module: nn.Module) -> list[int]:
        return rows_of(module, lambda: model(batch))

    for module in (last.mlp, last.mlp.down_proj, last.self_attn.o_proj, last.self_attn.q_proj):
        assert rows(module) == [5]
    for module in (last.self_attn.k_proj, last.self_attn.v_proj, before.mlp, before.self_attn.o_proj):
        assert rows(module) == [27]


@pytest.mark.parametrize(
    "change", [dict(pooling="mean"), dict(pooling="max"), dict(pooling="attention")], ids=lambda c: c["pooling"]
)
def test_who_reads_every_token_has_all_of_them(change, tiny_model, documents) -> None:
    backbone, batch = wrap(tiny_model("llama")), batch_at_last(documents(LENGTHS))
    model = model_of(backbone, **change)
    assert rows_of(backbone.blocks[3].mlp, lambda: model(batch)) == [27]


def test_targets_that_share_a_token_have_the_gradient_of_both(tiny_model, documents) -> None:
    backbone, batch = wrap(tiny_model("llama")), batch_at_last(documents((9,)))
    both = replace(
        batch,
        piece_starts=torch.tensor([0, 3]),
        piece_ends=torch.tensor([9, 9]),
        piece_target=torch.arange(2),
        piece_weights=torch.ones(2),
        target_document=torch.zeros(2),
        slice_pieces=(0, 2),
        slice_targets=(0, 2),
    )
    found = []
    for part in (batch, both):
        model = model_of(backbone)
        model(part)[0].sum().backward()
        found.append([p.grad.clone() for p in model.members[0].adapter.parameters()])
    torch.testing.assert_close(found[1], [2 * gradient for gradient in found[0]], rtol=1e-4, atol=1e-6)


class Mixing(nn.Module):
    """An MLP that lets tokens see each other."""

    def __init__(self, mlp: nn.Module) -> None:
        super().__init__()
        self.mlp = mlp

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(x) + x.mean(1, keepdim=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_module_that_mixes_tokens_is_left_alone(dtype, tiny_model) -> None:
    stock = tiny_model("llama", dtype=dtype)
    stock.layers[-1].mlp = Mixing(stock.layers[-1].mlp)
    before = [len(module._forward_hooks) for module in stock.modules()]
    assert wrap(stock).narrowed == () and [len(module._forward_hooks) for module in stock.modules()] == before


class Counting(nn.Module):
    """An MLP that wants as many tokens as the block was given."""

    def __init__(self, mlp: nn.Module, block: nn.Module) -> None:
        super().__init__()
        self.mlp = mlp
        block.register_forward_pre_hook(self.keep)

    def keep(self, _: nn.Module, args: tuple[Tensor, ...]) -> None:
        self.kept = args[0]

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(x) + 0 * self.kept


def test_a_module_that_knows_how_many_tokens_there_are_is_left_alone(tiny_model) -> None:
    stock = tiny_model("llama")
    stock.layers[-1].mlp = Counting(stock.layers[-1].mlp, stock.layers[-1])
    assert wrap(stock).narrowed == ()


def test_a_wrapped_model_can_be_wrapped_again_and_copied(tiny_model, documents) -> None:
    stock, batch = tiny_model("llama"), batch_at_last(documents(LENGTHS))
    model = model_of(wrap(stock))
    first = model(batch)[0]
    model.detach()
    again = wrap(stock)
    torch.testing.assert_close(model_of(again)(batch)[0], first)
    torch.testing.assert_close(model_of(copy.deepcopy(again))(batch)[0], first)


def test_a_pass_in_which_nothing_is_read_is_whole(tiny_model, documents) -> None:
    docs = documents(LENGTHS)
    nothing = replace(
        batch_at_last(docs),
        piece_starts=torch.zeros(0, dtype=torch.int64),
        piece_ends=torch.zeros(0, dtype=torch.int64),
        slice_pieces=(0, 0),
        slice_targets=(0, 0),
    )
    (logits,) = model_of(wrap(tiny_model("llama")), dropout=0.1)(nothing, [KEY])
    assert logits.shape == (0, 3)


def test_a_pass_that_failed_on_the_way_leaves_nothing_behind(tiny_model, documents) -> None:
    backbone, batch = wrap(tiny_model("llama")), batch_at_last(documents(LENGTHS))
    model = model_of(backbone)
    expected = model(batch)[0]

    def fail(*_: object) -> None:
        raise MemoryError

    handle = backbone.blocks[3].mlp.up_proj.register_forward_hook(fail)
    with pytest.raises(MemoryError):
        model(batch)
    handle.remove()
    assert torch.equal(model(batch)[0], expected)


def test_slices_are_narrowed_each_by_its_own_reading(tiny_model, documents, apart) -> None:
    """Adapters of two members, all of the first slice's tokens read and the last of the second's."""
    backbone = wrap(tiny_model("llama"))
    docs = documents((4, 3, 20, 21), slices=(0, 2, 4))
    modules = backbone.linear_modules(ALL_LINEAR)
    adapters = [Adapter.build(modules, LoraConfig(rank=rank, dropout=0.2), KEY.fold(rank)) for rank in (2, 3)]
    with torch.no_grad():
        for adapter in adapters:
            for b in adapter.B.values():
                b.normal_(0, 0.1)
    attached = attach(dict(backbone.model.named_modules()), adapters, backbone.slot)
    policies = [(False,) * 4, (True,) * 4]
    layout = replace(docs.layout(policies), keys=(KEY, KEY.fold(1)), owner=attached)
    read = torch.tensor([*range(7), 26, 47])
    whole, narrow = (
        torch.cat(backbone.hidden(docs.batch(), each, [4, 4])) for each in (layout, replace(layout, read=read))
    )
    assert apart(narrow[read], whole[read]) <= 1e-5 and not torch.allclose(narrow, whole)
