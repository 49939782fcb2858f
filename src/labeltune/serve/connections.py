"""HTTP/1.1 connections that wait for nobody: a head that does not come ends them, and there are only so many."""

from __future__ import annotations

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol


def patient(seconds: float, most: int) -> type[H11Protocol]:
    """Uvicorn's protocol, with `seconds` for a request's head and at most `most` connections."""

    class Patient(H11Protocol):
        """Closes what uvicorn would let wait for ever."""

        _alarm: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
            """Begin to wait for the first head, or close at once."""
            super().connection_made(transport)
            if len(self.connections) > most:
                transport.abort()
            else:
                self._arm()

        def connection_lost(self, exc: Exception | None) -> None:
            """Wait no more."""
            self._disarm()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            """Wait while a head is incomplete."""
            if self._alarm is None and self._headless():
                self._arm()
            super().data_received(data)
            if not self._headless():
                self._disarm()

        def _headless(self) -> bool:
            return self.conn.their_state is h11.IDLE

        def _arm(self) -> None:
            self._alarm = self.loop.call_later(seconds, self._close)

        def _disarm(self) -> None:
            if self._alarm is not None:
                self._alarm.cancel()
                self._alarm = None

        def _close(self) -> None:
            self._alarm = None
            if self._headless():
                self.transport.close()

    return Patient
