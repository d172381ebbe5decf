"""Training by telling pairs apart: an energy against the samples of a frozen denoiser (EDLM, arXiv 2410.21357), and matching vectors.

Public idea: ``NoiseContrastive(denoiser=..)(energy_net, clean, rng) -> Loss``. Rows are masked at random times; the energy of the true
rows becomes low, and that of rows whose masked tokens the denoiser draws becomes high.

Shapes: B rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from unmask.corruption.absorbing import Absorbing
from unmask.protocols import Corruption, Denoiser
from unmask.rng import generator
from unmask.sequence import Batch
from unmask.step import Loss


def noise_contrastive(true_B: Tensor, drawn_B: Tensor) -> Tensor:
    """-log sig(-E) - log sig(E-) of each row, from the energies of the data and of a draw from the denoiser."""
    return -(torch.sigmoid(-true_B) + 1e-8).log() - (torch.sigmoid(drawn_B) + 1e-8).log()


@dataclass(frozen=True, kw_only=True)
class NoiseContrastive:
    """``denoiser`` draws the negative rows at temperature 1 and is not trained."""

    denoiser: Denoiser = field(repr=False)
    corruption: Corruption = Absorbing()

    def __call__(self, model: Callable[[Batch, Tensor], Tensor], clean: Batch, rng: torch.Generator) -> Loss:
        noisy = self.corruption.corrupt(clean, self.corruption.times(clean, rng), rng)
        seed = int(torch.randint(2**62, (), generator=rng))
        each_B = noise_contrastive(model(noisy, clean.ids), model(noisy, self.drawn(noisy, seed)))
        return Loss(total=each_B.mean(), terms={"contrast": each_B.mean().detach()}, counts={"contrast": len(each_B)})

    @torch.no_grad()
    def drawn(self, noisy: Batch, seed: int) -> Tensor:
        """The ids [B, L] with independent draws in place of the masked tokens."""
        ids, rng = noisy.ids.flatten().clone(), generator("contrast", seed)
        for scored in self.denoiser(noisy, predict=noisy.masked).scored.values():
            if scored.logits is not None and scored.at.numel():
                drawn_N1 = torch.multinomial(scored.logits.float().softmax(-1).cpu(), 1, generator=rng)
                ids[scored.at] = drawn_N1[:, 0].to(ids.device)
        return ids.view_as(noisy.ids)


def both_ways(logits_BB: Tensor) -> Tensor:
    """The contrastive loss of matching pairs on the diagonal, mean over rows and columns (CLIP, arXiv 2103.00020)."""
    own_B = torch.arange(len(logits_BB), device=logits_BB.device)
    return (F.cross_entropy(logits_BB, own_B) + F.cross_entropy(logits_BB.T, own_B)) / 2
