"""API requests as calls of the model. Public idea: ``drawing(body, seed)(model) -> Drawing``; one such function per task (``chat`` has
that of conversations).

Building a call is cheap: images are decoded and texts are checked in the thread that runs the call.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from PIL import Image

from unmask.evaluation.sampler_axes import named_change, sampler_change
from unmask.pipeline.model import Model
from unmask.pipeline.text_model import TextModel
from unmask.serving.data_urls import picture_of, read_data_url
from unmask.serving.edit_form import EditForm
from unmask.serving.errors import about
from unmask.serving.picture_reader import READER, PictureReader, Received
from unmask.serving.schema import Draw, Edit, Ground, Infill, Planned
from unmask.tasks.live import Live
from unmask.tasks.results import Answer, Drawing, Grounding
from unmask.tokens.layouts import Layout, layout_of
from unmask.tokens.pictures import ImageError

T = TypeVar("T")

# Sampler fields that hold token ids and positions of the model; a wrong value would index out of range. Clients cannot set them.
_FIXED = frozenset({"null_id", "ids", "low", "high", "drop", "keep", "order", "interval"})
_TRUTHS = ("true", "false", "yes", "no")
_MOST = 10_000  # largest absolute value of a setting; larger ones overflow


def by_sampler(make: Callable[..., Callable[[Any], T]]) -> Callable[..., Callable[[Any], T]]:
    """A call whose fields ``speed``, ``sampler``, ``schedule`` and ``cache`` change the presets of the model, and ``quirks`` its prompts;
    the settings left over are fields of the changed sampler.
    """

    @functools.wraps(make)
    def made(body: Any, *given: Any) -> Callable[[Any], T]:
        if all(one is None for one in (body.sampler, body.schedule, body.cache, body.speed, body.quirks)):
            return make(body, *given)

        def ask(model: Any) -> T:
            if body.quirks is not None:
                with about("quirks"):
                    model = model.with_quirks(body.quirks)
            model = model if body.speed is None else model.with_speed(body.speed)
            with about("schedule"):
                named_change(body.schedule, None)
            with about("cache"):
                named_change(None, body.cache)
            settings = body.settings if body.sampler is None else checked(body.settings)
            change, rest = sampler_change(body.sampler, body.schedule, body.cache, settings, served=True)
            if change is None:
                return make(body, *given)(model)
            return make(body.model_copy(update={"settings": rest}), *given)(model.with_sampler(change))

        return ask

    return made


@by_sampler
def drawing(body: Draw, seed: int, live: Live | None = None) -> Callable[[Model], Drawing]:
    def ask(model: Model) -> Drawing:
        _image_model(model)
        conditioning = {"luminance": body.luminance, "contrast": body.contrast, "score": body.score}
        conditions = model.parts.conditions(**conditioning, crop=body.crop)
        options = {"conditions": conditions, "plan": _plan(model, body), "attempts": body.reflect, "live": live}
        size = body.pixels and model.parts.rows.drawn_size(model.parts, body.pixels)
        try:
            return model.generate(body.prompt, seed=seed, size=size, settings=checked(body.overrides), **options)[0]
        finally:
            if live:
                live.finish()

    return ask


@by_sampler
def editing(body: Edit, form: EditForm, seed: int, reader: PictureReader = READER) -> Callable[[Model], Drawing]:
    """An edit by instruction or, with a mask, inpainting."""

    def ask(model: Model) -> Drawing:
        _image_model(model)
        settings = checked(body.overrides)
        picture = _read(form.image, "image", reader)
        if form.mask is None:
            options = {"plan": _plan(model, body) or False, "attempts": body.reflect or 1}
            reference = None if form.reference is None else _read(form.reference, "reference", reader).image
            if body.kind or reference:
                with about("kind"):
                    model.parts.rows.of_kind(body.kind or "", [] if reference is None else [torch.empty(0)])
            more = {"kind": body.kind or "", "reference": reference, **options}
            return model.edit(picture.image, body.prompt, seed=seed, settings=settings, **more)[0]
        if wrong := next((name for name, given in _not_inpainting(body, form).items() if given), ""):
            raise ValueError(f"{wrong}: it does not apply to inpainting; leave it out, or leave out mask")
        region = _region(form.mask, picture, reader)
        return model.infill(picture.image, region, prompt=body.prompt, seed=seed, settings=settings)

    return ask


@by_sampler
def infilling(
    body: Infill, seed: int, reader: PictureReader = READER
) -> Callable[[Model | TextModel], Drawing | Answer]:
    """A Drawing for an image, an Answer for a text."""

    def ask(model: Model | TextModel) -> Drawing | Answer:
        settings = checked(body.overrides)
        if body.text is not None:
            if body.steps is not None or body.guidance is not None:
                name = "guidance" if body.steps is None else "steps"
                raise ValueError(f"{name}: it does not apply to a text; leave it out")
            with about("text", instead_of=("prompt",)):
                return model.infill_text(body.text, seed=seed, settings=settings)
        draws = _image_model(model)
        picture = picture_of(body.image or "", "image", reader)
        mask = _region(read_data_url(body.mask or "", "mask"), picture, reader)
        return draws.infill(picture.image, mask, prompt=body.prompt, seed=seed, settings=settings)

    return ask


@by_sampler
def grounding(body: Ground, seed: int, reader: PictureReader = READER) -> Callable[[Model], Grounding]:
    def ask(model: Model) -> Grounding:
        picture = picture_of(body.image, "image", reader)
        settings, steps = checked(body.settings), body.steps if body.steps > 1 else None
        with about("phrases", instead_of=("prompt",)):
            found = model.ground(picture.image, body.phrases, steps=steps, seed=seed, settings=settings)
        return _in_pixels_of(found, picture.size)

    return ask


def settable(path: str) -> bool:
    """Whether a client may set a field of a sampler."""
    return path.strip().split(".")[-1].strip() not in _FIXED


def checked(settings: Sequence[str]) -> list[str]:
    """Settings that a client may make. ValueError for fixed fields and for values that are not finite numbers within bounds."""
    for setting in settings:
        path, _, text = setting.partition("=")
        if not settable(path):
            raise ValueError(f"settings: {path.strip()!r} is fixed by the model; leave it out")
        try:
            value = 0.0 if text.strip().lower() in _TRUTHS else float(text)
        except ValueError:
            raise ValueError(f"settings: {setting!r} is not a number; /v1/fields lists the settings") from None
        if not math.isfinite(value) or abs(value) > _MOST:
            raise ValueError(f"settings: {setting!r} is out of range; use a number of at most {_MOST}")
    return list(settings)


def _plan(model: Model, body: Planned) -> bool | Layout | None:
    """The plan of a request; None for the model's preset."""
    if not body.boxes:
        return body.plan
    layout = layout_of([(b.phrase, b.corners) for b in body.boxes])
    model.emit(0, layout)
    return layout


