"""A server in this process. Public idea: ``with Server(service, socket): ...`` serves at its ``url``; ``drain`` ends it well."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Sequence

import uvicorn

from unmask.serving.api import MOST_BYTES, application
from unmask.serving.service import Service

_START = 30.0  # seconds
IDLE = 75  # seconds that a connection may rest: longer than clients wait that were told 429, who else ask into one that just closes


class Server:
    """uvicorn in a thread of its own, so that whoever holds it decides what a signal means."""

    def __init__(
        self,
        service: Service,
        listener: socket.socket,
        *,
        keys: Sequence[str] = (),
        origins: Sequence[str] = (),
        most_bytes: int = MOST_BYTES,
    ) -> None:
        self.service, self.listener = service, listener
        app = application(service, keys=keys, origins=origins, most_bytes=most_bytes)
        config = uvicorn.Config(
            app,
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
        return address(*self.listener.getsockname()[:2])

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def start(self) -> Server:
        self._thread.start()
        end = time.monotonic() + _START
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > end:
                raise RuntimeError("the server did not start; its log says why")
            time.sleep(0.01)
        return self

    def drain(self, seconds: float) -> bool:
        """Answer what is under way and refuse the rest with 503; then stop. False where that took longer than ``seconds``."""
        done = self.service.drain(seconds)
        self.close()
        return done

    def close(self) -> None:
        """Stop now; what is under way gets an error."""
        self.service.close()
        self._server.should_exit = True
        if self._thread.ident is not None:
            self._thread.join()
        self.listener.close()

    def __enter__(self) -> Server:
        return self.start()

    def __exit__(self, *error: object) -> None:
        self.close()


def address(host: str, port: int) -> str:
    """Where a browser finds what listens there."""
    shown = "127.0.0.1" if host in ("0.0.0.0", "::") else host
    return f"http://[{shown}]:{port}" if ":" in shown else f"http://{shown}:{port}"


def listen(host: str, port: int) -> socket.socket:
    """A place to listen at; port 0: any that is free. ValueError where it is taken or not allowed."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=2048)
    except PermissionError as error:
        raise ValueError(f"port {port} may not be used by you; give one above 1023 with --port") from error
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ValueError(f"cannot listen at {host}:{port} ({reason.lower()}); give another --port or --host") from error
