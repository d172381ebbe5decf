"""What a request body may hold beyond the types of its fields, in JSON Schema.

Public idea: ``limited(found, model)`` completes the bodies of an OpenAPI document for the served model: fields that belong together, the
settings and samplers of this model, and fields of OpenAI's API that are accepted and ignored.
"""

from __future__ import annotations

from collections.abc import Iterable

from unmask.json_types import Json
from unmask.pipeline.catalogue import NamedSampler, samplers
from unmask.pipeline.model import Model
from unmask.serving.answers import fields, settings_of
from unmask.serving.schema import IGNORED
from unmask.serving.service import Served

_NUMBERS = {  # JSON numbers that every field of a kind takes
    "integer": "[1-9][0-9]{0,2}",
    "number": r"(0|[1-9][0-9]{0,2})(\.[0-9]{1,6})?",
    "boolean": "(true|false)",
}
_NULL: Json = {"type": "null"}
_PICTURE = {"type": "string", "format": "image-data-url", "pattern": "^[dD][aA][tT][aA]:"}
_ONE_IF_LARGE = {  # delivery.MOST_PIXELS bounds the pixels of all images of a request
    "anyOf": [
        {"properties": {"n": {"const": 1}}},
        {"properties": {"size": {"pattern": r"^(auto|([1-9][0-9]{0,2})[xX]\2)$"}}},
    ]
}
_FILES = "image/png, image/jpeg, image/webp"
_BODIES = {"Draw": "generate", "Edit": "edit", "Ground": "ground", "Infill": "infill", "Chat": "ask"}


def limited(found: Json, model: Served) -> None:
    """Add the limits of the served model to the request bodies of a document."""
    schemas: Json = found["components"]["schemas"]
    known = samplers()
    for name, task in _BODIES.items():
        if name not in schemas:
            continue
        body = schemas[name]
        body["properties"] |= {field: _ignored(field) for field in sorted(IGNORED - body["properties"].keys())}
        own = fields(model)[task].get("x-unmask-settings", [])
        if name != "Infill":
            body.setdefault("allOf", []).append(_sampled(own, known.values()))
    for name in ("Draw", "Infill"):
        if name in schemas:
            schemas[name].setdefault("allOf", []).append(_ONE_IF_LARGE)
    if "Draw" in schemas:
        _either_plan_or_boxes(schemas["Draw"])
    if "Ground" in schemas:
        schemas["Ground"]["properties"]["image"] |= _PICTURE
    if "Infill" in schemas:
        _image_or_text(schemas["Infill"], model, known.values())
    _form(found["paths"]["/v1/images/edits"]["post"]["requestBody"]["content"]["multipart/form-data"], model, known)


def _ignored(field: str) -> Json:
    return {"description": f"Accepted and ignored; {field} of OpenAI's API has no meaning here."}


def _sampled(own: Iterable[Json], known: Iterable[NamedSampler]) -> Json:
    """The preset of the model with its settings, or a named sampler with its arguments."""
    choices: list[Json] = [
        {"properties": {"sampler": _NULL, "settings": _settings({s["name"]: s["type"] for s in own})}}
    ]
    for sampler in known:
        kinds = {name: _KIND[type(value)] for name, value in sampler.arguments.items()}
        named = {"sampler": {"const": sampler.name}, "settings": _settings(kinds)}
        choices.append({"properties": named, "required": ["sampler"]})
    return {"anyOf": choices}


_KIND = {bool: "boolean", int: "integer", float: "number"}


def _settings(kinds: dict[str, str]) -> Json:
    """A list of settings with numbers as values; an empty list where there are none."""
    choices = [rf"{name.replace('.', '[.]')}={_NUMBERS[kind]}" for name, kind in kinds.items()]
    items: Json = {"type": "string", "pattern": f"^({'|'.join(choices)})$"}
    return {"type": "array", "items": items} if choices else {"type": "array", "maxItems": 0}


def _either_plan_or_boxes(body: Json) -> None:
    free = {"properties": {"boxes": _NULL}}
    given = {"properties": {"boxes": {"type": "array"}, "plan": {"enum": [False, None]}}, "required": ["boxes"]}
    body.setdefault("allOf", []).append({"anyOf": [free, given]})


def _image_or_text(body: Json, model: Served, known: Iterable[NamedSampler]) -> None:
    """An image with its mask, or a text with gaps; each has settings of its own."""
    known = list(known)
    gap: Json = {"type": "string", "pattern": r"\[mask\]"}
    filled = {
        "properties": {"image": _NULL, "mask": _NULL, "text": gap, "guidance": _NULL, "steps": _NULL},
        "required": ["text"],
    }
    choices: list[Json] = [{"allOf": [filled, _sampled(settings_of(model, "fill"), known)]}]
    if isinstance(model, Model):
        painted = {"properties": {"image": _PICTURE, "mask": _PICTURE, "text": _NULL}, "required": ["image", "mask"]}
        choices.append({"allOf": [painted, _sampled(settings_of(model, "generate"), known)]})
    body["anyOf"] = choices


def _form(content: Json, model: Served, known: dict[str, NamedSampler]) -> None:
    """The form of an edit. A form cannot hold null, and a mask excludes plan, boxes and reflect."""
    body: Json = content["schema"]
    properties = body["properties"]
    for name, field in properties.items():
        choices = [choice for choice in field.get("anyOf", []) if choice != _NULL]
        if len(choices) == 1:
            properties[name] = {**choices[0], **{k: v for k, v in field.items() if k not in ("anyOf", "default")}}
    own = fields(model)["edit"].get("x-unmask-settings", [])
    painted = {
        "required": ["mask"],
        "properties": {"plan": {"enum": [False, None]}, "boxes": False, "reflect": {"const": 1}},
    }
    edited = {"properties": {"mask": False, "prompt": {"minLength": 1}}}
    body["allOf"] = [_sampled(own, known.values()), _ONE_IF_LARGE, {"anyOf": [painted, edited]}]
    content["encoding"] = {name: {"contentType": _FILES} for name in ("image", "mask")}
