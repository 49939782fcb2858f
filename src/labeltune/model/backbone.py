"""Any Hugging Face model as a frozen body: packed documents in, hidden states at each slice's depth out.

Shapes: N tokens of D packed documents in K slices, H hidden size, T tokens of one document in the equal-length path.

The body runs as one packed stream wherever its attention calls labeltune's function in every layer. Every other family
runs in rows of exactly equal length (D, T), with neither padding nor mask: slower, never wrong. The body stays in
`train()` mode (`eval()` would switch checkpointing off without a word) with every dropout probability zero.
"""

from __future__ import annotations

import hashlib
import inspect
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging as hf_logging
from transformers.utils.hub import cached_file

from labeltune.errors import ModelError, SettingsError, nearest
from labeltune.model import attention
from labeltune.model.families import context_of, family_of, position_start
from labeltune.model.layout import Layout, Slot
from labeltune.model.settings import ModelConfig
from labeltune.schema import Batch

MINI = "mini"
DTYPE_OF = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

_VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "*.bpe.model")
_LEFT_OVER = ("rotary_emb.inv_freq", "masked_bias", "attn.bias", "attention.bias")  # buffers in old checkpoints
_UNREADABLE = (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, ImportError, SafetensorError)

Taps = dict[int, Tensor]  # depth -> that block's output, (N, H) once flattened


