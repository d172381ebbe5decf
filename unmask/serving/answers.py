"""Response bodies as plain JSON values. Public idea: one function per kind of result (``replies`` has those of chats)."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from unmask.json_types import Json
from unmask.pipeline.model import Model
from unmask.sampling.sampler import Sampler
from unmask.serving.calls import settable
from unmask.serving.schema import Draw, Edit, Fields, Ground, Infill
from unmask.serving.schema_chat import Chat
from unmask.serving.service import Served, Service
from unmask.serving.streams import Event
from unmask.tasks.parts import Parts, Refused
from unmask.tasks.results import Answer, Grounding, labels
from unmask.tokens.sources import readable

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

ENDPOINTS: dict[str, type[Fields]] = {
    **{"generate": Draw, "edit": Edit, "ground": Ground, "infill": Infill, "chat": Chat, "ask": Chat}
}


def model_card(service: Service, created: int) -> Event:
    """An entry of OpenAI's model list, with what the model does: its tasks, the side of its images in pixels (0: no images), the image
    formats that the server reads for it, its vocabulary, and the names of the adapters that a request may choose.
    """
    model = service.model
    tasks, side = _tasks(model), model.parts.side if isinstance(model, Model) else 0
    reads = readable() if side or "ask" in tasks else []
    vocabulary = model.parts.vocabulary if isinstance(model, Model) else None
    words = vocabulary.to_json() if vocabulary else None
    own = {"tasks": tasks, "side": side, "reads": reads, "vocabulary": words}
    own["adapters"] = list(service.adapted)
    return {"id": service.name, "object": "model", "created": created, "owned_by": "unmask", "unmask": own}


def _tasks(model: Served) -> list[str]:
    """The tasks that a model has: those whose preset its family does not refuse, and those with pictures only if it reads some."""
    if not isinstance(model, Model):
        return ["chat", "infill-text"]
    net, own = model.parts.net, model.presets
    sees = net.vision is not None or bool(net.config.first_code)
    used: dict[str, object] = {"generate": own.generate, "edit": own.edit, "ask": own.ask, "ground": own.ground}
    used |= {"infill": own.generate, "chat": own.ask, "infill-text": own.fill}
    with_pictures = ("edit", "ask", "ground")
    return [
        task for task, preset in used.items() if not isinstance(preset, Refused) and (sees or task not in with_pictures)
    ]


def fields(model: Served) -> dict[str, Event]:
    """JSON schemas of the request bodies by task; ``default`` and ``x-unmask-settings`` come from this model's samplers."""
    found: dict[str, Event] = {}
    samplers = _samplers(model)
    for name, body in ENDPOINTS.items():
        schema = body.model_json_schema()
        if sampler := samplers.get(name):
            known = list(_settings(sampler))
            defaults = {setting["name"]: setting["default"] for setting in known}
            for short, long in (("steps", "schedule.steps"), ("guidance", "guidance.scale")):
                if short in schema["properties"] and long in defaults:
                    schema["properties"][short]["default"] = defaults[long]
            schema["x-unmask-settings"] = known
        found[name] = schema
    if isinstance(model, Model):
        found["generate"]["properties"]["plan"]["default"] = model.presets.plans
    return found


def settings_of(model: Served, task: str) -> list[Json]:
    """The settings of a preset of an image model; of a text model, and of a task that the model does not have, none."""
    if not isinstance(model, Model):
        return []
    try:
        preset = getattr(model.presets, task)(model.parts)
    except ValueError:
        return []
    return list(_settings(preset))


def _samplers(model: Served) -> dict[str, Sampler]:
    """The samplers of an image model's tasks; a task that the model does not have is left out."""
    if not isinstance(model, Model):
        return {}
    parts, own, found = model.parts, model.presets, dict[str, Sampler]()
    named = {"generate": own.generate, "edit": own.edit, "ask": own.ask, "infill": own.generate, "chat": own.turn_words}
    for name, preset in (*named.items(), ("ground", lambda parts: own.ground(parts, 1))):
        with contextlib.suppress(ValueError):
            found[name] = preset(parts)
    return found


def _settings(value: DataclassInstance, path: str = "") -> Iterator[Json]:
    """Every numeric setting: its name, its default, and the part of the sampler that it belongs to."""
    for entry in dataclasses.fields(value):
        name, now = f"{path}{entry.name}", getattr(value, entry.name)
        if dataclasses.is_dataclass(now):
            yield from _settings(now, f"{name}.")
        elif isinstance(now, bool | int | float) and settable(name):
            said = (inspect.getdoc(type(value)) or "").partition("\n\n")[0].replace("\n", " ")
            kind = {bool: "boolean", int: "integer", float: "number"}[type(now)]
            yield {"name": name, "type": kind, "default": now, "part": type(value).__name__, "description": said}


def parts_to_draw(model: Served) -> Parts:
    """The model's parts. ValueError for a text model, which generates no images."""
    if not isinstance(model, Model):
        raise ValueError("this is a text model, which generates no images; use /v1/chat/completions or /v1/infill")
    return model.parts


def filled(answer: Answer, more: Sequence[str] = ()) -> Event:
    """``more``: warnings about the request's fields."""
    metadata = {"seed": answer.seed, "seconds": round(answer.seconds, 4), "settings": answer.settings}
    warnings = [*answer.warnings, *more]
    return {"text": answer.text, **metadata, "warnings": warnings, **labels(answer.approximate)}


def grounded(found: Grounding, more: Sequence[str] = ()) -> Event:
    """Boxes as fractions of the image. ``more``: warnings about the request's fields."""
    width, height = found.image_size
    size = (width, height, width, height)
    boxes = [
        {"phrase": b.phrase, "box": [round(v / s, 6) for v, s in zip(b.corners, size, strict=True)]}
        for b in found.boxes
    ]
    metadata = {"seed": found.seed, "seconds": round(found.seconds, 4), "settings": found.settings}
    warnings = [*found.warnings, *more]
    return {"boxes": boxes, "width": width, "height": height, **metadata, "warnings": warnings}
