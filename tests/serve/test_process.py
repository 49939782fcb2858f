"""The command as people run it: signals, full disks, folders that change, faults at the start."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from labeltune import open_run

from .conftest import sentences

pytestmark = pytest.mark.slow
ADMIN = "admins-key-of-a-test"


@dataclass
class Process:
    """A server of its own process."""

    popen: subprocess.Popen[str]
    url: str
    client: httpx.Client
    said: list[str]  # the lines of its log since it listens
    listener: threading.Thread  # reads them

    def answered(self) -> int:
        """Requests for predictions that it answered, by its log; complete once it has ended."""
        events = map(json.loads, self.said)
        return sum(e["event"] == "request" and e["method"] == "POST" and e["status"] == 200 for e in events)


def command(*words: object) -> list[str]:
    return [
        sys.executable,
        "-m",
        "labeltune.cli",
        "serve",
        *map(str, words),
        "--port",
        "0",
        "--set",
        "train.threads=1",
        "--set",
        "serve.max_wait=60",
    ]


@contextmanager
def running(*words: object, **environment: str) -> Iterator[Process]:
    """`labeltune serve` on a free port, ready; killed if the test leaves it alive."""
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **environment}
    with subprocess.Popen(command(*words), stderr=subprocess.PIPE, text=True, env=env) as popen:
        assert popen.stderr is not None
        try:
            port = next(json.loads(line)["port"] for line in popen.stderr if '"listening"' in line)
            said: list[str] = []
            listener = threading.Thread(target=said.extend, args=[popen.stderr], daemon=True)
            listener.start()
            key = {"X-API-Key": environment.get("LABELTUNE_ADMIN_KEYS", "")}
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, headers=key) as client:
                while client.get("/ready").status_code != 200:
                    time.sleep(0.05)
                yield Process(popen, str(client.base_url), client, said, listener)
        finally:
            popen.kill()


def labels(client: httpx.Client, run: str = "moods") -> list[Any]:
    reply = client.post(f"/runs/{run}/predict", json={"texts": sentences(6)})
    assert reply.status_code == 200, reply.text
    return [one["label"] for one in reply.json()["predictions"]]


@pytest.mark.parametrize("wait", [0.0, 1.0])
def test_a_signal_while_runs_are_loaded_ends_the_process_with_0(runs: dict[str, Path], wait: float) -> None:
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    words = [f"{name}={path}" for name, path in runs.items()]
    with subprocess.Popen(command(*words), stderr=subprocess.PIPE, text=True, env=env) as popen:
        assert popen.stderr is not None
        port = next(json.loads(line)["port"] for line in popen.stderr if '"listening"' in line)
        httpx.get(f"http://127.0.0.1:{port}/ready", timeout=60)  # it answers, so it hears signals
        time.sleep(wait)
        popen.send_signal(signal.SIGTERM)
        assert popen.wait(120) == 0, popen.stderr.read()


def test_sigterm_under_load_loses_no_answer_and_exits_with_0(runs: dict[str, Path]) -> None:
    with running(runs["moods"]) as process:
        expected = labels(process.client)
        outcomes: list[str] = []

        def ask() -> None:
            with httpx.Client(base_url=process.url, timeout=60) as client:
                while True:
                    try:
                        reply = client.post("/runs/moods/predict", json={"texts": sentences(6)})
                    except httpx.ConnectError:
                        return outcomes.append("closed")
                    except (httpx.RemoteProtocolError, httpx.ReadError):  # closed as the request was sent, unread
                        return outcomes.append("unread")
                    if reply.status_code == 503:
                        outcomes.append("draining")
                        continue
                    assert reply.status_code == 200
                    assert [one["label"] for one in reply.json()["predictions"]] == expected
                    outcomes.append("answered")

        threads = [threading.Thread(target=ask) for _ in range(6)]
        for thread in threads:
            thread.start()
        while outcomes.count("answered") <= 6 and all(thread.is_alive() for thread in threads):
            time.sleep(0.05)
        process.popen.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join(30)
        assert process.popen.wait(30) == 0
        assert outcomes.count("closed") + outcomes.count("unread") == 6
        process.listener.join(30)
        assert process.answered() == outcomes.count("answered") + 1


def test_kills_while_runs_come_and_go_leave_the_folders_as_they_were(runs: dict[str, Path], tmp_path: Path) -> None:
    copies = {name: shutil.copytree(runs[name], tmp_path / name) for name in ("moods", "names")}
    for moment in (0.0, 0.05, 0.2):
        with running(copies["moods"], LABELTUNE_ADMIN_KEYS=ADMIN) as process:

            def come_and_go(client: httpx.Client = process.client) -> None:
                try:
                    while True:
                        client.put("/runs/names", json={"folder": str(copies["names"])})
                        client.delete("/runs/names")
                except httpx.TransportError:
                    pass

            thread = threading.Thread(target=come_and_go)
            thread.start()
            time.sleep(0.3 + moment)
            process.popen.kill()
            thread.join()
    for folder in copies.values():
        assert open_run(folder).state == "finished"


def test_a_folder_that_changes_under_the_server_changes_no_answer(runs: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(runs["moods"], tmp_path / "moods")
    with running(folder, LABELTUNE_ADMIN_KEYS=ADMIN) as process:
        expected = labels(process.client)
        head = (folder / "head.safetensors").read_bytes()
        (folder / "head.safetensors").write_bytes(head[:-4] + bytes(4))
        assert labels(process.client) == expected
        again = process.client.put("/runs/moods", json={"folder": str(folder)})
        assert again.status_code == 422
        assert "changed after training" in again.json()["error"]
        shutil.rmtree(folder)
        assert labels(process.client) == expected
        shutil.copytree(runs["moods"], folder)
        assert process.client.put("/runs/moods", json={"folder": str(folder)}).status_code == 200
        assert labels(process.client) == expected


def test_logs_on_a_full_disk_cost_no_answer(runs: dict[str, Path]) -> None:
    env = {**os.environ, "HF_HUB_OFFLINE": "1"}
    words = command(runs["moods"])
    words[words.index("0")] = str(port := _free_port())
    with Path("/dev/full").open("w") as full, subprocess.Popen(words, stderr=full, env=env) as popen:
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
                end = time.monotonic() + 60
                while time.monotonic() < end:
                    try:
                        if client.get("/ready").status_code == 200:
                            break
                    except httpx.TransportError:
                        assert popen.poll() is None
                    time.sleep(0.05)
                assert len(labels(client)) == 6
            popen.send_signal(signal.SIGTERM)
            assert popen.wait(30) == 0
        finally:
            popen.kill()


def _free_port() -> int:
    from labeltune.serve.server import listen

    with listen("127.0.0.1", 0) as listener:
        return int(listener.getsockname()[1])


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda folder: folder / "nothing", "no such run folder"),
        (lambda folder: (folder / "head.safetensors").unlink() or folder, "missing"),
        (lambda folder: f"two words={folder}", "no name for a run"),
    ],
)
def test_faults_at_the_start_are_one_sentence_and_exit_code_1(
    runs: dict[str, Path], tmp_path: Path, make: Any, said: str
) -> None:
    folder = shutil.copytree(runs["moods"], tmp_path / "moods")
    done = subprocess.run(command(make(folder)), capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_backbone_that_is_gone_ends_the_server_with_a_sentence(
    runs: dict[str, Path], tiny_folder: Path, tmp_path: Path
) -> None:
    words = [*command(runs["moods"]), "--set", f"model.name={tmp_path}"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert str(tmp_path) in done.stderr.splitlines()[-1]
