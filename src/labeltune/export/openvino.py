"""The graph as OpenVINO's own form, converted from ONNX; its weights stay in fp32."""

from __future__ import annotations

from pathlib import Path

from labeltune.errors import ModelError
from labeltune.export import onnx
from labeltune.export.sessions import ONNX_FILE, OPENVINO_FILE
from labeltune.export.tuned import Tuned


def write(tuned: Tuned, folder: Path, dtype: str = "fp32") -> None:
    """Graph, tokenizer and facts."""
    try:
        import openvino
    except ImportError:
        raise ModelError("openvino is not installed", hint='pip install "labeltune[openvino]"') from None
    onnx.trace(tuned, folder / ONNX_FILE)
    model = openvino.Core().read_model(folder / ONNX_FILE)
    openvino.save_model(model, folder / OPENVINO_FILE, compress_to_fp16=False)
    del model  # it maps the weights that are removed here
    for part in folder.glob(f"{ONNX_FILE}*"):
        part.unlink()
    onnx.write_facts(tuned, folder, "openvino")
