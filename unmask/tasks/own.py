"""The presets of our own models: a sampler for every task, and how many tokens its answers have. Public idea: ``OWN``."""

from __future__ import annotations

from unmask.tasks import edit, generate, ground, planning, understand
from unmask.tasks.parts import Presets

OWN = Presets(
    generate=generate.sampler,
    edit=edit.sampler,
    edit_again=edit.again,
    ask=understand.sampler,
    fill=understand.fill_sampler,
    ground=ground.sampler,
    plan=planning.sampler,
    plan_edit=planning.edit_sampler,
    critique=understand.sampler,
    turn_words=planning.edit_sampler,
    answer=4,
    caption=44,
    plan_length=44,
    edit_plan_length=24,
    critique_length=16,
    turn=44,  # the answer length that answers, layouts and captions were trained with
    context=4096,
    plans=True,  # 50 of 60 pictures of a newcomer's prompts are right instead of 35, and 53 with a second attempt (bench/first_picture.py)
    attempts=2,
)
