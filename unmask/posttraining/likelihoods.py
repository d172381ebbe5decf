"""Log-probabilities of the tokens of finished answers under some of them masked, for policy gradients.

Public idea: ``log_probabilities(model, noisy)``. Two models that are given the same ``noisy`` batch are compared under the same masks
(shared noise), so most of the noise of the estimate cancels in their ratio.

Shapes: B rows · L tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from unmask.objectives.cross_entropy import cross_entropy
from unmask.protocols import Denoiser, Headless
from unmask.sequence import Batch


def log_probabilities(model: Denoiser, noisy: Batch) -> Tensor:
    """ln p of the true id of every masked token given the others, [B, L] float32; 0 elsewhere. With gradients where they are enabled.

    ``noisy``: as a corruption makes it, with ``clean`` ids. ValueError for masked tokens of a kind without logits.
    """
    assert noisy.clean is not None
    forward = model.hidden_states if isinstance(model, Headless) else model
    found = torch.zeros(noisy.ids.numel(), device=noisy.device)
    for scored in forward(noisy, predict=noisy.masked).scored.values():
        if len(scored.at):
            found = found.index_put((scored.at,), -cross_entropy(scored, noisy.clean.flatten()[scored.at]))
    return found.view_as(noisy.ids)
