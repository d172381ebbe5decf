"""One row of a text network through its layers, with keys and values of earlier tokens that the caller may choose layer by layer.

Public idea: ``through(net, ids, position, attend, lent) -> Passed``. ``Elastic`` serves whole batches, whose layers all lend the same
tokens; SPRINT keeps other tokens in every layer.

Shapes: L tokens · S tokens that are read, the lent ones first · H heads · K head width · D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unmask.models.blocks import ElasticBlock
from unmask.models.elastic import Elastic
from unmask.models.rope import rope_table, rotate


@dataclass(frozen=True, kw_only=True)
class LayerKeys:
    """Keys after the rotation and values of a layer, [H, S, K] each."""

    keys: Tensor
    values: Tensor

    def at(self, index: Tensor | slice) -> LayerKeys:
        """Those of some tokens."""
        return LayerKeys(keys=self.keys[:, index], values=self.values[:, index])


@dataclass(frozen=True, kw_only=True)
class Passed:
    """``hidden [L, D]``: after the last norm, as the head reads it · ``layers``: keys and values of the tokens, by layer · ``inputs``: of
    every layer, [L, D] each.
    """

    hidden: Tensor
    layers: tuple[LayerKeys, ...]
    inputs: tuple[Tensor, ...]


@torch.no_grad()
def through(
    net: Elastic, ids_L: Tensor, position_L: Tensor, attend_LS: Tensor, lent: Sequence[LayerKeys] = ()
) -> Passed:
    """``attend [L, S]``: which tokens read which; a token that reads nothing gets zeros from attention. ``lent``: of each layer."""
    config = net.config
    width = config.rope_width or config.head_channels
    table = rope_table(position_L[None], width, config.rope_theta * config.rope_factor)
    x_LD, layers, inputs = net.embed(ids_L), list[LayerKeys](), list[Tensor]()
    for number, block in enumerate(net.blocks):
        assert isinstance(block, ElasticBlock)
        inputs.append(x_LD)
        heads = block.und.heads(x_LD)
        assert heads.q is not None
        q, k = (rotate(part.transpose(0, 1)[None], table)[0] for part in (heads.q, heads.k))
        own = LayerKeys(keys=k, values=heads.v.transpose(0, 1))
        layers.append(own)
        k, v = own.keys, own.values
        if lent:
            k, v = torch.cat([lent[number].keys, k], dim=1), torch.cat([lent[number].values, v], dim=1)
        x_LD = block.finished(x_LD, _mixed(q, k, v, attend_LS))
    return Passed(hidden=net.norm(x_LD), layers=tuple(layers), inputs=tuple(inputs))


def _mixed(q_HLK: Tensor, k_HSK: Tensor, v_HSK: Tensor, attend_LS: Tensor) -> Tensor:
    shared = len(q_HLK) // len(k_HSK)
    k_HSK, v_HSK = (x.repeat_interleave(shared, dim=0) for x in (k_HSK, v_HSK))
    score_HLS = (q_HLK @ k_HSK.transpose(1, 2) * q_HLK.shape[-1] ** -0.5).masked_fill(~attend_LS, -torch.inf)
    weight_HLS = score_HLS.softmax(-1).nan_to_num(0.0)  # rows that read nothing
    return (weight_HLS @ v_HSK).transpose(0, 1).flatten(1)
