"""Training in fewer bits, by torchao: Adam's moments in 8 bits, and linear layers that multiply in float8.

Public idea: ``adam8(...)`` is AdamW with a quarter of the memory for its moments; ``to_float8(module)`` swaps the linear layers of the
transformer's layers. Both are approximate and off by default.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from unmask.checkpoints.quantise import quiet_torchao
from unmask.models.linear import is_plain
from unmask.recipe import Optim
from unmask.training.layers import layers

_BLOCK = 256  # values that share a scale
_LEAST = 4096  # a smaller tensor keeps 32 bits (Dettmers et al. 2021, arXiv:2110.02861, section 2)
_TILE = 16  # both sides of a matrix in float8 must be multiples of this


def adam8(optim: Optim, groups: Sequence[dict[str, Any]]) -> Any:
    """torchao's ``AdamW8bit`` over groups of float32 weights, with zero moments: codes of 8 bits and a float32 scale per 256 values.

    Tensors of fewer than 4096 values, or of no multiple of 256, keep float32 moments. ValueError without torchao.
    """
    try:
        with quiet_torchao():
            from torchao.optim import AdamW8bit
            from torchao.optim.subclass_8bit import OptimState8bit
    except ImportError as error:
        raise ValueError("optim.bits=8 needs the package torchao; pip install 'unmask[quant]'") from error
    made = AdamW8bit(
        list(groups),
        lr=optim.lr,
        betas=(optim.beta1, optim.beta2),
        eps=1e-8,
        weight_decay=optim.weight_decay,
        block_size=_BLOCK,
    )
    for weight in [weight for group in groups for weight in group["params"]]:
        zeros = {"step": torch.tensor(0.0)}
        for key, signed in (("exp_avg", True), ("exp_avg_sq", False)):
            if weight.numel() < _LEAST or weight.numel() % _BLOCK:
                zeros[key] = torch.zeros_like(weight)
            else:
                zeros[key] = OptimState8bit.zeros(weight.shape, signed, _BLOCK, weight.device, dtype=weight.dtype)
        made.state[weight] = zeros
    return made


def to_float8(module: nn.Module, *, emulate: bool = False) -> None:
    """Swap the linear layers inside the transformer's layers for ones that multiply in float8, forward and backward, with a scale
    per tensor that is computed anew each time. Their weights stay the same parameters.

    Heads, embeddings, layers with adapters or a forward pass of their own, and matrices with a side not divisible by 16 stay as they
    are. ``emulate``: round to float8 and multiply in float32, on any device. ValueError without torchao, or where no layer fits.
    """
    try:
        with quiet_torchao():
            from torchao.float8 import Float8LinearConfig, convert_to_float8_training
    except ImportError as error:
        raise ValueError("training.float8 needs the package torchao; pip install 'unmask[quant]'") from error
    config = Float8LinearConfig(emulate=emulate, pad_inner_dim=True)  # the number of tokens may be any
    if not any(_fits(part) for layer in layers(module) for part in layer.modules()):
        raise ValueError(
            f"training.float8 works on linear layers inside an nn.ModuleList, and {type(module).__name__} has none whose sides are "
            f"multiples of {_TILE}; leave it false"
        )
    for layer in layers(module):
        convert_to_float8_training(layer, config=config, module_filter_fn=lambda part, name: bool(name) and _fits(part))


def _fits(part: nn.Module) -> bool:
    if not isinstance(part, nn.Linear) or not is_plain(part) or any(True for _ in part.children()):
        return False
    return not part.in_features % _TILE and not part.out_features % _TILE


def refuse_without_float8(device: torch.device) -> None:
    """ValueError where the device has no float8 matrix products."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0):
        return
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"the device {device.type}"
    raise ValueError(
        f"training.float8 needs a GPU of compute capability 9.0 (Hopper) or later, which {name} is not; leave it false"
    )
