"""Behind the last block's attention every token is on its own, and only those that are read need to go on (CPU).

A text that is read at its last token asks the last block for one row: its output projection, its MLP and its queries
are a sixth of the products of a model of six blocks, and what they give at all other tokens nobody looks at. So hooks
on those modules hand them the rows that are read (`Layout.read`) and put what comes out back in its places, zeros
elsewhere. Keys, values and residuals stay whole, so what is read is what it would be, and so are all gradients.

Which modules these are is seen in a probe: the outermost that take one tensor and give one, once the last block has
attended; and the layer that makes its queries, which goes by a name. Then the narrowed pass must give what the whole
one gives.

Shapes: N tokens, M of them read, F features.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from labeltune.model import attention
from labeltune.model.agreement import CLOSE
from labeltune.model.anatomy import leaf
from labeltune.model.layout import Slot

QUERIES = {"q_proj", "query", "q_lin"}
"""What families call a linear layer that makes queries and nothing else."""

Probe = Callable[[Tensor | None], Tensor]
"""A small pass, given the tokens that are read (or None, for all): the last hidden states (N, H)."""
Rows = Callable[[], Tensor | None]
"""The rows that are read in the running pass, int64 (M); None where all go on."""
Around = tuple[Callable[[], None], Callable[[], None]]


def narrow(model: nn.Module, block: str, probe: Probe, slot: Slot) -> tuple[str, ...]:
    """Hook the modules of the last block, named `block`, that read rows are enough for; their names in `model`."""
    names = tuple(_found(model.get_submodule(block), block, probe))
    hooks = hooked(model, names, slot.read, around=(slot.narrow, slot.widen))
    if names and _agrees(probe):
        return names
    for hook in hooks:
        hook.remove()
    return ()


def hooked(model: nn.Module, names: Sequence[str], rows: Rows, around: Around | None = None) -> list[RemovableHandle]:
    """Let these modules compute `rows` alone. around: called before and after each of them, where it is narrowed."""
    handles = []
    for name in names:
        module, hook = model.get_submodule(name), _Narrowed(rows, around)
        handles += [module.register_forward_pre_hook(hook.gather), module.register_forward_hook(hook.scatter)]
    return handles


class _Narrowed:
    """The two hooks of one module."""

    def __init__(self, rows: Rows, around: Around | None) -> None:
        self.rows = rows
        self.before, self.after = around or (_nothing, _nothing)
        self.shape: tuple[int, ...] | None = None
        self.count = 0

    def gather(self, _: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor] | None:
        """(…, F) with N rows to (1, M, F)."""
        rows, (x,) = self.rows(), args
        self.shape = None
        if rows is None:
            return None
        x_NF = x.flatten(0, -2)
        self.shape, self.count = x.shape[:-1], x_NF.shape[0]
        self.before()
        return (x_NF.index_select(0, rows).unsqueeze(0),)

    def scatter(self, _: nn.Module, __: object, output: Tensor) -> Tensor | None:
        """(1, M, F) back to N rows."""
        if self.shape is None:
            return None
        self.after()
        rows = self.rows()
        assert rows is not None
        whole = output.new_zeros(self.count, output.shape[-1])
        return whole.index_copy_(0, rows, output[0]).view(*self.shape, -1)


def _nothing() -> None:
    return None


# What is found out once, by trying


@dataclass
class _Call:
    """A module's call in the probe. late: the block had attended. alone: one tensor in, one out, a row for a row."""

    name: str
    late: bool
    alone: bool = False


def _found(block: nn.Module, prefix: str, probe: Probe) -> Iterator[str]:
    """The names of the modules that are called once and by rows, none inside another."""
    calls: list[_Call] = []
    own = {id(module) for module in block.modules()}
    handles = []
    for name, module in block.named_modules():
        if name and any(weight.ndim > 1 for weight in module.parameters()):
            handles += _watched(module, f"{prefix}.{name}", calls, lambda: any(id(m) in own for m, _ in seen))
    try:
        with torch.no_grad(), attention.witnessed() as seen:
            probe(None)
    finally:
        for handle in handles:
            handle.remove()
    times = Counter(call.name for call in calls)
    outer = ""
    for call in calls:
        wanted = call.late or leaf(call.name) in QUERIES
        if wanted and call.alone and times[call.name] == 1 and not (outer and call.name.startswith(outer)):
            outer = call.name + "."
            yield call.name


def _watched(module: nn.Module, name: str, calls: list[_Call], late: Callable[[], bool]) -> list[RemovableHandle]:
    """Note each call of a module; a call that is not by position and with one tensor is noted as nothing to narrow."""
    open_calls: list[tuple[_Call, torch.Size | None]] = []

    def enter(_: nn.Module, args: tuple[object, ...], words: dict[str, object]) -> None:
        call = _Call(name, late())
        calls.append(call)
        one = len(args) == 1 and not words and isinstance(args[0], Tensor)
        open_calls.append((call, args[0].shape[:-1] if one and isinstance(args[0], Tensor) else None))

    def leave(_: nn.Module, __: object, output: object) -> None:
        call, rows = open_calls.pop()
        call.alone = rows is not None and isinstance(output, Tensor) and output.shape[:-1] == rows

    return [
        module.register_forward_pre_hook(enter, with_kwargs=True),
        module.register_forward_hook(leave),
    ]


def _agrees(probe: Probe) -> bool:
    """Whether the rows that are read are the same when only they go on."""
    with torch.no_grad():
        whole = probe(None)
        dtype = whole.dtype
        read = torch.tensor([1, 2], device=whole.device)
        try:
            narrow, whole = probe(read)[read].float(), whole[read].float()
        except (RuntimeError, IndexError, TypeError, ValueError):  # a module that knows how many tokens there were
            return False
    within = max(CLOSE, 2 * torch.finfo(dtype).eps)
    return bool(((narrow - whole).norm(dim=1) <= within * whole.norm(dim=1)).all())
