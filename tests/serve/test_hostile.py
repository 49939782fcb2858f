"""Requests that nobody means well: malformed, cut off, slow and drawn at random, while others are answered."""

import contextlib
import os
import random
import shutil
import socket
import subprocess
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from .conftest import Start, sentences

pytestmark = pytest.mark.slow
PREDICT = "/runs/moods/predict"
BODY = b'{"texts": ["the thin hen"]}'
NOISE = [
    b"\x00\x01\x02" * 50,
    b"GET\r\n\r\n",
    b"GET / HTTP/9.9\r\n\r\n",
    b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\n\r\n",
    b"GET / HTTP/1.1\r\n" + b"X: " + b"y" * 200_000 + b"\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100),
]


def hostile(draw: random.Random) -> bytes:
    """One connection's bytes: noise, or a request with something wrong."""
    if draw.random() < 0.3:
        return draw.choice(NOISE)
    length = draw.choice([len(BODY), len(BODY) + 50, 0, 3, 10**9, 10**30, -1])
    more = draw.choice(
        [b"", b"Transfer-Encoding: chunked\r\n", b"Content-Encoding: gzip\r\n", b"Expect: 100-continue\r\n"]
    )
    path = draw.choice(
        [b"/runs/moods/predict", b"/classify", b"/v2/models/moods/infer", b"/%00/%ff?%", b"//", b"/runs/../x"]
    )
    body = draw.choice([BODY, BODY[:9], b"zz\r\n" + BODY, b"5\r\nhello\r\n0\r\n\r\n", b"[" * 50_000, bytes(1000)])
    lines = (
        b"POST " + path + b" HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n" % length
    )
    sent = lines + more + b"\r\n" + body
    return sent[: 1 + draw.randrange(len(sent))] if draw.random() < 0.3 else sent * draw.choice([1, 1, 3])


def attack(port: int, seed: int) -> bytes:
    """Send it, in pieces or at once, read a little or nothing, and leave politely or not."""
    draw = random.Random(seed)
    got = b""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=0.3) as connection:
        sent = hostile(draw)
        for start in range(0, len(sent), size := draw.choice([len(sent), 1 + len(sent) // 7])):
            connection.sendall(sent[start : start + size])
        if draw.random() < 0.3:  # a reset, not a close
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        elif draw.random() < 0.8:
            got = connection.recv(4096)
    return got


def memory() -> float:
    """MiB of this process, which is the server."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def test_thousands_of_hostile_connections_harm_nobody(runs: dict[str, Path], start: Start) -> None:
    with start({"moods": runs["moods"]}, serve__body_timeout=1.0) as running, ThreadPoolExecutor(17) as pool:
        port = int(running.url.rpartition(":")[2])
        over = threading.Event()
        expected = running.client.post(PREDICT, content=BODY, headers={"content-type": "application/json"}).json()
        asked = {"texts": ["the thin hen"]}

        def friend() -> int:
            count = 0
            with httpx.Client(base_url=running.url, timeout=60) as client:
                while not over.is_set():
                    reply = client.post(PREDICT, json=asked)
                    assert (reply.status_code, reply.json()) == (200, expected)
                    count += 1
            return count

        friendly = pool.submit(friend)
        try:
            first = list(pool.map(lambda seed: attack(port, seed), range(300)))
            before, open_before = memory(), len(os.listdir("/proc/self/fd"))
            rest = list(pool.map(lambda seed: attack(port, seed), range(300, 3000)))
        finally:
            over.set()
        assert friendly.result() > 0
        statuses = Counter(said.split(b" ")[1] for said in first + rest if said.startswith(b"HTTP/1.1 "))
        assert statuses[b"200"] > 50, "some were right"
        assert statuses[b"400"] > 50
        assert not [status for status in statuses if status.startswith(b"5")], statuses
        time.sleep(2.5)  # the slow ones end
        assert running.server.desk.pending == 0
        assert running.server.fleet.engines[0].waiting == (0, 0)
        assert len(os.listdir("/proc/self/fd")) <= open_before
        assert memory() < before + 30
        assert not [event for event in running.events if "traceback" in event]


@pytest.mark.parametrize("place", ["a run's name", "any name"])
def test_requests_drawn_from_the_openapi_document_find_no_server_error(
    runs: dict[str, Path], start: Start, tmp_path: Path, place: str
) -> None:
    command = shutil.which("st", path=os.path.dirname(os.sys.executable)) or "st"
    config = tmp_path / "schemathesis.toml"
    config.write_text('[parameters]\n"path.name" = "moods"\n' if place == "a run's name" else "")
    checks = "not_a_server_error,content_type_conformance,response_schema_conformance,status_code_conformance"
    with start({name: runs[name] for name in ("moods", "names")}) as running:
        words = [
            "run",
            f"{running.url}/openapi.json",
            "--checks",
            checks,
            "--max-examples",
            "12",
            "--phases",
            "coverage,fuzzing",
        ]
        done = subprocess.run(
            [command, "--config-file", str(config), *words, "--seed", "1", "--no-color", "--warnings", "off"],
            capture_output=True,
            text=True,
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
        assert sum(event["event"] == "request" for event in running.events) > 500
        assert not [event for event in running.events if "traceback" in event]
        assert running.client.post(PREDICT, json={"texts": sentences(3)}).status_code == 200
