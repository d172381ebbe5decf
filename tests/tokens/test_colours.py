"""Colour profiles: the colours that were meant, by an independent computation; without a profile, or with sRGB, no bit changes."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from unmask.tokens import colours
from unmask.tokens.pictures import read_image, read_region

from . import profiles

EXAMPLE = Path(__file__).parents[2] / "unmask" / "serving" / "web" / "example-street.png"
PHOTO = Image.open(EXAMPLE).convert("RGB").resize((64, 64))
PIXELS = np.asarray(PHOTO)
GREY = PHOTO.convert("L")
LOSSLESS: dict[str, dict[str, Any]] = {"PNG": {}, "TIFF": {}, "WEBP": {"lossless": True}}
CLOSE = 3.0  # mean distance of 255

SPACES = {
    "Display P3": (profiles.DISPLAY_P3, None),
    "Adobe RGB": (profiles.ADOBE_RGB, 563 / 256),
    "ProPhoto": (profiles.PROPHOTO, 1.8),
    "swapped": (profiles.SRGB[:, ::-1], None),
    "linear": (profiles.SRGB, 1.0),
    "dark": (profiles.SRGB, 3.0),
}


def file(image: Image.Image, kind: str = "PNG", **more: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **more)
    return stream.getvalue()


def distance(image: Image.Image, wanted: Any) -> float:
    return float(np.abs(np.asarray(image, dtype=np.float64) - np.asarray(wanted, dtype=np.float64)).mean())


def meant(space: str, pixels: np.ndarray = PIXELS) -> np.ndarray:
    primaries, gamma = SPACES[space]
    return profiles.as_srgb(pixels, primaries, profiles.linear if gamma is None else lambda v: v**gamma)


@pytest.mark.parametrize("space", SPACES)
def test_the_colours_of_a_profile_are_those_that_were_meant(space: str) -> None:
    profile = profiles.rgb(*SPACES[space])
    assert distance(PHOTO, meant(space)) > 2  # what it is without the profile
    for kind, options in LOSSLESS.items():
        assert distance(read_image(file(PHOTO, kind, icc_profile=profile, **options)), meant(space)) < 1
    assert (
        distance(read_image(file(PHOTO, "JPEG", quality=98, subsampling=0, icc_profile=profile)), meant(space)) < CLOSE
    )


@pytest.mark.parametrize("space", SPACES)
def test_transparent_palette_and_grey_pictures_with_a_profile(space: str) -> None:
    profile = profiles.rgb(*SPACES[space])
    layer = PHOTO.convert("RGBA")
    layer.paste((0, 0, 0, 0), (0, 0, 64, 32))
    shown = np.asarray(read_image(file(layer, icc_profile=profile)))
    assert (shown[:32] == 255).all() and distance(Image.fromarray(shown[32:]), meant(space)[32:]) < 1
    few = PHOTO.quantize(32)
    wanted = meant(space, np.asarray(few.convert("RGB")))
    assert distance(read_image(file(few, icc_profile=profile)), wanted) < 1
    assert distance(read_image(file(GREY, icc_profile=profile)), meant(space, np.asarray(GREY.convert("RGB")))) < 1


@pytest.mark.parametrize("gamma", [1.0, 1.8, 3.0])
def test_grey_profiles_at_8_and_16_bits_and_with_transparency(gamma: float) -> None:
    profile = profiles.grey(gamma)
    wanted = profiles.encoded((np.asarray(GREY) / 255) ** gamma) * 255
    assert distance(GREY, wanted) > CLOSE
    deep = Image.fromarray(np.asarray(GREY).astype(np.uint16) * 257)
    for image in (GREY, deep):
        for kind in ("PNG", "TIFF"):
            shown = read_image(file(image, kind, icc_profile=profile))
            assert shown.mode == "RGB" and distance(shown.getchannel("G"), wanted) < 1
    layer = GREY.convert("LA")
    layer.putalpha(Image.new("L", GREY.size, 255))
    assert distance(read_image(file(layer, icc_profile=profile)).getchannel("G"), wanted) < 1


def test_sixteen_bits_keep_their_shadows_through_a_linear_profile() -> None:
    """Light of 0.3 % is level 200 of 65,535, which sRGB shows as level 10; by way of level 1 of 255 it would be level 13."""
    dark = Image.fromarray(np.full((2, 2), 200, dtype=np.uint16))
    assert distance(read_image(file(dark, icc_profile=profiles.grey(1.0))), 10) <= 1


def test_tables_of_rgb_and_of_printing_inks() -> None:
    turned = profiles.table("RGB", lambda c: (c[1], c[2], c[0]))
    red = Image.new("RGB", (4, 4), (255, 0, 0))
    assert distance(read_image(file(red, icc_profile=turned)), (0, 0, 255)) < CLOSE
    press = profiles.table("CMYK", lambda c: [(1 - v) * (1 - c[3]) for v in (c[2], c[1], c[0])])  # cyan prints yellow
    cyan = Image.new("CMYK", (8, 8), (255, 0, 0, 0))
    for kind in ("JPEG", "TIFF"):
        assert distance(read_image(file(cyan, kind)), (0, 255, 255)) < CLOSE
        assert distance(read_image(file(cyan, kind, icc_profile=press)), (255, 255, 0)) < CLOSE


def _editions_of_srgb() -> dict[str, bytes]:
    short = np.round(profiles.linear(np.linspace(0, 1, 64)) * 65535).astype(int).tolist()
    plain = profiles.rgb(profiles.SRGB)
    long = profiles._curve(np.round(profiles.linear(np.linspace(0, 1, 1024)) * 65535).astype(int).tolist())
    tags = {f"{c}XYZ": profiles._xyz(profiles.SRGB[:, i]) for i, c in enumerate("rgb")}
    coarse = profiles._profile("mntr", "RGB ", "XYZ ", tags | {f"{c}TRC": profiles._curve(short) for c in "rgb"})
    assert long in plain
    own = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return {"littlecms": own, "a table of 1024": plain, "a table of 64": coarse}


@pytest.mark.parametrize("profile", _editions_of_srgb().values(), ids=_editions_of_srgb())
def test_srgb_changes_no_bit(profile: bytes) -> None:
    for image in (PHOTO, PHOTO.convert("RGBA"), PHOTO.quantize(32), GREY):
        wanted = np.asarray(read_image(file(image)))
        assert np.array_equal(np.asarray(read_image(file(image, icc_profile=profile))), wanted)


_WHOLE = profiles.rgb(profiles.DISPLAY_P3)
BROKEN = {
    "empty": b"",
    "letters": b"no profile",
    "zeros": bytes(500),
    "its head alone": _WHOLE[:128],
    "cut": _WHOLE[:400],
    "noise": _WHOLE[:128] + np.random.default_rng(0).bytes(len(_WHOLE) - 128),
    "of another space": profiles.table("CMYK", lambda c: [1 - v for v in c[:3]]),
    "of grey": profiles.grey(3.0),
    "huge": _WHOLE + bytes(colours.MOST_PROFILE),
}


@pytest.mark.parametrize("profile", BROKEN.values(), ids=BROKEN)
def test_a_profile_that_is_broken_huge_or_of_another_space_is_ignored(profile: bytes) -> None:
    for kind, options in LOSSLESS.items():
        shown = read_image(file(PHOTO, kind, icc_profile=profile, **options))
        assert np.array_equal(np.asarray(shown), PIXELS)


def test_a_png_with_a_long_compressed_text_is_read() -> None:
    from PIL.PngImagePlugin import PngInfo

    text = PngInfo()
    text.add_text("prompt", "a cat " * 400_000, zip=True)
    assert np.array_equal(np.asarray(read_image(file(PHOTO, pnginfo=text))), PIXELS)


def test_a_profile_is_applied_once_and_the_given_picture_stays() -> None:
    given = Image.open(io.BytesIO(file(PHOTO, icc_profile=_WHOLE)))
    once = read_image(given)
    assert np.array_equal(np.asarray(read_image(once)), np.asarray(once)) and "icc_profile" not in once.info
    assert np.array_equal(np.asarray(given), PIXELS) and given.info["icc_profile"] == _WHOLE


def test_the_orientation_of_a_camera_counts_with_a_profile_too() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    wide = PHOTO.crop((0, 0, 64, 32))
    turned = read_image(file(wide, "TIFF", icc_profile=_WHOLE, exif=exif))
    upright = read_image(file(wide, icc_profile=_WHOLE))
    assert np.array_equal(np.asarray(turned), np.rot90(np.asarray(upright), -1))


def test_the_region_of_a_mask_with_a_profile() -> None:
    mask = Image.new("L", (8, 8))
    mask.paste(255, (0, 0, 4, 8))
    region = np.asarray(read_region(file(mask, icc_profile=profiles.grey(1.8))))
    assert (region[:, :4] == 255).all() and not region[:, 4:].any()


def test_deep_grey_is_converted_in_blocks_as_in_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).normal(scale=900, size=(31, 17)).astype(np.float32)
    values[3, 4] = np.nan
    images = (Image.fromarray(values), Image.fromarray(np.abs(np.nan_to_num(values)).astype(np.uint16)))
    whole = [np.asarray(read_image(image)) for image in images]
    monkeypatch.setattr(colours, "_BLOCK", 10)
    for image, one_piece in zip(images, whole, strict=True):
        assert np.array_equal(np.asarray(read_image(image)), one_piece)


def _bands() -> dict[str, Image.Image]:
    """Pictures of every kind of conversion, with a profile where one applies."""
    layer = PHOTO.convert("RGBA")
    layer.putalpha(GREY)
    palette, keyed = PHOTO.quantize(64), PHOTO.quantize(64)
    keyed.info["transparency"] = 3
    made = {mode: PHOTO.convert(mode) for mode in ("RGB", "1", "CMYK", "LAB", "YCbCr")}
    made |= {"RGBA": layer, "LA": layer.convert("LA"), "P": palette, "P with a key": keyed, "L": GREY}
    made["I;16"] = Image.fromarray(np.asarray(GREY).astype(np.uint16) * 251)
    made["F"] = Image.fromarray(np.asarray(GREY).astype(np.float32) / 300)
    for profile, names in ((profiles.rgb(*SPACES["Adobe RGB"]), ("RGB", "RGBA", "P")),):
        for name in names:
            made[f"{name} with a profile"] = made[name].copy()
            made[f"{name} with a profile"].info["icc_profile"] = profile
    return made


@pytest.mark.parametrize("name", _bands())
def test_bands_of_a_picture_are_the_whole_picture(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large pictures are converted in bands: equal in every bit, from the first row to a last band that is not full."""
    whole = colours.to_srgb(_bands()[name], name)
    monkeypatch.setattr(colours, "_BAND", 5 * 64)
    assert colours.to_srgb(_bands()[name], name).tobytes() == whole.tobytes() and whole.mode == "RGB"
