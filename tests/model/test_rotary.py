"""Rotation in one step against the stock modules whose place it takes."""

import pytest
import torch
from torch import nn
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from labeltune.model import rotary
from labeltune.model.backbone import wrap
from labeltune.model.fused import Fused, close
from labeltune.model.rotary import RotaryAttention, rotated

REPLACED = {
    **dict.fromkeys(("llama", "mistral", "mixtral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "granite"), 4),
    "smollm3": 2,  # every other layer has no positions
    **dict.fromkeys(("cohere2", "gpt2", "gpt_neox", "gpt_oss", "olmo2", "opt", "phi3", "stablelm", "modernbert"), 0),
}


def angles(tokens: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines, (1, N, C), as a model's own: both halves alike."""
    turns = torch.rand(1, tokens, size // 2, generator=torch.Generator().manual_seed(1)).repeat(1, 1, 2) * 6
    return turns.cos(), turns.sin()


@pytest.mark.parametrize("family", REPLACED)
def test_which_modules_are_replaced(family, tiny_model) -> None:
    stock = tiny_model(family)
    weights, layers = dict(stock.state_dict()), dict(stock.named_modules())
    backbone = wrap(stock)
    ours = [name for name, module in backbone.model.named_modules() if isinstance(module, RotaryAttention)]
    assert len(ours) == REPLACED[family]
    assert backbone.model.state_dict().keys() == weights.keys()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in backbone.model.state_dict().items())
    for name in ours:
        assert backbone.model.get_submodule(name).q_proj is layers[f"{name}.q_proj"]


@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (1, 1)])
def test_values_and_gradients_are_those_of_transformers(heads) -> None:
    noise, (cos, sin) = torch.Generator().manual_seed(0), angles(7, 6)
    for many in heads:
        x = torch.randn(1, 7, many, 6, generator=noise)
        one, other = x.clone().requires_grad_(), x.clone().requires_grad_()
        ours = rotated(one, cos, sin)
        theirs = apply_rotary_pos_emb(other, other, cos, sin, unsqueeze_dim=2)[0]
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(rotated(x, cos, sin), theirs, rtol=1e-6, atol=1e-6)
        weights = torch.randn(theirs.shape, generator=noise)
        (ours * weights).sum().backward()
        (theirs * weights).sum().backward()
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_formula_for_a_compiler_rotates_alike_whatever_the_halves(dtype) -> None:
    x, cos, sin = (
        torch.randn(1, 7, many, 8, generator=torch.Generator().manual_seed(many)).to(dtype) for many in (3, 1, 1)
    )
    cos, sin = cos.squeeze(2), sin.squeeze(2)
    for plain, steps in ((rotary._one_forwards, rotary._forwards), (rotary._one_backwards, rotary._backwards)):
        assert plain(x, cos, sin).dtype == dtype and close(plain(x, cos, sin), steps(x, cos, sin))


@pytest.mark.slow  # compiles
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the compiler's own imports
def test_the_compiled_kernels_rotate_alike(caplog) -> None:
    for plain in (rotary._one_forwards, rotary._one_backwards):
        fused = Fused(plain, "rotation", close)
        for tokens, heads in ((12, 4), (33, 4), (12, 2)):
            x = torch.randn(1, tokens, heads, 8)
            assert close(fused(x, *angles(tokens, 8)), plain(x, *angles(tokens, 8)))
        assert fused._kernel is not plain
    assert not [record for record in caplog.records if record.name.startswith("labeltune")]


def test_a_module_that_rotates_otherwise_stays(tiny_model, monkeypatch) -> None:
    from transformers.models.llama import modeling_llama

    def interleaved(q, k, cos, sin):
        def turn(x: torch.Tensor) -> torch.Tensor:
            pairs = torch.stack([-x[..., 1::2], x[..., ::2]], -1).flatten(-2)
            return x * cos.unsqueeze(1) + pairs * sin.unsqueeze(1)

        return turn(q), turn(k)

    monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", interleaved)
    assert not any(isinstance(module, RotaryAttention) for module in wrap(tiny_model("llama")).modules())


def test_queries_that_grow_with_their_position_stay(tiny_model) -> None:
    rope = {"rope_type": "default", "rope_theta": 1e4}
    grows = {"llama_4_scaling_beta": 1.0, "original_max_position_embeddings": 4}
    stock = tiny_model("ministral3", rope_parameters=rope | grows)
    assert not any(isinstance(module, RotaryAttention) for module in wrap(stock).modules())


def test_values_that_are_clipped_stay(tiny_model) -> None:
    assert not any(isinstance(module, RotaryAttention) for module in wrap(tiny_model("olmo", clip_qkv=8.0)).modules())
    assert any(isinstance(module, RotaryAttention) for module in wrap(tiny_model("olmo")).modules())


def test_a_module_with_weights_of_its_own_stays() -> None:
    odd = nn.Module()
    for name in rotary.LAYERS:
        odd.add_module(name, nn.Linear(2, 2))
    assert rotary._is_like_ours(odd)
    odd.sinks = nn.Parameter(torch.zeros(2))
    assert not rotary._is_like_ours(odd)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_sixteen_bits_are_close_to_thirty_two(family, tiny_model, documents, apart) -> None:
    docs, exact = documents((5, 3, 6)), wrap(tiny_model(family))
    half = wrap(tiny_model(family, dtype=torch.bfloat16))
    assert sum(isinstance(module, RotaryAttention) for module in half.modules()) == 4
    layout = docs.layout([(False,) * 4])
    with torch.no_grad():
        assert (
            apart(half.hidden(docs.batch(), layout, [4])[0].float(), exact.hidden(docs.batch(), layout, [4])[0]) < 0.1
        )
