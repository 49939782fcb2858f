"""One trial's state in one safetensors file, replaced atomically: a kill leaves the last good one.

The file holds the weights now, the best weights so far, AdamW's moments, and, as JSON in the header, where the trial
stands. Nothing random is stored: random values are addressed, not consumed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from labeltune.errors import RunError
from labeltune.storage import write_atomic

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class State:
    """What a trial needs to go on: `now` and `best` weights by name, `moments` by `index.name`, and plain facts."""

    now: Tensors
    best: Tensors
    moments: Tensors
    facts: Mapping[str, Any]


def save_state(path: Path, state: State) -> None:
    """Write `state` to `path` in one atomic replacement."""
    tensors = {
        f"{part}/{name}": tensor.detach().cpu().contiguous()
        for part in ("now", "best", "moments")
        for name, tensor in getattr(state, part).items()
    }
    write_atomic(path, save(tensors, metadata={"facts": json.dumps(dict(state.facts))}))


def load_state(path: Path) -> State:
    """Read a state back; a damaged file is a RunError."""
    parts: dict[str, Tensors] = {"now": {}, "best": {}, "moments": {}}
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads(file.metadata()["facts"])
            for key in file.keys():  # noqa: SIM118 (safe_open is no mapping)
                part, name = key.split("/", 1)
                parts[part][name] = file.get_tensor(key)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise RunError(f"the checkpoint cannot be read ({error})", at=str(path), hint="train anew") from None
    return State(**parts, facts=facts)


def moments_of(optimiser: torch.optim.Optimizer) -> Tensors:
    """AdamW's state as named tensors."""
    return {
        f"{index}.{name}": value if isinstance(value, torch.Tensor) else torch.tensor(value)
        for index, values in optimiser.state_dict()["state"].items()
        for name, value in values.items()
    }


def restore_moments(optimiser: torch.optim.Optimizer, moments: Tensors) -> None:
    """Put named tensors back as AdamW's state."""
    state: dict[int, Tensors] = {}
    for key, tensor in moments.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = tensor
    groups = optimiser.state_dict()["param_groups"]
    optimiser.load_state_dict({"state": state, "param_groups": groups})
