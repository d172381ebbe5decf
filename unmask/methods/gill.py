"""GILL: a frozen language model that draws and retrieves pictures, through a few added tokens and a mapper into a generator's conditions.

Paper: Koh, Fried and Salakhutdinov, "Generating Images with Multimodal Language Models", 2023, arXiv 2305.17216.

Equations: a caption ends with k added tokens [IMG]; h_i are the language model's states there, e_i their embeddings.

    drawing conditions = mapper(h_1 + e_1 .. h_k + e_k)      an encoder-decoder with learned queries (``models.bridges.QueryMapper``)
    retrieval vector r = W h_1                               picture vector v = W' f, with f the features of a picture

    captioning: two vectors of the picture stand in front; cross-entropy of the words
    retrieval: 1/2 cross-entropy up to the first [IMG] + contrastive loss of exp(s) v r^T, both ways
    drawing: 1/2 cross-entropy + mean length of (target conditions - mapped ones)

The three are added. Only the first [IMG] is predicted: once it is chosen, the others follow. A linear head on h_1 decides whether to draw
or to retrieve. Target conditions are what the generator's own text encoder says of the caption, so the generator never runs in training.

What changes: rows for [IMG] in the table of embeddings, a mapper and three linear layers; the language model and the generator stay
frozen. The added rows are parameters of their own here (``AddedRows``), so no optimiser can touch the table; after each update they get
the mean length of its rows.

What it costs: three forwards of the language model an update; nothing of the generator.

As released: of two joined captions the second has no labels in the retrieval and drawing passes (``second_labelled=False``), and a scale
above 1 multiplies the absolute value of the first [IMG]'s logit.

Shapes: B rows · L tokens · D width of the language model · K added tokens · V words · P pictures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unmask.methods.card import Card
from unmask.models.bridges import QueryMapper
from unmask.objectives.contrastive import both_ways
from unmask.step import Loss

_NONE = -100  # a label that is not scored


class Language(Protocol):
    """The frozen language model, causal: input vectors [B, L, D] -> states [B, L, D] -> logits [B, L, V]."""

    def states(self, inputs: Tensor) -> Tensor: ...
    def logits(self, states: Tensor) -> Tensor: ...


class AddedRows(nn.Module):
    """A frozen table [V, D] in which the rows of ``ids`` are trained."""

    def __init__(self, table_VD: Tensor, ids: Sequence[int]) -> None:
        super().__init__()
        self.register_buffer("table", table_VD.detach().clone())
        self.register_buffer("ids", torch.tensor(list(ids)))
        self.rows = nn.Parameter(self.table[self.ids].clone())

    @property
    def whole(self) -> Tensor:
        """The table with its trained rows."""
        return self.table.index_copy(0, self.ids, self.rows)

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.whole)

    @property
    def others_norm(self) -> Tensor:
        """The mean length of the frozen rows."""
        frozen = torch.ones(len(self.table), dtype=torch.bool, device=self.table.device)
        frozen[self.ids] = False
        return self.table[frozen].norm(dim=-1).mean()

    @torch.no_grad()
    def renormalise(self) -> None:
        """Give every trained row the mean length of the frozen ones; called after each update."""
        self.rows.mul_(self.others_norm / self.rows.norm(dim=-1, keepdim=True))


class Bridge(nn.Module):
    """All that is trained. ``features``: width of picture features · ``shared``: width of retrieval · ``visual``: vectors of a picture in
    front of its caption.
    """

    def __init__(
        self, embedding: AddedRows, mapper: QueryMapper, *, features: int, shared: int = 256, visual: int = 2
    ) -> None:
        super().__init__()
        width = embedding.table.shape[1]
        self.embedding, self.mapper, self.visual = embedding, mapper, visual
        self.visual_embeddings, self.visual_fc = nn.Linear(features, visual * width), nn.Linear(features, shared)
        self.ret = nn.Linear(width, shared)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def prefix(self, features_BF: Tensor) -> Tensor:
        """The vectors of pictures, as the language model reads them, [B, visual, D]."""
        return self.visual_embeddings(features_BF).unflatten(-1, (self.visual, -1))

    def mapped(self, states_BKD: Tensor) -> Tensor:
        """Drawing conditions from the states at [IMG]."""
        return self.mapper(states_BKD + self.embedding.rows)

    def rank(self, states_BKD: Tensor, features_PF: Tensor, seen: Sequence[int] = ()) -> Tensor:
        """The score of every picture for each row, [B, P]; those of ``seen`` pictures are 1000 lower."""
        wanted = F.normalize(self.ret(states_BKD[:, 0]), dim=-1)
        scores = self.logit_scale.exp() * wanted @ F.normalize(self.visual_fc(features_PF), dim=-1).T
        scores[:, list(seen)] -= 1000.0
        return scores


class Decision(nn.Module):
    """Whether to draw (0) or to retrieve (1), from the state at the first [IMG]."""

    def __init__(self, width: int, dropout: float = 0.5) -> None:
        super().__init__()
        self.dropout, self.fc = dropout, nn.Linear(width, 2)

    def forward(self, states_BKD: Tensor, rng: torch.Generator | None = None) -> Tensor:
        """Logits, [B, 2]. ``rng``: of the training, which drops states by it; a layer with a generator of its own could not be repeated."""
        first = states_BKD[:, 0]
        if rng is not None:
            kept = torch.rand(first.shape, generator=rng).to(first.device) >= self.dropout
            first = first * kept / (1 - self.dropout)
        return self.fc(first)


@dataclass(frozen=True, kw_only=True)
class Pictured:
    """A batch of captions that end with all [IMG]: ``ids`` [B, L], padded · ``length`` [B]: without padding · ``features`` [B, F]: of their
    pictures · ``target``: conditions of the generator's own text encoder.
    """

    ids: Tensor
    length: Tensor
    features: Tensor
    target: Tensor


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Input vectors, their labels, and where each caption's [IMG] stand: ``row``, ``place`` [B, K]."""

    inputs: Tensor
    labels: Tensor
    row: Tensor
    place: Tensor


