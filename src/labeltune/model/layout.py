"""Who is where in one packed pass: fixed when a micro-batch starts, read by attention and by the adapter hooks.

Linear layers receive no keyword arguments, so the adapter's hooks read the layout from a `Slot`; recomputation under
gradient checkpointing re-enters the layout of the forward pass it repeats (`Slot.checkpoint_contexts`), so a later
forward pass cannot disturb an earlier one's backward.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch

from labeltune.keys import Key


@dataclass(frozen=True)
class Layout:
    """The geometry of one pass over N tokens of D packed documents in K slices.

    lengths: D document lengths, in stream order; cu_seqlens: int32 (D + 1) on the device.
    slice_tokens, slice_documents: K + 1 boundaries.
    unmasked: [layer][slice], True where that slice's documents look both ways in that layer.
    token_row, token_index: int64 (N), the addresses that dropout draws from.
    keys: per slice, the key of this pass's randomness, or None outside training.
    owner: whose adapters act in this pass (what `updates.attach` returned); None is nobody, the bare backbone.
    read: int64 (M), ascending, the tokens whose last hidden states anybody reads; None is all (see `narrowing`).
    """

    lengths: tuple[int, ...]
    cu_seqlens: torch.Tensor
    slice_tokens: tuple[int, ...]
    slice_documents: tuple[int, ...]
    unmasked: tuple[tuple[bool, ...], ...]
    token_row: torch.Tensor
    token_index: torch.Tensor
    keys: tuple[Key | None, ...]
    owner: object | None = None
    read: torch.Tensor | None = None

    @cached_property
    def of_read(self) -> Layout:
        """The tokens that are read, and they alone, each a document of its own."""
        assert self.read is not None
        count = len(self.read)
        bounds = torch.searchsorted(self.read, torch.tensor(self.slice_tokens, device=self.read.device))
        slices = tuple(bounds.tolist())
        return replace(
            self,
            lengths=(1,) * count,
            cu_seqlens=torch.arange(count + 1).to(self.cu_seqlens),
            slice_tokens=slices,
            slice_documents=slices,
            token_row=self.token_row[self.read],
            token_index=self.token_index[self.read],
            read=None,
        )


class Slot:
    """Holds the layout of the pass that is running.

    first_reader: for each linear layer of the body, the first one that reads the same tensor.
    kept: what hooks keep for later layers of the running pass. It goes when the pass ends or fails: one tensor of a
    failed pass would hold the memory of all layers before it.
    """

    def __init__(self) -> None:
        self._current: Layout | None = None
        self._whole: Layout | None = None
        self.first_reader: dict[str, str] = {}
        self.kept: dict[object, Any] = {}

    @property
    def current(self) -> Layout:
        """The running pass's layout; using it outside a pass is a bug."""
        if self._current is None:
            raise RuntimeError("no packed pass is running: the backbone was called directly, not through LabelModel")
        return self._current

    @contextmanager
    def using(self, layout: Layout) -> Iterator[None]:
        """Make `layout` the running one inside the block."""
        before = self._current, self.kept
        self._current, self.kept = layout, {}
        try:
            yield
        finally:
            self._current, self.kept = before

    def read(self) -> torch.Tensor | None:
        """The tokens that are read in the running pass; None for all, or where no pass of ours is running."""
        return None if self._current is None else self._current.read

    def narrow(self) -> None:
        """Make the tokens that are read the pass's only ones, until `widen`, or until it ends or fails."""
        self._whole = self._current
        self._current = self.current.of_read

    def widen(self) -> None:
        """All tokens again."""
        self._current = self._whole

    def checkpoint_contexts(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """The `context_fn` of torch's checkpointing: recomputation sees the layout of its own forward pass."""
        return nullcontext(), self.using(self.current)


def plain_layout(lengths: tuple[int, ...], unmasked: Sequence[bool], device: torch.device) -> Layout:
    """One slice of documents without randomness: what probes and self-checks run."""
    tokens = sum(lengths)
    return Layout(
        lengths=lengths,
        cu_seqlens=torch.tensor([0, *lengths]).cumsum(0).to(torch.int32).to(device),
        slice_tokens=(0, tokens),
        slice_documents=(0, len(lengths)),
        unmasked=tuple((both,) for both in unmasked),
        token_row=torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).to(device),
        token_index=torch.cat([torch.arange(length) for length in lengths]).to(device),
        keys=(None,),
    )


def equal_lengths(layout: Layout) -> Iterator[tuple[torch.Tensor, Layout]]:
    """The documents of each length: their tokens' places in the stream (D * T), and the layout of that pass."""
    starts = torch.tensor([0, *layout.lengths]).cumsum(0)
    for length in sorted(set(layout.lengths)):
        chosen = [d for d, n in enumerate(layout.lengths) if n == length]
        index = (starts[chosen, None] + torch.arange(length)).flatten()
        documents = tuple(sum(d < bound for d in chosen) for bound in layout.slice_documents)
        place = index.to(layout.token_row.device)
        yield (
            index,
            replace(
                layout,
                lengths=(length,) * len(chosen),
                cu_seqlens=(torch.arange(len(chosen) + 1) * length).to(layout.cu_seqlens),
                slice_tokens=tuple(count * length for count in documents),
                slice_documents=documents,
                token_row=layout.token_row[place],
                token_index=layout.token_index[place],
            ),
        )
