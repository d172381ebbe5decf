"""The demonstration of DINOISER: captions from tags by diffusion of word embeddings, with and without clipped noise and the second clock.

    unmask methods run dinoiser
    unmask train dinoiser.captions -o clipped=false

Two tables. The first needs no training: how often a noised word is still nearest to itself, by width and noise; where it always is, a
network learns nothing from its source. The second compares networks that were trained with noise from 0 and with clipped noise, each
sampled with one clock and with two, at equal updates and equal forwards, for several lengths of training; also with tags of other rows,
which tells whether the source is read.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor, nn

from unmask.corruption.gaussian import noised
from unmask.evaluation.demonstration import Cell, Demonstration, Findings, Plot, Table, Work
from unmask.evaluation.metrics import Figure, over_seeds
from unmask.json_types import Json
from unmask.methods.dinoiser import Clipped, EmbeddingDiffusion, UnitRows, two_clocks, words, written
from unmask.recipe import Optim, Recipe, Training
from unmask.recipes.scene_text import COLOURS, NOUNS
from unmask.rng import generator, seeded
from unmask.sequence import Batch, Kind, Sequence, Span, collate

SIDES = ("left", "right", "above", "below")
WORDS = (*NOUNS, *COLOURS, *SIDES, "the", "is", "of")
WIDTHS, NOISES = (4, 16, 64, 128), (0.3, 0.5, 0.7, 0.8, 0.9, 0.95)
_WIDTH, _STEPS, _TEST, _TABLE = 16, 400, 200, 1024
UPDATES = (100, 200, 400)
_SPANS = (
    Span(name="prompt", kind=Kind.TEXT, start=0, stop=5),
    Span(name="answer", kind=Kind.TEXT, start=5, stop=14, writable=True),
)
SAMPLERS: Mapping[str, bool] = {"one clock (DDIM)": False, "two clocks (CeDi)": True}


def row(rng: Random) -> Sequence:
    """Five tags, then the caption that they determine: "the red cat is left of the blue dog"."""
    (a, b), red, blue, side = rng.sample(NOUNS, 2), rng.choice(COLOURS), rng.choice(COLOURS), rng.choice(SIDES)
    text = (red, a, side, blue, b, "the", red, a, "is", side, "of", "the", blue, b)
    ids = torch.tensor([WORDS.index(word) for word in text])
    return Sequence(ids=ids, masked=torch.arange(len(ids)) >= len(_SPANS[0]), spans=_SPANS)


@dataclass(frozen=True, kw_only=True)
class Tags:
    """Batches of rows."""

    seed: int
    batch: int = 64

    def __call__(self, step: int) -> Batch:
        rng = Random(f"dinoiser/{self.seed}/{step}")
        return collate([row(rng) for _ in range(self.batch)], range(self.batch))


class CaptionNet(nn.Module):
    """A small transformer over embeddings, their noise level and the last prediction."""

    def __init__(
        self, vocabulary: int, width: int, *, inner: int = 64, layers: int = 2, heads: int = 4, most: int = 14
    ) -> None:
        super().__init__()
        self.embedding = UnitRows(vocabulary, width)
        self.project_in = nn.Linear(2 * width + 2, inner)
        self.place = nn.Parameter(torch.randn(most, inner) * 0.02)
        layer = nn.TransformerEncoderLayer(
            inner, heads, 4 * inner, dropout=0.0, batch_first=True, norm_first=True, activation="gelu"
        )
        self.layers = nn.TransformerEncoder(layer, layers, nn.LayerNorm(inner), enable_nested_tensor=False)
        self.project_out = nn.Linear(inner, width)

    def forward(self, batch: Batch, x: Tensor, level: Tensor, before: Tensor) -> Tensor:
        open_ = batch.writable.to(x)[..., None]
        told = torch.cat([x, before * open_, level[:, None, None] * open_, open_], -1)
        return self.project_out(self.layers(self.project_in(told) + self.place[: x.shape[1]]))


def captions(clipped: bool = True, width: int = _WIDTH, seed: int = 0, steps: int = _STEPS) -> Recipe:
    """A network that writes captions of tags, in a minute. ``clipped``: False trains with all noise levels."""

    def network() -> CaptionNet:
        return seeded(lambda: CaptionNet(len(WORDS), width), seed)

    return Recipe(
        name=f"dinoiser.{'clipped' if clipped else 'all'}",
        model=network,
        source=Tags(seed=seed),
        objective=EmbeddingDiffusion(least=Clipped() if clipped else _from_zero),
        optim=Optim(lr=3e-3, warmup=50, decay_from=0.5, floor=0.05, ema=0.99),
        training=Training(steps=steps, seed=seed, save_every=500, bf16=False, device="cpu"),
    )


def _from_zero(table: Tensor) -> float:
    return 0.0


def recovery(width: int, level: float, *, count: int = _TABLE) -> float:
    """How often a noised row of a random table is nearest to itself."""
    rng = generator("dinoiser recovery", width)
    table = UnitRows(count, width)
    table.weight.data = torch.randn(count, width, generator=rng)
    with torch.no_grad():
        x = noised(table.table, torch.randn(count, width, generator=rng), level)
        return float((words(table.table, x) == torch.arange(count)).float().mean())


def exact(model: CaptionNet, batch: Batch, *, two: bool, steps: int = 20) -> float:
    """The share of captions that are right in every word."""
    told, states = two_clocks(steps)
    noise = torch.randn(*batch.ids.shape, model.embedding.weight.shape[1], generator=generator("dinoiser noise"))
    found = written(model, batch, noise, told=told if two else states[:-1], states=states)
    return float((found == batch.ids).all(1).float().mean())


def demo(work: Work) -> Findings:
    found = {
        (clipped, n): [
            work.once(f"{clipped}/{n}/{s}", functools.partial(_measured, work, clipped, n, s)) for s in work.seeds
        ]
        for clipped in (False, True)
        for n in UPDATES
    }

    def figure(clipped: bool, updates: int, name: str) -> Figure:
        return over_seeds([run[name] for run in found[clipped, updates]])

    def mean(clipped: bool, name: str) -> list[float]:
        """Over the lengths of training, for every seed."""
        return [sum(found[clipped, n][s][name] for n in UPDATES) / len(UPDATES) for s in range(len(work.seeds))]

    one, two = SAMPLERS
    both, plain = mean(True, two), mean(False, one)
    gain = over_seeds([a - b for a, b in zip(both, plain, strict=True)])
    rows: list[tuple[Cell, ...]] = [
        (_named(clipped), n, *(figure(clipped, n, name) for name in (*SAMPLERS, "other tags"))) for clipped, n in found
    ]
    return Findings(
        about=f"Captions of nine words from five tags by diffusion of embeddings of width {_WIDTH}. All noise: times from 0, "
        "where the nearest embedding is the word itself and nothing is learned; clipped noise: times from t_min, where "
        "words begin to be confused. Two clocks: the network is told a later time than that of the noise, so it relies "
        "on its tags. Exact: every word is right. 20 forwards in every arm.",
        verdict=_verdict(gain, over_seeds(both), over_seeds(plain)),
        seen=gain["low"] is not None and gain["low"] > 0,
        figures={"gain": gain, "clipped.two": over_seeds(both), "all.one": over_seeds(plain)},
        shown=(
            _recoveries(work.once("recovery", _recovered)),
            Table(
                title="Exact captions",
                head=("trained with", "updates", *SAMPLERS, "two clocks, tags of other captions"),
                rows=tuple(rows),
                note="The last column is about 0 where the network reads its tags.",
            ),
            Plot(
                title="Exact captions by updates",
                across="updates",
                up="exact",
                lines={
                    f"{_named(c)}, {name}": [(n, figure(c, n, name)) for n in UPDATES]
                    for c in (False, True)
                    for name in SAMPLERS
                },
            ),
        ),
    )


def _verdict(gain: Figure, with_both: Figure, plain: Figure) -> str:
    from unmask.evaluation.demonstration_page import said

    return (
        f"Over {', '.join(map(str, UPDATES))} updates, clipped noise and two clocks write {said(with_both)} of the captions exactly, "
        f"all noise and one clock {said(plain)}: a difference of {said(gain)}."
    )


def _named(clipped: bool) -> str:
    return "clipped noise" if clipped else "all noise"


def _recovered() -> Json:
    """For every width, how often words are found again, and t_min."""
    found: Json = {}
    for width in WIDTHS:
        rng = generator("dinoiser table", width)
        table = torch.nn.functional.normalize(torch.randn(_TABLE, width, generator=rng), dim=-1) * width**0.5
        found[str(width)] = [*(recovery(width, level) for level in NOISES), Clipped()(table)]
    return found


def _recoveries(found: Json) -> Table:
    head = ("width", *(f"noise {level:g}" for level in NOISES), "t_min")
    note = (
        f"Share of {_TABLE} noised random embeddings that are nearest to themselves: near 1, the noise hides nothing."
    )
    rows = tuple((width, *row) for width, row in found.items())
    return Table(title="What noise hides", head=head, rows=rows, note=note)


def _measured(work: Work, clipped: bool, updates: int, seed: int) -> Json:
    steps = work.steps(updates, least=1)
    net = work.train(f"{clipped}/{updates}/{seed}", captions(clipped, seed=seed, steps=steps))
    assert isinstance(net, CaptionNet)
    rng, count = Random(f"dinoiser test {seed}"), work.steps(_TEST, least=4)
    test = collate([row(rng) for _ in range(count)], range(count))
    shifted = test.ids.clone()
    shifted[:, : len(_SPANS[0])] = test.ids.roll(1, 0)[:, : len(_SPANS[0])]
    measured: Json = {name: exact(net, test, two=two) for name, two in SAMPLERS.items()}
    return measured | {"other tags": exact(net, test.replace(ids=shifted), two=True)}


DEMO = Demonstration(minutes=5, run=demo)
