"""Around the application: keys, sizes and patience before it, a line of log and a count after it.

The body is read here, whole and within limits, so that no route waits for a slow client. Texts are never logged unless
`serve.log_text`; nor are query strings and keys.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import time
from collections.abc import Callable, Mapping
from typing import Any

import h11
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from labeltune.serve.desk import ADMIN_SCOPE, NOTES, Desk
from labeltune.serve.keys import Keys
from labeltune.serve.measures import Measures
from labeltune.serve.refusals import Refusal, body

OPEN = frozenset({"/health", "/ready", "/v2/health/live", "/v2/health/ready"})
"""What answers without a key."""
MOST_BODIES = 32
"""So many of the largest bodies may be in memory at once."""
SMALL = 65_536
"""Bytes of a body that come along with its head."""
GONE = 499
Tell = Callable[[Mapping[str, object]], None]
"""Told of each event: what is logged, as JSON fields."""


class Guard:
    """An ASGI application around another."""

    def __init__(self, app: ASGIApp, desk: Desk, keys: Keys, measures: Measures, tell: Tell) -> None:
        self._app, self._desk, self._keys, self._measures, self._tell = app, desk, keys, measures, tell
        self._config = desk.config
        self._room = MOST_BODIES * desk.config.max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        visit = _Visit(scope, send, self._desk)
        try:
            await self._answer(scope, receive, visit)
        except _Left:
            visit.status = GONE
        finally:
            self._note(scope, visit)

    async def _answer(self, scope: Scope, receive: Receive, visit: _Visit) -> None:
        try:
            self._admit(scope)
            content = await self._read(scope, receive)
            try:
                await self._app(scope, _again(content, receive), visit.send)
            finally:
                self._room += len(content)
        except Refusal as refusal:
            await visit.refuse(refusal)

    def _admit(self, scope: Scope) -> None:
        headers = scope["headers"]
        scope[ADMIN_SCOPE] = self._keys.commands(headers)
        if scope["path"] not in OPEN and not self._keys.asks(headers):
            challenge = {
                "WWW-Authenticate": 'Bearer, Basic realm="labeltune: the key is the password", charset="UTF-8"'
            }
            raise Refusal(401, "no key, or a wrong one: send Authorization: Bearer KEY", challenge)
        given = dict(headers)
        if given.get(b"content-encoding", b"identity") != b"identity":
            raise Refusal(415, "compressed bodies are not read")
        length = given.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self._config.max_bytes:
            raise self._too_large()
        if scope["method"] == "POST" and length.isdigit():
            self._desk.refuse_crowd(int(length))

    async def _read(self, scope: Scope, receive: Receive) -> bytes:
        """The whole body, which takes its share of the room for bodies."""
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self._config.body_timeout):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _Left
                    part: bytes = message.get("body", b"")
                    size += len(part)
                    if size > self._config.max_bytes:
                        raise self._too_large()
                    if len(part) > self._room:
                        raise Refusal(429, "the server is busy; try again in 1 s", {"Retry-After": "1"})
                    self._room -= len(part)
                    parts.append(part)
                    if not message.get("more_body", False):
                        return b"".join(parts)
        except TimeoutError:
            self._room += sum(map(len, parts))
            raise Refusal(408, f"the body did not come within {self._config.body_timeout:g} s") from None
        except BaseException:
            self._room += sum(map(len, parts))
            raise

    def _too_large(self) -> Refusal:
        return Refusal(413, f"a body has at most {self._config.max_bytes:,} bytes")

    def _note(self, scope: Scope, visit: _Visit) -> None:
        notes: dict[str, Any] = scope.get(NOTES, {})
        route = getattr(scope.get("route"), "path", "none")
        seconds = time.perf_counter() - visit.start
        self._measures.request(route, visit.status, seconds, notes.get("run"), notes.get("texts", 0))
        if scope["path"] in OPEN:
            return
        event = {"event": "request", "id": visit.id, "method": scope["method"], "route": route, "status": visit.status}
        self._tell({**event, "ms": round(1000 * seconds, 1), **notes})


class _Left(Exception):
    """The client has gone before its request was whole."""


class _Visit:
    """One request and its reply."""

    def __init__(self, scope: Scope, send: Send, desk: Desk) -> None:
        self._path, self._send, self._desk = scope["path"], send, desk
        length = dict(scope["headers"]).get(b"content-length", b"")
        self._size = int(length) if length.isdigit() else math.inf
        self.start, self.id = time.perf_counter(), f"{random.getrandbits(48):012x}"
        self.status = 500  # what it is when the application raises before it replies

    async def send(self, message: Message) -> None:
        """Pass a part of the reply on."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [*message.get("headers", ()), *self._headers()]
            if self._desk.state == "draining":  # or the client's next request meets a connection that is being closed
                message["headers"].append((b"connection", b"close"))
        try:
            await self._send(message)
        except h11.LocalProtocolError:  # what followed the request was no HTTP, and uvicorn has closed the connection
            raise _Left from None

    async def refuse(self, refusal: Refusal) -> None:
        """Reply without the application. The connection ends, for the rest of the body is not wanted.

        Not so where the server is busy: the client will come again, and its body, if small, is here already.
        """
        content = json.dumps(body(self._path, refusal)).encode()
        headers = {"content-type": "application/json", "content-length": str(len(content))}
        if self._desk.state != "draining" and (refusal.status != 429 or self._size > SMALL):
            headers["connection"] = "close"
        given = [(name.lower().encode(), value.encode()) for name, value in {**headers, **refusal.headers}.items()]
        await self.send({"type": "http.response.start", "status": refusal.status, "headers": given})
        await self.send({"type": "http.response.body", "body": content})

    def _headers(self) -> list[tuple[bytes, bytes]]:
        return [(b"x-request-id", self.id.encode()), (b"x-content-type-options", b"nosniff")]


def _again(content: bytes, receive: Receive) -> Receive:
    """The body, then whatever the connection still says."""
    unread = [content]

    async def again() -> Message:
        if unread:
            return {"type": "http.request", "body": unread.pop(), "more_body": False}
        return await receive()

    return again
