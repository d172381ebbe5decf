"""What the trainer may do to the layers of a model: recompute their activations, or compile them.

Public idea: ``prepared(module, recompute=True, compile=False)`` does so inside a ``with`` and leaves the module as it was.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def layers(module: nn.Module) -> list[nn.Module]:
    """The elements of every ``nn.ModuleList`` that is not inside another one: a transformer's blocks, those of a vision tower."""
    found: list[nn.Module] = []
    for child in module.children():
        found += list(child) if isinstance(child, nn.ModuleList) else layers(child)
    return found


@contextmanager
def prepared(module: nn.Module, *, recompute: bool, compile: bool) -> Iterator[None]:
    """``recompute``: keep only the inputs of each layer and compute its activations again in the backward pass (activation
    checkpointing): the same gradients for less memory and a third more work · ``compile``: run each layer through ``torch.compile``.

    Names of parameters do not change. ValueError where the module has no layers.
    """
    found = layers(module) if recompute or compile else []
    if not found and (recompute or compile):
        name = "recompute" if recompute else "compile"
        raise ValueError(
            f"training.{name} works on layers in an nn.ModuleList, and {type(module).__name__} has none; leave it false"
        )
    for layer in found:
        forward: Any = torch.compile(layer.forward) if compile else layer.forward
        layer.forward = functools.partial(_again, forward) if recompute else forward
    try:
        yield
    finally:
        for layer in found:
            del layer.forward  # the instance's; that of the class is there again


def _again(forward: Any, *given: Any, **named: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*given, **named)
    return checkpoint(forward, *given, use_reentrant=False, **named)
