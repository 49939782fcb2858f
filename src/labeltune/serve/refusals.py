"""What a server says when it does not answer: a status, a sentence, and a way out; never the text that it was sent."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from labeltune.data.cutting import TooLong
from labeltune.errors import LabeltuneError
from labeltune.serve.engine import Overloaded
from labeltune.serve.fleet import Unknown

KINDS = {
    400: "validation",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    408: "timeout",
    413: "too_large",
    415: "unsupported",
    422: "validation",
    429: "overloaded",
    503: "unavailable",
}


@dataclass
class Refusal(Exception):
    """An answer that is none: an HTTP status and a sentence."""

    status: int
    message: str
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """The status in a word, for machines."""
        return KINDS.get(self.status, "error")


def refusal_of(error: LabeltuneError) -> Refusal:
    """How HTTP says an error that the client can do something about."""
    if isinstance(error, Overloaded):
        return Refusal(429, str(error), {"Retry-After": str(max(1, math.ceil(error.seconds)))})
    status = 404 if isinstance(error, Unknown) else 413 if isinstance(error, TooLong) else 422
    return Refusal(status, str(error))


def body(path: str, refusal: Refusal) -> Mapping[str, object]:
    """The JSON of a refusal: `error` is the sentence; OpenAI's clients, which vLLM's route is for, want it nested."""
    if path.endswith("/classify"):
        return {"error": {"message": refusal.message, "type": refusal.kind, "param": None, "code": refusal.status}}
    return {"error": refusal.message, "error_type": refusal.kind}
