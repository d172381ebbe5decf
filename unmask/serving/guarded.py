"""What every HTTP application of this package has: its middleware, its errors, and streams that end when the client leaves.

Public idea: ``guarded(access, counters) -> FastAPI`` without routes, ``stream(request, cancels, ...)`` and ``json_answer``.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import StreamingResponse
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from unmask import __version__
from unmask.json_types import Json
from unmask.serving.access import Access
from unmask.serving.counting import RequestCounters
from unmask.serving.edge import Edge, Guard
from unmask.serving.errors import MissingScope, error_response, wrong_content_type
from unmask.serving.logs import LOG
from unmask.serving.streams import Channel, Event, Wire, opened, streamed

RUN_HEADER = "x-unmask-run"  # the name of a run that takes changes
_STREAM = {"cache-control": "no-cache", "x-accel-buffering": "no"}


def guarded(access: Access, counters: RequestCounters) -> FastAPI:
    """An application without routes, behind ``Edge`` and ``Guard``."""
    app = FastAPI(title="unmask", version=__version__, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Guard, access=access)
    if access.origins:
        allowed = ["authorization", "content-type", "x-request-id"]
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(access.origins),
            allow_methods=["GET", "POST", "PATCH"],
            allow_headers=allowed,
            expose_headers=["x-request-id", "retry-after", RUN_HEADER],
        )
    app.add_middleware(Edge, counters=counters)
    for kind in (RequestValidationError, HTTPException, MissingScope, ValueError, RuntimeError, OSError):
        app.add_exception_handler(kind, _failed)  # Edge handles all other exceptions
    return app


async def stream(
    request: Request,
    cancels: Sequence[Callable[[], None]],
    channel: Channel,
    wire: Wire,
    greeting: Sequence[Event] = (),
) -> Response:
    """Stream events. An error before the first event becomes an HTTP status, a later one an event. ``cancels``: as of ``streamed``."""
    gone = asyncio.ensure_future(disconnected(request))
    try:
        early = await opened(channel, gone)
    except BaseException:
        gone.cancel()
        for cancel in cancels:
            cancel()
        raise
    events = streamed(channel, [*greeting, *early], cancels, gone, wire, _stream_error)
    return StreamingResponse(events, media_type="text/event-stream", headers=_STREAM)


async def disconnected(request: Request) -> None:
    """Returns when the client disconnects."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def json_answer(value: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """ASCII only, so that any text a client sent can be echoed."""
    return Response(json.dumps(value, allow_nan=False), status, headers, media_type="application/json")


def _stream_error(error: BaseException) -> Json:
    found = error_response(error)
    if found.server_fault:
        LOG.error("a stream failed", exc_info=error)
    return found.body


async def _failed(request: Request, error: Exception) -> Response:
    found = error_response(error)
    sent = request.headers.get("content-type", "")
    if (
        isinstance(error, RequestValidationError) and isinstance(error.body, bytes) and error.body
    ):  # it was not read as JSON
        found = wrong_content_type(sent)
    if found.server_fault:
        LOG.error("a request failed", exc_info=error, extra={"fields": {"id": request.state.request_id}})
    return json_answer(found.body, found.status, found.headers)
