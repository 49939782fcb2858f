"""How many texts a second does a server of three runs on one backbone answer, and does it hold under too much?

    python benchmarks/serving.py run    --work WORK [--backbone mini] [--requests 2000] [--rounds 3]
    python benchmarks/serving.py many   --work WORK [--requests 50000]
    python benchmarks/serving.py report --work WORK --out benchmarks/results/NAME --hardware "one line"

Three runs (a classifier, a tagger, a multi-label run; two masks, three poolings) stand on one backbone, in `labeltune
serve` with one thread. This process is the clients: a closed loop of connections on loopback, each asking for one text
of a run drawn from a fixed sequence as soon as its last answer is there, and checking every answer against offline
prediction. Sides, by turns: the server as it is, and unbatched (`serve.batch_tokens = 1`: the same server, one text a
pass). `overload` has far more clients than `serve.max_wait` lets wait. `many` is one long round, with the server's
memory before and after. Finished rounds stand in WORK/rounds.jsonl.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from labeltune import load, train
from labeltune.predict import answer_fields

WORDS = "the thin hen on the ring sang in the other inn and then the tin rang again on a thing".split()
PATIENT = ["--set", "serve.max_wait=600", "--set", "serve.timeout=600"]
SIDES = {"batched": PATIENT, "unbatched": [*PATIENT, "--set", "serve.batch_tokens=1"]}
QUICK = {"train.threads": 1, "train.steps": 6, "train.lr": 3e-3, "lora.rank": 8}
CLOSE = 1e-4
"""The largest difference of a score; another batch rounds otherwise."""


def texts(count: int) -> list[str]:
    """Texts of 4 to 32 words, as many tokens as sentences have."""
    draw = random.Random(0)
    return [" ".join(draw.choices(WORDS, k=draw.randint(4, 32))) + f" Bob {i}" for i in range(count)]


def make_runs(backbone: str, work: Path) -> dict[str, Path]:
    """The three runs, trained a few steps each, once."""
    rows = texts(48)
    wanted: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
        "moods": ([{"text": t, "label": ("calm", "loud", "odd")[i % 3]} for i, t in enumerate(rows)], {}),
        "names": (
            [{"tokens": t.split(), "tags": ["B-PER" if w == "Bob" else "O" for w in t.split()]} for t in rows],
            {},
        ),
        "topics": (
            [{"text": t, "labels": ["hen"] * ("hen" in t) + ["inn"] * ("inn" in t)} for t in rows],
            {"model.pooling": "mean", "model.unmask": "all"},
        ),
    }
    found = {}
    for name, (data, settings) in wanted.items():
        found[name] = work / f"{Path(backbone).name}-{name}"
        if not found[name].exists():
            train(data, dev=data[:8], model=backbone, out=found[name], settings=QUICK | settings)
    return found


# The server


@dataclass
class Server:
    """A process that serves, and where."""

    popen: subprocess.Popen[str]
    port: int

    def memory(self) -> float:
        """MiB in use."""
        return int(Path(f"/proc/{self.popen.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

    def cpu(self) -> float:
        """Seconds of processor time so far."""
        fields = Path(f"/proc/{self.popen.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def serving(runs: dict[str, Path], *words: str) -> Iterator[Server]:
    """`labeltune serve`, ready; ended by SIGTERM, which must leave exit code 0."""
    command = [sys.executable, "-m", "labeltune.cli", "serve", *(f"{name}={path}" for name, path in runs.items())]
    command += ["--port", "0", "--set", "train.threads=1", *words]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env) as popen:
        assert popen.stderr is not None
        port = 0
        for line in popen.stderr:
            event = json.loads(line)
            port = event.get("port", port)
            if event["event"] == "ready":
                break
        drain = subprocess.Popen(["cat"], stdin=popen.stderr, stdout=subprocess.DEVNULL)  # logs are written, and read
        try:
            yield Server(popen, port)
        finally:
            popen.send_signal(signal.SIGTERM)
            assert popen.wait(60) == 0, "the server did not end cleanly"
            drain.wait(10)


# The clients


@dataclass
class Tally:
    """What came of a round."""

    seconds: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    wrong: int = 0


@dataclass
class Question:
    """One request's bytes, and the answer that offline prediction gives."""

    sent: bytes
    answer: dict[str, Any]


