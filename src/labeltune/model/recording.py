"""Recorded passes: where launching kernels is what a small training pass costs, they are launched once for all (CUDA).

A recording is two CUDA graphs, of the backbone's forward pass and of its backward pass, for one `Shape`; replaying it
costs two launches. Passes are padded to few shapes: every slice to T tokens and D documents. The padding is documents
of their own, which nobody reads and which no gradient comes from, so a padded pass gives what the pass gives.

What changes from pass to pass is copied into the recording's own tensors: tokens, boundaries, the addresses and numbers
that dropout draws from. Weights are read where they lie. Gradients are added, inside the recording, to `p.grad`.

All recordings of a model share their memory, so one pass must be through backwards before the next begins; a backward
pass that comes too late is refused. A model that cannot be recorded trains as it is, and the log says why.

Shapes: K slices, T tokens and D documents of each, N = K T, H hidden size.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from labeltune.model.backbone import Backbone
from labeltune.model.layout import Layout
from labeltune.model.updates import Attached
from labeltune.schema import Batch
from labeltune.transfer import sent

logger = logging.getLogger(__name__)

MOST_TOKENS = 4096
"""Of a recorded pass: larger ones keep the device busy by themselves."""
SPARE = 256
"""Padding that may be there beside as much as the text."""
SIGHTINGS, RECORDINGS = 3, 24
"""A shape is recorded when it comes so often, and so many of them are kept."""


@dataclass(frozen=True)
class Shape:
    """What a recording fixes. longest: tokens of a document at most. keyed: which slices draw random values."""

    slices: int
    tokens: int
    documents: int
    longest: int
    keyed: tuple[bool, ...]

    @classmethod
    def of(cls, layout: Layout, context: int | None) -> Shape:
        """The smallest shape that holds the pass, of those that there are."""
        longest = _rounded(max(layout.lengths))
        if context is not None:
            longest = min(longest, max(context, *layout.lengths))
        sizes = [b - a for a, b in pairwise(layout.slice_tokens)]
        tokens = _rounded(max(sizes))
        own = [b - a for a, b in pairwise(layout.slice_documents)]
        documents = max(count + -(-(tokens - size) // longest) for count, size in zip(own, sizes, strict=True))
        return cls(len(sizes), tokens, -(-documents // 8) * 8, longest, tuple(key is not None for key in layout.keys))


def _rounded(count: int) -> int:
    """Up to a multiple of a quarter of the power of two below, at least 16: at most a quarter more."""
    step = max(16, 1 << max(0, count.bit_length() - 3))
    return -(-count // step) * step


@dataclass(frozen=True)
class Padded:
    """One pass in a shape. source: for each of N tokens its place in the stream, -1 in the padding; lengths: K D."""

    source: np.ndarray
    lengths: np.ndarray

    @classmethod
    def of(cls, layout: Layout, shape: Shape) -> Padded:
        """Each slice followed by documents of padding, none longer than the longest, and by empty ones."""
        source = np.full((shape.slices, shape.tokens), -1, np.int64)
        lengths = np.zeros((shape.slices, shape.documents), np.int64)
        slices = zip(pairwise(layout.slice_tokens), pairwise(layout.slice_documents), strict=True)
        for k, ((start, end), (first, last)) in enumerate(slices):
            source[k, : end - start] = np.arange(start, end)
            whole, rest = divmod(shape.tokens - (end - start), shape.longest)
            own = [*layout.lengths[first:last], *[shape.longest] * whole, *[rest] * (rest > 0)]
            lengths[k, : len(own)] = own
        return cls(source.ravel(), lengths.ravel())


class Inputs:
    """A recording's own tensors, on the device."""

    def __init__(self, shape: Shape, layout: Layout, attached: Attached, device: torch.device) -> None:
        tokens = shape.slices * shape.tokens
        self.ids, self.positions, self.rows, self.indices = torch.zeros(4, tokens, dtype=torch.int64, device=device)
        self.bounds = torch.zeros(shape.slices * shape.documents + 1, dtype=torch.int32, device=device)
        self.layout = Layout(
            lengths=(shape.longest,) * (shape.slices * shape.documents),  # what the kernel asks: the longest
            cu_seqlens=self.bounds,
            slice_tokens=tuple(k * shape.tokens for k in range(shape.slices + 1)),
            slice_documents=tuple(k * shape.documents for k in range(shape.slices + 1)),
            unmasked=layout.unmasked,
            token_row=self.rows,
            token_index=self.indices,
            keys=layout.keys,
            owner=attached,
        )
        self.table = sent(attached.dropout.table(self.layout), device)
        self._attached = attached

    def fill(self, batch: Batch, layout: Layout, padded: Padded) -> None:
        """Take over one pass."""
        device = self.ids.device
        source = sent(torch.from_numpy(padded.source), device)
        real, source = source >= 0, source.clamp(min=0)
        given = torch.stack([batch.input_ids, batch.position_ids, layout.token_row, layout.token_index])
        chosen = torch.where(real, given[:, source], 0)  # positions of padding are 0: every context has them
        for own, values in zip((self.ids, self.positions, self.rows, self.indices), chosen, strict=True):
            own.copy_(values)
        self.bounds[1:].copy_(sent(torch.from_numpy(padded.lengths).cumsum(0).to(torch.int32), device))
        self.table.copy_(sent(self._attached.dropout.table(replace(self.layout, keys=layout.keys)), device))

    def announce(self) -> None:
        """Let dropout draw from this pass's numbers."""
        self._attached.dropout.use(self.layout, self.table)


