"""DiDA: a causal image-token model becomes one that draws a picture in a few forwards (``methods.dida``).

    unmask train image_tokens.causal --out runs/causal
    unmask train dida.adapt --model runs/causal --out runs/dida
    unmask generate "a blue cat on a white background" --model runs/dida --steps 8

``--data`` adapts on your own captions. The pictures are drawn by the causal model itself (``-o pictures=own``, as in the paper), or are
those of the data (``-o pictures=data``). The model keeps its size, its files and its text.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path

import torch
from torch import Tensor

from unmask.checkpoints.store import read_tensors, save_tensors
from unmask.methods.dida import Adaptation, canvas, two_copies
from unmask.methods.dida import causal as as_causal
from unmask.models.elastic import Elastic
from unmask.pipeline import image_tokens
from unmask.pipeline.image_tokens import Kit
from unmask.recipe import Optim, Recipe
from unmask.recipes.image_tokens import (
    PROMPT,
    Coded,
    CodedRows,
    model_of,
    open_as,
    own,
    training,
    world,
)
from unmask.sampling.sampler import Sampler
from unmask.sampling.schedule import Shift
from unmask.sampling.selection import Confident
from unmask.sampling.token_sampler import Categorical
from unmask.sequence import Sequence, collate
from unmask.tasks.image_tokens import code_by_code
from unmask.tasks.parts import Parts
from unmask.tokens.image_tokens import drawn

DIDA = "dida.adapt"
PICTURES = ("own", "data")
_BATCH = 64  # pictures that are drawn together


def parallel(tokens: Parts) -> Sampler:
    """The sampler of an adapted model: 8 steps, the most confident codes first with decreasing noise."""
    return Sampler(schedule=Shift(steps=8, shift=3.0), token_sampler=Categorical(), selection=Confident(noise=1.0))


def adapt(
    model: str = "",
    data: str = "",
    pictures: str = "own",
    count: int = 2000,
    leak: bool = False,
    batch: int = 32,
    steps: int = 400,
    lr: float = 2e-3,
    seed: int = 0,
    folder: str = "",
) -> Recipe:
    """A causal image-token model adapted to parallel blocks.

    ``model``: a folder of a causal image-token model · ``data``: your own captions and pictures; "": the small world · ``pictures``: own,
    drawn by the causal model, or those of the data · ``count``: how many are drawn · ``leak``: the mask that lets a noisy picture read its
    clean copy, as a negative control.
    """
    if pictures not in PICTURES:
        raise ValueError(f"pictures {pictures!r} is unknown; choose from {', '.join(PICTURES)}")

    def rows() -> Coded:
        kit = start(model)[1]
        given = own(data, kit) if data else world(count, seed)
        return drawn_by(model, given, count, seed, folder) if pictures == "own" else given

    def row(text: str, codes: Tensor) -> Sequence:
        return two_copies(drawn(start(model)[1].text, text, codes), leak=leak)

    def network() -> Elastic:
        return image_tokens.opened(_named(model))[0]

    return Recipe(
        name=DIDA,
        model=network,
        source=CodedRows(data=lru_cache(maxsize=1)(rows), row=row, seed=seed, batch=batch),
        objective=Adaptation(dropouts=(PROMPT,)),
        optim=Optim(lr=lr, warmup=30, decay_from=0.3, floor=0.05, ema=0.99),
        training=training(steps, seed),
        export=lambda module, folder: image_tokens.save(folder, module, start(model)[1], DIDA),
        open=partial(open_as, arrange=canvas, sampler=parallel),
    )


@lru_cache(maxsize=2)
def start(model: str) -> tuple[Elastic, Kit]:
    """The causal model that is adapted. ValueError without one, and for a network that is not causal."""
    net, kit = image_tokens.opened(_named(model))
    if not net.config.shifted:
        raise ValueError(
            f"{model} does not predict the next token, so it is no causal model; give one, or train image_tokens.causal"
        )
    return net, kit


def _named(model: str) -> Path:
    if not model:
        raise ValueError("give the causal model to adapt: --model FOLDER; `unmask train image_tokens.causal` makes one")
    return Path(model)


def drawn_by(model: str, given: Coded, count: int, seed: int, folder: str) -> Coded:
    """``count`` pictures that the causal model draws of the captions, in turn. ``folder``: keeps them for a resumed run."""
    texts = tuple(given.texts[i % len(given.texts)] for i in range(count))
    place = Path(folder) if folder else None
    if place and (place / "own.safetensors").exists():
        return Coded(texts=texts, codes=read_tensors(place, "own")["codes"])
    net, kit = start(model)
    codes = draw(net, kit, texts, code_by_code, as_causal, seed=seed)
    if place:
        save_tensors({"codes": codes}, place, name="own", shard=2**40)
    return Coded(texts=texts, codes=codes)


def draw(
    net: Elastic,
    kit: Kit,
    texts: tuple[str, ...],
    sampler: Callable[[Parts], Sampler],
    arrange: Callable[[Sequence], Sequence],
    *,
    seed: int,
) -> Tensor:
    """Codes of a picture for each text, [N, h, w]; picture i has the seed ``seed`` + i."""
    chosen, codes = sampler(model_of(net, kit, arrange, sampler).parts), []
    net.eval()
    for first in range(0, len(texts), _BATCH):
        rows = [arrange(drawn(kit.text, text, kit.grid)) for text in texts[first : first + _BATCH]]
        batch = collate(rows, range(seed + first, seed + first + len(rows)))
        done = chosen.sample(net, batch)
        at = [row.span("image") for row in rows]
        codes += [done.ids[i, span.start : span.stop].view(kit.grid) for i, span in enumerate(at)]
    return torch.stack(codes)
