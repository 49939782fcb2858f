"""The low-rank adapter of one member: its weights, merging, and PEFT's format.

Adapters are fp32 masters whatever the backbone's dtype. What they do in a pass is `updates.py`.

Shapes: I inputs, O outputs, R rank.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn
from transformers.pytorch_utils import Conv1D

from labeltune.errors import ModelError, RunError, SettingsError, nearest
from labeltune.keys import Key, generator
from labeltune.model.settings import LoraConfig
from labeltune.storage import read_json, write_atomic, write_json

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_ENDINGS = {"A": ".lora_A.weight", "B": ".lora_B.weight", "magnitude": ".lora_magnitude_vector"}
_UNSUPPORTED = (
    *("rank_pattern", "alpha_pattern", "modules_to_save", "layer_replication", "lora_bias", "target_parameters"),
    *("trainable_token_indices", "alora_invocation_tokens", "use_qalora", "use_bdlora", "arrow_config"),
    *("kasa_config", "velora_config", "monteclora_config"),
)
_CHANGES_THE_BACKBONE = ("pissa", "olora", "corda", "loftq", "lora_ga")  # ways to begin that rewrite its weights


class Adapter(nn.Module):
    """The adapter of one member: A (R, I) and B (O, R) per adapted module, and for DoRA the magnitudes (O)."""

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, int]],
        *,
        rank: int,
        alpha: float,
        dropout: float,
        kind: str,
        fan_in_fan_out: bool = False,
    ) -> None:
        """Zeros; use `build` or `load`. shapes: module name -> (O, I)."""
        super().__init__()
        self.names = tuple(shapes)
        self.rank, self.alpha, self.dropout, self.kind = rank, alpha, dropout, kind
        self.fan_in_fan_out = fan_in_fan_out
        self.A = nn.ParameterDict({_path(name): torch.zeros(rank, i) for name, (_, i) in shapes.items()})
        self.B = nn.ParameterDict({_path(name): torch.zeros(o, rank) for name, (o, _) in shapes.items()})
        dora = shapes if kind == "dora" else {}
        self.magnitude = nn.ParameterDict({_path(name): torch.ones(o) for name, (o, _) in dora.items()})

    @classmethod
    def build(cls, modules: Mapping[str, nn.Module], config: LoraConfig, key: Key) -> Adapter:
        """A fresh adapter that changes nothing yet: A uniform in ±1/sqrt(I) as in PEFT, each from its own key; B zero.

        Raises:
            SettingsError: DoRA with dropout. ModelError: DoRA on a quantised module.
        """
        if config.kind == "dora" and config.dropout:
            raise SettingsError("DoRA has no dropout", at="lora.dropout", hint="set lora.dropout = 0")
        adapter = cls(
            {name: linear_shape(module) for name, module in modules.items()},
            rank=config.rank,
            alpha=config.rank if config.alpha is None else config.alpha,
            dropout=config.dropout,
            kind=config.kind,
            fan_in_fan_out=any(isinstance(module, Conv1D) for module in modules.values()),
        )
        with torch.no_grad():
            for name, module in modules.items():
                a, _ = adapter.pair(name)
                bound = 1 / math.sqrt(a.shape[1])
                a.uniform_(-bound, bound, generator=generator(key.fold("lora", name)))
                if config.kind == "dora":
                    adapter.magnitude[_path(name)].copy_(torch.linalg.vector_norm(weight_of(module, name), dim=1))
        return adapter

    @torch.no_grad()
    def fill(self, other: Adapter, at: Path) -> None:
        """Take over the weights of `other`, which was read from the folder `at`.

        Raises:
            RunError: it adapts other modules, or in another way; `dropout` alone may differ.
        """
        for fact in ("kind", "rank", "scaling"):
            mine, found = getattr(self, fact), getattr(other, fact)
            if mine != found:
                raise RunError(f"the adapter's {fact} is {found}, and the settings ask for {mine}", at=str(at))
        own, theirs = ({name: p.shape for name, p in adapter.named_parameters()} for adapter in (self, other))
        if own != theirs:
            odd = sorted(name for name in own.keys() | theirs.keys() if own.get(name) != theirs.get(name))
            raise RunError(f"the adapter does not fit the settings and the backbone: {odd[0]}", at=str(at))
        for name, parameter in self.named_parameters():
            parameter.copy_(other.get_parameter(name))

    @property
    def scaling(self) -> float:
        """The factor of the update: alpha / R, for rslora alpha / sqrt(R)."""
        return self.alpha / (math.sqrt(self.rank) if self.kind == "rslora" else self.rank)

    def pair(self, name: str) -> tuple[nn.Parameter, nn.Parameter]:
        """A (R, I) and B (O, R) of one module."""
        return self.A[_path(name)], self.B[_path(name)]

    def magnitude_of(self, name: str) -> torch.Tensor:
        """The magnitudes (O) of one module under DoRA."""
        magnitude_O: torch.Tensor = self.magnitude[_path(name)]
        return magnitude_O

    def update(self, name: str) -> torch.Tensor:
        """The whole update of one module's weight, (O, I) in fp32, before any magnitude."""
        a, b = self.pair(name)
        return self.scaling * (b.float() @ a.float())

    def save(self, folder: Path, base_model: str | None = None, revision: str | None = None) -> None:
        """Write plain PEFT format, which `PeftModel.from_pretrained` loads on the stock `AutoModel`."""
        write_json(folder / CONFIG_FILE, _peft_config(self, base_model, revision))
        tensors = {key: p.detach().cpu().contiguous() for key, p in _peft_tensors(self)}
        write_atomic(folder / WEIGHTS_FILE, save(tensors, metadata={"format": "pt"}))

    @classmethod
    def load(cls, folder: Path) -> Adapter:
        """Read plain PEFT format, without importing peft.

        Raises:
            RunError: a file or tensor is missing, damaged or left over, or PEFT features that we do not have.
        """
        facts, tensors = _read(folder)
        kind = "dora" if facts.get("use_dora") else "rslora" if facts.get("use_rslora") else "lora"
        names = [key[len(_PREFIX) : -len(_ENDINGS["A"])] for key in tensors if key.endswith(_ENDINGS["A"])]
        shapes = {name: _shape(tensors, name, facts["r"], folder) for name in names}
        adapter = cls(
            shapes,
            rank=facts["r"],
            alpha=facts["lora_alpha"],
            dropout=facts["lora_dropout"],
            kind=kind,
            fan_in_fan_out=facts["fan_in_fan_out"],
        )
        own = dict(_peft_tensors(adapter))
        _same_names(own.keys(), tensors.keys(), folder)
        with torch.no_grad():
            for key, parameter in own.items():
                parameter.copy_(tensors[key])
        return adapter


