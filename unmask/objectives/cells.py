"""Dense supervision of the vision tower: labels of the object in each pooled cell of an image.

The released model starts from a tower trained on hundreds of millions of captioned images (SigLIP). No such tower exists at our
size, so the embedded tower first learns to classify the class, colour and part of the object in every cell. The model card
discloses that the tower is trained on labels, and that the judge of the evaluation is another network.

Shapes: I images · S cells along one side · W tower width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unmask.models.vision import Vision
from unmask.step import Loss


class LabelledVision(nn.Module):
    """A vision module with a linear classifier of its pooled features for each label."""

    def __init__(self, vision: Vision, classes: dict[str, int]) -> None:
        super().__init__()
        self.vision: Vision = vision
        self.heads = nn.ModuleDict({name: nn.Linear(vision.config.width, n) for name, n in classes.items()})

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        features_ISSW = self.vision.pooled(pixels)
        return {name: head(features_ISSW) for name, head in self.heads.items()}


@dataclass(frozen=True, kw_only=True)
class Cells:
    """batch = (pixels [I, 3, H, W], {label: long [I, S, S], -100 where unknown})."""

    def __call__(self, model: LabelledVision, batch: tuple[Tensor, dict[str, Tensor]], rng: torch.Generator) -> Loss:
        pixels, labels = batch
        logits = model(pixels)
        terms = {k: F.cross_entropy(logits[k].float().flatten(0, 2), v.flatten()) for k, v in labels.items()}
        right = {f"{k}_wrong": (logits[k].detach().argmax(-1) != v)[v >= 0].float().mean() for k, v in labels.items()}
        return Loss(
            total=torch.stack(list(terms.values())).sum(),
            terms={k: v.detach() for k, v in terms.items()} | right,
            counts={"cells": next(iter(labels.values())).numel()},
        )
