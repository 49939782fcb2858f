"""Low-rank updates on untouched linear layers: member k's adapter changes slice k of the packed tokens, nothing else.

The module keeps its name, class and weights (Linear, Conv1D, fused qkv, 4- and 8-bit alike); a forward hook adds the
update to its output. The update is computed in the dtype of the activations: in fp32 all of it; in bf16 the masters are
cast for the two thin products, whose gradients are cast back and accumulated in fp32.

Layers that read the same tensor (q, k and v; gate and up) share what costs: its dropout is drawn once, and one product
with their stacked A serves them all. The address of the mask is the first layer that reads the tensor, adapted or not.

Several members: a loop over slices on CPU (each multiplies what it would alone), on other devices one `bmm` and one
`baddbmm` over stacked adapters where slices are of equal size, since there launches are what a small pass costs.

DoRA (Liu et al. 2024, arXiv 2402.09353) is computed here too and not through PEFT's layer, so that it packs, shares a
pass and leaves the module untouched like the rest; the weight norm is a constant of the step (section 4.3 there).

Shapes: N tokens, K slices, T tokens per slice, I inputs, O outputs, R rank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.hooks import RemovableHandle

from labeltune.errors import ModelError
from labeltune.model.dropout import Dropout
from labeltune.model.layout import Layout, Slot
from labeltune.model.lora import Adapter, module_of, weight_of


class Attached:
    """Hooks on a backbone's modules; they act only in passes whose layout names them as `owner`."""

    def __init__(self) -> None:
        """No hooks yet; use `attach`."""
        self._handles: list[RemovableHandle] = []
        self.dropout = Dropout({})

    def add(self, handle: RemovableHandle) -> None:
        """Own one more hook."""
        self._handles.append(handle)

    def remove(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()


def attach(modules: Mapping[str, nn.Module], adapters: Sequence[Adapter | None], slot: Slot) -> Attached:
    """Hook the modules that any adapter names; adapter k updates slice k of the passes that `slot` announces.

    Raises:
        ModelError: an adapter names a module that is not there, or of another shape.
    """
    attached, sources = Attached(), dict[str, _Source]()
    for name in dict.fromkeys(name for adapter in adapters if adapter is not None for name in adapter.names):
        chosen = tuple(adapter if adapter is not None and name in adapter.names else None for adapter in adapters)
        module, first = module_of(modules, name, chosen), slot.first_reader.get(name, name)
        source = sources.setdefault(first, _Source(first, adapters, slot, attached.dropout))
        source.add(name)
        update = _Update(name, chosen, slot, attached, source)
        attached.add(module.register_forward_hook(update, prepend=True))  # before rows are put back (`narrowing`)
    return attached


class _Source:
    """A tensor that some adapted layers read; `first` names the mask, `readers` are the adapted ones."""

    def __init__(self, first: str, adapters: Sequence[Adapter | None], slot: Slot, dropout: Dropout) -> None:
        self.first, self.adapters, self.slot, self.dropout = first, adapters, slot, dropout
        self.readers: list[str] = []

    def add(self, reader: str) -> None:
        """One more layer; a slice has dropout where its adapter changes any of them."""
        self.readers.append(reader)
        self.dropout.rates[self.first] = [
            adapter.dropout if adapter is not None and self.read_by(adapter) else 0.0 for adapter in self.adapters
        ]

    def read_by(self, adapter: Adapter) -> list[str]:
        """The layers that the adapter changes."""
        return [name for name in self.readers if name in adapter.names]

    def read(self, x: torch.Tensor, layout: Layout) -> _Reading:
        """The reading of `x`, begun by the first reader and forgotten after the last, or with the pass."""
        reading: _Reading | None = self.slot.kept.pop(self, None)
        if reading is None or reading.x is not x:
            reading = _Reading(self, x, layout)
        reading.left -= 1
        if reading.left > 0:
            self.slot.kept[self] = reading
        return reading


class _Reading:
    """One tensor in one pass.

    x_NI: with dropped features at zero. scales: per slice the factor of its update. left: readers still to come.
    """

    def __init__(self, source: _Source, x: torch.Tensor, layout: Layout) -> None:
        self.source, self.x, self.left = source, x, len(source.readers)
        self.sizes = [b - a for a, b in pairwise(layout.slice_tokens)]
        rates = source.dropout.rates[source.first]
        self.scales = [
            adapter.scaling / (1 - rate * (key is not None)) if adapter is not None else 0.0
            for adapter, rate, key in zip(source.adapters, rates, layout.keys, strict=True)
        ]
        self.x_NI = source.dropout(x.flatten(0, -2), source.first, layout)
        self._thin: dict[int, dict[str, torch.Tensor]] = {}

    def thin(self, k: int, name: str) -> torch.Tensor:
        """Slice k times the layer's A, (T, R): one product for all readers of the slice's adapter."""
        adapter = self.source.adapters[k]
        assert adapter is not None
        if k not in self._thin:
            names = self.source.read_by(adapter)
            a_RI = torch.cat([adapter.pair(each)[0] for each in names]).to(self.x_NI.dtype)
            x_TI = self.x_NI if len(self.sizes) == 1 else self.x_NI.split(self.sizes)[k]
            self._thin[k] = dict(zip(names, (x_TI @ a_RI.T).split(adapter.rank, dim=1), strict=True))
        return self._thin[k][name]


class _Update:
    """The forward hook of one module: `output + update(input)`, slice by slice."""

    def __init__(
        self, name: str, adapters: tuple[Adapter | None, ...], slot: Slot, owner: Attached, source: _Source
    ) -> None:
        self.name, self.adapters, self.slot, self.owner, self.source = name, adapters, slot, owner, source
        self.stackable = all(adapter is not None and adapter.kind != "dora" for adapter in adapters)

    def __call__(self, module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor | None:
        layout = self.slot.current
        if layout.owner is not self.owner:
            return None
        tokens, y_NO = args[0].shape[:-1].numel(), output.flatten(0, -2)
        if tokens != layout.slice_tokens[-1]:
            raise ModelError(
                f"this layer reads {tokens} of {layout.slice_tokens[-1]} tokens, and an adapter needs them all",
                at=self.name,
                hint="take it out of lora.targets",
            )
        reading = self.source.read(args[0], layout)
        if self.stackable and len(reading.sizes) == 1 and output.is_cuda and output.ndim == 3:
            return self.added(output, reading)
        if self.stackable and len(set(reading.sizes)) == 1 < len(reading.sizes) and y_NO.device.type != "cpu":
            return self.stacked(reading.x_NI, y_NO, reading.scales).view_as(output)
        return self.looped(module, y_NO, reading).view_as(output)

    def added(self, output: torch.Tensor, reading: _Reading) -> torch.Tensor:
        """One slice, into the layer's own output (1, N, O), which nobody else has seen: no copy of it is made.

        A view may be one that was made inside a function of autograd (bitsandbytes does so in 8 bits), and autograd
        lets nobody write into those.
        """
        (adapter,) = self.adapters
        assert adapter is not None
        b_OR = adapter.pair(self.name)[1].to(output.dtype)
        thin = reading.thin(0, self.name).unsqueeze(0)
        add = output.baddbmm if output._is_view() else output.baddbmm_
        return add(thin, b_OR.T.unsqueeze(0), alpha=reading.scales[0])

    def looped(self, module: nn.Module, y_NO: torch.Tensor, reading: _Reading) -> torch.Tensor:
        """Each slice by itself; slices without an adapter stay as they are."""
        updated = [
            y_TO
            if adapter is None or not len(y_TO)
            else self._one(module, adapter, y_TO, reading.thin(k, self.name), reading.scales[k])
            for k, (adapter, y_TO) in enumerate(zip(self.adapters, y_NO.split(reading.sizes), strict=True))
        ]
        return updated[0] if len(updated) == 1 else torch.cat(updated)

    def _one(
        self, module: nn.Module, adapter: Adapter, y_TO: torch.Tensor, u_TR: torch.Tensor, scale: float
    ) -> torch.Tensor:
        b_OR = adapter.pair(self.name)[1].to(y_TO.dtype)
        if adapter.kind != "dora":
            if not torch.is_grad_enabled():
                return y_TO.addmm_(u_TR, b_OR.T, alpha=scale)  # the layer's own output, which nobody else has seen
            return torch.addmm(y_TO, u_TR, b_OR.T, alpha=scale)
        with torch.no_grad():
            norm_O = torch.linalg.vector_norm(weight_of(module, self.name) + adapter.update(self.name), dim=1)
        factor_O = (adapter.magnitude_of(self.name) / norm_O).to(y_TO.dtype)
        unbiased_TO = y_TO - module.bias if isinstance(module.bias, torch.Tensor) else y_TO
        updated_TO: torch.Tensor = y_TO + (factor_O - 1) * unbiased_TO + factor_O * scale * (u_TR @ b_OR.T)
        return updated_TO

    def stacked(self, x_NI: torch.Tensor, y_NO: torch.Tensor, scales: Sequence[float]) -> torch.Tensor:
        """Equal slices at once. Ranks are padded by zero rows of A and zero columns of B, which get no gradient."""
        slices = len(scales)
        pairs = [adapter.pair(self.name) for adapter in self.adapters if adapter is not None]
        rank = max(len(a) for a, _ in pairs)
        a_KRI = torch.stack([a if len(a) == rank else F.pad(a, (0, 0, 0, rank - len(a))) for a, _ in pairs])
        b_KOR = torch.stack([b if b.shape[1] == rank else F.pad(b, (0, rank - b.shape[1])) for _, b in pairs])
        b_KOR = b_KOR * _column(tuple(scales), b_KOR.device)
        x_KTI, y_KTO = (t.view(slices, len(t) // slices, t.shape[1]) for t in (x_NI, y_NO))
        u_KTR = torch.bmm(x_KTI, a_KRI.to(x_NI.dtype).mT)
        return torch.baddbmm(y_KTO, u_KTR, b_KOR.to(x_NI.dtype).mT).flatten(0, 1)


@lru_cache(maxsize=64)
def _column(values: tuple[float, ...], device: torch.device) -> torch.Tensor:
    """Numbers per slice as (K, 1, 1), copied to the device once."""
    with torch.inference_mode(False):  # the cache may serve a training step later
        return torch.tensor(values, device=device).view(-1, 1, 1)
