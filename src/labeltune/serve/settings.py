"""The `serve` section: how much a server takes on, how long it waits, and what it tells."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from labeltune.settings import Settings


class ServeConfig(Settings):
    """What a server takes on and how long it waits."""

    batch_tokens: Annotated[int, Field(ge=1)] | None = None
    """Most tokens of one pass, all runs together [as recorded in the run]; a longer text has a pass of its own."""
    max_wait: Annotated[float, Field(gt=0)] = 2.0
    """Seconds; a request that would wait longer for others is refused at once (429)."""
    max_pending: Annotated[int, Field(ge=1)] = 1024
    """Requests that may be under way; more are refused (429)."""
    timeout: Annotated[float, Field(gt=0)] = 60.0
    """Seconds; a request that is not answered by then is given up (429)."""
    max_texts: Annotated[int, Field(ge=1)] = 256
    """Most texts of one request (413)."""
    max_characters: Annotated[int, Field(ge=1)] = 500_000
    """Most characters of one request, all its texts together (413)."""
    max_tokens: Annotated[int, Field(ge=1)] = 65_536
    """Most tokens of one request, all its texts together (413)."""
    max_bytes: Annotated[int, Field(ge=1)] = 2_000_000
    """Largest body of a request (413)."""
    body_timeout: Annotated[float, Field(gt=0)] = 10.0
    """Seconds that a client may take to send its headers, and again to send its body (408)."""
    max_connections: Annotated[int, Field(ge=1)] = 1000
    """Open connections; more are closed at once."""
    drain: Annotated[float, Field(ge=0)] = 30.0
    """Seconds that requests under way get to end after SIGTERM."""
    cors: tuple[str, ...] = ()
    """Origins whose pages may call the server, as in `https://example.org` [none]."""
    log_text: bool = False
    """Log the texts of requests too."""


class Serving(Settings):
    """All settings of `labeltune serve` beside those of the runs."""

    serve: ServeConfig = ServeConfig()
