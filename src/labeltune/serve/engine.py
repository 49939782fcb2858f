"""One backbone, the runs on it, and the thread that answers: whatever waits is mixed into the next packed pass.

Continuous batching by token budget: a pass takes one text of each waiting request in turn, until the budget is full, so
a large request delays a small one by no more than its share. Nothing waits for company: a pass begins when the last one
ends. What would wait longer than `max_wait` is refused at once, so the queue cannot grow.

Only the engine's own thread touches the backbone; runs come and go between two passes.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from labeltune.answers import Wish
from labeltune.data.batches import pack
from labeltune.errors import DataError, LabeltuneError
from labeltune.model.backbone import Backbone
from labeltune.model.member import LabelModel
from labeltune.model.selfcheck import check
from labeltune.schema import Encoded, Example
from labeltune.serve.hosted import Answer, Hosted

FADE = 0.9
"""How much of the measured speed the last passes keep at each new one."""

SURPRISE = 3.0
"""Times longer than expected that a pass may count."""

BUSY = threading.Lock()
"""Held during a pass and while a backbone is loaded, which changes torch's default dtype for the whole process."""


class Overloaded(LabeltuneError):
    """More waits than can be answered in time. `seconds`: when to come again."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        super().__init__("the server is busy", hint=f"try again in {max(1, round(seconds))} s")


class Departed(LabeltuneError):
    """The run has been taken out, or loaded anew, since it was found."""


class NoNumbers(DataError):
    """Logits that are no numbers, for one text."""


@dataclass(frozen=True, slots=True)
class Pass:
    """What one pass did: texts, tokens, seconds, and how many runs had a part in it."""

    texts: int
    tokens: int
    seconds: float
    runs: int


@dataclass(slots=True, eq=False)
class _Text:
    """One text of a request, and the place of its answer."""

    ticket: _Ticket
    place: int
    example: Example
    row: Encoded

    @property
    def tokens(self) -> int:
        return len(self.row.tokens)


@dataclass(slots=True, eq=False)
class _Ticket:
    """One request in the queue. left: tokens still waiting; missing: answers still to come."""

    hosted: Hosted
    wish: Wish
    answers: list[Answer | None]
    missing: int
    left: int
    waiting: deque[_Text] = field(default_factory=deque)
    future: Future[list[Answer]] = field(default_factory=Future)

    def answer(self, place: int, answer: Answer) -> None:
        if self.answers[place] is not None:  # by a pass of which another part failed
            return
        self.answers[place] = answer
        self.missing -= 1
        if self.missing == 0 and self.future.set_running_or_notify_cancel():
            self.future.set_result([one for one in self.answers if one is not None])

    def fail(self, error: Exception) -> None:
        self.waiting.clear()
        if not self.future.done() and self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)


class Speed:
    """How long passes take: a part for each pass and a part for each token, fitted to the last ones.

    A pass of one text takes longer a token than a full one, so tokens a second alone would be too careful.
    """

    def __init__(self) -> None:
        self._sums = np.zeros(5)  # of 1, tokens, seconds, tokens², tokens x seconds; faded

    def note(self, tokens: int, seconds: float) -> None:
        """A pass has ended. One that surprises counts as `SURPRISE` times what was expected: the machine was away."""
        expected = self.seconds(tokens, tokens)
        seconds = min(seconds, SURPRISE * expected) if expected else seconds
        self._sums = FADE * self._sums + (1, tokens, seconds, tokens**2, tokens * seconds)

    def seconds(self, tokens: int, budget: int) -> float:
        """What so many tokens will take in passes of the budget."""
        weight, x, y, xx, xy = self._sums.tolist()
        if not x or not tokens:
            return 0.0
        spread = xx - x * x / weight
        token = (xy - x * y / weight) / spread if spread > 1e-6 * xx else y / x
        token = min(max(token, 0.0), y / x)
        return token * tokens + (y - token * x) / weight * math.ceil(tokens / budget)


class Engine:
    """A backbone that answers for its members. Every method may be called from any thread.

    budget: most tokens of a pass. max_wait: seconds. hear: told of each pass, in the engine's thread.
    """

    def __init__(
        self, backbone: Backbone, *, budget: int, max_wait: float, hear: Callable[[Pass], None] = lambda done: None
    ) -> None:
        self.backbone, self.budget, self.max_wait, self._hear = backbone, budget, max_wait, hear
        self._hosted: list[Hosted] = []
        self._open: set[int] = set()
        self._leaving: list[tuple[Hosted, Future[None]]] = []
        self._model: LabelModel | None = None
        self._queue: deque[_Ticket] = deque()
        self._errands: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._changed = threading.Condition()
        self._stopped, self._expected = False, 0  # tokens of requests that are still encoded
        self._speed, self._running, self._began = Speed(), 0, 0.0
        self._thread = threading.Thread(target=self._loop, name="labeltune-engine", daemon=True)
        self._thread.start()

    # From outside

    def submit(
        self, hosted: Hosted, examples: Sequence[Example], rows: Sequence[Encoded], wish: Wish
    ) -> Future[list[Answer]]:
        """Answers, in order, once a pass has held each text; cancelling it takes what still waits out of the queue.

        Raises:
            Overloaded: it would wait too long.
            Departed: the run is not answered for any more.
        """
        tokens = sum(len(row.tokens) for row in rows)
        ticket = _Ticket(hosted, wish, [None] * len(rows), len(rows), tokens)
        pairs = zip(examples, rows, strict=True)
        ticket.waiting.extend(_Text(ticket, place, *pair) for place, pair in enumerate(pairs))
        with self._changed:
            if id(hosted) not in self._open:
                raise Departed("the run has been taken out", at=hosted.name)
            self._refuse_waiting(tokens)
            self._queue.append(ticket)
            self._changed.notify()
        return ticket.future

    def wait(self, tokens: int) -> float:
        """Seconds that others would let a request of about so many tokens wait."""
        with self._changed:
            return self._wait(tokens)

    @contextmanager
    def expecting(self, tokens: int) -> Iterator[None]:
        """Refuse a request of about so many tokens before they are counted, or let others wait for it meanwhile.

        Raises:
            Overloaded: it would wait too long.
        """
        with self._changed:
            self._refuse_waiting(tokens)
            self._expected += tokens
        try:
            yield
        finally:
            with self._changed:
                self._expected -= tokens

    def admit(self, hosted: Hosted) -> Future[None]:
        """Check the backbone under the run's mask, and answer for the run from the next pass on."""

        def admit() -> None:
            with BUSY:
                check(self.backbone, hosted.member.directions)
            self._rebuild([*self._hosted, hosted])
            with self._changed:
                self._open.add(id(hosted))

        return self._errand(admit)

    def dismiss(self, hosted: Hosted) -> Future[None]:
        """Answer for the run no more, once the requests that it still has are answered."""
        gone: Future[None] = Future()
        with self._changed:
            self._open.discard(id(hosted))
        self._errand(lambda: self._leaving.append((hosted, gone)))
        return gone

    def stop(self) -> None:
        """End the thread after its pass; what waits is cancelled."""
        with self._changed:
            self._stopped = True
            self._changed.notify()
        self._thread.join()

    @property
    def waiting(self) -> tuple[int, int]:
        """Requests and tokens in the queue."""
        with self._changed:
            return len(self._queue), sum(ticket.left for ticket in self._queue)

    def _errand(self, function: Callable[[], Any]) -> Future[Any]:
        future: Future[Any] = Future()
        with self._changed:
            self._errands.append((function, future))
            self._changed.notify()
        return future

    def _refuse_waiting(self, tokens: int) -> None:
        wait = self._wait(tokens)
        if wait > self.max_wait or self._stopped:
            raise Overloaded(wait)

    def _wait(self, tokens: int) -> float:
        running = self._speed.seconds(self._running, self.budget) - (time.perf_counter() - self._began)
        ahead = self._expected + sum(min(ticket.left, tokens) for ticket in self._queue)
        return self._speed.seconds(ahead, self.budget) + (max(0.0, running) if self._running else 0.0)

    # The thread

    def _loop(self) -> None:
        while True:
            with self._changed:
                while not (self._stopped or self._errands or self._queue or self._leaving):
                    self._changed.wait()
                if self._stopped:
                    break
                errands = list(self._errands)
                self._errands.clear()
                texts = self._take()
            for function, future in errands:
                _run(function, future)
            if texts:
                self._answer(texts)
            self._part()
        self._end()

    def _take(self) -> list[_Text]:
        """One text of each request in turn, until the budget is full."""
        taken: list[_Text] = []
        used = 0
        while self._queue:
            ticket = self._queue[0]
            if not ticket.waiting or ticket.future.cancelled():
                self._queue.popleft()
                continue
            if taken and used + ticket.waiting[0].tokens > self.budget:
                break
            text = ticket.waiting.popleft()
            taken.append(text)
            used += text.tokens
            ticket.left -= text.tokens
            self._queue.rotate(-1)
        self._running, self._began = used, time.perf_counter()
        return taken

    def _answer(self, texts: list[_Text]) -> None:
        """One pass; if it fails, its halves, so that a text that cannot be answered harms no other."""
        if not self._settled(texts):
            half = len(texts) // 2
            self._answer(texts[:half])
            self._answer(texts[half:])

    def _settled(self, texts: list[_Text]) -> bool:
        """Whether the texts have their answers, or the only one its error.

        Halves are not tried in here: as long as an error is handled, its frames hold all that the failed pass held.
        """
        try:
            with BUSY:
                start = time.perf_counter()  # waiting for others is not this engine's speed
                self._pass(texts)
                seconds = time.perf_counter() - start
        except Exception as error:  # noqa: BLE001  # it is raised where the answer is awaited; the thread must live on
            if len(texts) > 1:
                return False
            texts[0].ticket.fail(error)
            with self._changed:
                self._running = 0
            return True
        tokens = sum(text.tokens for text in texts)
        with self._changed:
            self._speed.note(tokens, seconds)
            self._running = 0
        self._hear(Pass(len(texts), tokens, seconds, len({id(text.ticket.hosted) for text in texts})))
        return True

    def _pass(self, texts: list[_Text]) -> None:
        assert self._model is not None, "a request is submitted for an admitted run alone"
        slices = self._slices(texts)
        numbered = iter(range(len(texts)))
        packed = [[(next(numbered), text.row) for text in part] for part in slices]
        batch = pack(packed, self.backbone.device)
        with torch.no_grad():
            logits = [part.float().cpu().numpy() for part in self._model(batch)]
        document_S = batch.target_document.cpu().numpy()
        first, document = 0, 0
        for hosted, part, logits_SL in zip(self._hosted, slices, logits, strict=True):
            own_S = document_S[first : first + len(logits_SL)] - document
            first, document = first + len(logits_SL), document + len(part)
            if part:
                _settle(hosted, part, logits_SL, own_S)

    def _slices(self, texts: Iterable[_Text]) -> list[list[_Text]]:
        """The texts of each member, those of one length side by side, for they share a call of the attention kernel."""
        of: dict[int, list[_Text]] = {id(hosted): [] for hosted in self._hosted}
        for text in sorted(texts, key=lambda text: text.tokens):
            of[id(text.ticket.hosted)].append(text)
        return list(of.values())

    def _part(self) -> None:
        """Let go of the runs that leave and have nothing in the queue any more."""
        if not self._leaving:
            return
        with self._changed:
            asked = {id(ticket.hosted) for ticket in self._queue}
        going = [pair for pair in self._leaving if id(pair[0]) not in asked]
        self._leaving = [pair for pair in self._leaving if id(pair[0]) in asked]
        gone = {id(hosted) for hosted, _ in going}
        if gone:
            self._rebuild([hosted for hosted in self._hosted if id(hosted) not in gone])
        for _, future in going:
            future.set_result(None)

    def _rebuild(self, hosted: list[Hosted]) -> None:
        if self._model is not None:
            self._model.detach()
        self._hosted = hosted
        self._model = LabelModel(self.backbone, [one.member for one in hosted]) if hosted else None

    def _end(self) -> None:
        for ticket in self._queue:
            ticket.future.cancel()
        for _, future in (*self._errands, *self._leaving):
            future.cancel()


def _settle(hosted: Hosted, part: Sequence[_Text], logits_SL: np.ndarray, document_S: np.ndarray) -> None:
    """Decide on one run's texts, and hand out the answers; those with equal wishes together."""
    bad = set(document_S[~np.isfinite(logits_SL).all(axis=1)].tolist())
    by_wish: dict[Wish, list[Answer]] = {}
    for number, text in enumerate(part):
        if number in bad:
            hint = "the run may have been trained at too high a learning rate"
            text.ticket.fail(NoNumbers("the answers are no finite numbers", at=text.example.id, hint=hint))
            continue
        wish = text.ticket.wish
        if wish not in by_wish:
            examples, rows = [each.example for each in part], [each.row for each in part]
            by_wish[wish] = hosted.answers(examples, rows, wish, logits_SL, document_S)
        text.ticket.answer(text.place, by_wish[wish][number])


def _run(function: Callable[[], Any], future: Future[Any]) -> None:
    try:
        future.set_result(function())
    except Exception as error:  # noqa: BLE001  # it is raised where the result is awaited; the thread must live on
        future.set_exception(error)
