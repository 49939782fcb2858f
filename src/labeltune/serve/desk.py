"""Between the wire forms and the engines: one way for every request, with its limits, its patience and its end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, TypeVar

from starlette.requests import Request

from labeltune.answers import Wish
from labeltune.errors import LabeltuneError
from labeltune.schema import Encoded, Example
from labeltune.serve.engine import Departed, Overloaded
from labeltune.serve.fleet import Fleet
from labeltune.serve.hosted import Answer, Hosted
from labeltune.serve.refusals import Refusal, refusal_of
from labeltune.serve.settings import ServeConfig

T = TypeVar("T")
ADMIN_SCOPE = "labeltune.admin"
"""Where it says whether the request carries an admin's key."""
CHARACTERS = 6
"""Of a token, at most, in most texts: a request of so few tokens is refused before they are counted."""
FRAME = 40
"""Bytes of a body that may be no text."""
NOTES = "labeltune.notes"
"""Where a request's ASGI scope keeps what is to be logged of it."""
Item = str | Mapping[str, object]


class Gone(Exception):
    """The client has left."""


class Desk:
    """Takes requests in and hands answers out. It belongs to one event loop.

    state: `loading` and `draining` refuse with 503.
    """

    def __init__(self, fleet: Fleet, config: ServeConfig) -> None:
        self.fleet, self.config = fleet, config
        self.state: Literal["loading", "ready", "draining"] = "loading"
        self.pending = 0
        self._porter = ThreadPoolExecutor(1, "labeltune-porter")
        self._clerk = ThreadPoolExecutor(1, "labeltune-encoder")  # one: tokenizers are not for two threads at once

    async def answers(
        self, request: Request, run: str, items: Sequence[Item], wish: Wish, *, truncate: bool = False
    ) -> list[Answer]:
        """The answers to texts or rows, in order.

        Raises:
            Refusal: why there is none.
            Gone: nobody is there to hear it.
        """
        self.refuse_unready()
        hosted = self.find(run)
        self._refuse_many(items)
        notes(request).update(run=hosted.name, texts=len(items))
        self.pending += 1
        try:
            answers = await self._patiently(request, self._work(run, items, wish, truncate))
            notes(request)["tokens"] = sum(answer.tokens for answer in answers)
            if self.config.log_text:
                notes(request)["text"] = [answer.example.text for answer in answers]
            return answers
        except LabeltuneError as error:
            raise refusal_of(error) from None
        finally:
            self.pending -= 1

    async def load(self, name: str, folder: str) -> Hosted:
        """Load a run, or load it anew; others answer in the meantime.

        Raises:
            Refusal: why it cannot be loaded.
        """
        return await self._carry(self.fleet.load, name, folder)

    async def unload(self, name: str) -> None:
        """Take a run out, once what it was asked is answered.

        Raises:
            Refusal: there is none of this name.
        """
        await self._carry(self.fleet.unload, name)

    async def _carry(self, errand: Callable[..., T], *words: str) -> T:
        self.refuse_unready()
        try:
            return await asyncio.get_running_loop().run_in_executor(self._porter, errand, *words)
        except LabeltuneError as error:
            raise refusal_of(error) from None

    def find(self, run: str | None) -> Hosted:
        """The run of this name; without a name the only one.

        Raises:
            Refusal: there is none, or there are several and none is named; or they are still being loaded.
        """
        if self.state == "loading":
            self.refuse_unready()
        if run is None:
            names = [hosted.name for hosted in self.fleet.hosted]
            if len(names) != 1:
                raise Refusal(422, f"name a run: {', '.join(names) or 'none is served'}")
            run = names[0]
        try:
            return self.fleet.find(run)
        except LabeltuneError as error:
            raise refusal_of(error) from None

    def refuse_unready(self) -> None:
        """Raise a 503 while the runs are loaded, and when the server is about to stop."""
        if self.state != "ready":
            raise Refusal(503, f"the server is {self.state}", {"Retry-After": "5"})

    def refuse_crowd(self, size: int) -> None:
        """Refuse a body of so many bytes before it is read, where every engine would refuse its texts.

        Raises:
            Refusal: a 429.
        """
        tokens = max(0, size - FRAME) // CHARACTERS
        waits = [engine.wait(tokens) for engine in self.fleet.engines]
        if waits and min(waits) > self.config.max_wait:
            raise refusal_of(Overloaded(min(waits)))

    def close(self) -> None:
        """Encode nothing any more."""
        self._clerk.shutdown(cancel_futures=True)
        self._porter.shutdown(cancel_futures=True)

    def _refuse_many(self, items: Sequence[Item]) -> None:
        if not items:
            raise Refusal(422, "there is no text")
        if len(items) > self.config.max_texts:
            raise Refusal(413, f"{len(items)} texts are more than the {self.config.max_texts} of one request")
        if (count := sum(map(_characters, items))) > self.config.max_characters:
            raise Refusal(413, f"{count:,} characters are more than the {self.config.max_characters:,} of one request")
        if self.pending >= self.config.max_pending:
            raise Refusal(429, "the server is busy; try again in 1 s", {"Retry-After": "1"})

    async def _work(self, run: str, items: Sequence[Item], wish: Wish, truncate: bool) -> list[Answer]:
        loop = asyncio.get_running_loop()
        while True:
            hosted = self.find(run)
            try:
                with self.fleet.engine_of(hosted).expecting(sum(map(_characters, items)) // CHARACTERS):
                    examples, rows = await loop.run_in_executor(self._clerk, self._encode, hosted, items, truncate)
                future = self.fleet.engine_of(hosted).submit(hosted, examples, rows, wish)
            except Departed:  # it was loaded anew meanwhile, or is gone: look again
                continue
            return await asyncio.wrap_future(future)

    def _encode(self, hosted: Hosted, items: Sequence[Item], truncate: bool) -> tuple[list[Example], list[Encoded]]:
        examples = [hosted.read(item, f"texts[{number}]") for number, item in enumerate(items)]
        rows = hosted.encode(examples, truncate=truncate)
        tokens = sum(len(row.tokens) for row in rows)
        if tokens > self.config.max_tokens:
            raise Refusal(413, f"{tokens:,} tokens are more than the {self.config.max_tokens:,} of one request")
        return examples, rows

    async def _patiently(self, request: Request, work: Coroutine[Any, Any, list[Answer]]) -> list[Answer]:
        """The end of the work, unless the client leaves or the time is over before."""
        working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_left(request))
        try:
            await asyncio.wait({working, leaving}, timeout=self.config.timeout, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                return working.result()
            if leaving.done():
                raise Gone
            hint = "send fewer texts, or come again later"
            raise Refusal(429, f"no answer within {self.config.timeout:g} s; {hint}", {"Retry-After": "5"})
        finally:
            working.cancel()
            leaving.cancel()


def notes(request: Request) -> dict[str, Any]:
    """What the log will say of this request."""
    found: dict[str, Any] = request.scope.setdefault(NOTES, {})
    return found


def _characters(item: Item) -> int:
    """Of all texts in it, however deep they lie."""
    left: list[object] = [item]
    count = 0
    while left:
        part = left.pop()
        if isinstance(part, str):
            count += len(part)
        elif isinstance(part, Mapping):
            left.extend(part.values())
        elif isinstance(part, list):
            left.extend(part)
    return count


async def _left(request: Request) -> None:
    """Return when the client has closed the connection. The body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
