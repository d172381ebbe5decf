"""A feed-forward of experts: each token goes to those whose prototypes are most like it, tokens without a condition to one of their own.

Public ideas: ``RoutedExperts(PrototypeConfig(width=.., inner=..))(x, dropped)``; ``WithExperts(net, ..)`` puts experts into the
feed-forward slots of a network's layers. The parameters have the names of the released code of ProMoE (``methods.promoe``).

Shapes: B rows · T tokens · D width · E routed experts · k experts of a token · N packed positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unmask.models.asked import with_predecessors
from unmask.models.blocks import Branch, ElasticBlock, Read
from unmask.models.elastic import Elastic
from unmask.models.layout import Layout, Packed
from unmask.models.linear import Linear
from unmask.models.shared_vocabulary import as_text
from unmask.models.sizes import ElasticConfig
from unmask.sequence import Batch
from unmask.step import Prediction, Reuse

Gate = Callable[[Tensor], Tensor]  # cosines to the prototypes [.., E] -> weights of the experts


def by_cosine(cosine: Tensor) -> Tensor:
    """The cosine itself, which may be negative."""
    return cosine


def by_softmax(cosine: Tensor) -> Tensor:
    return cosine.softmax(-1)


def by_sigmoid(cosine: Tensor) -> Tensor:
    return cosine.sigmoid()


class Choice(Protocol):
    """``__call__``: weights [B, T, E] -> who serves whom, [B, T, E] bool · ``contrast``: the loss that separates experts, from prototypes
    [E, D], tokens [B, T, D] and the choice, at a temperature.
    """

    def __call__(self, weight: Tensor) -> Tensor: ...
    def contrast(self, prototypes: Tensor, x: Tensor, chosen: Tensor, temperature: float) -> Tensor: ...


@dataclass(frozen=True, kw_only=True)
class TokenChoice:
    """Each token takes its ``k`` best experts, whose weights are not normalised."""

    k: int = 1

    def top(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Weights and numbers of the experts, best first, [.., k]."""
        return weight.topk(self.k, dim=-1)

    def __call__(self, weight: Tensor) -> Tensor:
        return torch.zeros_like(weight, dtype=torch.bool).scatter(-1, self.top(weight)[1], True)

    def contrast(self, prototypes: Tensor, x: Tensor, chosen: Tensor, temperature: float) -> Tensor:
        """Over the experts that got a token: which prototype belongs to which mean of tokens. 0 where fewer than two did."""
        chosen_NE, x_ND = chosen.flatten(0, -2).to(x.dtype), x.flatten(0, -2)
        used_E = chosen_NE.any(0)
        if int(used_E.sum()) < 2:
            return x.new_zeros(())
        mean_ED = (chosen_NE.T @ x_ND)[used_E] / chosen_NE.sum(0)[used_E, None]
        return F.cross_entropy(cosines(prototypes[used_E], mean_ED) / temperature, _diagonal(mean_ED))


@dataclass(frozen=True, kw_only=True)
class ExpertChoice:
    """Each expert takes its n = max(1, T k / E) best tokens of each row, rounded down, so all have the same load."""

    k: int = 1

    def __call__(self, weight: Tensor) -> Tensor:
        tokens, experts = weight.shape[-2:]
        n = max(1, min(int(tokens / experts * self.k), tokens))
        best = weight.topk(n, dim=-2).indices
        return torch.zeros_like(weight, dtype=torch.bool).scatter(-2, best, True)

    def contrast(self, prototypes: Tensor, x: Tensor, chosen: Tensor, temperature: float) -> Tensor:
        """As that of ``TokenChoice``, in each row and over all experts. 0 without rows."""
        if not len(x) or len(prototypes) < 2:
            return x.new_zeros(())
        share_BET = chosen.to(x.dtype).transpose(-1, -2)
        mean_BED = share_BET @ x / share_BET.sum(-1, keepdim=True)
        logits_BEE = cosines(prototypes.expand_as(mean_BED), mean_BED) / temperature
        target = _diagonal(prototypes).repeat(len(x))
        return F.cross_entropy(logits_BEE.flatten(0, 1), target)


def cosines(a: Tensor, b: Tensor) -> Tensor:
    """Of rows of ``a [.., n, D]`` with rows of ``b [.., m, D]``: [.., n, m]."""
    return F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).transpose(-1, -2)


