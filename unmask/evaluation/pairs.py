"""Pictures of ``data.world.pairs`` judged from their codes: do they show what a text says?

Public idea: ``PairJudge(encode, ...)(codes) -> [Seen]``; ``right`` compares with a scene, ``agrees`` with a report. A picture is put
together from the mean square of each code, which costs a hundredth of the decoder.

Shapes: N pictures · h w codes · V codes of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from unmask.data.sources import CachedEncoder, pixels_of
from unmask.data.world.language import article, at, noun, position_word
from unmask.data.world.pairs import Pair, Pairs
from unmask.data.world.scenes import SceneObject
from unmask.data.world.vocabulary import BACKGROUNDS
from unmask.evaluation.judge import Found, Seen, load_judge

_PICTURES = 600  # that the mean squares are taken from


class PairJudge:
    """``encode``: pixels [B, 3, H, W] -> codes [B, h, w], each of its own square · ``codes``: V · ``side``: pixels of a picture."""

    def __init__(self, encode: Callable[[Tensor], Tensor], codes: int, side: int, pairs: Pairs) -> None:
        pixels = pixels_of([pairs(-2, i).scene for i in range(_PICTURES)], side)
        with torch.no_grad():
            ids = CachedEncoder(encode)(pixels)
        self.side, self.square = side, side // ids.shape[1]
        parts = F.unfold(pixels, self.square, stride=self.square).transpose(1, 2).flatten(0, 1)
        sums = torch.zeros(codes, parts.shape[1]).index_add_(0, ids.flatten(), parts)
        self.mean_VP = sums / torch.bincount(ids.flatten(), minlength=codes).clamp(min=1)[:, None]

    def pictures(self, codes_Nhw: Tensor) -> np.ndarray:
        """uint8 [N, side, side, 3]."""
        parts = self.mean_VP[codes_Nhw.flatten(1)].transpose(1, 2)
        pixels = F.fold(parts, self.side, self.square, stride=self.square)
        return (pixels * 255 + 0.5).clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()

    def __call__(self, codes_Nhw: Tensor) -> list[Seen]:
        return load_judge().look(self.pictures(codes_Nhw))


def right(seen: Sequence[Seen], pairs: Sequence[Pair]) -> list[bool]:
    """Whether each picture shows exactly the objects of its scene, in their colours, on its background; they may be anywhere."""
    return [
        _kinds(one.objects) == _kinds(pair.scene.objects) and one.background == pair.scene.background
        for one, pair in zip(seen, pairs, strict=True)
    ]


def agrees(seen: Sequence[Seen], reports: Sequence[str], *, placed: bool) -> list[bool]:
    """Whether each report names exactly the objects of its picture, and its background. ``placed``: with the places of the objects, as
    texts of ``Pairs(places=True)`` do; else without.
    """
    return [report in _said(one, placed) for one, report in zip(seen, reports, strict=True)]


def places(seen: Sequence[Seen]) -> float:
    """The number of places that the first objects take, as the exponential of the entropy over a 3 x 3 grid; 0 without objects."""
    words = [_placed(one.objects[0]) for one in seen if one.objects]
    if not words:
        return 0.0
    share = np.unique(words, return_counts=True)[1] / len(words)
    return float(np.exp(-(share * np.log(share)).sum()))


def _kinds(objects: Sequence[Found] | Sequence[SceneObject]) -> list[tuple[str, str]]:
    return sorted((one.name, one.colour) for one in objects)


def _placed(found: Found) -> str:
    (x, y), extent = found.centre, 0.5
    return position_word(
        SceneObject(name=found.name, colour=found.colour, x=x - extent / 2, y=y - extent / 2, size=extent)
    )


def _said(seen: Seen, placed: bool) -> set[str]:
    """Every right report of a picture of one or two objects."""
    named = [article(noun_of(one)) + (f" {at(_placed(one))}" if placed else "") for one in seen.objects]
    end = BACKGROUNDS[seen.background][0]
    return {f"{' and '.join(order)} {end}" for order in (named, named[::-1])} if named else set()


def noun_of(found: Found) -> str:
    """``red apple``, or ``apple`` for the natural colour."""
    return noun(SceneObject(name=found.name, colour=found.colour, x=0, y=0, size=0.5))
