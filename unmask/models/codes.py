"""The image token path (spec 1.7, layout "dit2"): codes -> positions, and hidden states -> code logits.

One position may stand for a 2x2 square of codes (*fold*): a 2x2 convolution of stride 2 on the way in, its transpose on the
way out. Both work on one position alone. Masking stays at the level of codes, so one position can mix masked and unmasked ones.

Shapes: B rows · C code positions · E generation width · N tokens scored · V codes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unmask.derived import derived
from unmask.models.blocks import RMSNorm
from unmask.models.linear import Linear, hooked, is_plain, linear
from unmask.models.sizes import ElasticConfig

_EPS = 1e-6
_MANY = 1024  # codes of a forward pass from which all codes' vectors are kept, [V, E]


class Fold(nn.Module):
    """A 2x2 convolution of stride 2, written as one matrix product over each square of four codes: [.., 4, E] -> [.., E]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, width, 2, 2))  # [out, in, kh, kw]

    def forward(self, square: Tensor) -> Tensor:
        return linear(square.flatten(-2), _fixed(_folding, self.weight))


class Unfold(nn.Module):
    """Its transpose: [.., E] -> [.., 4, E]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, width, 2, 2))  # [in, out, kh, kw]

    def forward(self, h: Tensor) -> Tensor:
        return linear(h, _fixed(_unfolding, self.weight)).unflatten(-1, (4, h.shape[-1]))


def _folding(weight: Tensor) -> Tensor:
    return weight.permute(0, 2, 3, 1).flatten(1)


def _unfolding(weight: Tensor) -> Tensor:
    return weight.permute(2, 3, 1, 0).flatten(0, 2)


def _fixed(make: Callable[..., Tensor], first: Tensor, *others: Tensor) -> Tensor:
    """What follows from weights alone: computed once without gradients, and again after they change."""
    if torch.is_grad_enabled():
        return make(first, *others)
    return derived(make, lambda: make(first, *others), first, *others)


class CodeEmbedding(nn.Module):
    """codes [B, T] -> one vector a code (``embed``) -> one vector a position (``forward``); masked codes are ``config.mask_code``."""

    def __init__(self, config: ElasticConfig) -> None:
        super().__init__()
        width = config.gen_width
        self.table = nn.Embedding(config.code_rows, width)
        self.table_norm = RMSNorm(width, _EPS)
        self.mix = Linear(width, width, bias=False)
        self.fold_norm = RMSNorm(width, _EPS)
        self.fold = Fold(width)
        self.out_norm = RMSNorm(width, _EPS)
        self.out = Linear(width, width, bias=False)

    def forward(self, codes_BT: Tensor, square_BC4: Tensor | None = None, alone_BC: Tensor | None = None) -> Tensor:
        """[B, C, E]. ``square``: the places among the codes of each position's four; None where every code has its own position.

        ``alone [B, C]``: positions of one code (their place stands four times in ``square``); None where there are none.
        """
        e_BTE = self._of_codes(codes_BT)
        if square_BC4 is not None:
            folded = self.fold(_taken(self.fold_norm(e_BTE), square_BC4))
            if alone_BC is not None:
                folded = torch.where(alone_BC[..., None], _taken(e_BTE, square_BC4[..., :1])[..., 0, :], folded)
            e_BTE = folded
        return self.out(self.out_norm(e_BTE))

    def _of_codes(self, codes_BT: Tensor) -> Tensor:
        """A vector depends on its code alone: where there are many, they are looked up among those of all codes."""
        plain = is_plain(self.mix) and type(self.mix.weight) is nn.Parameter and not hooked(self.mix)
        if codes_BT.numel() < _MANY or torch.is_grad_enabled() or not plain:
            return self.mix(self.table_norm(self.table(codes_BT)))

        table, *others = self.table.weight, self.table_norm.weight, self.mix.weight
        every = derived("codes", lambda: self.mix(self.table_norm(table)), table, *others)
        return F.embedding(codes_BT, every)


class CodeHead(nn.Module):
    """Hidden states of the tokens to score alone, [N, E] -> logits [N, V]; ``unfolded`` makes them from folded positions."""

    def __init__(self, config: ElasticConfig) -> None:
        super().__init__()
        width = config.gen_width
        self.unfold_norm = RMSNorm(width, _EPS)
        self.unfold = Unfold(width)
        self.in_norm = RMSNorm(width, _EPS)
        self.inner = Linear(width, width, bias=False)
        self.mix = Linear(width, width, bias=False)
        self.mix_norm = RMSNorm(width, _EPS)
        self.classify = Linear(width, config.codes, bias=False)

    def unfolded(self, h: Tensor) -> Tensor:
        """Folded positions [.., E] -> one vector a code [.., 4, E]."""
        return self.unfold(self.unfold_norm(h))

    def forward(self, h_NE: Tensor) -> Tensor:
        return self.classify(self.mix_norm(self.mix(self.inner(self.in_norm(h_NE)))))


def _taken(e_BTE: Tensor, square_BCk: Tensor) -> Tensor:
    """The vectors of the codes at the places ``square``, [B, C, k, E]. Whole rows are copied: a gather by element took longer."""
    rows, tokens, width = e_BTE.shape
    flat = square_BCk if rows == 1 else square_BCk + torch.arange(rows, device=e_BTE.device).view(-1, 1, 1) * tokens
    return e_BTE.reshape(-1, width).index_select(0, flat.flatten()).view(*square_BCk.shape, width)


def init_codes(embedding: CodeEmbedding, head: CodeHead, codebook_VD: Tensor, generator: torch.Generator) -> None:
    """Start both tables from the tokenizer's own geometry: a random rotation of its standardised code vectors.

    Codes that look alike then begin alike, so that what is learned of one is learned of its neighbours.
    """
    z = codebook_VD.float()
    z = (z - z.mean(0)) / (z.std(0) + 1e-6)
    width = embedding.table.weight.shape[1]
    basis = torch.randn(z.shape[1], width, generator=generator) / z.shape[1] ** 0.5
    with torch.no_grad():
        embedding.table.weight[: len(z)] = z @ basis
        head.classify.weight.copy_((z @ basis) / width**0.5)
