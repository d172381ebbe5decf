"""Alignment of vision and text: a cell's feature is projected to where its words are.

Before a projector learns from answers, it learns to say what the tower already knows: the feature of a cell becomes the sum of the
(fixed) embeddings of the words for what covers it, plus a fixed random code for each remaining label (which cell, which part, how
big). A question's words then find their cells by likeness. It is what LLaVA's first stage does through captions (Liu et al. 2023,
section 4.2), with the labels that the tower was trained on.

Shapes: I images · S cells along one side · D model width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from unmask.models.elastic import Elastic
from unmask.rng import generator
from unmask.step import Loss


@dataclass(frozen=True, kw_only=True)
class Aligned:
    """batch = (pixels [I, 3, H, W], {label: long [I, S, S]}); the model is an ``Elastic``.

    ``words``: for each label that has words, the token ids of every class, in order · ``codes``: (label, number of classes) of the others.
    """

    words: tuple[tuple[str, tuple[tuple[int, ...], ...]], ...]
    codes: tuple[tuple[str, int], ...]
    scale: float = 0.35

    def __call__(self, model: Elastic, batch: tuple[Tensor, dict[str, Tensor]], rng: torch.Generator) -> Loss:
        pixels, labels = batch
        vision = model.vision
        assert vision is not None
        projected = vision.project_out(F.gelu(vision.project_in(vision.pooled(pixels)))).float()
        target = self.target(model.embed.weight.detach().float(), labels)
        loss = (projected - target).square().mean()
        share = loss.detach() / target.var()
        return Loss(total=loss, terms={"unexplained": share}, counts={"cells": labels[self.words[0][0]].numel()})

    def target(self, embedding_VD: Tensor, labels: dict[str, Tensor]) -> Tensor:
        """The projection wanted of each cell, [I, S, S, D], on the embedding's device, where the labels are."""
        width = embedding_VD.shape[1]
        total = embedding_VD.new_zeros(1)
        for name, classes in self.words:
            empty_D = embedding_VD.new_zeros(width)
            table = torch.stack([embedding_VD[list(ids)].sum(0) if ids else empty_D for ids in classes])
            total = total + table[labels[name]]
        for name, count in self.codes:  # drawn on the CPU, so that every device has the same
            table = torch.randn(count, width, generator=generator("align", name)) * self.scale
            total = total + table.to(embedding_VD)[labels[name]]
        return total
