"""Demonstration of ``methods.ctrldiff``: lists in blocks of fixed, ruled and learned lengths, and captions steered by a classifier.

    unmask methods run ctrldiff

Lengths: every arm takes two steps a block; calls are counted, and a list is right if it names every object with its colour and place. The
policy is trained by REINFORCE on other rows, for the reward right - calls / 40. Guidance: a classifier of words looks for captions that say
"left"; its first-order and exact forms are measured by how many do, and how many of all captions are true.
"""

from __future__ import annotations

import functools
import time
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
FORMS: dict[str, Ratios] = {"first order": Taylor(), "exact": Exact(most=8)}
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
            "cost": work.once(f"{seed}/cost", functools.partial(_cost, work, seed)),
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
    net, judge = _steered(work, seed)
    test = rows(CAPTIONS, work.steps(_TEST, 8), f"test {seed}")
    found: Json = {}
    for name, ratios in FORMS.items():
        for gamma in GAMMAS:
            done = _guided(judge, gamma, ratios).sample(net, batch_of(test, seed))
            answers = [row.answer(ids) for row, ids in zip(test, done.ids, strict=True)]
            true = [CAPTIONS.is_true(row.things, words) for row, words in zip(test, answers, strict=True)]
            left = [words[4] == "left" for words in answers]
            found[f"{name}/{gamma:g}"] = {"left": sum(left) / len(left), "true": sum(true) / len(true)}
    return found


def _cost(work: Work, seed: int) -> Json:
    """CPU ms a caption without guidance and with each form: the lowest of five runs in turns."""
    net, judge = _steered(work, seed)
    batch = batch_of(rows(CAPTIONS, work.steps(32, 2), f"cost {seed}"))
    samplers = {"none": _guided(judge, 0.0, Taylor())} | {n: _guided(judge, GAMMAS[-1], r) for n, r in FORMS.items()}
    took: dict[str, list[float]] = {name: [] for name in samplers}
    for _ in range(work.steps(5)):
        for name, sampler in samplers.items():
            began = time.process_time()
            sampler.sample(net, batch)
            took[name].append(1000 * (time.process_time() - began) / batch.rows)
    return {name: min(times) for name, times in took.items()}


def _guided(judge: WordClassifier, gamma: float, ratios: Ratios) -> Sampler:
    """One word a step in random order."""
    guide = Classified(classifier=judge, gamma=gamma, mask_id=MASK_ID, size=len(WORDS) + 1, ratios=ratios)
    tokens, schedule = Categorical(temperature=0.5), Equal(steps=9)
    return Sampler(schedule=schedule, token_sampler=tokens, selection=RandomOrder(), guidance=guide)


@functools.lru_cache(maxsize=1)
def _steered(work: Work, seed: int) -> tuple[Elastic, WordClassifier]:
    net = trained(work, "captions", CAPTIONS, autoregressive=False, steps=1500, seed=seed)
    return net, _classifier(work, seed)


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
    lengths, guidance = ([one[part] for one in seeds] for part in ("lengths", "guidance"))
    figures = _of_lengths(lengths) | _of_guidance(guidance)
    return Findings(
        about="Lists of four objects in any order, and captions of three, by masked networks that were trained on them. Every block takes "
        f"two steps. Reward: share of right lists minus {_CALL:g} for each call, for which the policy was trained; the best fixed length "
        "and the best certainty rule are chosen by the reward on these tests, which favours them.",
        verdict=_verdict(figures),
        seen=(figures["reward_over_best_fixed"]["low"] or 0) > 0,
        figures=figures,
        shown=(
            _length_table(lengths),
            Plot(
                title="Right lists by calls",
                across="calls",
                up="share right",
                lines={n: [(_mean(lengths, n, "calls"), _over(lengths, n, "right"))] for n in lengths[0]},
            ),
            _guidance_table(guidance, [one["cost"] for one in seeds]),
        ),
    )


