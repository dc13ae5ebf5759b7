"""Figures that Prometheus reads: requests, batch sizes, waiting and computing time, which backend runs.

Labels are names of models that are served and values of ours, never text from a request.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest

from na_deploy.runtime.session import Session

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_ITEMS = (1, 2, 4, 8, 16, 32, 64, 128)
_MODEL = ("model", "version")


class Metrics:
    """The figures of one server."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        self.requests = Counter(
            "na_deploy_requests", "Requests by outcome", ("model", "protocol", "outcome"), registry=registry
        )
        self.seconds = Histogram(
            "na_deploy_request_seconds",
            "From a request's arrival to its answer",
            ("model", "protocol"),
            buckets=_SECONDS,
            registry=registry,
        )
        self.batch = Histogram("na_deploy_batch_items", "Items in a run", _MODEL, buckets=_ITEMS, registry=registry)
        self.queued = Histogram(
            "na_deploy_queue_seconds", "Waiting for a run", _MODEL, buckets=_SECONDS, registry=registry
        )
        self.compute = Histogram(
            "na_deploy_compute_seconds", "One run of the model", _MODEL, buckets=_SECONDS, registry=registry
        )
        self.queue_length = Gauge("na_deploy_queue_length", "Requests that wait", _MODEL, registry=registry)
        self.models = Gauge(
            "na_deploy_model",
            "A model that is served, and what runs its neighborhood attention",
            (*_MODEL, "backend", "device", "attention"),
            registry=registry,
        )
        self.loads = Counter("na_deploy_loads", "Models loaded or refused", ("outcome",), registry=registry)
        self.pending = Gauge("na_deploy_pending_bytes", "Bytes of requests in progress", registry=registry)
        self.server = Info("na_deploy_server", "This server", registry=registry)

    def of_model(self, name: str, version: int, session: Session) -> ModelMetrics:
        """Return one model's part."""
        return ModelMetrics(self, name, str(version), session)

    def finished(self, model: str, protocol: str, outcome: str, seconds: float) -> None:
        """Count a request. ``model`` is the name of one that is served, or empty."""
        self.requests.labels(model, protocol, outcome).inc()
        self.seconds.labels(model, protocol).observe(seconds)

    def text(self) -> bytes:
        """Return everything in Prometheus' text format."""
        return generate_latest(self._registry)


class ModelMetrics:
    """The figures of one version of a model."""

    def __init__(self, metrics: Metrics, name: str, version: str, session: Session) -> None:
        self._metrics = metrics
        self._labels = (name, version)
        self._about = (*self._labels, session.backend, session.device, session.attention)
        metrics.models.labels(*self._about).set(1)
        self._batch, self._queued = metrics.batch.labels(*self._labels), metrics.queued.labels(*self._labels)
        self._compute, self._length = metrics.compute.labels(*self._labels), metrics.queue_length.labels(*self._labels)

    def ran(self, items: int, compute_ns: int) -> None:
        """Count a run."""
        self._batch.observe(items)
        self._compute.observe(compute_ns / 1e9)

    def answered(self, queue_ns: int) -> None:
        """Count a request's waiting."""
        self._queued.observe(queue_ns / 1e9)

    def waiting(self, requests: int) -> None:
        """Set the queue's length."""
        self._length.set(requests)

    def remove(self) -> None:
        """Forget that the model is served. What was counted stays, as Prometheus wants of counters."""
        for gauge, labels in ((self._metrics.models, self._about), (self._metrics.queue_length, self._labels)):
            try:
                gauge.remove(*labels)
            except KeyError:
                continue
