"""Distillation: the model stays close to a teacher, such as the model before fine-tuning (Li & Hoiem 2016, arXiv 1606.09282).

Public idea: ``Distillation(masked, teacher)``. For every token that ``masked`` scores, the loss is KL(teacher || model) of the two
distributions over the vocabulary. It is zero, with a zero gradient, while the model equals its teacher. Cross-entropy with the tokens of
the data has the same expected gradient if the teacher fits the data, but with the noise of single samples, so small batches of it make a
trained model worse.

Shapes: N tokens · V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from unmask.objectives.cross_entropy import LARGEST
from unmask.objectives.joining import kind_name
from unmask.objectives.masked import Masked, MaskedModel
from unmask.protocols import Headless
from unmask.sequence import Batch
from unmask.step import Loss, Prediction, Scored

Teacher = Callable[[MaskedModel], AbstractContextManager[MaskedModel]]


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """KL(teacher || model), the mean over the tokens of each kind.

    ``masked``: how rows are corrupted, with its dropouts; its weight is not used · ``teacher(model)``: a context that gives the teacher,
    which may be the model itself with its adapters off (``models.lora.without_adapters``).
    """

    masked: Masked
    teacher: Teacher

    def __call__(self, model: MaskedModel, clean: Batch, rng: torch.Generator) -> Loss:
        noisy = self.masked.noisy(model, clean, rng)
        now = _predict(model, noisy)
        with torch.no_grad(), self.teacher(model) as teacher:
            before = _predict(teacher, noisy)
        terms, counts = {}, {}
        for kind, scored in sorted(now.scored.items()):
            if len(scored.at):
                name = kind_name(kind)
                terms[name] = self._divergence(model, scored, before.scored[kind]).mean()
                counts[name] = len(scored.at)
        total = torch.stack(list(terms.values())).sum() if terms else next(model.parameters()).sum() * 0
        return Loss(total=total, terms=terms, counts=counts)

    def _divergence(self, model: MaskedModel, now: Scored, before: Scored) -> Tensor:
        """KL(teacher || model) of each token, [N] float32, with at most ``LARGEST`` logits of each at a time."""

        def each(now_ND: Tensor, before_ND: Tensor) -> Tensor:
            with torch.no_grad(), self.teacher(model):
                target_NV = _logits(before, before_ND).float().log_softmax(-1)
            log_NV = _logits(now, now_ND).float().log_softmax(-1)
            return F.kl_div(log_NV, target_NV, reduction="none", log_target=True).sum(-1)

        now_ND, before_ND = (x.logits if x.head is None else x.hidden for x in (now, before))
        if now_ND is None or before_ND is None:
            raise ValueError("these tokens have no logits to compare; distil tokens of a kind that has a vocabulary")
        rows = max(16, LARGEST // (now.head.size if now.head else now_ND.shape[-1]) // 16 * 16)
        if len(now_ND) <= rows:
            return each(now_ND, before_ND)
        parts = zip(now_ND.split(rows), before_ND.split(rows), strict=True)
        return torch.cat([checkpoint(each, a, b, use_reentrant=False, preserve_rng_state=False) for a, b in parts])


def _predict(model: MaskedModel, noisy: Batch) -> Prediction:
    return (model.hidden_states if isinstance(model, Headless) else model)(noisy, predict=noisy.target)


def _logits(scored: Scored, x: Tensor) -> Tensor:
    """``x``: logits, or where the head was left to the caller its input, padded to a multiple of 16 rows as the model pads it."""
    return x if scored.head is None else scored.head(F.pad(x, (0, 0, 0, -len(x) % 16)))[: len(x)]
