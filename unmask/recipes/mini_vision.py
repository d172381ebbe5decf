"""How ``mini`` learns to read pictures before it learns words for them: the vision tower, and the projector to word embeddings.

Public ideas: ``TowerRun`` and ``AlignRun``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from unmask.checkpoints.store import save_module
from unmask.data.sources import LABELS, Labelled
from unmask.data.world.vocabulary import CLASS_NAMES, COLOUR_NAMES
from unmask.models.elastic import Elastic, init
from unmask.models.sizes import ElasticConfig
from unmask.models.vision import Vision
from unmask.objectives.align import Aligned
from unmask.objectives.cells import Cells, LabelledVision
from unmask.recipe import Optim, Recipe, Training
from unmask.recipes.mini_tasks import export_net
from unmask.rng import generator
from unmask.tokens.text import Text


@dataclass(frozen=True, kw_only=True)
class TowerRun:
    """``mini.tower`` for a network of this shape: ``()`` is the recipe."""

    config: ElasticConfig
    seed: int
    batch: int = 64

    def __call__(self) -> Recipe:
        source = Labelled(seed=self.seed, batch=self.batch)

        def export(module: LabelledVision, folder: Path) -> None:
            standardise(module.vision, source(10**6)[0])
            save_module(module.vision, folder)

        return Recipe(
            name="mini.tower",
            model=self.model,
            source=source,
            objective=Cells(),
            optim=Optim(lr=1.5e-3, warmup=100, decay_from=0.4, floor=0.02, ema=0.998),
            training=Training(steps=2500, seed=self.seed, save_every=200),
            export=export,
        )

    def model(self) -> LabelledVision:
        assert self.config.vision is not None
        made = LabelledVision(Vision(self.config.vision, self.config.width), LABELS)
        init(made, generator("tower", self.seed))
        return made


def standardise(vision: Vision, pixels: Tensor) -> None:
    """Normalise the pooled features to mean 0 and deviation 1 over some images, by folding both into the pooling convolution."""
    with torch.no_grad():
        features = vision.pooled(pixels).flatten(0, 2)
        mean, deviation = features.mean(0), features.std(0).clamp(min=1e-3)
        vision.pool.weight /= deviation[:, None, None, None]
        assert vision.pool.bias is not None
        vision.pool.bias.copy_((vision.pool.bias - mean) / deviation)


@dataclass(frozen=True, kw_only=True)
class AlignRun:
    """``mini.align`` for a network from ``model()`` that reads words by ``text``: ``()`` is the recipe."""

    text: Text
    model: Callable[[], Elastic]
    seed: int
    batch: int = 64

    def __call__(self) -> Recipe:
        classes = ((), *(tuple(self.text.encode(name)) for name in CLASS_NAMES))
        colours = ((), (), *(tuple(self.text.encode(name)) for name in COLOUR_NAMES))
        return Recipe(
            name="mini.align",
            model=self.model,
            source=Labelled(seed=self.seed, batch=self.batch, levels=(("grid", 0.85), ("free", 0.15))),
            objective=Aligned(
                words=(("class", classes), ("colour", colours)), codes=(("part", 10), ("size", 4), ("cell", 16))
            ),
            optim=Optim(lr=3e-3, warmup=20, decay_from=0.2, floor=0.02, ema=0.98),
            training=Training(steps=400, seed=self.seed),
            trainable=lambda name: name.startswith("vision.project"),
            export=export_net,
        )