class Backbone(nn.Module):
    """One body with its family's quirks settled, ready to run batches. Build it with `load` or `wrap`.

    model: the Hugging Face body. slot: the running layout, for hooks. family: its row in the table of quirks.
    packed: one stream of documents of any length, or rows of equal length. layers: blocks in use.
    context: longest document in tokens, None where there is no limit. source, revision: where the weights came from.
    """

    def __init__(self, model: PreTrainedModel, *, depth: int | None = None, source: str = "the model") -> None:
        super().__init__()
        self.model = model
        self.source = source
        self.revision: str | None = getattr(model.config, "_commit_hash", None)
        self.slot = Slot()
        self.config = model.config.get_text_config()
        self.family = family_of(self.config)
        self._blocks = _find_blocks(model, self.config, source)
        if depth is not None:
            _truncate(model, self.config, self._blocks, depth)
        _silence(model)
        self.layers = len(self.blocks)
        self.hidden_size = int(self.config.hidden_size)
        self.vocab_size = int(self._embedding.shape[0])
        self.context = context_of(self.config)
        self._words = {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}
        self.packed = self.family.packed and self._takes_our_attention()
        if not self.packed and model.config._attn_implementation == attention.NAME:
            model.set_attn_implementation("eager")
        self._tail = self._find_tail()
        self.train()

    @property
    def blocks(self) -> nn.ModuleList:
        """The transformer blocks in use."""
        blocks = self.model.get_submodule(self._blocks)
        assert isinstance(blocks, nn.ModuleList)
        return blocks

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self._embedding.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the hidden states."""
        return self._embedding.dtype

    @property
    def _embedding(self) -> Tensor:
        weight = self.model.get_input_embeddings().weight
        assert isinstance(weight, Tensor)
        return weight

    def train(self, mode: bool = True) -> Backbone:
        """Stay in training mode whatever is asked: dropout is zero anyway, and `eval()` would end checkpointing."""
        return super().train(True)

    def policy(self, text: str) -> tuple[bool, ...]:
        """Per layer, True where the causal mask is removed; refuses what the family cannot do."""
        if self.family.encoder and text != "all":
            message = f"{self.config.model_type} is an encoder: it looks both ways in every layer (got {text!r})"
            raise SettingsError(message, at="model.unmask", hint="set model.unmask = 'all'")
        layers = parse_layers(text, self.layers, at="model.unmask")
        if any(layers) and not (self.packed or self.family.encoder):
            message = f"{self.config.model_type} cannot be unmasked: {self.family.why}"
            hint = "set model.unmask = 'none', or choose another family (llama, mistral, qwen3, gemma3, gpt_neox, …)"
            raise ModelError(message, at="model.unmask", hint=hint)
        return layers

    def forward(self, input_ids: Tensor, position_ids: Tensor, layout: Layout) -> Tensor:
        """The last hidden states (N, H) of a stream of N tokens, its documents laid out by `layout`."""
        self._check(layout, ())
        return self._pass(input_ids, position_ids, layout, set())[0]

    def hidden(self, batch: Batch, layout: Layout, depths: Sequence[int]) -> list[Tensor]:
        """Per slice k, the hidden states (N_k, H) of block `depths[k]` after the final norm."""
        self._check(layout, depths)
        last, taps = self._pass(batch.input_ids, batch.position_ids, layout, {d for d in depths if d < self.layers})
        pieces = []
        for depth, start, end in zip(depths, layout.slice_tokens, layout.slice_tokens[1:], strict=False):
            pieces.append(last[start:end] if depth == self.layers else self._norm(taps[depth][start:end]))
        return pieces

    def linear_modules(self, targets: Sequence[str] | None = None) -> dict[str, nn.Module]:
        """The linear layers to adapt, by their name in `model`: attention's own, or those called like `targets`."""
        modules: Iterable[tuple[str, nn.Module]] = self.model.named_modules()
        inside = self._blocks + "."
        linear: dict[str, nn.Module] = {
            n: m for n, m in modules if n.startswith(inside) and isinstance(m, nn.Linear | Conv1D)
        }
        if targets is None:
            found = {n: m for n, m in linear.items() if _is_attention(n.removeprefix(inside).split(".")[1])}
            if not found:
                hint = f"name them in lora.targets: {', '.join(_leaves(linear))}"
                raise ModelError(f"{self.config.model_type} has no linear layers in its attention", hint=hint)
            return found
        for target in targets:
            if not any(_called(name, target) for name in linear):
                message = f"{self.config.model_type} has no linear layer called {target!r}"
                raise SettingsError(message, at="lora.targets", hint=nearest(target, _leaves(linear)))
        return {name: module for name, module in linear.items() if any(_called(name, target) for target in targets)}

    def body_sha256(self) -> str | None:
        """The hash of the checkpoint's safetensors files; None for a model that was built in memory."""
        folder = _folder_of(self.source, self.revision)
        return weights_sha256(folder) if folder is not None else None

    # How a batch runs

    def _pass(self, input_ids: Tensor, position_ids: Tensor, layout: Layout, depths: set[int]) -> tuple[Tensor, Taps]:
        """The last hidden states (N, H), and the outputs of the blocks at `depths`."""
        if not self.packed:
            return self._rows(input_ids, layout, depths)
        positions = position_ids.unsqueeze(0) + position_start(self.config)
        words = {"position_ids": positions, attention.LAYOUT: layout}
        return self._run(input_ids.unsqueeze(0), layout, depths, **words)

    def _rows(self, input_ids: Tensor, layout: Layout, depths: set[int]) -> tuple[Tensor, Taps]:
        """Rows of exactly equal length, one forward for each length, put back into stream order."""
        lasts, taps, places = [], [], []
        for index, sub in equal_lengths(layout):
            index = index.to(input_ids.device)
            last, tapped = self._run(input_ids[index].view(-1, sub.lengths[0]), sub, depths)
            lasts.append(last)
            taps.append(tapped)
            places.append(index)
        order = torch.cat(places).argsort()
        return torch.cat(lasts)[order], {d: torch.cat([tapped[d] for tapped in taps])[order] for d in depths}

    def _run(self, ids_BT: Tensor, layout: Layout, depths: set[int], **words: object) -> tuple[Tensor, Taps]:
        """One forward of the body: the last hidden states and the taps, flattened to (N, H)."""
        with self.slot.using(layout), self._tapped(depths) as taps:
            last = self.model(input_ids=ids_BT, **self._words, **words)[0]
        return last.flatten(0, 1), {depth: tap.flatten(0, 1) for depth, tap in taps.items()}

    @contextmanager
    def _tapped(self, depths: Iterable[int]) -> Iterator[Taps]:
        """Collect the outputs of the blocks that end at `depths`."""
        taps: Taps = {}

        def tap(depth: int) -> Callable[[nn.Module, object, object], None]:
            def keep(_: nn.Module, __: object, output: object) -> None:
                taps[depth] = first_tensor(output)

            return keep

        handles = [self.blocks[depth - 1].register_forward_hook(tap(depth)) for depth in depths]
        try:
            yield taps
        finally:
            for handle in handles:
                handle.remove()

    def _norm(self, hidden: Tensor) -> Tensor:
        """What the family does after its last block, in the order its own forward does it."""
        for name in self._tail or ():
            hidden = self.model.get_submodule(name)(hidden)
        return hidden

    def _check(self, layout: Layout, depths: Sequence[int]) -> None:
        """Refuse a document beyond the context and a depth that the body does not have."""
        longest = max(layout.lengths, default=0)
        if self.context is not None and longest > self.context:
            message = f"a document of {longest} tokens is longer than the {self.context} that {self.source} can read"
            raise ModelError(message, at="data.max_tokens", hint=f"set data.max_tokens to at most {self.context}")
        for depth in depths:
            if not 1 <= depth <= self.layers:
                raise SettingsError(f"there is no block {depth}", at="model.depth", hint=f"1 to {self.layers} exist")
            if depth < self.layers and self._tail is None:
                message = f"{self.config.model_type} does more than a norm after its last block"
                raise ModelError(message, at="model.depth", hint="give all members the same depth")

    # What is found out once, by trying

    def _takes_our_attention(self) -> bool:
        """Whether every block's attention calls our function with the layout, tried on two documents."""
        attention.register()
        self.model.set_attn_implementation(attention.NAME)
        if self.family.reattach:
            self._reattach()
        with torch.no_grad(), attention.witnessed() as calls:
            try:
                self._probe()
            except (attention.LayoutMissing, TypeError):  # lost on the way, or refused at the door
                return False
        callers = {id(module) for module, _ in calls}
        return all(_numbered(block, place, callers) for place, block in enumerate(self.blocks))

    def _probe(self) -> Tensor:
        """A forward of two documents, of two tokens and of one; of one row where our attention is not in place."""
        layout = plain_layout((2, 1), (False,) * self.layers, self.device)
        words: dict[str, object] = {}
        if self.model.config._attn_implementation == attention.NAME:
            positions = torch.tensor([[0, 1, 0]], device=self.device) + position_start(self.config)
            words = {"position_ids": positions, attention.LAYOUT: layout}
        last, _ = self._run(torch.tensor([[1, 2, 1]], device=self.device), layout, set(), **words)
        return last

    def _reattach(self) -> None:
        """Give the attention modules the layout that their blocks do not pass on."""

        def put_back(_: nn.Module, args: tuple[Any, ...], words: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            return args, {**words, attention.LAYOUT: self.slot.current}

        for block in self.blocks:
            for name, child in block.named_children():
                if _is_attention(name):
                    child.register_forward_pre_hook(put_back, with_kwargs=True)

    def _find_tail(self) -> tuple[str, ...] | None:
        """The modules between the last block and the last hidden states, by name; None where they are not the whole."""
        parent = self._blocks.rpartition(".")[0]
        ended: list[Tensor] = []
        called: list[str] = []

        def end(_: nn.Module, __: object, output: object) -> None:
            ended.append(first_tensor(output))

        def note(name: str) -> Callable[[nn.Module, object, object], None]:
            return lambda *_: called.append(name) if ended else None

        handles = [self.blocks[-1].register_forward_hook(end)]
        for name, child in self.model.get_submodule(parent).named_children():
            if child is not self.blocks:
                handles.append(child.register_forward_hook(note(f"{parent}.{name}".lstrip("."))))
        with torch.no_grad():
            last = self._probe()
        for handle in handles:
            handle.remove()
        self._tail = tuple(called)
        with torch.no_grad():
            return self._tail if torch.equal(self._norm(ended[0]).flatten(0, 1), last) else None


# Loading


def load(
    config: ModelConfig, *, device: torch.device | str, checkpointing: bool = False, trainable: bool = False
) -> Backbone:
    """The backbone that `config` names, complete or refused.

    config.depth: blocks kept; the others are dropped. trainable: full fine-tuning, every weight asks for gradients.
    Raises ModelError: no such model, no safetensors weights, weights missing, left over or of another shape.
    """
    name = resolve(config)
    device = torch.device(device)
    if trainable and config.quantization != "none":
        message = "a quantised backbone cannot be trained whole"
        raise SettingsError(message, at="model.quantization", hint="set it to 'none', or lora.kind to 'lora'")
    stock = _read_config(name, config)
    if stock.is_encoder_decoder:
        hint = "choose a decoder (llama, mistral, qwen3, …)"
        raise ModelError(f"{stock.model_type} is an encoder-decoder model", at=_at(config), hint=hint)
    with _quietly():
        model = _read_weights(name, config, stock, device)
    backbone = Backbone(model, depth=config.depth, source=name)
    return _prepare(backbone, checkpointing, trainable)


def wrap(
    model: PreTrainedModel, *, depth: int | None = None, checkpointing: bool = False, trainable: bool = False
) -> Backbone:
    """The body of a model already in memory; it is changed in place (attention, dropout, depth)."""
    body = model.base_model
    assert isinstance(body, PreTrainedModel)
    return _prepare(Backbone(body, depth=depth), checkpointing, trainable)


def load_tokenizer(config: ModelConfig) -> PreTrainedTokenizerBase:
    """The checkpoint's own fast tokenizer: one that knows the characters each token came from."""
    name = resolve(config)
    folder = Path(name)
    if folder.is_dir() and not any(match for pattern in _VOCABULARIES for match in folder.glob(pattern)):
        raise ModelError(f"{name} holds no tokenizer", at=_at(config), hint="copy the model's tokenizer files there")
    try:
        with _quietly():
            tokenizer = _read_tokenizer(name, config)
    except _UNREADABLE as error:
        raise _unreadable("the tokenizer", name, config, error) from error
    if not tokenizer.is_fast:
        hint = "convert it to a tokenizer.json"
        raise ModelError(f"the tokenizer of {name} cannot say which characters a token came from", hint=hint)
    return tokenizer


def _read_tokenizer(name: str, config: ModelConfig) -> PreTrainedTokenizerBase:
    """`tokenizer.json` as it is, where there is one.

    AutoTokenizer rebuilds some families' tokenizers from their vocabulary (transformers 5.23: LlamaTokenizer), and may
    lose the unknown token on the way: characters vanish, and the offsets behind them are wrong.
    """
    words = {"revision": config.revision, "trust_remote_code": config.trust_remote_code}
    if cached_file(name, "tokenizer.json", revision=config.revision, _raise_exceptions_for_missing_entries=False):
        return PreTrainedTokenizerFast.from_pretrained(name, **words)
    return AutoTokenizer.from_pretrained(name, **words)


def read_context(config: ModelConfig) -> int | None:
    """The longest document that the checkpoint can read, in tokens, without loading its weights."""
    return context_of(_read_config(resolve(config), config))


def resolve(config: ModelConfig) -> str:
    """A hub id or a folder that exists; `mini` is the backbone inside the package."""
    if config.name is None:
        raise SettingsError(
            "no backbone is named", at="model.name", hint="give --model a hub id or a folder, or 'mini'"
        )
    if config.name == MINI:
        folder = Path(str(resources.files("labeltune") / MINI))
        if not (folder / "config.json").is_file():
            hint = "install labeltune again, or name another model"
            raise ModelError("this installation lacks the bundled backbone 'mini'", at="model.name", hint=hint)
        return str(folder)
    if _is_folder(config.name):
        folder = Path(config.name).expanduser()
        _check_folder(folder)
        return str(folder)
    if not re.fullmatch(r"\w[\w.-]{0,95}(/\w[\w.-]{0,95})?", config.name, re.ASCII):
        raise ModelError(f"there is no folder {config.name[:200]!r}", at="model.name", hint="give a folder or a hub id")
    return config.name


def _is_folder(name: str) -> bool:
    try:
        return Path(name).expanduser().is_dir()
    except (OSError, ValueError, RuntimeError):  # longer than a path may be, a null byte, an unknown user's home
        return False


def weights_sha256(folder: Path) -> str:
    """The SHA-256 of the folder's safetensors files, one after the other in the order of their names."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


def parse_layers(text: str, layers: int, *, at: str) -> tuple[bool, ...]:
    """`none`, `all`, `first:8`, `last:8`, `8:16` (half-open, from 0) and comma-joined unions, against a real depth."""
    if text in ("none", "all"):
        return (text == "all",) * layers
    chosen = [False] * layers
    for part in text.split(","):
        start, end = _layer_range(part.strip(), text, layers, at)
        chosen[start:end] = [True] * (end - start)
    return tuple(chosen)


def _layer_range(part: str, text: str, layers: int, at: str) -> tuple[int, int]:
    match = re.fullmatch(r"(first|last|\d{1,6}):(\d{1,6})", part, re.ASCII)
    if match is None:
        hint = "write none, all, first:8, last:8, 8:16, or a union such as 0:8,16:24"
        raise SettingsError(f"{text[:80]!r} names no layers", at=at, hint=hint)
    word, number = match[1], int(match[2])
    start, end = {"first": (0, number), "last": (layers - number, layers)}.get(word) or (int(word), number)
    if not 0 <= start < end <= layers:
        raise SettingsError(f"{part!r} is outside the model", at=at, hint=f"it has {layers} layers, 0 to {layers - 1}")
    return start, end


def _at(config: ModelConfig) -> str:
    return f"model.name = {config.name!r}"


def _check_folder(folder: Path) -> None:
    """A checkpoint has a config and safetensors; say which of the two is missing, and never open a pickle."""
    at = f"model.name = {str(folder)!r}"
    if not (folder / "config.json").is_file():
        raise ModelError("the folder has no config.json", at=at, hint="name a folder in Hugging Face format")
    if not any(folder.glob("*.safetensors")):
        hint = "save the model in safetensors format" if any(folder.glob("*.bin")) else "download the whole model"
        raise ModelError("the folder has no safetensors weights", at=at, hint=hint)


def _read_config(name: str, config: ModelConfig) -> PretrainedConfig:
    try:
        with _quietly():
            read: Callable[..., PretrainedConfig] = AutoConfig.from_pretrained
            return read(name, revision=config.revision, trust_remote_code=config.trust_remote_code)
    except _UNREADABLE as error:
        raise _unreadable("the model", name, config, error) from error


def _read_weights(name: str, config: ModelConfig, stock: PretrainedConfig, device: torch.device) -> PreTrainedModel:
    """The body alone; a tied checkpoint that stores its embedding as `lm_head` is read through the causal model."""
    body: Callable[..., Any] = AutoModel.from_pretrained
    if family_of(stock.get_text_config()).pooler:
        body = partial(body, add_pooling_layer=False)
    model, faults = _read_as(body, name, config, stock, device)
    if faults and stock.get_text_config().tie_word_embeddings:
        causal, causal_faults = _read_as(AutoModelForCausalLM.from_pretrained, name, config, stock, device)
        if not causal_faults:
            return causal
    if faults:
        listed = ", ".join(faults[:3]) + (f" and {len(faults) - 3} more" if len(faults) > 3 else "")
        hint = "download it again, or name a checkpoint that fits its config.json"
        raise ModelError(f"the checkpoint does not fit its configuration: {listed}", at=_at(config), hint=hint)
    return model


def _read_as(
    read: Callable[..., Any],
    name: str,
    config: ModelConfig,
    stock: PretrainedConfig,
    device: torch.device,
) -> tuple[PreTrainedModel, list[str]]:
    """The body and its faults: weights that are missing, left over in a block, or of another shape."""
    attention.register()
    words: dict[str, Any] = {}
    if family_of(stock.get_text_config()).packed:
        words["attn_implementation"] = attention.NAME
    if config.quantization != "none":
        words |= {"quantization_config": _quantization(config, device), "device_map": {"": device}}
    try:
        model, info = read(
            name,
            config=stock,
            revision=config.revision,
            trust_remote_code=config.trust_remote_code,
            dtype=_dtype(config, device),
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # they are faults of ours, named below
            output_loading_info=True,
            **words,
        )
    except _UNREADABLE as error:
        raise _unreadable("the model", name, config, error) from error
    body = model.base_model
    assert isinstance(body, PreTrainedModel)
    if config.quantization == "none":
        body.to(device)  # type: ignore[arg-type]  # transformers' wrapper hides torch's signature
    return body, _faults(info, _find_blocks(body, stock.get_text_config(), name))


def _faults(info: dict[str, Iterable[object]], blocks: str) -> list[str]:
    """Sentences on what does not fit; a left-over head is none, a left-over weight of a block is one."""
    left_over = [str(k) for k in info["unexpected_keys"] if f".{blocks}." in f".{k}"]
    return [
        *(f"{name} is missing" for name in sorted(map(str, info["missing_keys"]))),
        *(f"{name} is left over" for name in sorted(left_over) if not name.endswith(_LEFT_OVER)),
        *(f"{key[0]} has the shape {tuple(key[1])}, not {tuple(key[2])}" for key in _shapes(info["mismatched_keys"])),
        *map(str, info["error_msgs"]),
    ]


def _shapes(mismatched: Iterable[object]) -> list[tuple[str, Sequence[int], Sequence[int]]]:
    return sorted(key for key in mismatched if isinstance(key, tuple) and len(key) == 3)


def _dtype(config: ModelConfig, device: torch.device) -> torch.dtype | str:
    """`auto` is the checkpoint's dtype on CUDA and fp32 elsewhere, where 16 bits are slow and rough."""
    if config.dtype == "auto":
        return "auto" if device.type == "cuda" else torch.float32
    return DTYPE_OF[config.dtype]


def _quantization(config: ModelConfig, device: torch.device) -> BitsAndBytesConfig:
    """What bitsandbytes is asked for; it computes in the backbone's dtype."""
    if find_spec("bitsandbytes") is None:
        hint = "pip install 'labeltune[quantised]'"
        raise ModelError("quantisation needs bitsandbytes", at="model.quantization", hint=hint)
    if config.quantization == "int8":
        # One line for each matrix product ("inputs will be cast to float16") is no news.
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
        return BitsAndBytesConfig(load_in_8bit=True)
    dtype = _dtype(config, device)
    compute = dtype if isinstance(dtype, torch.dtype) else torch.bfloat16
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute)


