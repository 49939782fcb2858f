"""Ctrl-C between two steps, not inside one (`graceful`), or at once and for certain (`heard`)."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from labeltune.errors import LabeltuneError


class Interrupted(LabeltuneError):
    """The user stopped the work; what was done is kept, and the sentence says how to go on."""

    exit_code = 130


class Stop:
    """Whether the user has asked to stop."""

    def __init__(self) -> None:
        self.asked = False


@contextmanager
def graceful() -> Iterator[Stop]:
    """Turn the first SIGINT or SIGTERM into `stop.asked`; a second one raises KeyboardInterrupt."""
    stop = Stop()

    def ask(number: int, frame: FrameType | None) -> None:
        if stop.asked:
            raise KeyboardInterrupt
        stop.asked = True

    with _handled(ask, signal.SIGINT, signal.SIGTERM):
        yield stop


@contextmanager
def heard() -> Iterator[None]:
    """Raise KeyboardInterrupt where SIGINT arrives, as Python does, and once more at the end where it was swallowed.

    A signal that arrives in a finaliser or in a weak reference's callback, of which an import has many, is reported and
    forgotten by Python; the work would go on as if nobody had asked.
    """
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:  # ignored, or heard by somebody else
        yield
        return
    stop = Stop()

    def insist(number: int, frame: FrameType | None) -> None:
        stop.asked = True
        raise KeyboardInterrupt

    with _handled(insist, signal.SIGINT):
        yield
    if stop.asked:
        raise KeyboardInterrupt


@contextmanager
def _handled(handler: Callable[[int, FrameType | None], None], *numbers: signal.Signals) -> Iterator[None]:
    """Hear these signals; outside the main thread, where Python allows none, they stay as they are."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, was in before.items():
            signal.signal(number, was)
