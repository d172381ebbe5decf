"""The image token path (spec 1.7, layout "dit2"): codes -> positions, and hidden states -> code logits.

One position may stand for a 2x2 square of codes (*fold*): a 2x2 convolution of stride 2 on the way in, its transpose on the
way out. Masking stays at the level of codes, so one position can mix decided and undecided ones.

Shapes: B rows · S code spans a row · h w the code grid · E generation width · N tokens asked for · V codes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from unmask.models.blocks import RMSNorm
from unmask.models.sizes import ElasticConfig

_EPS = 1e-6


class CodeEmbedding(nn.Module):
    """codes [B, S, h, w] -> [B, S * positions, E]; undecided codes are ``config.mask_code``."""

    def __init__(self, config: ElasticConfig) -> None:
        super().__init__()
        width = config.gen_width
        self.table = nn.Embedding(config.code_rows, width)
        self.table_norm = RMSNorm(width, _EPS)
        self.mix = nn.Linear(width, width, bias=False)
        self.fold_norm = RMSNorm(width, _EPS)
        self.fold = nn.Conv2d(width, width, 2, stride=2, bias=False)
        self.out_norm = RMSNorm(width, _EPS)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, codes_BShw: Tensor, *, folded: bool) -> Tensor:
        batch = codes_BShw.shape[0]
        e = self.mix(self.table_norm(self.table(codes_BShw)))  # [B, S, h, w, E]
        if folded:
            e = self._fold(self.fold_norm(e))
        return self.out(self.out_norm(e.reshape(batch, -1, e.shape[-1])))

    def _fold(self, e_BShwE: Tensor) -> Tensor:
        """The stride-2 convolution written as one matrix product over each 2x2 square."""
        batch, spans, high, wide, width = e_BShwE.shape
        squares = e_BShwE.reshape(batch, spans, high // 2, 2, wide // 2, 2, width).transpose(3, 4)
        weight = self.fold.weight.permute(0, 2, 3, 1).reshape(width, 4 * width)  # [out, kh, kw, in]
        return squares.reshape(batch, spans, high // 2, wide // 2, 4 * width) @ weight.T


class CodeHead(nn.Module):
    """Hidden states [B, positions, E] -> logits [N, V] of the tokens asked for alone."""

    def __init__(self, config: ElasticConfig) -> None:
        super().__init__()
        width = config.gen_width
        self.unfold_norm = RMSNorm(width, _EPS)
        self.unfold = nn.ConvTranspose2d(width, width, 2, stride=2, bias=False)
        self.in_norm = RMSNorm(width, _EPS)
        self.inner = nn.Linear(width, width, bias=False)
        self.mix = nn.Linear(width, width, bias=False)
        self.mix_norm = RMSNorm(width, _EPS)
        self.classify = nn.Linear(width, config.codes, bias=False)

    def unfold_positions(self, h_BCE: Tensor, grid: tuple[int, int]) -> Tensor:
        """Folded positions [B, S * h/2 * w/2, E] -> one vector a code [B, S * h * w, E]."""
        batch, _, width = h_BCE.shape
        high, wide = grid[0] // 2, grid[1] // 2
        weight = self.unfold.weight.permute(0, 2, 3, 1).reshape(width, 4 * width)  # [in, kh, kw, out]
        out = self.unfold_norm(h_BCE) @ weight
        out = out.reshape(batch, -1, high, wide, 2, 2, width).transpose(3, 4)
        return out.reshape(batch, -1, width)

    def forward(self, h_NE: Tensor) -> Tensor:
        return self.classify(self.mix_norm(self.mix(self.inner(self.in_norm(h_NE)))))


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
