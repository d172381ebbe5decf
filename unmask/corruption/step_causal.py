"""The forward process of Sparse-LaViDa (arXiv 2512.14008, section 3): one row shows many steps of a step-causal decoding at once.

Public idea: ``StepCausalMasking(corruption=..)`` masks as another process does, whole positions at a time. The unmasked tokens of each row
fall into random blocks, each of which reads the given tokens and the blocks before it; the masked tokens fall into random groups, each of
which reads the given tokens, all unmasked ones and itself.

Shapes: B rows · L tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from unmask.corruption.absorbing import Absorbing
from unmask.positions import of_position
from unmask.protocols import Corruption
from unmask.sequence import ON_UNMASK, Batch, Kind


@dataclass(frozen=True, kw_only=True)
class StepCausalMasking:
    """``clean_blocks``: M, ``text_groups``, ``code_groups``: N of the paper, 25 each by default; the paper does not give M.

    Rows with several segments, as several questions about one picture have, get one group in each segment, because a group is a segment.
    """

    corruption: Corruption = Absorbing()
    clean_blocks: int = 25
    text_groups: int = 25
    code_groups: int = 25

    def __post_init__(self) -> None:
        if min(self.clean_blocks, self.text_groups, self.code_groups) < 1:
            raise ValueError(
                f"clean_blocks {self.clean_blocks}, text_groups {self.text_groups} and code_groups {self.code_groups} must be at least 1"
            )

    def times(self, batch: Batch, rng: torch.Generator) -> Tensor:
        return self.corruption.times(batch, rng)

    def corrupt(self, clean: Batch, time: Tensor, rng: torch.Generator) -> Batch:
        """As the wrapped process, with ``masked`` equal on each position, and ``order`` and ``segment`` of the blocks and groups."""
        noisy = self.corruption.corrupt(clean, time, rng)
        assert noisy.weight is not None
        masked = of_position(noisy, noisy.masked.long()).bool() & noisy.writable & noisy.valid
        shape, device = noisy.ids.shape, noisy.device
        block = torch.randint(1, self.clean_blocks + 1, shape, generator=rng).to(device)
        text = torch.randint(1, self.text_groups + 1, shape, generator=rng).to(device)
        code = torch.randint(1, self.code_groups + 1, shape, generator=rng).to(device) + self.text_groups
        group = torch.where(noisy.kind == Kind.CODE, code, text)
        block, group = of_position(noisy, block), of_position(noisy, group)
        order = torch.where(noisy.writable & noisy.valid, block, torch.zeros_like(block)).masked_fill(masked, ON_UNMASK)
        one_B1 = _one_segment(noisy)
        segment = torch.where(one_B1, torch.where(masked, group, torch.zeros_like(group)), noisy.segment)
        return noisy.replace(
            masked=masked, order=order, segment=segment, weight=of_position(noisy, noisy.weight), target=None
        )


def _one_segment(batch: Batch) -> Tensor:
    """Rows whose tokens lie in at most one segment besides 0, [B, 1] bool."""
    segment = batch.segment.masked_fill(~batch.valid, 0)
    most = segment.amax(1, keepdim=True)
    return ((segment == 0) | (segment == most)).all(1, keepdim=True)
