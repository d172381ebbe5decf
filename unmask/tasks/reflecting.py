"""Look at what was drawn, say what is wrong, try again (spec 4.8). Public idea: ``think(model, prompts, seeds, Thinking(rounds=8))``.

Every prompt goes through the same rounds: plan (if wanted), draw, judge; who is judged right leaves, the others draw again and are shown
at most ``memory`` of their own failures. The judge is the model itself; whether it is right is for ``evaluation`` to measure.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import dataclass
from random import Random
from typing import ClassVar

import torch
from PIL import Image
from torch import Tensor

from unmask.protocols import Task
from unmask.rng import key
from unmask.sampling.sampler import Sampler
from unmask.sequence import Sequence, collate
from unmask.tasks.generate import Generate
from unmask.tasks.parts import Parts
from unmask.tasks.planning import Plan
from unmask.tasks.results import Round, answered
from unmask.tasks.running import Thinks, perform
from unmask.tokens.build import Attempt, asking, looking
from unmask.tokens.layouts import Layout
from unmask.tokens.prompts import Conditions
from unmask.tokens.views import ImageViews

Rounds = Items[Items[Round]]
MOST_ROUNDS = 64
NEEDS = frozenset({"und", "gen", "text_head", "vision", "vq.decoder"})  # to plan, draw and judge
_RIGHT = "is correct"


@dataclass(frozen=True, kw_only=True)
class Critique:
    """What is wrong with a picture of ``caption``, in at most ``length`` tokens; "... is correct" where nothing is."""

    pixels: Tensor | ImageViews
    caption: str
    length: int
    needs: ClassVar[frozenset[str]] = frozenset({"und", "text_head", "vision"})

    def build(self, tokens: Parts) -> Sequence:
        b = looking(tokens.builder(), self.pixels)
        asked = tokens.wording.critique.format(caption=self.caption)
        return asking(b, asked, self.length, segment=b.first_segment).build(self.caption)

    def read(self, sequence: Sequence, tokens: Parts) -> str:
        return answered(sequence, tokens.text)


def accepts(critique: str) -> bool:
    """Whether a critique finds nothing wrong."""
    return _RIGHT in critique


@dataclass(frozen=True, kw_only=True)
class Thinking:
    """How a picture is thought about.

    ``plan``: think of a layout first · ``layout``: take this one instead · ``rounds``: draw at most so many pictures, and judge each but
    where there is one alone · ``memory``: how many failures the next drawing is shown; 0 is best-of-N by the model's own judgement.
    """

    plan: bool = False
    layout: Layout | None = None
    rounds: int = 1
    memory: int = 3

    def __post_init__(self) -> None:
        if not 1 <= self.rounds <= MOST_ROUNDS:
            raise ValueError(f"reflection takes 1 to {MOST_ROUNDS} rounds, got {self.rounds}; 8 are the paper's")
        if self.memory < 0:
            raise ValueError(f"memory is a number of pictures, got {self.memory}; give 0 or more")


def think(
    model: Thinks,
    prompts: Items[str],
    seeds: Items[int],
    thinking: Thinking,
    sampler: Sampler,
    conditions: Conditions | None = None,
) -> list[list[Round]]:
    """All rounds of every prompt; ``best`` says which is its result. They follow from its own seed alone, whatever the company.

    ``sampler`` draws the pictures. ``NEEDS`` must have been loaded.
    """

    def plan(live: Items[int], own: Items[int], rounds: Rounds) -> list[Layout]:
        return layouts(model, [prompts[i] for i in live], own, conditions)

    def draw(live: Items[int], own: Items[int], rounds: Rounds, plans: Items[Layout | None]) -> list[Image.Image]:
        past = [remembered(model.parts, rounds[i], thinking.memory, seed) for i, seed in zip(live, own, strict=True)]
        tasks = [
            Generate(prompt=prompts[i], conditions=conditions, plan=layout, attempts=attempts)
            for i, layout, attempts in zip(live, plans, past, strict=True)
        ]
        return perform(model, tasks, own, sampler)

    def judge(live: Items[int], images: Items[Image.Image]) -> list[tuple[str, float]]:
        return criticise(model, [prompts[i] for i in live], images)

    return until_approved(model, seeds, thinking, plan, draw, judge)


def until_approved(
    model: Thinks,
    seeds: Items[int],
    thinking: Thinking,
    plan: Callable[[Items[int], Items[int], Rounds], list[Layout]],
    draw: Callable[[Items[int], Items[int], Rounds, Items[Layout | None]], list[Image.Image]],
    judge: Callable[[Items[int], Items[Image.Image]], list[tuple[str, float]]],
) -> list[list[Round]]:
    """As many rounds as ``thinking`` has, or until one is approved, of as many requests as there are seeds.

    Each round asks for layouts, pictures, and what is wrong with these, of the requests that are still ``live``, from seeds of its
    ``own``; ``rounds`` are the earlier ones of all requests.
    """
    rounds: list[list[Round]] = [[] for _ in seeds]
    live = list(range(len(seeds)))
    for number in range(thinking.rounds):
        own = [seeds[i] if number == 0 else key(seeds[i], "round", number) for i in live]
        plans: list[Layout | None] = [thinking.layout] * len(live)
        if thinking.plan:
            thought = plan(live, own, rounds)
            for i, layout in zip(live, thought, strict=True):
                model.tell(i, layout)
            plans = [*thought]
        images = draw(live, own, rounds, plans)
        words = judge(live, images) if thinking.rounds > 1 else [("", 0.0)] * len(live)
        for i, image, layout, (said, chance), seed in zip(live, images, plans, words, own, strict=True):
            made = Round(image=image, plan=layout, critique=said, accepted=accepts(said), approval=chance, seed=seed)
            rounds[i].append(made)
            model.tell(i, made)
        live = [i for i in live if not rounds[i][-1].accepted]
        if not live:
            break
    return rounds


def best(rounds: Items[Round]) -> Round:
    """The approved try, or where there is none the one that came nearest to it; the first of equals."""
    return max(rounds, key=lambda r: (r.accepted, r.approval))


def remembered(parts: Parts, rounds: Items[Round], most: int, seed: int) -> tuple[Attempt, ...]:
    """At most ``most`` failures in the order they were made, chosen by chance, no two with the same critique."""
    rng = Random(f"memory/{seed}")
    by_critique: dict[str, list[int]] = {}
    for number, tried in enumerate(rounds):
        by_critique.setdefault(tried.critique, []).append(number)
    chosen = [rng.choice(numbers) for numbers in by_critique.values()]
    chosen = sorted(rng.sample(chosen, min(most, len(chosen))))
    return tuple(Attempt(picture=parts.glance(rounds[i].image), critique=rounds[i].critique) for i in chosen)


def layouts(model: Thinks, prompts: Items[str], seeds: Items[int], conditions: Conditions | None) -> list[Layout]:
    """A layout for every prompt."""
    tasks = [Plan(prompt=p, length=model.presets.plan_length, conditions=conditions) for p in prompts]
    return perform(model, tasks, seeds, model.presets.plan(model.parts))


def criticise(model: Thinks, prompts: Items[str], images: Items[Image.Image]) -> list[tuple[str, float]]:
    """What the model says of pictures of prompts, and how probable its approval was at the outset (``Round.approval``)."""
    parts, length = model.parts, model.presets.critique_length
    tasks = [Critique(pixels=parts.look(i), caption=p, length=length) for i, p in zip(images, prompts, strict=True)]
    return heard(model, tasks)


def heard(model: Thinks, critiques: Items[Task]) -> list[tuple[str, float]]:
    """What comes of tasks that ask for a critique, and how probable approval was at the outset."""
    built = [task.build(model.parts) for task in critiques]
    said = perform(model, critiques, [0] * len(built), model.presets.critique(model.parts), built)
    return list(zip(said, _approvals(model, built), strict=True))


@torch.no_grad()
def _approvals(model: Thinks, sequences: Items[Sequence]) -> list[float]:
    """How often the word "correct" is expected in each undecided critique: what is wrong is said without it."""
    net, parts = model.parts.net, model.parts
    batch = collate(sequences, [0] * len(sequences), features_per_image=parts.look_tokens)
    batch = batch.replace(pixels=None).to(model.device)
    found = net(batch, ask=batch.masked, carry=parts.features.of(sequences, net, model.device))
    word = parts.text.encode(_RIGHT)[-1]
    chance_N = found.text_logits.float().softmax(-1)[:, word].cpu()
    row_N = found.text.cpu() // batch.ids.shape[1]
    return torch.zeros(len(sequences)).index_add(0, row_N, chance_N).clamp(max=1.0).tolist()
