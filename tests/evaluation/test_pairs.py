"""Pictures put together from mean squares are judged as renderings are, and reports are compared with what was seen."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from unmask.data.sources import CachedEncoder, pixels_of
from unmask.data.world.pairs import Pairs
from unmask.evaluation.judge import load_judge
from unmask.evaluation.pairs import PairJudge, agrees, places, right
from unmask.recipes import diffdis, image_tokens, medim
from unmask.recipes.image_tokens import world_kit

torch.set_num_threads(1)
PAIRS = Pairs(places=True)


def test_codes_are_judged_as_their_renderings_are() -> None:
    kit = world_kit()
    judge = PairJudge(kit.vq.encode, kit.vq.config.num_vq_embeddings, kit.side, PAIRS)
    made = [PAIRS(9, i) for i in range(12)]
    pixels = pixels_of([p.scene for p in made], kit.side)
    with torch.no_grad():
        codes = CachedEncoder(kit.vq.encode)(pixels)
    seen = judge(codes)
    assert all(right(seen, made)) and all(agrees(seen, [p.text for p in made], placed=True))
    drawn = [np.asarray(image) for image in kit.decode(codes[:4])]
    assert all(right(load_judge().look(drawn), made[:4])), "the decoder's pictures show the same"
    shifted = made[1:] + made[:1]
    wrong = [a.text != b.text for a, b in zip(made, shifted, strict=True)]
    assert [not r for r in agrees(seen, [p.text for p in shifted], placed=True)] == wrong
    assert 2.0 < places(seen) <= 9.0 and places([]) == 0.0


def test_an_empty_picture_is_wrong_and_has_no_report() -> None:
    kit = world_kit()
    judge = PairJudge(kit.vq.encode, kit.vq.config.num_vq_embeddings, kit.side, PAIRS)
    with torch.no_grad():
        codes = CachedEncoder(kit.vq.encode)(pixels_of([PAIRS(9, 0).scene], kit.side))
    empty = codes.clone().fill_(int(codes.flatten().mode().values))
    (seen,) = judge(empty)
    assert not seen.objects and right([seen], [PAIRS(9, 0)]) == [False]
    assert agrees([seen], [PAIRS(9, 0).text], placed=True) == [False]


@pytest.mark.parametrize(
    "pairs", [medim.REPORTED, image_tokens.PAIRS, diffdis.WORLD], ids=["medim", "promoe", "diffdis"]
)
def test_true_pictures_of_a_demonstration_agree_with_their_texts(pairs: Pairs) -> None:
    truth = image_tokens.world(24, 77, pairs)
    seen = image_tokens.world_judge(pairs)(truth.codes)
    assert sum(agrees(seen, truth.texts, placed=pairs.places)) >= 22
    assert not any(agrees(seen, truth.texts, placed=not pairs.places)), "the other form of a text is another text"
