"""Middleware of every request: request id, access log, size limit, API key, and the sites that may send requests.

Public idea: ``Edge`` is outermost, ``Guard`` is inside it. Both are plain ASGI, so streams and disconnects pass through unchanged.
"""

from __future__ import annotations

import ipaddress
import json
import re
import secrets
import time
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from unmask.serving.access import ADMIN, SCOPES, Access
from unmask.serving.bodies import Bodies, Disconnected
from unmask.serving.counting import RequestCounters
from unmask.serving.errors import ErrorResponse, MissingScope, error_response
from unmask.serving.logs import LOG

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
    """Checks the API key, if the server has keys, the rate of requests, and reads the body within its limits.

    The whole body is read before the request is handled. Only paths below /v1 need a key, and /metrics by option. Two kinds of requests are
    rejected, because CORS alone would only hide the answer after the model has run:

    - a request of a web page from another origin, unless that is in ``access.origins``;
    - a request to a host name that is not in ``access.names``: the name of an attacker's page may lead to this server (DNS rebinding), and
      its requests then have the server's own origin. Addresses and localhost are always allowed.
    """

    def __init__(self, app: ASGIApp, *, access: Access) -> None:
        self.app, self.access, self.bodies = app, access, Bodies(most_bytes=access.most_bytes)
        self.origins = frozenset(access.origins)
        self.names = frozenset(name.lower().rstrip(".") for name in access.names)
        self.rate = Rate(access.rate) if access.rate else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if refused := self._forbidden(scope["method"], headers) or self._admitted(scope, headers):
            await refuse(refused, send)
            return
        try:
            body = await self.bodies.read(headers, receive)
        except Disconnected:
            return
        if isinstance(body, ErrorResponse):
            await refuse(body, send)
            return
        try:
            await self.app(scope, body.receive(receive), send)
        finally:
            body.close()

    def _admitted(self, scope: Scope, headers: Headers) -> ErrorResponse | None:
        """401, 403 or 429 for a request that needs a key, a scope or a lower rate; else its scopes are put into the request's state."""
        path, below = scope["path"], scope["path"].startswith("/v1")
        kind, _, sent = headers.get("authorization", "").partition(" ")
        scopes = self.access.scopes_of(sent.strip() if kind.lower() == "bearer" else "")
        private = path == "/metrics" and self.access.private_metrics
        if scopes is None and (below or private):
            message = "missing or invalid API key; send the header Authorization: Bearer KEY"
            return ErrorResponse(status=401, message=message, code="invalid_api_key")
        if private and ADMIN not in (scopes or ()):
            return error_response(MissingScope(ADMIN))
        scope.setdefault("state", {})["scopes"] = SCOPES if scopes is None else scopes
        if below and self.rate:
            client = sent.strip() if self.access.keys else str((scope.get("client") or ("",))[0])
            return self.rate.exceeded(client)
        return None

    def _forbidden(self, method: str, headers: Headers) -> ErrorResponse | None:
        """403 for a request to a foreign host name or from another origin."""
        host, origin = headers.get("host"), headers.get("origin")
        if host is not None and not self._known_host(host):
            message = f"this server is not known as {host[:100]!r}; start it with --host-name NAME, or use its address"
            return ErrorResponse(status=403, message=message, code="other_host")
        if {"*", origin} & self.origins:
            return None
        other = headers.get("sec-fetch-site") in ("cross-site", "same-site") and method in ("POST", "PATCH")
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


class Rate:
    """At most so many requests of each client in a moving window, such as "60/minute" (package ``limits``)."""

    def __init__(self, rate: str) -> None:
        from limits import parse
        from limits.storage import MemoryStorage
        from limits.strategies import MovingWindowRateLimiter

        self.item, self.limiter = parse(rate), MovingWindowRateLimiter(MemoryStorage())

    def exceeded(self, client: str) -> ErrorResponse | None:
        """429 if ``client`` has sent too many; else its request is counted."""
        if self.limiter.hit(self.item, client):
            return None
        free = self.limiter.get_window_stats(self.item, client).reset_time - time.time()
        message = f"more than {self.item}; send fewer requests"
        return ErrorResponse(status=429, message=message, code="rate_limit_exceeded", retry_after=max(1.0, free))


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
