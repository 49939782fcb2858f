"""`labeltune serve`: a socket, the runs, and an end that loses nothing."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

import uvicorn
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from labeltune.config import put
from labeltune.errors import SettingsError
from labeltune.run import open_run
from labeltune.serve.app import make_app
from labeltune.serve.connections import patient
from labeltune.serve.desk import Desk
from labeltune.serve.fleet import Fleet, Named, named
from labeltune.serve.guard import Guard, Tell
from labeltune.serve.keys import Keys
from labeltune.serve.measures import Measures
from labeltune.serve.settings import ServeConfig, Serving
from labeltune.settings import build

TICK = 0.05
"""Seconds between two looks at whether all requests have ended."""


def serve(
    runs: Sequence[str],
    *,
    host: str = "127.0.0.1",
    port: int = 8080,
    settings: Mapping[str, Any] | None = None,
    keys: Keys = Keys(),  # noqa: B008  # frozen
    tell: Tell = lambda event: None,
) -> None:
    """Serve runs until SIGTERM or SIGINT; then requests under way are answered, new ones refused.

    runs: folders, or `NAME=FOLDER`. settings: by dotted name, the server's (`serve.max_wait`) and those that may differ
    from the runs' own (`train.device`, `model.dtype`). tell: told of each event, in the server's threads.

    Raises:
        RunError, ModelError, SettingsError: a run that cannot be loaded, a port that is taken.
    """
    config, differing = divided(settings or {})
    chosen = named(runs)
    for one in chosen:
        open_run(one.folder)  # a fault that is seen at once ends the command at once
    with listen(host, port) as listener, _heard(tell):
        Server(chosen, config, differing, keys, tell).run(listener)


def divided(settings: Mapping[str, Any]) -> tuple[ServeConfig, dict[str, Any]]:
    """The server's own settings, and those of the runs."""
    own: dict[str, Any] = {}
    for name, value in settings.items():
        if name.startswith("serve."):
            put(own, name, value)
    differing = {name: value for name, value in settings.items() if not name.startswith("serve.")}
    return build(Serving, own).serve, differing


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 is any free one.

    Raises:
        SettingsError: the port is taken or may not be used, or the host is no address of this machine.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=1024)
    except (OSError, OverflowError, UnicodeError) as error:
        said = getattr(error, "strerror", None) or str(error)
        raise SettingsError(f"cannot listen ({said})", at=f"{host}:{port}", hint="choose another --port") from None


class Server:
    """One process that serves: the application on uvicorn, and a thread that loads the runs."""

    def __init__(
        self, runs: Sequence[Named], config: ServeConfig, settings: Mapping[str, Any], keys: Keys, tell: Tell
    ) -> None:
        self.runs, self.config, self.keys, self.tell = runs, config, keys, tell
        self.measures = Measures()
        self.fleet = Fleet(config, settings, self.measures.passed)
        self.desk = Desk(self.fleet, config)
        self.measures.watch(self.desk)
        self._failed: Exception | None = None

    def run(self, listener: socket.socket) -> None:
        """Serve on a listening socket until a signal comes.

        Raises:
            RunError, ModelError, SettingsError: a run that cannot be loaded.
        """
        http = _Http(
            uvicorn.Config(
                self._app(),
                http=patient(self.config.body_timeout, self.config.max_connections),
                log_config=None,
                access_log=False,
                proxy_headers=False,
                lifespan="off",
                ws="none",
                server_header=False,
                timeout_graceful_shutdown=max(1, round(self.config.drain)),
            ),
            self.desk,
        )
        loader = threading.Thread(target=self._load, args=(http,), name="labeltune-loader", daemon=True)
        loader.start()
        host, port = listener.getsockname()[:2]
        self.tell({"event": "listening", "host": host, "port": port})
        http.run(sockets=[listener])
        loader.join(self.config.drain)  # a thread that still reads weights while Python ends brings the process down
        self.desk.close()
        self.fleet.stop()
        self.tell({"event": "stopped"})
        if self._failed is not None:
            raise self._failed

    def _app(self) -> ASGIApp:
        guard = Guard(make_app(self.desk, self.measures), self.desk, self.keys, self.measures, self.tell)
        if not self.config.cors:
            return guard
        words = ["Authorization", "Content-Type", "X-API-Key"]
        return CORSMiddleware(guard, allow_origins=self.config.cors, allow_methods=["GET", "POST"], allow_headers=words)

    def _load(self, http: _Http) -> None:
        try:
            self.fleet.load_all(self.runs)
        except Exception as error:  # noqa: BLE001  # raised again by `run`, in the thread that can say it
            self._failed = error
            http.should_exit = True
            return
        if self.desk.state == "loading":
            self.desk.state = "ready"
        self.tell({"event": "ready", "runs": [hosted.name for hosted in self.fleet.hosted]})


class _Teller(logging.Handler):
    """Passes what uvicorn logs on as events; a traceback stays whole, for it is of a bug."""

    def __init__(self, tell: Tell) -> None:
        super().__init__(logging.WARNING)
        self._tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        """One event."""
        event = {"event": "log", "level": record.levelname.lower(), "message": record.getMessage()}
        self._tell(event | ({"traceback": self.format(record)} if record.exc_info else {}))


@contextmanager
def _heard(tell: Tell) -> Iterator[None]:
    logger, handler = logging.getLogger("uvicorn"), _Teller(tell)
    before = logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = before


class _Http(uvicorn.Server):
    """Uvicorn that drains before it closes: a first signal lets requests end, a second one ends them."""

    def __init__(self, config: uvicorn.Config, desk: Desk) -> None:
        super().__init__(config)
        self._desk = desk

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """SIGTERM or SIGINT."""
        if self._desk.state == "draining":
            self.force_exit = self.should_exit = True
            return
        self._desk.state = "draining"

    async def main_loop(self) -> None:
        """Until a signal comes and what is under way has ended, or had its time."""
        ticking = asyncio.ensure_future(super().main_loop())
        while not self.should_exit and self._desk.state != "draining":
            await asyncio.sleep(TICK)
        left = self._desk.config.drain
        while self._desk.pending and left > 0 and not self.should_exit:
            await asyncio.sleep(TICK)
            left -= TICK
        self.should_exit = True
        await ticking
