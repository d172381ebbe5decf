"""Preference training of any model from pairs of a better and a worse answer (``methods.inpo``).

    unmask train inpo.pairs --model mini --out runs/better                    pairs of its own drawings, by the judge
    unmask train inpo.pairs --model mini --data pairs.jsonl --out runs/better
    unmask methods run inpo

A row of ``pairs.jsonl`` is {"prompt": …, "better": PICTURE, "worse": PICTURE} or {"question": …, "better": TEXT, "worse": TEXT}, with
"image" for a question about a picture. Paths are relative to the file.
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unmask.corruption.absorbing import Absorbing
from unmask.corruption.schedules import Uniform
from unmask.data.published import FormatError
from unmask.evaluation.demonstration import Demonstration, Findings, Plot, Table, Work, place
from unmask.evaluation.metrics import Figure, over_seeds
from unmask.evaluation.world_geneval import CATEGORIES
from unmask.json_types import Json
from unmask.methods.inpo import MaskedPreference, PreferencePairs, Replay, States, UniformMasks
from unmask.models.elastic import Elastic
from unmask.objectives.masked import Masked, MaskedModel
from unmask.posttraining.prompts import Prompt, read_prompts
from unmask.posttraining.requests import Drawing, Options, Requests, requests_of
from unmask.posttraining.rewards import Weighted
from unmask.recipe import Optim, Recipe, Training
from unmask.recipes.finetune import adapter_of, learning_rate
from unmask.recipes.replay import Before, knows_the_world
from unmask.recipes.rewarding import rewards_of
from unmask.recipes.starting import Start, start_of
from unmask.recipes.unigrpo import Success, variety, world_prompts
from unmask.recipes.ways import Given
from unmask.rng import generator, key
from unmask.sampling.sampler import Sampler
from unmask.sequence import Sequence, collate
from unmask.step import Loss
from unmask.tasks.generate import picture_places
from unmask.tasks.running import decide
from unmask.tokens.pictures import read_image
from unmask.tokens.text import EOS, EOT

KINDS = ("two", "counting", "position", "color_attr")
Pair = tuple[Sequence, Sequence]  # better, worse
_ROWS = 64  # of a forward pass while drawing


@dataclass(frozen=True, kw_only=True)
class OwnPairs:
    """The best and the worst of a group of answers to each prompt, by a reward; prompts whose answers are all worth the same give none.

    ``start``: the model that answers · ``group``: answers to a prompt.
    """

    start: Start
    requests: Requests
    sampler: Sampler
    reward: Weighted
    prompts: tuple[Prompt, ...]
    group: int
    seed: int

    def made(self) -> list[Pair]:
        """ValueError where no prompt has a better and a worse answer."""
        net, found = self.start.network().eval(), []
        each = max(1, _ROWS // self.group)
        for first in range(0, len(self.prompts), each):
            some = [prompt for prompt in self.prompts[first : first + each] for _ in range(self.group)]
            seeds = [key("pairs", self.seed, prompt.text, i % self.group) for i, prompt in enumerate(some)]
            rows = [self.requests.row(prompt) for prompt in some]
            done = decide(net, rows, seeds, self.sampler, device=torch.device("cpu")).rows
            worth = self.reward(self.requests.read(some, done))
            for at in range(0, len(some), self.group):
                best, worst = (pick(range(at, at + self.group), key=worth.__getitem__) for pick in (max, min))
                if worth[best] > worth[worst]:
                    found.append((done[best], done[worst]))
        if not found:
            raise ValueError(
                f"all answers to each of {len(self.prompts)} prompts are worth the same; give more prompts"
            )
        return found


@dataclass(frozen=True, kw_only=True)
class FilePairs:
    """The pairs of a file, whose paths are relative to ``folder``."""

    start: Start
    requests: Requests
    prompts: tuple[Prompt, ...]
    folder: Path

    def made(self) -> list[Pair]:
        """FormatError for a row without a better and a worse answer."""
        return [(self._row(prompt, "better"), self._row(prompt, "worse")) for prompt in self.prompts]

    def _row(self, prompt: Prompt, which: str) -> Sequence:
        said = prompt.wanted.get(which)
        if not isinstance(said, str) or not said.strip():
            raise FormatError(f'{prompt.name} has no {which!r} answer; give "better" and "worse" in every row')
        row = self.requests.row(prompt)
        places, ids = self._picture(row, said, prompt) if isinstance(self.requests, Drawing) else self._words(row, said)
        return replace(row, ids=row.ids.scatter(0, places, ids), masked=torch.zeros_like(row.masked))

    def _picture(self, row: Sequence, path: str, prompt: Prompt) -> tuple[Tensor, Tensor]:
        if not (self.folder / path).is_file():
            raise FormatError(f"{prompt.name}: there is no picture {path}; give a path relative to the file")
        parts = self.start.parts
        pixels, _ = parts.preprocess(read_image(self.folder / path))
        return picture_places(row, "image")[0], parts.encode(pixels).flatten()

    def _words(self, row: Sequence, said: str) -> tuple[Tensor, Tensor]:
        """The answer, its end, and filler."""
        text = self.start.text_parts.text if self.start.writes_only else self.start.parts.text
        places = torch.cat([torch.arange(span.start, span.stop) for span in row.spans if span.writable])
        ids = [*text.encode(said)[: len(places) - 1], text[EOT]]
        return places, torch.tensor(ids + [text[EOS]] * (len(places) - len(ids)))


@dataclass(frozen=True, kw_only=True)
class PairBatches:
    """Batches of pairs, drawn with replacement; the pairs are made at the first batch."""

    pairs: OwnPairs | FilePairs
    batch: int
    seed: int

    @cached_property
    def all(self) -> list[Pair]:
        return self.pairs.made()

    def __call__(self, step: int) -> PreferencePairs:
        rng = generator("pair batches", self.seed, step)
        chosen = [self.all[i] for i in torch.randint(len(self.all), (self.batch,), generator=rng).tolist()]
        return PreferencePairs(*(collate([pair[i] for pair in chosen], range(self.batch)) for i in (0, 1)))


@dataclass(frozen=True, kw_only=True)
class Winners:
    """Supervised tuning on the better answers alone: the baseline."""

    masked: Masked = Masked(corruption=Absorbing(otherwise=Uniform()))

    def __call__(self, model: MaskedModel, pairs: PreferencePairs, rng: torch.Generator) -> Loss:
        return self.masked(model, pairs.winners, rng)


def pairs(
    model: str = "mini",
    data: str = "",
    reward: str = "judge",
    replay: int = 16,
    beta: float = 0.1,
    winners: float = 0.0,
    batch: int = 8,
    prompts: int = 60,
    group: int = 8,
    sample_steps: int = 8,
    length: int = 0,
    lora: int = 0,
    steps: int = 60,
    seed: int = 0,
) -> Recipe:
    """Train ``model`` to prefer the better answer of each pair.

    ``data``: a JSON Lines file of pairs; none: the best and worst of ``group`` drawings of each of ``prompts`` prompts of mini's world, by
    ``reward`` · ``replay``: tokens that a pass of the model fills in to find the state of a pair; 0 masks at random (DPO) ·
    ``beta``: of the preference · ``winners``: weight of the better answers' own loss · ``sample_steps``: of the drawings · ``length``:
    tokens of an answer in words, 0 for the model's own · ``lora``: train adapters of this rank.
    """
    start, states = start_of(model), Replay(each=replay) if replay else UniformMasks()
    objective = MaskedPreference(reference=Before(network=start.network), states=states, beta=beta, winners=winners)
    given = read_prompts(Path(data)) if data else ()
    parts = start.text_parts if start.writes_only else start.parts
    requests, sampler = requests_of(
        parts, start.presets, given, Options(steps=None if given else sample_steps, length=length)
    )
    if given:
        made: OwnPairs | FilePairs = FilePairs(start=start, requests=requests, prompts=given, folder=Path(data).parent)
    elif start.writes_only or not knows_the_world(start.parts):
        raise ValueError(f"{start.name} does not know mini's world, so it needs pairs; give a file with --data")
    else:
        asked = tuple(world_prompts(KINDS, "train", seed, most=prompts, kept=False))
        made = OwnPairs(
            start=start,
            requests=requests,
            sampler=sampler,
            reward=rewards_of(reward),
            prompts=asked,
            group=group,
            seed=seed,
        )
    return Recipe(
        name=f"inpo of {start.name}",
        model=start.network,
        adapt=adapter_of(start.spec.checkpoint, Given(lora=lora, seed=seed)),
        source=PairBatches(pairs=made, batch=batch, seed=seed),
        objective=objective,
        optim=Optim(lr=learning_rate(start, lora) / 3, warmup=8, decay_from=0.7, floor=0.1, ema=0.97),
        training=Training(steps=steps, seed=seed, save_every=20, log_every=5, device="cpu", bf16=False),
        trainable=lambda name: bool(lora) or not name.startswith("vision"),
        outline=lambda: start.spec.checkpoint.modules()[0],
        export=lambda module, place: start.export(module, place, ()),
    )


# -- the demonstration -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Arm:
    """``more``: updates relative to the others · ``forwards``: of a row and update, a backward pass counted as two."""

    objective: States | None
    more: int = 1
    forwards: float = 4.0


ARMS = {
    "supervised on winners": Arm(objective=None, forwards=1.5),
    "random masks": Arm(objective=UniformMasks()),
    "random masks, twice the updates": Arm(objective=UniformMasks(), more=2),
    "replayed masks": Arm(objective=Replay(each=8), forwards=8.0),
}
_PROMPTS, _UPDATES, _UNSEEN, _GROUP, _STEPS = 60, 60, 48, 2, 8


def demo(work: Work) -> Findings:
    """Every arm from the same pairs; success and win rate on prompts that no arm has seen."""
    before = work.once("before", partial(_success, start_of("mini").network().eval(), work))
    return _findings(before, work.each(ARMS, partial(_measured, work), "arms"), work)


@lru_cache(maxsize=1)
def _pairs(work: Work, seed: int) -> PairBatches:
    source = pairs(prompts=work.steps(_PROMPTS, least=3), seed=seed).source
    assert isinstance(source, PairBatches)
    return source


def _measured(work: Work, name: str, seed: int) -> Json:
    arm, shared = ARMS[name], _pairs(work, seed)
    recipe: Recipe[Any, Any] = pairs(seed=seed, steps=work.steps(_UPDATES * arm.more, least=1))
    objective = Winners() if arm.objective is None else replace(recipe.objective, states=arm.objective)  # type: ignore[type-var]
    recipe = replace(recipe, source=shared, objective=objective, export=None)
    net = work.train(place(name, seed), recipe)
    assert isinstance(net, Elastic)
    return {**_success(net, work), "pairs": len(shared.all)}


def _success(net: Elastic, work: Work) -> Json:
    """The judge's verdict of every drawing, 0, 0.5 or 1, in order; and the share of codes in which two drawings of a prompt differ."""
    start = start_of("mini")
    requests, sampler = requests_of(start.parts, start.presets, (), Options(steps=_STEPS))
    asked = tuple(world_prompts(CATEGORIES, "validation", 1, most=work.steps(_UNSEEN, least=2), kept=True))
    measure = Success(requests=requests, reward=rewards_of("judge"), prompts=asked, sampler=sampler, group=_GROUP)
    with torch.no_grad():
        samples = measure.samples(net)
    groups: Items[Any] = [samples[i : i + _GROUP] for i in range(0, len(samples), _GROUP)]
    return {"verdicts": measure.reward(samples), "variety": variety(groups)}


