"""An HTTP server in this process.

Public idea: ``with Server(service, socket): ...`` serves at ``url``; ``drain`` shuts it down gracefully.
"""

from __future__ import annotations

import socket
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import uvicorn

from unmask.serving.access import Access
from unmask.serving.api import OPEN, application
from unmask.serving.connections import ConnectionLimits
from unmask.serving.picture_urls import PictureUrls
from unmask.serving.service import Service
from unmask.serving.talk_routes import talk_application
from unmask.serving.talks import Talks

_START = 30.0  # seconds
LIMITS = ConnectionLimits()
IDLE = 75  # seconds of keep-alive: longer than the Retry-After of a 429, so that clients do not retry on a connection that is being closed


@dataclass(frozen=True, kw_only=True)
class Tls:
    """PEM files of the certificate (with its chain) and of its private key."""

    certificate: Path
    key: Path


class Server:
    """uvicorn in its own thread, so that the caller handles signals."""

    def __init__(
        self,
        service: Service | Talks,
        listener: socket.socket,
        *,
        access: Access = OPEN,
        connections: ConnectionLimits = LIMITS,
        tls: Tls | None = None,
    ) -> None:
        self.service, self.listener, self.tls = service, listener, tls
        config = uvicorn.Config(
            application(service, access=access, urls=PictureUrls())
            if isinstance(service, Service)
            else talk_application(service, access=access),
            http=connections.within_descriptors().protocol(),
            ws="none",
            ssl_certfile=tls.certificate if tls else None,
            ssl_keyfile=tls.key if tls else None,
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=5,
            timeout_keep_alive=IDLE,
            lifespan="off",
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [listener]}, name="server", daemon=True
        )

    @property
    def url(self) -> str:
        host, port = self.listener.getsockname()[:2]
        return address(host, port, secure=self.tls is not None)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def start(self) -> Server:
        self._thread.start()
        end = time.monotonic() + _START
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > end:
                raise RuntimeError("the server did not start; see its log")
            time.sleep(0.01)
        return self

    def drain(self, seconds: float) -> bool:
        """Finish running requests, reject new ones with 503, then stop. False if this takes longer than ``seconds``."""
        done = self.service.drain(seconds)
        self.close()
        return done

    def close(self) -> None:
        """Stop now; running requests fail."""
        self.service.close()
        self._server.should_exit = True
        if self._thread.ident is not None:
            self._thread.join()
        self.listener.close()

    def __enter__(self) -> Server:
        return self.start()

    def __exit__(self, *error: object) -> None:
        self.close()


def address(host: str, port: int, *, secure: bool = False) -> str:
    """The URL of a listening address."""
    shown, scheme = "127.0.0.1" if host in ("0.0.0.0", "::") else host, "https" if secure else "http"
    return f"{scheme}://[{shown}]:{port}" if ":" in shown else f"{scheme}://{shown}:{port}"


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 picks a free port. ValueError if the port is in use or not allowed."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=2048)
    except PermissionError as error:
        raise ValueError(f"no permission to use port {port}; give one above 1023 with --port") from error
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ValueError(f"cannot listen on {host}:{port} ({reason.lower()}); give another --port or --host") from error
