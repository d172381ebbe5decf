"""Motions of a stick figure as tokens: words of their texts, and codes of a transformer VQ (``recipes.m2dm``).

Public ideas: ``row(text, codes)``; ``vq_recipe()`` trains the tokenizer, ``importance_of(vq, poses)`` measures its codes.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from unmask.data.world.motions import ACTIONS, CHANNELS, FRAMES, sample
from unmask.methods.m2dm import CodeImportance, measured, orthogonality
from unmask.models.sequence_vq import SequenceVQ, SequenceVQConfig
from unmask.recipe import Optim, Recipe, Training
from unmask.recipes.in_memory import trained_in_memory
from unmask.rng import seeded
from unmask.sequence import Kind, Sequence, Span
from unmask.step import Loss

WORDS = tuple(dict.fromkeys(", ".join(ACTIONS).replace(",", " ,").split())) + ("then", "?")
PAD, MASK = len(WORDS), len(WORDS) + 1
LONGEST = 14  # words of a text
CONFIG = SequenceVQConfig(channels=CHANNELS)
CODES = 2 * FRAMES // CONFIG.stride
VQ_STEPS, BATCH, REGULAR = 1000, 32, 1.0


def words_of(text: str) -> Tensor:
    """Ids of a text's words, [LONGEST]. ValueError for another word or too many."""
    words = text.lower().replace(",", " ,").split()
    if unknown := [word for word in words if word not in WORDS]:
        raise ValueError(f"the figure does not know {unknown[0]!r}; it knows {', '.join(ACTIONS)}, and 'A, then B'")
    if len(words) > LONGEST:
        raise ValueError(f"a text has at most {LONGEST} words, got {len(words)}; give two actions")
    return torch.tensor([WORDS.index(word) for word in words] + [PAD] * (LONGEST - len(words)))


def row(text: str, codes: Tensor | None) -> Sequence:
    """A text and the codes [CODES] of its motion, which are masked where there are none."""
    spans = (
        Span(name="prompt", kind=Kind.TEXT, start=0, stop=LONGEST),
        Span(name="motion", kind=Kind.CODE, start=LONGEST, stop=LONGEST + CODES, grid=(1, CODES), writable=True),
    )
    ids = torch.cat([words_of(text), torch.zeros(CODES, dtype=torch.long) if codes is None else codes])
    return Sequence(ids=ids, masked=torch.arange(len(ids)) >= LONGEST, spans=spans)


def poses_of(split: str, seed: int, count: int, start: int = 0) -> tuple[list[str], Tensor]:
    """Texts and poses [N, T, C]."""
    made = [sample(split, seed, start + i) for i in range(count)]
    return [m.text for m in made], torch.from_numpy(np.stack([m.poses for m in made]))


# -- the tokenizer -----------------------------------------------------------------------------------------------------


def vq_recipe(*, regular: float = REGULAR, steps: int = VQ_STEPS, seed: int = 0) -> Recipe[SequenceVQ, Tensor]:
    """The tokenizer. ``regular``: weight of the codebook's regulariser."""

    def network() -> SequenceVQ:
        return seeded(lambda: SequenceVQ(CONFIG), seed)

    def loss(vq: SequenceVQ, poses: Tensor, rng: torch.Generator) -> Loss:
        found = vq.trained(poses)
        parts = {
            "poses": F.mse_loss(found.frames, poses),
            "codes": F.mse_loss(found.codes, found.before.detach()),
            "commit": 0.25 * F.mse_loss(found.before, found.codes.detach()),
            "regular": regular * orthogonality(vq.codebook),
        }
        return Loss(total=torch.stack(list(parts.values())).sum(), terms=parts, counts=dict.fromkeys(parts, len(poses)))

    return Recipe(
        name="m2dm.vq",
        model=network,
        source=lambda step: poses_of("train", seed, BATCH, step * BATCH)[1],
        objective=loss,
        optim=Optim(lr=3e-3, warmup=min(50, steps), decay_from=0.4, floor=0.05, ema=0.99),
        training=Training(steps=steps, seed=seed, device="cpu", bf16=False, save_every=200),
    )


@torch.no_grad()
def importance_of(vq: SequenceVQ, poses: Tensor) -> CodeImportance:
    """How much worse the poses become, by code, where a token is replaced by the mean of the codebook."""
    ids = vq.encode(poses)
    vectors, errors = vq.vectors[ids], []
    whole = (vq.from_vectors(vectors) - poses).square().mean((1, 2))
    for token in range(ids.shape[1]):
        without = vectors.clone()
        without[:, token] = vq.vectors.mean(0)
        errors.append(((vq.from_vectors(without) - poses).square().mean((1, 2)) - whole).clamp(min=0))
    return CodeImportance(tables={Kind.CODE: measured(torch.stack(errors, 1), ids, vq.size)})


def trained_vq(regular: float, steps: int, seed: int) -> SequenceVQ:
    """Trained in memory: it is small, and a pure function of its arguments."""
    return trained_in_memory(vq_recipe(regular=regular, steps=steps, seed=seed), "vq")