def _diagonal(rows: Tensor) -> Tensor:
    return torch.arange(len(rows), device=rows.device)


def balance_in_rows(score: Tensor, chosen: Tensor) -> Tensor:
    """The mean over rows of sum over experts of load times mean score, 1 where both are even. [B, T, E] each."""
    experts, k = score.shape[-1], chosen.sum(-1).float().mean()
    load_BE = chosen.float().mean(1) * experts / k
    return (load_BE * score.mean(1)).sum(-1).mean()


def balance_over_all(score: Tensor, chosen: Tensor) -> Tensor:
    """The same over all tokens of a batch at once."""
    return balance_in_rows(score.flatten(0, 1)[None], chosen.flatten(0, 1)[None])


@dataclass(frozen=True, kw_only=True)
class PrototypeConfig:
    """``inner``: width inside an expert · ``routed``: E · ``contrast``, ``balance``: weights of the losses, 0 for none · ``temperature``:
    of the contrast.
    """

    width: int
    inner: int
    routed: int = 12
    choice: Choice = TokenChoice()
    gate: Gate = by_cosine
    contrast: float = 1.0
    temperature: float = 0.07
    balance: float = 0.0


class Expert(nn.Module):
    """down(gelu(up x)), both with biases."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.up_proj, self.down_proj = Linear(width, inner, bias=True), Linear(inner, width, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.gelu(self.up_proj(x), approximate="tanh"))


class RoutedExperts(nn.Module):
    """Routed experts, then the one of tokens without a condition, and one that all tokens share."""

    def __init__(self, config: PrototypeConfig) -> None:
        super().__init__()
        self.config = config
        self.experts = nn.ModuleList(Expert(config.width, config.inner) for _ in range(config.routed + 1))
        self.shared_expert = Expert(config.width, config.inner)
        self.cluster_centers = nn.Parameter(0.02 * torch.randn(config.routed, config.width))

    def weights(self, x: Tensor) -> Tensor:
        """Of the routed experts, before any choice: [.., E]."""
        return self.config.gate(cosines(x, self.cluster_centers))

    def forward(self, x: Tensor, dropped: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]. ``dropped``: rows [B] or tokens [B, T] whose condition was dropped; they go to the last expert alone.

        The losses of the routing get a gradient of their weight, whatever is made of the result.
        """
        routed_BT = ~(dropped[:, None].expand(x.shape[:2]) if dropped.dim() == 1 else dropped)
        weight_BTE, chosen_BTE, loss = self._routed(x, routed_BT)
        flat, found = x.flatten(0, 1), self.shared_expert(x).flatten(0, 1)
        for number, expert in enumerate(self.experts):
            last = number == self.config.routed
            at = (~routed_BT if last else chosen_BTE[..., number]).flatten().nonzero()[:, 0]
            if len(at):
                own = expert(flat[at])
                own = own if last else own * weight_BTE[..., number].flatten()[at, None]
                found = found.index_add(0, at, own.to(found.dtype))
        return Through.apply(found.view_as(x), loss)  # type: ignore[return-value]

    def losses(self, x: Tensor, dropped: Tensor) -> Tensor:
        """Contrast and balance of rows [B, T, D], of those with a condition."""
        return self._routed(x, ~dropped[:, None].expand(x.shape[:2]))[2]

    def _routed(self, x: Tensor, routed_BT: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Weights and choice [B, T, E] of the tokens with a condition, and the loss."""
        config, whole_B = self.config, routed_BT.all(1)
        weight_BTE = self.weights(x)
        chosen_BTE = config.choice(weight_BTE) & routed_BT[..., None]
        # Rows that are routed whole stay rows; otherwise all routed tokens are one row.
        rows = bool((whole_B == routed_BT.any(1)).all())
        own = (x[whole_B], chosen_BTE[whole_B]) if rows else (x[routed_BT][None], chosen_BTE[routed_BT][None])
        loss = x.new_zeros(())
        if config.contrast:
            loss = loss + config.contrast * config.choice.contrast(self.cluster_centers, *own, config.temperature)
        if config.balance and own[0].numel():
            loss = loss + config.balance * balance_over_all(cosines(own[0], self.cluster_centers).softmax(-1), own[1])
        return weight_BTE, chosen_BTE, loss


class Through(torch.autograd.Function):
    """``x`` unchanged; in the backward pass ``loss`` gets a gradient of exactly 1."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, loss: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return grad, torch.ones((), dtype=grad.dtype, device=grad.device)


# -- experts in the layers of a network --------------------------------------------------------------------------------


class Slot(nn.Module):
    """Experts as the feed-forward of packed positions. Of those of a pass, each [N]: ``bare``, their row has no condition, or they only
    fill up a row · ``token``: flat token numbers, -1 for those that fill up.
    """

    def __init__(self, experts: nn.Module) -> None:
        super().__init__()
        self.experts = experts
        self.bare: Tensor | None = None
        self.token: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        assert self.bare is not None and len(self.bare) == len(x), "the network runs inside WithExperts"
        return self.experts(x[None], self.bare[None])[0]


class WithExperts(nn.Module):
    """A network whose layers ``numbers`` have experts, made by ``make(width)``, in both branches.

    A row has no condition if all given tokens of its ``spans`` are the null token.
    """

    def __init__(
        self, net: Elastic, make: Callable[[int], nn.Module], numbers: Iterable[int], spans: Iterable[str] = ("prompt",)
    ) -> None:
        super().__init__()
        self.net, self.spans, self.mask_id = net, frozenset(spans), net.mask_id
        for number in numbers:
            block = net.blocks[number]
            assert isinstance(block, ElasticBlock)
            for branch in _branches(block):
                branch.mlp = Slot(make(branch.mlp_norm.weight.shape[0]))
            block.register_forward_pre_hook(self._announce, with_kwargs=True)
        self._tokens: dict[str, Packed | None] = {}
        self._dropped = torch.zeros(0, dtype=torch.bool)

    @property
    def slots(self) -> Iterator[Slot]:
        return (module for module in self.net.modules() if isinstance(module, Slot))

    def forward(self, batch: Batch, *, predict: Tensor | None = None, reuse: Reuse | None = None) -> Prediction:
        layout = self._layout(batch, predict, reuse)
        self._tokens = {"und": layout.und, "gen": layout.gen}
        self._dropped = self.without_condition(batch)[:, None].expand(batch.ids.shape).flatten()
        return self.net(batch, predict=predict, reuse=reuse)

    @property
    def config(self) -> ElasticConfig:
        return self.net.config

    @property
    def embed(self) -> nn.Embedding:
        return self.net.embed

    def _layout(self, batch: Batch, predict: Tensor | None, reuse: Reuse | None) -> Layout:
        """As the network lays the batch out."""
        config = self.config
        if self.net.has_registers:
            raise ValueError("experts are not made for networks with registers; use one without")
        batch = as_text(batch, config.first_code) if config.first_code else batch
        reuse = with_predecessors(batch.masked if predict is None else predict, reuse) if config.shifted else reuse
        return self.net._layout(batch, reuse)

    def without_condition(self, batch: Batch) -> Tensor:
        """Rows whose condition was dropped, [B]; rows without one too."""
        given = torch.zeros_like(batch.masked)
        for row, table in enumerate(batch.span_table):
            for span in table:
                if span.name in self.spans:
                    given[row, span.start : span.stop] = True
        return ~(given & (batch.ids != self.mask_id) & ~batch.masked).any(1)

    def _announce(self, block: nn.Module, args: tuple[Any, ...], given: dict[str, Any]) -> None:
        """Tell the slots of a block which of its positions have no condition."""
        read = given.get("read") or Read()
        for name in ("und", "gen"):
            branch, packed, some = getattr(block, name, None), self._tokens[name], getattr(read, name)
            if branch is not None and packed is not None and isinstance(branch.mlp, Slot):
                token, dropped = packed.token, self._dropped.index_select(0, packed.token)
                if packed.pad is not None:
                    token, dropped = token.masked_fill(packed.pad, -1), dropped | packed.pad
                if some is not None:
                    token, dropped = token.index_select(0, some), dropped.index_select(0, some)
                branch.mlp.token, branch.mlp.bare = token, dropped


def _branches(block: ElasticBlock) -> Iterator[Branch]:
    yield block.und
    if hasattr(block, "gen"):
        yield block.gen
