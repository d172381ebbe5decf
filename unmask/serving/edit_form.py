"""Parse the multipart form of an edit request. Public idea: ``await edit_form(request) -> EditForm``."""

from __future__ import annotations

import json
from dataclasses import dataclass

from fastapi import HTTPException, Request
from starlette.datastructures import UploadFile

from unmask.json_types import Json
from unmask.serving.schema import Edit

_FILES = ("image", "image[]", "mask")
_LISTS = ("settings", "boxes")


@dataclass(frozen=True, kw_only=True)
class EditForm:
    """``fields``: all fields except the files, as strings and lists, not validated yet."""

    image: bytes
    mask: bytes | None
    fields: Json


async def edit_form(request: Request) -> EditForm:
    """Read a form. ValueError for a missing or second image and for invalid JSON lists."""
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise HTTPException(415, "an edit must be sent as multipart/form-data with the image in the file field image")
    files: dict[str, bytes] = {}
    fields: Json = {}
    async with request.form(max_files=8, max_fields=200, max_part_size=2**20) as form:
        for name, value in form.multi_items():
            if name in _FILES:
                kind = name.removesuffix("[]")
                if kind in files:
                    raise ValueError(f"{kind}: only one file is allowed; send one")
                files[kind] = await value.read() if isinstance(value, UploadFile) else value.encode()
            elif isinstance(value, UploadFile):
                raise ValueError(f"unknown file field {name[:50]!r}; the file fields are image and mask")
            else:
                _add(fields, name.removesuffix("[]"), value)
    if "image" not in files:
        raise ValueError("image: the form contains no image; send one in the file field image")
    return EditForm(image=files["image"], mask=files.get("mask"), fields=fields)


def _add(fields: Json, name: str, value: str) -> None:
    """``settings`` and ``boxes`` may be repeated or given as one JSON list."""
    if name not in _LISTS:
        fields[name] = value
    elif value.lstrip().startswith("["):
        try:
            fields[name] = [*fields.get(name, []), *json.loads(value)]
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{name}: invalid JSON list; send a JSON list, or repeat the field") from error
    else:
        fields[name] = [*fields.get(name, []), value]


def edit_schema() -> Json:
    """The OpenAPI schema of the request body; the form is parsed without FastAPI."""
    schema = Edit.model_json_schema()
    shared = schema.pop("$defs", {})
    box = shared.get("BoxOf", {"type": "object"})
    schema["properties"]["boxes"] = {"type": "array", "items": box, "maxItems": 32}
    file = {"type": "string", "format": "binary"}
    schema["properties"] = {"image": file, "mask": file, **schema["properties"]}
    schema["required"] = ["image", *schema.get("required", [])]
    return {"requestBody": {"content": {"multipart/form-data": {"schema": schema}}, "required": True}}
