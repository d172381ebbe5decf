"""A row of any container -> a sample: which task its fields belong to, and checks of every field.

Public idea: ``Row.sample() -> Sample | Broken`` and ``Row.task() -> str``. docs/data.md lists the fields of each task.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

from unmask.data.regions import RowBoxes, box_units_of, phrases_of
from unmask.data.row_errors import RowError, printable, shown
from unmask.data.samples import (
    TASKS,
    Boxes,
    Broken,
    Caption,
    Critique,
    EditPair,
    FileBytes,
    HeldBytes,
    ImageRef,
    Sample,
    texts_of,
)
from unmask.data.talks import conversation, talk_task
from unmask.json_types import Json
from unmask.tokens.sources import ImageError

IMAGE = ("image", "file_name", "image_path", "picture", "img", "jpg", "png", "webp")
TEXT = ("text", "caption", "captions", "txt")
SOURCE = ("source", "source_image", "source_img", "input_image", "original_image")
TARGET = ("target", "target_image", "target_img", "edited_image", "output_image")
INSTRUCTION = ("instruction", "edit_prompt", "edit_instruction")
TALK = ("conversations", "messages", "turns")
BOXES = ("boxes", "bbox", "box")
KEYS = ("id", "key", "__key__", "question_id")
MOST_TEXT = 20_000  # characters of all texts of a row: about 5,000 tokens
_DATA_URL = re.compile(r"data:image/[\w.+-]+;base64,", re.IGNORECASE)


class PictureFinder(Protocol):
    """How a container's rows name their pictures."""

    def __call__(self, value: object) -> ImageRef: ...


@dataclass(frozen=True, kw_only=True)
class PicturesIn:
    """Pictures by path, relative to ``folder``, or to ``spare`` if it is not there. Absolute paths must lie in the folder.

    RowError for any other value.
    """

    folder: Path
    spare: Path | None = None

    def __call__(self, value: object) -> ImageRef:
        if isinstance(value, ImageRef):
            return value
        if isinstance(value, dict) and isinstance(value.get("bytes"), bytes):  # Hugging Face's Image
            return held(value["bytes"], str(value.get("path") or "the picture"))
        if isinstance(value, dict) and value.get("path"):
            value = value["path"]
        if isinstance(value, bytes):
            return held(value, "the picture")
        if not isinstance(value, str) or not value.strip():
            raise RowError(f"the picture is {shown(value)}, not a path")
        if match := _DATA_URL.match(value):
            return held(_decoded(value[match.end() :]), "the picture of the row")
        if re.match(r"https?://", value, re.IGNORECASE):
            raise RowError(
                f"the picture {shown(value)} is a web address; download it first, for example with img2dataset"
            )
        path = _inside(self.folder, value)
        if self.spare and not os.path.isabs(value) and not os.path.isfile(path):
            other = _inside(self.spare, value)
            path = other if os.path.isfile(other) else path
        return ImageRef(name=value, source=FileBytes(path=path))


def _inside(folder: Path, name: str) -> Path:
    if "\0" in name:
        raise RowError(f"the path {shown(name)} contains a NUL character")
    root = os.path.abspath(folder)
    path = os.path.normpath(os.path.join(root, name))
    if os.path.commonpath([root, path]) != root:
        raise RowError(f"the path {shown(name)} leads out of {folder}; name the folder of the pictures")
    return Path(path)


def held(content: bytes, name: str) -> ImageRef:
    """A picture whose bytes are in the row."""
    return ImageRef(name=name, source=HeldBytes(content=content))


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RowError(f"the data: URL of the picture is not base64 ({error})") from error


@dataclass(frozen=True, kw_only=True)
class Row:
    """The fields of one row. ``place``: where it is, for errors (``pets.jsonl, line 3``) · ``find``: opens its pictures."""

    key: str
    place: str
    fields: Json
    find: PictureFinder

    def task(self) -> str | None:
        """The task of the row's fields, without looking at their values; None if there is none or more than one."""
        try:
            return _task_of(self.fields)
        except RowError:
            return None

    def sample(self, units: RowBoxes | None = None, most_text: int = MOST_TEXT) -> Sample | Broken:
        """The sample, or why there is none. Pictures are not opened, except for the size of one whose boxes are in pixels."""
        try:
            made = _MAKERS[_task_of(self.fields)](self, units)
            _refuse_texts("".join(texts_of(made)), most_text)
            return made
        except (RowError, ImageError) as error:
            return Broken(key=self.key, reason=printable(f"{self.place}: {str(error).partition('; check')[0]}"))

    # -- fields ---------------------------------------------------------------------------------------------------

    def first(self, names: Sequence[str]) -> object:
        """The first of these fields that has a value; None if none has."""
        return next((self.fields[n] for n in names if _has(self.fields, n)), None)

    def text(self, names: Sequence[str], what: str) -> str:
        """A text; of a list of texts the first. RowError if it is missing, empty or no text."""
        found = self.first(names)
        if isinstance(found, list) and found:
            found = found[0]
        if found is None:
            raise RowError(f"the {what} is missing; it is called {names[0]!r}")
        if not isinstance(found, str):
            raise RowError(f"the {what} is {shown(found)}, not a text")
        if not found.strip():
            raise RowError(f"the {what} is empty")
        return found.strip()

    def image(self, names: Sequence[str], what: str = "picture") -> ImageRef:
        found = self.first(names)
        if found is None:
            raise RowError(f"the {what} is missing; it is called {names[0]!r}")
        return self.find(found)


