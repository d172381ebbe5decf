"""Self-distillation through time: one step of the model learns what several steps of its teacher predict (Deschenaux & Gulcehre 2024,
arXiv 2410.21035), so that it needs fewer steps.

Public idea: ``ThroughTime(masked, teacher, steps=2)``. The teacher unmasks tokens of a row in several steps with its own samples. What it
predicts for a token at the step that unmasks it, or at the last step, is the target of the model, which sees the row as it was before.

Shapes: B rows · L tokens · N masked tokens · V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from unmask.objectives.distillation import Teacher
from unmask.objectives.joining import kind_name
from unmask.objectives.masked import Masked, MaskedModel
from unmask.rng import sent
from unmask.sequence import Batch
from unmask.step import Loss

Targets = dict[int, tuple[Tensor, Tensor]]  # by kind: flat token numbers [N] in rising order, log-probabilities [N, V]


@dataclass(frozen=True, kw_only=True)
class ThroughTime:
    """KL(teacher's targets || model), the mean over the masked tokens of each kind.

    ``masked``: how rows are corrupted, with its dropouts; its weight is not used · ``teacher(model)``: a context that gives the teacher ·
    ``steps``: of the teacher for one of the model, 1 is plain distillation · ``share``: of a row's writable tokens that each step of the
    teacher unmasks, one over the steps of its schedule. ValueError for no step, or a share outside 0 to 1.
    """

    masked: Masked
    teacher: Teacher
    steps: int = 2
    share: float = 1 / 16

    def __post_init__(self) -> None:
        if self.steps < 1 or not 0 < self.share <= 1:
            raise ValueError(
                f"got steps={self.steps}, share={self.share}; steps are at least 1, share is above 0 and at most 1"
            )

    def __call__(self, model: MaskedModel, clean: Batch, rng: torch.Generator) -> Loss:
        noisy = self.masked.noisy(model, clean, rng)
        with torch.no_grad(), self.teacher(model) as teacher:
            targets = self.targets(teacher, noisy, rng)
        terms, counts = {}, {}
        for kind, scored in sorted(model(noisy, predict=noisy.masked).scored.items()):
            if len(scored.at):
                assert scored.logits is not None
                log_NV, name = scored.logits.float().log_softmax(-1), kind_name(kind)
                terms[name] = F.kl_div(log_NV, targets[kind][1], reduction="none", log_target=True).sum(-1).mean()
                counts[name] = len(scored.at)
        total = torch.stack(list(terms.values())).sum() if terms else next(model.parameters()).sum() * 0
        return Loss(total=total, terms=terms, counts=counts)

    def targets(self, teacher: MaskedModel, noisy: Batch, rng: torch.Generator) -> Targets:
        """What the teacher predicts for each masked token at the step that unmasks it, or at the last one."""
        found, now = predicted(teacher, noisy), noisy
        for _ in range(self.steps - 1):
            chosen_BL = self._chosen(now, rng)
            now = now.replace(ids=sampled(now, found, chosen_BL, rng), masked=now.masked & ~chosen_BL)
            if not bool(now.masked.any()):
                break
            for kind, (at_M, log_MV) in predicted(teacher, now).items():
                at_N, target_NV = found[kind]
                found[kind] = at_N, target_NV.index_copy(0, torch.searchsorted(at_N, at_M), log_MV)
        return found

    def _chosen(self, now: Batch, rng: torch.Generator) -> Tensor:
        """Masked tokens that a step unmasks, at random, [B, L]."""
        count_B1 = (now.writable & now.valid).sum(1, keepdim=True).mul(self.share).ceil()
        place_BL = sent(torch.rand(now.ids.shape, generator=rng), now.device).masked_fill(~now.masked, 2.0)
        return now.masked & (place_BL.argsort(dim=1).argsort(dim=1) < count_B1)


def predicted(model: MaskedModel, noisy: Batch) -> Targets:
    """Log-probabilities of the masked tokens, float32."""
    scored = model(noisy, predict=noisy.masked).scored
    return {k: (s.at, s.logits.float().log_softmax(-1)) for k, s in scored.items() if s.logits is not None}


def sampled(
    now: Batch, targets: Mapping[int, tuple[Tensor, Tensor]], chosen_BL: Tensor, rng: torch.Generator
) -> Tensor:
    """The ids with a sample for each chosen token, [B, L]; numbers are drawn on the CPU, so they are the same for every device."""
    ids, chosen = now.ids.flatten().clone(), chosen_BL.flatten()
    for _, (at_N, log_NV) in sorted(targets.items()):
        mine_N = chosen[at_N]
        log_MV = log_NV[mine_N]
        uniform_MV = torch.rand(log_MV.shape, generator=rng).clamp_(min=torch.finfo(torch.float32).tiny)
        noise_MV = sent(-(-uniform_MV.log()).log(), log_MV.device)
        ids[at_N[mine_N]] = (log_MV + noise_MV).argmax(-1)
    return ids.view_as(now.ids)
