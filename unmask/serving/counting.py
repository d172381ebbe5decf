"""Metrics in the text format of Prometheus, written by prometheus-client.

Public idea: ``RequestCounters`` counts answered requests, ``render_prometheus(counters, service)`` writes all metrics as text.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from unmask.serving.metrics import Metrics
from unmask.serving.service import Service

EDGES = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)  # seconds
PATHS = frozenset(
    {
        *("/v1/models", "/v1/fields", "/v1/chat/completions", "/v1/images/generations", "/v1/images/edits"),
        *("/v1/completions", "/v1/ground", "/v1/infill", "/v1/talks", "/healthz", "/readyz", "/metrics", "/"),
    }
)
_EXPORTED = {"queued": "waiting", "running": "live"}  # names that dashboards read already
_GAUGES = {"waiting", "live", "parked", "occupancy", "step_seconds", "feature_bytes"}
_MEANING = {
    "waiting": "Queued runs.",
    "live": "Running runs.",
    "parked": "Long runs that have given their place to a short one.",
    "finished": "Finished runs.",
    "failed": "Failed runs.",
    "cancelled": "Cancelled runs.",
    "refused": "Runs rejected by the engine.",
    "steps": "Sampling steps, summed over runs.",
    "forwards": "Forward passes of the network.",
    "rows": "Batch rows, summed over forward passes; guidance views count as rows.",
    "seconds": "Busy time of the engine in seconds.",
    "occupancy": "Occupied share of batch rows, 0 to 1.",
    "step_seconds": "Recent time between two steps of a run in seconds.",
    "feature_hits": "Image features found in the cache.",
    "feature_misses": "Image features computed.",
    "feature_bytes": "Size of the image feature cache in bytes.",
}


class RequestCounters:
    """Requests by method, path and status, with their durations. Unknown paths share one entry, so that clients cannot fill the memory."""

    def __init__(self) -> None:
        disable_created_metrics()  # a time stamp for every series, which nothing reads
        self.registry = CollectorRegistry()
        self._answers = Counter(
            "unmask_http_requests",
            "HTTP requests answered; 499: the client disconnected.",
            ("method", "path", "status"),
            registry=self.registry,
        )
        self._took = Histogram(
            "unmask_http_request_seconds",
            "Duration of requests in seconds.",
            ("path",),
            buckets=EDGES,
            registry=self.registry,
        )

    def answered(self, method: str, path: str, status: int, seconds: float) -> None:
        path = path if path in PATHS else "other"
        method = method if method in ("GET", "POST", "OPTIONS", "HEAD") else "other"
        self._answers.labels(method, path, str(status)).inc()
        self._took.labels(path).observe(seconds)


@dataclass(frozen=True, kw_only=True, eq=False)
class _OfService(Collector):
    """What a service and its engine count, read when somebody asks."""

    service: Service

    def collect(self) -> Iterator[Metric]:
        service = self.service
        yield GaugeMetricFamily("unmask_calls", "Running and queued calls.", service.under_way)
        yield CounterMetricFamily("unmask_calls_refused", "Calls rejected because the queue was full.", service.refused)
        yield CounterMetricFamily("unmask_engine_restarts", "Engines replaced after a failure.", service.restarts)
        yield GaugeMetricFamily("unmask_draining", "1 while the server shuts down.", int(service.draining))
        now = service.engine.metrics()
        for field in dataclasses.fields(Metrics):
            key = _EXPORTED.get(field.name, field.name)
            family = GaugeMetricFamily if key in _GAUGES else CounterMetricFamily
            yield family(f"unmask_engine_{key}", _MEANING[key], getattr(now, field.name))


def render_prometheus(counters: RequestCounters, service: Service | None) -> bytes:
    """All metrics in the text format of Prometheus 0.0.4, which every version reads. ``service``: its metrics follow."""
    own = CollectorRegistry()
    if service:
        own.register(_OfService(service=service))
    return generate_latest(counters.registry) + generate_latest(own)
