"""Limits of connections: how many there are, how long a request's head may take, and how long a client may leave its answer unread.

Public idea: ``ConnectionLimits(..).protocol()`` is the protocol class for uvicorn. Bodies have limits of their own (``bodies``).
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, replace
from http import HTTPStatus

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from unmask.json_types import Json
from unmask.serving.errors import ErrorResponse

try:
    import resource
except ImportError:  # Windows has no limit of descriptors to read
    resource = None  # type: ignore[assignment]

_RESERVE = 64  # descriptors kept for files, pipes and the listening socket
_FULL = ErrorResponse(status=503, message="too many connections; try again later", code="too_many_connections")
_MALFORMED = ErrorResponse(status=400, message="malformed HTTP request; check the client", code="malformed_request")


@dataclass(frozen=True, kw_only=True)
class ConnectionLimits:
    """``most``: connections at the same time; beyond them the one that has waited longest for its client is dropped.

    ``head_seconds``: from the connection, or the first byte of a later request, to the end of the headers; also for the rest of a body that
    was refused · ``write_seconds``: how long a client may leave its answer unread.
    """

    most: int = 1000
    head_seconds: float = 15.0
    write_seconds: float = 60.0

    def within_descriptors(self) -> ConnectionLimits:
        """At most as many connections as the process may open files for, after raising its soft limit where that helps."""
        if resource is None:
            return self
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = self.most + 2 * _RESERVE
        if soft != resource.RLIM_INFINITY and soft < wanted:
            raised = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
            resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
            soft = raised
        fits = self.most if soft == resource.RLIM_INFINITY else max(1, min(self.most, soft - _RESERVE))
        return replace(self, most=fits)

    def protocol(self) -> type[H11Protocol]:
        """uvicorn's protocol with these limits."""
        return type("LimitedProtocol", (_Limited,), {"limits": self, "waiting": {}})


class _Limited(H11Protocol):
    """``waiting``: the connections whose client must send or read something, in the order in which they began to wait."""

    limits: ConnectionLimits
    waiting: dict[_Limited, None]
    _timer: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        if len(self.connections) >= self.limits.most and not self._make_room():
            self.transport = transport
            transport.write(_raw(_FULL))
            transport.close()
            return
        super().connection_made(transport)
        self._expect()
        self._note()

    def _make_room(self) -> bool:
        """Drop the connection that has waited for its client for the longest time. False if the server works on all of them."""
        oldest = next(iter(self.waiting), None)
        if oldest is None:
            return False
        self.waiting.pop(oldest)
        self.connections.discard(oldest)
        oldest.transport.abort()
        return True

    def _note(self) -> None:
        """Keep ``waiting`` up to date; one that goes on waiting keeps its place."""
        if self._unread is not None or self.conn.their_state in (h11.IDLE, h11.SEND_BODY):
            self.waiting.setdefault(self)
        else:
            self.waiting.pop(self, None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_timers()
        self.waiting.pop(self, None)
        if self.flow is not None:  # it was refused, and uvicorn has never known it
            super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.flow is None:
            return
        super().data_received(data)
        if self.conn.their_state is h11.IDLE or self._refused_early():
            self._expect()
        elif self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._note()

    def on_response_complete(self) -> None:
        self.waiting.pop(self, None)
        super().on_response_complete()
        if not self.transport.is_closing():
            self._note()
        begun = self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]  # a part of the next head
        if (
            begun or self._refused_early()
        ):  # the rest of that body is dropped: a reset would hide the answer from the client
            self._expect()

    def _refused_early(self) -> bool:
        """Whether a request was answered before its body had arrived."""
        return self.cycle is not None and self.cycle.response_complete and self.conn.their_state is h11.SEND_BODY

    def send_400_response(self, msg: str) -> None:
        """JSON, as every other error has it."""
        self.transport.write(_raw(_MALFORMED))
        self.transport.close()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._unread is None:
            self._unread = self.loop.call_later(self.limits.write_seconds, self.transport.abort)
            self._note()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None
            self._note()

    def _expect(self) -> None:
        if self._timer is None and not self.transport.is_closing():
            self._timer = self.loop.call_later(self.limits.head_seconds, self._late)

    def _late(self) -> None:
        """Nothing is sent: there may be no request, and a proxy would take an answer for that of its next one."""
        self._timer = None
        self.transport.abort()

    def _cancel_timers(self) -> None:
        for timer in (self._timer, self._unread):
            if timer is not None:
                timer.cancel()
        self._timer = self._unread = None


def _raw(found: ErrorResponse) -> bytes:
    """A whole response that closes its connection."""
    body = json.dumps(found.body).encode()
    headers: Json = {"content-type": "application/json", "content-length": len(body), "connection": "close"}
    head = f"HTTP/1.1 {found.status} {HTTPStatus(found.status).phrase}\r\n" + "".join(
        f"{k}: {v}\r\n" for k, v in headers.items()
    )
    return head.encode() + b"\r\n" + body
