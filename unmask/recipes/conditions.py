"""The embedded model as a frozen generator that reads vectors in place of its prompt. Public ideas: ``frozen()``, ``conditioned(..)``.

The prompt of a drawing becomes a span of features, which the network takes as they are, so that an adapter or a mapper can write them and
learn from the pictures (``sur_adapter``, ``gill``).

Shapes: B drawings · L tokens of a prompt, padded · D width of the network.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

import unmask
from unmask.evaluation.judge import load_judge
from unmask.evaluation.scoring import Want, verdict
from unmask.pipeline.model import Model
from unmask.sampling.sampler import Sampler
from unmask.sequence import Batch, Kind, Sequence, collate
from unmask.tasks.generate import picture_codes
from unmask.tasks.generate import sampler as drawing_sampler
from unmask.tasks.parts import Parts
from unmask.tasks.rows import ChatRows, Extras, Rows
from unmask.tasks.some_tasks import drawing_and_answering, refusing
from unmask.tokens.build import drawing
from unmask.tokens.text import MASK

_PROMPT = "prompt"


@lru_cache(maxsize=1)
def frozen() -> Parts:
    """The embedded model, whose weights take no gradient."""
    model = unmask.load("mini", device="cpu")
    assert isinstance(model, Model)
    model.parts.net.requires_grad_(False).eval()
    return model.parts


def fingerprint(net: nn.Module) -> str:
    """A hash of every bit of the weights."""
    found = hashlib.blake2b()
    for tensor in net.state_dict().values():
        found.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def prompt_ids(parts: Parts, text: str, length: int) -> Tensor:
    """The prompt of a drawing, [L], padded with the null id. ValueError for one that is longer."""
    built = drawing(parts.builder(), text, parts.grid, fold=parts.fold)
    span = built.span(_PROMPT)
    ids = built.ids[span.start : span.stop]
    if len(ids) > length:
        raise ValueError(f"the prompt {text[:50]!r} has {len(ids)} tokens, more than {length}; shorten it")
    return torch.cat([ids, ids.new_full((length - len(ids),), parts.text[MASK])])


def states_of(parts: Parts, texts: Items[str], length: int) -> Tensor:
    """The embedded prompts, [B, L, D]."""
    with torch.no_grad():
        return parts.net.embed(torch.stack([prompt_ids(parts, text, length) for text in texts]))


def told(parts: Parts, states: Tensor, codes: Tensor | None = None) -> Sequence:
    """A drawing whose prompt are the vectors [L, D]; ``codes`` [h, w]: of its picture, None where it is to be drawn."""
    built = drawing(parts.builder(), "", parts.grid if codes is None else codes, fold=parts.fold)
    old, size = built.span(_PROMPT), len(states)
    more = size - len(old)
    spans = tuple(
        replace(span, kind=Kind.FEATURE, stop=span.start + size)
        if span == old
        else replace(span, start=span.start + more, stop=span.stop + more)
        for span in built.spans
    )
    room = built.ids.new_zeros(size)
    return Sequence(
        ids=torch.cat([room, built.ids[old.stop :]]),
        masked=torch.cat([room.bool(), built.masked[old.stop :]]),
        spans=spans,
        features=states,
    )


def conditioned(parts: Parts, states: Tensor, codes: Tensor) -> Batch:
    """A training batch of pictures [B, h, w] under prompt vectors [B, L, D], through which gradients flow."""
    return collate([told(parts, one, picture) for one, picture in zip(states, codes, strict=True)], range(len(codes)))


def sampler_of(parts: Parts, steps: int) -> Sampler:
    """The usual sampler of drawings, in so many steps."""
    usual = drawing_sampler(parts)
    return replace(usual, schedule=replace(usual.schedule, steps=steps))  # type: ignore[type-var]


@torch.no_grad()
def drawn(parts: Parts, rows: Items[Sequence], seed: int, steps: int) -> np.ndarray:
    """Pictures, uint8 [B, S, S, 3]; picture i has its own random numbers."""
    done = sampler_of(parts, steps).sample(parts.net, collate(rows, [seed * 10_007 + i for i in range(len(rows))]))
    codes = torch.stack(
        [picture_codes(replace(row, ids=done.ids[i, : len(row.ids)]), "image") for i, row in enumerate(rows)]
    )
    return np.stack([np.asarray(image) for image in parts.decode(codes)])


def plain(parts: Parts, texts: Items[str]) -> list[Sequence]:
    """Ordinary drawings of prompts."""
    return [drawing(parts.builder(), text, parts.grid, fold=parts.fold) for text in texts]


def judged(pictures: np.ndarray, wants: Items[Want]) -> list[bool]:
    """Whether the judge finds in each picture what is wanted."""
    return [verdict(seen, want) for seen, want in zip(load_judge().look(pictures), wants, strict=True)]


@dataclass(frozen=True, kw_only=True)
class ToldRows:
    """The rows of a model that draws from vectors. ``vectors``: words of a prompt -> [L, D]; all else is as ``usual`` has it."""

    vectors: Callable[[str], Tensor]
    usual: Rows = ChatRows()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.usual, name)

    def drawing(self, tokens: Parts, prompt: str, extras: Extras) -> Sequence:
        if extras != Extras():
            raise ValueError("this model draws from a prompt alone; leave out conditions, layouts, attempts and sizes")
        return told(tokens, self.vectors(tokens.wording.read(prompt)))


def drawing_model(vectors: Callable[[str], Tensor], called: str) -> Model:
    """The embedded model with ``vectors`` in place of prompts: it draws, and has no other task."""
    cannot = refusing(f"{called} cannot", "it has generate")("answer questions")
    presets = drawing_and_answering(called, "it has generate", generate=drawing_sampler, ask=cannot, length=1)
    return Model(replace(frozen(), rows=cast(Rows, ToldRows(vectors=vectors))), presets=presets)
