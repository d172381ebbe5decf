"""Calibration statistics of linear layers, for quantisers that look at more than the weights.

Public idea: ``calibrate(net, batches, where) -> {layer: H}`` with H = X^T X, X being all inputs of the layer; GPTQ (Frantar et al. 2023)
minimises the error of X W^T with it. Give the result to ``WeightStorage.stats``. ``input_rows`` keeps some of the inputs themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from unmask.sequence import Batch

_Hook = Callable[[nn.Module, tuple[Tensor, ...]], None]


def calibrate(net: nn.Module, batches: Iterable[Batch], where: Callable[[str], bool]) -> dict[str, Tensor]:
    """X^T X of every chosen linear layer that ran, by its name in ``net``: float32 [in, in] on the network's device.

    ``batches``: on the network's device and masked as in use; a forward scores ``target``, or else the masked tokens, and heads see only
    those · ``where``: name of a linear layer -> whether it is measured. ValueError where it chooses none. Rows run one at a time, so that a
    network with streams of its own, as ``Elastic``, computes no padding.
    """
    stats: dict[str, Tensor] = {}
    _run(net, batches, where, lambda name: _collector(stats, name))
    return stats


def input_rows(
    net: nn.Module, batches: Iterable[Batch], where: Callable[[str], bool], *, most: int
) -> dict[str, Tensor]:
    """At most ``most`` inputs [N, in] of every chosen linear layer, float32, evenly spaced over all that it gets; else as ``calibrate``."""
    found: dict[str, _Keeper] = {}
    _run(net, batches, where, lambda name: found.setdefault(name, _Keeper(most)))
    return {name: one.kept() for name, one in found.items() if one.seen}


def _run(net: nn.Module, batches: Iterable[Batch], where: Callable[[str], bool], hook: Callable[[str], _Hook]) -> None:
    """Run the batches with a hook on every chosen layer."""
    layers = {name: m for name, m in net.named_modules() if isinstance(m, nn.Linear) and where(name)}
    if not layers:
        raise ValueError("`where` chooses no linear layer of this network; see the names in net.named_modules()")
    hooks = [layer.register_forward_pre_hook(hook(name)) for name, layer in layers.items()]
    try:
        with torch.no_grad():
            for batch in batches:
                for row in range(batch.rows):
                    net(one := batch.row(row), predict=one.target)
    finally:
        for handle in hooks:
            handle.remove()


def _collector(stats: dict[str, Tensor], name: str) -> _Hook:
    """A hook that adds X^T X of a layer's input [.., in]; other arguments of the layer are not read."""

    def collect(layer: nn.Module, given: tuple[Tensor, ...]) -> None:
        x_ND = given[0].detach().flatten(0, -2).float()
        own = x_ND.T @ x_ND
        stats[name] = stats[name] + own if name in stats else own

    return collect


class _Keeper:
    """A hook that keeps every n-th input of a layer, n being doubled whenever more than ``2 most`` are kept."""

    def __init__(self, most: int) -> None:
        self.most, self.rows, self.every, self.seen = most, list[Tensor](), 1, 0

    def __call__(self, layer: nn.Module, given: tuple[Tensor, ...]) -> None:
        x_ND = given[0].detach().flatten(0, -2)
        self.rows.append(x_ND[-self.seen % self.every :: self.every].float().clone())
        self.seen += len(x_ND)
        while sum(map(len, self.rows)) > 2 * self.most:
            self.rows, self.every = [torch.cat(self.rows)[::2].clone()], 2 * self.every

    def kept(self) -> Tensor:
        """At most ``most`` inputs, evenly spaced."""
        rows = torch.cat(self.rows)
        return (
            rows if len(rows) <= self.most else rows[torch.linspace(0, len(rows) - 1, self.most).long().to(rows.device)]
        )
