"""Reinforcement of any model that draws by UniGRPO: it samples, rewards score the samples, and it is trained on its own answers.

    unmask train unigrpo --model mini --reward judge --out runs/rl

Public idea: ``unigrpo(model, data, reward) -> Recipe``. Without data the prompts are those of the synthetic world, for ``mini``.
The method is in ``methods.mmada``.
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass
from random import Random

import numpy as np
import torch

from unmask.evaluation import scoring
from unmask.evaluation.judge import load_judge
from unmask.evaluation.world_geneval import CATEGORIES, GENEVAL
from unmask.methods.mmada import UniGRPO
from unmask.models.elastic import Elastic
from unmask.posttraining.prompts import Prompt, PromptBatch
from unmask.posttraining.rewards import Pictures, Sample, Weighted, wanted_of
from unmask.recipe import Eval, Optim, Recipe, Training
from unmask.recipes.replay import Before
from unmask.recipes.starting import start_of
from unmask.rng import key
from unmask.sampling.sampler import Sampler
from unmask.sequence import Sequence, collate
from unmask.tasks.generate import Generate, picture_codes
from unmask.tasks.parts import Parts
from unmask.tasks.running import decide
from unmask.tasks.sampler_options import with_options

_KINDS = ("two", "counting", "position", "color_attr")  # mini draws single objects and colours rightly already
_UNSEEN_ONE_IN = 5
_ATTEMPTS = 10  # scenes for every prompt


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
            found.setdefault(made.text, Prompt(text=made.text, wanted={"want": made.want}, key=kind))
    return list(found.values())


@dataclass(frozen=True, kw_only=True)
class WorldPrompts:
    """Batches of prompts about training scenes of the world, without those of ``unseen``."""

    parts: Parts
    seed: int
    batch: int
    kinds: tuple[str, ...] = _KINDS

    def __call__(self, step: int) -> PromptBatch:
        seed = key("prompts", self.seed, step) % 2**31
        kinds = Random(f"{self.seed}/{step}").sample(self.kinds, len(self.kinds))
        return drawn_from(self.parts, world_prompts(kinds, "train", seed, most=self.batch, kept=False))


def drawn_from(parts: Parts, prompts: Items[Prompt]) -> PromptBatch:
    """Rows that draw the prompts, everything masked."""
    rows = [Generate(prompt=parts.wording.read(prompt.text)).build(parts) for prompt in prompts]
    return PromptBatch(tuple(prompts), collate(rows, [key("prompt", prompt.text) for prompt in prompts]))


@dataclass(frozen=True, kw_only=True)
class ReadPictures:
    """Answers with their pictures."""

    parts: Parts

    def __call__(self, prompts: Items[Prompt], answers: Items[Sequence]) -> list[Sample]:
        codes = torch.stack([picture_codes(row, "image") for row in answers])
        pictures = self.parts.decode(codes.to(next(self.parts.vq.parameters()).device))
        rows = zip(prompts, answers, pictures, strict=True)
        return [
            Sample(sequence=row, prompt=prompt.text, picture=np.asarray(image), wanted=prompt.wanted)
            for prompt, row, image in rows
        ]


def judged(pictures: Items[np.ndarray], samples: Items[Sample]) -> list[float]:
    """The judge's verdicts: 1 for a picture that shows what its prompt says and no other object, 0.5 where others are there too."""
    found = []
    for seen, sample in zip(load_judge().look(pictures), samples, strict=True):
        want = wanted_of(sample, "want", "judge")
        assert isinstance(want, scoring.Want)
        found.append(0.5 * scoring.verdict(seen, want) + 0.5 * scoring.strict(seen, want))
    return found


JUDGE = Pictures(name="judge", score=judged)


@dataclass(frozen=True, kw_only=True)
class Success:
    """Verdicts on one picture of each prompt, and how much the pictures of a prompt differ (``group`` of each)."""

    parts: Parts
    prompts: tuple[Prompt, ...]
    sampler: Sampler
    seed: int = 0
    rows: int = 64

    def __call__(self, module: Elastic, step: int) -> dict[str, float]:
        given = drawn_from(self.parts, self.prompts)
        samples: list[Sample] = []
        read = ReadPictures(parts=self.parts)
        rows = [Generate(prompt=self.parts.wording.read(p.text)).build(self.parts) for p in self.prompts]
        for first in range(0, len(rows), self.rows):
            some = rows[first : first + self.rows]
            seeds = [key("success", self.seed, seed) for seed in given.rows.seed[first : first + self.rows].tolist()]
            done = decide(module, some, seeds, self.sampler, device=module.embed.weight.device)
            samples += read(self.prompts[first : first + self.rows], done.rows)
        verdicts = judged([s.picture for s in samples if s.picture is not None], samples)
        found = {
            "right": float(np.mean([v > 0 for v in verdicts])),
            "strict": float(np.mean([v == 1 for v in verdicts])),
        }
        for kind in dict.fromkeys(p.key for p in self.prompts):
            own = [v > 0 for v, p in zip(verdicts, self.prompts, strict=True) if p.key == kind]
            found[kind] = float(np.mean(own))
        return found


def unigrpo(
    model: str = "mini",
    data: str = "",
    reward: str = "judge",
    batch: int = 8,
    group: int = 8,
    updates: int = 4,
    kl: float = 1e-4,
    clip: float = 0.2,
    draw_steps: int = 8,
    seed: int = 0,
    folder: str = "",
) -> Recipe:
    """Reinforce ``model`` by UniGRPO (MMaDA, arXiv 2505.15809): it is trained on its own answers, by their rewards.

    ``batch``: prompts of a step · ``group``: answers to each · ``updates``: of the weights from them · ``kl``: weight of the divergence
    from the model at the start, 0 for none · ``clip``: of the ratio to the policy that answered.
    """
    start = start_of(model)
    parts = start.parts
    sampler = with_options(start.presets.generate(parts), (), draw_steps or None)
    objective = UniGRPO(
        sampler=sampler,
        reward=Weighted(parts=(("judge", JUDGE, 1.0),)),
        read=ReadPictures(parts=parts),
        reference=Before(network=start.network),
        group=group,
        updates=updates,
        kl=kl,
        clip=clip,
    )
    prompts = tuple(world_prompts(CATEGORIES, "validation", 1, most=72, kept=True))
    return Recipe(
        name=f"unigrpo of {start.name}",
        model=start.network,
        source=WorldPrompts(parts=parts, seed=seed, batch=batch),
        objective=objective,
        optim=Optim(lr=1.5e-4, warmup=8, decay_from=0.7, floor=0.1, ema=0.97),
        training=Training(steps=52, seed=seed, save_every=4, log_every=1),
        trainable=lambda name: not name.startswith("vision"),
        evals=(Eval(name="unseen", every=13, run=Success(parts=parts, prompts=prompts, sampler=sampler)),),
        export=lambda module, place: start.export(module, place, ()),
    )