def _refuse_texts(text: str, most: int) -> None:
    if len(text) > most:
        raise RowError(f"the text has {len(text):,} characters, more than {most:,}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RowError(f"the text contains {ascii(text[error.start])}, half of a character") from error


def key_in(fields: Json, otherwise: str) -> str:
    """The row's own key, or one made of its place."""
    found = next((fields[n] for n in KEYS if isinstance(fields.get(n), str | int) and str(fields[n]).strip()), None)
    return otherwise if found is None or isinstance(found, bool) else printable(str(found))


def _has(fields: Json, name: str) -> bool:
    return fields.get(name) is not None


def tasks_in(fields: Json) -> list[str]:
    """The tasks whose fields are there, in the order of ``TASKS``."""

    def any_of(names: Sequence[str]) -> bool:
        return any(_has(fields, n) for n in names)

    found = set()
    boxes, talk = any_of(BOXES), any_of(TALK)
    if any_of(IMAGE) and any_of(TEXT):
        found.add("caption")
    asked = (
        _has(fields, "question") and any_of(("answer", "answers")) and not boxes
    )  # RefCOCO's boxes have a question, too
    if talk or asked:
        found.add(talk_task(fields))
    if boxes:
        found.add("boxes")
    if any_of(SOURCE) and any_of(TARGET) and any_of(INSTRUCTION):
        found.add("edit")
    if _has(fields, "verdict") and _has(fields, "prompt"):
        found.add("critique")
    return [task for task in TASKS if task in found]


def _task_of(fields: Json) -> str:
    """RowError for an unknown task, for fields of no task, and for fields of several."""
    if (given := fields.get("task")) is not None:
        if not isinstance(given, str) or given not in TASKS:
            raise RowError(f"unknown task {shown(given)}; the tasks are {', '.join(TASKS)}")
        return given
    found = tasks_in(fields)
    if len(found) > 1:
        raise RowError(f"the fields belong to {' and '.join(found)}; name one in the field 'task'")
    if not found:
        named = [n for n in fields if _has(fields, n)]
        if any(n in named for n in IMAGE):
            raise RowError(f"the picture has no text; its fields are {', '.join(named[:8])}")
        if any(n in named for n in TEXT):
            raise RowError(f"the text has no picture; its fields are {', '.join(named[:8])}")
        raise RowError(f"the fields {', '.join(named[:8]) or '(none)'} belong to no task")
    return found[0]


# -- one function per task --------------------------------------------------------------------------------------------


def _caption(row: Row, units: RowBoxes | None) -> Sample:
    return Caption(key=row.key, image=row.image(IMAGE), text=row.text(TEXT, "text"))


def _boxes(row: Row, units: RowBoxes | None) -> Sample:
    image = row.image(IMAGE)
    return Boxes(key=row.key, image=image, phrases=phrases_of(row.fields, image, box_units_of(row.fields) or units))


def _edit(row: Row, units: RowBoxes | None) -> Sample:
    return EditPair(
        key=row.key,
        source=row.image(SOURCE, "source picture"),
        target=row.image(TARGET, "target picture"),
        instruction=row.text(INSTRUCTION, "instruction"),
    )


def _critique(row: Row, units: RowBoxes | None) -> Sample:
    return Critique(
        key=row.key,
        image=row.image(IMAGE),
        prompt=row.text(("prompt",), "prompt"),
        verdict=row.text(("verdict",), "verdict"),
    )


def _talk(row: Row, units: RowBoxes | None) -> Sample:
    return conversation(row.key, row.fields, row.find)


_MAKERS = {
    "caption": _caption,
    "chat": _talk,
    "boxes": _boxes,
    "edit": _edit,
    "critique": _critique,
    "interleaved": _talk,
}


def safe_name(name: str) -> bool:
    """Whether a name in an archive stays inside the folder it would be unpacked in."""
    path = PurePosixPath(name)
    return not (
        path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name or re.match(r"[A-Za-z]:", name)
    )
