"""Tensors of the KServe v2 protocol: numbers and texts in JSON, or as bytes behind it."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, Field

from labeltune.serve.refusals import Refusal

LENGTH = "inference-header-content-length"
"""The header that says where JSON ends and bytes begin."""


class Parameters(BaseModel):
    """What the protocol says of a tensor or a request beside its data."""

    binary_data_size: int | None = None
    binary_data: bool | None = None
    binary_data_output: bool | None = None
    min_score: Annotated[float, Field(ge=0, le=1)] | None = None


class Input(BaseModel):
    """A tensor of texts."""

    name: str
    shape: list[int]
    datatype: str
    parameters: Parameters | None = None
    data: list[Any] | None = None


@dataclass(frozen=True)
class Output:
    """A tensor of the reply: FP32, or BYTES (texts)."""

    name: str
    values: np.ndarray | list[str]
    shape: list[int]

    @property
    def datatype(self) -> str:
        """As the protocol calls it."""
        return "FP32" if isinstance(self.values, np.ndarray) else "BYTES"

    def head(self) -> dict[str, Any]:
        """The tensor without its data."""
        return {"name": self.name, "datatype": self.datatype, "shape": self.shape}

    def plain(self) -> dict[str, Any]:
        """The tensor in JSON."""
        data = self.values.ravel().tolist() if isinstance(self.values, np.ndarray) else self.values
        return {**self.head(), "data": data}

    def binary(self) -> tuple[dict[str, Any], bytes]:
        """The tensor in JSON without data, and its bytes."""
        if isinstance(self.values, np.ndarray):
            raw = self.values.astype("<f4").tobytes()
        else:
            raw = b"".join(struct.pack("<I", len(text)) + text for text in map(str.encode, self.values))
        return {**self.head(), "parameters": {"binary_data_size": len(raw)}}, raw


def texts_of(tensor: Input, behind: bytes) -> tuple[list[str], bytes]:
    """The texts of a BYTES tensor, and what of the bytes behind the JSON belongs to the next ones.

    Raises:
        Refusal: another type, a shape that does not fit, bytes that are no texts.
    """
    if tensor.datatype != "BYTES":
        raise Refusal(400, f"inputs are of datatype BYTES, not {tensor.datatype[:20]!r}")
    size = tensor.parameters.binary_data_size if tensor.parameters else None
    if size is None:
        texts = list(_flat(tensor.data or []))
    else:
        if not 0 <= size <= len(behind):
            raise Refusal(400, f"binary_data_size is {size}, and {len(behind)} bytes are left")
        texts, behind = list(_unpacked(behind[:size])), behind[size:]
    shape = tensor.shape
    if not shape or shape[0] != len(texts) or any(side != 1 for side in shape[1:]):
        raise Refusal(400, f"the shape of {len(texts)} texts is [{len(texts)}] or [{len(texts)}, 1], not {shape[:4]}")
    return texts, behind


def _flat(data: Sequence[Any], depth: int = 0) -> Iterator[str]:
    for value in data:
        if isinstance(value, str):
            yield value
        elif isinstance(value, list) and depth < 2:
            yield from _flat(value, depth + 1)
        else:
            raise Refusal(400, "data of BYTES are texts")


def _unpacked(raw: bytes) -> Iterator[str]:
    at = 0
    while at < len(raw):
        if at + 4 > len(raw):
            raise Refusal(400, "a text has no length")
        (size,) = struct.unpack_from("<I", raw, at)
        at += 4 + size
        if at > len(raw):
            raise Refusal(400, f"a text of {size} bytes ends behind the tensor")
        try:
            yield raw[at - size : at].decode()
        except UnicodeDecodeError:
            raise Refusal(400, "a text is no UTF-8") from None
