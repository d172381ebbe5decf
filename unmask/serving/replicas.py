"""Several copies of a served model behind one address, with Ray Serve.

Public idea: ``Replicas(open_, listener, copies)`` has the methods of a ``Server``: ``start``, ``url``, ``drain``, ``close``.

Each copy is a process with its own weights and engine, and runs the same application as a single server. Ray sends each request to the less
busy of two copies, and restarts a copy whose process dies. Only ``start`` imports Ray.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from unmask.json_types import Json
from unmask.serving.access import Access
from unmask.serving.api import OPEN, application
from unmask.serving.server import IDLE, address
from unmask.serving.service import Service

_NAME = "unmask"
_SPARE = 64  # requests of a copy beyond its calls: health checks, and requests that get a 429


@dataclass(frozen=True, kw_only=True)
class Copies:
    """``count``: number of copies · for each copy, ``places``: calls at the same time, ``gpus``, and ``drain_seconds`` to finish calls."""

    count: int
    places: int
    gpus: int = 0
    drain_seconds: float = 30.0


class Replicas:
    """``open_`` is called once in every copy · ``listener`` holds the port until Ray binds it.

    RAY_ADDRESS names a cluster to join. Without it, a cluster on this machine is started, and stopped by ``close``.
    """

    def __init__(
        self,
        open_: Callable[[], Service],
        listener: socket.socket,
        copies: Copies,
        *,
        access: Access = OPEN,
    ) -> None:
        self.open_, self.listener, self.copies, self.access = open_, listener, copies, access
        self.host, self.port = listener.getsockname()[:2]
        self._closing = threading.Lock()
        self._open = False

    @property
    def url(self) -> str:
        return address(self.host, self.port)

    def start(self) -> Replicas:
        """Returns when every copy answers. RuntimeError if one does not start."""
        import ray
        from ray import serve

        signals = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)}
        self._open = True
        quiet = {"log_level": "WARNING", "enable_access_log": False}
        ray.init(**self._where(), logging_level=logging.WARNING)
        if threading.current_thread() is threading.main_thread():
            for which, handler in signals.items():  # Ray has replaced them by its own
                signal.signal(which, handler)
        self.listener.close()
        listens = {"host": self.host, "port": self.port, "keep_alive_timeout_s": IDLE}
        serve.start(http_options=listens, logging_config=quiet)
        serve.run(self._deployment(serve), name=_NAME, route_prefix="/", logging_config=quiet)
        return self

    def drain(self, seconds: float) -> bool:
        """Reject new calls, give each copy its ``drain_seconds`` to finish those in progress, then stop.

        False if that took longer than ``seconds``.
        """
        from ray import serve

        serve.delete(_NAME, _blocking=False)  # a blocking call waits for at most a minute
        end = time.monotonic() + seconds
        while (left := _NAME in serve.status().applications) and time.monotonic() < end:
            time.sleep(0.5)
        self.close()
        return not left

    def close(self) -> None:
        """Stop at once. A second call has no effect."""
        with self._closing:
            if not self._open:
                return
            self._open = False
            import ray
            from ray import serve

            if os.environ.get("RAY_ADDRESS"):  # other applications may run on this cluster
                serve.delete(_NAME)
            else:
                serve.shutdown()
            ray.shutdown()

    def _where(self) -> Json:
        if os.environ.get("RAY_ADDRESS"):
            return {}
        cores = max(os.cpu_count() or 1, self.copies.count)
        # "local": without it, Ray connects to the cluster that was last started on this machine, even if that has stopped.
        return {"address": "local", "num_cpus": cores, "include_dashboard": False}

    def _deployment(self, serve: Any) -> Any:
        open_, access = self.open_, self.access

        def built() -> ASGIApp:
            from unmask.serving.logs import log_to

            log_to()
            return _without_request_id(application(open_(), access=access))

        made = serve.deployment(serve.ingress(built)()).options(
            name="model",
            num_replicas=self.copies.count,
            max_ongoing_requests=self.copies.places + _SPARE,
            graceful_shutdown_timeout_s=self.copies.drain_seconds,
            ray_actor_options={"num_cpus": 1, "num_gpus": self.copies.gpus},
        )
        return made.bind()


def _without_request_id(app: ASGIApp) -> ASGIApp:
    """The application without the header x-request-id in its responses. Ray adds that header itself, with the same value."""

    async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                del MutableHeaders(scope=message)["x-request-id"]
            await send(message)

        await app(scope, receive, answer)

    return wrapped
