"""Causal image-token models: the starting point of ``dida`` and ``medim``, trained here in minutes.

    unmask train image_tokens.causal --out runs/causal                    captions and pictures of the small world
    unmask train image_tokens.causal --data pets --out runs/pets          your own: a folder of pictures with texts (docs/data.md)
    unmask generate "a red apple on a white background" --model runs/causal

Text and codes are tokens of one vocabulary, each predicted from those before it: first the caption, then the picture in reading order. The
image tokenizer is that of the embedded model, with the codes that the pictures need.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from random import Random

import torch
from torch import Tensor

from unmask.data.opening import usable
from unmask.data.samples import Caption, DataError
from unmask.data.sources import CachedEncoder, pixels_of
from unmask.data.world.pairs import Pairs
from unmask.evaluation.pairs import PairJudge
from unmask.methods.dida import causal as as_causal
from unmask.models.elastic import Elastic, init
from unmask.objectives.masked import Dropout
from unmask.objectives.next_token import NextToken
from unmask.pipeline import image_tokens
from unmask.pipeline.image_tokens import Kit, trunk, with_codes
from unmask.pipeline.model import Model
from unmask.recipe import Optim, Recipe, Training
from unmask.recipes.starting import start_of
from unmask.rng import generator
from unmask.sampling.guidance import ClassifierFree
from unmask.sampling.sampler import Sampler
from unmask.sampling.schedule import Cosine
from unmask.sampling.selection import Confident
from unmask.sampling.token_sampler import Categorical
from unmask.sequence import Batch, Sequence, collate
from unmask.tasks.image_tokens import ImageTokenRows, code_by_code
from unmask.tasks.parts import Parts
from unmask.tasks.some_tasks import drawing_and_answering, refusing
from unmask.tokens.image_tokens import drawn, reported
from unmask.tokens.prompts import COMPACT
from unmask.tokens.text import MASK
from unmask.tokens.vq import VQ

PAIRS = Pairs()
CAUSAL = "image_tokens.causal"
PROMPT = Dropout(spans=frozenset({"prompt"}), rate=0.1)
LONGEST = 400  # tokens of a caption
_MOST = 100_000  # pictures of own data, whose codes are kept in memory


@dataclass(frozen=True, kw_only=True)
class Coded:
    """Texts with the codes of their pictures, [N, h, w]."""

    texts: tuple[str, ...]
    codes: Tensor


@dataclass(frozen=True, kw_only=True)
class CodedRows:
    """Batches of a fixed set, drawn with replacement. ``data``: makes the set when it is first needed · ``row(text, codes)``: one row."""

    data: Callable[[], Coded]
    row: Callable[[str, Tensor], Sequence]
    seed: int
    batch: int = 32

    def __call__(self, step: int) -> Batch:
        rng, data = Random(f"coded/{self.seed}/{step}"), self.data()
        some = [rng.randrange(len(data.texts)) for _ in range(self.batch)]
        return collate([self.row(data.texts[i], data.codes[i]) for i in some], range(self.batch))


@lru_cache(maxsize=1)
def mini_kit() -> Kit:
    """The embedded model's tokenizers."""
    parts = start_of("mini").parts
    assert isinstance(parts.vq, VQ)
    return Kit(text=parts.text, vq=parts.vq.eval(), side=parts.side)


def world_kit(pairs: Pairs = PAIRS) -> Kit:
    """The embedded model's tokenizers with the codes that 1,000 pictures of the small world have, about 300."""
    return _world_kit(pairs)


@lru_cache(maxsize=4)
def _world_kit(pairs: Pairs) -> Kit:
    whole = mini_kit()
    with torch.no_grad():
        codes = CachedEncoder(whole.vq.encode)(pixels_of([pairs(-1, i).scene for i in range(1000)], whole.side))
    return replace(whole, vq=with_codes(whole.vq, codes.unique()))


@lru_cache(maxsize=4)
def world_judge(pairs: Pairs = PAIRS) -> PairJudge:
    """The judge of pictures in codes of ``world_kit``."""
    kit = world_kit(replace(pairs, places=False))
    return PairJudge(kit.vq.encode, kit.vq.config.num_vq_embeddings, kit.side, pairs)


def guided(tokens: Parts) -> Sampler:
    """Drawing in sixteen steps with guidance."""
    return Sampler(
        schedule=Cosine(steps=16),
        guidance=ClassifierFree(scale=1.0, drop=PROMPT.spans, null_id=tokens.mask_id),
        token_sampler=Categorical(temperature=0.5),
        selection=Confident(noise=1.0),
    )


