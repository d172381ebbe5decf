"""Best-of-N with the model's own critique (spec 4.8). Public idea: ``think(model, prompts, seeds, Thinking(attempts=8))``.

Every attempt is: layout (optional), picture, critique. A prompt stops at the first attempt that the critique accepts. Later attempts see
at most ``memory`` earlier failures of their own prompt. The critic is the model itself; ``evaluation`` measures how often it is right.
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
from unmask.sequence import Kind, Sequence, collate
from unmask.tasks.generate import Generate
from unmask.tasks.parts import Parts
from unmask.tasks.planning import PlanImage
from unmask.tasks.results import Attempt, answered
from unmask.tasks.running import ThinkingRunner, perform
from unmask.tokens.build import FailedAttempt, asking, looking
from unmask.tokens.layouts import Layout
from unmask.tokens.prompts import Conditions
from unmask.tokens.views import ImageViews

Attempts = Items[Items[Attempt]]
MAX_ATTEMPTS = 64
NEEDS = frozenset({"und", "gen", "text_head", "vision", "vq.decoder"})  # for layout, picture and critique
_RIGHT = "is correct"


@dataclass(frozen=True, kw_only=True)
class Critique:
    """A critique of a picture of ``caption`` in ``length`` tokens: what is wrong, or "... is correct"."""

    pixels: Tensor | ImageViews
    caption: str
    length: int
    needs: ClassVar[frozenset[str]] = frozenset({"und", "text_head", "vision"})

    def build(self, tokens: Parts) -> Sequence:
        b = looking(tokens.builder(), self.pixels)
        requested = tokens.wording.critique.format(caption=self.caption)
        return asking(b, requested, self.length, segment=b.first_segment).build(self.caption)

    def read(self, sequence: Sequence, tokens: Parts) -> str:
        return answered(sequence, tokens.text)


def accepts(critique: str) -> bool:
    """Whether a critique accepts the picture."""
    return _RIGHT in critique


@dataclass(frozen=True, kw_only=True)
class Thinking:
    """Layout and best-of-N of a picture.

    ``plan``: generate a layout first · ``layout``: use this one instead · ``attempts``: largest number of pictures; with 1 there is no
    critique · ``memory``: how many failed attempts the next prompt shows; 0: independent attempts.
    """

    plan: bool = False
    layout: Layout | None = None
    attempts: int = 1
    memory: int = 3

    def __post_init__(self) -> None:
        if not 1 <= self.attempts <= MAX_ATTEMPTS:
            raise ValueError(f"attempts must be 1 to {MAX_ATTEMPTS}, got {self.attempts}; the paper uses 8")
        if self.memory < 0:
            raise ValueError(f"memory must be at least 0, got {self.memory}")


def think(
    model: ThinkingRunner,
    prompts: Items[str],
    seeds: Items[int],
    thinking: Thinking,
    sampler: Sampler,
    conditions: Conditions | None = None,
) -> list[list[Attempt]]:
    """All attempts of every prompt; ``best`` chooses the result. Batch-invariant: a prompt's attempts depend on its own seed alone.

    ``sampler``: of the pictures. Needs the parts ``NEEDS``, already loaded.
    """

    def plan(pending: Items[int], own: Items[int], attempts: Attempts) -> list[Layout]:
        return layouts(model, [prompts[i] for i in pending], own, conditions)

    def draw(
        pending: Items[int], own: Items[int], attempts: Attempts, plans: Items[Layout | None]
    ) -> list[Image.Image]:
        past = [
            remembered(model.parts, attempts[i], thinking.memory, seed) for i, seed in zip(pending, own, strict=True)
        ]
        tasks = [
            Generate(prompt=prompts[i], conditions=conditions, plan=layout, attempts=failed)
            for i, layout, failed in zip(pending, plans, past, strict=True)
        ]
        return perform(model, tasks, own, sampler)

    def judge(pending: Items[int], images: Items[Image.Image]) -> list[tuple[str, float]]:
        return criticise(model, [prompts[i] for i in pending], images)

    return until_approved(model, seeds, thinking, plan, draw, judge)


def until_approved(
    model: ThinkingRunner,
    seeds: Items[int],
    thinking: Thinking,
    plan: Callable[[Items[int], Items[int], Attempts], list[Layout]],
    draw: Callable[[Items[int], Items[int], Attempts, Items[Layout | None]], list[Image.Image]],
    judge: Callable[[Items[int], Items[Image.Image]], list[tuple[str, float]]],
) -> list[list[Attempt]]:
    """The attempts of every request (one per seed): up to ``thinking.attempts``, until one is accepted.

    ``plan``, ``draw`` and ``judge`` make the layouts, pictures and critiques of the requests that are still ``pending``, with the seeds
    ``own`` of this attempt; ``attempts`` holds the earlier attempts of all requests.
    """
    attempts: list[list[Attempt]] = [[] for _ in seeds]
    pending = list(range(len(seeds)))
    for number in range(thinking.attempts):
        own = [seeds[i] if number == 0 else key(seeds[i], "round", number) for i in pending]
        plans: list[Layout | None] = [thinking.layout] * len(pending)
        if thinking.plan:
            made_plans = plan(pending, own, attempts)
            for i, layout in zip(pending, made_plans, strict=True):
                model.emit(i, layout)
            plans = [*made_plans]
        images = draw(pending, own, attempts, plans)
        words = judge(pending, images) if thinking.attempts > 1 else [("", 0.0)] * len(pending)
        for i, image, layout, (text, score), seed in zip(pending, images, plans, words, own, strict=True):
            made = Attempt(image=image, plan=layout, critique=text, accepted=accepts(text), approval=score, seed=seed)
            attempts[i].append(made)
            model.emit(i, made)
        pending = [i for i in pending if not attempts[i][-1].accepted]
        if not pending:
            break
    return attempts


def best(attempts: Items[Attempt]) -> Attempt:
    """The accepted attempt, otherwise the one with the highest acceptance score; the first of equals."""
    return max(attempts, key=lambda r: (r.accepted, r.approval))


def remembered(parts: Parts, attempts: Items[Attempt], most: int, seed: int) -> tuple[FailedAttempt, ...]:
    """At most ``most`` failed attempts in order, sampled at random, no two with the same critique."""
    rng = Random(f"memory/{seed}")
    by_critique: dict[str, list[int]] = {}
    for number, tried in enumerate(attempts):
        by_critique.setdefault(tried.critique, []).append(number)
    chosen = [rng.choice(numbers) for numbers in by_critique.values()]
    chosen = sorted(rng.sample(chosen, min(most, len(chosen))))
    return tuple(
        FailedAttempt(picture=parts.overview(attempts[i].image), critique=attempts[i].critique) for i in chosen
    )


def layouts(
    model: ThinkingRunner, prompts: Items[str], seeds: Items[int], conditions: Conditions | None
) -> list[Layout]:
    """A layout for every prompt."""
    tasks = [PlanImage(prompt=p, length=model.presets.plan_length, conditions=conditions) for p in prompts]
    return perform(model, tasks, seeds, model.presets.plan(model.parts))


def criticise(model: ThinkingRunner, prompts: Items[str], images: Items[Image.Image]) -> list[tuple[str, float]]:
    """Critique and acceptance score (``Attempt.approval``) of each picture."""
    parts, length = model.parts, model.presets.critique_length
    tasks = [
        Critique(pixels=parts.image_views(i), caption=p, length=length) for i, p in zip(images, prompts, strict=True)
    ]
    return run_critiques(model, tasks)


def run_critiques(model: ThinkingRunner, critiques: Items[Task[Parts, str]]) -> list[tuple[str, float]]:
    """Text and acceptance score of critique tasks."""
    built = [task.build(model.parts) for task in critiques]
    texts = perform(model, critiques, [0] * len(built), model.presets.critique(model.parts), built)
    return list(zip(texts, _approvals(model, built), strict=True))


@torch.no_grad()
def _approvals(model: ThinkingRunner, sequences: Items[Sequence]) -> list[float]:
    """Acceptance scores: the expected count of "correct" over the fully masked critique, at most 1. Rejections do not use the word."""
    net, parts = model.parts.net, model.parts
    batch = collate(parts.features.known(sequences, net, model.device), [0] * len(sequences)).to(model.device)
    found = net(batch).scored[Kind.TEXT]
    assert found.logits is not None
    word = parts.text.encode(_RIGHT)[-1]
    probability_N = found.logits.float().softmax(-1)[:, word].cpu()
    row_N = found.at.cpu() // batch.ids.shape[1]
    return torch.zeros(len(sequences)).index_add(0, row_N, probability_N).clamp(max=1.0).tolist()