def questions(runs: dict[str, Path], count: int = 60) -> list[Question]:
    """Each text for each run, in a fixed mixed order."""
    rows = texts(count)
    found = []
    for name, folder in runs.items():
        for text, said in zip(rows, load(folder).predict(rows, scores=True), strict=True):
            body = json.dumps({"texts": [text], "scores": True}).encode()
            lines = [f"POST /runs/{name}/predict HTTP/1.1", "Host: x", "Content-Type: application/json"]
            head = "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""])
            found.append(Question(head.encode() + body, answer_fields(said)))
    random.Random(1).shuffle(found)
    return found


def same(one: Any, other: Any) -> bool:
    """Equal, numbers to rounding."""
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[name], other[name]) for name in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return abs(one - other) < CLOSE if isinstance(one, float) else one == other


async def client(port: int, asked: Iterator[Question], tally: Tally, back_off: bool) -> None:
    """One connection, made anew where the server ends it: ask, wait, check, ask again."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for question in asked:
        start = time.perf_counter()
        writer.write(question.sent)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
        body = await reader.readexactly(length)
        seconds, status = time.perf_counter() - start, int(head.split(b" ", 2)[1])
        tally.statuses[status] += 1
        if status == 200:
            tally.seconds.append(seconds)
            tally.wrong += not same(json.loads(body)["predictions"][0], question.answer)
        else:
            tally.refused.append(seconds)
            if back_off:
                await asyncio.sleep(0.1)
        if b"connection: close" in head:
            writer.close()
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.close()


async def load_it(port: int, asked: list[Question], clients: int, requests: int, back_off: bool = False) -> Tally:
    """A closed loop of so many clients until so many requests are answered or refused."""
    tally = Tally()
    sequence = (asked[i % len(asked)] for i in range(requests))
    await asyncio.gather(*(client(port, sequence, tally, back_off) for _ in range(clients)))
    return tally


def measured(
    server: Server, asked: list[Question], clients: int, requests: int, back_off: bool = False
) -> dict[str, Any]:
    """One round, as figures."""
    memory, cpu, start = server.memory(), server.cpu(), time.perf_counter()
    tally = asyncio.run(load_it(server.port, asked, clients, requests, back_off))
    wall, cpu = time.perf_counter() - start, server.cpu() - cpu
    answered = sorted(tally.seconds)
    return {
        "clients": clients,
        "requests": requests,
        "statuses": {str(status): count for status, count in sorted(tally.statuses.items())},
        "wrong": tally.wrong,
        "lost": requests - sum(tally.statuses.values()),
        "seconds": wall,
        "cpu_seconds": cpu,
        "per_second": len(answered) / wall,
        "per_cpu_second": len(answered) / cpu,
        "p50_ms": 1000 * answered[len(answered) // 2],
        "p99_ms": 1000 * answered[int(0.99 * len(answered))],
        "refused_p99_ms": 1000 * sorted(tally.refused)[int(0.99 * len(tally.refused))] if tally.refused else None,
        "memory_before_mib": memory,
        "memory_after_mib": server.memory(),
    }


# Commands


def note(args: argparse.Namespace, **facts: Any) -> None:
    """A finished round, on the screen and in the file; the backbone by its name, not by where it lies."""
    facts = {"backbone": Path(args.backbone).name, **facts}
    with (args.work / "rounds.jsonl").open("a") as file:
        file.write(json.dumps(facts) + "\n")
    print(json.dumps(facts), flush=True)


def run(args: argparse.Namespace) -> None:
    """Rounds of both sides by turns, then of too many clients."""
    runs = make_runs(args.backbone, args.work)
    asked = questions(runs)
    for number in range(args.rounds):
        for side, words in SIDES.items():
            with serving(runs, *words) as server:
                measured(server, asked, args.clients, len(asked))  # warm
                found = measured(server, asked, args.clients, args.requests)
                note(args, side=side, round=number, **found)
    with serving(runs, "--set", "serve.max_wait=1") as server:
        measured(server, asked, args.clients, len(asked))
        for clients in (args.clients, 4 * args.clients, 10 * args.clients):
            found = measured(server, asked, clients, 2 * args.requests, back_off=True)
            note(args, side="overload", **found)


def many(args: argparse.Namespace) -> None:
    """One long round on one server, in five parts, so that memory can be followed."""
    runs = make_runs(args.backbone, args.work)
    asked = questions(runs)
    with serving(runs) as server:
        measured(server, asked, args.clients, len(asked))
        for part in range(5):
            found = measured(server, asked, args.clients, args.requests // 5)
            note(args, side="many", part=part, **found)


def report(args: argparse.Namespace) -> None:
    """The rounds as a table, beside their JSON."""
    rounds = [json.loads(line) for line in (args.work / "rounds.jsonl").read_text().splitlines()]
    Path(f"{args.out}.json").write_text(json.dumps({"hardware": args.hardware, "rounds": rounds}, indent=1) + "\n")
    lines = ["# Serving: three runs on one backbone", "", args.hardware, ""]
    lines += ["Medians of the rounds; every answer was compared with offline prediction.", ""]
    columns = (
        "backbone",
        "side",
        "clients",
        "requests",
        "answers/s",
        "per CPU second",
        "p50 ms",
        "p99 ms",
        "429",
        "wrong",
        "lost",
    )
    lines += ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    groups: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
    for one in rounds:
        groups.setdefault((one["backbone"], one["side"], one["clients"]), []).append(one)
    for (backbone, side, clients), found in groups.items():
        middle = {
            name: median(one[name] for one in found) for name in ("per_second", "per_cpu_second", "p50_ms", "p99_ms")
        }
        counts = {name: sum(one[name] for one in found) for name in ("requests", "wrong", "lost")}
        refused = sum(one["statuses"].get("429", 0) for one in found)
        figures = [f"{middle[name]:,.0f}" for name in ("per_second", "per_cpu_second", "p50_ms", "p99_ms")]
        row = [
            backbone,
            side,
            clients,
            f"{counts['requests']:,}",
            *figures,
            f"{refused:,}",
            counts["wrong"],
            counts["lost"],
        ]
        lines.append("| " + " | ".join(map(str, row)) + " |")
    for backbone in dict.fromkeys(name for name, _, _ in groups):
        of = {
            s: [r for (b, side, _), found in groups.items() if (b, side) == (backbone, s) for r in found] for s in SIDES
        }
        if all(of.values()):
            clocks = ("per_second", "per_cpu_second")
            wall, cpu = (median(r[c] for r in of["batched"]) / median(r[c] for r in of["unbatched"]) for c in clocks)
            lines += [
                "",
                f"{backbone}: batched is {wall:.1f} x unbatched by the clock, {cpu:.1f} x by the server's CPU time.",
            ]
    long = [one for one in rounds if one["side"] == "many"]
    if long:
        followed = ", ".join(f"{one['memory_after_mib']:,.0f}" for one in long)
        lines += ["", f"Memory of the server after each fifth of `many`, MiB: {followed}."]
    Path(f"{args.out}.md").write_text("\n".join(lines) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for function, requests in ((run, 2000), (many, 50_000)):
        command = commands.add_parser(function.__name__)
        command.add_argument("--work", type=Path, required=True)
        command.add_argument("--backbone", default="mini")
        command.add_argument("--clients", type=int, default=48)
        command.add_argument("--requests", type=int, default=requests)
        command.add_argument("--rounds", type=int, default=3)
        command.set_defaults(run=function)
    command = commands.add_parser("report")
    command.add_argument("--work", type=Path, required=True)
    command.add_argument("--out", required=True)
    command.add_argument("--hardware", required=True)
    command.set_defaults(run=report)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    args.run(args)


if __name__ == "__main__":
    main()
