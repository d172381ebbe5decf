"""Demonstration of ``methods.ctrldiff``: lists in blocks of fixed, ruled and learned lengths, and captions steered by a classifier.

    unmask methods run ctrldiff

Lengths: every arm takes two steps a block; calls are counted, and a list is right if it names every object with its colour and place. The
policy is trained by REINFORCE on other rows, for the reward right - calls / 40. Guidance: a classifier of words looks for captions that say
"left"; its first-order and exact forms are measured by how many do, and how many of all captions are true.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from unmask.evaluation.demonstration import Demonstration, Findings, Plot, Table, Work
from unmask.evaluation.metrics import Figure, over_seeds
from unmask.json_types import Json
from unmask.methods.ctrldiff import (
    LENGTHS,
    Certainty,
    ChosenBlocks,
    Classified,
    Exact,
    LengthRule,
    Policy,
    Ratios,
    Taylor,
    WordClassifier,
    reinforce,
)
from unmask.models.elastic import Elastic
from unmask.recipes.scene_text import MASK_ID, WORDS, Caption, Listing, batch_of, rows, trained
from unmask.rng import generator
from unmask.sampling.blocks import Blocks
from unmask.sampling.sampler import Sampler
from unmask.sampling.schedule import Equal
from unmask.sampling.selection import Confident, RandomOrder
from unmask.sampling.token_sampler import Categorical
from unmask.sequence import Batch

GAMMAS = (0.0, 1.0, 2.0, 4.0)
_TEST, _UPDATES, _BATCH = 128, 60, 32
_CALL = 1 / 40  # reward that a call costs
LISTS, CAPTIONS = Listing(), Caption()
BASE = Sampler(schedule=Equal(steps=2), token_sampler=Categorical(temperature=0.5), selection=Confident())


@dataclass(frozen=True)
class Recorded:
    """A policy that notes its states and the lengths that it drew, of every row."""

    policy: Policy
    made: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def __call__(self, batch: Batch, state: Tensor) -> Tensor:
        numbers = self.policy(batch, state)
        self.made.append((state, numbers))
        return numbers


def run(work: Work) -> Findings:
    found: dict[int, Json] = {}
    for seed in work.seeds:
        found[seed] = {
            "lengths": work.once(f"{seed}/lengths", functools.partial(_lengths, work, seed)),
            "guidance": work.once(f"{seed}/guidance", functools.partial(_guidance, work, seed)),
        }
        work.on_progress("seeds", len(found), len(work.seeds))
    return _findings(found)


# -- lengths ----------------------------------------------------------------------------------------------------------


def _lengths(work: Work, seed: int) -> Json:
    net = trained(work, "lists", LISTS, autoregressive=False, steps=1500, seed=seed)
    policy = _learned(net, work, seed)
    arms: dict[str, Sampler] = {f"blocks of {n}": replace(BASE, blocks=Blocks(length=n)) for n in LENGTHS}
    rules: dict[str, LengthRule] = {"policy": policy}
    rules |= {f"certainty, {b}": Certainty(bound=b) for b in (0.1, 0.3)}
    arms |= {name: replace(BASE, blocks=ChosenBlocks(rule=rule)) for name, rule in rules.items()}
    test = rows(LISTS, work.steps(_TEST, 8), f"test {seed}")
    return {name: _right(net, sampler, test, seed) for name, sampler in arms.items()}


def _right(net: Elastic, sampler: Sampler, test: list, seed: int) -> Json:  # type: ignore[type-arg]
    done = sampler.sample(net, batch_of(test, seed))
    right = [LISTS.is_true(row.things, row.answer(ids)) for row, ids in zip(test, done.ids, strict=True)]
    return {"right": sum(right) / len(right), "calls": float(done.clock.float().mean())}


def _learned(net: Elastic, work: Work, seed: int) -> Policy:
    """The policy after updates by REINFORCE with the mean reward of a batch as its baseline."""
    theta = torch.zeros(4, len(LENGTHS))
    for update in range(work.steps(_UPDATES, 2)):
        recorded = Recorded(policy=Policy(theta=theta, explores=True))
        some = rows(LISTS, _BATCH, f"policy {seed}/{update}")
        start = batch_of(some, seed * 10_007 + update)
        done = replace(BASE, blocks=ChosenBlocks(rule=recorded)).sample(net, start)
        right = torch.tensor(
            [float(LISTS.is_true(r.things, r.answer(ids))) for r, ids in zip(some, done.ids, strict=True)]
        )
        reward = right - _CALL * done.clock.float()
        advantage = (reward - reward.mean()) / reward.std().clamp(min=0.05)
        slope = sum(
            (reinforce(state, theta, drawn, advantage) for state, drawn in recorded.made), torch.zeros_like(theta)
        )
        theta = theta + 0.3 * slope / (_BATCH * len(recorded.made) ** 0.5)
    return Policy(theta=theta)


# -- guidance ---------------------------------------------------------------------------------------------------------


def _guidance(work: Work, seed: int) -> Json:
    net = trained(work, "captions", CAPTIONS, autoregressive=False, steps=1500, seed=seed)
    judge = _classifier(work, seed)
    test, size = rows(CAPTIONS, work.steps(_TEST, 8), f"test {seed}"), len(WORDS) + 1
    base = Sampler(schedule=Equal(steps=9), token_sampler=Categorical(temperature=0.5), selection=RandomOrder())
    found: Json = {}
    forms: dict[str, Ratios] = {"first order": Taylor(), "exact": Exact(most=8)}
    for name, ratios in forms.items():
        for gamma in GAMMAS:
            guide = Classified(classifier=judge, gamma=gamma, mask_id=MASK_ID, size=size, ratios=ratios)
            done = replace(base, guidance=guide).sample(net, batch_of(test, seed))
            answers = [row.answer(ids) for row, ids in zip(test, done.ids, strict=True)]
            true = [CAPTIONS.is_true(row.things, words) for row, words in zip(test, answers, strict=True)]
            left = [words[4] == "left" for words in answers]
            found[f"{name}/{gamma:g}"] = {"left": sum(left) / len(left), "true": sum(true) / len(true)}
    return found


def _classifier(work: Work, seed: int) -> WordClassifier:
    """Of captions that say "left", from rows with a random share of their answers masked."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = WordClassifier(len(WORDS) + 1)
    optimiser, rng = torch.optim.Adam(net.parameters(), lr=1e-2), generator("classifier", seed)
    for step in range(work.steps(200, 2)):
        batch = batch_of(rows(CAPTIONS, 64, f"classifier {seed}/{step}"))
        label = (batch.ids == WORDS.index("left")).any(1).float()
        hidden = batch.writable & (torch.rand(batch.ids.shape, generator=rng) < torch.rand(64, 1, generator=rng))
        inputs = F.one_hot(batch.ids.masked_fill(hidden, MASK_ID), len(WORDS) + 1).float()
        optimiser.zero_grad()
        F.binary_cross_entropy_with_logits(net.logit(inputs), label).backward()
        optimiser.step()
    return net.eval().requires_grad_(False)


