"""What a chat request may hold beyond the types of its fields, in JSON Schema. Public idea: ``limited_chat(body, sampled, model)``.

A request is one of three: without images (a turn of the conversation), a question about an image, or a turn after an image.
"""

from __future__ import annotations

from unmask.json_types import Json
from unmask.pipeline.model import Model
from unmask.serving.schema import NONBLANK
from unmask.serving.service import Served

PICTURE: Json = {"type": "string", "format": "image-data-url", "pattern": "^[dD][aA][tT][aA]:"}
NULL: Json = {"type": "null"}
_TEXT: Json = {"type": "string", "pattern": NONBLANK, "maxLength": 8000}
_TEXT_PART: Json = {
    "type": "object",
    "properties": {"type": {"const": "text"}, "text": _TEXT, "image_url": NULL},
    "required": ["type", "text"],
}
_IMAGE_URL: Json = {"type": "object", "properties": {"url": PICTURE}, "required": ["url"]}
_IMAGE_PART: Json = {
    "type": "object",
    "properties": {"type": {"const": "image_url"}, "image_url": {"anyOf": [_IMAGE_URL, PICTURE]}, "text": NULL},
    "required": ["type", "image_url"],
}
_WORDS: Json = {"anyOf": [_TEXT, {"type": "array", "minItems": 1, "items": _TEXT_PART}]}
_ONE_IMAGE: Json = {
    "anyOf": [
        {"type": "array", "prefixItems": first, "items": _TEXT_PART, "minItems": 2}
        for first in ([_IMAGE_PART, _TEXT_PART], [_TEXT_PART, _IMAGE_PART])
    ]
}
_LEAF: Json = {
    "anyOf": [
        {
            "type": "object",
            "properties": {"type": {"const": "boolean"}},
            "required": ["type"],
            "additionalProperties": False,
        },
        {
            "type": "object",
            "properties": {
                "enum": {
                    "type": "array",
                    "items": {"type": "string", "pattern": "^[a-z]{1,12}$"},
                    "minItems": 1,
                    "maxItems": 20,
                    "uniqueItems": True,
                }
            },
            "required": ["enum"],
            "additionalProperties": False,
        },
    ]
}
_FORMATS: Json = {
    "description": "The simplest formats; docs/structured.md lists all schemas and regular expressions that are supported.",
    "anyOf": [
        NULL,
        {"type": "object", "properties": {"type": {"const": "text"}}, "required": ["type"]},
        {
            "type": "object",
            "properties": {
                "type": {"const": "json_schema"},
                "json_schema": {
                    "type": "object",
                    "properties": {
                        "name": {"type": "string"},
                        "schema": {
                            "type": "object",
                            "properties": {
                                "type": {"const": "object"},
                                "properties": {
                                    "type": "object",
                                    "propertyNames": {"pattern": "^[a-z]{1,12}$"},
                                    "additionalProperties": _LEAF,
                                    "minProperties": 1,
                                    "maxProperties": 8,
                                },
                            },
                            "required": ["type", "properties"],
                            "additionalProperties": False,
                        },
                    },
                    "required": ["schema"],
                },
            },
            "required": ["type", "json_schema"],
        },
    ],
}
# A draft that every model has room for; the server takes any with a gap.
_GAP: Json = {"type": "string", "pattern": r"^([a-z]{1,8} ){0,4}\[mask\]$"}
_NO_DRAFT: Json = {"enum": ["", None]}
_PLAIN: Json = {"anyOf": [*_FORMATS["anyOf"][:2]]}
_NO_SETTINGS: Json = {"type": ["array", "null"], "maxItems": 0}
_TURN = {"steps": NULL, "guidance": NULL, "response_format": _PLAIN, "draft": _NO_DRAFT}
_WITHOUT_IMAGE = {"anyOf": [NULL, {"type": "array", "items": {"const": "text"}, "maxItems": 8}]}


def limited_chat(body: Json, sampled: Json, turned: Json, model: Served, *, guided: bool) -> None:
    """Complete the schema of a chat request. ``sampled``, ``turned``: the samplers and settings of an answer about an image and of a turn ·
    ``guided``: whether guidance applies to such an answer.
    """
    properties = body["properties"]
    texts = {"type": "array", "items": {"type": "string", "minLength": 1, "maxLength": 200}, "maxItems": 4}
    properties["stop"] = {**properties["stop"], "anyOf": [texts["items"], texts, NULL]}
    other = _message(["system", "developer", "assistant"], _WORDS)
    question, shown = _message(["user"], _WORDS), _message(["user"], _ONE_IMAGE)
    spoken = {"type": "array", "items": {"anyOf": [other, question]}, "contains": question, "maxItems": 256}
    pictured = {"type": "array", "items": {"anyOf": [other, question, shown]}, "contains": shown, "maxItems": 256}
    if not isinstance(model, Model):
        answer = {"draw": _boolean(False), "modalities": _WITHOUT_IMAGE, "messages": spoken}
        stopped = {"anyOf": _stopped()}
        body["allOf"] = [
            {"properties": {"response_format": _FORMATS, **answer}},
            stopped,
            {"anyOf": _drafted()},
            turned,
        ]
        return
    turn = {**_TURN, "messages": spoken, "draw": _boolean(True)}
    about = {"messages": pictured, "draw": _boolean(False), "response_format": _FORMATS}
    about |= {} if guided else {"guidance": NULL}
    by_draw = {"properties": {**_TURN, "messages": pictured, "draw": {"const": True}}, "required": ["draw"]}
    by_modality = {
        "properties": {
            **{
                **_TURN,
                "messages": pictured,
                "sampler": NULL,
                "settings": _NO_SETTINGS,
                "schedule": NULL,
                "cache": NULL,
            },
            **{"draw": NULL, "modalities": {"type": "array", "contains": {"const": "image"}}},
        },
        "required": ["modalities"],
    }
    not_drawn = {
        "anyOf": [
            {"properties": {"draw": {"const": False}}, "required": ["draw"]},
            {"properties": {"modalities": _WITHOUT_IMAGE}},
        ]
    }
    asked = {"allOf": [{"properties": about}, not_drawn, sampled, {"anyOf": _stopped()}, {"anyOf": _drafted()}]}
    turns = [{"allOf": [one, turned]} for one in ({"properties": turn}, by_draw)]
    body["allOf"] = [{"anyOf": [*turns, by_modality, asked]}]


def _stopped() -> list[Json]:
    """An answer in a format has no stop texts and no temperature. That it may have a named sampler is left out, for fewer choices."""
    free = {"properties": {"response_format": _PLAIN}}
    formed = {"properties": {"stop": _NO_SETTINGS, "temperature": NULL, "sampler": NULL}}
    return [free, formed]


def _drafted() -> list[Json]:
    """An answer from a draft has no other limits."""
    limits = {"max_tokens": NULL, "max_completion_tokens": NULL, "stop": _NO_SETTINGS, "response_format": _PLAIN}
    return [{"properties": {"draft": _NO_DRAFT}}, {"properties": {"draft": _GAP, **limits}, "required": ["draft"]}]


def _boolean(value: bool) -> Json:
    return {"enum": [value, None]}


def _message(roles: list[str], content: Json) -> Json:
    properties = {"role": {"type": "string", "enum": roles}, "content": content, "images": NULL}
    return {"type": "object", "properties": properties, "required": ["role", "content"]}