def merge(modules: Mapping[str, nn.Module], adapter: Adapter) -> None:
    """Write the adapter into the weights, in fp32; the adapter must not run afterwards.

    Raises:
        ModelError: a weight is not fp32, where merging would round the update away.
    """
    for name in adapter.names:
        module = module_of(modules, name, (adapter,))
        weight = module.weight
        if not isinstance(weight, torch.Tensor) or weight.dtype != torch.float32:
            raise ModelError("only fp32 weights take an adapter in", at=name, hint='load with model.dtype = "fp32"')
    with torch.no_grad():
        for name in adapter.names:
            merged = _merged(modules[name], adapter, name)
            modules[name].get_parameter("weight").copy_(merged.T if isinstance(modules[name], Conv1D) else merged)


def _merged(module: nn.Module, adapter: Adapter, name: str) -> torch.Tensor:
    changed = weight_of(module, name) + adapter.update(name)  # (O, I)
    if adapter.kind != "dora":
        return changed
    scale_O: torch.Tensor = adapter.magnitude_of(name) / torch.linalg.vector_norm(changed, dim=1)
    return changed * scale_O.unsqueeze(1)


# Modules


def linear_shape(module: nn.Module) -> tuple[int, int]:
    """(O, I) of a linear layer, whatever its class stores."""
    if isinstance(module, Conv1D):
        return module.nf, module.weight.shape[0]
    out, into = module.out_features, module.in_features
    assert isinstance(out, int) and isinstance(into, int)  # nn.Linear and its quantised subclasses
    return out, into


def weight_of(module: nn.Module, name: str) -> torch.Tensor:
    """The weight as (O, I) in fp32."""
    weight = module.get_parameter("weight").detach()
    if not weight.is_floating_point() or weight.ndim != 2:
        raise ModelError(
            "DoRA needs the weights as numbers, and this one is quantised",
            at=name,
            hint='set model.quantization = "none" or lora.kind = "lora"',
        )
    return (weight.T if isinstance(module, Conv1D) else weight).float()


