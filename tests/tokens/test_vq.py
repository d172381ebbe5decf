"""The image tokenizer's network: what a code depends on, shapes, and sizes that do not fit."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from unmask.protocols import Codec
from unmask.rng import generator
from unmask.tokens.vq import VQ, VQConfig

torch.set_num_threads(1)
CONFIG = VQConfig(
    block_out_channels=(8, 8, 16), layers_per_block=1, latent_channels=6, num_vq_embeddings=50, norm_num_groups=4
)


def make(*, apart: bool) -> VQ:
    vq = VQ(dataclasses.replace(CONFIG, encode_apart=apart)).eval()
    rng = generator("vq")
    with torch.no_grad():
        for p in vq.parameters():
            p.copy_(torch.randn(p.shape, generator=rng) * (0.3 if p.dim() < 2 else p[0].numel() ** -0.5))
        # Codes where latents are, so that every picture uses many of them.
        z = vq.latents(picture(8, 32, 32)).permute(0, 2, 3, 1).reshape(-1, 6)
        vq.quantize.embedding.weight.copy_(z[torch.randperm(len(z), generator=rng)[:50]])
    return vq


def picture(count: int, high: int, wide: int, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, high, wide, generator=generator("picture", count, high, wide, seed))


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(scope="module", params=[False, True], ids=["whole", "apart"])
def vq(request: pytest.FixtureRequest) -> VQ:
    return make(apart=request.param)


def test_a_codec_takes_tensors_of_any_device(vq: VQ) -> None:
    """The meta device stands for a GPU: mixing it with CPU tensors is an error."""
    assert isinstance(vq, Codec)
    elsewhere: Codec = copy.deepcopy(vq).to("meta")
    assert elsewhere.encode(picture(2, 16, 24)).shape == (2, 4, 6)
    assert elsewhere.decode(torch.zeros(2, 4, 6, dtype=torch.long)).shape == (2, 3, 16, 24)


def test_what_is_no_codec_is_told_apart() -> None:
    assert not isinstance(torch.nn.Identity(), Codec) and not isinstance(torch.nn.Embedding(2, 2), Codec)


def test_shapes(vq: VQ) -> None:
    assert vq.config.factor == 4 and vq.size == 50
    codes = vq.encode(picture(2, 16, 24))
    assert codes.shape == (2, 4, 6) and codes.dtype == torch.long
    assert 0 <= int(codes.min()) and int(codes.max()) < 50 and len(codes.unique()) > 10
    pixels = vq.decode(codes)
    assert pixels.shape == (2, 3, 16, 24) and pixels.dtype == torch.float32
    assert float(pixels.min()) >= 0 and float(pixels.max()) <= 1


def test_a_code_is_the_nearest_in_the_table(vq: VQ) -> None:
    pixels = picture(2, 16, 24)
    z = vq.latents(pixels).permute(0, 2, 3, 1)
    distance = (z[..., None, :] - vq.quantize.embedding.weight).square().sum(-1)
    assert vq.encode(pixels).equal(distance.argmin(-1))


def test_codes_of_a_picture_do_not_depend_on_its_company(vq: VQ) -> None:
    pixels = picture(5, 16, 16)
    together = vq.encode(pixels)
    assert together.equal(torch.cat([vq.encode(p[None]) for p in pixels]))
    decoded = vq.decode(together)
    alone = torch.cat([vq.decode(c[None]) for c in together])
    torch.testing.assert_close(decoded, alone, atol=1e-5, rtol=1e-5)


def test_apart_a_code_is_a_function_of_its_own_square() -> None:
    vq = make(apart=True)
    pixels = picture(3, 16, 24)
    codes = vq.encode(pixels)
    for row, column in ((0, 0), (1, 2), (3, 5)):
        rows, columns = (slice(4 * i, 4 * i + 4) for i in (row, column))
        other = picture(3, 16, 24, seed=1)
        other[:, :, rows, columns] = pixels[:, :, rows, columns]
        assert vq.encode(other)[:, row, column].equal(codes[:, row, column])
        assert vq.encode(pixels[:, :, rows, columns])[:, 0, 0].equal(codes[:, row, column])
    # The same square everywhere is the same code everywhere.
    tiled = pixels[:1, :, :4, :4].repeat(1, 1, 4, 6)
    assert len(vq.encode(tiled).unique()) == 1
    # Every square is read where it stands, row by row.
    moved = pixels.roll((4, -4), dims=(2, 3))
    assert vq.encode(moved).equal(codes.roll((1, -1), dims=(1, 2)))


def test_whole_a_code_sees_its_neighbours() -> None:
    """As the released tokenizer does it: the difference is real, and ``encode_apart`` is what makes it."""
    vq = make(apart=False)
    pixels = picture(1, 16, 16)
    other = pixels.clone()
    other[:, :, :4, :4] = 1 - other[:, :, :4, :4]
    before, after = vq.latents(pixels), vq.latents(other)
    assert not torch.allclose(before[:, :, 0, 1], after[:, :, 0, 1])
    assert not torch.allclose(before, make(apart=True).latents(pixels))


def test_the_decoder_sees_the_whole_grid() -> None:
    vq = make(apart=True)
    codes = vq.encode(picture(1, 16, 16))
    other = codes.clone()
    other[0, 0, 0] = (other[0, 0, 0] + 1) % 50
    changed = (vq.from_latents(latents(vq, codes)) != vq.from_latents(latents(vq, other))).any(1)[0]
    assert changed[:4, :4].any() and changed[4:8, 4:8].any()


def latents(vq: VQ, codes: Tensor) -> Tensor:
    return vq.quantize.embedding(codes).permute(0, 3, 1, 2)


def test_decoding_clips_what_the_decoder_says(vq: VQ) -> None:
    codes = vq.encode(picture(1, 16, 16))
    raw = vq.from_latents(latents(vq, codes))
    torch.testing.assert_close(vq.decode(codes), raw.clamp(0, 1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("high", "wide"), [(15, 16), (16, 18), (1, 1), (2, 4)])
def test_a_size_that_does_not_fit(vq: VQ, high: int, wide: int) -> None:
    with pytest.raises(ValueError, match=f"image of {wide}x{high} px: both sides must be multiples of 4 px"):
        vq.encode(picture(1, high, wide))


def test_the_smallest_picture(vq: VQ) -> None:
    assert vq.encode(picture(1, 4, 4)).shape == (1, 1, 1)
