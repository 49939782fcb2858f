"""The graph as ONNX, in fp32 or with int8 weights, and what a predictor without torch needs beside it."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import PreTrainedModel

from labeltune.errors import ModelError
from labeltune.export.graph import Graph
from labeltune.export.padded import READS, feed
from labeltune.export.predictor import FACTS, TOKENIZER, load
from labeltune.export.sessions import ONNX_FILE
from labeltune.export.tuned import Answers, Tuned, keys
from labeltune.model.anatomy import find_blocks, truncate
from labeltune.model.checkpoints import quietly, read_body, read_config, resolve
from labeltune.model.pooling import ONE_TOKEN
from labeltune.storage import write_json

OPSET = 20
INPUTS = {"input_ids": ("windows", "tokens"), "attention_mask": ("windows", "tokens")} | dict.fromkeys(
    ("reads", "shares"), ("targets", "reads_of_a_target")
)
"""Each input of the graph and the names of its dimensions, all of them dynamic; `logits` is (targets, labels)."""


def reasons(tuned: Tuned) -> Iterator[str]:
    """Why our own graph cannot express the run."""
    backbone, config = tuned.predictor.assembly.backbone, tuned.config
    if not backbone.packed or backbone.family.reattach:
        yield f"the attention of {backbone.config.model_type} is its own code, and padding cannot be kept out of it"
    if tuned.member.pooling.name not in READS:
        yield f"{tuned.member.pooling.name} pooling is not in the graph (model.pooling)"
    if tuned.member.head.crf is not None:
        yield "a CRF decides over whole sequences (head.crf)"
    if config.data.pad_as_text is not None:
        yield "padding read as text is a defect to be measured, not to be exported (data.pad_as_text)"
    if config.model.quantization != "none":
        yield "the backbone is quantised: merging would change it (model.quantization)"


def write(tuned: Tuned, folder: Path, dtype: str = "fp32") -> None:
    """Graph, tokenizer and facts. dtype: `fp32`, or `int8` for the weights of matrix products."""
    if dtype == "int8":
        with TemporaryDirectory(dir=folder) as place:  # the graph names the file of its weights
            whole = Path(place) / ONNX_FILE
            trace(tuned, whole)
            _quantise(whole, folder / ONNX_FILE)
    else:
        trace(tuned, folder / ONNX_FILE)
    write_facts(tuned, folder, "onnx")


def write_facts(tuned: Tuned, folder: Path, format_: str) -> None:
    """`export.json` and `tokenizer.json`: what the predictor reads."""
    encoder, tokenizer = tuned.predictor.assembly.encoder, tuned.predictor.assembly.tokenizer
    tokenizer.backend_tokenizer.save(str(folder / TOKENIZER))
    write_json(
        folder / FACTS,
        {
            "format": format_,
            "task": tuned.task.name,
            "labels": list(tuned.run.labels.names),
            "thresholds": None if (found := tuned.calibration.thresholds) is None else list(found),
            "pooling": tuned.member.pooling.name,
            "data": encoder.config.model_dump(mode="json", exclude={"train", "dev", "test"}),
            "max_tokens": encoder.max_tokens,
            "targets": encoder.targets,
            "whole_special": encoder.whole_special,
            "edge": encoder.edge,
            "specials": {"bos": tokenizer.bos_token_id, "eos": tokenizer.eos_token_id},
            "inputs": {name: list(dimensions) for name, dimensions in INPUTS.items()},
        },
    )


def trace(tuned: Tuned, path: Path) -> None:
    """Write the graph of the merged run, with dynamic dimensions.

    Raises:
        ModelError: the exporter is not installed, or does not know a part of this family.
    """
    try:
        import onnxscript  # noqa: F401  # torch's exporter needs it, and would say so in its own words
    except ImportError:
        raise ModelError("onnxscript is not installed", hint='pip install "labeltune[onnx]"') from None
    arrays = {name: torch.from_numpy(array) for name, array in feed(_sample(tuned), _pooling(tuned)).items()}
    sizes = {name: torch.export.Dim(name) for name in ("windows", "tokens", "targets", "reads_of_a_target")}
    shapes = {name: dict(enumerate(sizes[part] for part in parts)) for name, parts in INPUTS.items()}
    graph = build(tuned)
    with warnings.catch_warnings(), quietly(), torch.no_grad():
        warnings.simplefilter("ignore")  # of what the exporter thinks of its own parts
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        try:
            torch.onnx.export(
                graph,
                kwargs=arrays,
                f=str(path),
                dynamo=True,
                opset_version=OPSET,
                input_names=list(INPUTS),
                output_names=["logits"],
                dynamic_shapes=shapes,
                external_data=True,
                verbose=False,
            )
        except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
            said = " ".join(str(error).split())[:300]
            raise ModelError(
                f"torch's exporter cannot trace this model ({said})", hint="predict with --backend torch"
            ) from error


def build(tuned: Tuned) -> Graph:
    """The merged run as one module."""
    member = tuned.member
    head = tuned.head()
    graph = Graph(
        body(tuned),
        head,
        both=member.directions[: member.depth],
        pooling=member.pooling.name,
        pool_on=member.pool_on,
        narrowed=_narrowed(tuned),
    )
    return graph.requires_grad_(False)


def _narrowed(tuned: Tuned) -> tuple[str, ...]:
    """Of a text that is read at one token, what the last block computes for this token alone."""
    backbone, one_token = tuned.predictor.assembly.backbone, tuned.member.pooling.name in ONE_TOKEN
    whole = tuned.member.depth == backbone.layers and not tuned.units
    return backbone.narrowed if one_token and whole else ()


def body(tuned: Tuned) -> PreTrainedModel:
    """An untouched stock body with the merged weights."""
    settings = tuned.config.model
    name = resolve(settings)
    with quietly():
        model = read_body(name, settings, copy.deepcopy(read_config(name, settings)), torch.device("cpu"))
    config: Any = model.config.get_text_config()
    if config.num_hidden_layers != tuned.member.depth:
        truncate(model, config, find_blocks(model, config, name), tuned.member.depth)
    model.load_state_dict(tuned.merged)
    return model


def answer(tuned: Tuned, folder: Path) -> Answers:
    """What the graph says, loaded from the disk by its predictor: logits and answers of its own."""
    predictor = load(folder)
    logits = torch.cat([torch.from_numpy(predictor.logits([row])) for row in tuned.rows]).numpy()
    return Answers(logits, keys(predictor.answer(tuned.examples)))


def _pooling(tuned: Tuned) -> str:
    return tuned.member.pooling.name


def _sample(tuned: Tuned) -> list[Any]:
    """A few rows to trace with: more than one window, token, target and read, for the exporter freezes a size of 1."""
    rows = sorted(tuned.rows, key=lambda row: len(row.tokens))[-3:]
    return rows if len(rows) > 1 else rows * 2


def _quantise(whole: Path, to: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(whole, to, weight_type=QuantType.QInt8)
