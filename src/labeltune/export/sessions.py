"""The runtimes that run an exported graph: onnxruntime and OpenVINO, on the CPU, in fp32.

Their packages are extras and are imported in the function that uses them; a session is a function from the arrays of
`padded.feed` to logits.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np

from labeltune.errors import ModelError, RunError
from labeltune.export.padded import Feed

ONNX_FILE, OPENVINO_FILE = "model.onnx", "openvino_model.xml"
Session = Callable[[Feed], np.ndarray]
"""The arrays of a batch -> logits (S, L), fp32."""


def onnx_session(folder: Path, threads: int | None = None) -> Session:
    """Onnxruntime on `model.onnx`."""
    try:
        import onnxruntime
    except ImportError:
        raise _absent("onnxruntime", "onnx") from None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads or 0
    path = str(_there(folder / ONNX_FILE))
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own errors share no base class but this one
        raise _damaged(folder / ONNX_FILE, error) from error
    return lambda arrays: np.asarray(session.run(None, arrays)[0])


def openvino_session(folder: Path, threads: int | None = None) -> Session:
    """OpenVINO on its own form of the graph. By itself it would compute in bf16 where the processor can."""
    try:
        import openvino
    except ImportError:
        raise _absent("openvino", "openvino") from None
    words = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    words |= {"INFERENCE_NUM_THREADS": str(threads)} if threads else {}
    try:
        compiled = openvino.Core().compile_model(str(_there(folder / OPENVINO_FILE)), "CPU", words)
    except RuntimeError as error:
        raise _damaged(folder / OPENVINO_FILE, error) from error
    request = compiled.create_infer_request()
    return lambda arrays: np.array(request.infer(arrays)[0])


SESSIONS: dict[str, Callable[[Path, int | None], Session]] = {"onnx": onnx_session, "openvino": openvino_session}
"""By format: (folder, threads) -> session."""

PACKAGES = {"onnx": "onnxruntime", "openvino": "openvino"}


def runtime_version(name: str) -> str:
    """`onnxruntime 1.32.0`."""
    return f"{PACKAGES[name]} {version(PACKAGES[name])}"


def _there(path: Path) -> Path:
    if not path.is_file():
        raise RunError("the exported graph is missing", at=str(path), hint="export the run again")
    return path


def _absent(package: str, extra: str) -> ModelError:
    return ModelError(f"{package} is not installed", hint=f'pip install "labeltune[{extra}]"')


def _damaged(path: Path, error: Exception) -> RunError:
    said = " ".join(str(error).split())[:200]
    return RunError(f"the graph cannot be loaded ({said})", at=str(path), hint="export the run again")
