"""What a request body may hold beyond the types of its fields, in JSON Schema.

Public idea: ``limited(found, model)`` completes the bodies of an OpenAPI document for the served model: fields that belong together, the
settings and samplers of this model, and fields of OpenAI's API that are accepted and ignored.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from unmask.json_types import Json
from unmask.pipeline.catalogue import NamedSampler, samplers
from unmask.pipeline.model import Model
from unmask.serving.answers import fields, settings_of
from unmask.serving.completions import Complete
from unmask.serving.limits_chat import NONBLANK, NULL, PICTURE, limited_chat
from unmask.serving.schema import Draw, Fields, Ground, Infill
from unmask.serving.schema_chat import Chat
from unmask.serving.service import Served

_NUMBERS = {  # JSON numbers that every field of a kind takes
    "integer": "[1-9][0-9]{0,2}",
    "number": r"(0|[1-9][0-9]{0,2})(\.[0-9]{1,6})?",
    "boolean": "(true|false)",
}
_ONE_IF_LARGE: Json = {  # delivery.MOST_PIXELS bounds the pixels of all images of a request
    "anyOf": [
        {"properties": {"n": {"const": 1}}},
        {"properties": {"size": {"pattern": r"^(auto|([1-9][0-9]{0,2})[xX]\2)$"}}},
    ]
}
_FILES = "image/png, image/jpeg, image/webp"
_SHARE = "(1|0[.][0-9]{0,5}[1-9])"  # above 0, at most 1
_OF_TEXT_MODELS, _OF_IMAGE_MODELS = ("/v1/completions",), ("/v1/images/generations", "/v1/images/edits", "/v1/ground")
_BODIES: dict[type[Fields], str] = {
    Draw: "generate",
    Ground: "ground",
    Infill: "infill",
    Chat: "ask",
    Complete: "complete",
}


def limited(found: Json, model: Served, adapters: Sequence[str] = ()) -> None:
    """Add the limits of the served model to the request bodies of a document, and leave out what the model cannot do at all.

    ``adapters``: names that a request may choose.
    """
    schemas: Json = found["components"]["schemas"]
    known = samplers()
    for kind, task in _BODIES.items():
        body = schemas[kind.__name__]
        _other_fields(body, kind)
        body["properties"]["unmask"] |= _options(adapters)
        own = fields(model).get(task, {}).get("x-unmask-settings", [])
        sampled = _sampled(own, known.values())
        if kind is Chat:
            limited_chat(body, sampled, model)
        elif kind is not Infill:
            body.setdefault("allOf", []).append(sampled)
    for name in ("Draw", "Infill"):
        schemas[name].setdefault("allOf", []).append(_ONE_IF_LARGE)
    _either_plan_or_boxes(schemas["Draw"])
    schemas["Draw"]["properties"]["prompt"]["pattern"] = NONBLANK
    schemas["BoxOf"]["properties"]["phrase"]["pattern"] = NONBLANK
    schemas["Ground"]["properties"]["image"] |= PICTURE
    schemas["Ground"]["properties"]["phrases"]["items"]["pattern"] = NONBLANK
    _image_or_text(schemas["Infill"], model, known.values())
    _continued(schemas["Complete"], model.parts.text.size)
    form = found["paths"]["/v1/images/edits"]["post"]["requestBody"]["content"]["multipart/form-data"]
    _form(form, model, known)
    if adapters:
        form["schema"]["properties"]["unmask[lora]"] |= {"enum": list(adapters)}
    else:
        del form["schema"]["properties"]["unmask[lora]"]
    useless = _OF_TEXT_MODELS if isinstance(model, Model) else _OF_IMAGE_MODELS
    for path in useless:
        del found["paths"][path]


def _other_fields(body: Json, kind: type[Fields]) -> None:
    """Fields that are accepted and ignored, and those that are accepted with values that ask for nothing. Others are not part of the API,
    though most of them are ignored.
    """
    policy, properties = kind.policy(), body["properties"]
    for name in sorted(set(policy.harmless) - set(properties)):
        properties[name] = {"description": f"Accepted and ignored; {name} of OpenAI's API has no meaning here."}
    for name, known in policy.unsupported.items():
        properties.setdefault(name, {"enum": [*known.neutral, None], "description": f"Not supported: {known.reason}."})
    body["additionalProperties"] = False


def _options(adapters: Sequence[str]) -> Json:
    """The object ``unmask``, which may name one of the adapters."""
    lora = {"enum": [*adapters, None]}
    return {"anyOf": [{"type": "object", "properties": {"lora": lora}, "additionalProperties": False}, NULL]}


def _sampled(own: Iterable[Json], known: Iterable[NamedSampler]) -> Json:
    """The preset of the model with its settings, or a named sampler with its arguments."""
    choices: list[Json] = [
        {"properties": {"sampler": NULL, "settings": _or_null(_settings({s["name"]: s["type"] for s in own}))}}
    ]
    for sampler in known:
        kinds = {name: _KIND[type(value)] for name, value in sampler.arguments.items()}
        named = {"sampler": {"const": sampler.name}, "settings": _or_null(_settings(kinds))}
        choices.append({"properties": named, "required": ["sampler"]})
    return {"anyOf": choices}


_KIND = {bool: "boolean", int: "integer", float: "number"}


def _settings(kinds: dict[str, str]) -> Json:
    """A list of settings with numbers as values; an empty list where there are none."""
    numbers = {name: _SHARE if name.endswith("top_p") else _NUMBERS[kind] for name, kind in kinds.items()}
    choices = [rf"{name.replace('.', '[.]')}={number}" for name, number in numbers.items()]
    items: Json = {"type": "string", "pattern": f"^({'|'.join(choices)})$"}
    return {"type": "array", "items": items} if choices else {"type": "array", "maxItems": 0}


def _or_null(schema: Json) -> Json:
    """A JSON field that is null counts as absent."""
    return {"anyOf": [schema, NULL]}


def _either_plan_or_boxes(body: Json) -> None:
    free = {"properties": {"boxes": NULL}}
    given = {"properties": {"boxes": {"type": "array"}, "plan": {"enum": [False, None]}}, "required": ["boxes"]}
    body.setdefault("allOf", []).append({"anyOf": [free, given]})


def _image_or_text(body: Json, model: Served, known: Iterable[NamedSampler]) -> None:
    """An image with its mask, or a text with gaps; each has settings of its own."""
    known = list(known)
    gap: Json = {"type": "string", "pattern": r"\[mask\]"}
    filled = {
        "properties": {"image": NULL, "mask": NULL, "text": gap, "guidance": NULL, "steps": NULL},
        "required": ["text"],
    }
    choices: list[Json] = [{"allOf": [filled, _sampled(settings_of(model, "fill"), known)]}]
    if isinstance(model, Model):
        painted = {"properties": {"image": PICTURE, "mask": PICTURE, "text": NULL}, "required": ["image", "mask"]}
        choices.append({"allOf": [painted, _sampled(settings_of(model, "generate"), known)]})
    body["anyOf"] = choices


def _form(content: Json, model: Served, known: dict[str, NamedSampler]) -> None:
    """The form of an edit. A form cannot hold null, and a mask excludes plan, boxes and reflect."""
    body: Json = content["schema"]
    properties = body["properties"]
    for name, field in properties.items():
        choices = [choice for choice in field.get("anyOf", []) if choice != NULL]
        if len(choices) == 1:
            properties[name] = {**choices[0], **{k: v for k, v in field.items() if k not in ("anyOf", "default")}}
    for field in properties.values():
        if "enum" in field:
            field["enum"] = [*field["enum"], ""]  # an empty field is absent
    own = {s["name"]: s["type"] for s in fields(model)["edit"].get("x-unmask-settings", [])}
    properties["settings"] |= {"maxItems": 32, **_settings(own)}
    properties["sampler"] = {"enum": ["", *sorted(known)], "description": properties["sampler"].get("description", "")}
    body.pop("allOf", None)
    # No anyOf with required: a validator that cannot read files would not know which of them holds.
    painting = {s["name"]: s["type"] for s in settings_of(model, "generate")}
    inpainted = {
        "settings": _settings(painting),
        "plan": {"enum": [False, ""]},
        "boxes": False,
        "reflect": {"enum": [1, ""]},
    }
    body["dependentSchemas"] = {
        "n": {"properties": {"size": _ONE_IF_LARGE["anyOf"][1]["properties"]["size"]}},
        "sampler": {"properties": {"settings": False}},
        "mask": {"properties": inpainted},
    }
    body |= {"if": {"properties": {"prompt": {"pattern": NONBLANK}}}, "else": {"required": ["mask"]}}
    body["additionalProperties"] = False
    content["encoding"] = {name: {"contentType": _FILES} for name in ("image", "mask")}


def _continued(body: Json, size: int) -> None:
    """Prompts with text, or with ids of a vocabulary of ``size`` tokens, and few stop texts."""
    properties = body["properties"]
    texts = {"type": "array", "items": {"type": "string", "minLength": 1, "maxLength": 200}, "maxItems": 16}
    properties["stop"] = {**properties["stop"], "anyOf": [texts["items"], texts, NULL]}
    one, ids, several = properties["prompt"]["anyOf"]
    for choice in (one, ids, *several["items"]["anyOf"]):
        if choice["type"] == "string":
            choice["pattern"] = NONBLANK
        else:
            choice["items"]["maximum"] = size - 1
            choice["items"].pop("exclusiveMaximum", None)