def module_of(modules: Mapping[str, nn.Module], name: str, adapters: Iterable[Adapter | None]) -> nn.Module:
    """The module, checked against the adapters that name it."""
    if name not in modules:
        raise ModelError(
            f"the adapter changes {name!r}, which this backbone does not have",
            at="adapter",
            hint="load the backbone that it was trained on; " + nearest(name, modules),
        )
    shape = linear_shape(modules[name])
    for adapter in adapters:
        if adapter is not None:
            a, b = adapter.pair(name)
            if (b.shape[0], a.shape[1]) != shape:
                raise ModelError(
                    f"the adapter of {name!r} is for a layer of {(b.shape[0], a.shape[1])}, and this one is {shape}",
                    at="adapter",
                    hint="load the backbone that it was trained on",
                )
    return modules[name]


def _path(name: str) -> str:
    """A module's name as a parameter's name, which may not hold dots."""
    return name.replace(".", "/")


# PEFT's format


def hush_bitsandbytes() -> None:
    """Before anybody imports it, peft too: where a processor has bf16 units, it tells of a kernel that nobody wants."""
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


def _peft_config(adapter: Adapter, base_model: str | None, revision: str | None) -> dict[str, Any]:
    """The fields of PEFT's own class, so that its releases decide what the file holds."""
    hush_bitsandbytes()
    from peft import LoraConfig as PeftLoraConfig  # costs 3 to 5 seconds
    from peft import TaskType

    alpha: Any = int(adapter.alpha) if float(adapter.alpha).is_integer() else adapter.alpha
    config: Any = PeftLoraConfig(
        task_type=TaskType.FEATURE_EXTRACTION,
        inference_mode=True,
        base_model_name_or_path=base_model,
        revision=revision,
        r=adapter.rank,
        lora_alpha=alpha,
        lora_dropout=adapter.dropout,
        use_rslora=adapter.kind == "rslora",
        use_dora=adapter.kind == "dora",
        fan_in_fan_out=adapter.fan_in_fan_out,
        target_modules=list(adapter.names),
    )
    facts = config.to_dict()
    return {name: sorted(value) if isinstance(value, set) else value for name, value in facts.items()}


def _peft_tensors(adapter: Adapter) -> Iterable[tuple[str, nn.Parameter]]:
    for name in adapter.names:
        for part, ending in _ENDINGS.items():
            parameters = getattr(adapter, part)
            if _path(name) in parameters:
                yield _PREFIX + name + ending, parameters[_path(name)]


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The facts and the tensors of an adapter folder; a RunError for what we could not run as PEFT does."""
    facts = read_json(folder / CONFIG_FILE)
    if not isinstance(facts, dict) or facts.get("peft_type") != "LORA":
        raise RunError("this is no LoRA adapter", at=str(folder / CONFIG_FILE))
    odd = [name for name in _UNSUPPORTED if facts.get(name)]
    odd += ["bias"] * (facts.get("bias", "none") != "none")
    odd += ["DoRA with rsLoRA"] * bool(facts.get("use_dora") and facts.get("use_rslora"))
    odd += [word for word in _CHANGES_THE_BACKBONE if str(facts.get("init_lora_weights")).startswith(word)]
    if odd:
        raise RunError(
            f"the adapter uses {', '.join(odd)}, which labeltune does not run",
            at=str(folder / CONFIG_FILE),
            hint="train it without",
        )
    missing = [name for name in ("r", "lora_alpha", "lora_dropout", "fan_in_fan_out") if name not in facts]
    if missing:
        raise RunError(f"{', '.join(missing)} is missing", at=str(folder / CONFIG_FILE))
    try:
        return facts, load_file(folder / WEIGHTS_FILE)
    except FileNotFoundError:
        raise RunError("the adapter's weights are missing", at=str(folder / WEIGHTS_FILE)) from None
    except SafetensorError as error:
        raise RunError(f"the adapter's weights are damaged: {error}", at=str(folder / WEIGHTS_FILE)) from None


def _shape(tensors: Mapping[str, torch.Tensor], name: str, rank: int, folder: Path) -> tuple[int, int]:
    """(O, I) of one module's pair."""
    a, b = (tensors.get(_PREFIX + name + _ENDINGS[part]) for part in ("A", "B"))
    if a is None or b is None or a.ndim != 2 or b.ndim != 2 or len(a) != rank or b.shape[1] != rank:
        raise RunError(
            f"{name!r} has no complete pair of rank {rank}", at=str(folder / WEIGHTS_FILE), hint="the file was changed"
        )
    return b.shape[0], a.shape[1]


def _same_names(expected: Iterable[str], found: Iterable[str], folder: Path) -> None:
    left = sorted(set(expected) ^ set(found))
    if left:
        raise RunError(
            f"{left[0]!r} is missing or unexpected", at=str(folder / WEIGHTS_FILE), hint="the file was changed"
        )
