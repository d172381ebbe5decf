"""Pictures of users: every format is read, broken files are refused, boxes map back to the original, and saving is atomic."""

from __future__ import annotations

import io
import os
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageSequence

from unmask.tokens import pictures
from unmask.tokens.pictures import ImageError, Placement, draw_boxes, read_image, save_image, save_trace, square


def _half(mode: str = "RGB", size: tuple[int, int] = (6, 4)) -> Image.Image:
    """Left half red, right half blue."""
    image = Image.new("RGB", size, (250, 10, 10))
    image.paste((10, 10, 250), (size[0] // 2, 0, *size))
    return image.convert(mode)


def _bytes(image: Image.Image, kind: str, **more: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **more)
    return stream.getvalue()


def _pixel(image: Image.Image, x: int, y: int) -> tuple[int, ...]:
    return tuple(np.asarray(image)[y, x].tolist())


def _red_left(image: Image.Image) -> bool:
    return image.mode == "RGB" and _pixel(image, 0, 0)[0] > 180 > 80 > _pixel(image, image.width - 1, 0)[0]


# -- reading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "PPM"])
def test_common_formats_are_read_from_file_and_bytes(kind: str, tmp_path: Path) -> None:
    data = _bytes(_half(size=(64, 32)), kind)
    (tmp_path / "picture").write_bytes(data)
    for source in (data, tmp_path / "picture", str(tmp_path / "picture")):
        assert _red_left(read_image(source)) and read_image(source).size == (64, 32)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "CMYK", "YCbCr", "HSV"])
def test_pillow_pictures_of_any_colour_mode_become_rgb(mode: str) -> None:
    assert _red_left(read_image(_half(mode)))


def test_transparency_lies_on_white() -> None:
    layer = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    layer.putpixel((1, 0), (0, 0, 0, 0))
    for data in (_bytes(layer, "PNG"), layer.convert("PA"), _bytes(layer, "WEBP", lossless=True)):
        image = read_image(data)
        assert _pixel(image, 0, 0) == (255, 0, 0) and _pixel(image, 1, 0) == (255, 255, 255)


def test_a_palette_with_a_transparent_colour_lies_on_white() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([9, 9, 9, 200, 0, 0])
    image.putpixel((0, 0), 1)
    shown = read_image(_bytes(image, "PNG", transparency=0))
    assert [_pixel(shown, x, 0) for x in (0, 1)] == [(200, 0, 0), (255, 255, 255)]


def test_grey_of_every_depth_keeps_its_brightness() -> None:
    eight = np.array([[0, 128, 255]], dtype=np.uint8)
    sixteen = eight.astype(np.uint16) * 257
    wanted = [0, 128, 255]
    sources = [
        _bytes(Image.fromarray(eight), "PNG"),
        _bytes(Image.fromarray(sixteen), "PNG"),
        _bytes(Image.fromarray(sixteen), "TIFF"),
        Image.fromarray(sixteen.astype(np.int32)),
        Image.fromarray((eight / 255).astype(np.float32)),
        Image.fromarray(eight.astype(np.float32)),
    ]
    for source in sources:
        assert [_pixel(read_image(source), x, 0)[0] for x in range(3)] == wanted
    assert _pixel(read_image(Image.new("1", (2, 2), 1)), 0, 0) == (255, 255, 255)


def test_dark_sixteen_bit_pictures_stay_dark() -> None:
    dark = Image.fromarray(np.full((2, 2), 257 * 3, dtype=np.uint16))
    assert _pixel(read_image(_bytes(dark, "PNG")), 0, 0) == (3, 3, 3)


def test_a_camera_that_was_turned() -> None:
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    assert _red_left(read_image(_bytes(_half(size=(32, 16)).rotate(180), "JPEG", exif=exif)))
    exif[0x0112] = 6  # a quarter turn
    assert read_image(_bytes(_half(size=(32, 16)), "JPEG", exif=exif)).size == (16, 32)


