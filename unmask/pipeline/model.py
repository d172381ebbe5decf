"""The model as a user holds it. Public idea: ``m = unmask.load("mini"); m.generate("two red apples left of a cat")``.

Same seed, same answer, whatever the batch size: picture i of a call has the seed ``seed + i`` and random numbers of its own.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from PIL import Image

from unmask.checkpoints.elastic import EVERYTHING, Weights, WeightStorage
from unmask.grammars.answer_format import Form
from unmask.pipeline.loading import Format, find, format_in, open_parts, survey
from unmask.pipeline.text_model import TextModel, load_text
from unmask.recipe import override
from unmask.sampling.sampler import Sampler
from unmask.sequence import Sequence as Tokens
from unmask.tasks import (
    conversing,
    edit,
    forms,
    generate,
    ground,
    infill,
    planning,
    reflecting,
    released,
    revising,
    understand,
)
from unmask.tasks.conversing import Message, Turn
from unmask.tasks.parts import Parts, Presets
from unmask.tasks.reflecting import Thinking
from unmask.tasks.results import Answer, Box, Drawing, Grounding, Round, describe
from unmask.tasks.running import Done, Shown, Through, Watch, answer, decide
from unmask.tokens.layouts import Layout
from unmask.tokens.pictures import ImageError, Placement, read_image, square
from unmask.tokens.prompts import RELEASED, Conditions
from unmask.tokens.views import to_pixels

Picture = Image.Image | str | os.PathLike[str] | bytes
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
    turn=44,  # the room in which answers, layouts and descriptions were learned
    context=4096,
)
LONGEST_PROMPT = 400  # tokens; far beyond what the embedded model was trained on, so say so instead of guessing


def load(
    name: str | os.PathLike[str] = "mini",
    *,
    device: str = "cpu",
    needs: Iterable[str] | None = None,
    storage: WeightStorage | None = None,
    download: bool = False,
) -> Model | TextModel:
    """A shipped model by name, a model folder, or a model of the hub. CheckpointError says what is missing or damaged.

    A folder holds config.json, tokenizer.json, model*.safetensors and vq*.safetensors; or it is in the released layout of LaViDa-O, or in
    LLaDA's: a TextModel.
    ``needs``: load these parts only (``needs_of("generate")``); a task that needs more loads the rest later. None: everything.
    ``storage``: dtype, quantisation, branches that stay on the CPU · ``download``: fetch ``owner/name`` if it is not in the local cache.
    """
    folder = find(name, download=download)
    if format_in(folder) is Format.LLADA:
        return load_text(folder, device=device, storage=storage)
    found = survey(folder)
    parts = open_parts(found, Weights(checkpoint=found.checkpoint, device=device, storage=storage or WeightStorage()))
    parts.require(EVERYTHING if needs is None else frozenset(needs))
    return Model(parts, presets=released.PRESETS if found.wording == RELEASED else OWN)


class Model:
    """A loaded model. Every method checks its input first and raises ValueError (ImageError for pictures) with a hint.

    ``through``: decides the sequences in its place (``run``); None: its own network does, one call after another.
    """

    def __init__(self, parts: Parts, presets: Presets = OWN, *, through: Through | None = None) -> None:
        self.parts, self.presets, self.through = parts, presets, through

    @property
    def device(self) -> torch.device:
        return torch.device(self.parts.weights.device) if self.parts.weights else self.parts.net.embed.weight.device

    def generate(
        self,
        prompt: str,
        *,
        n: int = 1,
        seed: int = 0,
        conditions: Conditions | None = None,
        plan: bool | Layout = False,
        reflect: int = 1,
        trace: bool = False,
        settings: Sequence[str] = (),
        sampler: Sampler | None = None,
    ) -> list[Drawing]:
        """``n`` pictures of a prompt. ``settings`` change fields of the sampler, for example ``["schedule.steps=8", "guidance.scale=3"]``.

        ``plan``: think of a layout first, or draw from the one that is given · ``reflect``: draw up to so many pictures, until one
        finds the model's own approval; what it said of the others is in ``rounds``.
        """
        said, seeds = self._prompt(prompt), [seed + i for i in range(_count(n))]
        chosen = override(sampler or self.presets.generate(self.parts), settings)
        thinking = Thinking(plan=plan is True, layout=plan if isinstance(plan, Layout) else None, rounds=reflect)
        if thinking.rounds > 1:
            self._no_trace(trace)
            self.parts.require(reflecting.NEEDS)
            return self._thought(
                said, seeds, chosen, lambda: reflecting.think(self, [said] * n, seeds, thinking, chosen, conditions)
            )
        layouts: Sequence[Layout | None] = [thinking.layout] * n
        if thinking.plan:
            self.parts.require(planning.Plan.needs)
            layouts = reflecting.layouts(self, [said] * n, seeds, conditions)
            for row, layout in enumerate(layouts):
                self.tell(row, layout)
        tasks = [generate.Generate(prompt=said, conditions=conditions, plan=layout) for layout in layouts]
        return self._draw(tasks, seeds, chosen, prompt, trace)

    def edit(
        self,
        image: Picture,
        instruction: str,
        *,
        n: int = 1,
        seed: int = 0,
        plan: bool | Layout = False,
        reflect: int = 1,
        trace: bool = False,
        settings: Sequence[str] = (),
        sampler: Sampler | None = None,
    ) -> list[Drawing]:
        """``n`` versions of a picture changed as the instruction says, in the model's own (square) size.

        ``plan``: first say what is touched and where, or take the layout that is given · ``reflect``: edit up to so many times, until
        the model itself approves of before and after; all tries are in ``rounds``.
        """
        picture, said, seeds = read_image(image), self._prompt(instruction), [seed + i for i in range(_count(n))]
        chosen = override(sampler or self.presets.edit(self.parts), settings)
        thinking = Thinking(plan=plan is True, layout=plan if isinstance(plan, Layout) else None, rounds=reflect)
        if thinking.rounds > 1:
            self._no_trace(trace)
            self.parts.require(revising.NEEDS)
            again = override(sampler or self.presets.edit_again(self.parts), settings)
            asked = ([picture] * n, [said] * n, seeds)
            return self._thought(said, seeds, chosen, lambda: revising.revise(self, *asked, thinking, chosen, again))
        (pixels, _), seen, layout = self.parts.see(picture), self.parts.look(picture), thinking.layout
        if thinking.plan:
            self.parts.require(planning.PlanEdit.needs)
            (layout,) = revising.layouts(self, [(seen, said)], [0])
            self.tell(0, layout)
        task = edit.Edit(pixels=pixels, instruction=said, look=seen, plan=layout)
        return self._draw([task] * n, seeds, chosen, instruction, trace)

    def infill(
        self,
        image: Picture,
        region: Picture,
        *,
        prompt: str = "",
        seed: int = 0,
        trace: bool = False,
        settings: Sequence[str] = (),
    ) -> Drawing:
        """A picture with the white part of ``region`` (same size) drawn anew, so that the whole shows ``prompt``."""
        picture, painted = read_image(image), read_image(region)
        if painted.size != picture.size:
            raise ImageError(f"the region is {painted.size} and the picture {picture.size}; make both of one size")
        pixels, _ = self.parts.see(picture)
        shown = to_pixels(square(painted, self.parts.side, (0, 0, 0))[0]).mean(0) > 0.5
        task = infill.Infill(pixels=pixels, region=shown, prompt=self._prompt(prompt, empty=True))
        chosen = override(self.presets.generate(self.parts), settings)
        return self._draw([task], [seed], chosen, prompt, trace)[0]

    def ask(
        self,
        image: Picture,
        question: str,
        *,
        seed: int = 0,
        trace: bool = False,
        length: int | None = None,
        form: Form | None = None,
        settings: Sequence[str] = (),
    ) -> Answer:
        """Answer a question about a picture, in at most ``length`` tokens (default: what the model's presets say).

        ``form``: what the answer has to look like, from ``tokens.forms``; ``answer.value`` is then what it says.
        """
        seen, longest = self.parts.look(read_image(image)), self.presets.answer if length is None else length
        if longest < 1:
            raise ValueError(f"an answer needs at least one token, got length {longest}; give 1 or more")
        said, chosen = self._prompt(question), override(self.presets.ask(self.parts), settings)
        if form is not None:
            holes = tuple(form.holes(self.parts.text, self.parts.wording))
            for hole in holes:
                self._prompt(hole.question, empty=True)
            task = forms.fill_in(holes, seen, said, form, longest if length else None, self.presets)
            return forms.formed(self._answer(task, forms.bound(chosen, holes), question, seed, trace), form, chosen)
        task = understand.Ask(pixels=seen, question=said, length=longest)
        return self._answer(task, chosen, question, seed, trace)

    def describe(self, image: Picture, *, seed: int = 0, trace: bool = False, settings: Sequence[str] = ()) -> Answer:
        """A caption of a picture."""
        asked, length = self.parts.wording.describe, self.presets.caption
        return self.ask(image, asked, seed=seed, trace=trace, length=length, settings=settings)

    def infill_text(self, target: str, *, seed: int = 0, trace: bool = False, settings: Sequence[str] = ()) -> Answer:
        """A caption with every ``[mask]`` filled by one token."""
        task = understand.FillText(target=self._prompt(target))
        chosen = override(self.presets.fill(self.parts), settings)
        return self._answer(task, chosen, target, seed, trace)

    def ground(
        self, image: Picture, phrases: Sequence[str], *, steps: int = 1, seed: int = 0, settings: Sequence[str] = ()
    ) -> Grounding:
        """A box for every phrase, all in one pass of ``steps`` (1 to 4) steps; corners in pixels of the given picture."""
        if not 1 <= steps <= 4:
            raise ValueError(f"a box has four coordinates, so steps must be 1 to 4, got {steps}")
        picture = read_image(image)
        seen, placement = self.parts.look(picture), Placement(width=picture.width, height=picture.height)
        given = [phrases] if isinstance(phrases, str) else list(phrases)
        asked = tuple(self._prompt(p) for p in given)
        turns = [(p,) for p in asked] if self.parts.quirks.one_segment and asked else [asked]
        tasks = [ground.Ground(pixels=seen, phrases=turn) for turn in turns]
        self.parts.require(tasks[0].needs)
        chosen = override(self.presets.ground(self.parts, steps), settings)
        done = self.run([task.build(self.parts) for task in tasks], [seed] * len(tasks), chosen)
        found = [box for task, row in zip(tasks, done.rows, strict=True) for box in task.read(row, self.parts)]
        boxes = tuple(
            Box(phrase=p, **dict(zip(("x1", "y1", "x2", "y2"), placement.to_pixels(b), strict=True)))
            for p, b in zip(given, found, strict=True)
        )
        return Grounding(
            boxes=boxes, image_size=picture.size, seed=seed, seconds=done.seconds, settings=describe(chosen)
        )

    def converse(self, messages: Sequence[Message], *, seed: int = 0) -> Turn:
        """The next turn of a conversation in words and pictures; ``turn.message()`` goes on with it."""
        conversing.check(messages)
        for message in messages:
            self._prompt(message.text, empty=True)
        self.parts.require(conversing.NEEDS)
        began = time.perf_counter()
        turn = conversing.converse(self, messages, seed)
        settings = {"words": describe(self.presets.turn_words(self.parts))}
        return replace(turn, seconds=time.perf_counter() - began, settings=settings)

    def run(
        self, sequences: Sequence[Tokens], seeds: Sequence[int], sampler: Sampler, watch: Watch | None = None
    ) -> Done:
        """Decide everything that is open in some sequences, in one batch; row i follows from its own seed alone."""
        if self.through:
            return self.through.run(sequences, seeds, sampler, watch)
        began = time.perf_counter()
        done = decide(
            self.parts.net,
            sequences,
            seeds,
            sampler,
            device=self.device,
            features_per_image=self.parts.look_tokens,
            carry=self.parts.features.of(sequences, self.parts.net, self.device),
            watch=watch,
        )
        return replace(done, seconds=time.perf_counter() - began)  # pictures that had to be looked at included

    def tell(self, row: int, thought: Layout | Round) -> None:
        """What was thought on the way to picture ``row`` of a call, for whoever follows it (``through``)."""
        if self.through:
            self.through.tell(row, thought)

    def _draw(
        self, tasks: Sequence[Any], seeds: Sequence[int], sampler: Sampler, prompt: str, trace: bool
    ) -> list[Drawing]:
        """One picture a task; the same task with several seeds is built once."""
        self.parts.require(tasks[0].needs)
        known = {id(task): task.build(self.parts) for task in tasks}
        built = [known[id(task)] for task in tasks]
        frames: list[list[Image.Image]] = [[] for _ in tasks]

        def watch(shown: Shown) -> None:
            frames[shown.row].append(self.parts.canvas(*generate.picture_so_far(shown.sequence, "image")))

        done = self.run(built, seeds, sampler, watch if trace else None)
        settings = describe(sampler)
        return [
            Drawing(
                image=task.read(row, self.parts),
                prompt=prompt,
                seed=seed,
                seconds=done.seconds / len(seeds),
                settings=settings,
                trace=tuple(film),
                plan=task.plan,
            )
            for task, row, seed, film in zip(tasks, done.rows, seeds, frames, strict=True)
        ]

    def _thought(
        self, prompt: str, seeds: list[int], sampler: Sampler, think: Callable[[], list[list[Round]]]
    ) -> list[Drawing]:
        """The best of all tries for every seed."""
        began, n = time.perf_counter(), len(seeds)
        found = think()
        seconds, settings = (time.perf_counter() - began) / n, describe(sampler)
        return [
            Drawing(
                image=taken.image,
                prompt=prompt,
                seed=seed,
                seconds=seconds,
                settings=settings,
                plan=taken.plan,
                rounds=tuple(rounds),
            )
            for seed, rounds, taken in zip(seeds, found, map(reflecting.best, found), strict=True)
        ]

    def _no_trace(self, trace: bool) -> None:
        if trace:
            raise ValueError("a trace shows how one picture came about; leave out trace or reflect")

    def _answer(self, task: Any, sampler: Sampler, question: str, seed: int, trace: bool) -> Answer:
        self.parts.require(task.needs)
        built, most = task.build(self.parts), self.presets.context
        if len(built.ids) > most:
            raise ValueError(
                f"question and answer have {len(built.ids)} tokens, and the model reads {most}; ask for less at once"
            )
        return answer(self, task, built, sampler, question=question, seed=seed, trace=trace)

    def _prompt(self, text: str, *, empty: bool = False) -> str:
        if not text.strip() and not empty:
            raise ValueError('the prompt is empty; say what you want, for example "a red apple"')
        if len(text) > 20 * LONGEST_PROMPT or len(self.parts.text.encode(text)) > LONGEST_PROMPT:
            raise ValueError(f"the prompt is longer than {LONGEST_PROMPT} tokens; shorten it")
        return text


def _count(n: int) -> int:
    if not 1 <= n <= 256:
        raise ValueError(f"n must be 1 to 256, got {n}")
    return n
