"""Samples of a user's own data: one value per task, with pictures that are opened when they are used.

Public idea: ``Sample`` is a Caption, Chat, Boxes, EditPair, Critique or Interleaved. ``opened(sample)`` decodes its pictures. A row that
cannot be used is a ``Broken`` with the reason; ``BrokenRows`` counts them and stops a run that has too many.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from PIL import ExifTags, Image

from unmask.tokens.boxes import FractionBox
from unmask.tokens.pictures import read_image
from unmask.tokens.sources import ImageError

_SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that exchange width and height


class DataError(ValueError):
    """Data cannot be opened, or too much of it is broken. The message ends with ``; `` and a hint."""


class PackageMissing(DataError):
    """A format needs a package that is not installed; the message says which."""


# -- pictures ---------------------------------------------------------------------------------------------------------


class ByteSource(Protocol):
    """Where the bytes of a picture are. ``read`` raises OSError, or ImageError for a path that is not allowed."""

    def read(self) -> bytes: ...


@dataclass(frozen=True, kw_only=True)
class FileBytes:
    """A whole file."""

    path: Path

    def read(self) -> bytes:
        return self.path.read_bytes()


@dataclass(frozen=True, kw_only=True)
class FilePart:
    """``size`` bytes of a file from ``start`` on: a member of a tar."""

    path: Path
    start: int
    size: int

    def read(self) -> bytes:
        with self.path.open("rb") as file:
            file.seek(self.start)
            return file.read(self.size)


@dataclass(frozen=True, kw_only=True)
class HeldBytes:
    """Bytes in memory."""

    content: bytes

    def read(self) -> bytes:
        return self.content


@dataclass(frozen=True, kw_only=True)
class ImageRef:
    """A picture that is not opened yet. ``name``: its path or place, for errors."""

    name: str
    source: ByteSource

    def read(self) -> bytes:
        """The bytes of the file. ImageError if it is missing or empty."""
        try:
            found = self.source.read()
        except OSError as error:
            raise ImageError(f"{self.name}: {(error.strerror or str(error)).lower()}; check the path") from error
        except ValueError as error:  # a name that no file can have
            raise ImageError(f"{ascii(self.name)} is not a file name; check the path") from error
        if not found:
            raise ImageError(f"{self.name} is empty; save it again")
        return found

    def open(self) -> Image.Image:
        """The decoded picture in RGB, as of ``read_image``. ImageError if it is missing, truncated or not a picture."""
        try:
            return read_image(self.read())
        except ImageError as error:
            raise _named(error, self.name) from error

    def size(self) -> tuple[int, int]:
        """(width, height) in pixels as ``open`` would give them, from the header where Pillow reads it. ImageError as of ``open``."""
        content = self.read()
        try:
            with Image.open(io.BytesIO(content)) as image:
                wide, high = image.size
                turned = image.getexif().get(ExifTags.Base.Orientation, 1) in _SIDEWAYS
        except Exception:  # a format such as HEIC, or a damaged header: ``open`` finds out
            return self.open().size
        return (high, wide) if turned else (wide, high)

    def fingerprint(self) -> str:
        """SHA-256 of the bytes, 32 hexadecimal digits. ImageError as of ``read``."""
        return hashlib.sha256(self.read()).hexdigest()[:32]


def _named(error: ImageError, name: str) -> ImageError:
    said = str(error)
    return ImageError(said.replace("the image", name, 1) if "the image" in said else f"{name}: {said}")


# -- samples ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Caption:
    """A picture and a text that describes it. Task ``caption``: text -> picture, and picture -> text."""

    key: str
    image: ImageRef
    text: str


@dataclass(frozen=True, kw_only=True)
class Said:
    """A message. ``role``: system, user or assistant."""

    role: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Chat:
    """A conversation about ``images`` (none: text only), which precede the first message. Task ``chat``."""

    key: str
    images: tuple[ImageRef, ...]
    turns: tuple[Said, ...]


@dataclass(frozen=True, kw_only=True)
class Boxes:
    """Phrases, each with the box (x1, y1, x2, y2) of its object, in fractions of the picture's width and height. Task ``boxes``."""

    key: str
    image: ImageRef
    phrases: tuple[tuple[str, FractionBox], ...]


