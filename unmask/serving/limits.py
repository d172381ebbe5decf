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
from unmask.serving.edit_form import ABSENT
from unmask.serving.limits_chat import NULL, PICTURE, limited_chat
from unmask.serving.schema import NONBLANK, SQUARE, Draw, Edit, Fields, Ground, Infill
from unmask.serving.schema_chat import Chat
from unmask.serving.service import Served
from unmask.serving.unknown_fields import misspelt

_NUMBERS = {  # JSON numbers that every field of a kind takes
    "integer": "[1-9][0-9]{0,2}",
    "number": r"(0|[1-9][0-9]{0,2})(\.[0-9]{1,6})?",
    "boolean": "(true|false)",
}
_ABSENT: Json = {"enum": [*ABSENT, None]}  # in a form; null is sent as one of the others, or not at all
# What a form may say for true and false, as pydantic reads it.
_TRUE, _FALSE = ("true", "yes", "on", "t", "y", "1"), ("false", "no", "off", "f", "n", "0")
_FILES = "image/png, image/jpeg, image/webp"
_BELOW_ONE = "0[.][0-9]{0,5}[1-9]"  # and above 0
_SHARE = f"(1|{_BELOW_ONE})"  # above 0, at most 1
_ABOVE_ZERO = f"([1-9][0-9]{{0,3}}|{_BELOW_ONE})"
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
        _limit_quirks(body["properties"], model, [None])
        own = fields(model).get(task, {}).get("x-unmask-settings", [])
        sampled = _sampled(own, known.values())
        if kind is Chat:
            guided = any(s["name"] == "guidance.scale" for s in own)
            limited_chat(body, sampled, _sampled((), known.values()), model, guided=guided)
        elif kind is not Infill:
            body.setdefault("allOf", []).append(sampled)
    for name in ("Draw", "Infill"):
        schemas[name].setdefault("allOf", []).append(_one_if_large(NULL))
    schemas["Draw"].setdefault("allOf", []).extend([_plan_or_boxes(NULL, {"const": False}), _live()])
    schemas["Draw"]["properties"]["prompt"]["pattern"] = NONBLANK
    schemas["BoxOf"]["properties"]["phrase"]["pattern"] = NONBLANK
    schemas["Ground"]["properties"]["image"] |= PICTURE
    schemas["Ground"]["properties"]["phrases"]["items"]["pattern"] = NONBLANK
    _image_or_text(schemas["Infill"], model, known.values())
    _continued(schemas["Complete"], model.parts.text.size)
    if isinstance(model, Model) and model.parts.rows.drawn_size(model.parts, (2, 1)) is None:
        for name in ("Draw", "Infill"):
            schemas[name]["properties"]["size"]["pattern"] = SQUARE
    form = found["paths"]["/v1/images/edits"]["post"]["requestBody"]["content"]["multipart/form-data"]
    _form(form, model, known)
    if adapters:
        form["schema"]["properties"]["unmask[lora]"] |= {"enum": [*adapters, *ABSENT]}
    else:
        del form["schema"]["properties"]["unmask[lora]"]
    useless = _OF_TEXT_MODELS if isinstance(model, Model) else _OF_IMAGE_MODELS
    for path in useless:
        del found["paths"][path]


def _other_fields(body: Json, kind: type[Fields]) -> None:
    """Fields that are accepted and ignored, and those that are accepted with values that ask for nothing. Others are ignored too, but for
    misspelt ones: of those, a schema can name the fields of the other bodies.
    """
    policy, properties = kind.policy(), body["properties"]
    others = [other.policy() for other in (*_BODIES, Edit)]
    names = {name for other in others for name in (*other.known, *other.harmless, *other.unsupported)}
    for name in sorted(names - {*properties, *policy.harmless, *policy.unsupported}):
        if misspelt(name, policy.known):
            properties[name] = {
                "enum": [None],
                "description": f"{name} is a field of other requests, and has no meaning here.",
            }
    for name in sorted(set(policy.harmless) - set(properties)):
        properties[name] = {"description": f"Accepted and ignored; {name} of OpenAI's API has no meaning here."}
    for name, known in policy.unsupported.items():
        properties.setdefault(name, {"enum": [*known.neutral, None], "description": f"Not supported: {known.reason}."})


def _options(adapters: Sequence[str]) -> Json:
    """The object ``unmask``, which may name one of the adapters."""
    lora = {"enum": [*adapters, None]}
    return {"anyOf": [{"type": "object", "properties": {"lora": lora}, "additionalProperties": False}, NULL]}


def _sampled(own: Iterable[Json], known: Iterable[NamedSampler], absent: Json = NULL) -> Json:
    """The preset of the model with its settings, a schedule or cache by name without any, or a named sampler with its arguments. Most
    samplers and settings go with a schedule or cache, too; the schema leaves that out. ``absent``: values that count as no value.
    """
    settings, given = {s["name"]: s["type"] for s in own}, {"not": absent}
    preset = {"sampler": absent, "settings": _or(absent, _settings({})), "speed": absent}
    whole = {"schedule": absent, "cache": absent}
    # Fast mode has other settings than the preset.
    choices: list[Json] = [
        {"properties": {**preset, **whole, "settings": _or(absent, _settings(settings))}},
        {"properties": {**preset, **whole, "speed": given}, "required": ["speed"]},
        {"properties": {**preset, "schedule": given}, "required": ["schedule"]},
        {"properties": {**preset, "schedule": absent, "cache": given}, "required": ["cache"]},
    ]
    alike: dict[
        tuple[tuple[str, str], ...], list[str]
    ] = {}  # names by their arguments: fewer choices are easier to read
    for sampler in known:
        if not sampler.served:
            continue
        kinds = tuple((name, _KIND[type(value)]) for name, value in sampler.arguments.items())
        alike.setdefault(kinds, []).append(sampler.name)
    for kinds, names in alike.items():
        named = {"sampler": {"enum": names}, "settings": _or(absent, _settings(dict(kinds))), **whole}
        choices.append({"properties": named, "required": ["sampler"]})
    # oneOf: since the choices exclude each other, a generator may take one and join it with the other limits. With anyOf, schemathesis
    # joins all of them with all others, and gives up from a few dozen on.
    return {"oneOf": choices}