def cut(labels: Tensor, stops: Sequence[int]) -> Tensor:
    """Labels [B, L] without those from the first of ``stops`` on."""
    stopped = torch.isin(labels, torch.tensor(list(stops), device=labels.device)).long().cumsum(1) > 0
    return labels.masked_fill(stopped, _NONE)


def joining(content_B: Tensor, length: int, start: int) -> Tensor:
    """How pairs of rows become one: [B / 2, 2 length - 1], places of the first row, and of the second beyond ``length``.

    The content of the first, that of the second without its first word at ``start``, then what is left of both.
    """
    places = []
    for first, second in content_B.view(-1, 2).tolist():
        own, other = list(range(length)), [length + i for i in range(length) if i != start]
        inner = second - 1 if second > start else second
        places.append(own[:first] + other[:inner] + own[first:] + other[inner:])
    return torch.tensor(places, device=content_B.device)


@dataclass(frozen=True, kw_only=True)
class ThreePasses:
    """The objective; the model is a ``Bridge``.

    ``joined``: whether a pass joins pairs of captions, None: half of the time · ``second_labelled``: False leaves the second of two joined
    captions without labels in the retrieval and drawing passes, as released.
    """

    language: Language
    img: tuple[int, ...]
    pad: int
    joined: bool | None = None
    second_labelled: bool = True

    def __call__(self, model: Bridge, batch: Pictured, rng: torch.Generator) -> Loss:
        if len(batch.ids) % 2 and self.joined is not False:
            raise ValueError(f"captions are joined in pairs, got {len(batch.ids)}; use an even number, or joined=False")
        terms = {}
        for one_pass in (self.captioning, self.retrieval, self.drawing):
            join = float(torch.rand((), generator=rng)) < 0.5 if self.joined is None else self.joined
            terms |= one_pass(model, batch, join)
        total = torch.stack(list(terms.values())).sum()
        logged = {name: term.detach() for name, term in terms.items()}
        return Loss(total=total, terms=logged, counts=dict.fromkeys(terms, len(batch.ids)))

    def rows(self, model: Bridge, batch: Pictured, join: bool, *, pictured: bool) -> Rows:
        """What the language model reads. ``pictured``: with the picture in front, and labels up to the first [IMG], else to the second."""
        inputs, labels = model.embedding(batch.ids), cut(batch.ids, self._stops(pictured))
        content, start = batch.length, 0
        if pictured:
            front = model.prefix(batch.features)
            start = front.shape[1]
            inputs = torch.cat([front, inputs], 1)
            labels = torch.cat([labels.new_full(front.shape[:2], _NONE), labels], 1)
            content = content - len(self.img) + start
        rows, length = inputs.shape[:2]
        place = (batch.length - len(self.img))[:, None] + start + torch.arange(len(self.img), device=inputs.device)
        row = torch.arange(rows, device=inputs.device)[:, None].expand_as(place)
        if not join:
            return Rows(inputs=inputs, labels=labels, row=row, place=place)
        order = joining(content, length, start)
        back = torch.empty(len(order), 2 * length, dtype=torch.long, device=order.device)
        back.scatter_(1, order, torch.arange(order.shape[1], device=order.device).expand_as(order))
        place = back[row // 2, place + length * (row % 2)]
        if not pictured and not self.second_labelled:
            labels = cut(batch.ids.view(len(order), -1).gather(1, order), self._stops(pictured))
        else:
            labels = labels.view(len(order), -1).gather(1, order)
        inputs = inputs.view(len(order), 2 * length, -1)[torch.arange(len(order))[:, None], order]
        return Rows(inputs=inputs, labels=labels, row=row // 2, place=place)

    def _stops(self, pictured: bool) -> tuple[int, ...]:
        return (self.pad, *(self.img if pictured else self.img[1:]))

    def _read(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Cross-entropy, and the states at [IMG], [B, K, D]."""
        states = self.language.states(rows.inputs)
        logits = self.language.logits(states)[:, :-1]
        ce = F.cross_entropy(logits.flatten(0, 1), rows.labels[:, 1:].flatten(), ignore_index=_NONE)
        return ce, states[rows.row, rows.place]

    def captioning(self, model: Bridge, batch: Pictured, join: bool) -> dict[str, Tensor]:
        return {"captioning": self._read(self.rows(model, batch, join, pictured=True))[0]}

    def retrieval(self, model: Bridge, batch: Pictured, join: bool) -> dict[str, Tensor]:
        ce, states = self._read(self.rows(model, batch, join, pictured=False))
        pictures, wanted = model.visual_fc(batch.features), model.ret(states[:, 0])
        logits = model.logit_scale.exp() * F.normalize(pictures, dim=-1) @ F.normalize(wanted, dim=-1).T
        return {"retrieval words": 0.5 * ce, "contrastive": both_ways(logits)}

    def drawing(self, model: Bridge, batch: Pictured, join: bool) -> dict[str, Tensor]:
        ce, states = self._read(self.rows(model, batch, join, pictured=False))
        return {"drawing words": 0.5 * ce, "conditions": (batch.target - model.mapped(states)).norm(dim=-1).mean()}


@dataclass(frozen=True, kw_only=True)
class Writer:
    """Greedy text with pictures in it. ``least``: words before the first [IMG] · ``scales``: those above 1 favour the first [IMG]."""

    language: Language
    img: tuple[int, ...]
    least: int = 0
    scales: tuple[float, ...] = ()

    @torch.no_grad()
    def __call__(
        self,
        embedding: Callable[[Tensor], Tensor],
        inputs_1LD: Tensor,
        steps: int,
        on_logits: Callable[[Tensor], None] = lambda logits: None,
    ) -> list[int]:
        """The ids after ``steps`` choices; all [IMG] come with the first. ``on_logits``: gets the changed logits [V] of each."""
        ids: list[int] = []
        for step in range(steps):
            logits = self.language.logits(self.language.states(inputs_1LD))[0, -1].clone()
            logits[list(self.img[1:])] = -torch.inf
            if step < self.least:
                logits[self.img[0]] = -torch.inf
            else:
                for scale in self.scales:
                    if scale > 1:
                        logits[self.img[0]] = logits[self.img[0]].abs() * scale
            on_logits(logits)
            chosen = int(logits.argmax())
            more = list(self.img) if chosen == self.img[0] else [chosen]
            ids += more
            inputs_1LD = torch.cat([inputs_1LD, embedding(torch.tensor([more], device=inputs_1LD.device))], 1)
        return ids


CARD = Card(
    title="Generating Images with Multimodal Language Models",
    paper="arXiv 2305.17216",
    year=2023,
    changes="bridge: added tokens and a mapper from a frozen language model to a frozen generator, with retrieval and a decision",
    claim="A frozen language model draws from long contexts better than the generator does from its own text.",
    status="reference",
    figure="recall@1 among 100 pictures, 3 bridges, 250 updates: .440 [.390, .490] for stories of four sentences, .093 for one; "
    "drawings from four sentences are never right, from the generator's own reading of the whole story .167 [.063, .270]; with "
    "1,500 updates (one seed) recall .71, drawings still never",
    paper_figure="Story retrieval R@1/5/10 20.3/45.0/53.7; similarity of drawn stories 0.641, Stable Diffusion 0.598",
    recipe="gill.bridge",
    python="from unmask.methods.gill import AddedRows, Bridge, Decision, Pictured, ThreePasses, Writer",
)
