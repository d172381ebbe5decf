"""The image token path (spec 1.7, layout "dit2"): codes -> positions, and hidden states -> code logits.

One position may stand for a 2x2 square of codes (*fold*): a 2x2 convolution of stride 2 on the way in, its transpose on the
way out. Both work on one position alone. Masking stays at the level of codes, so one position can mix masked and unmasked ones.

Shapes: B rows · C code positions · E generation width · N tokens scored · V codes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from unmask.models.blocks import RMSNorm
from unmask.models.linear import Linear, hooked, is_plain, keeps, kept, linear, reordered, served_by_onednn
from unmask.models.sizes import ElasticConfig

_EPS = 1e-6
_MANY = 1024  # codes of a forward pass from which the vectors of all codes are kept, [V, E]


class Fold(nn.Module):
    """A 2x2 convolution of stride 2, written as one matrix product over each square of four codes: [.., 4, E] -> [.., E]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, width, 2, 2))  # [out, in, kh, kw]

    def matrix(self) -> Tensor:
        """The weight of the product, [E, 4 E]."""
        return self.weight.permute(0, 2, 3, 1).flatten(1)

    def forward(self, square: Tensor, kept_by: nn.Module | None = None) -> Tensor:
        """``kept_by``: the layer that the matrix is kept with (``linear.kept``)."""
        return _product(square.flatten(-2), self, kept_by)


class Unfold(nn.Module):
    """Its transpose: [.., E] -> [.., 4, E]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, width, 2, 2))  # [in, out, kh, kw]

    def matrix(self) -> Tensor:
        """The weight of the product, [4 E, E]."""
        return self.weight.permute(2, 3, 1, 0).flatten(0, 2)

    def forward(self, h: Tensor, kept_by: nn.Module | None = None) -> Tensor:
        """``kept_by``: as of ``Fold``."""
        return _product(h, self, kept_by).unflatten(-1, (4, h.shape[-1]))


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
        if square_BC4 is not None and alone_BC is None and self._keeps(codes_BT):
            return self.out(self.out_norm(self.fold(self._known(codes_BT, square_BC4), kept_by=self.mix)))
        e_BTE = self.mix(self.table_norm(self.table(codes_BT)))
        if square_BC4 is not None:
            folded = self.fold(_taken(self.fold_norm(e_BTE), square_BC4))
            if alone_BC is not None:
                folded = torch.where(alone_BC[..., None], _taken(e_BTE, square_BC4[..., :1])[..., 0, :], folded)
            e_BTE = folded
        return self.out(self.out_norm(e_BTE))

    def _keeps(self, codes_BT: Tensor) -> bool:
        """Whether the vectors of all codes are kept: where a forward pass has many codes, and in a model that was opened for use on the
        CPU, where a row's bits do not depend on the rows beside it.
        """
        parts = (self.table, self.table_norm, self.mix, self.fold_norm)
        if torch.is_grad_enabled() or not is_plain(self.mix) or any(map(hooked, parts)):
            return False
        return codes_BT.numel() >= _MANY or (keeps(self.mix) and codes_BT.is_cpu)

    def _known(self, codes_BT: Tensor, square_BC4: Tensor) -> Tensor:
        """What ``fold`` reads, [B, C, 4, E]: what a code becomes before it is made once for all codes."""
        weights = [self.table.weight, self.table_norm.weight, self.mix.weight, self.fold_norm.weight]
        table_VE = kept(
            self.mix, "codes", lambda: self.fold_norm(self.mix(self.table_norm(self.table.weight))), weights
        )
        places = _places(square_BC4, codes_BT.shape[1])
        codes = codes_BT.flatten().index_select(0, places.flatten())
        return table_VE.index_select(0, codes).view(*square_BC4.shape, -1)


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
        return self.unfold(self.unfold_norm(h), kept_by=self.mix)

    def forward(self, h_NE: Tensor) -> Tensor:
        return self.classify(self.mix_norm(self.mix(self.inner(self.in_norm(h_NE)))))


def _product(x: Tensor, of: Fold | Unfold, kept_by: nn.Module | None) -> Tensor:
    if kept_by is None or not keeps(kept_by):
        return linear(x, of.matrix())
    name = f"{type(of).__name__} {served_by_onednn(x, of.weight)}"
    return linear(x, kept(kept_by, name, lambda: reordered(of.matrix()), [of.weight]))


def _taken(e_BTE: Tensor, square_BCk: Tensor) -> Tensor:
    """The vectors of the codes at the places ``square``, [B, C, k, E]. Whole rows are copied: a gather by element took longer."""
    flat = _places(square_BCk, e_BTE.shape[1])
    return e_BTE.flatten(0, 1).index_select(0, flat.flatten()).view(*square_BCk.shape, -1)


def _places(square_BCk: Tensor, tokens: int) -> Tensor:
    """Places among the tokens of one row, as places among the tokens of all rows."""
    rows = len(square_BCk)
    return (
        square_BCk if rows == 1 else square_BCk + torch.arange(rows, device=square_BCk.device).view(-1, 1, 1) * tokens
    )


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
