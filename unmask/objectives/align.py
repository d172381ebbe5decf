"""Alignment of vision and text: project a cell's feature onto the embeddings of its words.

The projector is trained before the answers. Its target for a cell is the sum of the (frozen) embeddings of the words for the object in
the cell, plus a fixed random code for each remaining label (cell index, part of the object, size). The words of a question are then
similar to the features of their cells. LLaVA's first stage does the same through captions (Liu et al. 2023, section 4.2); here the
targets are the labels that the tower was trained on.

Shapes: I images · S cells along one side · D model width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from unmask.models.elastic import Elastic
from unmask.models.vision import Vision
from unmask.rng import generator
from unmask.step import Loss


@dataclass(frozen=True, kw_only=True)
class Aligned:
    """batch = (pixels [I, 3, H, W], {label: long [I, S, S]}); the model is an ``Elastic``.

    ``words``: for each label that has words, the token ids of every class, in order ·
    ``codes``: (label, number of classes) of the other labels.
    """

    words: tuple[tuple[str, tuple[tuple[int, ...], ...]], ...]
    codes: tuple[tuple[str, int], ...]
    scale: float = 0.35

    def __call__(self, model: Elastic, batch: tuple[Tensor, dict[str, Tensor]], rng: torch.Generator) -> Loss:
        pixels, labels = batch
        vision = model.vision
        assert isinstance(vision, Vision)
        projected = vision.project_out(F.gelu(vision.project_in(vision.pooled(pixels)))).float()
        target = self.target(model.embed.weight.detach().float(), labels)
        loss = (projected - target).square().mean()
        share = loss.detach() / target.var()
        return Loss(total=loss, terms={"unexplained": share}, counts={"cells": labels[self.words[0][0]].numel()})

    def target(self, embedding_VD: Tensor, labels: dict[str, Tensor]) -> Tensor:
        """The target projection of each cell, [I, S, S, D], on the device of the embedding and the labels."""
        width = embedding_VD.shape[1]
        total = embedding_VD.new_zeros(1)
        for name, classes in self.words:
            empty_D = embedding_VD.new_zeros(width)
            table = torch.stack([embedding_VD[list(ids)].sum(0) if ids else empty_D for ids in classes])
            total = total + table[labels[name]]
        for name, count in self.codes:  # drawn on the CPU: equal values on every device
            table = torch.randn(count, width, generator=generator("align", name)) * self.scale
            total = total + table.to(embedding_VD)[labels[name]]
        return total
