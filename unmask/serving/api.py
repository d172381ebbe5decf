"""The HTTP server's routes. Public idea: ``application(service) -> FastAPI``, which any ASGI server runs.

docs/api.md describes every endpoint. A handler validates the request, starts calls in the service and waits for them. If the client
disconnects, the calls are cancelled.
"""

from __future__ import annotations

import asyncio
import functools
import secrets
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response

from unmask.pipeline.model import Model
from unmask.serving import answers, calls, chat, contract
from unmask.serving.access import ADMIN, ASK, DRAW, Access
from unmask.serving.chat_events import ChatEvents
from unmask.serving.completions import Complete, CompletionEvents, Completions, completing, text_only
from unmask.serving.contract import answers as responding
from unmask.serving.counting import RequestCounters, render_prometheus
from unmask.serving.delivery import Delivery, refuse_size
from unmask.serving.document import add_document_route
from unmask.serving.edit_form import edit_form, edit_schema
from unmask.serving.errors import MissingScope, NoSuchModel
from unmask.serving.guarded import RUN_HEADER, disconnected, guarded, json_answer, stream
from unmask.serving.live_runs import LiveRuns, add_live_route
from unmask.serving.owned_runs import owner_of
from unmask.serving.page_routes import add_page_routes
from unmask.serving.picture_urls import Link, PictureUrls, add_picture_route, data_url
from unmask.serving.replies import Reply
from unmask.serving.schema import Draw, Edit, Fields, Ground, Infill
from unmask.serving.schema_chat import Chat
from unmask.serving.service import Call, Service, Started
from unmask.serving.streams import Channel, PictureEvents, Wire, sse
from unmask.serving.unknown_fields import ignored_warning
from unmask.tasks.live import Live
from unmask.tasks.results import Answer, Drawing

T = TypeVar("T")
OPEN = Access()  # everybody, with the default limits


def application(service: Service, *, access: Access = OPEN, urls: PictureUrls | None = None) -> FastAPI:
    """The application. ``access``: who may use it · ``urls``: keeps pictures that are returned as URLs; None: they become data: URLs."""
    counters = RequestCounters()
    app = guarded(access, counters)
    _add_metadata_routes(app, service, counters)
    _add_image_routes(app, service, urls)
    _add_text_routes(app, service)
    add_page_routes(app, service)
    add_document_route(app, service, keyed=bool(access.keys))
    return app


def _add_metadata_routes(app: FastAPI, service: Service, counters: RequestCounters) -> None:
    began = int(time.time())

    @app.get("/v1/models", **responding(contract.ModelList))
    async def models() -> Response:
        """List the served model."""
        return json_answer({"object": "list", "data": [answers.model_card(service, began)]})

    @app.get("/v1/models/{name:path}", **responding(contract.ModelCard))
    async def model(name: str) -> Response:
        """The served model by name."""
        _check_name(service, name)
        return json_answer(answers.model_card(service, began))

    @app.get("/v1/fields", **responding(contract.FieldSchemas))
    async def fields() -> Response:
        """JSON schemas of the request bodies, with the model's presets as defaults."""
        return json_answer(answers.fields(service.model))

    @app.get("/healthz", **responding(contract.Status))
    async def healthy() -> Response:
        """Liveness check."""
        return json_answer({"status": "ok"})

    @app.get("/readyz", **contract.readiness())
    async def ready() -> Response:
        """Readiness check: 503 while the server shuts down."""
        return json_answer({"status": "ready" if service.ready else "draining"}, 200 if service.ready else 503)

    @app.get("/metrics", **contract.plain_text())
    async def metrics() -> Response:
        """Metrics for Prometheus."""
        return Response(render_prometheus(counters, service), media_type="text/plain; version=0.0.4; charset=utf-8")


