"""The self-check passes good models in every precision, and names the layer where a model cheats."""

from dataclasses import replace

import pytest
import torch

from labeltune.errors import ModelError
from labeltune.model import attention
from labeltune.model.backbone import wrap
from labeltune.model.selfcheck import check

CAUSAL, ALL, HALF = (False,) * 4, (True,) * 4, (False, True, False, True)
PACKED = ["llama", "gemma2", "gpt2", "gpt_oss", "mistral", "mixtral", "opt", "stablelm", "smollm3"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", PACKED)
def test_a_good_model_passes_under_every_policy(name, dtype, tiny_model):
    backbone = wrap(tiny_model(name, dtype=dtype))
    for policy in (CAUSAL, ALL, HALF):
        report = check(backbone, policy)
        assert report.packed
        assert report.company <= 1e-5 or dtype != torch.float32
        assert (report.still is None, report.moved is None) == (all(policy), not any(policy))
        assert report.still is None or report.moved is None or report.still < report.moved / 100


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["bloom", "falcon", "gptj", "mamba", "mpt", "rwkv"])
def test_a_good_model_in_rows_passes(name, dtype, tiny_model):
    assert not check(wrap(tiny_model(name, dtype=dtype)), CAUSAL).packed


@pytest.mark.parametrize("name", ["bert", "roberta", "modernbert", "deberta-v2"])
def test_a_good_encoder_passes(name, tiny_model):
    assert check(wrap(tiny_model(name)), ALL).still is None


def test_checkpointing_and_depth_do_not_disturb_the_check(tiny_model):
    assert check(wrap(tiny_model("llama"), checkpointing=True, depth=3), (True, False, True)).layers == 3


# Three that cheat, each in layer 2 alone


def _cheat(backbone, monkeypatch, change):
    """Run layer 2 with a layout that `change` has falsified."""
    kernel = attention._runs

    def falsified(query, key, value, rule, layout, layer):
        return kernel(query, key, value, rule, change(layout) if layer == 2 else layout, layer)

    monkeypatch.setattr(attention, "_runs", falsified)
    return backbone


def _everywhere(direction):
    return lambda layout: replace(layout, unmasked=((direction,),) * len(layout.unmasked))


def _joined(layout):
    return replace(layout, lengths=(sum(layout.lengths),), slice_documents=(0, 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("change", "policy", "fault"),
    [
        (_everywhere(True), CAUSAL, "lets a token see later tokens, though its mask is in place"),
        (_everywhere(False), ALL, "hides later tokens, though model.unmask removes its mask"),
        (_joined, CAUSAL, "lets a document depend on its neighbours"),
        (_joined, ALL, "lets a document depend on its neighbours"),
    ],
    ids=["ignores the direction", "stays causal", "leaks", "leaks both ways"],
)
def test_a_cheat_is_caught_in_its_layer(change, policy, fault, dtype, tiny_model, monkeypatch):
    backbone = _cheat(wrap(tiny_model("llama", dtype=dtype)), monkeypatch, change)
    with pytest.raises(ModelError, match=rf"layer 2 of llama {fault}.*measured .*bound"):
        check(backbone, policy)


def test_attention_that_ignores_all_directions_is_caught_in_the_first_layer_that_differs(tiny_model, monkeypatch):
    kernel = attention._runs
    ignore = _everywhere(False)
    monkeypatch.setattr(attention, "_runs", lambda q, k, v, r, layout, layer: kernel(q, k, v, r, ignore(layout), layer))
    backbone = wrap(tiny_model("llama"))
    check(backbone, CAUSAL)
    with pytest.raises(ModelError, match="layer 1 of llama hides"):
        check(backbone, HALF)


def test_rows_that_depend_on_each_other_are_caught(tiny_model):
    backbone = wrap(tiny_model("bloom"))
    backbone.blocks[1].self_attention.dense.register_forward_hook(lambda m, a, out: out - out.mean(0, keepdim=True))
    with pytest.raises(ModelError, match="layer 1 of bloom lets a document depend on its neighbours"):
        check(backbone, CAUSAL)


def test_positions_that_run_on_through_the_stream_are_caught(tiny_model):
    backbone = wrap(tiny_model("gpt2"))
    table = backbone.model.wpe
    table.register_forward_hook(lambda m, args, out: table.weight[torch.arange(out.shape[1])][None])
    with pytest.raises(ModelError, match="embeddings of gpt2 let a document depend"):
        check(backbone, CAUSAL)


@pytest.mark.parametrize("family", ["llama", "modernbert"])
def test_heads_that_look_at_one_token_alone_are_sound(family, tiny_model):
    backbone = wrap(tiny_model(family))
    for name, module in backbone.linear_modules().items():
        if name.endswith(("q_proj", "Wqkv")):
            module.weight.data[:32] *= 1e4  # the weights of all tokens but one round to nothing
    assert check(backbone, ALL).moved > 1e-3


def test_a_model_of_nan_fails(tiny_model):
    backbone = wrap(tiny_model("llama"))
    backbone.blocks[3].mlp.down_proj.weight.data.fill_(float("nan"))
    with pytest.raises(ModelError, match="layer 3 of llama"):
        check(backbone, CAUSAL)