def test_broken_exif_is_no_reason_to_refuse() -> None:
    assert _red_left(read_image(_bytes(_half(size=(32, 16)), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")))


def test_of_an_animation_the_first_frame() -> None:
    assert _red_left(read_image(_bytes(_half(), "GIF", save_all=True, append_images=[Image.new("RGB", (6, 4))])))


def _huge_png(width: int, height: int) -> bytes:
    """A valid head of a PNG of this size, with hardly any data: the bomb."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")


_WHOLE = _bytes(Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)), "PNG")
_WHOLE_JPEG = _bytes(Image.open(io.BytesIO(_WHOLE)), "JPEG")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "not a supported image"),
        (b"hello, I am a letter", "not a supported image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a supported image"),
        (_WHOLE[:30], "not a supported image"),
        (_WHOLE[: len(_WHOLE) // 2], "cannot be decoded"),
        (_WHOLE_JPEG[: len(_WHOLE_JPEG) // 2], "cannot be decoded"),
        (_WHOLE[:3000] + bytes(500) + _WHOLE[3500:], "cannot be decoded"),
        (_huge_png(9000, 9000), "9000 x 9000"),  # above our limit, below Pillow's
        (_huge_png(12000, 12000), "64,000,000"),  # Pillow warns
        (_huge_png(50000, 50000), "64,000,000"),  # Pillow refuses
    ],
)
def test_bad_files_are_refused_in_one_line_with_a_hint(data: bytes, said: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ImageError, match=said) as caught:
            read_image(data)
    assert "\n" not in str(caught.value) and "; " in str(caught.value)


def test_missing_files_and_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="there is no file .*nowhere.png; "):
        read_image(tmp_path / "nowhere.png")
    with pytest.raises(ImageError, match="is not a file; "):
        read_image(tmp_path)
    with pytest.raises(ImageError, match="no pixels; "):
        read_image(Image.new("RGB", (0, 3)))


# -- squares ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1, 1), (20000, 1), (1, 20000), (20000, 3000), (128, 128), (7, 1000)])
def test_any_shape_becomes_a_square(size: tuple[int, int]) -> None:
    image, placement = square(read_image(Image.new("RGB", size, "red")), 128, (0, 0, 0))
    assert image.size == (128, 128) and (placement.width, placement.height) == size
    assert _pixel(image, 64, 64)[0] > 0 and placement.to_pixels((0.0, 0.0, 1.0, 1.0)) == (0.0, 0.0, *size)


def test_padding_is_centred_and_filled() -> None:
    image, _ = square(Image.new("RGB", (40, 20), "red"), 40, (1, 2, 3))
    column = [_pixel(image, 20, y) for y in range(40)]
    assert column == [(1, 2, 3)] * 10 + [(255, 0, 0)] * 20 + [(1, 2, 3)] * 10


def test_a_fitting_square_comes_back_as_it_is() -> None:
    image = _half(size=(16, 16))
    assert square(image, 16)[0] is image


@pytest.mark.parametrize("size", [(200, 100), (100, 200), (101, 40), (33, 33)])
def test_boxes_find_their_way_to_the_square_and_back(size: tuple[int, int]) -> None:
    placement = Placement(width=size[0], height=size[1])
    box = (3.0, 5.0, size[0] - 4.0, size[1] - 6.0)
    fractions = placement.to_fractions(box)
    assert all(0 <= v <= 1 for v in fractions)
    assert placement.to_pixels(fractions) == pytest.approx(box)


def test_the_formula_of_the_specification() -> None:
    placement = Placement(width=301, height=200)  # S = 301, offsets 0 and 50 (rounded down)
    assert placement.side == 301 and placement.offset == (0, 50)
    k = (100, 300, 900, 700)
    wanted = (k[0] / 1024 * 301, k[1] / 1024 * 301 - 50, k[2] / 1024 * 301, k[3] / 1024 * 301 - 50)
    assert placement.to_pixels((k[0] / 1024, k[1] / 1024, k[2] / 1024, k[3] / 1024)) == pytest.approx(wanted)


def test_boxes_in_the_padding_are_cut_at_the_edge() -> None:
    assert Placement(width=100, height=50).to_pixels((0.0, 0.0, 1.0, 1.0)) == (0.0, 0.0, 100.0, 50.0)


# -- boxes ------------------------------------------------------------------------------------------------------------


def test_boxes_are_drawn_on_a_copy_with_labels_that_do_not_overlap(monkeypatch: pytest.MonkeyPatch) -> None:
    image = Image.new("RGB", (128, 128), "white")
    before = image.tobytes()
    places: list[pictures.PixelBox] = []
    placed = pictures._label_place

    def watched(*given: Any) -> pictures.PixelBox:
        places.append(placed(*given))
        return places[-1]

    monkeypatch.setattr(pictures, "_label_place", watched)
    boxes = [("the cat", (10, 10, 60, 60)), ("the dog", (12, 12, 60, 60)), ("bus", (70, 0, 128, 40))]
    drawn = draw_boxes(image, boxes)
    assert image.tobytes() == before and drawn.size == (384, 384) and drawn.tobytes() != before
    assert _pixel(drawn, 30, 100) == pictures._MARKS[0] and len(places) == 3
    assert not any(pictures._meet(a, b) for i, a in enumerate(places) for b in places[:i])
    assert all(0 <= x1 and 0 <= y1 and x2 <= 384 and y2 <= 384 for x1, y1, x2, y2 in places)


@pytest.mark.parametrize("size", [(1, 1), (20000, 1), (3, 500)])
def test_boxes_on_odd_pictures(size: tuple[int, int]) -> None:
    boxes = [("x" * 500, (-5.0, -5.0, 9e9, 9e9)), ("", (0, 0, 1, 1)), ("ein Äpfelchen 🍎\nzwei", (1, 1, 0, 0))]
    assert draw_boxes(Image.new("RGB", size), boxes).width >= size[0]


# -- saving -----------------------------------------------------------------------------------------------------------


def test_saving_makes_the_folder_and_reads_back(tmp_path: Path) -> None:
    path = save_image(_half(), tmp_path / "a" / "b" / "c.png")
    assert read_image(path).tobytes() == _half().tobytes() and os.listdir(path.parent) == ["c.png"]
    assert read_image(save_image(_half("RGBA"), tmp_path / "c.jpg")).size == (6, 4)


@pytest.mark.parametrize("name", ["a", "a.txt", "a.gif", "a.png.exe"])
def test_unknown_endings_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="; use one of .png"):
        save_image(_half(), tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_the_old_picture_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_image(_half(), tmp_path / "a.png")
    before = path.read_bytes()

    def full(self: Image.Image, to: Path, *rest: object, **more: object) -> None:
        Path(to).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OSError, match=r"no space left on device\), nothing was changed; free some space"):
        save_image(_half(), path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["a.png"]


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="could not write .*; choose another place"):
        save_image(_half(), tmp_path / "file" / "a.png")


def test_traces_move_or_lie_side_by_side(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (32, 32), (8 * i, 0, 0)) for i in range(30)]
    moving = Image.open(save_trace(frames, tmp_path / "t.gif"))
    assert len(list(ImageSequence.Iterator(moving))) == 30 and moving.info["loop"] == 0
    strip = Image.open(save_trace(frames, tmp_path / "t.png"))
    assert strip.size == (8 * 33 - 1, 3 * 33 - 1)
    assert _pixel(strip, 0, 0) == (0, 0, 0) and _pixel(strip, strip.width - 1, strip.height - 1) == (232, 0, 0)
    assert Image.open(save_trace(frames[:1], tmp_path / "one.png")).size == (32, 32)


def test_traces_without_frames_or_with_odd_endings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="no frames"):
        save_trace([], tmp_path / "t.gif")
    with pytest.raises(ImageError, match="use .gif"):
        save_trace([_half()], tmp_path / "t.mp4")