def _add_image_routes(app: FastAPI, service: Service, urls: PictureUrls | None) -> None:
    runs = LiveRuns()
    if urls:
        add_picture_route(app, urls)

    def linked(request: Request) -> Link:
        return urls.linked(request) if urls else data_url

    @app.post("/v1/images/generations", **responding(contract.Pictures))
    async def generations(body: Draw, request: Request) -> Response:
        """Generate images from a prompt."""
        lives = [] if body.live is None else [Live(hold=body.live) for _ in range(body.n)]
        ask = lambda seed, *live: calls.drawing(body, seed, *live)  # noqa: E731
        answer = await _pictures(service, request, body, "image_generation", ask, linked(request), lives)
        if lives:  # a request that was refused leaves no name behind
            answer.headers[RUN_HEADER] = runs.open(lives, owner_of(request))
        return answer

    add_live_route(app, runs, service.pictures)

    @app.post("/v1/images/edits", openapi_extra=edit_schema(), **responding(contract.Pictures))
    async def edits(request: Request) -> Response:
        """Edit an image by an instruction, or inpaint the region of a mask."""
        form = await edit_form(request)
        body = Edit.model_validate(form.fields)
        ask = lambda seed: calls.editing(body, form, seed, service.pictures)  # noqa: E731
        return await _pictures(service, request, body, "image_edit", ask, linked(request))

    @app.post("/v1/infill", **responding(contract.Pictures, contract.Filled))
    async def infill(body: Infill, request: Request) -> Response:
        """Inpaint a region of an image, or fill in the masked tokens of a text."""
        if body.text is None:
            ask = lambda seed: calls.infilling(body, seed, service.pictures)  # noqa: E731
            return await _pictures(service, request, body, "image_edit", ask, linked(request))
        _check(service, request, body, ASK)
        if isinstance(service.model, Model):
            refuse_size(body, service.model.parts)
        seed = _seed(body)
        started = service.start(
            [Call(ask=calls.infilling(body, seed, service.pictures), priority=body.priority, lora=body.lora)]
        )
        (filled,) = await _settled(request, started)
        assert isinstance(filled, Answer)  # an image was handled above
        return json_answer(answers.filled(filled, ignored_warning(body.ignored)))


def _add_text_routes(app: FastAPI, service: Service) -> None:
    @app.post("/v1/ground", **responding(contract.Grounded))
    async def ground(body: Ground, request: Request) -> Response:
        """Locate phrases in an image."""
        _check(service, request, body, ASK)
        call = Call(ask=calls.grounding(body, _seed(body), service.pictures), priority=body.priority, lora=body.lora)
        (found,) = await _settled(request, service.start([call]))
        return json_answer(answers.grounded(found, ignored_warning(body.ignored)))

    @app.post("/v1/chat/completions", **responding(contract.ChatAnswer))
    async def chat_completions(body: Chat, request: Request) -> Response:
        """Generate the next turn of a conversation, with text and images."""
        return await _chat(service, request, body)

    @app.post("/v1/completions", **responding(contract.CompletionAnswer))
    async def completions(body: Complete, request: Request) -> Response:
        """Continue a text without a chat template, for text models."""
        return await _completions(service, request, body)


async def _pictures(
    service: Service,
    request: Request,
    body: Draw | Edit | Infill,
    kind: str,
    ask: Callable[..., Callable[[Any], Any]],
    link: Link,
    lives: Sequence[Live] = (),
) -> Response:
    """Start ``n`` calls; image i uses ``seed + i``. ``body`` has the fields of Fields and Streamed · ``lives``: take changes, one each."""
    _check(service, request, body, DRAW)
    parts, seed, channel = answers.parts_to_draw(service.model), _seed(body), Channel()
    delivery = Delivery.of(body, parts, link, body.ignored)
    follow = {"kind": kind, "partial": body.partial_images, "trace": body.trace, "delivery": delivery}
    followed = body.stream and (body.trace or body.partial_images)
    started = service.start(
        [
            Call(
                ask=ask(seed + i, *lives[i : i + 1]),
                listener=PictureEvents(channel.put, parts, picture=i, **follow) if followed else None,
                priority=body.priority,
                lora=body.lora,
                live=lives[i] if lives else None,
            )
            for i in range(body.n)
        ]
    )
    if not body.stream:
        drawn = await _settled(request, started)
        return json_answer(await asyncio.to_thread(delivery.answer, drawn, [one.job.usage for one in started]))

    def ended(number: int) -> Callable[[Drawing], None]:
        return lambda drawn: channel.put(delivery.completed(drawn, kind, number, started[number].job.usage))

    _announce(started, [ended(i) for i in range(body.n)], channel)
    return await stream(request, _cancels(started), channel, Wire(frame=lambda event: sse(event, event["type"])))


