"""Files under one name -> the fields of a row: ``cat.jpg`` with ``cat.txt`` or ``cat.json``, in a folder or in a tar.

Public idea: ``fields_of(members)``, where ``members`` maps endings (``jpg``, ``txt``, ``json``, ``source.jpg``, ``prompt.txt``) to bytes.
A part between name and ending, as in ``cat.source.jpg``, is the name of the field.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from unmask.data.row_errors import RowError, shown
from unmask.data.rows import tasks_in
from unmask.data.samples import ByteSource, ImageRef
from unmask.json_types import Json

PICTURES = frozenset("png jpg jpeg webp gif bmp tif tiff ppm avif heic heif jp2 ico tga".split())
TEXTS = frozenset("txt text caption cap".split())
FIELDS = frozenset("image source target text caption instruction prompt verdict question answer".split())
_MOST_BYTES = 16 * 2**20  # of a .txt or .json beside a picture


def known_ending(ending: str) -> bool:
    """Whether files with this ending say something about a row."""
    return ending.rpartition(".")[2] in PICTURES | TEXTS | {"json"}


def fields_of(members: Mapping[str, ByteSource], name: str) -> Json:
    """The fields of a row. ``name``: of the files without their endings. RowError for files that do not fit together."""
    pictures = _pictures(members, name)
    written: Json = _described(members["json"], name) if "json" in members else {}
    texts = {
        field: _text(members[ending], f"{name}.{ending}") for field, ending in _text_endings(members, pictures, name)
    }
    if texts and written:
        _refuse_two_tasks({**pictures, **texts}, {**written, **pictures}, name)
    if not pictures and not written:
        raise RowError(f"there is no picture beside {name}.{next(iter(members))}")
    if not texts and not written:
        raise RowError(f"there is no {name}.txt or {name}.json beside the picture")
    return {**written, **pictures, **texts}


def task_in(members: Mapping[str, ByteSource], name: str) -> str | None:
    """The task of the files, from their names if none is JSON; None if there is none or more than one."""
    try:
        if "json" in members:
            fields = fields_of(members, name)
            return fields.get("task") or _only(tasks_in(fields))
        pictures = _pictures(members, name)
        return _only(tasks_in({**pictures, **{field: "" for field, _ in _text_endings(members, pictures, name)}}))
    except RowError:
        return None


def _only(tasks: list[str]) -> str | None:
    return tasks[0] if len(tasks) == 1 else None


def _refuse_two_tasks(beside: Json, described: Json, name: str) -> None:
    """Text files and a JSON file may say the same thing twice (img2dataset writes both); the text file is then used."""
    one, two = tasks_in(beside), [described["task"]] if described.get("task") else tasks_in(described)
    if one and two and one != two:
        raise RowError(
            f"two tasks under one name: {name}.txt makes it {' and '.join(one)}, {name}.json {' and '.join(map(str, two))}"
        )


def _pictures(members: Mapping[str, ByteSource], name: str) -> Json:
    found: Json = {}
    numbered: dict[int, ImageRef] = {}
    for ending, source in members.items():
        field, _, last = ending.rpartition(".")
        if last not in PICTURES or not (field in FIELDS or field == "" or field.isdecimal()):
            continue
        ref = ImageRef(name=f"{name}.{ending}", source=source)
        if field.isdecimal():
            numbered[int(field)] = ref
        elif found.setdefault(field or "image", ref) is not ref:
            raise RowError(f"there are two pictures called {name}: {found[field or 'image'].name} and {ref.name}")
    if numbered:
        found["images"] = [numbered[i] for i in sorted(numbered)]
    return found


def _text_endings(members: Mapping[str, ByteSource], pictures: Json, name: str) -> list[tuple[str, str]]:
    """(field, ending) of the text files. A text without a field name is the instruction of an edit, otherwise the caption."""
    plain = "instruction" if {"source", "target"} <= set(pictures) else "text"
    found: dict[str, str] = {}
    for ending in members:
        field, _, last = ending.rpartition(".")
        if last in TEXTS and (field in FIELDS or field == "") and found.setdefault(field or plain, ending) != ending:
            raise RowError(f"there are two texts called {name}: .{found[field or plain]} and .{ending}")
    return list(found.items())


def _text(source: ByteSource, name: str) -> str:
    try:
        content = source.read()
        if len(content) > _MOST_BYTES:
            raise RowError(f"{name} has {len(content):,} bytes, more than {_MOST_BYTES:,}")
        return content.decode("utf-8-sig").strip()
    except OSError as error:
        raise RowError(f"{name}: {(error.strerror or str(error)).lower()}") from error
    except UnicodeDecodeError as error:
        raise RowError(f"{name} is not text in UTF-8 (byte {error.start})") from error


def _described(source: ByteSource, name: str) -> Json:
    """The fields that a .json file has. A list is a conversation."""
    try:
        found = json.loads(_text(source, f"{name}.json"))
    except (json.JSONDecodeError, RecursionError) as error:
        raise RowError(f"{name}.json is not valid JSON ({error})") from error
    if isinstance(found, list):
        return {"conversations": found}
    if not isinstance(found, dict):
        raise RowError(f"{name}.json holds {shown(found)}, not an object")
    return found
