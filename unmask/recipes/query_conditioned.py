"""A drawing network that reads states of an understanding one, of its words and of learned query tokens (``methods.query_kontext``).

Public idea: ``QueryConditioned(config)`` is a denoiser of rows from ``request`` and ``reading``. The understanding network reads the words,
the query slots and a given picture; the drawing network the states of the first two, the picture to draw, and the given one's codes at rows
and columns of their own.

Shapes: B rows · L tokens · N tokens scored · W width · h w codes of a picture.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from unmask.methods.query_kontext import Grid, placed
from unmask.models.bridges import QueryTokens
from unmask.models.elastic import Elastic
from unmask.models.sizes import ElasticConfig, text_config
from unmask.sequence import Batch, Branch, Kind, Sequence, Span
from unmask.step import Prediction, Reuse

CONDITIONS = ("both", "text", "queries")
PLACES = ("", "shifted", "same", "aside")
SOURCE, REFERENCE = "source", "reference"  # spans of the given picture's codes: to be changed, or to take content from
_SECTIONS = (2, 3, 3)  # pairs of channels that turn with place in the text, row and column
_HEAD = 2 * sum(_SECTIONS)
_THETA = 4.0  # with the usual 10,000 the channels of rows and columns would turn by less than a hundredth from square to square


@dataclass(frozen=True, kw_only=True)
class QueryConfig:
    """``words``, ``codes``: of the vocabularies · ``layers``: of the drawing network, and of the other ``reading_layers`` · ``conditions``:
    states of words and queries (both), of words (text), or of queries · ``places``: of the given picture's codes: shifted as in the paper,
    the same as those of the picture to draw, aside (a source, too, as a reference), or "" where the drawing network does not read them.
    """

    words: int
    codes: int
    grid: tuple[int, int]
    mask_id: int
    width: int = 64
    layers: int = 3
    reading_layers: int = 2
    queries: int = 16
    conditions: str = "both"
    places: str = "shifted"

    def __post_init__(self) -> None:
        for name, known in (("conditions", CONDITIONS), ("places", PLACES)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is one of {', '.join(map(repr, known))}, got {getattr(self, name)!r}")
        if self.width % _HEAD:
            raise ValueError(f"the width must be a multiple of {_HEAD}, got {self.width}")

    @property
    def reader(self) -> ElasticConfig:
        return replace(self._text(self.words, self.reading_layers), vision=None)

    @property
    def drawer(self) -> ElasticConfig:
        size = self._text(self.words + self.codes, self.layers)
        return replace(size, codes=self.codes, first_code=self.words, rope_sections=_SECTIONS)

    def _text(self, words: int, layers: int) -> ElasticConfig:
        heads, mlp = self.width // _HEAD, 8 * self.width // 3 // 8 * 8
        return text_config(vocab_size=words, width=self.width, heads=heads, layers=layers, mlp=mlp, rope_theta=_THETA)


class QueryConditioned(nn.Module):
    """``und``: the understanding network, which also writes texts (span "answer") · ``look``: its embedding of a given picture's squares ·
    ``tokens``: queries and connector · ``drawing``: the drawing network.
    """

    def __init__(self, config: QueryConfig) -> None:
        super().__init__()
        self.sizes, self.mask_id = config, config.mask_id
        self.und = Elastic(config.reader, mask_id=config.mask_id)
        self.look = nn.Embedding(config.codes, config.width)
        self.tokens = QueryTokens(config.width, config.width, queries=config.queries)
        self.drawing = Elastic(config.drawer, mask_id=config.mask_id)

    @property
    def config(self) -> ElasticConfig:
        return self.drawing.config

    @property
    def embed(self) -> nn.Embedding:
        return self.drawing.embed

    def forward(self, batch: Batch, *, predict: Tensor | None = None, reuse: Reuse | None = None) -> Prediction:
        if bool(marked(batch, "answer").any()):
            return self.und(self._read(batch), predict=predict)
        return self.drawing(self._drawn(batch), predict=predict)

    def _read(self, batch: Batch) -> Batch:
        """What the understanding network gets: words, queries, the look at the given picture, and a text to write."""
        queries, look = marked(batch, "queries"), marked(batch, "look")
        given = marked(batch, SOURCE) | marked(batch, REFERENCE)
        features = torch.zeros(batch.ids.numel(), self.sizes.width, device=batch.device)
        slots = self.tokens.queries.repeat(int(queries.sum()) // self.sizes.queries, 1)
        features = features.index_put((queries.flatten().nonzero()[:, 0],), slots)
        features = features.index_put((look.flatten().nonzero()[:, 0],), self.look(batch.ids[given]))
        read = (marked(batch, "prompt") | queries | look | marked(batch, "answer")) & batch.valid
        return _numbered(batch, features).replace(
            valid=read,
            kind=batch.kind.masked_fill(~read, Kind.TEXT),
            branch=torch.full_like(batch.branch, Branch.UND),
            axes=None,
        )

    def _drawn(self, batch: Batch) -> Batch:
        """What the drawing network gets: conditions, the picture to draw, and codes of the given one."""
        words, queries, look = (marked(batch, name) for name in ("prompt", "queries", "look"))
        scored = self.und.hidden_states(self._read(batch), predict=words | queries).scored[Kind.TEXT]
        assert scored.hidden is not None
        features = torch.zeros(batch.ids.numel(), self.sizes.width, device=batch.device)
        features = features.index_put((scored.at,), self.tokens(scored.hidden))
        told = {"both": words | queries, "text": words, "queries": queries}[self.sizes.conditions]
        given = marked(batch, SOURCE) | marked(batch, REFERENCE)
        left = look | (words | queries) & ~told | (given if not self.sizes.places else torch.zeros_like(look))
        code = marked(batch, "image") | given
        made = _numbered(batch, features).replace(
            valid=batch.valid & ~left,
            kind=batch.kind.masked_fill(words | queries, Kind.FEATURE),
            position=batch.position.masked_fill(code, 0),
        )
        return placed(made, self._places(made))

    def _places(self, batch: Batch) -> dict[str, Tensor]:
        grid = Grid(rows=self.sizes.grid[0], columns=self.sizes.grid[1])
        same, aside = grid.target(), grid.reference(1)
        source = {"shifted": grid.source(), "aside": aside}.get(self.sizes.places, same)
        reference = same if self.sizes.places == "same" else aside
        places = {"image": same, SOURCE: source, REFERENCE: reference}
        return {name: place for name, place in places.items() if bool(marked(batch, name).any())}


def _numbered(batch: Batch, features: Tensor) -> Batch:
    """The batch with a row of features for every token, [B L, W]."""
    return batch.replace(features=features, pixels=None, feature=torch.arange(len(features)).view_as(batch.ids))


def marked(batch: Batch, name: str) -> Tensor:
    """The tokens of the spans of a name, [B, L]."""
    found = torch.zeros_like(batch.masked)
    for row, table in enumerate(batch.span_table):
        for span in table:
            if span.name == name:
                found[row, span.start : span.stop] = True
    return found


def request(
    prompt: list[int],
    queries: int,
    codes: Tensor | tuple[int, int],
    given: Tensor | None = None,
    *,
    name: str = SOURCE,
    text: str = "",
) -> Sequence:
    """A picture to draw: its ``codes [h, w]``, or the grid of masked ones · ``given [h, w]``: codes of a picture that is named ``name``."""
    grid = (codes.shape[0], codes.shape[1]) if isinstance(codes, Tensor) else codes
    own = codes.flatten() if isinstance(codes, Tensor) else torch.zeros(grid[0] * grid[1], dtype=torch.long)
    made = _Row()
    made.add("prompt", Kind.TEXT, torch.tensor(prompt))
    made.add("queries", Kind.FEATURE, torch.zeros(queries, dtype=torch.long))
    if given is not None:
        made.add("look", Kind.FEATURE, torch.zeros(given.numel(), dtype=torch.long))
    made.add("image", Kind.CODE, own, grid=grid, writable=True, masked=not isinstance(codes, Tensor))
    if given is not None:
        made.add(name, Kind.CODE, given.flatten(), grid=grid)
    return made.done(text)


def reading(prompt: list[int], answer: list[int], given: Tensor | None = None) -> Sequence:
    """A text to write about a prompt and a given picture."""
    made = _Row()
    made.add("prompt", Kind.TEXT, torch.tensor(prompt))
    if given is not None:
        made.add("look", Kind.FEATURE, torch.zeros(given.numel(), dtype=torch.long))
    made.add("answer", Kind.TEXT, torch.tensor(answer), writable=True)
    if given is not None:
        made.add(SOURCE, Kind.CODE, given.flatten(), grid=(given.shape[0], given.shape[1]))
    return made.done("")


class _Row:
    def __init__(self) -> None:
        self.ids: list[Tensor] = []
        self.masked: list[Tensor] = []
        self.spans: list[Span] = []

    def add(
        self,
        name: str,
        kind: int,
        ids: Tensor,
        *,
        grid: tuple[int, int] | None = None,
        writable: bool = False,
        masked: bool = False,
    ) -> None:
        start = self.spans[-1].stop if self.spans else 0
        self.spans.append(Span(name=name, kind=kind, start=start, stop=start + len(ids), grid=grid, writable=writable))
        self.ids.append(ids)
        self.masked.append(torch.full((len(ids),), masked))

    def done(self, text: str) -> Sequence:
        return Sequence(ids=torch.cat(self.ids), masked=torch.cat(self.masked), spans=tuple(self.spans), request=text)
