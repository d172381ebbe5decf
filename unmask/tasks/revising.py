"""Edit, look at what became of it, try again (spec 4.8, for edits). Public idea: ``revise(model, images, instructions, seeds, …)``.

Every try starts from the source picture and a seed of its own: failures are not shown to the next one. The source and its look are in
the sequence already, and a small model copies only over a way that never changes (docs/notes/0006-thoughts.md).
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
from unmask.tasks.reflecting import Rounds, Thinking
from unmask.tasks.results import Round, answered
from unmask.tasks.running import Thinks, perform
from unmask.tokens.build import asking, looking
from unmask.tokens.layouts import Layout
from unmask.tokens.views import ImageViews

NEEDS = reflecting.NEEDS | Edit.needs  # to plan, edit and judge


@dataclass(frozen=True, kw_only=True)
class CritiqueEdit:
    """What is wrong with ``after``, which shall be ``before`` as ``instruction`` changes it, in at most ``length`` tokens."""

    before: Tensor | ImageViews
    after: Tensor | ImageViews
    instruction: str
    length: int
    needs: ClassVar[frozenset[str]] = frozenset({"und", "text_head", "vision"})

    def build(self, tokens: Parts) -> Sequence:
        b = looking(tokens.builder(), self.before, self.after)
        asked = tokens.wording.critique_edit.format(instruction=self.instruction)
        return asking(b, asked, self.length, segment=b.first_segment).build(self.instruction)

    def read(self, sequence: Sequence, tokens: Parts) -> str:
        return answered(sequence, tokens.text)


def revise(
    model: Thinks,
    images: Items[Image.Image],
    instructions: Items[str],
    seeds: Items[int],
    thinking: Thinking,
    sampler: Sampler,
    again: Sampler,
) -> list[list[Round]]:
    """All tries at every picture and its instruction, as ``reflecting.think`` has them; ``thinking.memory`` is of drawings alone.

    ``sampler`` makes the first try, from the plan that is written without chance, ``again`` the others, each from a plan of its own.
    ``NEEDS`` must have been loaded.
    """
    parts = model.parts
    known: dict[int, tuple[Tensor, Tensor | ImageViews, Tensor]] = {}
    for image in images:
        if id(image) not in known:  # one picture may be edited several times
            pixels = parts.see(image)[0]
            known[id(image)] = pixels, parts.look(image), parts.encode(pixels)
    sources = [known[id(image)] for image in images]

    def plan(live: Items[int], own: Items[int], rounds: Rounds) -> list[Layout]:
        told = [(sources[i][1], instructions[i]) for i in live]
        return layouts(model, told, own, retry=bool(rounds[live[0]]))

    def draw(live: Items[int], own: Items[int], rounds: Rounds, plans: Items[Layout | None]) -> list[Image.Image]:
        tasks = []
        for i, layout in zip(live, plans, strict=True):
            pixels, look, codes = sources[i]
            tasks.append(Edit(pixels=pixels, instruction=instructions[i], look=look, plan=layout, codes=codes))
        return perform(model, tasks, own, again if rounds[live[0]] else sampler)

    def judge(live: Items[int], made: Items[Image.Image]) -> list[tuple[str, float]]:
        return criticise(model, [images[i] for i in live], made, [instructions[i] for i in live])

    return reflecting.until_approved(model, seeds, thinking, plan, draw, judge)


def layouts(
    model: Thinks, told: Items[tuple[Tensor | ImageViews, str]], seeds: Items[int], *, retry: bool = False
) -> list[Layout]:
    """What every (picture, instruction) touches; ``retry``: by chance, as the surest did not do."""
    tasks = [PlanEdit(pixels=look, instruction=words, length=model.presets.edit_plan_length) for look, words in told]
    return perform(model, tasks, seeds, (model.presets.plan if retry else model.presets.plan_edit)(model.parts))


def criticise(
    model: Thinks, before: Items[Image.Image], after: Items[Image.Image], instructions: Items[str]
) -> list[tuple[str, float]]:
    """What the model says of edits, and how probable its approval was at the outset (``Round.approval``)."""
    glance, length = model.parts.glance, model.presets.critique_length
    asked = zip(before, after, instructions, strict=True)
    tasks = [CritiqueEdit(before=glance(b), after=glance(a), instruction=w, length=length) for b, a, w in asked]
    return reflecting.heard(model, tasks)
