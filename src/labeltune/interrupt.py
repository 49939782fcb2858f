"""Ctrl-C between two steps, not inside one: the first signal asks, the second insists."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
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
    """Turn the first SIGINT or SIGTERM into `stop.asked`; outside the main thread signals stay as they are."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def ask(number: int, frame: FrameType | None) -> None:
        if stop.asked:
            raise KeyboardInterrupt
        stop.asked = True

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