# -- figures ----------------------------------------------------------------------------------------------------------


def _findings(found: dict[int, Json]) -> Findings:
    seeds = list(found.values())

    def of(part: str, name: str, value: str) -> list[float]:
        return [one[part][name][value] for one in seeds]

    arms, steered = list(seeds[0]["lengths"]), list(seeds[0]["guidance"])
    gain = over_seeds(
        [a - b for a, b in zip(of("lengths", "policy", "right"), of("lengths", "blocks of 4", "right"), strict=True)]
    )
    saved = over_seeds(
        [
            1 - a / b
            for a, b in zip(of("lengths", "policy", "calls"), of("lengths", "blocks of 4", "calls"), strict=True)
        ]
    )
    figures: dict[str, Figure] = {"policy_right_over_blocks_of_4": gain, "calls_saved_over_blocks_of_4": saved}
    lengths = tuple((n, over_seeds(of("lengths", n, "calls")), over_seeds(of("lengths", n, "right"))) for n in arms)
    guided = tuple((n, over_seeds(of("guidance", n, "left")), over_seeds(of("guidance", n, "true"))) for n in steered)
    for name, left, true in guided:
        figures |= {
            f"left.{name.replace(' ', '_').replace('/', '.')}": left,
            f"true.{name.replace(' ', '_').replace('/', '.')}": true,
        }
    seen = (saved["low"] or 0) > 0 and gain["value"] > -0.02
    verdict = (
        f"The policy takes {100 * saved['value']:.0f} % fewer calls than blocks of 4 and changes the share of right lists by "
        f"{100 * gain['value']:.0f} points; guidance of strength {GAMMAS[-1]:g} raises the share of captions that say left from "
        f"{100 * guided[0][1]['value']:.0f} to {100 * guided[len(GAMMAS) - 1][1]['value']:.0f} %."
    )
    plot = Plot(
        title="Right lists by calls",
        across="calls",
        up="share right",
        lines={n: [(calls["value"], right)] for n, calls, right in lengths},
    )
    return Findings(
        about="Lists of four objects in any order, and captions of three, by masked networks that were trained on them.",
        verdict=verdict,
        seen=bool(seen),
        figures=figures,
        shown=(
            Table(title="Lengths of blocks", head=("blocks", "calls", "right"), rows=lengths),
            plot,
            Table(title="Guidance", head=("form / strength", "say left", "true"), rows=guided),
        ),
    )


DEMO = Demonstration(minutes=8, run=run)
