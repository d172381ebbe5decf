"""Request bodies are read within limits: of one body, of all together, of time, and of the values in a JSON text.

Public idea: ``Bodies(..).read(headers, receive) -> Body | ErrorResponse``; the caller closes the body when its request is finished.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.types import Message, Receive

from unmask.serving.errors import ErrorResponse

MIB = 2**20
_GRACE = 20.0  # seconds in which a body may be as slow as it likes
_SLOWEST = 16 * 1024  # bytes a second from then on, on average


class Disconnected(Exception):
    """The client left before its request was complete."""


class Body:
    """The pieces of a body. ``receive`` gives them to the application, each once, so that they are not kept twice."""

    def __init__(self, owner: Bodies) -> None:
        self.owner, self.size = owner, 0
        self.pieces: deque[bytes] = deque()
        self._given = False

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
    """

    most_bytes: int
    most_together: int = 256 * MIB
    most_values: int = 200_000
    clock: Callable[[], float] = time.monotonic
    used: int = 0

    async def read(self, headers: Headers, receive: Receive) -> Body | ErrorResponse:
        """The whole body, or the reason for which it is refused. Disconnected if the client leaves."""
        said = headers.get("content-length", "")
        if said.isdecimal() and int(said[:20]) > self.most_bytes:
            return self._too_large()
        body, began, more = Body(self), self.clock(), True
        try:
            while more:
                left = max(_GRACE, body.size / _SLOWEST) - (self.clock() - began)
                if left <= 0:
                    raise TimeoutError
                message = await asyncio.wait_for(receive(), left)
                if message["type"] == "http.disconnect":
                    raise Disconnected
                body.add(message.get("body", b""))
                more = message.get("more_body", False)
                if body.size > self.most_bytes or self.used > self.most_together:
                    refused = self._too_large() if body.size > self.most_bytes else self._too_many()
                    body.close()
                    return refused
        except TimeoutError:
            body.close()
            message = f"the request body arrived too slowly; send at least {_SLOWEST // 1024} kB/s"
            return ErrorResponse(status=408, message=message, code="request_timeout")
        except BaseException:
            body.close()
            raise
        if (
            headers.get("content-type", "").lower().startswith("application/json")
            and self._values(body) > self.most_values
        ):
            body.close()
            message = f"the JSON of the request has more than {self.most_values:,} values; send fewer"
            return ErrorResponse(status=413, message=message, code="too_large")
        return body

    def _values(self, body: Body) -> int:
        return sum(piece.count(mark) for piece in body.pieces for mark in (b",", b"[", b"{"))

    def _too_large(self) -> ErrorResponse:
        message = f"the request body exceeds the limit of {self.most_bytes:,} bytes; send smaller images"
        return ErrorResponse(status=413, message=message, code="too_large")

    def _too_many(self) -> ErrorResponse:
        message = "the bodies of all current requests are too large together; try again later"
        return ErrorResponse(status=503, message=message, code="server_busy", retry_after=5)
