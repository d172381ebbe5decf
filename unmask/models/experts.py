"""Routed experts in the feed-forward slot of a layer, as LLaDA2 has them (arXiv 2512.15745; the router is DeepSeek-V3's, 2412.19437).

Public idea: ``Experts(width, config)``: any [.., width] -> [.., width], in place of ``SwiGLU``. Every position goes to a few experts, which
a router chooses, and to the shared experts. With FSDP2 each layer is sharded whole, so all ranks hold all experts in turn; an
expert-parallel layout would shard ``experts`` over ranks and exchange positions before and after ``_routed``. It is not built.

Shapes: N positions · D width · E experts · K chosen experts · G groups.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unmask.models.blocks import SwiGLU
from unmask.models.linear import alike_from
from unmask.models.sizes import ExpertsConfig


@dataclass(frozen=True, kw_only=True)
class Routing:
    """``experts [N, K]``: the chosen ones · ``weights [N, K]``: of their outputs, float32 · ``logits [N, E]``: of the router, float32."""

    experts: Tensor
    weights: Tensor
    logits: Tensor


class Router(nn.Module):
    """Chooses experts by sigmoid scores, in float32. ``bias [E]`` balances the load: it counts in the choice, never in the weights."""

    def __init__(self, width: int, config: ExpertsConfig) -> None:
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.zeros(config.count, width))
        self.bias = nn.Parameter(torch.zeros(config.count))

    def forward(self, x_ND: Tensor) -> Routing:
        c = self.config
        logits_NE = F.linear(x_ND.float(), self.weight.float())
        score_NE = logits_NE.sigmoid()
        biased_NGe = (score_NE + self.bias.float()).unflatten(-1, (c.groups, -1))
        best_NG = biased_NGe.topk(min(2, biased_NGe.shape[-1]), dim=-1).values.sum(-1)
        open_NG = torch.zeros_like(best_NG, dtype=torch.bool)
        open_NG.scatter_(-1, best_NG.topk(c.groups_chosen, dim=-1).indices, True)
        experts_NK = biased_NGe.masked_fill(~open_NG[..., None], -torch.inf).flatten(-2).topk(c.chosen, dim=-1).indices
        weights_NK = score_NE.gather(-1, experts_NK)
        if c.chosen > 1:
            weights_NK = weights_NK / (weights_NK.sum(-1, keepdim=True) + 1e-20)
        return Routing(experts=experts_NK, weights=weights_NK * c.scale, logits=logits_NE)


class Experts(nn.Module):
    """sum of weight * expert(x) over the chosen experts, + shared(x), which is neither gated nor scaled."""

    def __init__(self, width: int, config: ExpertsConfig) -> None:
        super().__init__()
        self.router = Router(width, config)
        self.experts = nn.ModuleList(SwiGLU(width, config.width) for _ in range(config.count))
        self.shared = SwiGLU(width, config.width * config.shared) if config.shared else None

    def forward(self, x: Tensor) -> Tensor:
        x_ND = x.reshape(-1, x.shape[-1])
        found_ND = self._routed(x_ND, self.router(x_ND))
        if self.shared is not None:
            found_ND = found_ND + self.shared(x_ND)
        return found_ND.view_as(x)

    def _routed(self, x_ND: Tensor, routing: Routing) -> Tensor:
        """The weighted outputs of the chosen experts, added in rising order of the experts, so that a position's sum does not depend on
        the other positions. Each expert gets a multiple of ``alike_from`` rows: products of fewer round differently.
        """
        chosen = routing.experts.shape[1]
        by_expert = routing.experts.flatten().argsort(stable=True)
        counts = torch.bincount(routing.experts.flatten(), minlength=len(self.experts)).tolist()
        weights_M = routing.weights.flatten()[by_expert].to(x_ND.dtype)
        found_ND, start = torch.zeros_like(x_ND), 0
        for expert, count in zip(self.experts, counts, strict=True):
            if count:
                some = slice(start, start + count)
                at_n = by_expert[some] // chosen
                given_nD = F.pad(x_ND[at_n], (0, 0, 0, -count % alike_from(x_ND)))
                found_ND = found_ND.index_add(0, at_n, expert(given_nD)[:count] * weights_M[some, None])
                start += count
        return found_ND
