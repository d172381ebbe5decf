"""NeoDiff's demonstration: captions of rows of objects as word vectors, with three ways to spread noise over tokens (``methods.neodiff``).

    unmask methods run neodiff
    unmask train neodiff.texts --out runs/neodiff      one network

All arms have the same network, data, updates and steps. The method draws a level for each token; continuous diffusion gives all tokens of
a sentence one level, and masked diffusion all or none. A grid of times is searched for on validation rows and tested on others.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from unmask.evaluation.bayesian import maximise
from unmask.evaluation.demonstration import Demonstration, Findings, Plot, Table, Work
from unmask.evaluation.metrics import Figure, over_seeds
from unmask.json_types import Json
from unmask.methods.neodiff import (
    Alike,
    AllOrNothing,
    ByConfidence,
    LeastSure,
    NeoLoss,
    NextLevels,
    Pairs,
    PoissonTimes,
    Predicted,
    Simultaneous,
    TimeGrid,
    TokenTimes,
    noised,
    sample,
    time_embedding,
)
from unmask.models.vectors import VectorConfig, VectorNet
from unmask.recipe import Optim, Recipe, Training
from unmask.recipes.scene_text import WORDS, Caption, Row, rows
from unmask.rng import generator, seeded

FORM = Caption()
POISSON = PoissonTimes()
KINDS: dict[str, TokenTimes] = {
    "a level for each token": POISSON,
    "one level": Simultaneous(),
    "all or nothing": AllOrNothing(),
}
RULES: dict[str, NextLevels] = {
    "a level for each token": Predicted(),
    "one level": Alike(),
    "all or nothing": LeastSure(),
}
STEPS = (5, 10, 20)
_TRAINED, _BATCH, _TESTED = 2000, 64, 200
_SEARCHED, _FIRST, _GUIDED = 100, 20, 40  # validation rows, evaluations of the search


@dataclass(frozen=True, kw_only=True)
class Captions:
    """Rows of objects with a true caption each."""

    seed: int
    batch: int = _BATCH

    def __call__(self, step: int) -> Pairs:
        return pairs(rows(FORM, self.batch, f"neodiff/{self.seed}/{step}"))


def pairs(some: list[Row]) -> Pairs:
    """Objects and captions as ids."""
    spans = [(row.sequence.span("prompt"), row.sequence.span("answer")) for row in some]
    given = torch.stack([r.sequence.ids[p.start : p.stop] for r, (p, _) in zip(some, spans, strict=True)])
    answer = torch.stack([r.sequence.ids[a.start : a.stop] for r, (_, a) in zip(some, spans, strict=True)])
    return Pairs(given, answer, torch.ones_like(answer, dtype=torch.bool))


def texts(times: str = "", steps: int = _TRAINED, width: int = 96, layers: int = 3, seed: int = 0) -> Recipe:
    """A network that writes captions of rows of objects, in about half a minute.

    ``times``: "one level" or "all or nothing" for the baselines. ValueError for another name.
    """
    kind = times or "a level for each token"
    if kind not in KINDS:
        raise ValueError(f"there are no times {times!r}; choose from {', '.join(KINDS)}")

    def network() -> VectorNet:
        config = VectorConfig(vocab_size=len(WORDS), width=width, layers=layers)
        return seeded(lambda: VectorNet(config, time_embedding), seed)

    return Recipe(
        name=f"neodiff.{kind}",
        model=network,
        source=Captions(seed=seed),
        objective=NeoLoss(times=KINDS[kind], labels=POISSON if kind == "a level for each token" else None),
        optim=Optim(lr=2e-3, warmup=min(100, steps), decay_from=0.4, floor=0.05, ema=0.995),
        training=Training(steps=steps, seed=seed, device="cpu", bf16=False, save_every=500),
    )


def written(net: VectorNet, some: list[Row], seed: int, grid: TimeGrid, levels: NextLevels) -> list[list[str]]:
    """Captions of rows."""
    batch = pairs(some)
    shape = (*batch.answer.shape, net.config.channels)
    ids = sample(net, batch.given, partial(_noise, shape, seed), grid=grid, levels=levels)
    return [[WORDS[i] for i in row] for row in ids.tolist()]


def _noise(shape: tuple[int, ...], seed: int, step: int) -> Tensor:
    return torch.randn(shape, generator=generator("neodiff noise", seed, step))


def right(net: VectorNet, some: list[Row], seed: int, grid: TimeGrid, levels: NextLevels) -> float:
    """The share of captions that are true."""
    found = written(net, some, seed, grid, levels)
    return sum(FORM.is_true(row.things, words) for row, words in zip(some, found, strict=True)) / len(some)


# -- the demonstration -------------------------------------------------------------------------------------------------


def demo(work: Work) -> Findings:
    """Every kind of noise at every number of steps; other rules for the next level; a searched grid."""
    measured: dict[str, list[Json]] = {kind: [] for kind in KINDS}
    for n, seed in enumerate(work.seeds):
        for kind in KINDS:
            key = f"{kind.replace(' ', '_')}/{seed}"
            measured[kind].append(work.once(key, partial(_measured, work, kind, seed)))
        work.on_progress("seeds", n + 1, len(work.seeds))
    return _findings(measured, work)


def _measured(work: Work, kind: str, seed: int) -> Json:
    name = "" if kind == "a level for each token" else kind
    net: Any = work.train(f"{kind.replace(' ', '_')}/{seed}", texts(name, work.steps(_TRAINED, least=2), seed=seed))
    test = rows(FORM, work.steps(_TESTED, least=8), "neodiff test")
    found: Json = {f"even/{n}": right(net, test, seed, TimeGrid.even(n), RULES[kind]) for n in STEPS}
    if kind == "a level for each token":
        others: dict[str, NextLevels] = {"all alike": Alike(), "by confidence": ByConfidence(times=POISSON)}
        for rule, levels in others.items():
            found |= {f"{rule}/{n}": right(net, test, seed, TimeGrid.even(n), levels) for n in STEPS}
        found["rank"] = rank_of_times(net, test, seed)
    found |= _searched(work, net, kind, seed, test)
    return found


def _searched(work: Work, net: VectorNet, kind: str, seed: int, test: list[Row]) -> Json:
    """A grid for the smallest number of steps: on validation rows, then on the test rows; and what it cost."""
    few = STEPS[0]
    rows_of = rows(FORM, work.steps(_SEARCHED, least=4), "neodiff validation")
    first, guided = work.steps(_FIRST, least=1), work.steps(_GUIDED, least=1)

    def score(point: tuple[float, ...]) -> float:
        return right(net, rows_of, seed, TimeGrid(times=point), RULES[kind])

    found = maximise(
        score, few - 1, first=first, guided=guided, seed=seed, start=(TimeGrid.even(few).times,), ordered=True
    )
    return {
        "searched": right(net, test, seed, TimeGrid(times=found.best), RULES[kind]),
        "on_validation": found.score,
        "decodes": len(found.tried) * len(rows_of),
        "grid": list(found.best),
    }


@torch.no_grad()
def rank_of_times(net: VectorNet, some: list[Row], seed: int) -> float:
    """The mean rank correlation, inside captions, of a token's predicted time with its loss at t = 0.5."""
    batch, rng = pairs(some), generator("neodiff rank", seed)
    t_B = torch.full((len(some),), 0.5)
    level = POISSON.draw(t_B, batch.answer.shape[1], rng)
    x0 = net.embedded(batch.answer)
    x = noised(x0, 6.5 * torch.randn(x0.shape, generator=rng), level)
    found = net(batch.given, x, level, torch.zeros_like(x))
    loss = torch.nn.functional.cross_entropy(net.logits(found).transpose(1, 2), batch.answer, reduction="none")
    a, b = (v.argsort(1).argsort(1).float() for v in (loss, net.times(found, t_B)))
    return float(torch.stack([torch.corrcoef(torch.stack(pair))[0, 1] for pair in zip(a, b, strict=True)]).mean())