def _over(seeds: list[Json], arm: str, value: str, *, unit: str = "share") -> Figure:
    return over_seeds([one[arm][value] for one in seeds], unit=unit)


def _mean(seeds: list[Json], arm: str, value: str) -> float:
    return _over(seeds, arm, value)["value"]


def _rewards(seeds: list[Json], arm: str) -> list[float]:
    return [one[arm]["right"] - _CALL * one[arm]["calls"] for one in seeds]


def _best(seeds: list[Json], start: str) -> str:
    """The arm of the highest mean reward among those whose names begin with ``start``."""
    return max((arm for arm in seeds[0] if arm.startswith(start)), key=lambda arm: sum(_rewards(seeds, arm)))


def _of_lengths(seeds: list[Json]) -> dict[str, Figure]:
    """The policy against blocks of 4, and against the best arm of each kind by reward."""

    def minus(other: str, value: str) -> Figure:
        return over_seeds([one["policy"][value] - one[other][value] for one in seeds])

    def reward_over(kind: str) -> Figure:
        pairs = zip(_rewards(seeds, "policy"), _rewards(seeds, _best(seeds, kind)), strict=True)
        return over_seeds([a - b for a, b in pairs], unit="reward")

    saved = [1 - one["policy"]["calls"] / one["blocks of 4"]["calls"] for one in seeds]
    return {
        "policy_right_over_blocks_of_4": minus("blocks of 4", "right"),
        "calls_saved_over_blocks_of_4": over_seeds(saved),
        "reward_over_best_fixed": reward_over("blocks"),
        "reward_over_best_rule": reward_over("certainty"),
    }


def _of_guidance(seeds: list[Json]) -> dict[str, Figure]:
    """Changes of both shares from none to the strongest guidance, by form."""
    return {
        f"{value}_gained.{form.replace(' ', '_')}": over_seeds(
            [one[f"{form}/{GAMMAS[-1]:g}"][value] - one[f"{form}/0"][value] for one in seeds]
        )
        for form in FORMS
        for value in ("left", "true")
    }


def _verdict(figures: dict[str, Figure]) -> str:
    names = ("calls_saved_over_blocks_of_4", "policy_right_over_blocks_of_4")
    saved, right = (100 * figures[name]["value"] for name in names)
    fixed, rule = (figures[f"reward_over_best_{name}"]["value"] for name in ("fixed", "rule"))
    left, true = (100 * figures[f"{name}_gained.first_order"]["value"] for name in ("left", "true"))
    return (
        f"The policy takes {saved:.0f} % fewer calls than blocks of 4 and changes the share of right lists by {right:+.0f} points; its "
        f"reward differs by {fixed:+.3f} from the best fixed length and by {rule:+.3f} from the best certainty rule. First-order guidance "
        f"of strength {GAMMAS[-1]:g} changes the share of captions that say left by {left:+.0f} points and the share that is true by "
        f"{true:+.0f}."
    )


def _length_table(seeds: list[Json]) -> Table:
    rows = tuple(
        (arm, _over(seeds, arm, "calls", unit="calls"), _over(seeds, arm, "right"), over_seeds(_rewards(seeds, arm)))
        for arm in seeds[0]
    )
    return Table(title="Lengths of blocks", head=("blocks", "calls", "right", "reward"), rows=rows)


def _guidance_table(seeds: list[Json], costs: list[Json]) -> Table:
    rows = tuple(
        (
            form,
            f"{gamma:g}",
            *(_over(seeds, f"{form}/{gamma:g}", value) for value in ("left", "true")),
            over_seeds([one[form if gamma else "none"] for one in costs], unit="ms"),
        )
        for form in FORMS
        for gamma in GAMMAS
    )
    return Table(title="Guidance", head=("form", "strength", "say left", "true", "CPU ms a caption"), rows=rows)


DEMO = Demonstration(minutes=8, run=run)
