"""Any Hugging Face model as a frozen body: packed documents in, hidden states at each slice's depth out.

Shapes: N tokens of D packed documents in K slices, H hidden size, T tokens of one document in the equal-length path.

The body runs as one packed stream wherever its attention calls labeltune's function in every layer. Every other family
runs in rows of exactly equal length (D, T), with neither padding nor mask: slower, never wrong. The body stays in
`train()` mode (`eval()` would switch checkpointing off without a word) with every dropout probability zero.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    PreTrainedModel,
)
from transformers.pytorch_utils import Conv1D

from labeltune.errors import ModelError, RunError, SettingsError, nearest
from labeltune.model import attention
from labeltune.model.anatomy import (
    called,
    find_blocks,
    first_tensor,
    is_attention,
    leaf,
    leaves,
    numbered,
    silence,
    truncate,
)
from labeltune.model.checkpoints import folder_of, named, quietly, read_body, read_config, resolve, weights_sha256
from labeltune.model.families import context_of, family_of, position_start
from labeltune.model.layout import Layout, Slot, equal_lengths, plain_layout
from labeltune.model.linear import freeze_linears, onednn_pays
from labeltune.model.narrowing import narrow
from labeltune.model.norm import freeze_norms
from labeltune.model.ranges import parse_layers
from labeltune.model.rotary import rotate_once
from labeltune.model.settings import ModelConfig
from labeltune.schema import Batch

Place = Callable[[nn.Module, Sequence[nn.Module]], None]
"""Puts a model and its blocks where they compute, once they are what they stay and before anything has run."""
Taps = dict[int, Tensor]  # depth -> that block's output, (N, H) once flattened


class Backbone(nn.Module):
    """One body with its family's quirks settled, ready to run batches. Build it with `load` or `wrap`.

    model: the Hugging Face body. slot: the running layout, for hooks. family: its row in the table of quirks.
    records: small training passes may be recorded (see `recording`). onednn: it multiplies by oneDNN (see `linear`).
    narrowed: modules of the last block that compute only what is read (see `narrowing`), by their names in `model`.
    packed: one stream of documents of any length, or rows of equal length. layers: blocks in use.
    context: longest document in tokens, None where there is no limit. source, revision: where the weights came from.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        depth: int | None = None,
        source: str = "the model",
        trainable: bool = False,
        place: Place | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.source = source
        self.revision: str | None = getattr(model.config, "_commit_hash", None)
        self.slot = Slot()
        self.records = self.onednn = False  # `_prepare` knows
        self.narrowed: tuple[str, ...] = ()
        self.config = model.config.get_text_config()
        self.family = family_of(self.config)
        self._blocks = find_blocks(model, self.config, source)
        if depth is not None:
            truncate(model, self.config, self._blocks, depth)
        silence(model)
        _free(model, trainable)
        if place is not None:
            place(model, list(self.blocks))
        self.train()  # before any forward: in eval mode bitsandbytes lays 4-bit weights out anew, without a backward
        self.layers = len(self.blocks)
        self.vocab_size = int(self._embedding.shape[0])
        self.context = context_of(self.config)
        self._words = {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}
        self.packed = self.family.packed and self._takes_our_attention()
        if not self.packed and model.config._attn_implementation == attention.NAME:
            model.set_attn_implementation("eager")
        self._tail = self._find_tail()
        with torch.no_grad():
            self.hidden_size = int(self._probe().shape[-1])  # some project what their last block gives
        self._readers: set[str] = set()  # linear layers that read the stream, once a pass
        self.slot.first_reader.update(self._find_readers())

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

    def save(self, folder: Path) -> None:
        """Write the body as a checkpoint that `load` reads.

        Raises:
            RunError: the folder cannot be written.
        """
        try:
            with quietly():
                self.model.save_pretrained(folder)
        except SafetensorError as error:
            raise RunError(f"the weights cannot be written: {error}", at=str(folder)) from error

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
        """The linear layers to adapt, by their name in `model`: attention's own, or those called like `targets`.

        Of attention's own those that read the text's tokens, once a pass: not weights that the family uses without
        calling their layer, nor layers that read a table of positions too.
        """
        linear, inside = dict(self._linear()), self._blocks + "."
        if targets is None:
            own = {n: m for n, m in linear.items() if is_attention(n.removeprefix(inside).split(".")[1])}
            found = {n: m for n, m in own.items() if n in self._readers and leaf(n) not in self.family.spared}
            if not found:
                hint = f"name them in lora.targets: {', '.join(leaves(linear))}"
                raise ModelError(f"{self.config.model_type} has no linear layers in its attention", hint=hint)
            return found
        for target in targets:
            if not any(called(name, target) for name in linear):
                message = f"{self.config.model_type} has no linear layer called {target!r}"
                raise SettingsError(message, at="lora.targets", hint=nearest(target, leaves(linear)))
        return {name: module for name, module in linear.items() if any(called(name, target) for target in targets)}

    def body_sha256(self) -> str | None:
        """The hash of the checkpoint's safetensors files; None for a model that was built in memory."""
        folder = folder_of(self.source, self.revision)
        return weights_sha256(folder) if folder is not None else None

    def recordable(self) -> bool:
        """Whether every layer's attention takes the flash kernel, which finds documents by their bounds on the device.

        Tried on a wrong length, as recordings give them (see `recording.Inputs`): all other attention refuses it.
        """
        try:
            with torch.no_grad():
                self._probe(lengths=(2, 2))
        except RuntimeError:
            return False
        return True

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
        return all(numbered(block, place, callers) for place, block in enumerate(self.blocks))

    def _probe(self, lengths: tuple[int, ...] = (2, 1), read: Tensor | None = None) -> Tensor:
        """A forward of two documents, of two tokens and of one; of one row where our attention is not in place.

        lengths: what attention is told of the documents, beside their bounds. read: the tokens that are read.
        """
        layout = replace(plain_layout((2, 1), (False,) * self.layers, self.device), lengths=lengths, read=read)
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
                if is_attention(name):
                    child.register_forward_pre_hook(put_back, with_kwargs=True)

    def _find_readers(self) -> dict[str, str]:
        """For each linear layer the first one that reads the same tensor, by name."""
        read: list[tuple[Tensor, str]] = []  # the tensors are kept, so that none takes another's place

        def note(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
            return lambda _, args: read.append((args[0], name))

        passes: list[None] = []
        handles = [m.register_forward_pre_hook(note(name)) for name, m in self._linear()]
        handles.append(self.blocks[0].register_forward_pre_hook(lambda *_: passes.append(None)))
        with torch.no_grad():
            self._probe()
        for handle in handles:
            handle.remove()
        calls = Counter(name for _, name in read)
        self._readers = {name for name, count in calls.items() if count == len(passes)}
        first: dict[int, str] = {}
        return {name: first.setdefault(id(tensor), name) for tensor, name in read}

    def _linear(self) -> Iterator[tuple[str, nn.Module]]:
        """The linear layers of the blocks, by name."""
        modules: Iterable[tuple[str, nn.Module]] = self.model.named_modules()
        inside = self._blocks + "."
        return ((n, m) for n, m in modules if n.startswith(inside) and isinstance(m, nn.Linear | Conv1D))

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
    config: ModelConfig,
    *,
    device: torch.device | str,
    checkpointing: bool = False,
    trainable: bool = False,
    place: Place | None = None,
) -> Backbone:
    """The backbone that `config` names, complete or refused.

    config.depth: blocks kept; the others are dropped. trainable: full fine-tuning, every weight asks for gradients.
    place: takes the weights, as they lie in the checkpoint's mapped file, to where they compute; instead of `device`.
    Raises ModelError: no such model, no safetensors weights, weights missing, left over or of another shape.
    """
    name = resolve(config)
    device = torch.device(device)
    if trainable and config.quantization != "none":
        message = "a quantised backbone cannot be trained whole"
        raise SettingsError(message, at="model.quantization", hint="set it to 'none', or lora.kind to 'lora'")
    stock = read_config(name, config)
    if stock.is_encoder_decoder:
        hint = "choose a decoder (llama, mistral, qwen3, …)"
        raise ModelError(f"{stock.model_type} is an encoder-decoder model", at=named(config), hint=hint)
    with quietly():
        model = read_body(name, config, stock, device, mapped=place is not None)
    backbone = Backbone(model, depth=config.depth, source=name, trainable=trainable, place=place)
    onednn = config.matmul == "onednn" or (config.matmul == "auto" and onednn_pays())
    return _prepare(
        backbone, checkpointing, recording=config.recording != "off", onednn=onednn, placed=place is not None
    )


