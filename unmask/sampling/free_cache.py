"""Keys and values of finished blocks are frozen (FreeCache of FlashDLM, arXiv 2505.21467).

Public ideas: ``FreeCache()`` and ``ReleasedFreeCache()``, caches of a sampler whose blocks are unmasked from left to right.
Approximate: what is frozen has read the masked tokens behind it.

Shapes: B rows · L tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from unmask.sequence import Batch
from unmask.step import CachePlan, Prediction, Progress


@dataclass(frozen=True, kw_only=True)
class FreeCache:
    """A full pass at the first step; then only the block of a row and all behind it are computed, against frozen keys and values.

    A block is computed once more in the first step of the next one, with all its tokens unmasked, and then frozen. This takes no forward of
    its own.
    """

    @property
    def exact(self) -> bool:
        return False

    def plan(self, batch: Batch, block: Tensor, predict: Tensor, held: Tensor, progress: Progress) -> CachePlan | None:
        compute_BL = batch.valid & ~held
        return CachePlan(compute=compute_BL, keep=compute_BL & _before(block))


@dataclass(frozen=True, kw_only=True)
class ReleasedFreeCache:
    """The same, but a block is frozen in the forward of its last step, as in the released code: the tokens unmasked at that step keep the
    keys and values of the mask for good.
    """

    @property
    def exact(self) -> bool:
        return False

    def plan(self, batch: Batch, block: Tensor, predict: Tensor, held: Tensor, progress: Progress) -> CachePlan | None:
        last_B1 = (progress.number + 1 >= progress.of)[:, None]
        to_end_BL = block.flip(1).long().cumsum(1).flip(1) > 0
        compute_BL = batch.valid & ~held
        return CachePlan(compute=compute_BL, keep=compute_BL & (_before(block) | (last_B1 & to_end_BL)))

    def to_score(self, batch: Batch, wanted: Tensor, held: Tensor, lent: None, progress: Progress) -> Tensor:
        """The wanted tokens: it lends no logits, only keys and values of tokens that change in the same step."""
        return wanted

    def completed(self, view: Prediction, lent: None, wanted: Tensor) -> tuple[Prediction, None]:
        """The prediction as it is."""
        return view, None


def _before(block_BL: Tensor) -> Tensor:
    """The tokens before each row's block, all of them where a row has none."""
    return block_BL.long().cumsum(1) == 0
