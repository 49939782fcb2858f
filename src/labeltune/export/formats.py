"""The table of formats: what each cannot say, how it is written, and how it answers when it is loaded anew."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from labeltune.export import onnx, openvino, peft, stock
from labeltune.export.sessions import runtime_version
from labeltune.export.tuned import Answers, Tuned


@dataclass(frozen=True)
class Format:
    """One row.

    reasons: why it cannot express a run. write: fills a folder in a dtype. answer: what the folder, loaded by its own
    runtime, says of the dev rows. dtypes: those it has. cuts: it has no windows, and takes raw text.
    card: it is for the hub.
    """

    about: str
    reasons: Callable[[Tuned], Iterable[str]]
    write: Callable[[Tuned, Path, str], None]
    answer: Callable[[Tuned, Path], Answers]
    runtime: Callable[[], str]
    dtypes: tuple[str, ...] = ("fp32",)
    cuts: bool = False
    card: bool = False


def _transformers_answer(tuned: Tuned, folder: Path) -> Answers:
    return stock.answer(tuned, *stock.load_stock(folder, tuned.units))


FORMATS: dict[str, Format] = {
    "transformers": Format(
        "merged weights and head in the stock class for texts or tokens",
        stock.reasons,
        stock.write,
        _transformers_answer,
        lambda: f"transformers {version('transformers')}",
        dtypes=("fp32", "bf16"),
        cuts=True,
    ),
    "hub": Format(
        "the `transformers` export with a card for the hub; --repo pushes it",
        stock.reasons,
        stock.write,
        _transformers_answer,
        lambda: f"transformers {version('transformers')}",
        dtypes=("fp32", "bf16"),
        cuts=True,
        card=True,
    ),
    "peft": Format(
        "the adapter, with the head in modules_to_save",
        peft.reasons,
        peft.write,
        peft.answer,
        lambda: f"peft {version('peft')}",
        cuts=True,
    ),
    "onnx": Format(
        "body, pooling and head as one graph for onnxruntime",
        onnx.reasons,
        onnx.write,
        onnx.answer,
        lambda: runtime_version("onnx"),
        dtypes=("fp32", "int8"),
    ),
    "openvino": Format(
        "body, pooling and head as one graph for OpenVINO",
        onnx.reasons,
        openvino.write,
        onnx.answer,
        lambda: runtime_version("openvino"),
    ),
}
