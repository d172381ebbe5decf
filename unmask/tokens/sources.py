"""Open a picture from whatever holds it: a path, bytes, an open binary file, a numpy array or a Pillow image.

Public idea: ``open_picture(source) -> (image, name)``, decoded but still in its own colours, or ImageError with a one-line reason.
"""

from __future__ import annotations

import importlib.util
import io
import os
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from PIL import Image

MOST_PIXELS = 64_000_000
MOST_SIDE = 65_535  # pixels, as in JPEG; Pillow keeps a pointer for every row, so 1 x 64,000,000 pixels would take 0.5 GB more a copy
# Pillow supports more formats; some start external programs (EPS), others are not meant for photos or drawings.
_READABLE = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000", "ICO", "TGA")
_HEIC = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"})
_AVIF = frozenset({b"avif", b"avis"})
_PNG = b"\x89PNG\r\n\x1a\n"
_HEAD = 64  # bytes that hold the brands of a HEIC or AVIF file

Picture = Image.Image | str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | np.ndarray
"""What ``read_image`` reads. Strings are paths; arrays have the shapes and types of ``read_image``."""


class ImageError(ValueError):
    """An image cannot be read, used or saved. The message ends with ``; `` and a hint."""


def open_picture(source: Picture) -> tuple[Image.Image, str]:
    """A decoded Pillow image of any mode and its name in messages. Raises ImageError; see ``pictures.read_image``."""
    if isinstance(source, Image.Image):
        return _decoded(source, "the image"), "the image"
    if isinstance(source, np.ndarray):
        return _from_array(source), "the array"
    if isinstance(source, bytes | bytearray | memoryview):
        return _from_file(io.BytesIO(source), "the image"), "the image"
    if isinstance(source, str | os.PathLike):
        path = _existing(os.fsdecode(source))
        return _from_file(path, str(path)), str(path)
    if callable(getattr(source, "read", None)):
        data, name = _read(cast("BinaryIO", source))
        return _from_file(io.BytesIO(data), name), name
    raise ImageError(_refusal(source))


def size_of(data: bytes) -> tuple[int, int, str]:
    """(width, height, format) of a file that is not decoded. ImageError if it is not a picture."""
    image = _opened(io.BytesIO(data), "the image")
    return (*image.size, image.format or "")


def _refusal(source: object) -> str:
    kinds = "a path, bytes, an open binary file, a Pillow image or a numpy array"
    if type(source).__module__.partition(".")[0] == "torch":
        return (
            "got a torch tensor, not a picture; pass tensor.permute(1, 2, 0).cpu().numpy() for one of shape [3, H, W]"
        )
    if isinstance(source, list | tuple | set | frozenset | dict):
        return f"got a {type(source).__name__}; pass one picture: {kinds}"
    what = "None" if source is None else f"a value of type {type(source).__name__}"
    return f"got {what}; pass a picture: {kinds}"


# -- files ------------------------------------------------------------------------------------------------------------


def _existing(text: str) -> Path:
    """The path of a file. Strings are never URLs, so that a path and an address cannot be confused."""
    shown = text if len(text) <= 200 else f"{text[:80]}..."
    try:
        path = Path(text)
        if text and path.is_file():
            return path
        there = bool(text) and path.exists()
    except (OSError, ValueError):  # a name that is too long, or that contains a NUL
        there = False
    if there:
        raise ImageError(f"{shown} is not a file; give the path of an image")
    if text[:5].lower() == "data:":
        raise ImageError("a data: URL is not a path; decode it with base64.b64decode and pass the bytes")
    if text[:8].lower().startswith(("http://", "https://")):
        raise ImageError(f"{shown} is a web address, not a path; download it and pass the file or its bytes")
    raise ImageError(f"there is no file {shown}; check the path" if text else "the path is empty; give one")


def _read(file: BinaryIO) -> tuple[bytes, str]:
    """All bytes of an open file, from its beginning if it can seek, and its name."""
    own = getattr(file, "name", None)
    name = own if isinstance(own, str) and own else "the file"
    try:
        if callable(getattr(file, "seekable", None)) and file.seekable():
            file.seek(0)  # so that one open file can be passed twice
        data: Any = file.read()
    except Exception as error:  # a closed file, one open for writing, a broken connection
        raise ImageError(f"{name} cannot be read ({short(error)}); open it for reading in binary mode") from error
    if isinstance(data, bytes | bytearray | memoryview):
        return bytes(data), name
    raise ImageError(f"{name} gives {type(data).__name__}, not bytes; open it in binary mode, open(path, 'rb')")


def readable() -> tuple[str, ...]:
    """The file formats that can be read on this machine, by Pillow's names, and HEIC where pillow-heif is installed."""
    heic = ("HEIC",) if importlib.util.find_spec("pillow_heif") else ()
    return (*_by_pillow(), *heic)


def _by_pillow() -> list[str]:
    Image.init()
    return [f for f in _READABLE if f in Image.OPEN]  # AVIF and WEBP are optional parts of Pillow


def _from_file(source: Path | io.BytesIO, name: str) -> Image.Image:
    return _decoded(_opened(source, name), name)


def _opened(source: Path | io.BytesIO, name: str) -> Image.Image:
    """The image of a file, not yet decoded. ImageError if it is not a picture of a known format."""
    known = _by_pillow()
    try:
        if brands := _brands(source):
            return _open_container(source, brands, name)
        return _open_plain(source, known)
    except ImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"{name} has more than {MOST_PIXELS:,} pixels; scale it down first") from error
    except PermissionError as error:
        raise ImageError(f"no permission to read {name}; check its permissions") from error
    except Exception as error:  # decoders raise many kinds of exceptions for broken files
        raise ImageError(f"{name} is not a supported image; use one of {', '.join(readable())}") from error


