"""Metrics in the text format of Prometheus.

Public idea: ``RequestCounters`` counts answered requests, ``render_prometheus(counters, service)`` writes all metrics as text.
"""

from __future__ import annotations

import dataclasses
import threading
from collections import Counter

from unmask.serving.metrics import Metrics
from unmask.serving.service import Service

EDGES = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)  # seconds
PATHS = frozenset(
    {
        *("/v1/models", "/v1/fields", "/v1/chat/completions", "/v1/images/generations", "/v1/images/edits"),
        *("/v1/completions", "/v1/ground", "/v1/infill", "/healthz", "/readyz", "/metrics", "/"),
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
        self._lock = threading.Lock()
        self.answers: Counter[tuple[str, str, int]] = Counter()
        self.took: dict[str, list[int]] = {}
        self.seconds: Counter[str] = Counter()

    def answered(self, method: str, path: str, status: int, seconds: float) -> None:
        path = path if path in PATHS else "other"
        method = method if method in ("GET", "POST", "OPTIONS", "HEAD") else "other"
        with self._lock:
            self.answers[method, path, status] += 1
            counts = self.took.setdefault(path, [0] * (len(EDGES) + 1))
            counts[next((i for i, edge in enumerate(EDGES) if seconds <= edge), len(EDGES))] += 1
            self.seconds[path] += seconds  # type: ignore[assignment]

    def lines(self) -> list[str]:
        with self._lock:
            out = _head(
                "unmask_http_requests_total", "counter", "HTTP requests answered; 499: the client disconnected."
            )
            for (method, path, status), number in sorted(self.answers.items()):
                out.append(f'unmask_http_requests_total{{method="{method}",path="{path}",status="{status}"}} {number}')
            name = "unmask_http_request_seconds"
            out += _head(name, "histogram", "Duration of requests in seconds.")
            for path, counts in sorted(self.took.items()):
                total = 0
                for edge, number in zip([*EDGES, "+Inf"], counts, strict=True):
                    total += number
                    out.append(f'{name}_bucket{{path="{path}",le="{edge}"}} {total}')
                out.append(f'{name}_sum{{path="{path}"}} {self.seconds[path]:.6f}')
                out.append(f'{name}_count{{path="{path}"}} {total}')
        return out


def render_prometheus(counters: RequestCounters, service: Service) -> str:
    """All metrics in the text format of Prometheus."""
    out = counters.lines()
    for name, kind, meaning, value in (
        ("calls", "gauge", "Running and queued calls.", service.under_way),
        ("calls_refused_total", "counter", "Calls rejected because the queue was full.", service.refused),
        ("engine_restarts_total", "counter", "Engines replaced after a failure.", service.restarts),
        ("draining", "gauge", "1 while the server shuts down.", int(service.draining)),
    ):
        out += [*_head(f"unmask_{name}", kind, meaning), f"unmask_{name} {value}"]
    now = service.engine.metrics()
    for field in dataclasses.fields(Metrics):
        key = _EXPORTED.get(field.name, field.name)
        gauge = key in _GAUGES
        name = f"unmask_engine_{key}" + ("" if gauge else "_total")
        out += _head(name, "gauge" if gauge else "counter", _MEANING[key])
        out.append(f"{name} {getattr(now, field.name)}")
    return "\n".join(out) + "\n"


def _head(name: str, kind: str, meaning: str) -> list[str]:
    return [f"# HELP {name} {meaning}", f"# TYPE {name} {kind}"]
