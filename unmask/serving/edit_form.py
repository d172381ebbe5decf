"""The form in which a picture to edit comes. Public idea: ``await edit_form(request) -> EditForm``."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from fastapi import Request
from starlette.datastructures import UploadFile

from unmask.serving.schema import Edit

_FILES = ("image", "image[]", "mask")
_LISTS = ("settings", "boxes")


@dataclass(frozen=True, kw_only=True)
class EditForm:
    """``fields``: everything but the files, as strings and lists, not checked yet."""

    image: bytes
    mask: bytes | None
    fields: dict[str, Any]


async def edit_form(request: Request) -> EditForm:
    """Read a form. ValueError for a missing or second picture, and for lists that are no JSON."""
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise ValueError("an edit comes as multipart/form-data, with the picture as the file image; send it as a form")
    files: dict[str, bytes] = {}
    fields: dict[str, Any] = {}
    async with request.form(max_files=8, max_fields=200, max_part_size=2**20) as form:
        for name, value in form.multi_items():
            if name in _FILES:
                kind = name.removesuffix("[]")
                if kind in files:
                    raise ValueError(f"{kind}: one picture at a time; send one file")
                files[kind] = await value.read() if isinstance(value, UploadFile) else value.encode()
            elif isinstance(value, UploadFile):
                raise ValueError(f"there is no file {name[:50]!r} in an edit; send image and mask")
            else:
                _add(fields, name.removesuffix("[]"), value)
    if "image" not in files:
        raise ValueError("image: there is no picture in the form; send one as the file image")
    return EditForm(image=files["image"], mask=files.get("mask"), fields=fields)


def _add(fields: dict[str, Any], name: str, value: str) -> None:
    """``settings`` may be repeated; it and ``boxes`` may also be one JSON list."""
    if name not in _LISTS:
        fields[name] = value
    elif value.lstrip().startswith("["):
        try:
            fields[name] = [*fields.get(name, []), *json.loads(value)]
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{name}: this is not a JSON list; send one, or repeat the field") from error
    else:
        fields[name] = [*fields.get(name, []), value]


def edit_schema() -> dict[str, Any]:
    """The request body for OpenAPI, since the form is read by hand."""
    schema = Edit.model_json_schema()
    shared = schema.pop("$defs", {})
    box = shared.get("BoxOf", {"type": "object"})
    schema["properties"]["boxes"] = {"type": "array", "items": box, "maxItems": 32}
    file = {"type": "string", "format": "binary"}
    schema["properties"] = {"image": file, "mask": file, **schema["properties"]}
    schema["required"] = ["image", *schema.get("required", [])]
    return {"requestBody": {"content": {"multipart/form-data": {"schema": schema}}, "required": True}}
