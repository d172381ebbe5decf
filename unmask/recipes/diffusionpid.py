"""The demonstration of DiffusionPID: four small worlds whose information is known, learned by masked networks and read off them again.

    unmask methods run diffusionpid
    unmask train diffusionpid.world -o name=xor     the network of one world

A world has two binary words and two binary tokens: both words say the same, each names one token, only their combination tells, or one word
is irrelevant. A network learns the tokens with words that are dropped at random; the decomposition of its information is compared with
enumeration. ``unmask.analysis.explain`` does the same for two words of a prompt and a picture.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import product

import torch
from torch import Tensor

from unmask.analysis.information import decompose, every_pattern, information
from unmask.evaluation.demonstration import Cell, Demonstration, Findings, Table, Work
from unmask.evaluation.metrics import Figure, over_seeds
from unmask.json_types import Json
from unmask.methods.diffusionpid import published_redundancy
from unmask.models.elastic import Elastic, init
from unmask.models.sizes import text_config
from unmask.objectives.likelihood import token_log_probabilities
from unmask.objectives.masked import Masked
from unmask.recipe import Optim, Recipe, Training
from unmask.rng import generator
from unmask.sequence import Batch, Kind, Sequence, Span, collate

Row = tuple[int, int, int, int]  # token 1, token 2, word 1, word 2
WORLDS: Mapping[str, Callable[[int, int, int], Row]] = {
    "same": lambda c, d, e: (c, d, c, c),
    "halves": lambda c, d, e: (c, d, c, d),
    "xor": lambda c, d, e: (c ^ d, e, c, d),
    "irrelevant": lambda c, d, e: (c, e, c, d),
}
NAMES = ("redundant", "only word 1", "only word 2", "synergy", "both words")
_DROPPED, _MASK = 2, 3
_SETS: tuple[tuple[int, ...], ...] = ((), (0,), (1,), (0, 1))
_STEPS, _NEAR = 2000, 0.2 * math.log(2)
SIZE = text_config(vocab_size=8, width=32, heads=2, layers=2, mlp=64, rope_theta=100.0)
_SPANS = (
    Span(name="prompt", kind=Kind.TEXT, start=0, stop=2),
    Span(name="answer", kind=Kind.TEXT, start=2, stop=4, writable=True),
)


def rows_of(world: str) -> list[Row]:
    """Every state of a world, all equally probable."""
    return [WORLDS[world](*bits) for bits in product((0, 1), repeat=3)]


def sequence(row: Row, words: tuple[int, ...], masked: Tensor) -> Sequence:
    """Words, those that are not in ``words`` dropped, then the tokens."""
    given = [row[2 + w] if w in words else _DROPPED for w in (0, 1)]
    return Sequence(
        ids=torch.tensor([*given, *row[:2]]), masked=torch.cat((torch.zeros(2, dtype=torch.bool), masked)), spans=_SPANS
    )


@dataclass(frozen=True, kw_only=True)
class States:
    """Batches of a world's states; each word is dropped in half of the rows."""

    world: str
    seed: int
    batch: int = 64

    def __call__(self, step: int) -> Batch:
        rng, rows = generator("diffusionpid", self.seed, step), torch.tensor(rows_of(self.world))
        drawn = rows[torch.randint(len(rows), (self.batch,), generator=rng)]
        kept = torch.rand(self.batch, 2, generator=rng) < 0.5
        words = torch.where(kept, drawn[:, 2:], _DROPPED)
        ids = torch.cat((words, drawn[:, :2]), 1)
        return _template(self.batch).replace(ids=ids, clean=ids)


@lru_cache(maxsize=1)
def _template(batch: int) -> Batch:
    """Rows with both tokens masked."""
    return collate([sequence((0, 0, 0, 0), (0, 1), torch.ones(2, dtype=torch.bool))] * batch, range(batch))


def world(name: str = "xor", seed: int = 0, steps: int = _STEPS) -> Recipe:
    """A masked network of one of the four worlds, in seconds. ValueError for another name."""
    if name not in WORLDS:
        raise ValueError(f"there is no world {name!r}; choose from {', '.join(WORLDS)}")

    def network() -> Elastic:
        made = Elastic(SIZE, mask_id=_MASK)
        init(made, generator("diffusionpid network", seed))
        return made

    return Recipe(
        name=f"diffusionpid.{name}",
        model=network,
        source=States(world=name, seed=seed),
        objective=Masked(),
        optim=Optim(lr=2e-3, warmup=20, decay_from=0.3, floor=0.05, ema=0.98),
        training=Training(steps=steps, seed=seed, save_every=500, bf16=False, device="cpu"),
    )


