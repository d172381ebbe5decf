"""Captions of pictures as words, the features of the pictures, and a masked captioner: what ``ladic`` is compared with.

    unmask train captioning.masked --out runs/masked

A caption says what stands where in a picture of the small world. Pictures are read by the vision tower of the embedded model, which is
frozen.
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass
from functools import lru_cache
from random import Random

import torch
from PIL import Image
from torch import Tensor, nn

from unmask.corruption.absorbing import Absorbing
from unmask.corruption.schedules import OftenAll, Uniform
from unmask.data.opening import usable
from unmask.data.samples import Caption, DataError
from unmask.data.world.pairs import Pair, Pairs
from unmask.data.world.render import render
from unmask.models.elastic import Elastic, init
from unmask.models.sizes import text_config
from unmask.objectives.masked import Dropout, Masked
from unmask.recipe import Optim, Recipe, Training
from unmask.recipes.conditions import frozen
from unmask.rng import generator, seeded
from unmask.sampling.guidance import ClassifierFree
from unmask.sampling.sampler import Sampler
from unmask.sampling.schedule import Equal
from unmask.sampling.selection import Confident
from unmask.sampling.token_sampler import Greedy
from unmask.sequence import Batch, Kind, Sequence, Span, collate
from unmask.step import Prediction, Reuse

SPECIAL = ("[PAD]", "[CLS]", "[SEP]", "[MASK]", ".")
PAD, FIRST, LAST, MASKED, STOP = range(len(SPECIAL))
PICTURE = frozenset({"picture"})
SHOWN = Pairs(
    classes=("dog", "cat", "bird", "apple", "banana", "car", "book", "umbrella"),
    colours=("red", "yellow", "green", "blue", "purple", "pink"),
    backgrounds=("white", "sky"),
    places=True,
)
_MOST, _AT_ONCE = 20_000, 64  # pictures of own data, and those that are read at a time


@dataclass(frozen=True, kw_only=True)
class Words:
    """The words of captions, by number. ``length``: tokens of a caption with its marks and padding."""

    words: tuple[str, ...]
    length: int

    def ids(self, text: str) -> Tensor:
        """[L]: the first mark, the words, a full stop, the last mark and padding. ValueError for a text that is too long or has others."""
        said = text.lower().replace(".", " ").replace(",", " ").split()
        if len(said) + 3 > self.length:
            raise ValueError(f"a caption has {len(said)} words, more than {self.length - 3}; shorten it")
        if unknown := [word for word in said if word not in self.words]:
            raise ValueError(f"the word {unknown[0]!r} is not in the vocabulary; train with captions that have it")
        marked = [FIRST, *(self.words.index(word) for word in said), STOP, LAST]
        return torch.tensor(marked + [PAD] * (self.length - len(marked)))

    def said(self, ids: Items[int]) -> list[str]:
        """The words of ids up to the last mark; other marks are left out."""
        kept = list(ids)
        kept = kept[: kept.index(LAST)] if LAST in kept else kept
        return [self.words[i] for i in kept if i == STOP or i >= len(SPECIAL)]


def words_of(texts: Items[str]) -> Words:
    """The words that occur in texts."""
    said = [text.lower().replace(".", " ").replace(",", " ").split() for text in texts]
    own = sorted({word for one in said for word in one})
    return Words(words=(*SPECIAL, *own), length=max(len(one) for one in said) + 3)


@dataclass(frozen=True, kw_only=True)
class Captioned:
    """Captions with the features of their pictures, [N, P, D]."""

    texts: tuple[str, ...]
    features: Tensor
    words: Words

    def some(self, rng: Random, count: int) -> list[int]:
        return [rng.randrange(len(self.texts)) for _ in range(count)]


@torch.no_grad()
def features_of(pictures: Items[Image.Image]) -> Tensor:
    """What the embedded model's vision tower sees, [N, P, D]."""
    parts = frozen()
    read = [parts.preprocess(one)[0] for one in pictures]
    parts_of = [torch.stack(read[i : i + _AT_ONCE]) for i in range(0, len(read), _AT_ONCE)]
    return torch.cat([parts.net.features(some).unflatten(0, (len(some), -1)) for some in parts_of])


@lru_cache(maxsize=1)
def world_words() -> Words:
    return words_of([SHOWN(-1, i, split).text for split in ("train", "test") for i in range(500)])


