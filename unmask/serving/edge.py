"""Middleware of every request: request id, access log, size limit, API key, and the sites that may send requests.

Public idea: ``Edge`` is outermost, ``Guard`` is inside it. Both are plain ASGI, so streams and disconnects pass through unchanged.
"""

from __future__ import annotations

import hmac
import ipaddress
import json
import logging
import re
import secrets
import sys
import time
from collections.abc import Callable, Sequence
from typing import TextIO
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from unmask.json_types import Json
from unmask.serving.counting import RequestCounters
from unmask.serving.errors import ErrorResponse, error_response

LOG = logging.getLogger("unmask.serving")
_ID = re.compile(r"[\w.-]{1,64}", re.ASCII)


_PORTS = {"http": 80, "https": 443}


class Edge:
    """Assigns a request id (or keeps the client's ``x-request-id``), counts and logs the request, and handles uncaught exceptions.

    HEAD is answered as GET without the body, as HTTP requires for every path that takes GET.
    """

    def __init__(self, app: ASGIApp, *, counters: RequestCounters) -> None:
        self.app, self.counters = app, counters

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        name = given if _ID.fullmatch(given) else f"req-{secrets.token_hex(8)}"
        scope.setdefault("state", {})["request_id"] = name
        began, status = time.monotonic(), 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = name
            elif scope["method"] == "HEAD":
                message = {**message, "body": b""}
            await send(message)

        inner = {**scope, "method": "GET"} if scope["method"] == "HEAD" else scope
        try:
            await self.app(inner, receive, answer)
        except Exception as error:
            LOG.exception("a request failed", extra={"fields": {"id": name}})
            if not status:
                await refuse(error_response(error), answer)
        finally:
            seconds = time.monotonic() - began
            self.counters.answered(scope["method"], scope["path"], status or 499, seconds)
            fields = {"id": name, "method": scope["method"], "path": scope["path"], "status": status or 499}
            LOG.info("request", extra={"fields": {**fields, "seconds": round(seconds, 4)}})


class Guard:
    """Checks the API key, if the server has keys, and limits the body to ``most_bytes``, regardless of its headers.

    The whole body is read before the request is handled. Only paths below /v1 need a key. Two kinds of requests are rejected, because CORS
    alone would only hide the answer after the model has run:

    - a request of a web page from another origin, unless that is in ``origins``;
    - a request to a host name that is not in ``names``: the name of an attacker's page may lead to this server (DNS rebinding), and its
      requests then have the server's own origin. Addresses and localhost are always allowed.
    """

    def __init__(
        self, app: ASGIApp, *, keys: Sequence[str], origins: Sequence[str], names: Sequence[str], most_bytes: int
    ) -> None:
        self.app, self.keys, self.most_bytes = app, [key.encode() for key in keys], most_bytes
        self.origins, self.names = frozenset(origins), frozenset(name.lower().rstrip(".") for name in names)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if forbidden := self._forbidden(scope["method"], headers):
            await refuse(forbidden, send)
            return
        if self.keys and scope["path"].startswith("/v1") and not self._has_key(headers):
            message = "missing or invalid API key; send the header Authorization: Bearer KEY"
            await refuse(ErrorResponse(status=401, message=message, code="invalid_api_key"), send)
            return
        body = await self._body(headers, receive)
        if body is None:
            message = f"the request body exceeds the limit of {self.most_bytes:,} bytes; send smaller images"
            await refuse(ErrorResponse(status=413, message=message, code="too_large"), send)
            return
        given = False

        async def again() -> Message:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self.app(scope, again, send)

    def _forbidden(self, method: str, headers: Headers) -> ErrorResponse | None:
        """403 for a request to a foreign host name or from another origin."""
        host, origin = headers.get("host"), headers.get("origin")
        if host is not None and not self._known_host(host):
            message = f"this server is not known as {host[:100]!r}; start it with --host-name NAME, or use its address"
            return ErrorResponse(status=403, message=message, code="other_host")
        if {"*", origin} & self.origins:
            return None
        other = headers.get("sec-fetch-site") in ("cross-site", "same-site") and method == "POST"
        if origin is None and not other or origin is not None and _same_origin(origin, host or ""):
            return None
        message = f"requests from pages of {(origin or 'other sites')[:100]} are not allowed; start the server with --cors ORIGIN"
        return ErrorResponse(status=403, message=message, code="other_site")

    def _known_host(self, host: str) -> bool:
        """Whether the Host header has an address, localhost, or one of the server's names."""
        try:
            name = (urlsplit(f"//{host}").hostname or "").rstrip(".")
        except ValueError:  # malformed
            return False
        try:
            ipaddress.ip_address(name)
            return True
        except ValueError:
            return name == "localhost" or name.endswith(".localhost") or name in self.names

    def _has_key(self, headers: Headers) -> bool:
        kind, _, key = headers.get("authorization", "").partition(" ")
        sent = key.strip().encode("utf-8", "replace")
        return kind.lower() == "bearer" and any([hmac.compare_digest(sent, known) for known in self.keys])

    async def _body(self, headers: Headers, receive: Receive) -> bytes | None:
        """The whole body; None if it is too large."""
        said = headers.get("content-length", "")
        if said.isdecimal() and int(said[:20]) > self.most_bytes:
            return None
        pieces, size = [], 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                break
            pieces.append(message.get("body", b""))
            size += len(pieces[-1])
            if size > self.most_bytes:
                return None
            if not message.get("more_body", False):
                break
        return b"".join(pieces)


def _same_origin(origin: str, host: str) -> bool:
    """Whether a page's origin is that of the server, which a client reaches as ``host``."""
    try:
        page, server = urlsplit(origin), urlsplit(f"//{host}")
        usual = _PORTS.get(page.scheme)
        ports = (page.port or usual, server.port or usual)
    except ValueError:  # malformed
        return False
    return usual is not None and page.hostname == server.hostname and ports[0] == ports[1]


async def refuse(found: ErrorResponse, send: Send) -> None:
    """Send an error response from a middleware."""
    body = json.dumps(found.body).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body)), **found.headers}
    raw = [(k.encode(), v.encode()) for k, v in headers.items()]
    await send({"type": "http.response.start", "status": found.status, "headers": raw})
    await send({"type": "http.response.body", "body": body})


class JsonLine(logging.Formatter):
    """Formats a log record as one JSON line: time, level, event and the fields of ``extra={"fields": ...}``."""

    def format(self, record: logging.LogRecord) -> str:
        time_ = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"
        line: Json = {"time": time_, "level": record.levelname.lower(), "event": record.getMessage()}
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def log_to(stream: TextIO | None = None, *, level: int = logging.INFO) -> Callable[[], None]:
    """Write the logs of this package and of uvicorn to a stream (stderr) as JSON lines. Returns a function that undoes this."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonLine())
    loggers = [LOG, logging.getLogger("uvicorn.error")]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(level)
        logger.propagate = False

    def undo() -> None:
        for logger in loggers:
            logger.removeHandler(handler)
            logger.propagate = True

    return undo
