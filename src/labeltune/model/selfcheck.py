"""Company and Sight, layer by layer, on the model as it is loaded: what it may not do, it is caught doing.

*Company*: a document's outputs are the same alone and among others. *Sight*: where the mask stays, no token feels a
change of the last one; where it is removed, the farthest does. Every layer is judged by itself: where two passes are
compared, each layer is given the inputs it had in the first, so a fault is found where it is made. Attention is evened
meanwhile: what a layer may see is asked, and not how much its heads make of it.

The stream of the first pass, L layers, T tokens a document: a stranger, L copies of the probe (copy l has its last
token turned around at the input of layer l), and the probe left in peace. The second pass holds the probe alone; the
third joins stranger and probe into one document on purpose, and its change at token 0 is the yardstick: in fp32 the
bound is 1e-5 of the largest value, in lower precision a tenth of that change. What is felt must be above the bound; in
lower precision, where a faint layer may stay below it, above a hundredth of the yardstick and twice the rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from labeltune.errors import ModelError
from labeltune.model.anatomy import first_tensor
from labeltune.model.attention import evened
from labeltune.model.backbone import Backbone
from labeltune.model.layout import plain_layout

EXACT = 1e-5
_TOKENS = 6  # of the probe; windows of fewer tokens shorten it

Stage = Callable[[int, Tensor], Tensor]  # layer, its input (N, H) -> the input it is given instead


@dataclass(frozen=True)
class Report:
    """What was measured, as max|a - b| / max|b| in one layer.

    company: the largest difference between the probe in company and alone, bounded by `bound` of that layer.
    still: the largest change before the last token where the mask stays; moved: the smallest at token 0 where it is
        removed; None without.
    bound: the smallest of the layers' bounds.
    """

    layers: int
    packed: bool
    company: float
    still: float | None
    moved: float | None
    bound: float


@dataclass(frozen=True)
class _Trace:
    """What went into each layer and what came out, (N, H) each."""

    entered: dict[int, Tensor]
    left: dict[int, Tensor]


def check(backbone: Backbone, unmask: Sequence[bool]) -> Report:
    """Run the three passes under the policy `unmask`; ModelError names the first layer that fails."""
    with torch.no_grad():
        return _Scene(backbone, tuple(unmask)).judge()


class _Scene:
    """The documents and the passes over them."""

    def __init__(self, backbone: Backbone, unmask: tuple[bool, ...]) -> None:
        self.backbone, self.unmask = backbone, unmask
        self.tokens = _probe_length(backbone)
        self.stranger = self.tokens + 2 * backbone.packed  # rows must be equally long
        stranger, probe = (
            _spread(n, start, backbone.vocab_size) for n, start in ((self.stranger, 5), (self.tokens, 0))
        )
        self.ids = torch.cat([stranger, probe.repeat(backbone.layers + 1)])
        self.places = torch.cat([torch.arange(self.stranger), torch.arange(self.tokens).repeat(backbone.layers + 1)])
        self.exact = backbone.dtype == torch.float32 and getattr(backbone.config, "quantization_config", None) is None

    def judge(self) -> Report:
        """Compare the passes layer by layer, from the first."""
        company = self._together()
        calm = torch.arange(len(self.ids))[-self.tokens :]  # the probe left in peace
        alone = self._again(company, calm, (self.tokens,))
        both = torch.cat([torch.arange(self.stranger), calm])
        joined = self._again(company, both, (self.stranger + self.tokens,))
        self._first_input(company.entered[0][calm], alone.entered[0])
        companies, changes, bounds = [], [], []
        for layer in range(self.backbone.layers):
            out, scale = company.left[layer], _largest(company.left[layer][calm][0])
            yardstick = _largest(joined.left[layer][self.stranger] - out[calm][0]) / scale
            bound = EXACT if self.exact else yardstick / 10
            companies.append(_largest(out[calm] - alone.left[layer]) / _largest(alone.left[layer]))
            earlier = slice(1) if self.unmask[layer] else slice(-1)
            changes.append(_largest((out[self._copy(layer)] - out[calm])[earlier]) / scale)
            bounds.append(bound)
            felt = yardstick / 10 if self.exact else max(yardstick / 100, 2 * companies[-1])
            self._judge_layer(layer, companies[-1], changes[-1], bound, min(bound, felt))
        still = [change for change, both in zip(changes, self.unmask, strict=True) if not both]
        moved = [change for change, both in zip(changes, self.unmask, strict=True) if both]
        return Report(
            layers=self.backbone.layers,
            packed=self.backbone.packed,
            company=max(companies),
            still=max(still, default=None),
            moved=min(moved, default=None),
            bound=min(bounds),
        )

    def _judge_layer(self, layer: int, company: float, change: float, bound: float, felt: float) -> None:
        """`not <=` and `not >` rather than their opposites, so that a NaN fails."""
        if not company <= bound:
            self._refuse(layer, "lets a document depend on its neighbours in the batch", company, bound)
        if not self.unmask[layer] and not change <= bound:
            self._refuse(layer, "lets a token see later tokens, though its mask is in place", change, bound)
        if self.unmask[layer] and not change > felt:
            self._refuse(layer, "hides later tokens, though model.unmask removes its mask", change, felt)

    def _first_input(self, among: Tensor, alone: Tensor) -> None:
        """What enters the first layer: embeddings and positions."""
        difference = _largest(among - alone) / max(_largest(alone), torch.finfo(torch.float32).tiny)
        if not difference <= (EXACT if self.exact else 1e-2):
            self._refuse(None, "let a document depend on its neighbours in the batch", difference, EXACT)

    def _refuse(self, layer: int | None, what: str, measured: float, bound: float) -> None:
        where = "embeddings" if layer is None else f"layer {layer}"
        message = f"{where} of {self.backbone.config.model_type} {what} (measured {measured:.1e}, bound {bound:.1e})"
        hint = "this model cannot be used as it is: choose another one, or another version of transformers"
        raise ModelError(message, at=self.backbone.source, hint=hint)

    def _copy(self, layer: int) -> slice:
        """Where copy `layer` stands in the stream."""
        start = self.stranger + layer * self.tokens
        return slice(start, start + self.tokens)

    def _together(self) -> _Trace:
        """All documents in one pass; copy l is the calm probe again at the input of layer l, but for its last token."""
        layers, tokens = self.backbone.layers, self.tokens

        def stage(layer: int, entering: Tensor) -> Tensor:
            copy, given = self._copy(layer), entering.clone()
            given[copy] = entering[-tokens:]
            given[copy.stop - 1] *= -1
            return given

        every = torch.arange(len(self.ids))
        return self._run(every, (self.stranger, *(tokens,) * (layers + 1)), stage)

    def _again(self, company: _Trace, chosen: Tensor, lengths: tuple[int, ...]) -> _Trace:
        """The chosen tokens in documents of `lengths`, each layer fed with what it was fed in company."""
        return self._run(chosen, lengths, lambda layer, _: company.entered[layer][chosen])

    def _run(self, chosen: Tensor, lengths: tuple[int, ...], stage: Stage) -> _Trace:
        device = self.backbone.device
        with _staged(self.backbone, stage) as trace, evened():
            layout = plain_layout(lengths, self.unmask, device)
            self.backbone(self.ids[chosen].to(device), self.places[chosen].to(device), layout)
        return trace


def _spread(length: int, start: int, vocabulary: int) -> Tensor:
    """Token ids all over the vocabulary, beginning away from its ends, where the special ones are."""
    return (vocabulary // 3 + (torch.arange(length) + start) * max(1, vocabulary // 29)) % vocabulary


@contextmanager
def _staged(backbone: Backbone, stage: Stage) -> Iterator[_Trace]:
    """Inside the block every layer is given what `stage` makes of its input, and inputs and outputs are kept."""
    trace = _Trace({}, {})
    handles = []
    for layer, block in enumerate(backbone.blocks):
        handles.append(block.register_forward_pre_hook(_enter(layer, stage, trace), with_kwargs=True))
        handles.append(block.register_forward_hook(_leave(layer, trace)))
    try:
        yield trace
    finally:
        for handle in handles:
            handle.remove()


def _enter(layer: int, stage: Stage, trace: _Trace) -> Callable[..., tuple[object, object]]:
    def hook(_: nn.Module, args: tuple[object, ...], words: dict[str, object]) -> tuple[object, object]:
        states = first_tensor(args or (words["hidden_states"],))
        trace.entered[layer] = states.flatten(0, 1)
        given = stage(layer, trace.entered[layer]).view_as(states)
        return ((given, *args[1:]), words) if args else (args, {**words, "hidden_states": given})

    return hook


def _leave(layer: int, trace: _Trace) -> Callable[..., None]:
    def hook(_: nn.Module, __: object, output: object) -> None:
        trace.left[layer] = first_tensor(output).flatten(0, 1)

    return hook


def _probe_length(backbone: Backbone) -> int:
    """Short enough that the first token sees the last one through the smallest window."""
    windows = [getattr(backbone.config, name, None) or _TOKENS for name in ("sliding_window", "window_size")]
    room = _TOKENS if backbone.context is None else backbone.context // 2 - 2
    return max(2, min(_TOKENS, room, *windows))


def _largest(values: Tensor) -> float:
    return float(values.float().abs().max())
