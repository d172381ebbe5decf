"""Demonstration of ``methods.ctrldiff``: texts in blocks of fixed, ruled and learned lengths, and texts steered by a classifier.

    unmask methods run ctrldiff

A text alternates pairs, whose two words depend on each other and are otherwise free, with runs of eight fixed words. Words of a pair that
are sampled in the same step fit together in one of eight cases. Every arm takes two steps a block; calls are counted. The policy is
trained by REINFORCE for the reward: share of right pairs - calls / 40. Guidance: a classifier of words looks for texts in which most
pairs are low; its first-order and exact forms are measured by how many texts are, and by how many pairs fit.
"""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from unmask.corruption.absorbing import Absorbing
from unmask.corruption.schedules import OftenAll, Uniform
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
from unmask.models.elastic import Elastic, init
from unmask.models.sizes import text_config
from unmask.objectives.masked import Masked
from unmask.recipe import Optim, Recipe, Training
from unmask.rng import generator, seeded
from unmask.sampling.blocks import Blocks
from unmask.sampling.sampler import Sampler
from unmask.sampling.schedule import Equal
from unmask.sampling.selection import Confident, RandomOrder
from unmask.sampling.token_sampler import Categorical
from unmask.sequence import Batch, Kind, Sequence, Span, collate

PAIRS, KINDS, RUN = 3, 8, 8  # pairs of a text, values of a word of a pair, fixed words behind a pair
SECOND, FIXED, PROMPT = KINDS, 2 * KINDS, 2 * KINDS + RUN  # first ids; those of the first word begin at 0
MASK_ID, LENGTH = PROMPT + 1, PAIRS * (2 + RUN)
GAMMAS = (0.0, 1.0, 2.0, 4.0)
_TEST, _STEPS, _UPDATES, _BATCH = 128, 500, 60, 32
_CALL = 1 / 40  # reward that a call costs
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


# -- texts ------------------------------------------------------------------------------------------------------------


def texts(count: int, *seed: object) -> Batch:
    """Texts with all words behind the prompt masked; ``ids`` hold a right text."""
    rng = generator("ctrldiff", *seed)
    ids = torch.full((count, 1 + LENGTH), PROMPT)
    words = ids[:, 1:].view(count, PAIRS, 2 + RUN)
    words[:, :, 0] = torch.randint(KINDS, (count, PAIRS), generator=rng)
    words[:, :, 1] = _partner(words[:, :, 0])
    words[:, :, 2:] = FIXED + torch.arange(RUN)
    spans = (
        Span(name="prompt", kind=Kind.TEXT, start=0, stop=1),
        Span(name="answer", kind=Kind.TEXT, start=1, stop=1 + LENGTH, writable=True),
    )
    masked = torch.arange(1 + LENGTH) > 0
    seeds = torch.randint(2**62, (count,), generator=rng).tolist()
    return collate([Sequence(ids=row, masked=masked, spans=spans) for row in ids], seeds)


def _partner(first: Tensor) -> Tensor:
    return SECOND + (3 * first + 5) % KINDS


def right(batch: Batch) -> Tensor:
    """The share of the pairs of each text that fit and have the fixed words behind them, [B]."""
    words = batch.ids[:, 1:].view(batch.rows, PAIRS, 2 + RUN)
    fit = (words[..., 0] < KINDS) & (words[..., 1] == _partner(words[..., 0]))
    return (fit & (words[..., 2:] == FIXED + torch.arange(RUN)).all(-1)).float().mean(1)


