"""Reinforcement of any model by UniGRPO: it answers prompts, rewards score the answers, and it is trained on its own answers.

    unmask train unigrpo --model mini --reward judge --out runs/rl
    unmask train unigrpo --model mini --data questions.jsonl --reward answer,format --out runs/rl

Public idea: ``unigrpo(model, data, reward) -> Recipe``. ``data`` is a JSON Lines file (``posttraining.prompts``); without one, the prompts
are those of the synthetic world, for ``mini``. Rewards by name: ``recipes.rewarding``. The method is in ``methods.mmada``.
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from random import Random

import numpy as np

from unmask.evaluation.world_geneval import CATEGORIES, GENEVAL
from unmask.methods.mmada import UniGRPO
from unmask.models.elastic import Elastic
from unmask.posttraining.prompts import Prompt, PromptBatch, read_prompts
from unmask.posttraining.requests import Options, Requests, batch_of, requests_of
from unmask.posttraining.rewards import Sample, Weighted
from unmask.recipe import Eval, Optim, Recipe, Training
from unmask.recipes.finetune import adapter_of, learning_rate
from unmask.recipes.replay import Before, knows_the_world
from unmask.recipes.rewarding import rewards_of
from unmask.recipes.starting import start_of
from unmask.recipes.ways import Given
from unmask.rng import key
from unmask.sampling.sampler import Sampler
from unmask.tasks.running import decide

_KINDS = ("two", "counting", "position", "color_attr")  # mini draws single objects and colours rightly already
_UNSEEN_ONE_IN = 5
_ATTEMPTS = 10  # scenes for every prompt
_CHECKED = 36  # prompts of an evaluation


def unseen(text: str) -> bool:
    """Whether a prompt is kept from training, so that success can be measured on it."""
    return key("unseen prompt", text) % _UNSEEN_ONE_IN == 0


def world_prompts(kinds: Items[str], split: str, seed: int, *, most: int, kept: bool) -> list[Prompt]:
    """Up to ``most`` different prompts about scenes of a split, kind by kind in turns. ``kept``: those that training does not see."""
    found: dict[str, Prompt] = {}
    for number in range(_ATTEMPTS * most):
        if len(found) == most:
            break
        kind = kinds[number % len(kinds)]
        (made,) = GENEVAL[CATEGORIES.index(kind)].prompts(1, level="grid", split=split, seed=seed * 1_000_003 + number)
        if unseen(made.text) == kept:
            found.setdefault(made.text, Prompt(text=made.text, wanted={"want": made.want}, name=kind))
    return list(found.values())


@dataclass(frozen=True, kw_only=True)
class WorldPrompts:
    """Batches of prompts about training scenes of the world, without those of ``unseen``."""

    requests: Requests
    seed: int
    batch: int
    kinds: tuple[str, ...] = _KINDS

    def __call__(self, step: int) -> PromptBatch:
        seed = key("prompts", self.seed, step) % 2**31
        kinds = Random(f"{self.seed}/{step}").sample(self.kinds, len(self.kinds))
        return batch_of(self.requests, world_prompts(kinds, "train", seed, most=self.batch, kept=False))


@dataclass(frozen=True, kw_only=True)
class FilePrompts:
    """Batches of the prompts of a file: all of them in a random order, then again in another one."""

    requests: Requests
    prompts: tuple[Prompt, ...]
    seed: int
    batch: int

    def __call__(self, step: int) -> PromptBatch:
        first, count = step * self.batch, len(self.prompts)
        chosen = []
        for number in range(first, first + self.batch):
            order = list(range(count))
            Random(f"{self.seed}/{number // count}").shuffle(order)
            chosen.append(self.prompts[order[number % count]])
        return batch_of(self.requests, chosen)


@dataclass(frozen=True, kw_only=True)
class Success:
    """{reward, solved, name of a prompt's kind …, variety}: one group of answers to each prompt. ``solved``: the share of answers with the
    highest reward that there is, 1 · ``variety``: the mean share of sampled tokens in which two answers to a prompt differ.
    """

    requests: Requests
    reward: Weighted
    prompts: tuple[Prompt, ...]
    sampler: Sampler
    group: int = 2
    seed: int = 0
    rows: int = 64

    def __call__(self, module: Elastic, step: int) -> dict[str, float]:
        samples = self.samples(module)
        rewards = np.array(self.reward(samples)).reshape(len(self.prompts), self.group)
        found = {"reward": float(rewards.mean()), "solved": float((rewards >= 1).mean())}
        for name in dict.fromkeys(prompt.name for prompt in self.prompts):
            own = [prompt.name == name for prompt in self.prompts]
            found |= {name: float(rewards[own].mean())} if name in CATEGORIES else {}
        return found | {"variety": variety([samples[i : i + self.group] for i in range(0, len(samples), self.group)])}

    def samples(self, module: Elastic) -> list[Sample]:
        """The answers, ``group`` of each prompt in turn."""
        prompts = [prompt for prompt in self.prompts for _ in range(self.group)]
        seeds = [key("success", self.seed, prompt.text, i % self.group) for i, prompt in enumerate(prompts)]
        found: list[Sample] = []
        for first in range(0, len(prompts), self.rows):
            some = prompts[first : first + self.rows]
            rows = [self.requests.row(prompt) for prompt in some]
            own = seeds[first : first + self.rows]
            done = decide(module, rows, own, self.sampler, device=module.embed.weight.device)
            found += self.requests.read(some, done.rows)
        return found


def variety(groups: Items[Items[Sample]]) -> float:
    """The mean over groups of the mean over pairs of answers of the share of their sampled tokens that differ, 0..1."""
    found = []
    for group in groups:
        ids = [
            np.concatenate(
                [s.sequence.ids[span.start : span.stop].numpy() for span in s.sequence.spans if span.writable]
            )
            for s in group
        ]
        found += [float((a != b).mean()) for a, b in combinations(ids, 2)]
    return float(np.mean(found)) if found else 0.0


def unigrpo(
    model: str = "mini",
    data: str = "",
    reward: str = "judge",
    batch: int = 8,
    group: int = 8,
    updates: int = 4,
    kl: float = 1e-4,
    clip: float = 0.2,
    sample_steps: int = 0,
    length: int = 0,
    temperature: float = 0.0,
    lora: int = 0,
    seed: int = 0,
    folder: str = "",
) -> Recipe:
    """Reinforce ``model`` by UniGRPO (MMaDA, arXiv 2505.15809): it is trained on its own answers, by their rewards.

    ``data``: a JSON Lines file of prompts; none: prompts of mini's world · ``reward``: names, separated by commas, each with =WEIGHT:
    judge, answer, format, regex:PATTERN, clip:FOLDER, FILE.py:FUNCTION · ``batch``: prompts of a step · ``group``: answers to each ·
    ``updates``: of the weights from them · ``kl``: weight of the divergence from the model at the start, 0 for none · ``clip``: of the
    ratio to the policy that answered · ``sample_steps``: of the sampler, 0 for its own · ``length``: tokens of an answer in words, 0 for
    the model's own · ``temperature``: of the sampler, 0 for its own (1 for words where that is greedy) · ``lora``: train adapters of this
    rank.
    """
    start, scored = start_of(model), rewards_of(reward)
    prompts = read_prompts(Path(data)) if data else ()
    options = Options(steps=sample_steps or None, length=length, temperature=temperature or None)
    requests, sampler = requests_of(
        start.text_parts if start.writes_only else start.parts, start.presets, prompts, options
    )
    source = FilePrompts(requests=requests, prompts=prompts, seed=seed, batch=batch) if prompts else None
    if source is None and (start.writes_only or not knows_the_world(start.parts)):
        raise ValueError(f"{start.name} does not know mini's world, so it needs prompts; give a file with --data")
    objective = UniGRPO(
        sampler=sampler,
        reward=scored,
        read=requests.read,
        reference=Before(network=start.network),
        group=group,
        updates=updates,
        kl=kl,
        clip=clip,
        ends=requests.ends,
    )
    checked = prompts[:_CHECKED] or tuple(world_prompts(CATEGORIES, "validation", 1, most=_CHECKED, kept=True))
    measured = Success(requests=requests, reward=scored, prompts=checked, sampler=sampler)
    return Recipe(
        name=f"unigrpo of {start.name}",
        model=start.network,
        adapt=adapter_of(start.spec.checkpoint, Given(lora=lora, seed=seed)),
        source=source or WorldPrompts(requests=requests, seed=seed, batch=batch),
        objective=objective,
        optim=Optim(lr=learning_rate(start, lora) / 2, warmup=8, decay_from=0.7, floor=0.1, ema=0.97),
        training=Training(steps=52, seed=seed, save_every=4, log_every=1),
        trainable=lambda name: bool(lora) or not name.startswith("vision"),
        evals=(Eval(name="checked" if prompts else "unseen", every=13, run=measured),),
        outline=lambda: start.spec.checkpoint.modules()[0],
        export=lambda module, place: start.export(module, place, ()),
    )
