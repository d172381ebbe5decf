"""Measure a run without changing it: ``unchanged(module)`` restores what a forward pass changes; ``flops`` counts one batch."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from unmask.recipe import Recipe
from unmask.rng import generator
from unmask.training.losses import losses

_MOST_LOSSES = 100  # some objectives repeat until the weights have changed enough, and here the weights stay fixed


@contextmanager
def unchanged(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Afterwards the global random streams, the module's buffers (batch norm's statistics) and its modes are as before.

    Weights are not saved: code that changes them has to restore them.
    """
    streams = random.getstate(), np.random.get_state(), torch.get_rng_state()
    accelerator = {"cuda": torch.cuda, "mps": torch.mps}.get(device.type)
    state = accelerator.get_rng_state() if accelerator else None
    buffers = [(buffer, buffer.clone()) for buffer in module.buffers()]
    modes = [(part, part.training) for part in module.modules()]
    try:
        yield
    finally:
        random.setstate(streams[0])
        np.random.set_state(streams[1])
        torch.set_rng_state(streams[2])
        if accelerator and state is not None:
            accelerator.set_rng_state(state)
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
        for part, training in modes:
            part.training = training


def flop_counter() -> FlopCounterMode:
    """A counter of floating-point operations that knows the products of ``models.linear``, which torch's own does not."""
    return FlopCounterMode(display=False, custom_mapping={torch.ops.mkldnn._linear_pointwise: _product})


def _product(x_shape: Sequence[int], *given: object, out_shape: Sequence[int], **named: object) -> int:
    return 2 * math.prod(x_shape) * out_shape[-1]


def flops(recipe: Recipe, module: nn.Module, batch: object, number: int, device: torch.device) -> int:
    """Floating-point operations of one batch, forward and backward, by a pass that leaves no trace in the module.

    ``number``: the batch's number, from which its random stream follows. The counter can change the last bits of a
    gradient, so it must not run in a training step.
    """
    rng = generator("objective", recipe.training.seed, number)
    with unchanged(module, device), flop_counter() as counter:
        for loss in islice(losses(recipe.objective(module, batch, rng)), _MOST_LOSSES):
            loss.total.backward()
    module.zero_grad(set_to_none=True)
    return counter.get_total_flops()
