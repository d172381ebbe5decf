"""Read, pad, annotate and save images.

Public idea: ``read_image`` converts any supported picture to RGB, or raises ImageError with a one-line reason; writes are atomic.
"""

from __future__ import annotations

import contextlib
import errno
import os
import textwrap
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import ExifTags, Image, ImageDraw, ImageFont, ImageOps

from unmask import writing
from unmask.tokens.colours import to_srgb
from unmask.tokens.sources import ImageError, Picture, open_picture, short

EXACT_SIDE = 1536  # larger images are scaled down first: models see 128 to 1,152 pixels, and a padded square of 20,000 would take 1.2 GB
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


# -- reading ----------------------------------------------------------------------------------------------------------


def read_image(source: Picture) -> Image.Image:
    """Any picture -> RGB in sRGB, 8 bits, EXIF orientation applied, transparency on white, first frame.

    ``source``: a path (also a string), the bytes of a file, a file open in binary mode, a Pillow image of any mode, or a numpy array
    [H, W], [H, W, 1], [H, W, 3] or [H, W, 4] of uint8, bool, or floats from 0 to 1. A colour profile (ICC) is applied; one that is broken
    is ignored. HEIC needs ``pip install 'unmask[heif]'``. ImageError if it is missing, not an image, truncated, empty, or above 64 million
    pixels (checked before decoding).
    """
    with _strict():
        image, name = open_picture(source)
        return to_srgb(_upright(image), name)


def read_region(source: Picture) -> Image.Image:
    """A mask -> greyscale, white where the image is regenerated: its transparent pixels or, if there are none, its bright ones.

    ``source`` and ImageError as of ``read_image``.
    """
    with _strict():
        image, name = open_picture(source)
        image = _upright(image)
        if image.has_transparency_data:
            alpha = image.convert("RGBA").getchannel("A")
            region = alpha.point(lambda a: 255 * (a < 128))
            if region.getbbox():
                return region
        return to_srgb(image, name).convert("L")


@contextlib.contextmanager
def _strict() -> Iterator[None]:
    """Pillow warns about unusual metadata (ignored) and about 89 million pixels (an error here)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def _upright(image: Image.Image) -> Image.Image:
    """The image turned by its EXIF orientation; the image itself if there is nothing to turn."""
    try:
        if image.getexif().get(ExifTags.Base.Orientation, 1) == 1:
            return image
        return ImageOps.exif_transpose(image)
    except Exception:  # ignore a broken EXIF block
        return image


# -- squares ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Position of an image of ``width`` x ``height`` pixels in its padded square (spec 2.3)."""

    width: int
    height: int

    @property
    def side(self) -> int:
        """Side of the square in pixels, before resizing."""
        return max(self.width, self.height)

    @property
    def offset(self) -> tuple[int, int]:
        """(left, top): padding in pixels."""
        return (self.side - self.width) // 2, (self.side - self.height) // 2

    def to_fractions(self, box: PixelBox) -> PixelBox:
        """(x1, y1, x2, y2) in pixels of the image -> fractions of the square."""
        left, top = self.offset
        x1, y1, x2, y2 = box
        return ((x1 + left) / self.side, (y1 + top) / self.side, (x2 + left) / self.side, (y2 + top) / self.side)

    def to_pixels(self, box: PixelBox) -> PixelBox:
        """Fractions of the square -> pixels of the image, clipped to it (a box inside the padding has no area)."""
        left, top = self.offset
        x1, y1, x2, y2 = (v * self.side for v in box)
        wide, high = float(self.width), float(self.height)
        return (_within(x1 - left, wide), _within(y1 - top, high), _within(x2 - left, wide), _within(y2 - top, high))


def _within(value: float, most: float) -> float:
    return min(max(value, 0.0), most)


def square(image: Image.Image, side: int, fill: tuple[int, int, int] = (0, 0, 0)) -> tuple[Image.Image, Placement]:
    """Pad an RGB image to a centred square and resize it to ``side`` pixels (bicubic); also returns the placement for mapping boxes back.

    An image that already has this size is returned unchanged.
    """
    if side < 1:
        raise ImageError(f"the side of the square is {side}; give at least 1")
    placement = Placement(width=image.width, height=image.height)
    if image.size == (side, side):
        return image, placement
    image = reduced(image, max(EXACT_SIDE, side))
    now = Placement(width=image.width, height=image.height)
    canvas = image
    if image.width != image.height:
        canvas = Image.new("RGB", (now.side, now.side), fill)
        canvas.paste(image, now.offset)
    return canvas.resize((side, side), Image.Resampling.BICUBIC), placement