def wins(a: Items[float], b: Items[float]) -> float:
    """The share of drawings that are better in ``a`` than in ``b``, equal ones counting half."""
    return sum((x > y) + 0.5 * (x == y) for x, y in zip(a, b, strict=True)) / len(a)


def _findings(before: Json, found: dict[str, list[Json]], work: Work) -> Findings:
    def over(name: str, other: str = "") -> Figure:
        rivals = found[other] if other else [before] * len(found[name])
        return over_seeds([wins(a["verdicts"], b["verdicts"]) for a, b in zip(found[name], rivals, strict=True)])

    def mean(one: Json) -> float:
        return sum(one["verdicts"]) / len(one["verdicts"])

    rewards = {name: over_seeds([mean(one) for one in runs]) for name, runs in found.items()}
    replayed = "replayed masks"
    against = {name: over(replayed, name) for name in ARMS if name != replayed}
    rows = [("before", "", "", mean(before), "", before["variety"])]
    rows += [
        (
            name,
            ARMS[name].more,
            ARMS[name].more * ARMS[name].forwards,
            rewards[name],
            over(name),
            over_seeds([one["variety"] for one in found[name]]),
        )
        for name in ARMS
    ]
    equal, rival = against["random masks"], against["random masks, twice the updates"]
    return Findings(
        about=f"mini draws {work.steps(_PROMPTS, least=3)} prompts eight times each; the judge's best and worst drawing of a prompt are a "
        f"pair. Every arm trains on the same pairs for {work.steps(_UPDATES)} updates. Measured on prompts that no arm has seen, with "
        f"{len(work.seeds)} seeds; the same seed of a drawing in every arm. Forwards count a backward pass as two.",
        verdict=f"Replayed masks win {equal['value']:.2f} of the drawings against random masks at equal updates, {rival['value']:.2f} "
        f"at equal forwards, {against['supervised on winners']['value']:.2f} against supervised tuning; reward {mean(before):.2f} before, "
        f"{rewards[replayed]['value']:.2f} after.",
        seen=all(one["low"] is not None and one["low"] > 0.5 for one in (equal, against["supervised on winners"])),
        figures={
            **{
                f"replayed_wins_against.{name.replace(' ', '_').replace(',', '')}": one for name, one in against.items()
            },
            **{f"reward.{name.replace(' ', '_').replace(',', '')}": one for name, one in rewards.items()},
        },
        shown=(
            Table(
                title="Unseen prompts",
                head=("arm", "updates", "forwards a row", "reward", "wins against before", "variety"),
                rows=tuple(rows),
            ),
            Plot(
                title="Reward by compute",
                across="forwards a row, relative",
                up="reward",
                lines={name: [(ARMS[name].more * ARMS[name].forwards, rewards[name])] for name in ARMS},
            ),
        ),
    )


DEMO = Demonstration(minutes=8, run=demo)