_KIND: dict[type, str] = {bool: "boolean", int: "integer", float: "number"}


def _settings(kinds: dict[str, str]) -> Json:
    """A list of settings with numbers as values; an empty list where there are none."""
    ranges = {"top_p": _SHARE, "share": _SHARE, "eps": _BELOW_ONE, "shift": _ABOVE_ZERO}
    numbers = {name: ranges.get(name.rpartition(".")[2], _NUMBERS[kind]) for name, kind in kinds.items()}
    choices = [rf"{name.replace('.', '[.]')}={number}" for name, number in numbers.items()]
    items: Json = {"type": "string", "pattern": f"^({'|'.join(choices)})$"}
    return {"type": "array", "items": items} if choices else {"type": "array", "maxItems": 0}


def _or(absent: Json, schema: Json) -> Json:
    return {"anyOf": [schema, absent]}


def _one_if_large(absent: Json) -> Json:
    """``delivery.MOST_PIXELS`` bounds the pixels of all images of a request."""
    one = {"properties": {"n": _or(absent, {"const": 1})}}
    small = {"type": "string", "pattern": "^(auto|[1-9][0-9]{0,2}[xX][1-9][0-9]{0,2})$"}
    return {"anyOf": [one, {"properties": {"size": _or(absent, small)}}]}


def _live() -> Json:
    """A live drawing is streamed, and has one attempt."""
    streamed = {"properties": {"stream": {"const": True}, "reflect": _or(NULL, {"const": 1})}, "required": ["stream"]}
    return {"anyOf": [{"properties": {"live": NULL}}, streamed]}


def _plan_or_boxes(absent: Json, false: Json) -> Json:
    no_boxes = {"properties": {"boxes": _or(absent, {"type": "array", "maxItems": 0})}}
    return {"anyOf": [no_boxes, {"properties": {"plan": _or(absent, false)}}]}


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
    """The form of an edit. A mask excludes plan, boxes and reflect, and its settings are those of a generation."""
    body: Json = content["schema"]
    properties = body["properties"]
    for name, field in properties.items():
        if name not in ("image", "mask", "reference", "prompt"):
            properties[name] = _of_form(field)
    _kinds(properties, model)
    _limit_quirks(properties, model, [*ABSENT, None])
    own = fields(model)["edit"].get("x-unmask-settings", [])
    false = _or({"const": False}, {"type": "string", "pattern": _any_case(_FALSE)})
    inpainted: Json = {
        "plan": _or(_ABSENT, false),
        "boxes": _or(_ABSENT, {"type": "array", "maxItems": 0}),
        "reflect": _or(_ABSENT, {"const": 1}),
        **({"kind": _ABSENT} if "kind" in properties else {}),
    }
    painted = _sampled(settings_of(model, "generate"), known.values(), _ABSENT)
    body["allOf"] = [_sampled(own, known.values(), _ABSENT), _one_if_large(_ABSENT), _plan_or_boxes(_ABSENT, false)]
    # No anyOf with required: a validator that cannot read files would not know which of them holds.
    body["dependentSchemas"] = {"mask": {"properties": inpainted, "allOf": [painted]}}
    body |= {"if": {"properties": {"prompt": {"pattern": NONBLANK}}}, "else": {"required": ["mask"]}}
    body["additionalProperties"] = False
    content["encoding"] = {
        name: {"contentType": _FILES} for name in ("image", "mask", "reference") if name in properties
    }


def _limit_quirks(properties: Json, model: Served, absent: Sequence[str | None]) -> None:
    """A model without deviations of released scripts takes the usual ones alone. ``absent``: values that count as no value."""
    if not (isinstance(model, Model) and model.parts.choices):
        about = properties["quirks"]["description"]
        properties["quirks"] = {"enum": ["usual", *absent], "description": about}


def _kinds(properties: Json, model: Served) -> None:
    """Sizes and kinds of edits of models that draw any shape, whose edits have kinds; of others squares alone, and no kind."""
    if isinstance(model, Model) and model.parts.rows.drawn_size(model.parts, (2, 1)) is not None:
        return
    properties["size"] = {"anyOf": [{"type": "string", "pattern": SQUARE}, _ABSENT]}
    del properties["kind"], properties["reference"]


def _of_form(field: Json) -> Json:
    """A field as a form has it: without null, absent if it is empty, and with the words for true and false."""
    about = {name: field[name] for name in ("title", "description") if name in field}
    inside = field.get("anyOf") or [{k: v for k, v in field.items() if k not in (*about, "default")}]
    choices = [choice for choice in inside if choice != NULL]
    words = [{"type": "string", "pattern": _any_case((*_TRUE, *_FALSE))}] if {"type": "boolean"} in choices else []
    return {"anyOf": [*choices, *words, _ABSENT], **about}


def _any_case(words: Iterable[str]) -> str:
    """A pattern of words in any letter case."""
    letters = ("".join(f"[{c}{c.upper()}]" if c.isalpha() else c for c in word) for word in words)
    return f"^({'|'.join(letters)})$"


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