def reduced(image: Image.Image, side: int = EXACT_SIDE) -> Image.Image:
    """The image scaled to ``side`` pixels on its longer side (bicubic); itself where it is not larger."""
    longer = max(image.size)
    if longer <= side:
        return image
    width, height = (max(1, round(v * side / longer)) for v in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3.0)


# -- boxes ------------------------------------------------------------------------------------------------------------


def draw_boxes(image: Image.Image, boxes: Sequence[tuple[str, PixelBox]], *, least_side: int = 384) -> Image.Image:
    """A copy with labelled boxes (in pixels); images below ``least_side`` are enlarged, so that labels are readable."""
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
    for label, place, colour in labels:  # last, so that no outline crosses a label
        pen.rectangle(place, fill=colour)
        pen.text((place[0] + 4, place[1] + 2), label, fill=_ink(colour), font=font)
    return canvas


def _on_canvas(box: PixelBox, factor: int, canvas: tuple[int, int]) -> PixelBox:
    x1, x2 = sorted(_within(v * factor, canvas[0] - 1) for v in (box[0], box[2]))
    y1, y2 = sorted(_within(v * factor, canvas[1] - 1) for v in (box[1], box[3]))
    return (x1, y1, x2, y2)


def _label_place(
    box: PixelBox,
    size: tuple[float, float],
    canvas: tuple[int, int],
    taken: Sequence[PixelBox],
    others: Sequence[PixelBox],
) -> PixelBox:
    """Above the box, else inside, else below: the first position that covers no other label and, if possible, no box."""
    (x1, y1, _, y2), (wide, high) = box, size
    left = _within(x1, max(0.0, canvas[0] - wide))
    tops = [y1 - high, y1, y2, y2 - high, *(y1 + n * high for n in range(1, 6))]
    places = [(left, t, left + wide, t + high) for t in tops if 0 <= t <= canvas[1] - high]
    free = [p for p in places if not any(_meet(p, t) for t in taken)]
    clear = [p for p in free if not any(_meet(p, o) for o in others)]
    return (clear or free or places or [(left, 0.0, left + wide, high)])[0]


def _meet(a: PixelBox, b: PixelBox) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _ink(paper: tuple[int, int, int]) -> str:
    return "black" if paper[0] * 0.299 + paper[1] * 0.587 + paper[2] * 0.114 > 140 else "white"


# -- saving -----------------------------------------------------------------------------------------------------------


def save_image(image: Image.Image, path: str | os.PathLike[str]) -> Path:
    """Write an image atomically and create its folder. ImageError: unknown file extension. OSError: full disk."""
    target = Path(path)
    kind = WRITABLE.get(target.suffix.lower())
    if kind is None:
        raise ImageError(f"{target} has no image file extension; use one of {', '.join(WRITABLE)}")
    shown = image.convert("RGB") if kind == "JPEG" else image
    return write_whole(target, lambda part: shown.save(part, kind))


def save_trace(frames: Sequence[Image.Image], path: str | os.PathLike[str]) -> Path:
    """Save the frames of a run as an animation (.gif) or as a grid of eight columns (.png, at most 24 frames)."""
    target = Path(path)
    if not frames:
        raise ImageError(f"no frames to save in {target}; run with trace=True")
    if target.suffix.lower() == ".gif":
        durations = [80] * (len(frames) - 1) + [1500]  # milliseconds; the last frame is shown longer
        rest = [f.convert("RGB") for f in frames[1:]]
        first = frames[0].convert("RGB")
        return write_whole(
            target, lambda part: first.save(part, "GIF", save_all=True, append_images=rest, duration=durations, loop=0)
        )
    if target.suffix.lower() not in TRACES:
        raise ImageError(f"a trace cannot be saved as {target}; use .gif (animation) or .png (grid)")
    return save_image(strip(frames), target)


def strip(frames: Sequence[Image.Image], *, most: int = 24, columns: int = 8) -> Image.Image:
    """Frames in a grid on white; at most ``most``, evenly spaced, including the first and the last."""
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
    """``writing.write_whole``, which creates the folder. OSError says what to do; nothing is changed, and no temporary file is left."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        writing.write_whole(target, save)
    except OSError as error:
        reason = error.strerror or short(error)
        hint = "free some space and run it again" if error.errno == errno.ENOSPC else "choose another place"
        raise OSError(f"could not write {target} ({reason.lower()}), nothing was changed; {hint}") from error
    return target
