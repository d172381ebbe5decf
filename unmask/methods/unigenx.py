"""UniGenX: words through a softmax, numbers through a diffusion head, in one causal stream.

Paper: Zhang et al., "UniGenX: Unified Generation of Sequence and Structure with Autoregressive Diffusion", 2025, arXiv 2503.06687.

Equations: a slot of the stream is a word or a vector of C numbers. The trunk reads embeddings, those of vectors being
W2 GELU(W1 x); the hidden state h of slot i - 1 predicts slot i. The loss of words is cross-entropy with label smoothing s,

    (1 - s) (-ln p(word)) + s mean over V of -ln p,

over all slots that are words, padding included, as released, unless ``ignored`` names its id. That of vectors is the loss of
``objectives.diffusion`` given h, each with four times and noises. Total: words + 100 vectors.

Sampling: word by word and vector by vector; a vector takes a run of the head, ``ancestral`` with 100 to 200 steps or ``dpm_solver`` with
20, and is read again through W1, W2. The published solver tells the head a noisier level than the vector has (``solver.as_released``).
Its greedy generation forces every word to the end token, so that only numbers are generated; here a function says which kind is next.

What changes: the last layer, the objective and the token sampler of a causal network, as in MMAR for masked order.

What it costs: one run of the head, 20 to 200 small forwards, for each vector.

Shapes: B rows · L slots · D width · V words · C numbers of a vector · n vectors of the batch, in the order of rows and slots.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unmask.methods.card import Card
from unmask.models.diffusion_head import DiffusionHead
from unmask.objectives.diffusion import DiffusionLoss
from unmask.rng import generator
from unmask.step import Loss

Draw = Callable[[Tensor, torch.Generator], Tensor]  # (hidden [1, D], random numbers) -> a vector [1, C]
Word = Callable[[Tensor, torch.Generator], int]  # (logits [V], random numbers) -> an id


@dataclass(frozen=True, kw_only=True)
class Stream:
    """Rows of words and vectors. ``ids [B, L]``: at a vector the id that announces one · ``is_vector [B, L]`` bool · ``vectors [n, C]``."""

    ids: Tensor
    is_vector: Tensor
    vectors: Tensor

    def __post_init__(self) -> None:
        if int(self.is_vector.sum()) != len(self.vectors):
            raise ValueError(
                f"{int(self.is_vector.sum())} slots are vectors, and {len(self.vectors)} vectors are given"
            )


class NumberEncoder(nn.Module):
    """Vectors [n, C] -> embeddings [n, D]."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(channels, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class WordsAndNumbers(nn.Module):
    """``trunk``: embeddings [B, L, D] -> hidden states [B, L, D], causal."""

    def __init__(self, trunk: Callable[[Tensor], Tensor], vocabulary: int, width: int, head: DiffusionHead) -> None:
        super().__init__()
        self.trunk, self.head = trunk, head
        self.embed_tokens = nn.Embedding(vocabulary, width)
        self.encoder = NumberEncoder(head.channels, width)
        self.lm_head = nn.Linear(width, vocabulary, bias=False)

    def forward(self, stream: Stream) -> Tensor:
        """Hidden states [B, L, D]; that of a slot predicts the next one."""
        e = self.embed_tokens(stream.ids)
        if len(stream.vectors):
            e = e.masked_scatter(stream.is_vector[..., None], self.encoder(stream.vectors).to(e))
        return self.trunk(e)


@dataclass(frozen=True, kw_only=True)
class MixedLoss:
    """``weight``: of the vectors · ``smoothing``: of the labels · ``ignored``: an id that is not learned, -100 for none."""

    vectors: DiffusionLoss
    weight: float = 100.0
    smoothing: float = 0.05
    ignored: int = -100

    def __call__(self, model: WordsAndNumbers, stream: Stream, rng: torch.Generator) -> Loss:
        count = len(stream.vectors) * self.vectors.repeats
        t = torch.randint(len(self.vectors.levels), (count,), generator=rng).to(stream.ids.device)
        eps = torch.randn(count, model.head.channels, generator=rng).to(stream.vectors)
        return self.of(model, stream, t, eps)

    def of(self, model: WordsAndNumbers, stream: Stream, t: Tensor, eps: Tensor) -> Loss:
        """With the times [n r] and noises [n r, C] of all vectors, then of all again, r ``repeats``."""
        h = model(stream)[:, :-1]
        vector = stream.is_vector[:, 1:]
        labels = stream.ids[:, 1:][~vector]
        words = F.cross_entropy(
            model.lm_head(h[~vector]), labels, label_smoothing=self.smoothing, ignore_index=self.ignored
        )
        terms, counts = {"words": words}, {"words": int((labels != self.ignored).sum())}
        if len(stream.vectors):
            x, z = (part.repeat(self.vectors.repeats, 1) for part in (stream.vectors, h[vector]))
            terms["numbers"] = self.vectors.of(model.head, x, z, t, eps).total.mean()
            counts["numbers"] = len(stream.vectors)
        total = sum((self.weight if name == "numbers" else 1.0) * term for name, term in terms.items())
        return Loss(total=torch.as_tensor(total), terms=terms, counts=counts)


@torch.no_grad()
def generate(
    model: WordsAndNumbers,
    prompt: list[int],
    *,
    word: Word,
    draw: Draw,
    vector_id: int,
    end_id: int,
    vector_next: Callable[[list[int]], bool],
    most: int,
    seed: int,
) -> Stream:
    """A stream after the words of ``prompt``, until ``end_id`` or ``most`` slots. ``vector_next(ids so far)``: the grammar."""
    rng, ids = generator("unigenx", seed), list(prompt)
    vectors = torch.zeros(0, model.head.channels)
    while len(ids) < most and ids[-1] != end_id:
        now = torch.tensor([ids])
        h = model(Stream(ids=now, is_vector=now == vector_id, vectors=vectors))[:, -1]
        if vector_next(ids):
            vectors, chosen = torch.cat([vectors, draw(h, rng)]), vector_id
        else:
            chosen = word(model.lm_head(h)[0].index_fill(0, torch.tensor([vector_id]), -torch.inf), rng)
        ids.append(chosen)
    now = torch.tensor([ids])
    return Stream(ids=now, is_vector=now == vector_id, vectors=vectors)


CARD = Card(
    title="UniGenX: Unified Generation of Sequence and Structure with Autoregressive Diffusion",
    paper="arXiv 2503.06687",
    year=2025,
    changes="last layer, objective and token sampler: numbers of a causal stream come from a diffusion head, words from a softmax",
    claim="One stream generates symbols and precise coordinates: crystals, molecules and their properties.",
    status="reference",
    figure="structures within .1 Angstrom, 3 networks of equal compute: molecules .167 [-.023, .356] by the head, .117 in 64 bins, "
    ".350 in 256; crystals .117 [-.142, .375], 0 and .600; valid compositions .88, .96 and .93: fine bins are better here",
    paper_figure="match rate 67.01 % (MP-20)",
    recipe="unigenx.matter",
    python="from unmask.methods.unigenx import MixedLoss, Stream, WordsAndNumbers, generate",
)
