"""How pictures are cut for the semantic encoder: pinpoints, tiles, padding, token counts (spec 1.9, 9), and which features are read."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from unmask.models.sizes import SIZES, VisionConfig
from unmask.models.vision import Vision
from unmask.tokens.views import GREY, PINPOINTS, AnyRes, to_pixels, unpad

SMALL = VisionConfig(image=28, patch=4, width=8, layers=1, heads=2, mlp=16)  # 7 x 7 patches, pooled to 3 x 3
SMALL_VIEWS = AnyRes(size=28, pooled=3, pinpoints=tuple((w // 384 * 28, h // 384 * 28) for w, h in PINPOINTS))


def noise(width: int, height: int) -> Image.Image:
    values = np.random.default_rng(width * 10_000 + height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


@pytest.mark.parametrize(
    ("size", "tokens"),
    [((768, 768), 871), ((768, 384), 520), ((384, 768), 533), ((1152, 384), 689), ((384, 1152), 715)],
)
def test_published_counts(size: tuple[int, int], tokens: int) -> None:
    """Spec 1.9: 169 features of the whole, and a newline for each row of the tiles' map."""
    look = AnyRes()(Image.new("RGB", size))
    assert AnyRes().pinpoint(size) == size
    assert len(look) == tokens
    assert look.views.shape == (1 + size[0] * size[1] // 384**2, 3, 384, 384)


def test_published_counts_of_other_pictures() -> None:
    assert len(AnyRes()(Image.new("RGB", (1024, 1024)))) == 871
    assert len(AnyRes().one_of_several(Image.new("RGB", (640, 480)))) == 170
    released = SIZES["lavida_o"].vision
    assert released is not None and (released.pooled, released.image) == (AnyRes().pooled, AnyRes().size)
    assert released.tokens == 182  # feature rows of a view: the numbers that ``ImageViews.rows`` choose from


@pytest.mark.parametrize(
    ("size", "pinpoint"),
    [
        ((384, 384), (384, 768)),  # all keep the whole of a small picture: least waste, then the first listed
        ((800, 600), (768, 768)),
        ((2000, 500), (1152, 384)),
        ((500, 2000), (384, 1152)),
        ((1000, 500), (768, 384)),
        ((500, 1000), (384, 768)),
        ((1, 1), (384, 768)),
    ],
)
def test_pinpoint(size: tuple[int, int], pinpoint: tuple[int, int]) -> None:
    assert AnyRes().pinpoint(size) == pinpoint


def test_tiles_are_cut_from_a_black_canvas_row_by_row() -> None:
    picture = noise(60, 40)
    views = SMALL_VIEWS(picture).views
    assert SMALL_VIEWS.pinpoint(picture.size) == (56, 56)
    canvas = torch.zeros(3, 56, 56)
    canvas[:, 9:47] = to_pixels(picture.resize((56, 38), Image.Resampling.BICUBIC))  # 37.3 rows, rounded up
    tiles = (canvas[:, :28, :28], canvas[:, :28, 28:], canvas[:, 28:, :28], canvas[:, 28:, 28:])
    assert torch.equal(views[1:], torch.stack(tiles))


def test_the_whole_is_padded_with_grey() -> None:
    for look in (
        SMALL_VIEWS(Image.new("RGB", (40, 20), "red")),
        SMALL_VIEWS.one_of_several(Image.new("RGB", (40, 20))),
    ):
        assert torch.equal(look.views[0, :, 0], torch.full((3, 28), GREY[0] / 255))
    picture = noise(28, 28)
    assert torch.equal(SMALL_VIEWS(picture).views[0], to_pixels(picture))


def assembled(vision: Vision, views: Tensor, size: tuple[int, int]) -> Tensor:
    """The slow twin: features laid out as a picture by reshaping, cropped, given newlines, flattened."""
    maps = vision.project_out(torch.nn.functional.gelu(vision.project_in(vision.pooled(views))))
    wide, high = SMALL_VIEWS.pinpoint(size)
    rows, columns, n = high // 28, wide // 28, maps.shape[1]
    tiles = maps[1:].reshape(rows, columns, n, n, -1).permute(0, 2, 1, 3, 4).reshape(rows * n, columns * n, -1)
    (w, h), (high, wide) = size, tiles.shape[:2]
    if w / h > wide / high:
        kept = int(h * wide / w)
        tiles = tiles[(high - kept) // 2 : high - (high - kept) // 2]
    else:
        kept = int(w * high / h)
        tiles = tiles[:, (wide - kept) // 2 : wide - (wide - kept) // 2]
    newline = vision.newline.expand(len(tiles), 1, -1)
    return torch.cat([maps[0].flatten(0, 1), torch.cat([tiles, newline], 1).flatten(0, 1)])


@pytest.mark.parametrize("size", [(56, 56), (56, 28), (28, 84), (60, 47), (100, 28), (33, 90), (300, 200), (20, 20)])
def test_rows_pick_what_reshaping_and_cropping_leave(size: tuple[int, int]) -> None:
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        vision = Vision(SMALL, 12)
        vision.newline.normal_()
        look = SMALL_VIEWS(noise(*size))
        read = vision(look.views).flatten(0, 1)[look.rows]
        wanted = assembled(vision, look.views, size)
    assert read.shape == wanted.shape and torch.equal(read, wanted)


def test_one_of_several_ends_with_a_newline() -> None:
    assert SMALL_VIEWS.one_of_several(noise(30, 50)).rows.tolist() == [0, 1, 2, 4, 5, 6, 8, 9, 10, 3]


@pytest.mark.parametrize("size", [(5000, 3), (3, 5000)])
def test_thin_pictures_leave_something(size: tuple[int, int]) -> None:
    assert len(AnyRes()(Image.new("RGB", size))) > 169
    assert unpad(torch.zeros(26, 26), size).numel() > 0


@pytest.mark.parametrize("pinpoints", [(), ((28, 30),), ((0, 28),)])
def test_a_pinpoint_is_a_grid_of_tiles(pinpoints: tuple[tuple[int, int], ...]) -> None:
    with pytest.raises(ValueError, match="multiples of the view's 28 pixels"):
        AnyRes(size=28, pooled=3, pinpoints=pinpoints)
