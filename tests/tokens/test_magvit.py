"""MAGVIT-v2: the measured latents, codes and pixels, and the sizes of the released tokenizer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from unmask.checkpoints.loading import load_everything
from unmask.checkpoints.mmada import survey_mmada
from unmask.checkpoints.store import read_tensors
from unmask.models.unfilled import unfilled
from unmask.tokens.magvit import Magvit, MagvitConfig, MagvitHalf

torch.set_num_threads(1)
GOLDEN = Path(__file__).parents[1] / "golden" / "mmada_tiny"


@pytest.fixture(scope="module")
def magvit() -> Magvit:
    vq = load_everything(survey_mmada(GOLDEN))[1]
    assert isinstance(vq, Magvit)
    return vq


def test_it_equals_what_was_measured(magvit: Magvit) -> None:
    measured = read_tensors(GOLDEN, "expected")
    image, codes = measured["vq.image"], measured["vq.codes"].view(1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(magvit.latents(image), measured["vq.latents"], atol=1e-5, rtol=0)
        assert torch.equal(magvit.encode((image + 1) / 2), codes)
        torch.testing.assert_close(magvit.from_codes(codes), measured["vq.decoded"], atol=1e-5, rtol=0)
        decoded = magvit.decode(codes)
    assert decoded.min() >= 0 and decoded.max() <= 1
    torch.testing.assert_close(decoded, ((measured["vq.decoded"] + 1) / 2).clamp(0, 1), atol=1e-5, rtol=0)


def test_the_first_channel_is_the_most_significant_bit_and_zero_is_negative(magvit: Magvit) -> None:
    z = torch.tensor([1.0, -1, 0, 2, -3, 1, -1]).view(1, 7, 1, 1)
    assert magvit.codes(z).tolist() == [[[0b1001010]]] and magvit.size == 128


def test_the_released_tokenizer_has_its_published_size() -> None:
    with unfilled():
        whole = MagvitConfig().build()
    sizes = [sum(p.numel() for p in half.parameters()) for half in (whole.encoder, whole.decoder)]
    assert sizes == [55_439_171, 39_947_833] and len(whole.state_dict()) == 382 - 2  # without the two tables
    assert whole.size == 8192 and whole.config.factor == 16


def test_pictures_and_shapes_that_do_not_fit_are_refused(magvit: Magvit) -> None:
    with pytest.raises(ValueError, match="30x32 px: both sides must be multiples of 4"):
        magvit.encode(torch.zeros(1, 3, 32, 30))
    with pytest.raises(ValueError, match="must be of the same levels"):
        MagvitHalf(width=32, multiples=(1, 2), blocks=(1,))
    with pytest.raises(ValueError, match="a multiple of 32"):
        MagvitHalf(width=40)
    with pytest.raises(ValueError, match="as many levels"):
        MagvitConfig(encoder=MagvitHalf(width=32, multiples=(1,), blocks=(1,)))
