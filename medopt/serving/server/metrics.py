"""The server's Prometheus metrics: requests, times, the queue, declined and refused scans, for each release."""

from __future__ import annotations

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class ServerMetrics:
    """The counters of one server. A request for an unknown release is counted under an empty name."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        self._requests = Counter(
            "medopt_requests", "Requests for an answer", ("model", "version", "door", "code"), registry=registry
        )
        self._seconds = Histogram(
            "medopt_request_seconds", "From the request's arrival to its answer", ("model", "door"),
            registry=registry, buckets=_SECONDS,
        )  # fmt: skip
        self._scans = Counter(
            "medopt_scans", "Answered, undecided and declined scans", ("model", "version", "outcome"), registry=registry
        )
        self._refused = Counter("medopt_refused", "Requests without an answer", ("model", "reason"), registry=registry)
        self._batches = Histogram(
            "medopt_batch_images", "Images in one call of the engine", ("model",),
            registry=registry, buckets=(1, 2, 4, 8, 16, 32, 64),
        )  # fmt: skip
        self._ready = Gauge("medopt_release_ready", "1: it serves", ("model", "version"), registry=registry)
        self._queue = Gauge(
            "medopt_queue_images", "Images coming in, being read, waiting and in the model", registry=registry
        )

    def answered(self, model: str, version: str, door: str, code: str, seconds: float) -> None:
        """A request has ended, with an answer or without."""
        self._requests.labels(model, version, door, code).inc()
        self._seconds.labels(model, door).observe(seconds)

    def scan(self, model: str, version: str, outcome: str) -> None:
        """A scan was answered, left undecided or declined."""
        self._scans.labels(model, version, outcome).inc()

    def refused(self, model: str, reason: str) -> None:
        """A request got no answer."""
        self._refused.labels(model, reason).inc()

    def batch(self, model: str) -> Histogram:
        """The histogram in which a batcher counts the images of a call of the engine."""
        return self._batches.labels(model)

    def ready(self, model: str, version: str, ready: bool) -> None:
        """A release serves, or does not."""
        self._ready.labels(model, version).set(ready)

    def queue(self, images: int) -> None:
        """Images in hand."""
        self._queue.set(images)

    def text(self) -> bytes:
        """In Prometheus' text form."""
        return generate_latest(self._registry)
