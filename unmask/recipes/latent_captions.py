"""The networks of ``ladic``: a text network that fills masked words, and the denoiser of its middle states.

Public ideas: ``text_recipe(captions)`` trains ``TextNet``, whose halves are ``lower`` and ``upper``; ``LatentCaptioner`` denoises between.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unmask.methods.ladic import Latents, fit, time_waves, wordless
from unmask.recipe import Optim, Recipe, Training
from unmask.recipes.captioning import MASKED, PAD, STOP, Captioned
from unmask.rng import generator, seeded
from unmask.step import Loss

TEXT_STEPS, _LAYERS = 200, 4
Ids = tuple[Tensor, Tensor]  # clean ids [B, L], and those of them that are to be predicted


class TextNet(nn.Module):
    """Fills masked words; ``lower`` and ``upper`` are its halves. All positions read all others, padding too."""

    def __init__(self, words: int, length: int, width: int = 64) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(words, width), nn.Parameter(torch.randn(length, width) * 0.02)
        self.layers = nn.ModuleList(_layer(width) for _ in range(_LAYERS))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, words)

    def lower(self, ids: Tensor, layers: int = _LAYERS // 2) -> Tensor:
        """States [B, L, D] after some layers."""
        x = self.embed(ids) + self.place[: ids.shape[1]]
        for layer in self.layers[:layers]:
            x = layer(x)
        return x

    def upper(self, states: Tensor, layers: int = _LAYERS // 2) -> Tensor:
        """Logits [B, L, V] from the states after ``layers`` layers."""
        for layer in self.layers[layers:]:
            states = layer(states)
        return self.head(self.norm(states))

    def forward(self, ids: Tensor) -> Tensor:
        return self.upper(self.lower(ids))


def _layer(width: int) -> nn.Module:
    return nn.TransformerEncoderLayer(
        width, 4, 2 * width, dropout=0.0, batch_first=True, norm_first=True, activation="gelu"
    )


def text_recipe(captions: Callable[[], Captioned], steps: int = TEXT_STEPS, seed: int = 0) -> Recipe[TextNet, Ids]:
    """The text network: masked words of captions, without pictures."""

    def rows(step: int) -> Ids:
        found, rng = captions(), generator("ladic text", seed, step)
        ids = torch.stack([found.words.ids(found.texts[i]) for i in found.some(Random(f"{seed}/{step}"), 64)])
        return ids, torch.rand(ids.shape, generator=rng) < 0.15 + 0.35 * torch.rand(len(ids), 1, generator=rng)

    def loss(model: TextNet, batch: Ids, rng: torch.Generator) -> Loss:
        """All words are scored, a third of the masked ones as they are, so that clean states decode to their own words."""
        ids, hidden = batch
        logits = model(torch.where(hidden, MASKED, ids))
        value = F.cross_entropy(logits.flatten(0, 1), ids.flatten())
        return Loss(total=value, terms={"words": value.detach()}, counts={"words": ids.numel()})

    return Recipe(
        name="ladic.text",
        model=lambda: seeded(lambda: TextNet(len(captions().words.words), captions().words.length), seed),
        source=rows,
        objective=loss,
        optim=Optim(lr=2e-3, warmup=50, decay_from=0.5, floor=0.05, ema=0.98),
        training=Training(steps=steps, seed=seed, save_every=400, bf16=False, device="cpu"),
    )


class LatentCaptioner(nn.Module):
    """The frozen text network, its latents, and the denoiser: (x_t, time, last prediction, features [B, P, F]) -> x0."""

    def __init__(self, text: TextNet, features: int, *, inner: int = 64, layers: int = 3) -> None:
        super().__init__()
        width = text.embed.embedding_dim
        self.text = text.requires_grad_(False)
        for name in ("mean", "deviation", "neutral"):
            self.register_buffer(name, torch.ones(width))
        self.inward, self.outward = nn.Linear(2 * width, inner), nn.Linear(inner, width)
        self.place = nn.Parameter(torch.randn(text.place.shape[0], inner) * 0.02)
        self.see = nn.Sequential(nn.LayerNorm(features), nn.Linear(features, inner))
        layer = nn.TransformerDecoderLayer(
            inner, 4, 2 * inner, dropout=0.0, batch_first=True, norm_first=True, activation="gelu"
        )
        self.layers = nn.TransformerDecoder(layer, layers, nn.LayerNorm(inner))

    @property
    def latents(self) -> Latents:
        return Latents(mean=self.mean, deviation=self.deviation, neutral=self.neutral)  # type: ignore[arg-type]

    def settle(self, ids: Tensor) -> None:
        """Standardise by the states of captions [N, L]; positions without a word get the state of a full stop."""
        with torch.no_grad():
            states, empty = self.text.lower(ids), wordless(ids != PAD)
            found = fit(states[~empty], states[ids == STOP].mean(0))
        self.mean, self.deviation, self.neutral = found.mean, found.deviation, found.neutral

    def forward(self, x: Tensor, t: Tensor, before: Tensor, image: Tensor) -> Tensor:
        both = torch.cat([x, before], -1)
        both = both + time_waves(t.expand(len(x)), both.shape[-1])[:, None]
        blank = (image != 0).any(-1).any(-1)[:, None, None]  # zeros are no picture, also behind the norm
        return self.outward(self.layers(self.inward(both) + self.place, self.see(image) * blank))
