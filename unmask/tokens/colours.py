"""The pixels of a picture in sRGB. Public idea: ``to_srgb(image, name) -> RGB``, by the picture's own colour profile (ICC) if it has one.

A profile that is broken, larger than ``MOST_PROFILE`` bytes, or of another colour space than the pixels is ignored. So is sRGB itself
in its many editions, so that such a picture keeps its pixels to the last bit.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageCms

from unmask.tokens.sources import ImageError

MOST_PROFILE = 4 * 2**20  # bytes; the largest profiles of printing presses have about 3 MB
_SAME = 5  # levels of 255: editions of sRGB differ by 0 to 2, the next space (Rec. 709) by 16
_BLOCK = 2**20  # values that are converted at a time
_BAND = 4 * 2**20  # pixels
_GREY = ("1", "L", "LA", "La")

Convert = Callable[[Image.Image], Image.Image]


def to_srgb(image: Image.Image, name: str) -> Image.Image:
    """Any mode -> RGB in sRGB, 8 bits, transparency on white. ImageError for a mode that Pillow cannot convert."""
    profile = image.info.get("icc_profile")
    try:
        deep = _transform(profile, "GRAY", "I;16", "RGB") if image.mode == "I;16" else None
        if deep:  # at 16 bits: a linear profile has few of its 256 levels in the shadows
            convert: Convert = deep.apply
        else:
            if image.mode == "F" or image.mode.startswith("I"):
                image = Image.fromarray(_eight_bits(image))
            convert = _on_white(image, profile) if image.has_transparency_data else _to(image.mode, "RGB", profile)
        converted = _in_bands(image, convert)
    except (ValueError, OSError) as error:
        raise ImageError(f"{name} has the unsupported colour mode {image.mode!r}; save it as RGB") from error
    converted.info.pop("icc_profile", None)  # no longer true of these pixels, and a second reading would apply it again
    return converted


def _in_bands(image: Image.Image, convert: Convert) -> Image.Image:
    """``convert`` of the whole picture, so that no step but the result takes memory for all of it: each looks at single pixels."""
    rows = max(1, _BAND // image.width)
    if rows >= image.height:
        return convert(image)
    converted = Image.new("RGB", image.size)
    for top in range(0, image.height, rows):
        band = image.crop((0, top, image.width, min(top + rows, image.height)))
        converted.paste(convert(band), (0, top))
    return converted


def _on_white(image: Image.Image, profile: object) -> Convert:
    to_rgba = _to(image.mode, "RGBA", profile)

    def convert(band: Image.Image) -> Image.Image:
        paper = Image.new("RGBA", band.size, "white")
        paper.alpha_composite(to_rgba(band))
        return paper.convert("RGB")

    return convert


def _to(given: str, wanted: str, profile: object) -> Convert:
    """From images of mode ``given`` to those of ``wanted``, RGB or RGBA, in sRGB. The profile is read once for all bands."""
    cmyk = _transform(profile, "CMYK", "CMYK", "RGB") if given == "CMYK" else None
    grey = _transform(profile, "GRAY", "L", "RGB") if given in _GREY else None
    plain = given == "CMYK" or given == "LAB" or grey is not None
    rgb = None if plain else _transform(profile, "RGB", wanted, wanted)

    def convert(band: Image.Image) -> Image.Image:
        if cmyk:
            return cmyk.apply(band)
        converted = band.convert(wanted)
        if grey:
            shade = grey.apply(band.convert("L"))
            if wanted == "RGBA":
                shade.putalpha(converted.getchannel("A"))
            return shade
        if rgb:
            rgb.apply_in_place(converted)  # alpha stays as it is
        return converted

    return convert


def _transform(profile: object, space: str, given: str, wanted: str) -> ImageCms.ImageCmsTransform | None:
    """From pixels of mode ``given`` to sRGB. None if there is nothing to do: no usable profile of this colour space, or sRGB."""
    if not isinstance(profile, bytes) or len(profile) > MOST_PROFILE:
        return None
    try:
        own, srgb = ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
        if own.profile.xcolor_space.strip() != space or (space != "CMYK" and _is_srgb(own, space)):
            return None
        # littlecms' optimisation is up to 7 levels off in the shadows of a grey curve, and no faster there; tables need it (10 times).
        exact = space == "GRAY" and not any(uses[0] for uses in (own.profile.clut or {}).values())
        flags = ImageCms.Flags.NOOPTIMIZE if exact else ImageCms.Flags.NONE
        return ImageCms.ImageCmsTransform(own, ImageCms.ImageCmsProfile(srgb), given, wanted, flags=flags)
    except Exception:  # broken profiles raise several kinds, and Pillow may be built without littlecms
        return None


def _is_srgb(own: ImageCms.ImageCmsProfile, space: str) -> bool:
    """Whether a profile changes a grid of colours by no more than the editions of sRGB differ.

    By the colorimetric intent, in which these editions agree; the perceptual one may compress colours for paper.
    """
    srgb, intent = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")), ImageCms.Intent.RELATIVE_COLORIMETRIC
    levels = np.linspace(0, 255, 9).round().astype(np.uint8)
    if space == "GRAY":
        before = Image.fromarray(levels[None])
        after = ImageCms.ImageCmsTransform(own, srgb, "L", "RGB", intent).apply(before)
    else:
        cube = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(27, 27, 3)
        before = Image.fromarray(cube)
        after = ImageCms.ImageCmsTransform(own, srgb, "RGB", "RGB", intent).apply(before)
    difference = np.asarray(after, dtype=np.int16) - np.asarray(before.convert("RGB"), dtype=np.int16)
    return int(np.abs(difference).max()) <= _SAME


def _eight_bits(image: Image.Image) -> np.ndarray:
    """Grey of 16 bits, 32 bits or floats -> uint8. White is the mode's maximum if it has one, else the largest value.

    In blocks, because float64 takes eight bytes a pixel.
    """
    values = np.asarray(image)
    flat = values.reshape(-1)
    blocks = [flat[i : i + _BLOCK] for i in range(0, flat.size, _BLOCK)]
    most = max(float(_finite(block).max()) for block in blocks)
    white = 65535.0 if image.mode.startswith("I;16") or most > 255 else 255.0 if image.mode == "I" or most > 1 else 1.0
    scaled = np.empty(flat.size, np.uint8)
    for i, block in enumerate(blocks):
        part = np.clip(_finite(block) / max(white, most), 0, 1) * 255 + 0.5
        scaled[i * _BLOCK : i * _BLOCK + part.size] = part.astype(np.uint8)
    return scaled.reshape(values.shape)


def _finite(values: np.ndarray) -> np.ndarray:
    return np.nan_to_num(values.astype(np.float64), posinf=0.0, neginf=0.0)
