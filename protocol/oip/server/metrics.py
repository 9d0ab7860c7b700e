"""Prometheus metrics in a registry of our own, so that no library's globals mix in.

Knows the names that every process exports; a process adds its own collectors to `registry`.
"""

from collections.abc import Callable
from functools import cache

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest

SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
"""Bucket bounds for anything timed: a tenth of a millisecond to ten seconds."""


METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "gRPC", ""))
"""\"\" is what was no request at all.  A caller may make up others, and every label value lives for ever."""


class ServerMetrics:
    """Requests by route and status, and the seconds of each stage."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "tandem_requests",
            "Requests answered; over gRPC the status is gRPC's.",
            ("method", "route", "status"),
            registry=self.registry,
        )
        self._stages = Histogram(
            "tandem_stage_seconds",
            "Seconds a request spent in a stage.",
            ("stage",),
            buckets=SECONDS,
            registry=self.registry,
        )
        # Looking up a labelled child costs more than counting in it, a dozen times a request.
        self._requests_of = cache(lambda method, route, status: self._requests.labels(method, route, str(status)))
        self._stages_of = cache(self._stages.labels)
        self._texts: list[Callable[[], str]] = []

    def add_text(self, text: Callable[[], str]) -> None:
        """Also serve families that a process writes itself, in the text format; `text` runs on the event loop."""
        self._texts.append(text)

    def request(self, method: str, route: str, status: int | str, laps: list[tuple[str, float, str]]) -> None:
        """Count one answered request and its stages."""
        self._requests_of(method if method in METHODS else "other", route, status).inc()
        for stage, seconds, _ in laps:
            self._stages_of(stage).observe(seconds)

    def exposition(self) -> bytes:
        """The text that a scrape gets."""
        return generate_latest(self.registry) + "".join([text() for text in self._texts]).encode()
