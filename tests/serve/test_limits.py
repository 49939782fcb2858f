"""What a server refuses, and that nobody else notices: sizes, patience, keys, loading and draining."""

import base64
import contextlib
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from labeltune.errors import SettingsError
from labeltune.serve.fleet import named
from labeltune.serve.keys import Keys
from labeltune.serve.server import listen

from .conftest import Running, Start, sentences

KEY, ADMIN = "client-key-of-a-test", "admins-key-of-a-test"
PREDICT = "/runs/moods/predict"
BODY = b'{"texts": ["the thin hen sang in the inn"]}'


def raw(running: Running, sent: bytes, *, wait: float = 10.0) -> bytes:
    """What comes back on a connection of its own until the server closes it, or nothing within the time."""
    with socket.create_connection(("127.0.0.1", int(running.url.rpartition(":")[2]))) as connection:
        connection.settimeout(wait)
        connection.sendall(sent)
        got = b""
        with contextlib.suppress(TimeoutError, ConnectionResetError):
            while part := connection.recv(65536):
                got += part
        return got


def head(length: int, *more: str) -> bytes:
    lines = [
        f"POST {PREDICT} HTTP/1.1",
        "Host: x",
        "Content-Type: application/json",
        f"Content-Length: {length}",
        *more,
    ]
    return "\r\n".join([*lines, "", ""]).encode()


# Sizes


@pytest.mark.parametrize(
    ("settings", "asked", "said"),
    [
        ({"serve__max_texts": 3}, {"texts": ["a"] * 4}, "4 texts"),
        ({"serve__max_characters": 9}, {"texts": "ten letters"}, "characters"),
        ({"serve__max_tokens": 9}, {"texts": ["the thin hen sang"]}, "tokens"),
        ({"serve__max_bytes": 99}, {"texts": "a" * 100}, "99 bytes"),
        ({"data__max_windows": 1}, {"texts": "hen " * 300}, "windows"),
    ],
)
def test_what_is_too_large_is_refused_with_413(
    runs: dict[str, Path], start: Start, settings: dict[str, Any], asked: dict[str, Any], said: str
) -> None:
    with start({"moods": runs["moods"]}, **settings) as running:
        reply = running.client.post(PREDICT, json=asked)
        assert reply.status_code == 413
        assert said in reply.json()["error"]
        assert running.client.post(PREDICT, json={"texts": "a hen"}).status_code == 200


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 422),
        (b"{", 400),
        (b"[" * 100_000, 400),
        (b'{"texts": "\xff"}', 400),
        (b'{"texts": 5}', 422),
        (b'{"texts": []}', 422),
        (b'{"texts": ["a"], "rows": []}', 422),
        (b'{"texts": ["  "]}', 422),
        (b'{"texts": ["\\ud800"]}', 422),
        (b'{"rows": [{"\\ud800": "\\udfff"}]}', 422),
        (b'{"rows": [{}]}', 422),
        (b'{"rows": [{"text": NaN}]}', 422),
        (b'{"texts": "a", "min_score": Infinity}', 422),
        (b'{"texts": "a", "more": 1}', 422),
    ],
)
def test_malformed_bodies_are_the_clients_fault(served: Running, body: bytes, status: int) -> None:
    reply = served.client.post(PREDICT, content=body, headers={"content-type": "application/json"})
    assert reply.status_code == status
    assert reply.json()["error"]


@pytest.mark.parametrize("depth", [50, 200, 400, 600, 900, 990])
def test_rows_nested_without_end_are_the_clients_fault(served: Running, depth: int) -> None:
    deep = b"[" * depth + b"]" * depth
    for path, body in (
        (PREDICT, b'{"rows": [{"text": "a", "more": %s}]}'),
        (PREDICT, b'{"texts": %s}'),
        ("/predict", b'{"inputs": %s}'),
        ("/v2/models/moods/infer", b'{"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": %s}]}'),
    ):
        reply = served.client.post(path, content=body % deep, headers={"content-type": "application/json"})
        assert reply.status_code in ((200, 400, 422) if b"more" in body else (400, 422))