class Gradients:
    """Where recordings add the parameters' gradients: one stretch of memory, and each parameter's part of it."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters = list(parameters)
        sizes = [p.numel() for p in self.parameters]
        self._flat = torch.zeros(sum(sizes), device=self.parameters[0].device)
        self.parts = [part.view_as(p) for part, p in zip(self._flat.split(sizes), self.parameters, strict=True)]

    def give(self) -> None:
        """Make the parts the parameters' gradients, with what these hold already."""
        if all(p.grad is None for p in self.parameters):
            self._flat.zero_()
        else:
            for p, part in zip(self.parameters, self.parts, strict=True):
                if p.grad is None:
                    part.zero_()
                elif p.grad is not part:
                    part.copy_(p.grad)
        for p, part in zip(self.parameters, self.parts, strict=True):
            p.grad = part


class Graphs:
    """One shape's forward and backward pass, as CUDA graphs."""

    def __init__(self, run: Callable[[], Tensor], gradients: Gradients, pool: Any) -> None:
        """Record `run`. pool: memory that recordings share."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # whatever is compiled, loaded and chosen at a first call
            for _ in range(2):
                out = run()
                torch.autograd.grad(out, gradients.parameters, torch.zeros_like(out))
        torch.cuda.current_stream().wait_stream(side)
        del out
        self._forward, self._backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._forward, pool=pool):
            out = run()
        self._given = torch.zeros_like(out)
        with torch.cuda.graph(self._backward, pool=pool):
            found = torch.autograd.grad(out, gradients.parameters, self._given)
            for part, gradient in zip(gradients.parts, found, strict=True):
                part.add_(gradient)
        self._out = out.detach()

    def forward(self) -> Tensor:
        """The last hidden states (N, H), valid until the next replay of any recording."""
        self._forward.replay()
        return self._out

    def backward(self, gradient: Tensor) -> None:
        """Add the parameters' gradients to their parts."""
        self._given.copy_(gradient)
        self._backward.replay()


Record = Callable[[Callable[[], Tensor], Gradients, Any], Graphs]