def _findings(measured: dict[str, list[Json]], work: Work) -> Findings:
    def over(kind: str, key: str) -> Figure:
        return over_seeds([one[key] for one in measured[kind]])

    own, alike = "a level for each token", "one level"
    gains = {
        f"tokens_minus_{other.replace(' ', '_')}.{n}": over_seeds(
            [a[f"even/{n}"] - b[f"even/{n}"] for a, b in zip(measured[own], measured[other], strict=True)]
        )
        for other in (alike, "all or nothing")
        for n in STEPS
    }
    table = [(kind, "its own", *(over(kind, f"even/{n}") for n in STEPS), over(kind, "searched")) for kind in KINDS]
    table += [(own, rule, *(over(own, f"{rule}/{n}") for n in STEPS), "") for rule in ("all alike", "by confidence")]
    few, decodes = gains[f"tokens_minus_one_level.{STEPS[0]}"], measured[own][0]["decodes"]
    head = ("noise", "next level", *(f"{n} steps" for n in STEPS), f"{STEPS[0]} steps, searched")
    searched = {k: over_seeds([one["searched"] - one[f"even/{STEPS[0]}"] for one in measured[k]]) for k in KINDS}

    def mean(kind: str, key: str) -> str:
        return f"{over(kind, key)['value']:.2f}"

    return Findings(
        about=f"A caption of nine words relates two of three given objects; right means true of them. {len(work.seeds)} networks of each "
        f"kind, {work.steps(_TESTED, least=8)} rows, the same updates and steps. The search decodes {decodes} captions on other rows.",
        verdict=f"Right captions in {STEPS[0]} and {STEPS[-1]} steps: "
        + "; ".join(f"{kind} {mean(kind, f'even/{STEPS[0]}')} and {mean(kind, f'even/{STEPS[-1]}')}" for kind in KINDS)
        + f". Searched times change {STEPS[0]} steps by {searched[own]['value']:+.2f} with {own} and by "
        f"{searched['all or nothing']['value']:+.2f} with all or nothing.",
        seen=all(
            g["low"] is not None and g["low"] > 0 for g in (few, gains[f"tokens_minus_all_or_nothing.{STEPS[0]}"])
        ),
        figures={
            **gains,
            **{f"searched_minus_even.{STEPS[0]}.{kind.replace(' ', '_')}": gain for kind, gain in searched.items()},
            "rank_of_times": {**over(own, "rank"), "unit": "correlation"},
            "search.decodes": {"value": decodes, "unit": "captions"},
        },
        shown=(
            Table(title="Captions that are right", head=head, rows=tuple(table)),
            Plot(
                title="Captions that are right, even grid",
                across="steps",
                up="share right",
                lines={kind: [(n, over(kind, f"even/{n}")) for n in STEPS] for kind in KINDS},
            ),
        ),
    )


DEMO = Demonstration(minutes=7, run=demo)