@lru_cache(maxsize=4)
def world(count: int, seed: int, split: str = "train") -> tuple[tuple[Pair, ...], Captioned]:
    """``count`` pictures of the small world."""
    pairs = tuple(SHOWN(seed, i, split) for i in range(count))
    seen = features_of([Image.fromarray(render(pair.scene, frozen().side)) for pair in pairs])
    return pairs, Captioned(texts=tuple(pair.text for pair in pairs), features=seen, words=world_words())


@lru_cache(maxsize=2)
def own(data: str) -> Captioned:
    """The captions of a user's data. DataError where too many rows are broken, or none has a caption."""
    texts, pictures = list[str](), list[Tensor]()
    for sample, seen in usable(data, Caption, most=_MOST):
        texts.append(sample.text)
        pictures.append(features_of([seen[0]]))
    if not texts:
        raise DataError(f"{data} has no picture with a text; put a .txt beside each picture, as docs/data.md says")
    return Captioned(texts=tuple(texts), features=torch.cat(pictures), words=words_of(texts))


def true_of(pair: Pair, said: Items[str]) -> bool:
    """Whether words are the caption of a picture."""
    return " ".join(word for word in said if word != ".") == pair.text


# -- the masked captioner ----------------------------------------------------------------------------------------------


class Reads(nn.Module):
    """A masked captioner: a text network that reads features of pictures of any width."""

    def __init__(self, words: int, features: int, *, width: int, layers: int) -> None:
        super().__init__()
        size = text_config(vocab_size=words, width=width, heads=4, layers=layers, mlp=2 * width, rope_theta=500.0)
        self.net, self.mask_id = Elastic(size, mask_id=MASKED), MASKED
        self.see = nn.Sequential(nn.LayerNorm(features), nn.Linear(features, width))

    def forward(self, batch: Batch, *, predict: Tensor | None = None, reuse: Reuse | None = None) -> Prediction:
        assert batch.features is not None
        return self.net(batch.replace(features=self.see(batch.features)), predict=predict, reuse=reuse)


def row(features: Tensor, ids: Tensor) -> Sequence:
    """A picture [P, D] and its caption [L], which is to be written."""
    seen, length = len(features), len(features) + len(ids)
    spans = (
        Span(name="picture", kind=Kind.FEATURE, start=0, stop=seen),
        Span(name="caption", kind=Kind.TEXT, start=seen, stop=length, writable=True),
    )
    whole = torch.cat([ids.new_zeros(seen), ids])
    return Sequence(ids=whole, masked=torch.arange(length) >= seen, spans=spans, features=features)


def masked(
    data: str = "",
    width: int = 64,
    layers: int = 3,
    pictures: int = 800,
    batch: int = 32,
    steps: int = 400,
    lr: float = 3e-3,
    seed: int = 0,
) -> Recipe:
    """A captioner by masked diffusion. ``data``: your own captions and pictures; "": ``pictures`` pictures of the small world."""

    def captions() -> Captioned:
        return own(data) if data else world(pictures, 0)[1]

    def network() -> Reads:
        words, features = len(captions().words.words), captions().features.shape[-1]
        made = seeded(lambda: Reads(words, features, width=width, layers=layers), seed)
        init(made.net, generator("captioner", seed))
        return made

    def rows(step: int) -> Batch:
        found = captions()
        chosen = found.some(Random(f"captions/{seed}/{step}"), batch)
        return collate([row(found.features[i], found.words.ids(found.texts[i])) for i in chosen], range(batch))

    return Recipe(
        name="captioning.masked",
        model=network,
        source=rows,
        objective=Masked(
            corruption=Absorbing(policies={Kind.TEXT: OftenAll(policy=Uniform(), all=0.2)}),
            dropouts=(Dropout(spans=PICTURE, rate=0.1),),
        ),
        optim=Optim(lr=lr, warmup=50, decay_from=0.4, floor=0.05, ema=0.99),
        training=Training(steps=steps, seed=seed, save_every=400, bf16=False, device="cpu"),
    )


def written(net: Reads, found: Captioned, passes: int, scale: float) -> list[list[str]]:
    """The words of a caption for every picture, in ``passes`` forwards of two views."""
    blank = torch.zeros(found.words.length, dtype=torch.long)
    batch = collate([row(features, blank) for features in found.features], range(len(found.features)))
    sampler = Sampler(
        schedule=Equal(steps=passes),
        guidance=ClassifierFree(scale=scale, drop=PICTURE, null_id=MASKED),
        token_sampler=Greedy(),
        selection=Confident(),
    )
    done = sampler.sample(net, batch).ids[:, found.features.shape[1] :]
    return [found.words.said(one) for one in done.tolist()]
