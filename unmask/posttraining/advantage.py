"""Advantages of the samples of a group, relative to the group.

Shapes: B prompts · G samples of each.
"""

from __future__ import annotations

from torch import Tensor


def group_normalised(rewards_BG: Tensor, *, least: float = 1e-4) -> Tensor:
    """(reward - group mean) / (group standard deviation + ``least``), [B, G]: GRPO (Shao et al. 2024, arXiv 2402.03300, section 4.1).

    A group whose rewards are all equal has advantages of zero.
    """
    return centred(rewards_BG) / (rewards_BG.std(1, keepdim=True, correction=0) + least)


def centred(rewards_BG: Tensor) -> Tensor:
    """reward - group mean, [B, G]: Dr. GRPO (Liu et al. 2025, arXiv 2503.20783, section 3.2).

    Without the division by the standard deviation, prompts that are nearly always or nearly never solved weigh no more than others.
    """
    return rewards_BG - rewards_BG.mean(1, keepdim=True)