def _unreadable(what: str, name: str, config: ModelConfig, error: BaseException) -> ModelError:
    """The library's complaint as one sentence, with the way out that fits it."""
    text = " ".join(str(error).split()) or type(error).__name__
    hint = "check model.name and model.revision; without network, name a folder"
    if "trust_remote_code" in text:
        hint = "if you trust its authors, set model.trust_remote_code = true"
    elif Path(name).is_dir():
        hint = "the folder is incomplete or damaged: download it again"
    return ModelError(f"{what} cannot be read: {text[:300]}", at=_at(config), hint=hint)


def _folder_of(source: str, revision: str | None) -> Path | None:
    """The folder that holds the weights: the given one, or the hub's snapshot in the local cache."""
    if Path(source).is_dir():
        return Path(source)
    if revision is None:
        return None
    path = cached_file(source, "config.json", revision=revision, local_files_only=True)
    return Path(path).parent if path is not None else None


def _prepare(backbone: Backbone, checkpointing: bool, trainable: bool) -> Backbone:
    """Freeze or free the weights, and switch checkpointing on where asked."""
    for weight in backbone.parameters():
        weight.requires_grad_(trainable and weight.is_floating_point())
    if checkpointing:
        _checkpoint(backbone)
    return backbone


def _checkpoint(backbone: Backbone) -> None:
    """Recompute each block in the backward pass, under the layout of its own forward pass."""
    model = backbone.model
    if not model.supports_gradient_checkpointing:
        message = f"{backbone.config.model_type} cannot recompute its activations"
        raise ModelError(message, at="model.checkpointing", hint="set model.checkpointing = 'off'")
    words = {"use_reentrant": False, "context_fn": backbone.slot.checkpoint_contexts}
    if hasattr(model, "activation_checkpointing_enable"):  # the new name of the same thing
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=words)
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=words)


