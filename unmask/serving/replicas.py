"""Several copies of a served model behind one address, by Ray Serve.

Public idea: ``Replicas(open_, listener, copies)`` lives as a ``Server`` does: ``start``, ``url``, ``drain``, ``close``.

Each copy is a process with its own weights and engine, and the very application of a single server. Ray passes each request to the less
busy of two copies, and starts a copy anew when its process dies. Ray itself is imported by ``start``.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from unmask.serving.api import MOST_BYTES, application
from unmask.serving.server import IDLE, address
from unmask.serving.service import Service

_NAME = "unmask"
_SPARE = 64  # requests of a copy beyond its calls: questions of health, and those that are told 429


@dataclass(frozen=True, kw_only=True)
class Copies:
    """``count`` of them · ``places``: calls that each takes · ``gpus``: of each · ``drain_seconds``: that each has to finish."""

    count: int
    places: int
    gpus: int = 0
    drain_seconds: float = 30.0


class Replicas:
    """``open_`` is called once in every copy · ``listener`` holds the port until Ray takes it.

    RAY_ADDRESS names a cluster to join; else there is one on this machine for as long as this lives.
    """

    def __init__(
        self,
        open_: Callable[[], Service],
        listener: socket.socket,
        copies: Copies,
        *,
        keys: Sequence[str] = (),
        origins: Sequence[str] = (),
        most_bytes: int = MOST_BYTES,
    ) -> None:
        self.open_, self.listener, self.copies = open_, listener, copies
        self.keys, self.origins, self.most_bytes = tuple(keys), tuple(origins), most_bytes
        self.host, self.port = listener.getsockname()[:2]
        self._closing = threading.Lock()
        self._open = False

    @property
    def url(self) -> str:
        return address(self.host, self.port)

    def start(self) -> Replicas:
        """Returns once every copy answers. RuntimeError where one does not start."""
        import ray
        from ray import serve

        signals = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)}
        self._open = True
        quiet = {"log_level": "WARNING", "enable_access_log": False}
        ray.init(**self._where(), logging_level=logging.WARNING)
        if threading.current_thread() is threading.main_thread():
            for which, handler in signals.items():  # Ray has put its own in their place
                signal.signal(which, handler)
        self.listener.close()
        listens = {"host": self.host, "port": self.port, "keep_alive_timeout_s": IDLE}
        serve.start(http_options=listens, logging_config=quiet)
        serve.run(self._deployment(serve), name=_NAME, route_prefix="/", logging_config=quiet)
        return self

    def drain(self, seconds: float) -> bool:
        """Take nothing more, finish what is under way in at most the ``drain_seconds`` of each copy, then stop.

        False where that took longer than ``seconds``.
        """
        from ray import serve

        serve.delete(_NAME, _blocking=False)  # which would wait for a minute and no longer
        end = time.monotonic() + seconds
        while (left := _NAME in serve.status().applications) and time.monotonic() < end:
            time.sleep(0.5)
        self.close()
        return not left

    def close(self) -> None:
        """Stop now. May be called twice."""
        with self._closing:
            if not self._open:
                return
            self._open = False
            import ray
            from ray import serve

            if os.environ.get("RAY_ADDRESS"):  # others may serve there
                serve.delete(_NAME)
            else:
                serve.shutdown()
            ray.shutdown()

    def _where(self) -> dict[str, Any]:
        if os.environ.get("RAY_ADDRESS"):
            return {}
        cores = max(os.cpu_count() or 1, self.copies.count)
        # "local": without it Ray looks for whatever cluster was last started on this machine, alive or not.
        return {"address": "local", "num_cpus": cores, "include_dashboard": False}

    def _deployment(self, serve: Any) -> Any:
        open_, keys, origins, most_bytes = self.open_, self.keys, self.origins, self.most_bytes

        def built() -> Any:
            from unmask.serving.edge import log_to

            log_to()
            return _nameless(application(open_(), keys=keys, origins=origins, most_bytes=most_bytes))

        made = serve.deployment(serve.ingress(built)()).options(
            name="model",
            num_replicas=self.copies.count,
            max_ongoing_requests=self.copies.places + _SPARE,
            graceful_shutdown_timeout_s=self.copies.drain_seconds,
            ray_actor_options={"num_cpus": 1, "num_gpus": self.copies.gpus},
        )
        return made.bind()


def _nameless(app: ASGIApp) -> ASGIApp:
    """The same without the header x-request-id in its answers: Ray adds that itself, and has told us which it is."""

    async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                del MutableHeaders(scope=message)["x-request-id"]
            await send(message)

        await app(scope, receive, answer)

    return wrapped
