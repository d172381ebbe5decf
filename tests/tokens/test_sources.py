"""What holds a picture: arrays, open files, HEIC and AVIF; everything else is refused by its name in one line."""

from __future__ import annotations

import importlib.util
import io
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, features

from unmask.tokens.pictures import ImageError, read_image, read_region

from . import profiles

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
PICTURE = Image.fromarray(PIXELS)
heif = pytest.mark.skipif(importlib.util.find_spec("pillow_heif") is None, reason="pillow-heif is not installed")


def png() -> bytes:
    stream = io.BytesIO()
    PICTURE.save(stream, "PNG")
    return stream.getvalue()


def read(source: Any) -> np.ndarray:
    image = read_image(source)
    assert image.mode == "RGB"
    return np.asarray(image)


def test_arrays_of_bytes_and_floats() -> None:
    alpha = np.full((5, 7, 1), 255, dtype=np.uint8)
    strided = np.repeat(PIXELS, 2, axis=1)[:, ::2]
    whole = [PIXELS, np.asfortranarray(PIXELS), strided, np.concatenate([PIXELS, alpha], 2), PIXELS / 255]
    for array in [*whole, (PIXELS / 255).astype(np.float32), (PIXELS / 255).astype(np.float16)]:
        assert np.array_equal(read(array), PIXELS), array.dtype
    grey = PIXELS[..., 0]
    for array in (grey, grey[..., None], grey / 255):
        assert np.array_equal(read(array), np.repeat(grey[..., None], 3, 2))
    mask = grey > 100
    assert np.array_equal(read(mask)[..., 0], np.where(mask, 255, 0))
    assert np.array_equal(np.asarray(read_region(mask)), np.where(mask, 255, 0))


def test_a_transparent_array_lies_on_white() -> None:
    clear = np.zeros((2, 2, 4), dtype=np.uint8)
    assert (read(clear) == 255).all()


def test_an_array_is_not_changed() -> None:
    array = PIXELS.copy()
    array.flags.writeable = False
    read(array)
    assert np.array_equal(array, PIXELS)


def test_open_files_and_other_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png())
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        packed.writestr("a.png", png())
    with path.open("rb") as file, zipfile.ZipFile(tmp_path / "a.zip") as packed, packed.open("a.png") as member:
        with tempfile.SpooledTemporaryFile() as spooled:
            spooled.write(png())
            for source in (file, file, member, spooled, io.BytesIO(png())):  # twice the same file
                assert np.array_equal(read(source), PIXELS)
        assert not file.closed
    for data in (bytearray(png()), memoryview(png())):
        assert np.array_equal(read(data), PIXELS)


