"""Pictures by name, for callers that pass words and no pictures. Public idea: ``Shelf.open("picture-1")`` opens what ``keep`` put there."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from unmask.tokens.pictures import ImageError, read_image


@dataclass(frozen=True, kw_only=True)
class Shelf:
    """The last ``most`` pictures. ``folder``: pictures in it can be opened by their path; None: no files can."""

    folder: Path | None = None
    most: int = 64
    kept: dict[str, Image.Image] = field(default_factory=dict)
    numbers: list[int] = field(default_factory=lambda: [0])

    def keep(self, image: Image.Image) -> str:
        """Keep a picture, in place of the oldest where there is no room; its name."""
        self.numbers[0] += 1
        name = f"picture-{self.numbers[0]}"
        self.kept[name] = image
        for oldest in list(self.kept)[: -self.most]:
            del self.kept[oldest]
        return name

    def open(self, source: str) -> Image.Image:
        """A picture by its name, as a data URL, or by its path in ``folder``. ImageError for anything else."""
        if source in self.kept:
            return self.kept[source]
        if source.startswith("data:"):
            return read_image(_decoded(source))
        if self.folder is None:
            raise ImageError(f"{source!r} is not the name of a picture; {self._known()}, or a data URL")
        path = (self.folder / source).resolve()
        if not path.is_relative_to(self.folder.resolve()):
            raise ImageError(f"{source!r} is not in the folder {self.folder}; use a picture in it")
        if not path.is_file():
            raise ImageError(f"{source!r} is neither a picture by name nor a file in {self.folder}; {self._known()}")
        return read_image(path)

    def _known(self) -> str:
        return f"use one of {', '.join(list(self.kept)[-5:])}" if self.kept else "draw one first"


def _decoded(url: str) -> bytes:
    """The bytes of a data URL in base64."""
    head, comma, data = url.partition(",")
    try:
        if not (comma and head.endswith(";base64")):
            raise ValueError
        return base64.b64decode(data, validate=True)
    except (ValueError, binascii.Error):
        raise ImageError("the data URL is not valid base64; use data:image/png;base64,DATA") from None
