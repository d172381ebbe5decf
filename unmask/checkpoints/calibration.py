"""Calibration statistics of linear layers, for quantisers that look at more than the weights.

Public idea: ``calibrate(net, batches, where) -> {layer: H}`` with H = X^T X, X being all inputs of the layer; GPTQ (Frantar et al. 2023)
minimises the error of X W^T with it. Give the result to ``WeightStorage.stats``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from unmask.sequence import Batch


def calibrate(net: nn.Module, batches: Iterable[Batch], where: Callable[[str], bool]) -> dict[str, Tensor]:
    """X^T X of every chosen linear layer that ran, by its name in ``net``: float32 [in, in] on the network's device.

    ``batches``: on the network's device and masked as in use; a forward scores ``target``, or else the masked tokens, and heads see only
    those · ``where``: name of a linear layer -> whether it is measured. ValueError where it chooses none. Rows run one at a time, so that a
    network with streams of its own, as ``Elastic``, computes no padding.
    """
    layers = {name: m for name, m in net.named_modules() if isinstance(m, nn.Linear) and where(name)}
    if not layers:
        raise ValueError("`where` chooses no linear layer of this network; see the names in net.named_modules()")
    stats: dict[str, Tensor] = {}
    hooks = [layer.register_forward_pre_hook(_collector(stats, name)) for name, layer in layers.items()]
    try:
        with torch.no_grad():
            for batch in batches:
                for row in range(batch.rows):
                    net(one := batch.row(row), predict=one.target)
    finally:
        for hook in hooks:
            hook.remove()
    return stats


def _collector(stats: dict[str, Tensor], name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    """A hook that adds X^T X of a layer's input [.., in]; other arguments of the layer are not read."""

    def collect(layer: nn.Module, given: tuple[Tensor, ...]) -> None:
        x_ND = given[0].detach().flatten(0, -2).float()
        own = x_ND.T @ x_ND
        stats[name] = stats[name] + own if name in stats else own

    return collect
