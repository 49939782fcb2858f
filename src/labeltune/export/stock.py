"""A run as plain transformers: merged weights and head in the stock class for texts or tokens.

What the stock classes do in transformers 5.23, tried on padded batches and on single rows:

- Texts are read at the rightmost token that is not the pad token, whatever the padding side; so the pad token must be
  one that no text ends with, and is never a new one: the embeddings keep their size.
- `is_causal: false` in the configuration removes the mask in every layer, in no single one.
- The head for texts has no bias; a temperature is divided into its weights. The head for tokens has one.
- Depth is a smaller number of blocks: the final norm is applied to the last of them, as in training.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from labeltune.data.specials import special_tokens
from labeltune.errors import RunError
from labeltune.export.tuned import Answers, NotExpressible, Tuned
from labeltune.model.checkpoints import DTYPE_OF, quietly, read_config, resolve
from labeltune.model.stock import ROUTES, Route

Problem = Literal["single_label_classification", "multi_label_classification", "regression"]
PROBLEMS: dict[str, Problem] = {
    "classification": "single_label_classification",
    "multilabel": "multi_label_classification",
    "regression": "regression",
}
"""By task: what transformers calls it."""
BATCH = 8


# What cannot be said


def reasons(tuned: Tuned) -> Iterator[str]:
    """Why plain transformers cannot express the run, in sentences; none where it can."""
    yield from _reading_reasons(tuned)
    yield from _text_reasons(tuned)
    yield from _head_reasons(tuned)


def _reading_reasons(tuned: Tuned) -> Iterator[str]:
    config, member = tuned.config, tuned.member
    encoder = tuned.predictor.assembly.backbone.family.encoder
    wanted = "first" if tuned.units or encoder else "last"
    if member.pooling.name != wanted:
        yield f"{member.pooling.name} pooling: its classes read the {wanted} token (model.pooling)"
    used = set(member.directions[: member.depth])
    if len(used) > 1:
        yield f"model.unmask = {config.model.unmask!r} removes the mask in some layers, and it can in all or none"
    if config.model.quantization != "none":
        yield "the backbone is quantised: merging would change it (model.quantization)"


def _text_reasons(tuned: Tuned) -> Iterator[str]:
    data = tuned.config.data
    if data.template is not None and not _is_plain(data.template):
        yield f"the template {data.template!r} has more than the text, and its pipelines take raw text (data.template)"
    for name, plain in (("normal_form", "none"), ("repeat", 0), ("context", 0), ("pad_as_text", None)):
        if getattr(data, name) != plain:
            yield f"it does not do what data.{name} = {getattr(data, name)!r} asks for"
    encoder = tuned.predictor.assembly.encoder
    added = special_tokens(encoder.tokenizer, "auto", "auto")
    if added != encoder.specials:
        yield "the tokenizer adds other special tokens than data.bos and data.eos ask for"
    windows = sum(len(row.window_lengths) > 1 for row in tuned.rows)
    if windows:
        yield f"{windows:,} of {len(tuned.rows):,} dev rows are read in several windows: it reads one (data.long)"


def _is_plain(template: str) -> bool:
    return template.startswith("{") and template.endswith("}") and template.count("{") == 1


def _head_reasons(tuned: Tuned) -> Iterator[str]:
    head, route = tuned.member.head, _route(tuned)
    if tuned.task.shared:
        yield f"{tuned.task.name} is answered from thresholds, which its pipelines do not know (task)"
    if head.crf is not None:
        yield "a CRF decides over whole sequences (head.crf)"
    if route is None:
        yield f"the family {tuned.predictor.assembly.backbone.config.model_type} has no class with a head known here"
    elif tuned.config.head.kind == "linear":
        stages = _stages_of(route, tuned.units)
        if len(stages) > 1 or (stages == ("classifier",) and not tuned.units):
            yield 'the family\'s own head for texts has more than one layer: train with head.kind = "stock"'
        elif not tuned.units and tuned.config.head.bias:
            yield "its head for texts has no bias, and the run's has one (head.bias)"
        elif not tuned.units and tuned.config.head.mean:
            yield "its head for texts has no bias to add the numbers' mean: train with --set head.mean=0 (head.mean)"


def _stages_of(route: Route, units: bool) -> tuple[Any, ...]:
    return route.unit if units else route.document


def _route(tuned: Tuned) -> Route | None:
    return ROUTES.get(tuned.predictor.assembly.backbone.config.model_type)


# Building


def build(tuned: Tuned, dtype: str = "fp32") -> PreTrainedModel:
    """The stock model with the merged weights and the cooled head."""
    model = fresh(tuned, configuration(tuned))
    model.base_model.load_state_dict(tuned.merged)
    put_head(tuned, model)
    model.to(DTYPE_OF[dtype])  # type: ignore[arg-type]  # transformers' wrapper hides torch's signature
    return model


def fresh(tuned: Tuned, config: PretrainedConfig) -> PreTrainedModel:
    """The stock class on the checkpoint's own weights, its head not yet ours."""
    kind: Any = AutoModelForTokenClassification if tuned.units else AutoModelForSequenceClassification
    read: Callable[..., PreTrainedModel] = kind.from_pretrained
    settings = tuned.config.model
    with torch.random.fork_rng(devices=[]), quietly():
        model = read(
            resolve(settings),
            config=config,
            revision=settings.revision,
            trust_remote_code=settings.trust_remote_code,
            dtype=torch.float32,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
        )
        model.eval()
    return model


