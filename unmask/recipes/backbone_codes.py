"""Backbones as codes: a lookup-free tokenizer of torsions, and rows of structure and letters (``recipes.dplm2``).

Public ideas: ``rows_of(tokenizer, proteins)`` are ids [N, L] of both halves; ``Tokenizer.torsions(ids)`` and ``letters_of(ids)`` read them.
The encoder sees a residue and its neighbours by the sines and cosines of their torsions, which no turn or shift of a backbone changes.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unmask.data.world.backbones import LETTERS as AMINO
from unmask.data.world.backbones import RESIDUES, sample
from unmask.methods.dplm2 import LETTERS, PAD, Pairs, structure
from unmask.recipe import Optim, Recipe, Training
from unmask.rng import generator, seeded
from unmask.step import Loss
from unmask.tokens.lfq import Entropies, index_of, signs, vector_of

BITS = 6
VQ_STEPS = 400
POOL, TESTED = 1000, 40  # proteins of the training and of a test
_CODES = structure(2**BITS)
_FIRST_CODE, _FIRST_LETTER = _CODES.first + 3, 4
PAIRS = Pairs(structure=_CODES, steps=100)
Known = tuple[str, np.ndarray]  # letters and torsions [R, 2]


class Tokenizer(nn.Module):
    """Torsions [B, R, 2] -> codes [B, R] of ``BITS`` signs, and back."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv1d(4, width, 3, padding=1), nn.GELU(), nn.Conv1d(width, BITS, 1))
        self.decoder = nn.Sequential(nn.Conv1d(BITS, width, 3, padding=1), nn.GELU(), nn.Conv1d(width, 4, 3, padding=1))

    def before(self, torsions: Tensor) -> Tensor:
        """What the signs are taken of, [B, R, BITS]."""
        return self.encoder(circled(torsions).transpose(1, 2)).transpose(1, 2)

    def after(self, code: Tensor) -> Tensor:
        """Signs [B, R, BITS] -> sines and cosines [B, R, 4]."""
        return self.decoder(code.transpose(1, 2)).transpose(1, 2)

    @torch.no_grad()
    def codes(self, torsions: np.ndarray) -> Tensor:
        return index_of(self.before(torch.from_numpy(torsions)))

    @torch.no_grad()
    def torsions(self, ids: Tensor) -> np.ndarray:
        """Of rows [N, L], float32 [N, R, 2]; an id that is no code counts as the first one."""
        codes = (ids[:, 1 : RESIDUES + 1] - _FIRST_CODE).clamp(0, 2**BITS - 1)
        sine, cosine = self.after(vector_of(codes, BITS)).chunk(2, dim=-1)
        return torch.atan2(sine, cosine).numpy()


def circled(torsions: Tensor) -> Tensor:
    """Sines, then cosines, [..., 4]."""
    return torch.cat([torsions.sin(), torsions.cos()], dim=-1)


@lru_cache(maxsize=8)
def pool(split: str, seed: int) -> tuple[Known, ...]:
    """The proteins of a split."""
    made = [sample(split, seed, i) for i in range(POOL if split == "train" else TESTED)]
    return tuple((one.letters, one.torsions) for one in made)


def batch_of(seed: int, count: int, step: int) -> list[Known]:
    """Proteins of the training; each comes once before any comes again."""
    some = pool("train", seed)
    return [some[(step * count + i) % len(some)] for i in range(count)]


def rows_of(tokenizer: Tokenizer | None, some: list[Known]) -> Tensor:
    """Ids [N, L], structure first; without a tokenizer its half is padding. ValueError for another length or unknown letters."""
    for letters, _ in some:
        if len(letters) != RESIDUES or set(letters) - set(AMINO):
            raise ValueError(f"{letters!r} is not a sequence of {RESIDUES} of the letters {AMINO}; give such a one")
    typed = torch.tensor([[_FIRST_LETTER + AMINO.index(letter) for letter in letters] for letters, _ in some])
    begin, end = torch.zeros(len(some), 1, dtype=torch.long), torch.full((len(some), 1), 2)
    assert LETTERS.ends == {0, 2}
    if tokenizer is None:
        codes = torch.full((len(some), RESIDUES + 2), PAD)
    else:
        own = tokenizer.codes(np.stack([torsions for _, torsions in some])) + _FIRST_CODE
        codes = torch.cat([begin + _CODES.first, own, begin + _CODES.first + 1], dim=1)
    return torch.cat([codes, begin, typed, end], dim=1)


def letters_of(ids: Tensor) -> list[str]:
    """Of rows [N, L]; an id that is no letter is read as A."""
    own = (ids[:, -RESIDUES - 1 : -1] - _FIRST_LETTER).tolist()
    return ["".join(AMINO[i] if 0 <= i < len(AMINO) else "A" for i in row) for row in own]


def tokenizer_recipe(steps: int = VQ_STEPS, seed: int = 0) -> Recipe[Tokenizer, Tensor]:
    """Squared errors of sines and cosines, and the entropies of lookup-free quantisation."""
    entropies = Entropies(temperature=0.5)

    def network() -> Tokenizer:
        return seeded(Tokenizer, seed)

    def loss(net: Tokenizer, torsions: Tensor, rng: torch.Generator) -> Loss:
        before = net.before(torsions)
        error = F.mse_loss(net.after(signs(before)), circled(torsions))
        quantised = entropies(before.flatten(0, 1))
        terms = {"torsions": error, "codes": quantised.loss}
        return Loss(total=error + 0.02 * quantised.loss, terms=terms, counts=dict.fromkeys(terms, len(torsions)))

    def source(step: int) -> Tensor:
        return torch.from_numpy(np.stack([t for _, t in batch_of(seed, 32, step)]))

    return Recipe(
        name="dplm2.tokenizer",
        model=network,
        source=source,
        objective=loss,
        optim=Optim(lr=5e-3, warmup=min(30, steps), decay_from=0.4, floor=0.02, ema=0.99),
        training=Training(steps=steps, seed=seed, device="cpu", bf16=False, save_every=250),
    )


@torch.enable_grad()
def trained_tokenizer(steps: int, seed: int) -> Tokenizer:
    """Trained in memory: it is small, and a pure function of its arguments."""
    recipe = tokenizer_recipe(steps, seed)
    net = recipe.model()
    optimiser = torch.optim.AdamW(net.parameters(), lr=recipe.optim.lr, weight_decay=0.0)
    for step in range(steps):
        loss = recipe.objective(net, recipe.source(step), generator("tokenizer", step))
        assert isinstance(loss, Loss)
        optimiser.zero_grad()
        loss.total.backward()
        optimiser.step()
    return net.eval()
