"""The target of alignment: words by their embeddings, other labels by fixed codes, on any device."""

from __future__ import annotations

import torch

from unmask.objectives.align import Aligned
from unmask.rng import generator

ALIGNED = Aligned(words=(("shape", ((4,), (5, 6), ())), ("colour", ((1,), (2,)))), codes=(("cell", 4),), scale=0.5)
LABELS = {
    "shape": torch.tensor([[[0, 1], [2, 1]]]),
    "colour": torch.tensor([[[0, 0], [1, 1]]]),
    "cell": torch.tensor([[[0, 1], [2, 3]]]),
}


def test_a_cell_is_the_sum_of_its_words_and_codes() -> None:
    embedding = torch.randn(8, 6, generator=generator("embedding"))
    found = ALIGNED.target(embedding, LABELS)
    codes = torch.randn(4, 6, generator=generator("align", "cell")) * 0.5
    assert found.shape == (1, 2, 2, 6)
    torch.testing.assert_close(found[0, 0, 1], embedding[5] + embedding[6] + embedding[1] + codes[1])
    torch.testing.assert_close(found[0, 1, 0], embedding[2] + codes[2])  # a class without words


def test_the_target_is_on_the_embeddings_device() -> None:
    """Fault: it was computed with tables on the CPU. A meta tensor does not mix with them, as one of a GPU."""
    found = ALIGNED.target(torch.empty(8, 6, device="meta"), {name: t.to("meta") for name, t in LABELS.items()})
    assert found.device.type == "meta" and found.shape == (1, 2, 2, 6)
