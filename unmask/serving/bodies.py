"""Request bodies are read within limits: of one body, of all together, of time, and of the values in a JSON text.

Public idea: ``Bodies(..).read(headers, receive) -> Body | ErrorResponse``; the caller closes the body when its request is finished.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from starlette.datastructures import Headers
from starlette.types import Message, Receive

from unmask.serving.errors import ErrorResponse

MIB = 2**20
_PAUSE = 20.0  # seconds for which a body may stop
_SLOWEST = 16 * 1024  # bytes a second: with less, it uses up that time
_SMALL, _RESERVED = MIB, 32 * MIB  # the last bytes of all bodies together are for small ones


class Disconnected(Exception):
    """The client left before its request was complete."""


class Body:
    """The pieces of a body. ``receive`` gives them to the application, each once, so that they are not kept twice."""

    def __init__(self, owner: Bodies) -> None:
        self.owner, self.size = owner, 0
        self.pieces: deque[bytes] = deque()
        self.evicted = self._given = False

    def evict(self) -> None:
        """Free an incomplete body; its request is refused as soon as more of it arrives, or nothing does."""
        self.evicted = True
        self.close()

    def add(self, piece: bytes) -> None:
        self.pieces.append(piece)
        self.size += len(piece)
        self.owner.used += len(piece)

    def close(self) -> None:
        self.owner.used -= self.size
        self.size = 0
        self.pieces.clear()

    def receive(self, rest: Receive) -> Receive:
        """The ASGI messages of the body, then those of ``rest``."""

        async def again() -> Message:
            if self._given:
                return await rest()
            piece = self.pieces.popleft() if self.pieces else b""
            self._given = not self.pieces
            return {"type": "http.request", "body": piece, "more_body": not self._given}

        return again


@dataclass(kw_only=True)
class Bodies:
    """``most_bytes``: of one body · ``most_together``: of all that are in memory · ``most_values``: commas and brackets of a JSON text,
    which is parsed in the event loop at about 10 million values a second · ``used``: bytes in memory now.

    Where a body does not fit, the largest incomplete one is refused, so that slow large bodies keep no others out.
    """

    most_bytes: int
    most_together: int = 256 * MIB
    most_values: int = 200_000
    clock: Callable[[], float] = time.monotonic
    used: int = 0
    incomplete: set[Body] = field(default_factory=set)

    async def read(self, headers: Headers, receive: Receive) -> Body | ErrorResponse:
        """The whole body, or the reason for which it is refused. Disconnected if the client leaves."""
        said = headers.get("content-length", "")
        if said.isdecimal() and int(said[:20]) > self.most_bytes:
            return self._too_large()
        body = Body(self)
        self.incomplete.add(body)
        try:
            if refused := await self._receive(body, receive):
                body.close()
                return refused
        except TimeoutError:
            body.close()
            if body.evicted:
                return self._too_many()
            message = f"the request body arrived too slowly; send at least {_SLOWEST // 1024} kB/s"
            return ErrorResponse(status=408, message=message, code="request_timeout")
        except BaseException:
            body.close()
            raise
        finally:
            self.incomplete.discard(body)
        if (
            headers.get("content-type", "").lower().startswith("application/json")
            and self._values(body) > self.most_values
        ):
            body.close()
            message = f"the JSON of the request has more than {self.most_values:,} values; send fewer"
            return ErrorResponse(status=413, message=message, code="too_large")
        return body

    async def _receive(self, body: Body, receive: Receive) -> ErrorResponse | None:
        """All pieces of a body, or the reason for which it is refused. Disconnected, TimeoutError."""
        late, more = self.clock() + _PAUSE, True
        while more:
            if (left := late - self.clock()) <= 0:
                raise TimeoutError
            message = await asyncio.wait_for(receive(), left)
            if message["type"] == "http.disconnect":
                raise Disconnected
            if body.evicted:
                return self._too_many()
            body.add(piece := message.get("body", b""))
            late = min(late + len(piece) / _SLOWEST, self.clock() + _PAUSE)
            more = message.get("more_body", False)
            if body.size > self.most_bytes:
                return self._too_large()
            if not self._fits(body):
                return self._too_many()
        return None

    def _fits(self, body: Body) -> bool:
        """Whether a body may stay, after larger incomplete ones were refused where that is needed."""
        most = self.most_together - (_RESERVED if body.size > _SMALL else 0)
        while self.used > most:
            largest = max(self.incomplete - {body}, key=lambda one: one.size, default=body)
            if largest.size <= body.size:
                return False
            largest.evict()
        return True

    def _values(self, body: Body) -> int:
        return sum(piece.count(mark) for piece in body.pieces for mark in (b",", b"[", b"{"))

    def _too_large(self) -> ErrorResponse:
        message = f"the request body exceeds the limit of {self.most_bytes:,} bytes; send smaller images"
        return ErrorResponse(status=413, message=message, code="too_large")

    def _too_many(self) -> ErrorResponse:
        message = "the bodies of all current requests are too large together; try again later"
        return ErrorResponse(status=503, message=message, code="server_busy", retry_after=5)