async def _chat(service: Service, request: Request, body: Chat) -> Response:
    """Start ``n`` calls; answer i uses ``seed + i``."""
    _check(service, request, body, DRAW if body.draws else ASK)
    seed, channel, model = _seed(body), Channel(), service.model
    reply = Reply(
        model=service.name,
        name=f"chatcmpl-{secrets.token_hex(12)}",
        unread=chat.unread(model, body),
        warnings=chat.warnings(model, body),
        markdown=(body.image_output or service.image_output) == "markdown",
        counted=body.counted,
    )
    follow = {"trace": body.stream and body.trace, "extent": chat.extent(model, body)}
    events = [ChatEvents(channel.put, model.parts.text, index=i, **follow) for i in range(body.n)]
    started = service.start(
        [
            Call(
                ask=chat.chatting(body, seed + i, service.pictures),
                listener=listener,
                priority=body.priority,
                lora=body.lora,
            )
            for i, listener in enumerate(events)
        ]
    )
    if not body.stream:
        found = await _settled(request, started)
        return json_answer(await asyncio.to_thread(lambda: reply.whole(found, [one.count for one in events])))
    _announce(started, [functools.partial(reply.finish, events=one) for one in events], channel)
    wire = Wire(
        frame=lambda event: sse(reply.chunk(event)), closing=lambda: reply.closing([one.count for one in events])
    )
    return await stream(request, _cancels(started), channel, wire, reply.greetings(body.n))


async def _completions(service: Service, request: Request, body: Complete) -> Response:
    """Start ``n`` calls for each prompt; continuation i of a prompt uses ``seed + i``."""
    _check(service, request, body, ASK)
    model, seed, channel = text_only(service.model), _seed(body), Channel()
    reply = Completions.of(body, model, model_name=service.name, name=f"cmpl-{secrets.token_hex(12)}")
    events = [CompletionEvents(channel.put, model.parts.text, body, index=i) for i in range(len(reply.echoes))]
    asked = [(prompt, seed + i) for prompt in body.prompts for i in range(body.n)]
    started = service.start(
        [
            Call(ask=completing(body, prompt, one_seed), listener=listener, priority=body.priority, lora=body.lora)
            for (prompt, one_seed), listener in zip(asked, events, strict=True)
        ]
    )
    if not body.stream:
        found = await _settled(request, started)
        return json_answer(reply.whole(events, found))
    _announce(started, [one.end for one in events], channel)
    wire = Wire(frame=lambda event: sse(reply.chunk(event)), closing=lambda: reply.closing(events))
    return await stream(request, _cancels(started), channel, wire, reply.greetings())


def _announce(started: Sequence[Started[T]], ended: Sequence[Callable[[T], None]], channel: Channel) -> None:
    """Put the result of every call into the channel, then None, or its exception."""

    def put_result(future: Future[T], say: Callable[[T], None]) -> None:
        error = None if future.cancelled() else future.exception()
        if error is None and not future.cancelled():
            try:
                say(future.result())
            except Exception as failed:
                error = failed
        channel.put(error)

    for one, say in zip(started, ended, strict=True):
        one.future.add_done_callback(lambda future, say=say: put_result(future, say))


async def _settled(request: Request, started: Sequence[Started[T]]) -> list[T]:
    """The results of all calls. If one fails or the client disconnects, the others are cancelled."""
    gone = asyncio.ensure_future(disconnected(request))
    everything = asyncio.gather(*(asyncio.wrap_future(one.future) for one in started))
    try:
        await asyncio.wait({everything, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not everything.done():
            everything.add_done_callback(
                lambda f: f.cancelled() or f.exception()
            )  # retrieve the exception, or asyncio logs it
            everything.cancel()
            raise ConnectionAbortedError("the client disconnected")
        return everything.result()
    finally:
        gone.cancel()
        for one in started:
            one.job.cancel()


def _cancels(started: Sequence[Started[Any]]) -> list[Callable[[], None]]:
    return [one.job.cancel for one in started]


def _check(service: Service, request: Request, body: Fields, scope: str) -> None:
    """NoSuchModel for another model; MissingScope for a key that lacks ``scope``, or ``admin`` for a priority above 0."""
    _check_name(service, body.model)
    scopes = request.state.scopes
    for needed in (scope, *([ADMIN] if body.priority > 0 else [])):
        if needed not in scopes:
            raise MissingScope(needed)


def _check_name(service: Service, name: str | None) -> None:
    if name not in (None, "", "auto", service.name):
        raise NoSuchModel(f"unknown model {str(name)[:100]!r}; this server serves {service.name!r}")


def _seed(body: Fields) -> int:
    return secrets.randbelow(2**31) if body.seed is None else body.seed
