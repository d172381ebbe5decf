"""Pictures that people bring and take away: read safely, made square, marked with boxes, saved whole or not at all.

Public idea: ``read_image`` turns any file into a plain RGB picture or says in one line why it cannot.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import textwrap
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

MOST_PIXELS = 64_000_000
_EXACT_SIDE = 4096  # above this side a picture is shrunk before it is padded: a square of 20,000 px would be 1.2 GB
# Pillow also knows formats that start other programs (EPS) or are rarely meant as pictures; a user's file is never one.
_READABLE = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000", "ICO", "TGA")
WRITABLE = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".bmp": "BMP"}
TRACES = (".gif", ".png")
_MARKS = (
    (214, 39, 40),
    (31, 119, 180),
    (44, 160, 44),
    (148, 103, 189),
    (255, 127, 14),
    (23, 190, 207),
    (227, 119, 194),
)

PixelBox = tuple[float, float, float, float]


class ImageError(ValueError):
    """A picture cannot be read, used or named so. The message ends with ``; `` and a hint."""


# -- reading ----------------------------------------------------------------------------------------------------------


def read_image(source: str | os.PathLike[str] | bytes | Image.Image) -> Image.Image:
    """A file, its bytes, or a Pillow picture -> RGB, 8 bits, upright, transparency on white; of frames the first.

    ImageError where it is missing, no picture, cut off, empty, or above 64 million pixels (looked at before decoding).
    """
    name = "the picture" if isinstance(source, bytes | Image.Image) else str(source)
    with warnings.catch_warnings():
        # Pillow warns of odd metadata, which is nobody's business, and of 89 million pixels: an error here.
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        image = source if isinstance(source, Image.Image) else _open(source, name)
        return _plain(_upright(_decoded(image, name)), name)


def read_region(source: str | os.PathLike[str] | bytes | Image.Image) -> Image.Image:
    """A mask as people make them -> grey, white where something shall change: what is transparent, or where nothing is, what is bright.

    ImageError as of ``read_image``.
    """
    plain = read_image(source)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = source if isinstance(source, Image.Image) else _open(source, "the mask")
        if image.has_transparency_data:
            alpha = _upright(image.convert("RGBA")).getchannel("A")
            region = alpha.point(lambda a: 255 * (a < 128))
            if region.getbbox():
                return region
    return plain.convert("L")


def _decoded(image: Image.Image, name: str) -> Image.Image:
    width, height = image.size
    if width * height > MOST_PIXELS:
        raise ImageError(f"{name} has {width} x {height} pixels, more than {MOST_PIXELS:,}; shrink it first")
    if width < 1 or height < 1:
        raise ImageError(f"{name} has no pixels; give a picture of at least 1 x 1")
    try:
        image.load()
    except Exception as error:  # decoders raise whatever a broken file led them to
        raise ImageError(f"{name} cannot be decoded ({_short(error)}); if it is cut off, save it again") from error
    return image


def _open(source: str | os.PathLike[str] | bytes, name: str) -> Image.Image:
    if not isinstance(source, bytes):
        path = Path(source)
        if not path.exists():
            raise ImageError(f"there is no file {name}; check the path")
        if not path.is_file():
            raise ImageError(f"{name} is not a file; give the path of a picture")
    Image.init()
    known = [f for f in _READABLE if f in Image.OPEN]  # AVIF and WEBP are optional parts of Pillow
    try:
        return Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=known)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"{name} has more than {MOST_PIXELS:,} pixels; shrink it first") from error
    except PermissionError as error:
        raise ImageError(f"{name} may not be read; check its permissions") from error
    except Exception as error:  # see above
        raise ImageError(f"{name} is not a picture that can be read; wanted one of {', '.join(known)}") from error


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # a broken EXIF block is no reason to refuse a good picture
        return image


def _plain(image: Image.Image, name: str) -> Image.Image:
    """Any mode -> RGB. Pillow would clip 16-bit grey to white, so that is scaled here."""
    if image.mode == "F" or image.mode.startswith("I"):
        image = Image.fromarray(_eight_bits(np.asarray(image), image.mode))
    try:
        if not image.has_transparency_data:
            return image.convert("RGB")
        layer = image.convert("RGBA")
    except (ValueError, OSError) as error:
        raise ImageError(f"{name} has colours of kind {image.mode!r}, which are not known; save it as RGB") from error
    paper = Image.new("RGBA", layer.size, "white")
    paper.alpha_composite(layer)
    return paper.convert("RGB")


def _eight_bits(values: np.ndarray, mode: str) -> np.ndarray:
    """Grey of 16 bits, 32 bits or floats -> uint8. What white is follows from the mode, else from the largest value."""
    values = np.nan_to_num(values.astype(np.float64), posinf=0.0, neginf=0.0)
    most = float(values.max())
    white = 65535.0 if mode.startswith("I;16") or most > 255 else 255.0 if mode == "I" or most > 1 else 1.0
    return (np.clip(values / max(white, most), 0, 1) * 255 + 0.5).astype(np.uint8)


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:80] or type(error).__name__


# -- squares ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where a picture of ``width`` x ``height`` pixels lies in its centred square (spec 2.3)."""

    width: int
    height: int

    @property
    def side(self) -> int:
        """Pixels along the square's side, before it is resized."""
        return max(self.width, self.height)

    @property
    def offset(self) -> tuple[int, int]:
        """(left, top): padding in pixels."""
        return (self.side - self.width) // 2, (self.side - self.height) // 2

    def to_fractions(self, box: PixelBox) -> PixelBox:
        """(x1, y1, x2, y2) in pixels of the picture -> fractions of the square."""
        left, top = self.offset
        x1, y1, x2, y2 = box
        return ((x1 + left) / self.side, (y1 + top) / self.side, (x2 + left) / self.side, (y2 + top) / self.side)

    def to_pixels(self, box: PixelBox) -> PixelBox:
        """Fractions of the square -> pixels of the picture, cut at its edges (a box in the padding has no area)."""
        left, top = self.offset
        x1, y1, x2, y2 = (v * self.side for v in box)
        wide, high = float(self.width), float(self.height)
        return (_within(x1 - left, wide), _within(y1 - top, high), _within(x2 - left, wide), _within(y2 - top, high))