class Answer:
    """A body of an HTTP answer: it reads once, and cannot seek."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def read(self) -> Any:
        return self.data


def test_a_body_that_cannot_seek() -> None:
    assert np.array_equal(read(Answer(png())), PIXELS)


def closed() -> io.BytesIO:
    file = io.BytesIO(png())
    file.close()
    return file


REFUSED: dict[str, tuple[Any, str]] = {
    "a list": ([PICTURE], "got a list; pass one picture: "),
    "a tuple": ((png(),), "got a tuple; pass one picture: "),
    "a dict": ({"bytes": png()}, "got a dict; pass one picture: "),
    "None": (None, "got None; pass a picture: "),
    "a number": (3, "got a value of type int; pass a picture"),
    "a class": (Path, "got a value of type type; "),
    "a tensor": (torch.zeros(3, 4, 4), r"got a torch tensor.*; pass tensor.permute\(1, 2, 0\)"),
    "no string": ("", "the path is empty; "),
    "a data URL": (f"data:image/png;base64,{'A' * 9000}", "a data: URL is not a path; "),
    "a web address": ("https://example.com/a.png", "is a web address, not a path; download it"),
    "a very long name": ("a" * 9000, r"there is no file a{80}\.\.\.; "),
    "a NUL": ("a\0b", "there is no file"),
    "a file of text": (io.StringIO("hello"), "gives str, not bytes; open it in binary mode"),
    "a closed file": (closed(), "cannot be read .*; open it"),
    "an empty file": (io.BytesIO(), "not a supported image; "),
    "a body of nothing": (Answer(None), "gives NoneType, not bytes; "),
    "one dimension": (np.zeros(5, np.uint8), "the shape 5, which is not a picture; use height x width"),
    "no dimension": (np.array(3, np.uint8), "no dimensions, which is not a picture; "),
    "channels first": (np.zeros((3, 8, 9), np.uint8), r"the shape 3 x 8 x 9.*; move the channels.*transpose\(1, 2, 0\)"),
    "two channels": (np.zeros((8, 9, 2), np.uint8), "the shape 8 x 9 x 2"),
    "several": (np.zeros((2, 8, 9, 3), np.uint8), r"the shape 2 x 8 x 9 x 3.*; pass one picture, such as array\[0\]"),
    "no pixels": (np.zeros((0, 4), np.uint8), "no pixels; "),
    "too many pixels": (np.broadcast_to(np.uint8(0), (9000, 9000)), "64,000,000 pixels; "),
    "integers": (np.zeros((4, 4), np.int64), "the type int64; use uint8"),
    "complex": (np.zeros((4, 4), complex), "the type complex128; use uint8"),
    "letters": (np.array([["a"]]), "; use uint8"),
    "floats to 255": (np.full((4, 4), 200.0), "floats from 200 to 200, wanted 0 to 1; divide by 255"),
    "floats from -1": (np.full((4, 4), -1.0), "floats from -1 to -1, wanted 0 to 1; scale them"),
    "NaN": (np.full((4, 4), np.nan), "wanted 0 to 1; "),
    "infinity": (np.full((4, 4), np.inf), "wanted 0 to 1; "),
}  # fmt: skip


@pytest.mark.parametrize(("source", "said"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_picture_is_named_in_one_line(source: Any, said: str) -> None:
    with pytest.raises(ImageError, match=said) as caught:
        read_image(source)
    assert "\n" not in str(caught.value) and "; " in str(caught.value) and len(str(caught.value)) < 300


# -- HEIC and AVIF ----------------------------------------------------------------------------------------------------


def heic(image: Image.Image, **more: Any) -> bytes:
    from pillow_heif import from_pillow

    stream = io.BytesIO()
    from_pillow(image).save(stream, quality=95, **more)
    return stream.getvalue()


@heif
def test_heic_with_orientation_and_profile() -> None:
    red_left = Image.new("RGB", (64, 32), "red")
    red_left.paste("blue", (32, 0, 64, 32))
    for source in (heic(red_left), io.BytesIO(heic(red_left))):
        shown = read(source)
        assert shown.shape == (32, 64, 3) and shown[16, 8, 0] > 200 > 50 > shown[16, 56, 0]
    exif = Image.Exif()
    exif[0x0112] = 6
    assert read_image(heic(red_left, exif=exif.tobytes())).size == (32, 64)
    swapped = profiles.rgb(profiles.SRGB[:, ::-1])
    assert read(heic(red_left, icc_profile=swapped))[16, 8, 2] > 200
    clear = red_left.convert("RGBA")
    clear.putalpha(0)
    assert (read(heic(clear)) > 250).all()


@heif
def test_reading_heic_leaves_pillow_as_it_was() -> None:
    data = heic(PICTURE.resize((64, 64)))
    before = set(Image.OPEN)
    read_image(data)
    assert set(Image.OPEN) == before or "HEIF" not in set(Image.OPEN) - before


@heif
@pytest.mark.parametrize("cut", [40, 300, -200])
def test_broken_heic_is_refused(cut: int) -> None:
    with pytest.raises(ImageError, match="; "):
        read_image(heic(PICTURE.resize((64, 64)))[:cut])


HEIC_HEAD = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200)


def test_heic_without_the_extra_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    (tmp_path / "photo.HEIC").write_bytes(HEIC_HEAD)
    for source in (HEIC_HEAD, tmp_path / "photo.HEIC", io.BytesIO(HEIC_HEAD)):
        with pytest.raises(ImageError, match=r"is a HEIC picture.*pip install 'unmask\[heif\]'"):
            read_image(source)


def test_a_video_is_no_picture() -> None:
    with pytest.raises(ImageError, match="not a supported image"):
        read_image(b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom" + bytes(200))


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")
def test_avif() -> None:
    stream = io.BytesIO()
    Image.new("RGB", (32, 16), "red").save(stream, "AVIF", save_all=True, append_images=[Image.new("RGB", (32, 16))])
    shown = read(stream.getvalue())
    assert shown.shape == (16, 32, 3) and shown[8, 8, 0] > 200  # the first frame


def test_avif_without_support_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    Image.init()
    monkeypatch.delitem(Image.OPEN, "AVIF", raising=False)
    with pytest.raises(ImageError, match="AVIF picture, which this Pillow cannot read; pip install"):
        read_image(b"\0\0\0\x1cftypavif\0\0\0\0avifmif1" + bytes(200))
