"""Small networks that a recipe trains before its first step. Public idea: ``trained_in_memory(recipe, "vq")``."""

from __future__ import annotations

from typing import Any

import torch

from unmask.recipe import Recipe
from unmask.rng import generator
from unmask.step import Loss


@torch.enable_grad()
def trained_in_memory(recipe: Recipe[Any, Any], name: str) -> Any:
    """The network after all steps at a constant rate, in eval mode: a pure function of its arguments. ``name``: of the random numbers."""
    net = recipe.model()
    optimiser = torch.optim.AdamW(net.parameters(), lr=recipe.optim.lr, weight_decay=0.0)
    for step in range(recipe.training.steps):
        loss = recipe.objective(net, recipe.source(step), generator(name, step))
        assert isinstance(loss, Loss)
        optimiser.zero_grad()
        loss.total.backward()
        optimiser.step()
    return net.eval()