def _within(value: float, most: float) -> float:
    return min(max(value, 0.0), most)


def square(image: Image.Image, side: int, fill: tuple[int, int, int] = (0, 0, 0)) -> tuple[Image.Image, Placement]:
    """Pad an RGB picture to a centred square and resize that to ``side`` pixels (bicubic); and the way back.

    A picture that is already square and of this side comes back as it is.
    """
    if side < 1:
        raise ImageError(f"a square of side {side} cannot be made; give at least 1")
    placement = Placement(width=image.width, height=image.height)
    if image.size == (side, side):
        return image, placement
    limit = max(_EXACT_SIDE, side)
    if placement.side > limit:
        shrunk = (max(1, round(v * limit / placement.side)) for v in image.size)
        image = image.resize((next(shrunk), next(shrunk)), Image.Resampling.BICUBIC, reducing_gap=3.0)
    now = Placement(width=image.width, height=image.height)
    canvas = image
    if image.width != image.height:
        canvas = Image.new("RGB", (now.side, now.side), fill)
        canvas.paste(image, now.offset)
    return canvas.resize((side, side), Image.Resampling.BICUBIC), placement


# -- boxes ------------------------------------------------------------------------------------------------------------


def draw_boxes(image: Image.Image, boxes: Sequence[tuple[str, PixelBox]], *, least_side: int = 384) -> Image.Image:
    """A copy with (label, box in pixels) drawn on it; below ``least_side`` enlarged, so that labels can be read."""
    factor = max(1, -(-least_side // max(image.size)))
    canvas = image.convert("RGB").resize((image.width * factor, image.height * factor), Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(canvas)
    line = max(2, max(canvas.size) // 250)
    font = ImageFont.load_default(min(64, max(13, max(canvas.size) // 30)))
    shapes = [_on_canvas(box, factor, canvas.size) for _, box in boxes]
    taken: list[PixelBox] = []
    labels: list[tuple[str, PixelBox, tuple[int, int, int]]] = []
    for i, (text, _) in enumerate(boxes):
        colour = _MARKS[i % len(_MARKS)]
        pen.rectangle(shapes[i], outline=colour, width=line)
        if label := textwrap.shorten(text, 48, placeholder="…"):
            wide, high = pen.textbbox((0, 0), label, font=font)[2:]
            others = [s for j, s in enumerate(shapes) if j != i]
            taken.append(_label_place(shapes[i], (wide + 8, high + 6), canvas.size, taken, others))
            labels.append((label, taken[-1], colour))
    for label, place, colour in labels:  # last, so that no outline runs through a word
        pen.rectangle(place, fill=colour)
        pen.text((place[0] + 4, place[1] + 2), label, fill=_ink(colour), font=font)
    return canvas


def _on_canvas(box: PixelBox, factor: int, room: tuple[int, int]) -> PixelBox:
    x1, x2 = sorted(_within(v * factor, room[0] - 1) for v in (box[0], box[2]))
    y1, y2 = sorted(_within(v * factor, room[1] - 1) for v in (box[1], box[3]))
    return (x1, y1, x2, y2)


def _label_place(
    box: PixelBox,
    size: tuple[float, float],
    room: tuple[int, int],
    taken: Sequence[PixelBox],
    others: Sequence[PixelBox],
) -> PixelBox:
    """Above the box, else inside, else below: the first place that covers no other label and, if possible, no box."""
    (x1, y1, _, y2), (wide, high) = box, size
    left = _within(x1, max(0.0, room[0] - wide))
    tops = [y1 - high, y1, y2, y2 - high, *(y1 + n * high for n in range(1, 6))]
    places = [(left, t, left + wide, t + high) for t in tops if 0 <= t <= room[1] - high]
    free = [p for p in places if not any(_meet(p, t) for t in taken)]
    clear = [p for p in free if not any(_meet(p, o) for o in others)]
    return (clear or free or places or [(left, 0.0, left + wide, high)])[0]


def _meet(a: PixelBox, b: PixelBox) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _ink(paper: tuple[int, int, int]) -> str:
    return "black" if paper[0] * 0.299 + paper[1] * 0.587 + paper[2] * 0.114 > 140 else "white"


# -- saving -----------------------------------------------------------------------------------------------------------


def save_image(image: Image.Image, path: str | os.PathLike[str]) -> Path:
    """Write a picture whole or not at all; its folder is made. ImageError: unknown ending. OSError: full disk."""
    target = Path(path)
    kind = WRITABLE.get(target.suffix.lower())
    if kind is None:
        raise ImageError(f"{target} has no ending of a picture; use one of {', '.join(WRITABLE)}")
    shown = image.convert("RGB") if kind == "JPEG" else image
    return write_whole(target, lambda part: shown.save(part, kind))


def save_trace(frames: Sequence[Image.Image], path: str | os.PathLike[str]) -> Path:
    """The frames of a run as an animation (.gif) or side by side in rows of eight (.png, at most 24 of them)."""
    target = Path(path)
    if not frames:
        raise ImageError(f"there are no frames to save in {target}; ask for a trace")
    if target.suffix.lower() == ".gif":
        schedule = [80] * (len(frames) - 1) + [1500]  # milliseconds: the finished picture stays a while
        rest = [f.convert("RGB") for f in frames[1:]]
        first = frames[0].convert("RGB")
        return write_whole(
            target, lambda part: first.save(part, "GIF", save_all=True, append_images=rest, duration=schedule, loop=0)
        )
    if target.suffix.lower() not in TRACES:
        raise ImageError(f"a trace cannot be saved as {target}; use .gif (moving) or .png (a strip)")
    return save_image(strip(frames), target)


def strip(frames: Sequence[Image.Image], *, most: int = 24, columns: int = 8) -> Image.Image:
    """Frames side by side on white, evenly chosen where there are more than ``most``; first and last always shown."""
    shown = list(frames)
    if len(shown) > most:
        shown = [frames[round(i * (len(frames) - 1) / (most - 1))] for i in range(most)]
    wide, high = max(f.width for f in shown), max(f.height for f in shown)
    gap = max(1, wide // 32)
    rows = -(-len(shown) // columns)
    columns = min(columns, len(shown))
    sheet = Image.new("RGB", (columns * (wide + gap) - gap, rows * (high + gap) - gap), "white")
    for i, frame in enumerate(shown):
        sheet.paste(frame.convert("RGB"), (i % columns * (wide + gap), i // columns * (high + gap)))
    return sheet


def write_whole(target: Path, save: Callable[[Path], object]) -> Path:
    """Let ``save`` write beside the target, then put that in its place. OSError where that fails; nothing is left."""
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        save(part)
        os.replace(part, target)
    except OSError as error:
        reason = error.strerror or _short(error)
        hint = "free some space and run it again" if error.errno == errno.ENOSPC else "choose another place"
        raise OSError(f"could not write {target} ({reason.lower()}), nothing was changed; {hint}") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
    return target