@dataclass(frozen=True, kw_only=True)
class EditPair:
    """``instruction`` turns ``source`` into ``target``. Task ``edit``."""

    key: str
    source: ImageRef
    target: ImageRef
    instruction: str


@dataclass(frozen=True, kw_only=True)
class Critique:
    """``verdict`` says how well ``image`` fits ``prompt``. Task ``critique``."""

    key: str
    image: ImageRef
    prompt: str
    verdict: str


@dataclass(frozen=True, kw_only=True)
class MixedTurn:
    """A message of texts and pictures in order. ``role`` as in ``Said``."""

    role: str
    parts: tuple[str | ImageRef, ...]


@dataclass(frozen=True, kw_only=True)
class Interleaved:
    """A conversation with pictures anywhere, also in answers. Task ``interleaved``."""

    key: str
    turns: tuple[MixedTurn, ...]


@dataclass(frozen=True, kw_only=True)
class Broken:
    """A row that cannot be used. ``reason``: one line, which names the file and the row."""

    key: str
    reason: str


Sample = Caption | Chat | Boxes | EditPair | Critique | Interleaved
TASKS: dict[str, type[Sample]] = {
    "caption": Caption,
    "chat": Chat,
    "boxes": Boxes,
    "edit": EditPair,
    "critique": Critique,
    "interleaved": Interleaved,
}


def task_of(sample: Sample) -> str:
    """The name of a sample's task in ``TASKS``."""
    return next(name for name, kind in TASKS.items() if isinstance(sample, kind))


def pictures_of(sample: Sample) -> tuple[ImageRef, ...]:
    """All pictures of a sample, in order."""
    if isinstance(sample, Chat):
        return sample.images
    if isinstance(sample, EditPair):
        return (sample.source, sample.target)
    if isinstance(sample, Interleaved):
        return tuple(part for turn in sample.turns for part in turn.parts if isinstance(part, ImageRef))
    return (sample.image,)


def texts_of(sample: Sample) -> tuple[str, ...]:
    """All texts of a sample, in order."""
    if isinstance(sample, Caption):
        return (sample.text,)
    if isinstance(sample, Chat):
        return tuple(turn.text for turn in sample.turns)
    if isinstance(sample, Boxes):
        return tuple(phrase for phrase, _ in sample.phrases)
    if isinstance(sample, EditPair):
        return (sample.instruction,)
    if isinstance(sample, Critique):
        return (sample.prompt, sample.verdict)
    return tuple(part for turn in sample.turns for part in turn.parts if isinstance(part, str))


def opened(sample: Sample) -> tuple[Image.Image, ...] | Broken:
    """The decoded pictures of a sample in the order of ``pictures_of``, or why one cannot be read."""
    try:
        return tuple(ref.open() for ref in pictures_of(sample))
    except ImageError as error:
        return Broken(key=sample.key, reason=str(error).partition("; ")[0])


# -- too many broken rows ---------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class BrokenRows:
    """The broken rows of ``total`` rows; more than the share ``most`` of them is an error.

    A row counts once, however often it comes up, so that the result does not depend on the order or on the number of epochs.
    """

    total: int
    most: float = 0.05
    rows: dict[tuple[str, str], Broken] = field(default_factory=dict)

    def add(self, broken: Broken) -> None:
        """Count a broken row. DataError as soon as there are too many, with the first three and the share."""
        # Keys of several data sets may be equal, and several rows may name the same broken picture.
        self.rows.setdefault((broken.key, broken.reason), broken)
        if len(self.rows) > self.most * self.total:
            self.refuse()

    @property
    def share(self) -> float:
        """Broken rows as a share of all."""
        return len(self.rows) / max(1, self.total)

    def refuse(self) -> None:
        """Raise the DataError of ``add``."""
        first = ", ".join(b.reason for b in list(self.rows.values())[:3])
        raise DataError(
            f"{len(self.rows)} of {self.total} rows are broken ({self.share:.1%}, at most {self.most:.1%} may be): {first}; "
            "run `unmask data check` for the whole list, or allow a larger share"
        )
