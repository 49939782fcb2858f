"""Several processes that train as one: `torchrun` starts the same command in each of them.

Adapters and heads are replicated. A step's rows are shared out by tokens, each process sums the gradients of its share,
and one all-reduce of a flat buffer adds them up; so every process takes the same step. Random values are addressed by
row, so it matters to no bit of the dropout who has it. Dev and test rows are answered in the passes that one process
would make, shared out, and the logits gathered. A frozen backbone that does not fit is sharded (FSDP2): its blocks are
gathered as a pass comes to them.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from labeltune.data.batches import micro_batches
from labeltune.errors import SettingsError

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class World:
    """The processes of a training. rank: this one's number; sharded: the backbone lies in parts among them."""

    rank: int = 0
    size: int = 1
    sharded: bool = False

    def shares(self, rows: Sequence[int], lengths: np.ndarray) -> list[list[int]]:
        """The rows of each process, of nearly equal tokens; some may have none."""
        if self.size == 1:
            return [list(rows)]
        found = micro_batches(rows, lengths, count=self.size)
        return found + [[]] * (self.size - len(found))

    def add(self, parameters: Sequence[nn.Parameter], numbers: Sequence[float]) -> list[float]:
        """Sum the gradients over all processes, in place, and the numbers; a gradient that is not there is 0."""
        if self.size == 1:
            return list(numbers)
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))
        sums = torch.tensor(numbers, dtype=torch.float64, device=flat.device)
        dist.all_reduce(sums)
        found: list[float] = sums.tolist()
        return found

    def map(self, function: Callable[[T], R], items: Sequence[T]) -> Iterable[R]:
        """`function` of each item, in order: each process does its share, and all have all results.

        With a sharded backbone who has nothing left does the first item again, for the others wait for its part.
        """
        if self.size == 1:
            return map(function, items)
        own = [function(item) for item in items[self.rank :: self.size]]
        if self.sharded:
            for _ in range(math.ceil(len(items) / self.size) - len(own)):
                function(items[0])
        found: list[list[R]] = [[]] * self.size
        dist.all_gather_object(found, own)
        return [found[place % self.size][place // self.size] for place in range(len(items))]

    def any(self, flag: bool) -> bool:
        """Whether any process says yes; all of them must ask."""
        if self.size == 1:
            return flag
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        said = torch.tensor(int(flag), device=device)
        dist.all_reduce(said, op=dist.ReduceOp.MAX)
        return bool(said)

    def same(self, facts: Mapping[str, Any]) -> Mapping[str, Any]:
        """What the first process says, in all of them."""
        if self.size == 1:
            return facts
        box = [facts]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            dist.barrier()


ALONE = World()
STARTED_BY_TORCHRUN = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def asked_for() -> int:
    """How many processes torchrun has started; 1 without it."""
    started = all(name in os.environ for name in STARTED_BY_TORCHRUN)
    return int(os.environ["WORLD_SIZE"]) if started else 1


@contextmanager
def joined(*, sharded: bool = False, device: str = "auto") -> Iterator[World]:
    """Join the processes that torchrun has started, for the length of a training; device: `train.device`.

    Raises:
        SettingsError: torchrun has started more processes on this machine than it has GPUs.
    """
    if asked_for() == 1:
        yield ALONE
        return
    backend = "nccl" if device != "cpu" and torch.cuda.is_available() else "gloo"
    if backend == "nccl":
        _take_gpu(int(os.environ.get("LOCAL_RANK", "0")))
    begun = not dist.is_initialized()
    if begun:
        dist.init_process_group(backend)
    try:
        yield World(dist.get_rank(), dist.get_world_size(), sharded)
    finally:
        if begun:
            dist.destroy_process_group()


def _take_gpu(place: int) -> None:
    """Give this process, the machine's number `place`, a GPU of its own."""
    if place >= (count := torch.cuda.device_count()):
        hint = f"start at most {count}, or set train.device = 'cpu'"
        raise SettingsError(
            f"the machine has {count} GPUs, and this is its process {place + 1}", at="torchrun", hint=hint
        )
    torch.cuda.set_device(place)


def shard(body: nn.Module, blocks: Sequence[nn.Module], world: World, dtype: torch.dtype | None = None) -> None:
    """Divide a frozen backbone among the processes, block by block, in place.

    dtype: what the weights become on the way; so nobody holds more than a block of them whole.
    """
    mesh = init_device_mesh("cuda" if dist.get_backend() == "nccl" else "cpu", (world.size,))
    for part in (*blocks, body):
        for parameter in part.parameters():
            if dtype is not None and not isinstance(parameter, DTensor):
                parameter.data = parameter.data.to(dtype)
        fully_shard(part, mesh=mesh)


def held(body: nn.Module) -> int:
    """How many of a sharded backbone's numbers lie in this process."""
    return sum(p.to_local().numel() if isinstance(p, DTensor) else p.numel() for p in body.parameters())