@lru_cache(maxsize=8)
def world(count: int, seed: int, pairs: Pairs = PAIRS, split: str = "train") -> Coded:
    """``count`` pairs of the small world, in codes of ``world_kit``."""
    kit, made = world_kit(replace(pairs, places=False)), [pairs(seed, i, split) for i in range(count)]
    encode = CachedEncoder(kit.vq.encode)
    with torch.no_grad():
        parts = [encode(pixels_of([p.scene for p in made[i : i + 100]], kit.side)) for i in range(0, count, 100)]
    return Coded(texts=tuple(p.text for p in made), codes=torch.cat(parts))


@lru_cache(maxsize=4)
def own(data: str, kit: Kit, longest: int = LONGEST) -> Coded:
    """The captions of a user's data of at most ``longest`` tokens, with the codes of their pictures.

    DataError where too many rows are broken or too long, or none has a caption.
    """

    def wrong(sample: Caption) -> str:
        tokens = len(kit.text.encode(sample.text))
        return f"{sample.key} has a text of {tokens} tokens, more than {longest}" if tokens > longest else ""

    texts, codes = [], []
    for sample, pictures in usable(data, Caption, most=_MOST, wrong=wrong):
        texts.append(sample.text)
        codes.append(kit.encode(pictures[0]))
    if not texts:
        raise DataError(f"{data} has no picture with a text; put a .txt beside each picture, as docs/data.md says")
    return Coded(texts=tuple(texts), codes=torch.stack(codes))


def causal_row(sequence: Sequence) -> Sequence:
    """The row with a causal mask; all of it is learned."""
    made = as_causal(sequence)
    return replace(made, spans=tuple(replace(span, writable=True) for span in made.spans))


def causal(
    data: str = "",
    width: int = 64,
    layers: int = 3,
    pictures: int = 4000,
    batch: int = 32,
    steps: int = 600,
    lr: float = 5e-3,
    reports: int = 0,
    seed: int = 0,
) -> Recipe:
    """The causal model. ``data``: your own captions and pictures; "": ``pictures`` pictures of the small world.

    ``reports``: 0 for the caption first and then the picture; else the picture first, and then a report of so many tokens (``medim``).
    """
    kit = mini_kit if data else world_kit
    pairs = replace(PAIRS, places=bool(reports))

    def model() -> Elastic:
        net = Elastic(trunk(kit(), width=width, layers=layers), mask_id=kit().text[MASK])
        init(net, generator("image tokens", seed))
        return net

    def row(text: str, codes: Tensor) -> Sequence:
        return causal_row(reported(kit().text, codes, text, reports) if reports else drawn(kit().text, text, codes))

    return Recipe(
        name=CAUSAL,
        model=model,
        source=CodedRows(
            data=lambda: (
                own(data, kit(), reports - 1 if reports else LONGEST) if data else world(pictures, seed, pairs)
            ),
            row=row,
            seed=seed,
            batch=batch,
        ),
        objective=NextToken(dropouts=(PROMPT,)),
        optim=Optim(lr=lr, warmup=50, decay_from=0.3, floor=0.05, ema=0.99),
        training=training(steps, seed),
        export=lambda module, folder: image_tokens.write_folder(folder, module, module.config, kit(), CAUSAL),
        open=partial(open_as, arrange=as_causal, sampler=code_by_code),
    )


def training(steps: int, seed: int) -> Training:
    """Of networks this small: on the CPU in float32."""
    return Training(steps=steps, seed=seed, device="cpu", bf16=False, save_every=200, log_every=20)


def open_as(
    folder: Path, device: str, arrange: Callable[[Sequence], Sequence], sampler: Callable[[Parts], Sampler]
) -> Model:
    """``Recipe.open`` of image-token models. ``arrange``: see ``ImageTokenRows``."""
    return model_of(*image_tokens.opened(folder, device), arrange, sampler)


def model_of(
    net: Elastic, kit: Kit, arrange: Callable[[Sequence], Sequence], sampler: Callable[[Parts], Sampler]
) -> Model:
    """The model of a network: it draws, and has no other task."""
    parts = Parts(
        text=kit.text,
        net=net,
        vq=kit.vq,
        wording=COMPACT,
        side=kit.side,
        fold=1,
        rows=ImageTokenRows(arrange=arrange),
    )
    cannot = refusing("an image-token model cannot", "it has generate")("answer questions")
    presets = drawing_and_answering("an image-token model", "it has generate", generate=sampler, ask=cannot, length=1)
    return Model(parts, presets=presets)