@contextmanager
def _quietly() -> Iterator[None]:
    """Silence transformers' loading report and progress bars; what is wrong is raised as an error of ours."""
    verbosity, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(verbosity)
        if bars:
            hf_logging.enable_progress_bar()


# Looking into a model


def first_tensor(output: object) -> Tensor:
    """The hidden states in what a module returns: the tensor itself, or the first of several things."""
    tensor = output if isinstance(output, Tensor) else output[0]  # type: ignore[index]  # a tuple or a ModelOutput
    assert isinstance(tensor, Tensor)
    return tensor


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


def equal_lengths(layout: Layout) -> Iterator[tuple[Tensor, Layout]]:
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


def _find_blocks(model: nn.Module, config: PretrainedConfig, source: str) -> str:
    """The name of the list of blocks: the outermost list as long as the configuration says."""
    modules: Iterable[tuple[str, nn.Module]] = model.named_modules()
    for name, module in modules:
        if isinstance(module, nn.ModuleList) and len(module) == config.num_hidden_layers:
            return name
    message = f"{source} has no list of {config.num_hidden_layers} blocks ({config.model_type})"
    raise ModelError(message, at="model.name", hint="choose a decoder (llama, mistral, qwen3, …)")


def _truncate(model: nn.Module, config: PretrainedConfig, blocks: str, depth: int) -> None:
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


def _silence(model: PreTrainedModel) -> None:
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


def _numbered(block: nn.Module, place: int, callers: set[int]) -> bool:
    """Whether a module of this block called our function and knows its layer; one without a number is given it."""
    called = [part for part in block.modules() if id(part) in callers]
    for part in called:
        if not hasattr(part, "layer_idx"):
            part.layer_idx = place  # type: ignore[assignment]  # a plain number, which modules may carry
    return bool(called) and all(part.layer_idx == place for part in called)


def _is_attention(name: str) -> bool:
    """Whether a block's child of this name is its attention, or what stands in its place."""
    return any(word in name for word in ("attn", "attention", "mixer")) and "norm" not in name


def _called(name: str, target: str) -> bool:
    return name == target or name.endswith("." + target)


def _leaves(modules: Iterable[str]) -> list[str]:
    return sorted({name.rpartition(".")[2] for name in modules})