def low(batch: Batch) -> Tensor:
    """Whether most pairs of each text begin with a word of the lower half, [B] bool; half of all texts."""
    return (batch.ids[:, 1 :: 2 + RUN] < KINDS // 2).float().mean(1) > 0.5


@dataclass(frozen=True, kw_only=True)
class Texts:
    """Training batches."""

    seed: int

    def __call__(self, step: int) -> Batch:
        return texts(64, self.seed, step)


def _recipe(seed: int, steps: int) -> Recipe[Elastic, Batch]:
    def network() -> Elastic:
        size = {"width": 64, "heads": 4, "layers": 3, "mlp": 192}
        net = Elastic(text_config(vocab_size=MASK_ID + 1, rope_theta=1000.0, shifted=False, **size), mask_id=MASK_ID)
        init(net, generator("ctrldiff network", seed))
        return net

    return Recipe(
        name="ctrldiff texts",
        model=network,
        source=Texts(seed=seed),
        objective=Masked(corruption=Absorbing(policies={Kind.TEXT: OftenAll(policy=Uniform(), all=0.2)})),
        optim=Optim(lr=3e-3, warmup=20, decay_from=0.5, floor=0.05, ema=0.99),
        training=Training(steps=steps, seed=seed, device="cpu", bf16=False, save_every=500, log_every=100),
    )


def _trained(work: Work, seed: int) -> Elastic:
    made = work.train(f"texts/{seed}", _recipe(seed, work.steps(_STEPS, 2)))
    assert isinstance(made, Elastic)
    return made


# -- lengths ----------------------------------------------------------------------------------------------------------


def _lengths(work: Work, seed: int) -> Json:
    net = _trained(work, seed)
    arms: dict[str, Sampler] = {f"blocks of {n}": replace(BASE, blocks=Blocks(length=n)) for n in LENGTHS}
    rules: dict[str, LengthRule] = {"policy": _learned(net, work, seed)}
    for bound in (0.1, 0.3):
        rules[f"certainty, long above {-bound:g}"] = Certainty(bound=bound)
        rules[f"certainty, long below {-bound:g}"] = Certainty(bound=bound, above=0, below=LENGTHS.index(8))
    arms |= {name: replace(BASE, blocks=ChosenBlocks(rule=rule)) for name, rule in rules.items()}
    test = texts(work.steps(_TEST, 8), "test", seed)
    done = {name: sampler.sample(net, test) for name, sampler in arms.items()}
    return {n: {"right": float(right(d).mean()), "calls": float(d.clock.float().mean())} for n, d in done.items()}


def _learned(net: Elastic, work: Work, seed: int) -> Policy:
    """The policy after updates by REINFORCE with the mean reward of a batch as its baseline."""
    theta = torch.zeros(4, len(LENGTHS))
    for update in range(work.steps(_UPDATES, 2)):
        recorded = Recorded(policy=Policy(theta=theta, explores=True))
        start = texts(_BATCH, "policy", seed, update)
        done = replace(BASE, blocks=ChosenBlocks(rule=recorded)).sample(net, start)
        reward = right(done) - _CALL * done.clock.float()
        advantage = (reward - reward.mean()) / reward.std().clamp(min=0.05)
        slope = sum(
            (reinforce(state, theta, drawn, advantage) for state, drawn in recorded.made), torch.zeros_like(theta)
        )
        theta = theta + 0.3 * slope / (_BATCH * len(recorded.made) ** 0.5)
    return Policy(theta=theta)


# -- guidance ---------------------------------------------------------------------------------------------------------


def _guidance(work: Work, seed: int) -> Json:
    net, judge = _steered(work, seed)
    test, found = texts(work.steps(_TEST, 8), "test", seed), dict[str, Json]()
    for name, ratios in FORMS.items():
        for gamma in GAMMAS:
            done = _guided(judge, gamma, ratios).sample(net, test)
            found[f"{name}/{gamma:g}"] = {"low": float(low(done).float().mean()), "right": float(right(done).mean())}
    return found


def _cost(work: Work, seed: int) -> Json:
    """CPU ms a text without guidance and with each form: the lowest of five runs in turns."""
    net, judge = _steered(work, seed)
    batch = texts(work.steps(32, 2), "cost", seed)
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
    guide = Classified(classifier=judge, gamma=gamma, mask_id=MASK_ID, size=MASK_ID + 1, ratios=ratios)
    tokens, schedule = Categorical(temperature=0.5), Equal(steps=LENGTH)
    return Sampler(schedule=schedule, token_sampler=tokens, selection=RandomOrder(), guidance=guide)


@functools.lru_cache(maxsize=1)
def _steered(work: Work, seed: int) -> tuple[Elastic, WordClassifier]:
    return _trained(work, seed), _classifier(work, seed)


def _classifier(work: Work, seed: int) -> WordClassifier:
    """Of texts in which most pairs are low, from texts with a random share of their words masked."""
    net = seeded(lambda: WordClassifier(MASK_ID + 1), seed)
    optimiser, rng = torch.optim.Adam(net.parameters(), lr=1e-2), generator("classifier", seed)
    for step in range(work.steps(200, 2)):
        batch = texts(64, "classifier", seed, step)
        hidden = batch.writable & (torch.rand(batch.ids.shape, generator=rng) < torch.rand(64, 1, generator=rng))
        inputs = F.one_hot(batch.ids.masked_fill(hidden, MASK_ID), MASK_ID + 1).float()
        optimiser.zero_grad()
        F.binary_cross_entropy_with_logits(net.logit(inputs), low(batch).float()).backward()
        optimiser.step()
    return net.eval().requires_grad_(False)


# -- figures ----------------------------------------------------------------------------------------------------------


def _findings(found: dict[int, Json]) -> Findings:
    seeds = list(found.values())
    lengths, guidance = ([one[part] for one in seeds] for part in ("lengths", "guidance"))
    figures = _of_lengths(lengths) | _of_guidance(guidance)
    return Findings(
        about=f"Texts of {PAIRS} pairs of words that depend on each other, each with {RUN} fixed words behind it. Every block takes two "
        f"steps. Reward: share of right pairs minus {_CALL:g} for each call, for which the policy was trained. A certainty rule takes a "
        "long block where the mean log-probability of the last four tokens is above, or below, a bound. The best fixed length and the best "
        "rule are chosen by their reward on these tests, which favours them. The classifier looks for low texts, in which most pairs begin "
        "with a word of the lower half.",
        verdict=_verdict(figures),
        seen=(figures["reward_over_best_fixed"]["low"] or 0) > 0,
        figures=figures,
        shown=(
            _length_table(lengths),
            Plot(
                title="Right pairs by calls",
                across="calls",
                up="share right",
                lines={
                    name: sorted(
                        (
                            (_mean(lengths, n, "calls"), _over(lengths, n, "right"))
                            for n in lengths[0]
                            if n.startswith(start)
                        ),
                        key=lambda point: point[0],
                    )
                    for name, start in (
                        ("fixed lengths", "blocks"),
                        ("certainty rules", "certainty"),
                        ("policy", "policy"),
                    )
                },
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
    """The policy against blocks of 2, and against the best arm of each kind by reward."""

    def minus(other: str, value: str) -> Figure:
        return over_seeds([one["policy"][value] - one[other][value] for one in seeds])

    def reward_over(kind: str) -> Figure:
        pairs = zip(_rewards(seeds, "policy"), _rewards(seeds, _best(seeds, kind)), strict=True)
        return over_seeds([a - b for a, b in pairs], unit="reward")

    saved = [1 - one["policy"]["calls"] / one["blocks of 2"]["calls"] for one in seeds]
    return {
        "policy_right_over_blocks_of_2": minus("blocks of 2", "right"),
        "calls_saved_over_blocks_of_2": over_seeds(saved),
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
        for value in ("low", "right")
    }


def _verdict(figures: dict[str, Figure]) -> str:
    names = ("calls_saved_over_blocks_of_2", "policy_right_over_blocks_of_2")
    saved, pairs = (100 * figures[name]["value"] for name in names)
    fixed, rule = (figures[f"reward_over_best_{name}"]["value"] for name in ("fixed", "rule"))
    lower, fit = (100 * figures[f"{name}_gained.first_order"]["value"] for name in ("low", "right"))
    return (
        f"The policy takes {saved:.0f} % fewer calls than blocks of 2 and changes the share of right pairs by {pairs:+.1f} points; its "
        f"reward differs by {fixed:+.3f} from the best fixed length and by {rule:+.3f} from the best certainty rule. First-order guidance "
        f"of strength {GAMMAS[-1]:g} changes the share of low texts by {lower:+.0f} points and the share of right pairs by {fit:+.1f}."
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
            *(_over(seeds, f"{form}/{gamma:g}", value) for value in ("low", "right")),
            over_seeds([one[form if gamma else "none"] for one in costs], unit="ms"),
        )
        for form in FORMS
        for gamma in GAMMAS
    )
    return Table(title="Guidance", head=("form", "strength", "low texts", "right pairs", "CPU ms a text"), rows=rows)


DEMO = Demonstration(minutes=5, run=run)
