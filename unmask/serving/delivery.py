"""How the pictures of a request are returned: their size, their file format, as base64 or as a URL.

Public idea: ``Delivery.of(body, parts, link)``, whose ``picture``, ``answer`` and ``completed`` are OpenAI's JSON values.
"""

from __future__ import annotations

import base64
import functools
import io
import math
import operator
import time
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from unmask.json_types import Json
from unmask.serving.picture_urls import Link
from unmask.serving.schema import SIZES, Planned, Streamed
from unmask.serving.unknown_fields import ignored_warning
from unmask.serving.usage import Usage
from unmask.tasks.parts import Parts
from unmask.tasks.results import Drawing, labels

MOST_PIXELS = 4096**2  # of all images of a request
_COMPRESSION = 90  # of jpeg and webp, unless the request says something else
_ONE_QUALITY = "quality: this model has one quality, so it was ignored; steps sets the number of sampling steps"
_NO_STYLE = "style: this model has no styles, so it was ignored; describe the style in the prompt"
_NO_FIDELITY = "input_fidelity: this model has one way of reading pictures, so it was ignored"
_LOSSLESS = "output_compression: png is lossless, so it was ignored; use jpeg or webp"


def refuse_size(body: Streamed, parts: Parts) -> None:
    """ValueError for a size that is not square where the model draws squares alone."""
    width, height = body.pixels or (parts.side, parts.side)
    if width != height and parts.rows.drawn_size(parts, (width, height)) is None:
        raise ValueError(f"size: {body.size} is not possible, because this server generates square images; {SIZES}")


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """``wanted``: width and height in pixels of the pictures that are returned; None: as the model draws them · ``file``: png, jpeg or
    webp · ``compression``: quality of jpeg and webp, 0 to 100 · ``link``: makes URLs; None: base64 · ``warnings``: about the request's
    fields.
    """

    wanted: tuple[int, int] | None
    file: str = "png"
    compression: int = _COMPRESSION
    link: Link | None = None
    warnings: tuple[str, ...] = ()

    @classmethod
    def of(cls, body: Streamed, parts: Parts, link: Link, ignored: Sequence[str] = ()) -> Delivery:
        """``ignored``: names of unknown fields. ValueError for more pixels in all than ``MOST_PIXELS``, and for a size that is not square
        where the model draws squares alone.
        """
        width, height = body.pixels or (parts.side, parts.side)
        if body.n * width * height > max(MOST_PIXELS, body.n * parts.side**2):
            most = math.isqrt(MOST_PIXELS // body.n)
            raise ValueError(
                f"size: {body.n} images of {width}x{height} are too many pixels; use at most {most}x{most} for {body.n}"
            )
        refuse_size(body, parts)
        return cls(
            wanted=body.pixels,
            file=body.output_format,
            compression=_COMPRESSION if body.output_compression is None else body.output_compression,
            link=link if body.response_format == "url" else None,
            warnings=(*_warnings(body), *ignored_warning(ignored)),
        )

    def size(self, image: Image.Image) -> str:
        """The size in which a picture is returned."""
        width, height = self.wanted or image.size
        return f"{width}x{height}"

    def about(self, image: Image.Image) -> Json:
        """What events say about a picture."""
        return {
            **{"created_at": int(time.time()), "output_format": self.file, "size": self.size(image)},
            **{"quality": "auto", "background": "opaque"},
        }

    def to_bytes(self, image: Image.Image) -> bytes:
        """The file of a picture in the size that the request wants."""
        if self.wanted is None or image.size == self.wanted:
            return file_of(image, self.file, self.compression)
        resized = image.convert("RGB").resize(self.wanted, Image.Resampling.LANCZOS)
        return file_of(resized, self.file, self.compression, effort=1)

    def encoded(self, image: Image.Image) -> str:
        """``to_bytes`` in base64."""
        return base64.b64encode(self.to_bytes(image)).decode("ascii")

    def details(self, drawn: Drawing) -> Json:
        """How a picture was made. Attempts are returned in the size in which they were drawn."""
        return {
            "seed": drawn.seed,
            "seconds": round(drawn.seconds, 4),
            "plan": drawn.plan.to_json() if drawn.plan else None,
            "rounds": [{**r.to_json(), "b64_json": encoded(r.image, self.file)} for r in drawn.attempts],
            "settings": drawn.settings,
            "warnings": [*drawn.warnings, *self._resized(drawn.image), *self.warnings],
            **labels(drawn.approximate),
        }

    def _resized(self, image: Image.Image) -> list[str]:
        """The warning of a picture that is returned in another size."""
        if self.size(image) == "{}x{}".format(*image.size):
            return []
        width, height = image.size
        return [f"size: drawn at {width}x{height}, the size of this model, and resized to {self.size(image)}"]

    def picture(self, drawn: Drawing) -> Json:
        """An entry of ``data``."""
        data = self.to_bytes(drawn.image)
        if self.link:
            return {"url": self.link(data, self.file), "unmask": self.details(drawn)}
        return {"b64_json": base64.b64encode(data).decode("ascii"), "unmask": self.details(drawn)}

    def answer(self, drawn: Sequence[Drawing], usage: Sequence[Usage]) -> Json:
        """The whole answer of a request without a stream."""
        return {
            "created": int(time.time()),
            "data": [self.picture(one) for one in drawn],
            **{"background": "opaque", "output_format": self.file, "size": self.size(drawn[0].image)},
            "usage": functools.reduce(operator.add, usage, Usage()).to_json(),
        }

    def completed(self, drawn: Drawing, kind: str, number: int, usage: Usage) -> Json:
        """The event that ends a picture: always in base64, as clients expect of a stream, and with a URL if the request wants one."""
        data = self.to_bytes(drawn.image)
        return {
            "type": f"{kind}.completed",
            "b64_json": base64.b64encode(data).decode("ascii"),
            **({"url": self.link(data, self.file)} if self.link else {}),
            **self.about(drawn.image),
            "usage": usage.to_json(),
            "unmask": {"picture": number, **self.details(drawn)},
        }


def _warnings(body: Streamed) -> list[str]:
    found = []
    changed = [b.phrase for b in (body.boxes or ()) if b.corners != b.box] if isinstance(body, Planned) else []
    if changed:
        found.append(f"boxes: wanted x1 < x2 and y1 < y2, so the corners of {len(changed)} boxes were changed")
    if body.quality not in ("auto", "standard"):
        found.append(_ONE_QUALITY)
    if body.style is not None:
        found.append(_NO_STYLE)
    if body.input_fidelity == "high":
        found.append(_NO_FIDELITY)
    if body.output_format == "png" and body.output_compression not in (None, 100):
        found.append(_LOSSLESS)
    return found


def file_of(image: Image.Image, file: str, compression: int = _COMPRESSION, *, effort: int = 6) -> bytes:
    """A picture as a png, jpeg or webp file. ``compression``: quality of jpeg and webp, 0 to 100 · ``effort``: of png's compression, 0 to 9
    (for noise of 4096 x 4096 pixels, 6 takes 10 s and 1 takes 2).
    """
    buffer = io.BytesIO()
    options = {"compress_level": effort} if file == "png" else {"quality": max(1, compression)}
    image.convert("RGB").save(buffer, file.upper(), **options)
    return buffer.getvalue()


def encoded(image: Image.Image, file: str) -> str:
    """A picture in its own size as a file in base64."""
    return base64.b64encode(file_of(image, file)).decode("ascii")
