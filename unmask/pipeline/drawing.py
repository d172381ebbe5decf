"""Pictures from tasks or attempts. Public idea: ``draw(model, tasks, seeds, sampler, ...) -> [Drawing]``; ``best_of`` for best-of-N."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from PIL import Image
from torch import Tensor

from unmask.sampling.live import LiveSampler
from unmask.sampling.sampler import Sampler
from unmask.sequence import Sequence as Tokens
from unmask.tasks import reflecting
from unmask.tasks.edit import Edit
from unmask.tasks.generate import Generate, picture_so_far
from unmask.tasks.infill import Infill
from unmask.tasks.live import Live
from unmask.tasks.parts import Parts, Presets
from unmask.tasks.planning import PlanImage
from unmask.tasks.reflecting import Thinking
from unmask.tasks.results import Attempt, Drawing, Drawings, describe
from unmask.tasks.running import Decoded, OnStep, StepEvent, ThinkingRunner
from unmask.tokens.layouts import Layout
from unmask.tokens.pictures import read_image
from unmask.tokens.prompts import Conditions
from unmask.tokens.sources import Picture

PictureTask = Generate | Edit | Infill


def draw(
    model: ThinkingRunner,
    tasks: Sequence[PictureTask],
    seeds: Sequence[int],
    sampler: Sampler,
    prompt: str,
    trace: bool,
    warnings: tuple[str, ...] = (),
    live: Live | None = None,
) -> Drawings:
    """One picture per task and seed, all in one batch. A task that occurs several times is built once.

    ``prompt``: as the user wrote it, for the results · ``trace``: keep the picture after every step · ``live``: has begun with the task.
    """
    model.parts.require(tasks[0].needs)
    known = {id(task): task.build(model.parts) for task in tasks}
    built = [known[id(task)] for task in tasks]
    frames: list[list[Image.Image]] = [[] for _ in tasks]

    def record(event: StepEvent) -> None:
        frames[event.row].append(model.parts.canvas(*picture_so_far(event.sequence, "image")))

    if live:
        done = _lively(model, built[0], seeds[0], sampler, live, record if trace else None)
        prompt, tasks = live.task.prompt, [live.task]
    else:
        done = model.run(built, seeds, sampler, record if trace else None)
    settings = describe(sampler)
    return Drawings(
        Drawing(
            image=task.read(row, model.parts),
            prompt=prompt,
            seed=seed,
            seconds=done.seconds / len(seeds),
            settings=settings,
            trace=tuple(film),
            plan=task.plan,
            warnings=warnings,
        )
        for task, row, seed, film in zip(tasks, done.rows, seeds, frames, strict=True)
    )


def _lively(
    model: ThinkingRunner, row: Tokens, seed: int, sampler: Sampler, live: Live, record: OnStep | None
) -> Decoded:
    """As ``model.run`` of one row whose task ``live`` may change, as long as changes come."""

    def follow(event: StepEvent) -> None:
        for told in (record, live.on_step):
            if told:
                told(event)

    followed, seconds = (follow if record or live.on_step else None), 0.0
    try:
        while True:
            done = model.run([row], [seed], LiveSampler.of(sampler, live, row), followed)
            (row,), seconds = done.rows, seconds + done.seconds
            if not live.wait():
                return Decoded(rows=[row], seconds=seconds)
    finally:
        live.finish()


def as_asked(
    presets: Presets,
    plan: bool | Layout | None,
    attempts: int | None,
    once: bool,
    size: tuple[int, int] | None,
    live: Live | None = None,
) -> Thinking:
    """How a picture is made: as the call says, otherwise as the presets say. With a plan of the call, ``once`` or ``live``, one attempt.

    ``once``: there is nothing to judge, because every step is shown or the prompt names nothing that the model knows.

    ValueError for a ``size`` of pictures that have a layout or several attempts, which are all of one size, and for several attempts at
    a live drawing.
    """
    own = plan is None and not once and live is None
    thinking = Thinking(
        plan=presets.plans if plan is None else plan is True,
        layout=plan if isinstance(plan, Layout) else None,
        attempts=attempts if attempts is not None else presets.attempts if own else 1,
    )
    if live and thinking.attempts > 1:
        raise ValueError("a live drawing is one attempt; leave out attempts or live")
    if size is not None and (thinking.attempts > 1 or thinking.plan or thinking.layout):
        raise ValueError("a size cannot be combined with a layout or several attempts; leave one out")
    return thinking


def further(parts: Parts, kind: str, reference: Picture | None, attempts: int) -> tuple[Tensor, ...]:
    """The pixels of the second picture of an edit, in a tuple; () without one. ValueError where several attempts at an edit have a kind or
    a second picture, which the critique does not know.
    """
    if attempts > 1 and (kind or reference is not None):
        raise ValueError("a kind of edit and a reference cannot be combined with several attempts; leave one out")
    return () if reference is None else (parts.preprocess(read_image(reference))[0],)


def layouts_of(
    model: ThinkingRunner, prompt: str, seeds: Sequence[int], thinking: Thinking, conditions: Conditions | None
) -> Sequence[Layout | None]:
    """The layout of each picture of a prompt: a new one if ``thinking`` plans, otherwise the given one, which may be None."""
    if not thinking.plan:
        return [thinking.layout] * len(seeds)
    model.parts.require(PlanImage.needs)
    made = reflecting.layouts(model, [prompt] * len(seeds), seeds, conditions)
    for row, layout in enumerate(made):
        model.emit(row, layout)
    return made


def best_of(
    prompt: str,
    seeds: Sequence[int],
    sampler: Sampler,
    think: Callable[[], list[list[Attempt]]],
    warnings: tuple[str, ...] = (),
) -> Drawings:
    """The best attempt for every seed. ``think``: makes the attempts, one list per seed."""
    began = time.perf_counter()
    found = think()
    seconds, settings = (time.perf_counter() - began) / len(seeds), describe(sampler)
    return Drawings(
        Drawing(
            image=best.image,
            prompt=prompt,
            seed=seed,
            seconds=seconds,
            settings=settings,
            plan=best.plan,
            attempts=tuple(attempts),
            warnings=warnings,
        )
        for seed, attempts, best in zip(seeds, found, map(reflecting.best, found), strict=True)
    )


def used_by(chosen: Sampler, thinking: Thinking, model: ThinkingRunner, *, edits: bool = False) -> dict[str, Sampler]:
    """The samplers of a picture by the names of their presets: ``chosen``, and those of its layout and of its critiques."""
    names = [("plan_edit" if edits else "plan")] * thinking.plan + ["critique"] * (thinking.attempts > 1)
    texts = {name: getattr(model.presets, name)(model.parts) for name in names}
    return {"edit" if edits else "generate": chosen, **texts}


def labelled(model: ThinkingRunner, drawings: Drawings, used: Mapping[str, Sampler]) -> Drawings:
    """The pictures with the parts of fast mode in the samplers that were used (by the names of their presets)."""
    approximate = model.presets.approximate(model.parts, used)
    return Drawings(replace(drawing, approximate=approximate) for drawing in drawings) if approximate else drawings


def count_of(n: int, live: Live | None = None) -> int:
    """The number of pictures of a call. ValueError unless it is 1 to 256, and 1 of a live drawing."""
    if live and n != 1:
        raise ValueError(f"a live drawing is one picture, got n {n}; leave out n or live")
    if not 1 <= n <= 256:
        raise ValueError(f"n must be 1 to 256, got {n}")
    return n


def several(prompts: Sequence[str], check: Callable[[str], str]) -> list[str]:
    """A list of prompts, each checked. ValueError for an empty list."""
    if not prompts:
        raise ValueError("the list of prompts is empty; give at least one")
    return [check(prompt) for prompt in prompts]
