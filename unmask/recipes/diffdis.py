"""DiffDis: a small model that draws pictures of captions and finds the caption of a picture (``methods.diffdis``).

unmask train diffdis.pairs --out runs/pairs                    captions and pictures of the small world
unmask train diffdis.pairs --data pets --out runs/pets         your own: a folder of pictures with texts (docs/data.md)
unmask generate "a red apple on a white background" --model runs/pairs
python -c "from unmask.recipes.diffdis import rank; print(rank('runs/pairs', 'a.png', ['a red cat', 'a blue cat']))"
unmask methods run diffdis
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from unmask.checkpoints.store import load_module
from unmask.data.world.pairs import Pairs
from unmask.evaluation.demonstration import Demonstration, Findings, Media, Table, Work, place
from unmask.evaluation.metrics import Figure, average, over_seeds
from unmask.evaluation.pairs import agrees
from unmask.json_types import Json
from unmask.methods.diffdis import DrawAndMatch, QueryHead, TextQuery, by_bounds, by_query
from unmask.models.elastic import Elastic, init
from unmask.models.sizes import ElasticConfig
from unmask.objectives.likelihood import masks
from unmask.objectives.masked import Dropout, Masked
from unmask.pipeline import image_tokens
from unmask.pipeline.image_tokens import Kit, trunk
from unmask.pipeline.model import Model
from unmask.recipe import Optim, Recipe
from unmask.recipes.image_tokens import (
    CodedRows,
    guided,
    mini_kit,
    model_of,
    own,
    training,
    world,
    world_judge,
    world_kit,
)
from unmask.rng import generator, seeded
from unmask.sequence import Batch, Sequence, collate
from unmask.step import Prediction, Reuse
from unmask.tokens.image_tokens import drawn
from unmask.tokens.pictures import read_image
from unmask.tokens.text import MASK

NAME = "diffdis.pairs"
PROMPT = frozenset({"prompt"})
WORLD = Pairs(
    classes=("dog", "cat", "bird", "apple", "banana", "car", "book", "umbrella"),
    colours=("red", "yellow", "green", "blue", "purple", "pink"),
)  # an eighth of the combinations occurs in the tests alone
QUERY = 32
WEIGHTS = {"joint": (1.0, 1.0, 0.3), "draw only": (1.0, 0.0, 0.0), "match only": (0.0, 1.0, 0.3)}


class PairNet(nn.Module):
    """A network that draws, with a head for queries that reads the token after the picture."""

    def __init__(self, config: ElasticConfig, mask_id: int) -> None:
        super().__init__()
        self.net, self.mask_id = Elastic(config, mask_id=mask_id), mask_id
        self.head = QueryHead(config.width, QUERY)

    @property
    def config(self) -> ElasticConfig:
        return self.net.config

    @property
    def embed(self) -> nn.Embedding:
        return self.net.embed

    def forward(self, batch: Batch, *, predict: Tensor | None = None, reuse: Reuse | None = None) -> Prediction:
        return self.net(batch, predict=predict, reuse=reuse)

    def features(self, batch: Batch) -> Tensor:
        """Of the clean picture alone: the text is dropped."""
        assert batch.clean is not None
        at = torch.zeros_like(batch.masked)
        for row, table in enumerate(batch.span_table):
            at[row, next(span.start for span in table if span.name == "end")] = True
        bare = batch.replace(ids=batch.clean, masked=torch.zeros_like(at)).drop(set(PROMPT), self.mask_id)
        (scored,) = [one for one in self.net.hidden_states(bare, predict=at).scored.values() if len(one.at)]
        assert scored.hidden is not None
        return scored.hidden[: batch.rows]


def queries_of(kit: Kit) -> TextQuery:
    """The queries of captions, which are fixed."""
    return TextQuery.random(kit.text.size, QUERY, generator("diffdis queries"), PROMPT)


def pairs(
    data: str = "",
    weights: str = "joint",
    width: int = 64,
    layers: int = 3,
    pictures: int = 4000,
    batch: int = 16,
    steps: int = 800,
    lr: float = 4e-3,
    seed: int = 0,
) -> Recipe:
    """A model that draws and matches.

    ``data``: your own captions and pictures; "": ``pictures`` pictures of the small world · ``weights``: joint, or for comparison
    "draw only" or "match only". ValueError for others.
    """
    if weights not in WEIGHTS:
        raise ValueError(f"there are no weights {weights!r}; choose from {', '.join(WEIGHTS)}")
    kit = mini_kit if data else partial(world_kit, WORLD)

    def network() -> PairNet:
        size = replace(trunk(kit(), width=width, layers=layers), shifted=False)
        made = seeded(lambda: PairNet(size, kit().text[MASK]), seed)
        init(made.net, generator("diffdis", seed))
        return made

    return Recipe(
        name=NAME,
        model=network,
        source=CodedRows(
            data=lambda: own(data, kit()) if data else world(pictures, seed, WORLD),
            row=lambda text, codes: drawn(kit().text, text, codes),
            seed=seed,
            batch=batch,
        ),
        objective=DrawAndMatch(
            draw=Masked(dropouts=(Dropout(spans=PROMPT, rate=0.15),)),
            queries=queries_of(kit()),
            weights=WEIGHTS[weights],
        ),
        optim=Optim(lr=lr, warmup=50, decay_from=0.3, floor=0.05, ema=0.99),
        training=training(steps, seed),
        export=lambda module, folder: image_tokens.write_folder(folder, module, module.config, kit(), NAME),
        open=lambda folder, device: read(folder, device)[0],
    )


def read(folder: Path, device: str = "cpu") -> tuple[Model, PairNet, Kit]:
    """The model of a folder of ``pairs``, which draws, with its parts. CheckpointError for a file that is missing or does not fit."""
    config, kit = image_tokens.described(folder, device)
    net = load_module(PairNet(config, kit.text[MASK]), folder).to(device).eval()
    return drawing(net, kit), net, kit


def drawing(net: PairNet, kit: Kit) -> Model:
    """The model of a network: it draws."""
    return model_of(net, kit, lambda row: row, guided)  # type: ignore[arg-type]


def rank(model: str, picture: str, texts: Items[str]) -> list[tuple[str, float]]:
    """Texts with their scores for a picture, -1..1, the best first."""
    _, net, kit = read(Path(model))
    codes = kit.encode(read_image(Path(picture)))[None]
    scores = matched(net, kit, codes, texts)[0].tolist()
    return sorted(zip(texts, scores, strict=True), key=lambda pair: -pair[1])


# -- scores of texts for pictures, [N, n] ------------------------------------------------------------------------------


def matched(net: PairNet, kit: Kit, codes: Tensor, texts: Items[str]) -> Tensor:
    """By queries. ``codes [N, h, w]``."""
    candidates = queries_of(kit)(collate([drawn(kit.text, text, codes[0]) for text in texts], range(len(texts))))
    batch = collate([drawn(kit.text, "", one) for one in codes], range(len(codes)))
    return by_query(net, batch, candidates, generator("diffdis scores"))


def by_likelihood(net: PairNet, kit: Kit, codes: Tensor, texts: Items[str], samples: int) -> Tensor:
    """By bounds of ln p(picture | text) with the same masks for all texts; texts are padded to one length."""
    rows = [rows_of_one_length(kit, one, texts) for one in codes]
    return torch.stack(
        [by_bounds(net, own_rows, masks(own_rows[0], samples=samples, seed=i)) for i, own_rows in enumerate(rows)]
    )


def rows_of_one_length(kit: Kit, codes: Tensor, texts: Items[str]) -> list[Sequence]:
    """Rows of a picture with each text. ValueError for texts of different lengths."""
    rows = [drawn(kit.text, text, codes) for text in texts]
    if len({len(one.ids) for one in rows}) > 1:
        raise ValueError("texts that are compared by likelihood must have the same number of tokens")
    return rows


# -- the demonstration -------------------------------------------------------------------------------------------------

_STEPS, _PICTURES, _TESTED, _DRAWN, _MASKS = 1400, 3000, 64, 48, 4
CANDIDATES, _POOL = 8, 400  # texts for a picture, and those that they are taken from


def demo(work: Work) -> Findings:
    """Joint, drawing only and matching only at equal updates: accuracy by queries and by likelihood, and drawings."""
    return _findings(work.each(WEIGHTS, partial(_measured, work), "networks"), work)


@dataclass(frozen=True, kw_only=True)
class Quiz:
    """Pictures of one object, [N, h, w], and for each the right text first among others of as many tokens."""

    codes: Tensor
    texts: tuple[tuple[str, ...], ...]


@lru_cache(maxsize=2)
def quiz(count: int) -> Quiz:
    """Unseen pictures of the small world; the other candidates are texts of other pictures."""
    kit, test = world_kit(WORLD), world(count, 77, WORLD, "test")
    pool = list(dict.fromkeys(WORLD(79, i, split).text for split in ("train", "test") for i in range(_POOL)))
    length = {text: len(kit.text.encode(text)) for text in (*pool, *test.texts)}
    chosen, texts = [], []
    for i, text in enumerate(test.texts):
        others = [other for other in pool if other != text and length[other] == length[text]]
        if len(others) >= CANDIDATES - 1:
            start = i % (len(others) - CANDIDATES + 2)
            chosen.append(i)
            texts.append((text, *others[start : start + CANDIDATES - 1]))
    return Quiz(codes=test.codes[chosen], texts=tuple(texts))


@lru_cache(maxsize=3)
def _net(work: Work, name: str, seed: int) -> PairNet:
    steps, pictures = work.steps(_STEPS, least=2), work.steps(_PICTURES, least=16)
    net = work.train(place(name, seed), pairs(weights=name, steps=steps, pictures=pictures, seed=seed))
    assert isinstance(net, PairNet)
    return net


def _measured(work: Work, name: str, seed: int) -> Json:
    net, kit, asked = _net(work, name, seed), world_kit(WORLD), quiz(work.steps(_TESTED, least=12))
    found: Json = {}
    if name != "draw only":
        scores = [matched(net, kit, one[None], texts)[0] for one, texts in zip(asked.codes, asked.texts, strict=True)]
        found["by_query"] = _first(scores)
    if name != "match only":
        scores = [
            by_likelihood(net, kit, one[None], texts, _MASKS)[0]
            for one, texts in zip(asked.codes, asked.texts, strict=True)
        ]
        found["by_likelihood"] = _first(scores)
        texts = list(world(work.steps(_DRAWN, least=4), 78, WORLD, "test").texts)
        seen = world_judge(WORLD)(codes_of(net, kit, texts, seed))
        found["drawn"] = float(average(agrees(seen, texts, placed=WORLD.places))["value"])
    return found


def _first(scores: list[Tensor]) -> float:
    """The share of pictures whose first text has the highest score."""
    return sum(int(one.argmax()) == 0 for one in scores) / len(scores)


def codes_of(net: PairNet, kit: Kit, texts: list[str], seed: int) -> Tensor:
    """Codes of pictures drawn from captions, [N, h, w]."""
    rows = [drawn(kit.text, text, kit.grid) for text in texts]
    run = guided(drawing(net, kit).parts)
    done = run.sample(net, collate(rows, [seed * 1000 + i for i in range(len(rows))]))
    spans = [one.span("image") for one in rows]
    return torch.stack([done.ids[i, span.start : span.stop] for i, span in enumerate(spans)]).view(-1, *kit.grid)


def _findings(found: dict[str, list[Json]], work: Work) -> Findings:
    def over(name: str, what: str) -> Figure:
        return over_seeds([one[what] for one in found[name]])

    def gain(what: str, other: str) -> Figure:
        return over_seeds([a[what] - b[what] for a, b in zip(found["joint"], found[other], strict=True)])

    gains = {
        "joint_minus_match_only.by_query": gain("by_query", "match only"),
        "joint_minus_draw_only.by_likelihood": gain("by_likelihood", "draw only"),
        "joint_minus_draw_only.drawn": gain("drawn", "draw only"),
    }
    rows = tuple(
        (name, *(over(name, what) if what in found[name][0] else "" for what in ("by_query", "by_likelihood", "drawn")))
        for name in WEIGHTS
    )
    return Findings(
        about=f"Pictures of combinations of object and colour that were not trained, each with its caption among {CANDIDATES}; chance is "
        f"{1 / CANDIDATES:.3f}. By likelihood: bounds with {_MASKS} masks that all captions share. All networks train for "
        f"{work.steps(_STEPS, least=2)} steps on the same batches, {len(work.seeds)} seeds; a detector judges the drawings.",
        verdict=f"Joint training matches {over('joint', 'by_query')['value']:.2f} of the captions by queries, matching alone "
        f"{over('match only', 'by_query')['value']:.2f}; drawing alone finds {over('draw only', 'by_likelihood')['value']:.2f} by "
        f"likelihood, for free. Drawings are right in {over('joint', 'drawn')['value']:.2f} and {over('draw only', 'drawn')['value']:.2f}.",
        seen=all(
            one["low"] is not None and one["low"] > 0
            for one in (gains["joint_minus_match_only.by_query"], gains["joint_minus_draw_only.drawn"])
        ),
        figures={**gains, **{f"joint.{what}": over("joint", what) for what in ("by_query", "by_likelihood", "drawn")}},
        shown=(
            Table(
                title="One network for both",
                head=("training", "captions found by query", "by likelihood", "drawings right"),
                rows=rows,
            ),
            Media(title="Drawings of the joint network, first seed", items=_shown(work)),
        ),
    )


def _shown(work: Work) -> tuple[tuple[str, Image.Image], ...]:
    kit, texts = world_kit(WORLD), list(world(4, 78, WORLD, "test").texts)
    codes = codes_of(_net(work, "joint", work.seeds[0]), kit, texts, 0)
    return tuple(zip(texts, kit.decode(codes), strict=True))


DEMO = Demonstration(minutes=10, run=demo)