def configuration(tuned: Tuned) -> PretrainedConfig:
    """The checkpoint's, with labels, pad token, direction and depth."""
    settings, backbone = tuned.config.model, tuned.predictor.assembly.backbone
    config = copy.deepcopy(read_config(resolve(settings), settings))
    names = label_names(tuned)
    config.id2label = dict(enumerate(names))
    config.label2id = {name: number for number, name in enumerate(names)}
    if not tuned.units:
        config.problem_type = PROBLEMS[tuned.task.name]
    if not backbone.family.encoder:
        config.is_causal = not tuned.member.directions[0]
    if config.num_hidden_layers != tuned.member.depth:
        if vars(config).get("layer_types"):
            config.layer_types = config.layer_types[: tuned.member.depth]
        config.num_hidden_layers = tuned.member.depth
    config.pad_token_id = pad_token(tuned)
    return config


def label_names(tuned: Tuned) -> tuple[str, ...]:
    """Of the logits: labels, tags, or `value` for a number."""
    return tuned.task.classes(tuned.run.labels) or ("value",)


def pad_token(tuned: Tuned) -> int:
    """An existing token that stands at the end of no text: the pad token, else the unknown, the BOS or the EOS one.

    Raises:
        NotExpressible: every special token may end a text.
    """
    tokenizer, suffix = tuned.predictor.assembly.tokenizer, tuned.predictor.assembly.encoder.specials.suffix
    for token in (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None and token not in suffix:
            return int(token)
    raise NotExpressible("no special token is left to pad with", hint="`onnx` needs none")


def put_head(tuned: Tuned, model: PreTrainedModel) -> None:
    """Fill the stock head."""
    route = _route(tuned)
    assert route is not None
    stages = tuned.head().get_submodule("stages")
    assert isinstance(stages, nn.ModuleList)
    for name, ours in zip(_stages_of(route, tuned.units), stages, strict=True):
        if isinstance(name, str):
            found = getattr(model, name, None)
            theirs = found if found is not None else getattr(model.base_model, name)
            missing, extra = theirs.load_state_dict(ours.state_dict(), strict=False)
            if extra or set(missing) - {"bias"}:
                raise NotExpressible(f"its head has no {', '.join([*extra, *missing])}")
            if "bias" in missing:
                nn.init.zeros_(theirs.bias)


def tokenizer_of(tuned: Tuned) -> PreTrainedTokenizerBase:
    """The run's, padding at the right with the chosen token."""
    tokenizer = copy.deepcopy(tuned.predictor.assembly.tokenizer)
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad_token(tuned))
    tokenizer.padding_side = tokenizer.truncation_side = "right"
    tokenizer.model_max_length = tuned.config.data.max_tokens
    return tokenizer


def write(tuned: Tuned, folder: Path, dtype: str = "fp32") -> None:
    """The folder that `from_pretrained` and `pipeline` load."""
    model = build(tuned, dtype)
    try:
        with quietly():
            model.save_pretrained(folder)
            tokenizer_of(tuned).save_pretrained(folder)
    except SafetensorError as error:
        raise RunError(f"the weights cannot be written: {error}", at=str(folder)) from error


# The runtime


def load_stock(folder: Path, units: bool) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model and tokenizer from the disk, in the dtype that was written, with no code of ours."""
    kind: Any = AutoModelForTokenClassification if units else AutoModelForSequenceClassification
    with quietly():
        model: PreTrainedModel = kind.from_pretrained(folder, dtype="auto")
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
    return model.eval(), tokenizer


def answer(tuned: Tuned, model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> Answers:
    """What a stock model says of the dev rows, in padded batches; where it differs more alone, what it says alone."""
    padded, alone = (_logits(tuned, model, tokenizer, size) for size in (BATCH, 1))
    further = np.abs(alone - tuned.expected.logits).max() > np.abs(padded - tuned.expected.logits).max()
    logits = alone if further else padded
    return Answers(logits, tuned.decide(logits))


def _logits(tuned: Tuned, model: nn.Module, tokenizer: PreTrainedTokenizerBase, size: int) -> np.ndarray:
    found = []
    for first in range(0, len(tuned.examples), size):
        some = slice(first, first + size)
        words = tokenizer(
            [example.text for example in tuned.examples[some]], padding=True, truncation=True, return_tensors="pt"
        )
        with torch.no_grad():
            logits = model(**{name: words[name] for name in ("input_ids", "attention_mask")}).logits.float()
        for row, row_logits in zip(tuned.rows[some], logits, strict=True):
            found.append(row_logits[row.piece_start.tolist()] if tuned.units else row_logits[None])
    return torch.cat(found).numpy()