class Recorder:
    """The recordings of one model's adapters on its backbone."""

    def __init__(
        self, backbone: Backbone, attached: Attached, parameters: Sequence[nn.Parameter], record: Record = Graphs
    ) -> None:
        self.backbone, self.attached, self.record = backbone, attached, record
        self.parameters = list(parameters)
        self.passes = 0  # begun so far; a backward pass must belong to the last of them
        self._seen: dict[Shape, int] = {}
        self._recordings: dict[Shape, tuple[Inputs, Graphs]] = {}
        self._places: list[int] = []
        self._gradients: Gradients | None = None
        self._pool: Any = None
        self._off = not self.parameters

    def hidden(self, batch: Batch, layout: Layout, depths: Sequence[int]) -> list[Tensor] | None:
        """Per slice the last hidden states, as `Backbone.hidden` gives them; None for a pass that is not recorded."""
        if self._off or not self._fits(layout, depths):
            return None
        shape = Shape.of(layout, self.backbone.context)
        if shape.slices * shape.tokens > 2 * layout.slice_tokens[-1] + SPARE:
            return None  # slices of very different sizes: more padding than text
        recording = self._recording(shape, batch, layout)
        if recording is None:
            return None
        inputs, graphs = recording
        inputs.fill(batch, layout, Padded.of(layout, shape))
        self.passes += 1
        anchor = torch.zeros((), device=inputs.ids.device, requires_grad=True)
        last: Tensor = _Replay.apply(anchor, self, graphs)  # type: ignore[no-untyped-call]  # as torch has it
        sizes = [b - a for a, b in pairwise(layout.slice_tokens)]
        return [part[:size] for part, size in zip(last.split(shape.tokens), sizes, strict=True)]

    def _fits(self, layout: Layout, depths: Sequence[int]) -> bool:
        """A training pass over the whole depth, small, every slice there, each layer in one direction."""
        return (
            torch.is_grad_enabled()
            and self.backbone.records
            and layout.slice_tokens[-1] <= MOST_TOKENS
            and all(b > a for a, b in pairwise(layout.slice_tokens))
            and all(depth == self.backbone.layers for depth in depths)
            and all(len(set(both)) == 1 for both in layout.unmasked)
        )

    def _recording(self, shape: Shape, batch: Batch, layout: Layout) -> tuple[Inputs, Graphs] | None:
        places = [p.data_ptr() for p in self.parameters]
        if places != self._places:
            self._places = places
            self._recordings.clear()  # they read weights where they lay
        if shape not in self._recordings:
            self._seen[shape] = self._seen.get(shape, 0) + 1
            if self._seen[shape] < SIGHTINGS or len(self._recordings) >= RECORDINGS:
                return None
            try:
                self._recordings[shape] = self._made(shape, batch, layout)
            except RuntimeError as error:  # out of memory, or something that no graph can hold
                self._off = True
                self._recordings.clear()
                logger.warning("passes are not recorded, small ones are slower: %s", str(error).split("\n")[0])
                return None
        return self._recordings[shape]

    def _made(self, shape: Shape, batch: Batch, layout: Layout) -> tuple[Inputs, Graphs]:
        inputs = Inputs(shape, layout, self.attached, self.backbone.device)
        inputs.fill(batch, layout, Padded.of(layout, shape))
        if self._gradients is None:
            self._gradients = Gradients(self.parameters)
            self._pool = torch.cuda.graph_pool_handle() if self.backbone.device.type == "cuda" else None

        def run() -> Tensor:
            inputs.announce()
            out: Tensor = self.backbone(inputs.ids, inputs.positions, inputs.layout)
            return out

        graphs = self.record(run, self._gradients, self._pool)
        self._compare(run, graphs, self._gradients)
        return inputs, graphs

    def backward(self, graphs: Graphs, gradient: Tensor, number: int) -> None:
        """The gradients of the pass with this number, which must be the last one that began."""
        if number != self.passes:
            raise RuntimeError("a recorded pass must go backwards before the next one begins")
        assert self._gradients is not None
        self._gradients.give()
        graphs.backward(gradient)

    def _compare(self, run: Callable[[], Tensor], graphs: Graphs, gradients: Gradients) -> None:
        """The recording's values and gradients against the pass itself, to the rounding of its dtype."""
        held = [p.grad if p.grad is None else p.grad.clone() for p in self.parameters]
        try:
            values, slopes, rounding = self._differences(run, graphs, gradients)
        finally:  # memory may run out on the way, and the pass is then made without a recording
            for p, gradient in zip(self.parameters, held, strict=True):
                p.grad = gradient
        if not max(values, slopes) <= 16 * rounding:
            raise RuntimeError(f"a recorded pass gives other values (by {values:.1e}) or gradients (by {slopes:.1e})")

    def _differences(
        self, run: Callable[[], Tensor], graphs: Graphs, gradients: Gradients
    ) -> tuple[float, float, float]:
        """How far apart values and gradients are, and the rounding; the parameters' own gradients are lost."""
        expected = run()
        given = expected.detach().sign()
        wanted = torch.cat([g.flatten() for g in torch.autograd.grad(expected, self.parameters, given)])
        for p in self.parameters:
            p.grad = None
        values = _apart(graphs.forward(), expected.detach())
        gradients.give()
        graphs.backward(given)
        slopes = _apart(torch.cat([part.flatten() for part in gradients.parts]), wanted)
        return values, slopes, torch.finfo(expected.dtype).eps


def _apart(a: Tensor, b: Tensor) -> float:
    return float((a.float() - b.float()).norm() / b.float().norm())


class _Replay(torch.autograd.Function):
    """A recording as one operation of autograd. The anchor only asks for a gradient."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, recorder: Recorder, graphs: Graphs) -> Tensor:
        ctx.recorder, ctx.graphs, ctx.number = recorder, graphs, recorder.passes
        return graphs.forward().clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None, None]:
        ctx.recorder.backward(ctx.graphs, gradient, ctx.number)
        return None, None, None
