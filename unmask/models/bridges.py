"""Small trainable modules between frozen networks: from the states of one to the conditions of another.

Public ideas: ``TextAdapter(width)(states) -> (states, encoded)`` changes what a generator reads (SUR-adapter, arXiv 2305.05189);
``QueryMapper(...)(states) -> conditions`` turns states of a language model into conditions of a generator (GILL, arXiv 2305.17216);
``QueryTokens`` puts learned queries behind the inputs of a network and makes conditions of its states (Query-Kontext, arXiv 2509.26641).

Shapes: B rows · L tokens · D width of the states · Q queries · C width of the conditions.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class TextAdapter(nn.Module):
    """Two transformer layers whose result attends to the states; a last layer that starts at zero.

    ``share``, ``kept``: out = share * adapter(x) + kept * x, the identity before training where ``kept`` is 1 · ``across``: attention over
    the rows of a batch instead of the words, the defect of the release, with which a row depends on its neighbours.
    """

    def __init__(
        self,
        width: int,
        *,
        heads: int = 8,
        hidden: int = 2048,
        layers: int = 2,
        share: float = 0.1,
        kept: float = 1.0,
        across: bool = False,
    ) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(width, heads, hidden, dropout=0.0, batch_first=not across)
        self.transformer_encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.attention = _StateAttention(width)
        self.fc = nn.Linear(width, width)
        nn.init.zeros_(self.fc.weight)
        nn.init.zeros_(self.fc.bias)
        self.share, self.kept = share, kept

    def forward(self, x_BLD: Tensor) -> tuple[Tensor, Tensor]:
        """The new states, and what the transformer layers made of the old ones; both [B, L, D]."""
        encoded_BLD = self.transformer_encoder(x_BLD)
        return self.share * self.fc(self.attention(encoded_BLD, x_BLD)) + self.kept * x_BLD, encoded_BLD


class _StateAttention(nn.Module):
    """One head: queries from the encoder, keys from the states, and the states themselves as values."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query_layer, self.key_layer = nn.Linear(width, width), nn.Linear(width, width)
        self.output_layer = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))

    def forward(self, encoded_BLD: Tensor, x_BLD: Tensor) -> Tensor:
        scores_BLL = self.query_layer(encoded_BLD) @ self.key_layer(x_BLD).mT / math.sqrt(x_BLD.shape[-1])
        read_BLD = scores_BLL.softmax(-1) @ x_BLD + x_BLD
        return self.output_layer(read_BLD) + read_BLD


class QueryMapper(nn.Module):
    """An encoder-decoder whose learned queries read the states: [B, L, D] -> [B, Q, C], L any number.

    ``inner``: width of its layers, of which there are ``layers`` on each side.
    """

    def __init__(
        self,
        width: int,
        out: int,
        *,
        queries: int = 77,
        inner: int = 512,
        layers: int = 4,
        heads: int = 4,
        hidden: int = 0,
    ) -> None:
        super().__init__()
        self.fc = nn.Linear(width, inner)
        one = nn.TransformerEncoderLayer(
            inner, heads, hidden or 4 * inner, dropout=0.0, batch_first=True, norm_first=True
        )
        self.tfm = nn.Transformer(
            inner,
            heads,
            num_decoder_layers=layers,
            dim_feedforward=hidden or 4 * inner,
            dropout=0.0,
            batch_first=True,
            norm_first=True,
            custom_encoder=nn.TransformerEncoder(one, layers, nn.LayerNorm(inner), enable_nested_tensor=False),
        )
        self.model = nn.Linear(inner, out)
        self.query_embs = nn.Parameter(torch.randn(1, queries, inner))

    def forward(self, states_BLD: Tensor) -> Tensor:
        queries = self.query_embs.expand(len(states_BLD), -1, -1)
        return self.model(self.tfm(self.fc(states_BLD), queries))


class QueryTokens(nn.Module):
    """Learned vectors behind the inputs of an understanding model, and a connector that makes conditions of all its states.

    ``width``: of the understanding model, ``out`` of the conditions, and ``inner`` between the connector's two layers.
    """

    def __init__(self, width: int, out: int, *, queries: int = 128, inner: int = 0) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(queries, width) * 0.02)
        self.connector = nn.Sequential(nn.Linear(width, inner or out), nn.GELU(), nn.Linear(inner or out, out))

    def appended(self, inputs_BLD: Tensor) -> Tensor:
        """The inputs with the queries behind them, [B, L + Q, D]."""
        return torch.cat([inputs_BLD, self.queries.expand(len(inputs_BLD), -1, -1)], 1)

    def forward(self, states_BLD: Tensor) -> Tensor:
        """Conditions [B, L + Q, C] of the states of words and queries."""
        return self.connector(states_BLD)


def feature_kl(teacher_BLD: Tensor, student_BLD: Tensor) -> Tensor:
    """KL(student || teacher) of the softmax over features, summed over words, mean over rows; the teacher gets no gradient."""
    student = student_BLD.log_softmax(-1)
    teacher = teacher_BLD.detach().log_softmax(-1).expand_as(student)
    return F.kl_div(teacher, student, reduction="sum", log_target=True) / len(student)
