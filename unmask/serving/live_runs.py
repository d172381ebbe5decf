"""Changes to drawings that run. Public idea: ``LiveRuns.open(lives, owner) -> name``, and the route PATCH /v1/images/generations/{name}.

A change is checked in the thread of its request and applied between two steps of the drawing (``tasks.live``). Only who started a drawing
may change it: the same API key, where the server has keys. Its name has 128 random bits.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Annotated

from fastapi import FastAPI, Request, Response
from PIL import Image
from pydantic import Field, model_validator

from unmask.serving.access import DRAW
from unmask.serving.contract import Changed
from unmask.serving.contract import answers as responding
from unmask.serving.data_urls import picture_of
from unmask.serving.errors import FieldError, MissingScope, about
from unmask.serving.owned_runs import OwnedRuns, owner_of, run_name
from unmask.serving.picture_reader import PictureReader
from unmask.serving.schema import MOST_PICTURES, BoxOf, Strict, Text, Visible
from unmask.tasks.live import Live, RunOver
from unmask.tokens.layouts import layout_of


class Change(Strict):
    """What changes in a drawing; what is left out stays as it is."""

    prompt: Annotated[Text, Visible] | None = Field(None, min_length=1, description="The whole new prompt.")
    boxes: list[BoxOf] | None = Field(None, max_length=32, description="The whole new layout; [] for none.")
    mask: str | None = Field(
        None, description="A picture of the canvas as a data: URL in base64. What is white is drawn anew."
    )
    picture: int | None = Field(
        None, ge=0, lt=MOST_PICTURES, description="Number of the picture, from 0. Default: all of the request."
    )
    finish: bool = Field(False, description="Take no more changes: the drawing ends as soon as nothing is masked.")

    @model_validator(mode="after")
    def _something(self) -> Change:
        if not self.finish and self.prompt is None and self.boxes is None and self.mask is None:
            raise ValueError("the change is empty; send prompt, boxes, mask or finish")
        return self


class LiveRuns:
    """The drawings that may be changed, by name. Thread-safe."""

    def __init__(self) -> None:
        self._runs = OwnedRuns[tuple[Live, ...]](
            what="drawing", start="stream and live", over=lambda lives: all(live.over for live in lives)
        )

    def open(self, lives: Sequence[Live], owner: bytes) -> str:
        name = run_name("draw")
        self._runs.add(name, owner, tuple(lives))
        return name

    def lives(self, name: str, owner: bytes, picture: int | None) -> tuple[Live, ...]:
        """The pictures that a change is about. NoSuchRun, NotYourRun, FieldError."""
        lives = self._runs.find(name, owner)
        if picture is None:
            return lives
        if picture >= len(lives):
            raise FieldError(f"picture: the drawing has {len(lives)} pictures, numbered from 0", "picture")
        return lives[picture : picture + 1]


def add_live_route(app: FastAPI, runs: LiveRuns, pictures: PictureReader) -> None:
    @app.patch("/v1/images/generations/{name}", **responding(Changed))
    async def change_drawing(name: str, body: Change, request: Request) -> Response:
        """Change a drawing while it runs: its prompt, its boxes, or a painted region."""
        if DRAW not in request.state.scopes:
            raise MissingScope(DRAW)
        lives = runs.lives(name, owner_of(request), body.picture)
        patch = await asyncio.to_thread(_change, lives, body, pictures)
        return Response(json.dumps({"name": name, "patch": patch}), media_type="application/json")


def _change(lives: Sequence[Live], body: Change, pictures: PictureReader) -> int:
    """The number of the change. Pictures that are finished are left alone, unless all are."""
    region: Image.Image | None = None if body.mask is None else picture_of(body.mask, "mask", pictures).image
    layout = (
        None if body.boxes is None else layout_of([(b.phrase, b.corners) for b in body.boxes]) if body.boxes else []
    )
    patch, over = 0, None
    for live in lives:
        try:
            if body.prompt is not None or layout is not None or region is not None:
                with about("mask" if region else "prompt" if body.prompt else "boxes"):
                    patch = max(patch, live.change(prompt=body.prompt, boxes=layout, region=region))
            elif live.over:
                raise RunOver("the drawing is finished and takes no more changes; start another one")
        except RunOver as error:
            over = error
            continue
        if body.finish:
            live.finish()
        patch = max(patch, live.count)
    if over and not patch and all(live.over for live in lives):
        raise over
    return patch
