"""Attention with rotary positions, the rotation written down: a third to four fifths of the stock code's time on a CPU.

Stock modules rotate queries and keys in fourteen steps, each of which autograd remembers; backwards they are some
thirty. Here a rotation is one node: (a, b) -> (a cos - b sin, b cos + a sin) for the halves a, b of a head, and its
transpose backwards. A module takes a stock one's place only after it has given the same values and gradients, in a call
that the model itself made; its layers stay the same modules under the same names.

Shapes: N tokens of one packed stream, H hidden size, h heads, C head size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from labeltune.model import attention
from labeltune.model.agreement import agree
from labeltune.model.fused import Fused, close

LAYERS = {"q_proj", "k_proj", "v_proj", "o_proj"}
NORMS = {"q_norm", "k_norm"}
Words = dict[str, Any]


class RotaryAttention(nn.Module):
    """The attention of llama and its many children. told: what the stock module tells its attention function."""

    def __init__(self, stock: nn.Module, head_size: int, told: Mapping[str, Any]) -> None:
        super().__init__()
        for name, child in stock.named_children():
            self.add_module(name, child)
        self.config, self.layer_idx = stock.config, stock.layer_idx
        self.head_size, self.told = head_size, dict(told)
        self.normed = hasattr(stock, "q_norm")
        self.train(stock.training)

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        past_key_values: object = None,
        **words: Any,
    ) -> tuple[Tensor, None]:
        """(1, N, H) to (1, N, H). position_embeddings: cosines and sines, (1, N, C) each."""
        if past_key_values is not None:
            raise attention.LayoutMissing("labeltune's attention keeps no cache: call the model through Backbone")
        project: Iterator[Tensor] = (self.get_submodule(name)(hidden_states) for name in ("q_proj", "k_proj", "v_proj"))
        q, k, v = (each.unflatten(-1, (-1, self.head_size)) for each in project)
        if self.normed:
            q, k = self.get_submodule("q_norm")(q), self.get_submodule("k_norm")(k)
        q, k = rotated(q, *position_embeddings), rotated(k, *position_embeddings)
        words = {**self.told, **words}
        seen = attention.attend(self, q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attention_mask, **words)
        return self.get_submodule("o_proj")(seen[0].flatten(-2)), None


# The rotation


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """(1, N, h, C), each head rotated by its token's angles; cos, sin: (1, N, C)."""
    if not (x.requires_grad and torch.is_grad_enabled()):
        return _forwards(x, cos, sin)
    out: Tensor = _Rotation.apply(x, cos, sin)  # type: ignore[no-untyped-call]  # as torch has it
    return out


class _Rotation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return (_fused_forwards if x.is_cuda else _forwards)(x, cos, sin)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return (_fused_backwards if gradient.is_cuda else _backwards)(gradient, *ctx.saved_tensors), None, None


def _forwards(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    sin_a, sin_b = sin.chunk(2, -1)
    return _steps(x, cos, -sin_a, sin_b)


def _backwards(gradient: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    sin_a, sin_b = sin.chunk(2, -1)
    return _steps(gradient, cos, sin_b, -sin_a)


def _steps(x: Tensor, cos: Tensor, of_b: Tensor, of_a: Tensor) -> Tensor:
    """The halves (a, b) of each head to (a cos + b of_b, b cos + a of_a); of_b, of_a: (1, N, C / 2)."""
    out = x * cos.unsqueeze(2)
    (a, b), (to_a, to_b) = x.chunk(2, -1), out.chunk(2, -1)
    to_a.addcmul_(b, of_b.unsqueeze(2))
    to_b.addcmul_(a, of_a.unsqueeze(2))
    return out


def _one_forwards(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    sin_a, sin_b = sin.chunk(2, -1)
    return _formula(x, cos, -sin_a, sin_b)


def _one_backwards(gradient: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    sin_a, sin_b = sin.chunk(2, -1)
    return _formula(gradient, cos, sin_b, -sin_a)


def _formula(x: Tensor, cos: Tensor, of_b: Tensor, of_a: Tensor) -> Tensor:
    """`_steps` for a compiler: in fp32, each half rounded once before they meet, or a kernel would write fp32."""
    (a, b), (cos_a, cos_b) = x.float().chunk(2, -1), cos.float().unsqueeze(2).chunk(2, -1)
    to_a, to_b = a * cos_a + b * of_b.float().unsqueeze(2), b * cos_b + a * of_a.float().unsqueeze(2)
    return torch.cat([to_a.to(x.dtype), to_b.to(x.dtype)], -1)


_fused_forwards, _fused_backwards = Fused(_one_forwards, "rotation", close), Fused(_one_backwards, "rotation", close)


# Taking a stock module's place


def rotate_once(model: nn.Module, probe: Callable[[], object]) -> int:
    """Replace every attention that ours equals, by its name in the model; how many. probe: a small pass of the model.

    Each is asked by itself: some families rotate in some layers only.
    """
    calls = {id(call.module): call for call in _calls(model, probe)}
    count = 0
    for name, stock in list(model.named_modules()):
        call = calls.get(id(stock))
        if call is not None and call.agrees():
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, call.ours())
            count += 1
    return count


LATE = 2**20
"""Added to the positions at which a stock module is compared."""


class _Call:
    """A stock attention module with a call that the model made of it, and what it told its attention function."""

    def __init__(self, module: nn.Module, given: Words, told: Words) -> None:
        self.module, self.given, self.told = module, given, told

    def ours(self) -> RotaryAttention:
        cos, _ = self.given["position_embeddings"]
        return RotaryAttention(self.module, cos.shape[-1], self.told)

    def agrees(self) -> bool:
        """Whether ours gives the stock module's values and gradients, of any states and angles whatever.

        At late positions, for some families scale their queries there.
        """
        given, (cos, sin) = self.given["hidden_states"], self.given["position_embeddings"]
        noise = torch.Generator().manual_seed(0)
        states, *angles = (torch.randn(each.shape, generator=noise).to(each) for each in (given, cos, sin))
        words = self.given | {"position_embeddings": tuple(angles)}
        if isinstance(positions := words.get("position_ids"), Tensor):
            words["position_ids"] = positions + LATE

        def through(module: nn.Module) -> Callable[[Tensor], Tensor]:
            return lambda x: cast(Tensor, module(**(words | {"hidden_states": x}))[0])

        return agree(through(self.module), through(self.ours()), [states])


def _calls(model: nn.Module, probe: Callable[[], object]) -> Iterator[_Call]:
    """The calls of all attention modules that look as ours does, in one probe."""
    given: dict[int, Words] = {}

    def note(module: nn.Module, args: tuple[object, ...], words: Words) -> None:
        if not args:
            given[id(module)] = words

    like = [module for module in model.modules() if _is_like_ours(module)]
    handles = [module.register_forward_pre_hook(note, with_kwargs=True) for module in like]
    try:
        with torch.no_grad(), attention.witnessed() as seen:
            probe()
    finally:
        for handle in handles:
            handle.remove()
    told = {id(module): words for module, words in seen}
    for module in like:
        words = given.get(id(module), {})
        if id(module) in told and {"hidden_states", "position_embeddings"} <= words.keys():
            yield _Call(module, words, told[id(module)])


def _is_like_ours(module: nn.Module) -> bool:
    """Whether it has our layers, and nothing else that we would not know what to do with."""
    names = {name for name, _ in module.named_children()}
    if getattr(getattr(module, "config", None), "clip_qkv", None) is not None:
        return False  # values beyond what a probe has are clipped
    return names in (LAYERS, LAYERS | NORMS) and not any(True for _ in module.named_parameters(recurse=False))
