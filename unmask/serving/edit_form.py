"""Parse the multipart form of an edit request. Public idea: ``await edit_form(request) -> EditForm``."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from fastapi import HTTPException, Request
from starlette.datastructures import UploadFile

from unmask.json_types import Json
from unmask.serving.data_urls import read_data_url
from unmask.serving.schema import Edit

_MOST_FILES = 32  # more than any client sends, so that each is counted in the error
_INDEX = re.compile(r"\[\d{0,3}\]$", re.ASCII)  # image[] or image[0]
ABSENT = ("", "null")  # a field with such a text counts as absent
_LISTS = ("settings", "boxes")


@dataclass(frozen=True, kw_only=True)
class EditForm:
    """``reference``: a second image, for kinds of edits that read one · ``fields``: all fields except the files, as strings and lists, not
    validated yet.
    """

    image: bytes
    mask: bytes | None
    fields: Json
    reference: bytes | None = None


async def edit_form(request: Request) -> EditForm:
    """Read a form. ValueError for a missing or second image, for unknown files and for invalid JSON lists."""
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise HTTPException(415, "an edit must be sent as multipart/form-data with the image in the file field image")
    files: dict[str, list[bytes]] = {"image": [], "mask": [], "reference": []}
    fields: Json = {}
    async with request.form(max_files=_MOST_FILES, max_fields=200, max_part_size=2**20) as form:
        for name, value in form.multi_items():
            kind = _INDEX.sub("", name)
            if kind in files:
                data = await value.read() if isinstance(value, UploadFile) else _text_file(kind, value)
                files[kind] += [data] if data else []
            elif isinstance(value, UploadFile):
                raise ValueError(f"unknown file field {name[:50]!r}; the file fields are image, mask and reference")
            else:
                _add(fields, name.removesuffix("[]"), value)
    for kind, sent in files.items():
        if len(sent) > 1:
            raise ValueError(f"{kind}: {len(sent)} files were sent, and only one file is allowed; send one")
    if not files["image"]:
        raise ValueError("image: the form contains no image; send one in the file field image")
    mask, reference = (files[name][0] if files[name] else None for name in ("mask", "reference"))
    return EditForm(image=files["image"][0], mask=mask, reference=reference, fields=fields)


def _text_file(name: str, value: str) -> bytes:
    """The file in a field that was sent as text, as a data: URL."""
    return b"" if value in ABSENT else read_data_url(value, name)


def _add(fields: Json, name: str, value: str) -> None:
    """``settings`` and ``boxes`` may be repeated or given as one JSON list. Other fields than the prompt are absent if empty or null."""
    if name in _LISTS and value.lstrip().startswith("["):
        try:
            fields[name] = [*fields.get(name, []), *json.loads(value)]
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{name}: invalid JSON list; send a JSON list, or repeat the field") from error
    elif name in ("unmask", "unmask[lora]"):
        fields["unmask"] = _options(value) if name == "unmask" else {"lora": None if value in ABSENT else value}
    elif (kind := name.partition("[")[0]) != name:  # boxes[][phrase], as some clients write nested values
        raise ValueError(f"{kind}: the form field {name[:50]!r} cannot be read; send {kind} as one JSON list")
    elif name == "prompt" or value not in ABSENT:
        fields[name] = [*fields.get(name, []), _item(name, value)] if name in _LISTS else value


def _options(value: str) -> object:
    try:
        return json.loads(value) if value not in ABSENT else None
    except (ValueError, RecursionError) as error:
        raise ValueError("unmask: invalid JSON; send a JSON object, or the field unmask[lora]") from error


def _item(name: str, value: str) -> object:
    """An item of a list; a box is a JSON object."""
    try:
        return json.loads(value) if name == "boxes" else value
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name}: invalid JSON; send a JSON list, or each box as a JSON object") from error


def edit_schema() -> Json:
    """The OpenAPI schema of the request body; the form is parsed without FastAPI."""
    schema = Edit.model_json_schema()
    shared = schema.pop("$defs", {})
    box = {"$ref": "#/components/schemas/BoxOf"}
    schema["properties"]["boxes"] |= {"anyOf": [{"type": "array", "items": box, "maxItems": 32}, {"type": "null"}]}
    del schema["properties"]["unmask"]
    schema["properties"]["unmask[lora]"] = shared["OwnOptions"]["properties"]["lora"]
    file = {"type": "string", "format": "binary"}
    schema["properties"] = {"image": file, "mask": file, "reference": file, **schema["properties"]}
    schema["required"] = ["image", *schema.get("required", [])]
    return {"requestBody": {"content": {"multipart/form-data": {"schema": schema}}, "required": True}}
