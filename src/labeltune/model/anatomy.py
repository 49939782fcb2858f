"""Looking into a model that nobody here wrote: its list of blocks, its dropout, which child is the attention."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from labeltune.errors import ModelError, SettingsError


def first_tensor(output: object) -> Tensor:
    """The hidden states in what a module returns: the tensor itself, or the first of several things."""
    tensor = output if isinstance(output, Tensor) else output[0]  # type: ignore[index]  # a tuple or a ModelOutput
    assert isinstance(tensor, Tensor)
    return tensor


def find_blocks(model: nn.Module, config: PretrainedConfig, source: str) -> str:
    """The name of the list of blocks: the outermost list as long as the configuration says."""
    modules: Iterable[tuple[str, nn.Module]] = model.named_modules()
    for name, module in modules:
        if isinstance(module, nn.ModuleList) and len(module) == config.num_hidden_layers:
            return name
    message = f"{source} has no list of {config.num_hidden_layers} blocks ({config.model_type})"
    raise ModelError(message, at="model.name", hint="choose a decoder (llama, mistral, qwen3, …)")


def truncate(model: nn.Module, config: PretrainedConfig, blocks: str, depth: int) -> None:
    """Keep the first `depth` blocks, and tell the configuration so."""
    kept = model.get_submodule(blocks)
    assert isinstance(kept, nn.ModuleList)
    if depth > len(kept):
        raise SettingsError(f"the model has no block {depth}", at="model.depth", hint=f"it has {len(kept)} blocks")
    parent, _, name = blocks.rpartition(".")
    setattr(model.get_submodule(parent), name, kept[:depth])
    if vars(config).get("layer_types"):  # where it is computed, it follows the number of layers by itself
        config.layer_types = config.layer_types[:depth]
    config.num_hidden_layers = depth


def silence(model: PreTrainedModel) -> None:
    """Zero every probability of dropout and noise: modules, plain attributes, configuration."""
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        _zero(module)
    _zero(model.config)
    _zero(model.config.get_text_config())


def _zero(thing: object) -> None:
    """Zero the thing's own numbers called dropout, drop path or jitter."""
    for name, value in list(vars(thing).items()):
        if isinstance(value, float) and ("drop" in name or "jitter" in name):
            setattr(thing, name, 0.0)


def numbered(block: nn.Module, place: int, callers: set[int]) -> bool:
    """Whether a module of this block called our function and knows its layer; one without a number is given it."""
    called = [part for part in block.modules() if id(part) in callers]
    for part in called:
        if not hasattr(part, "layer_idx"):
            part.layer_idx = place  # type: ignore[assignment]  # a plain number, which modules may carry
    return bool(called) and all(part.layer_idx == place for part in called)


def is_attention(name: str) -> bool:
    """Whether a block's child of this name is its attention, or what stands in its place."""
    return any(word in name for word in ("attn", "attention", "mixer")) and "norm" not in name


def called(name: str, target: str) -> bool:
    """Whether a module's full name ends in the name `target`."""
    return name == target or name.endswith("." + target)


def leaves(modules: Iterable[str]) -> list[str]:
    """The last parts of the names, each once."""
    return sorted(set(map(leaf, modules)))


def leaf(name: str) -> str:
    """The last part of a module's name."""
    return name.rpartition(".")[2]
