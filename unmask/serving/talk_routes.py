"""The HTTP application of talks. Public idea: ``talk_application(talks, access=...) -> FastAPI``.

POST /v1/talks starts a talk and streams it as server-sent events; PATCH /v1/talks/{name} drives it; / is its page. Access, limits and
errors are those of every server.
"""

from __future__ import annotations

import secrets
from importlib.resources import files
from pathlib import Path

from fastapi import FastAPI, Request, Response
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles
from pydantic import Field, model_validator

from unmask.serving import contract
from unmask.serving.access import DRAW, Access
from unmask.serving.contract import answers as responding
from unmask.serving.counting import RequestCounters, render_prometheus
from unmask.serving.document import add_document_route
from unmask.serving.errors import MissingScope
from unmask.serving.guarded import RUN_HEADER, guarded, json_answer, stream
from unmask.serving.owned_runs import owner_of
from unmask.serving.schema import MOST_SEED, Strict
from unmask.serving.streams import Channel, Wire, sse
from unmask.serving.talks import Talks

LONGEST = 3600  # seconds of a talk
_WEB = Path(str(files("unmask"))) / "serving" / "web"


class StartTalk(Strict):
    """A talk to start."""

    face: int = Field(0, ge=0, description="Number of the face; GET /v1/talks says how many there are.")
    seed: int | None = Field(None, ge=0, le=MOST_SEED, description="Seed of the stream. Default: random.")
    seconds: int = Field(
        600, ge=1, le=LONGEST, description="Longest duration. The talk ends earlier when the client leaves."
    )


class ChangeTalk(Strict):
    """What a talk says and how it moves next; both are appended to what is waiting."""

    say: str = Field(
        "", max_length=1000, description="Letters to speak, one in each chunk; other characters are silence."
    )
    move: str = Field(
        "", max_length=1000, description="One character for each chunk: < to the left, > to the right, . to stay."
    )

    @model_validator(mode="after")
    def _something(self) -> ChangeTalk:
        if not self.say and not self.move:
            raise ValueError("the change is empty; send say or move")
        return self


def talk_application(talks: Talks, *, access: Access) -> FastAPI:
    """The application. ``access``: who may use it; talks need the scope ``draw``."""
    counters = RequestCounters()
    app = guarded(access, counters)
    _add_talk_routes(app, talks)
    _add_state_routes(app, talks, counters)
    add_document_route(app, None, keyed=bool(access.keys))
    return app


def _add_talk_routes(app: FastAPI, talks: Talks) -> None:
    @app.get("/v1/talks", **responding(contract.TalkModel))
    async def about() -> Response:
        """The served model: its faces, the length of a chunk, and the rate of its sound."""
        model = talks.model
        told = {"seconds": model.seconds, "rate": model.rate, "faces": model.faces, "moves": model.moves}
        return json_answer({"id": talks.name, **told, "most": talks.most, "running": talks.under_way})

    @app.post("/v1/talks", **contract.events(contract.TalkChunk, contract.TalkEnd))
    async def start(body: StartTalk, request: Request) -> Response:
        """Start a talk and stream its pictures and sound."""
        if DRAW not in request.state.scopes:
            raise MissingScope(DRAW)
        channel = Channel()
        seed = secrets.randbelow(2**31) if body.seed is None else body.seed
        owner = owner_of(request)
        talk = talks.start(channel.put, owner=owner, face=body.face, seed=seed, seconds=body.seconds)
        wire = Wire(
            frame=lambda event: sse(event, event["type"]),
            closing=lambda: [{"type": "unmask.talk.completed", "name": talk.name, "seed": seed, "changes": talk.count}],
        )
        answer = await stream(request, [talk.stop], channel, wire)
        answer.headers[RUN_HEADER] = talk.name
        return answer

    @app.patch("/v1/talks/{name}", **responding(contract.TalkChanged))
    async def change_talk(name: str, body: ChangeTalk, request: Request) -> Response:
        """Say something or move, while the talk runs."""
        if DRAW not in request.state.scopes:
            raise MissingScope(DRAW)
        talk = talks.find(name, owner_of(request))
        change = talk.change(say=body.say, move=body.move)
        return json_answer({"name": name, "change": change, "waiting": talk.waiting})


def _add_state_routes(app: FastAPI, talks: Talks, counters: RequestCounters) -> None:
    @app.get("/healthz", **responding(contract.Status))
    async def healthy() -> Response:
        """Liveness check."""
        return json_answer({"status": "ok"})

    @app.get("/readyz", **contract.readiness())
    async def ready() -> Response:
        """Readiness check: 503 while the server shuts down."""
        return json_answer({"status": "draining" if talks.draining else "ready"}, 503 if talks.draining else 200)

    @app.get("/metrics", **contract.plain_text())
    async def metrics() -> Response:
        """Metrics for Prometheus."""
        return Response(render_prometheus(counters, None), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return FileResponse(_WEB / "talk.html", headers={"cache-control": "no-cache"})

    app.mount("/web", StaticFiles(directory=_WEB), name="web")
