"""Runs of every task on one backbone, and a server of them in this process."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from labeltune import train
from labeltune.serve.fleet import named
from labeltune.serve.keys import Keys
from labeltune.serve.server import Server, divided, listen

QUICK = {"train.lr": 1e-2, "train.epochs": 2, "train.batch_rows": 8, "train.threads": 1, "lora.rank": 2}
WORDS = "the thin hen on the ring sang in the other inn and then the tin rang again on a thing".split()


def sentences(count: int) -> list[str]:
    """Texts of 2 to 14 words, and one beyond the context."""
    texts = [
        " ".join(WORDS[(i * 7 + j) % len(WORDS)] for j in range(2 + i % 13)) + f" Bob {i}" for i in range(count - 1)
    ]
    return [*texts, " ".join(WORDS * 20)]


@pytest.fixture(scope="session")
def runs(small: Path, tiny_folder: Path, finished: Path, tagger: Path, tmp_path_factory: Any) -> dict[str, Path]:
    """Six runs that differ in task, mask, pooling, depth, adapter and labels."""
    folder = tmp_path_factory.mktemp("served")
    sizes = [(f"{' '.join(WORDS[: 2 + i % 5])} {i}", i % 5 / 4) for i in range(24)]
    grades = [(text, ("low", "fair", "high")[round(2 * size)]) for text, size in sizes]
    several = [
        {"text": text, "labels": ["big"] * (size > 0.4) + ["odd"] * (i % 2)} for i, (text, size) in enumerate(sizes)
    ]
    pairs = [{"one": text, "two": text[::-1], "label": ("no", "yes")[i % 2]} for i, (text, _) in enumerate(sizes)]
    wanted: dict[str, tuple[Any, dict[str, Any]]] = {
        "multilabel": (
            several,
            {"model.pooling": "mean", "model.unmask": "all", "lora.targets": ["q_proj", "up_proj"]},
        ),
        "regression": ([{"text": t, "label": s} for t, s in sizes], {"model.pooling": "max", "model.depth": 2}),
        "ordinal": (
            [{"text": t, "label": g} for t, g in grades],
            {"data.label_order": ["low", "fair", "high"], "model.unmask": "first:2", "lora.kind": "none"},
        ),
        "classification": (
            pairs,
            {"data.template": "{one} / {two}", "model.pooling": "attention", "lora.kind": "dora", "lora.dropout": 0.0},
        ),
    }
    found = {"moods": finished, "names": tagger}
    for task, (rows, settings) in wanted.items():
        found[task] = folder / task
        train(rows, dev=rows, model=str(tiny_folder), task=task, out=found[task], settings=QUICK | settings)
    return found


@dataclass
class Running:
    """A server that answers, and a client for it."""

    server: Server
    client: httpx.Client
    url: str
    events: list[dict[str, Any]]


Start = Callable[..., Any]


@pytest.fixture(scope="session")
def start() -> Start:
    """A function: runs by name, settings by name -> a context with a server in a thread."""

    @contextmanager
    def start(runs: dict[str, Path], **settings: Any) -> Iterator[Running]:
        wait = settings.pop("wait", True)
        keys = settings.pop("keys", Keys())
        events: list[dict[str, Any]] = []
        config, differing = divided({name.replace("__", "."): value for name, value in settings.items()})
        server = Server(
            named([f"{name}={path}" for name, path in runs.items()]), config, differing, keys, events.append
        )
        with listen("127.0.0.1", 0) as listener:
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            thread = threading.Thread(target=server.run, args=(listener,), daemon=True)
            thread.start()
            with httpx.Client(base_url=url, timeout=60) as client:
                while wait and client.get("/ready").status_code != 200:
                    time.sleep(0.02)
                yield Running(server, client, url, events)
                server.desk.state = "draining"
                thread.join(30)
                assert not thread.is_alive()

    return start


@pytest.fixture(scope="session")
def served(runs: dict[str, Path], start: Start) -> Iterator[Running]:
    """All runs, served. Tests that change what is served start their own."""
    with start(runs) as running:
        yield running