@pytest.mark.parametrize("rows", [[{"x": "y"}], [{"text": "hello", "id": "a"}, {"id": "4711"}]])
def test_a_row_without_its_text_is_refused(served: Running, rows: list) -> None:
    reply = served.client.post(PREDICT, json={"rows": rows})
    assert reply.status_code == 422 and "the row has no text" in reply.json()["error"]


def test_a_fault_of_the_server_is_json(served: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("labeltune.serve.hosted.Hosted.read", broken)
    reply = served.client.post(PREDICT, json={"texts": ["a"]})
    assert reply.status_code == 500 and reply.json()["error"] == "the server failed; its log says how"


def test_a_run_behind_a_link_is_called_like_the_link(tmp_path: Path) -> None:
    (tmp_path / "v12").mkdir()
    (tmp_path / "current").symlink_to("v12")
    assert [run.name for run in named([str(tmp_path / "current"), str(tmp_path / "v12")])] == ["current", "v12"]


def test_a_regression_has_no_score_to_abstain_by(served: Running) -> None:
    reply = served.client.post("/runs/regression/predict", json={"texts": ["a", "hen"], "min_score": 0.5})
    assert reply.status_code == 422


def test_a_least_score_of_the_kserve_form_is_a_probability(served: Running) -> None:
    tensor = {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["a"]}
    for least, status in ((0.5, 200), (70, 422)):
        asked = {"inputs": [tensor], "parameters": {"min_score": least}}
        assert served.client.post("/v2/models/moods/infer", json=asked).status_code == status


def test_unknown_runs_are_404_and_the_nearest_is_named(served: Running) -> None:
    reply = served.client.post("/runs/mood/predict", json={"texts": "a"})
    assert reply.status_code == 404
    assert "moods" in reply.json()["error"]


# Patience


def test_a_slow_head_and_a_slow_body_end_their_own_connection(runs: dict[str, Path], start: Start) -> None:
    with start({"moods": runs["moods"]}, serve__body_timeout=0.3) as running:
        assert raw(running, b"") == b""
        assert raw(running, b"POST /runs/moods/pre") == b""
        assert raw(running, head(100) + b'{"texts"').startswith(b"HTTP/1.1 408")
        assert running.client.post(PREDICT, json={"texts": "a hen"}).status_code == 200


def test_connections_beyond_the_limit_are_closed(runs: dict[str, Path], start: Start) -> None:
    with start({"moods": runs["moods"]}, serve__max_connections=5) as running:
        port = int(running.url.rpartition(":")[2])
        with contextlib.ExitStack() as stack:
            held = [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(8)]
            time.sleep(0.2)
            closed = 0
            for connection in held:
                connection.settimeout(0.2)
                with contextlib.suppress(TimeoutError):
                    with contextlib.suppress(ConnectionResetError):
                        connection.recv(1)
                    closed += 1
            assert closed >= 3
        time.sleep(0.2)
        assert running.client.post(PREDICT, json={"texts": "a hen"}).status_code == 200


class Slow:
    """Holds the engines, so that what is asked has to wait."""

    def __enter__(self) -> None:
        from labeltune.serve.engine import BUSY

        self.lock = BUSY
        self.lock.acquire()

    def __exit__(self, *_: object) -> None:
        self.lock.release()


def test_requests_beyond_the_queue_are_429_at_once_and_the_others_are_answered(
    runs: dict[str, Path], start: Start
) -> None:
    with start({"moods": runs["moods"]}, serve__max_pending=4) as running, ThreadPoolExecutor(12) as pool:
        with Slow():
            asked = [pool.submit(running.client.post, PREDICT, json={"texts": "a hen"}) for _ in range(12)]
            while sum(one.done() for one in asked) < 8:
                time.sleep(0.01)
        statuses = sorted(one.result().status_code for one in asked)
        assert statuses == [200] * 4 + [429] * 8
        refused = next(one.result() for one in asked if one.result().status_code == 429)
        assert int(refused.headers["retry-after"]) >= 1


def test_what_would_wait_too_long_is_refused_but_never_what_waits_for_nobody(
    runs: dict[str, Path], start: Start
) -> None:
    with start({"moods": runs["moods"]}, serve__max_wait=1e-9) as running, ThreadPoolExecutor(4) as pool:
        large = {"texts": sentences(60)}
        assert running.client.post(PREDICT, json=large).status_code == 200
        with Slow():
            first = pool.submit(running.client.post, PREDICT, json=large)
            while not running.server.desk.pending:
                time.sleep(0.01)
            time.sleep(0.2)
            assert running.client.post(PREDICT, json=large).status_code == 429
            small = head(len(BODY)) + BODY
            statuses = [part[:3] for part in raw(running, small * 3, wait=1).split(b"HTTP/1.1 ")[1:]]
            assert statuses == [b"429"] * 3, "the connection is kept"
        assert first.result().status_code == 200


def test_what_is_still_encoded_waits_before_what_comes_after_it(runs: dict[str, Path], start: Start) -> None:
    with start({"moods": runs["moods"]}, serve__max_wait=1e-9) as running, ThreadPoolExecutor(4) as pool:
        large, held = {"texts": sentences(60)}, threading.Event()
        assert running.client.post(PREDICT, json=large).status_code == 200  # and the engine knows how long it takes
        running.server.desk._clerk.submit(held.wait)
        first = pool.submit(running.client.post, PREDICT, json=large)
        while not running.server.desk.fleet.engines[0]._expected:
            time.sleep(0.01)
        assert running.client.post(PREDICT, json=large).status_code == 429
        held.set()
        assert first.result().status_code == 200
        assert running.client.post(PREDICT, json=large).status_code == 200


def test_a_request_that_takes_too_long_is_given_up(runs: dict[str, Path], start: Start) -> None:
    with start({"moods": runs["moods"]}, serve__timeout=0.2) as running:
        with Slow():
            reply = running.client.post(PREDICT, json={"texts": "a hen"})
        assert reply.status_code == 429
        assert "0.2 s" in reply.json()["error"]
        assert running.client.post(PREDICT, json={"texts": "a hen"}).status_code == 200


def test_a_client_that_leaves_takes_its_texts_out_of_the_queue(runs: dict[str, Path], start: Start) -> None:
    with start({"moods": runs["moods"]}) as running:
        body = json.dumps({"texts": sentences(50)}).encode()
        with Slow():
            first = threading.Thread(target=running.client.post, args=(PREDICT,), kwargs={"json": {"texts": "a"}})
            first.start()
            while not running.server.desk.pending:
                time.sleep(0.01)
            assert raw(running, head(len(body)) + body, wait=0.3) == b""
            while running.server.desk.pending > 1:
                time.sleep(0.01)
        first.join()
        assert running.client.post(PREDICT, json={"texts": "a"}).status_code == 200
        assert running.server.fleet.engines[0].waiting == (0, 0)
        asked = [one["status"] for one in running.events if one.get("route") == "/runs/{name}/predict"]
        assert asked == [499, 200, 200]


# Keys


def test_without_a_key_nothing_answers_but_health(runs: dict[str, Path], start: Start) -> None:
    keys = Keys.gather({"LABELTUNE_KEYS": KEY})
    with start({"moods": runs["moods"]}, keys=keys) as running:
        paths = [*running.client.get("/openapi.json", headers={"X-API-Key": KEY}).json()["paths"], "/", "/openapi.json"]
        assert len(paths) > 15
        for path in paths:
            for method in ("GET", "POST", "PUT", "DELETE", "OPTIONS", "HEAD"):
                for given in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic !!"}):
                    status = running.client.request(method, path, headers=given).status_code
                    open_ = path in ("/health", "/ready", "/v2/health/live", "/v2/health/ready")
                    assert (status in (200, 405)) if open_ else status == 401, (method, path)
        basic = base64.b64encode(f"me:{KEY}".encode()).decode()
        for given in ({"Authorization": f"Bearer {KEY}"}, {"X-API-Key": KEY}, {"Authorization": f"Basic {basic}"}):
            assert running.client.post(PREDICT, json={"texts": "a"}, headers=given).status_code == 200


def test_keys_come_from_files_and_short_ones_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(f"# of a test\n{KEY}  # mine\n\n")
    keys = Keys.gather({}, path)
    path.write_text(f"{KEY}#more\n")
    assert Keys.gather({}, path).asks([(b"x-api-key", f"{KEY}#more".encode())])
    assert not Keys.gather({}, path).asks([(b"x-api-key", KEY.encode())])
    for empty in ("", " , "):
        with pytest.raises(SettingsError, match="LABELTUNE_KEYS: it is set and holds no key"):
            Keys.gather({"LABELTUNE_KEYS": empty})
    assert keys.asks([(b"x-api-key", KEY.encode())])
    assert not keys.asks([(b"x-api-key", b"mine")])
    assert not keys.commands([(b"x-api-key", KEY.encode())])
    for content in ("", "# nothing\n", "short\n"):
        path.write_text(content)
        with pytest.raises(SettingsError):
            Keys.gather({}, path)
    with pytest.raises(SettingsError, match="no such file"):
        Keys.gather({}, tmp_path / "nothing")


def test_other_origins_get_no_leave_unless_they_are_named(served: Running, runs: dict[str, Path], start: Start) -> None:
    origin = {"Origin": "https://example.org", "Access-Control-Request-Method": "POST"}
    assert served.client.options(PREDICT, headers=origin).status_code == 405
    assert "access-control-allow-origin" not in served.client.get("/runs", headers=origin).headers
    with start({"moods": runs["moods"]}, serve__cors=["https://example.org"]) as running:
        allowed = running.client.options(PREDICT, headers=origin)
        assert allowed.headers["access-control-allow-origin"] == "https://example.org"
        other = running.client.get("/runs", headers={"Origin": "https://example.com"})
        assert "access-control-allow-origin" not in other.headers


# Coming and going


def test_runs_come_and_go_under_load_and_no_answer_is_lost_or_wrong(runs: dict[str, Path], start: Start) -> None:
    keys = Keys.gather({"LABELTUNE_ADMIN_KEYS": ADMIN, "LABELTUNE_KEYS": KEY})
    with start({"moods": runs["moods"]}, keys=keys) as running, ThreadPoolExecutor(4) as pool:
        admin = {"X-API-Key": ADMIN}
        assert running.client.put("/runs/names", json={"folder": "x"}, headers={"X-API-Key": KEY}).status_code == 403
        asked = {"json": {"texts": sentences(5), "scores": True}, "headers": {"X-API-Key": KEY}}
        expected = running.client.post(PREDICT, **asked).json()
        over = threading.Event()

        def ask() -> int:
            count = 0
            while not over.is_set():
                reply = running.client.post(PREDICT, **asked)
                assert reply.status_code == 200
                labels = [one["label"] for one in reply.json()["predictions"]]
                assert labels == [one["label"] for one in expected["predictions"]]
                count += 1
            return count

        asking = [pool.submit(ask) for _ in range(4)]
        for name in ("names", "regression", "moods", "names"):
            reply = running.client.put(f"/runs/{name}", json={"folder": str(runs[name])}, headers=admin)
            assert reply.status_code == 200
        missing = running.client.put("/runs/moods", json={"folder": "/nowhere"}, headers=admin)
        assert missing.status_code == 422
        assert running.client.delete("/runs/names", headers=admin).status_code == 204
        assert running.client.delete("/runs/names", headers=admin).status_code == 404
        over.set()
        assert all(one.result() > 0 for one in asking)
        assert [one["name"] for one in running.client.get("/runs", headers=admin).json()["runs"]] == [
            "moods",
            "regression",
        ]


def test_runs_that_leave_leave_nothing_behind(runs: dict[str, Path], start: Start) -> None:
    keys = Keys.gather({"LABELTUNE_ADMIN_KEYS": ADMIN})
    with start({"moods": runs["moods"]}, keys=keys) as running:
        admin = {"headers": {"X-API-Key": ADMIN}}
        (engine,) = running.server.fleet.engines

        def hooks() -> int:
            return sum(len(module._forward_hooks) for module in engine.backbone.model.modules())

        before, threads = hooks(), threading.active_count()
        own = len(engine.backbone.narrowed)  # the backbone's, which stay
        for _ in range(5):
            running.client.put("/runs/names", json={"folder": str(runs["names"])}, **admin)
            running.client.put("/runs/names", json={"folder": str(runs["names"])}, **admin)
            running.client.delete("/runs/names", **admin)
        assert (hooks(), running.server.fleet.engines) == (before, [engine])
        assert running.client.delete("/runs/moods", **admin).status_code == 204
        assert (hooks(), running.server.fleet.engines) == (own, [])
        assert threading.active_count() <= threads
        assert running.client.get("/runs", **admin).json() == {"runs": []}
        running.client.put("/runs/moods", json={"folder": str(runs["moods"])}, **admin)
        assert running.client.post(PREDICT, json={"texts": "a"}, **admin).status_code == 200


def test_while_loading_and_draining_all_but_health_is_503(runs: dict[str, Path], start: Start) -> None:
    with start({"moods": runs["moods"]}) as running:
        for state in ("loading", "draining"):
            running.server.desk.state = state  # type: ignore[assignment]  # a literal
            if state == "draining":
                break
            reply = running.client.post(PREDICT, json={"texts": "a"})
            assert reply.status_code == running.client.get("/ready").status_code == 503
            assert "loading" in reply.json()["error"]
            for path, asked in (
                ("/classify", {"input": "a"}),
                ("/predict", {"inputs": "a"}),
                ("/models/moods", {"inputs": "a"}),
                ("/v2/models/moods/infer", {"inputs": []}),
            ):
                assert running.client.post(path, json=asked).status_code == 503
            assert running.client.get("/health").status_code == 200


def test_requests_under_way_are_answered_when_the_server_drains(runs: dict[str, Path], start: Start) -> None:
    with start({"moods": runs["moods"]}) as running, ThreadPoolExecutor(4) as pool:
        with Slow():
            asked = [pool.submit(running.client.post, PREDICT, json={"texts": sentences(9)}) for _ in range(3)]
            while running.server.desk.pending < 3:
                time.sleep(0.01)
            running.server.desk.state = "draining"
            assert running.client.post(PREDICT, json={"texts": "a"}).status_code == 503
            assert running.client.get("/ready").status_code == 503
        assert [one.result().status_code for one in asked] == [200] * 3


def test_two_servers_on_one_port_are_a_clear_error() -> None:
    with (
        listen("127.0.0.1", 0) as one,
        pytest.raises(SettingsError, match="cannot listen"),
        listen("127.0.0.1", one.getsockname()[1]),
    ):
        pass


# What is told


def test_logs_have_no_text_unless_asked_for(runs: dict[str, Path], start: Start) -> None:
    for wanted in (False, True):
        with start({"moods": runs["moods"]}, serve__log_text=wanted) as running:
            running.client.post(PREDICT + "?q=secret-hen", json={"texts": ["secret-hen"]})
            running.client.post(PREDICT, json={"texts": ["secret-hen"], "more": "secret-hen"})
            running.client.post("/runs/secret-hen/predict", json={"texts": ["secret-hen"]})
        (event,) = [e for e in running.events if e["event"] == "request" and e["status"] == 200]
        assert event["route"] == "/runs/{name}/predict"
        assert (event["run"], event["texts"]) == ("moods", 1)
        assert event["tokens"] > 1
        assert ("secret-hen" in json.dumps(running.events)) == wanted


def test_metrics_count_what_was_answered(runs: dict[str, Path], start: Start) -> None:
    with start({"moods": runs["moods"]}) as running:
        running.client.post(PREDICT, json={"texts": sentences(5)})
        running.client.post(PREDICT, json={"texts": 1})
        said = running.client.get("/metrics").text
    assert 'labeltune_texts_total{run="moods"} 5.0' in said
    assert 'labeltune_requests_total{route="/runs/{name}/predict",status="422"} 1.0' in said
    assert "labeltune_queue_tokens 0.0" in said
    assert "labeltune_pass_texts_sum 5.0" in said
