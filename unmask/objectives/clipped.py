"""The clipped policy loss of masked models over masked tokens (dLLM-RL's "random masking", after PPO and GRPO).

Public idea: ``clipped_loss(new, old, advantage, counted, ...)`` from log-probabilities of the same masked tokens before and now;
``divergence(new, reference, counted)`` from those of a frozen model.

Shapes: B rows · L tokens.
"""

from __future__ import annotations

from torch import Tensor


def clipped_loss(
    new_BL: Tensor, old_BL: Tensor, advantage_B: Tensor, counted_BL: Tensor, *, clip: float = 0.2, kl: float = 0.01
) -> Tensor:
    """-mean over rows of the mean over counted tokens of min(r A, clip(r, 1 ± ``clip``) A), r = p_new / p_old, plus ``kl`` times the mean
    over rows of the sum of exp(-d) - 1 + d, d = ln r: the estimator of the divergence to the old policy, which is not averaged over tokens.
    """
    d_BL = (new_BL - old_BL).masked_fill(~counted_BL, 0.0)
    ratio_BL, advantage_B1 = d_BL.exp(), advantage_B[:, None]
    gain_BL = (ratio_BL * advantage_B1).minimum(ratio_BL.clamp(1 - clip, 1 + clip) * advantage_B1) * counted_BL
    gain = (gain_BL.sum(1) / counted_BL.sum(1).clamp(min=1)).mean()
    return kl * (((-d_BL).exp() - 1 + d_BL) * counted_BL).sum(1).mean() - gain


def divergence(new_BL: Tensor, reference_BL: Tensor, counted_BL: Tensor) -> Tensor:
    """The mean over rows of the mean over counted tokens of exp(d) - 1 - d, d = ln p_reference - ln p_new: an unbiased, non-negative
    estimator of KL(new || reference) for tokens drawn from the new policy ("k3", Schulman 2020).
    """
    d_BL = (reference_BL - new_BL).masked_fill(~counted_BL, 0.0)
    return ((d_BL.exp() - 1 - d_BL).sum(1) / counted_BL.sum(1).clamp(min=1)).mean()