def _open_plain(source: Path | io.BytesIO, formats: list[str]) -> Image.Image:
    try:
        return Image.open(source, formats=formats)
    except ValueError:  # Pillow refuses a PNG with more than 1 MiB of profile or text
        data = source.getvalue() if isinstance(source, io.BytesIO) else source.read_bytes()
        if not data.startswith(_PNG):
            raise
        return Image.open(io.BytesIO(_without_metadata(data)), formats=["PNG"])


def _without_metadata(data: bytes) -> bytes:
    """A PNG file without its compressed profile and texts."""
    kept, start = [_PNG], len(_PNG)
    while start < len(data):
        end = start + 12 + int.from_bytes(data[start : start + 4], "big")
        if data[start + 4 : start + 8] not in (b"iCCP", b"zTXt", b"iTXt"):
            kept.append(data[start:end])
        start = end
    return b"".join(kept)


def _brands(source: Path | io.BytesIO) -> frozenset[bytes]:
    """The brands of a file in the ISO container format (ISO/IEC 14496-12, ``ftyp``): HEIC, AVIF, videos; empty for any other."""
    if isinstance(source, io.BytesIO):
        head = source.getvalue()[:_HEAD]
    else:
        with source.open("rb") as file:
            head = file.read(_HEAD)
    if head[4:8] != b"ftyp":
        return frozenset()
    end = min(len(head), int.from_bytes(head[:4], "big"))
    return frozenset({head[8:12], *(head[i : i + 4] for i in range(16, end - 3, 4))})


def _open_container(source: Path | io.BytesIO, brands: frozenset[bytes], name: str) -> Image.Image:
    if brands & _AVIF:
        if "AVIF" not in Image.OPEN:
            raise ImageError(f"{name} is an AVIF picture, which this Pillow cannot read; pip install 'pillow>=11.3'")
        return Image.open(source, formats=["AVIF"])
    if not brands & _HEIC:
        raise ValueError("a video, or an unknown kind of container")
    try:
        heif = importlib.import_module("pillow_heif")
    except ImportError as error:
        raise ImageError(
            f"{name} is a HEIC picture, which needs pillow-heif; run pip install 'unmask[heif]', or save it as JPEG"
        ) from error
    # Not registered as a plugin of Pillow, because that would change Image.open for the whole program.
    return heif.HeifImageFile(source)


def _decoded(image: Image.Image, name: str) -> Image.Image:
    width, height = image.size
    if width * height > MOST_PIXELS:
        raise ImageError(f"{name} has {width} x {height} pixels, more than {MOST_PIXELS:,}; scale it down first")
    if width < 1 or height < 1:
        raise ImageError(f"{name} has no pixels; use an image of at least 1 x 1")
    if max(width, height) > MOST_SIDE:
        raise ImageError(
            f"{name} has {width} x {height} pixels, a side longer than {MOST_SIDE:,}; crop it or scale it down"
        )
    try:
        image.load()
    except Exception as error:  # as above
        raise ImageError(f"{name} cannot be decoded ({short(error)}); if it is truncated, save it again") from error
    return image


# -- arrays -----------------------------------------------------------------------------------------------------------


def _from_array(values: np.ndarray) -> Image.Image:
    """[H, W], [H, W, 1], [H, W, 3] or [H, W, 4] of uint8, bool, or floats from 0 to 1 -> L, RGB or RGBA."""
    shape = " x ".join(map(str, values.shape)) or "no dimensions"
    if values.ndim != 2 and not (values.ndim == 3 and values.shape[2] in (1, 3, 4)):
        hint = "use height x width, or height x width x 1, 3 or 4"
        if values.ndim == 4:
            hint = "pass one picture, such as array[0]"
        elif values.ndim == 3 and values.shape[0] in (1, 3, 4):
            hint = "move the channels to the end with array.transpose(1, 2, 0)"
        raise ImageError(f"the array has the shape {shape}, which is not a picture; {hint}")
    if values.size == 0:
        raise ImageError(f"the array has the shape {shape} and no pixels; use at least 1 x 1")
    if values.shape[0] * values.shape[1] > MOST_PIXELS:
        raise ImageError(f"the array has {shape} values, more than {MOST_PIXELS:,} pixels; scale it down first")
    flat = values[..., 0] if values.ndim == 3 and values.shape[2] == 1 else values
    return Image.fromarray(np.ascontiguousarray(_bytes_of(flat)))


def _bytes_of(values: np.ndarray) -> np.ndarray:
    """uint8, bool, or floats from 0 to 1 -> uint8."""
    if values.dtype == np.uint8:
        return values
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * np.uint8(255)
    if values.dtype.kind != "f":
        hint = "use uint8 from 0 to 255, or floats from 0 to 1"
        raise ImageError(f"the array has the type {values.dtype}; {hint}")
    least, most = float(values.min()), float(values.max())
    if not (least >= 0 and most <= 1):  # also false for NaN
        hint = "divide by 255" if 0 <= least and 1 < most <= 255 else "scale them to 0 to 1"
        raise ImageError(f"the array has floats from {least:g} to {most:g}, wanted 0 to 1; {hint}")
    return (values.astype(np.float32, copy=False) * 255 + 0.5).astype(np.uint8)


def short(error: BaseException) -> str:
    """An exception in at most 80 characters on one line."""
    return " ".join(str(error).split())[:80] or type(error).__name__
