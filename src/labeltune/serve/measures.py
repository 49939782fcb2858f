"""What Prometheus reads: requests, texts, tokens, passes, and what waits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from labeltune.serve.desk import Desk
    from labeltune.serve.engine import Pass

SPACE = "labeltune"
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Measures:
    """The counters of one server, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self._requests = Counter(
            "requests", "Requests by route and status", ("route", "status"), namespace=SPACE, registry=self.registry
        )
        self._seconds = Histogram(
            "request_seconds",
            "From the request's head to the reply's end",
            ("route",),
            namespace=SPACE,
            buckets=SECONDS,
            registry=self.registry,
        )
        self._texts = Counter("texts", "Texts answered by run", ("run",), namespace=SPACE, registry=self.registry)
        self._tokens = Counter("tokens", "Tokens that passes held", namespace=SPACE, registry=self.registry)
        self._pass_seconds = Histogram(
            "pass_seconds", "Time of one packed pass", buckets=SECONDS, namespace=SPACE, registry=self.registry
        )
        self._pass_texts = Histogram(
            "pass_texts", "Texts of one packed pass", buckets=SIZES, namespace=SPACE, registry=self.registry
        )
        self._pass_runs = Histogram(
            "pass_runs",
            "Runs that had a part in one packed pass",
            buckets=SIZES,
            namespace=SPACE,
            registry=self.registry,
        )

    def request(self, route: str, status: int, seconds: float, run: str | None, texts: int) -> None:
        """Count a request that has ended."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)
        if run is not None and status == 200:
            self._texts.labels(run).inc(texts)

    def passed(self, done: Pass) -> None:
        """Count a pass; called by engines, in their threads."""
        self._tokens.inc(done.tokens)
        self._pass_seconds.observe(done.seconds)
        self._pass_texts.observe(done.texts)
        self._pass_runs.observe(done.runs)

    def watch(self, desk: Desk) -> None:
        """Show what waits at this desk whenever somebody looks."""
        self.registry.register(_Waiting(desk))

    def render(self) -> bytes:
        """The text form."""
        return generate_latest(self.registry)


class _Waiting(Collector):
    """Gauges that are read, not kept."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        waiting = [engine.waiting for engine in self._desk.fleet.engines]
        values = {
            "pending_requests": ("Requests under way", self._desk.pending),
            "queue_requests": ("Requests of which texts wait for a pass", sum(requests for requests, _ in waiting)),
            "queue_tokens": ("Tokens that wait for a pass", sum(tokens for _, tokens in waiting)),
            "runs": ("Runs that are served", len(self._desk.fleet)),
            "backbones": ("Backbones that are loaded", len(waiting)),
            "ready": ("1 where requests are answered", self._desk.state == "ready"),
        }
        for name, (about, value) in values.items():
            yield GaugeMetricFamily(f"labeltune_{name}", about, value=float(value))
