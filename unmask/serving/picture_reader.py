"""Pictures that clients send are decoded within a budget of memory, and kept no larger than the model needs.

Public idea: ``PictureReader().read(data) -> Received``. A file of a few kilobytes may hold 64 million pixels, and every call reads its
pictures in its own thread: without a budget, forty such files take tens of gigabytes.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from PIL import Image

from unmask.tokens.pictures import ImageError, read_image, read_region, reduced
from unmask.tokens.sources import MOST_PIXELS, size_of

MIB = 2**20
DECODE_BYTES = 576 * MIB
# Peak bytes per pixel of decoding, converting to RGB and reducing, measured at 64 million pixels (docs/operate.md has the table).
_PER_PIXEL = {"PNG": 9, "JPEG": 9, "GIF": 9, "BMP": 9, "AVIF": 11, "WEBP": 17, "JPEG2000": 20}
_OTHERS = 12


class DecodingBudget:
    """Bytes that decoders may use at the same time. Safe in any thread."""

    def __init__(self, most_bytes: int = DECODE_BYTES) -> None:
        self.most_bytes, self._used = most_bytes, 0
        self._freed = threading.Condition()

    @contextmanager
    def reserved(self, wanted: int) -> Iterator[None]:
        """Wait until ``wanted`` bytes, at most ``most_bytes``, are free, and hold them."""
        with self._freed:
            self._freed.wait_for(lambda: self._used + wanted <= self.most_bytes)
            self._used += wanted
        try:
            yield
        finally:
            with self._freed:
                self._used -= wanted
                self._freed.notify_all()


@dataclass(frozen=True, kw_only=True)
class Received:
    """A picture of a client in RGB, reduced if it was large; ``size``: (width, height) as it was sent."""

    image: Image.Image
    size: tuple[int, int]


class PictureReader:
    """``most_pixels``: larger pictures are refused before they are decoded, and so are those that need more than the whole ``budget``,
    which all threads share: 17 million bytes for a million pixels of WebP, 9 for PNG and JPEG.
    """

    def __init__(self, *, most_pixels: int = MOST_PIXELS, budget: DecodingBudget | None = None) -> None:
        self.most_pixels, self.budget = most_pixels, budget or DecodingBudget()

    def read(self, data: bytes) -> Received:
        """The picture of a file. ImageError as of ``tokens.pictures.read_image``, and for one of more than ``most_pixels``."""
        with self._decoding(data):
            image = read_image(data)
            return Received(image=reduced(image), size=image.size)

    def region(self, data: bytes) -> Received:
        """The region of a mask file (``tokens.pictures.read_region``), reduced like its picture."""
        with self._decoding(data):
            region = read_region(data)
            return Received(image=reduced(region), size=region.size)

    def thumbnail(self, data: bytes, side: int) -> Image.Image:
        """The picture of a file, at most ``side`` pixels on the longer side."""
        with self._decoding(data):
            small = read_image(data)
            small.thumbnail((side, side))
            return small

    @contextmanager
    def _decoding(self, data: bytes) -> Iterator[None]:
        width, height, kind = size_of(data)
        each = _PER_PIXEL.get(kind, _OTHERS)
        most = min(self.most_pixels, self.budget.most_bytes // each)
        if width * height > most:
            raise ImageError(
                f"the image has {width} x {height} pixels, more than the {most:,} that this server decodes of {kind or 'its'} files; "
                "scale it down first"
            )
        with self.budget.reserved(width * height * each):
            yield


READER = PictureReader()
"""With the default limits, for callers outside a server."""