def _in_pixels_of(found: Grounding, size: tuple[int, int]) -> Grounding:
    """Boxes of a reduced picture in pixels of the one that was sent."""
    across, down = (sent / seen for sent, seen in zip(size, found.image_size, strict=True))
    boxes = tuple(replace(b, x1=b.x1 * across, x2=b.x2 * across, y1=b.y1 * down, y2=b.y2 * down) for b in found.boxes)
    return replace(found, boxes=boxes, image_size=size)


def _not_inpainting(body: Edit, form: EditForm) -> dict[str, object]:
    """The fields that have no meaning beside a mask, and their values."""
    several = (body.reflect or 1) > 1
    return {"plan": body.plan, "boxes": body.boxes, "reflect": several, "kind": body.kind, "reference": form.reference}


def _read(data: bytes, field: str, reader: PictureReader) -> Received:
    """The picture of a file field. ValueError names the field."""
    try:
        return reader.read(data)
    except ImageError as error:
        raise ValueError(f"{field}: {error}") from error


def _region(data: bytes, picture: Received, reader: PictureReader) -> Image.Image:
    """The region of a mask file for a picture. ValueError names the field mask."""
    try:
        region = reader.region(data)
    except ImageError as error:
        raise ValueError(f"mask: {error}") from error
    if region.size != picture.size:
        (w, h), (width, height) = region.size, picture.size
        raise ValueError(f"mask: it has {w} x {h} pixels and the image {width} x {height}; give both the same size")
    return region.image


def _image_model(model: Model | TextModel) -> Model:
    """The model, if it generates images. ValueError otherwise."""
    if isinstance(model, TextModel):
        raise ValueError("this is a text model, which generates no images; use an image model")
    return model