def wrap(
    model: PreTrainedModel,
    *,
    depth: int | None = None,
    checkpointing: bool = False,
    trainable: bool = False,
    source: str = "the model",
) -> Backbone:
    """The body of a model already in memory; it is changed in place (attention, dropout, depth)."""
    body = model.base_model
    assert isinstance(body, PreTrainedModel)
    backbone = Backbone(body, depth=depth, source=source, trainable=trainable)
    return _prepare(backbone, checkpointing, onednn=onednn_pays())


def _free(model: PreTrainedModel, trainable: bool) -> None:
    """Let the weights be trained, or freeze them."""
    for weight in model.parameters():
        weight.requires_grad_(trainable and weight.is_floating_point())
    if not trainable:
        freeze_norms(model)


def _prepare(
    backbone: Backbone, checkpointing: bool, *, recording: bool = True, onednn: bool = False, placed: bool = False
) -> Backbone:
    """Switch on what makes a pass fast, where it is asked for and can hold it, and checkpointing.

    placed: others put the weights where they compute; then no layer can be tried by itself, and none is replaced.
    """
    if backbone.packed and not placed:
        rotate_once(backbone.model, backbone._probe)
    backbone.onednn = onednn and not placed and freeze_linears(backbone.model)
    if backbone.packed and not placed and backbone.device.type == "cpu":
        last = f"{backbone._blocks}.{backbone.layers - 1}"
        backbone.narrowed = narrow(backbone.model, last, lambda read: backbone._probe(read=read), backbone.slot)
    half = backbone.dtype in (torch.float16, torch.bfloat16)  # in 32 bits each length of document is a call of its own
    frozen = not any(weight.requires_grad for weight in backbone.parameters())
    plain = backbone.packed and half and frozen and not checkpointing
    on_cuda = backbone.device.type == "cuda"
    backbone.records = recording and not placed and plain and on_cuda and backbone.recordable()
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
