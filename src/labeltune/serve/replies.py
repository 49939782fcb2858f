"""JSON replies, and what every route says of itself in the OpenAPI document."""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel
from starlette.responses import Response


class Refused(BaseModel):
    """Why there is no answer."""

    error: str
    error_type: str


class Reply(Response):
    """JSON as UTF-8; a number that is none would be a bug."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """The bytes; characters that UTF-8 cannot say are escaped."""
        said = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        try:
            return said.encode()
        except UnicodeEncodeError:
            return json.dumps(content, allow_nan=False, separators=(",", ":")).encode()


REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"model": Refused, "description": "no JSON"},
    401: {"model": Refused, "description": "no key, or a wrong one"},
    404: {"model": Refused, "description": "no such run"},
    408: {"model": Refused, "description": "the body came too slowly"},
    413: {"model": Refused, "description": "more than one request may hold"},
    415: {"model": Refused, "description": "a compressed body"},
    422: {"model": Refused, "description": "what cannot be answered, and why"},
    429: {"model": Refused, "description": "the server is busy; Retry-After says when to come again"},
    503: {"model": Refused, "description": "loading, or about to stop"},
}
"""The refusals that any route may give."""
