"""Best-of-N edits with the model's own critique (spec 4.8). Public idea: ``revise(model, images, instructions, seeds, …)``.

Every attempt starts from the source picture with its own seed; prompts do not show earlier failures. The source is in the sequence
already, and a small model learns to copy it only if its place in the sequence never changes.
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import ClassVar

from PIL import Image
from torch import Tensor

from unmask.sampling.sampler import Sampler
from unmask.sequence import Sequence
from unmask.tasks import reflecting
from unmask.tasks.edit import Edit
from unmask.tasks.parts import Parts
from unmask.tasks.planning import PlanEdit
from unmask.tasks.reflecting import Attempts, Thinking
from unmask.tasks.results import Attempt, answered
from unmask.tasks.running import ThinkingRunner, perform
from unmask.tokens.build import asking, looking
from unmask.tokens.layouts import Layout
from unmask.tokens.views import ImageViews

NEEDS = reflecting.NEEDS | Edit.needs  # for layout, edit and critique


@dataclass(frozen=True, kw_only=True)
class CritiqueEdit:
    """A critique, in ``length`` tokens, of ``after`` as the edit of ``before`` by ``instruction``."""

    before: Tensor | ImageViews
    after: Tensor | ImageViews
    instruction: str
    length: int
    needs: ClassVar[frozenset[str]] = frozenset({"und", "text_head", "vision"})

    def build(self, tokens: Parts) -> Sequence:
        b = looking(tokens.builder(), self.before, self.after)
        requested = tokens.wording.critique_edit.format(instruction=self.instruction)
        return asking(b, requested, self.length, segment=b.first_segment).build(self.instruction)

    def read(self, sequence: Sequence, tokens: Parts) -> str:
        return answered(sequence, tokens.text)


def revise(
    model: ThinkingRunner,
    images: Items[Image.Image],
    instructions: Items[str],
    seeds: Items[int],
    thinking: Thinking,
    sampler: Sampler,
    retry_sampler: Sampler,
) -> list[list[Attempt]]:
    """All attempts of every picture and instruction, as in ``reflecting.think``; ``thinking.memory`` does not apply.

    ``sampler``: of the first attempt, whose layout is greedy · ``retry_sampler``: of the others, with sampled layouts. Needs the parts
    ``NEEDS``, already loaded.
    """
    parts = model.parts
    known: dict[int, tuple[Tensor, Tensor | ImageViews, Tensor]] = {}
    for image in images:
        if id(image) not in known:  # one picture may be edited several times
            pixels = parts.preprocess(image)[0]
            known[id(image)] = pixels, parts.image_views(image), parts.encode(pixels)
    sources = [known[id(image)] for image in images]

    def plan(pending: Items[int], own: Items[int], attempts: Attempts) -> list[Layout]:
        requests = [(sources[i][1], instructions[i]) for i in pending]
        return layouts(model, requests, own, retry=bool(attempts[pending[0]]))

    def draw(
        pending: Items[int], own: Items[int], attempts: Attempts, plans: Items[Layout | None]
    ) -> list[Image.Image]:
        tasks = []
        for i, layout in zip(pending, plans, strict=True):
            pixels, look, codes = sources[i]
            tasks.append(Edit(pixels=pixels, instruction=instructions[i], look=look, plan=layout, codes=codes))
        return perform(model, tasks, own, retry_sampler if attempts[pending[0]] else sampler)

    def judge(pending: Items[int], made: Items[Image.Image]) -> list[tuple[str, float]]:
        return criticise(model, [images[i] for i in pending], made, [instructions[i] for i in pending])

    return reflecting.until_approved(model, seeds, thinking, plan, draw, judge)


def layouts(
    model: ThinkingRunner, requests: Items[tuple[Tensor | ImageViews, str]], seeds: Items[int], *, retry: bool = False
) -> list[Layout]:
    """The layout of every (picture, instruction); ``retry``: sampled, because the greedy one failed."""
    tasks = [
        PlanEdit(pixels=look, instruction=words, length=model.presets.edit_plan_length) for look, words in requests
    ]
    return perform(model, tasks, seeds, (model.presets.plan if retry else model.presets.plan_edit)(model.parts))


def criticise(
    model: ThinkingRunner, before: Items[Image.Image], after: Items[Image.Image], instructions: Items[str]
) -> list[tuple[str, float]]:
    """Critique and acceptance score (``Attempt.approval``) of each edit."""
    overview, length = model.parts.overview, model.presets.critique_length
    requested = zip(before, after, instructions, strict=True)
    tasks = [CritiqueEdit(before=overview(b), after=overview(a), instruction=w, length=length) for b, a, w in requested]
    return reflecting.run_critiques(model, tasks)