def exact(world: str, row: Row, words: tuple[int, ...], masked: Tensor) -> Tensor:
    """ln p of each token [R, 2] by counting states, under masks [R, 2]."""
    found = torch.zeros(masked.shape, dtype=torch.float64)
    for r, pattern in enumerate(masked.tolist()):
        given = [one for one in rows_of(world) if all(one[2 + w] == row[2 + w] for w in words)]
        given = [one for one in given if all(m or one[t] == row[t] for t, m in enumerate(pattern))]
        for t in (0, 1):
            found[r, t] = math.log(sum(one[t] == row[t] for one in given) / len(given))
    return found


def learned(net: Elastic, row: Row, words: tuple[int, ...], masked: Tensor) -> Tensor:
    """The same by the network."""
    batch = collate([sequence(row, words, one) for one in masked], [0] * len(masked))
    return token_log_probabilities(net, batch)[:, 2:].double()


LogP = Callable[
    [Row, tuple[int, ...], Tensor], Tensor
]  # (state, words that are given, masks [R, 2]) -> ln p of each token [R, 2]


def parts_of(world: str, log_p: LogP, *, published: bool = False) -> Tensor:
    """[5, 2]: the parts ``NAMES`` for each token, averaged over the states of a world, in nats."""
    patterns, tables = every_pattern(2), []
    for row in rows_of(world):
        null, *given = (log_p(row, words, patterns.masked) for words in _SETS)
        i1, i2, i12 = (information(one, null, patterns) for one in given)
        prior = torch.full_like(i1, math.log(2))
        redundant = published_redundancy(i1, i2, prior, prior) if published else None
        found = decompose(i1, i2, i12, redundant=redundant)
        tables.append(torch.stack((found.redundant, *found.unique, found.synergy, found.total)))
    return torch.stack(tables).mean(0)


def _summed(world: str, log_p: LogP, *, published: bool = False) -> Json:
    """The parts by name, summed over tokens."""
    return dict(zip(NAMES, parts_of(world, log_p, published=published).sum(1).tolist(), strict=True))


def demo(work: Work) -> Findings:
    """Every world for every seed: parts from the network beside the enumerated ones, and beside those of the published definition."""
    rows: list[tuple[Cell, ...]] = []
    figures: dict[str, Figure] = {}
    worst = []
    for n, world in enumerate(WORLDS):
        found = [work.once(f"{world}/{seed}", partial(_learned, work, world, seed)) for seed in work.seeds]
        true = _summed(world, partial(exact, world))
        other = _summed(world, partial(exact, world), published=True)
        for name in NAMES:
            figure = over_seeds([one[name] for one in found], unit="nats")
            rows.append((world, name, true[name], figure, other[name]))
        errors = [max(abs(one[name] - true[name]) for name in NAMES) for one in found]
        worst += errors
        figures[f"{world}.largest_error"] = over_seeds(errors, unit="nats")
        work.on_progress("worlds", n + 1, len(WORLDS))
    return Findings(
        about="How much two words tell about a token, and which of it both tell (redundant), one alone, or only both together "
        "(synergy). Two binary words and two binary tokens; ln 2 = 0.693 nats is all that can be told. Worlds: in same "
        "both words are the first token; in halves each is one token; in xor the first token is their exclusive or; in "
        "irrelevant the second word says nothing about the first token. Exact: by enumeration. Learned: from "
        f"{len(work.seeds)} networks. Published: enumeration with the redundancy of the paper.",
        verdict=f"Parts read off trained networks are within {max(worst):.3f} nats of enumeration in all four worlds; with the published "
        "redundancy two worlds get other parts than are meant.",
        seen=max(worst) < _NEAR,
        figures=figures,
        shown=(Table(title="Parts", head=("world", "part", "exact", "learned", "published"), rows=tuple(rows)),),
    )


def _learned(work: Work, name: str, seed: int) -> Json:
    net = work.train(f"{name}/{seed}", world(name, seed, work.steps(_STEPS, least=2)))
    assert isinstance(net, Elastic)
    return _summed(name, partial(learned, net))


DEMO = Demonstration(minutes=4, run=demo)
