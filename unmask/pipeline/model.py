"""The user's model. Public idea: ``m = unmask.load("mini"); m.generate("a dog left of a cat")``.

Results are batch-invariant: picture i of a call has the seed ``seed + i`` and its own random numbers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch

from unmask.grammars.answer_format import AnswerFormat
from unmask.pipeline.asking import Asked, answered
from unmask.pipeline.catalogue import for_network
from unmask.pipeline.drawing import as_asked, best_of, count_of, draw, further, labelled, layouts_of, several, used_by
from unmask.pipeline.quirks import chosen as chosen_quirks
from unmask.sampling.fast import Fast
from unmask.sampling.sampler import Sampler
from unmask.sequence import Sequence as Tokens
from unmask.tasks import (
    conversing,
    edit,
    generate,
    ground,
    infill,
    planning,
    reflecting,
    revising,
    understand,
)
from unmask.tasks.arguments import checked
from unmask.tasks.conversing import Message, Turn
from unmask.tasks.drafts import expanded
from unmask.tasks.lengths import Extent
from unmask.tasks.live import Live
from unmask.tasks.own import OWN
from unmask.tasks.parts import Parts, Presets
from unmask.tasks.reflecting import Thinking
from unmask.tasks.results import Answer, Attempt, Box, Drawing, Drawings, Grounding, describe
from unmask.tasks.running import Decoded, Executor, OnStep, answer, check_context, decide
from unmask.tasks.sampler_options import with_options
from unmask.tasks.speeds import speed_of
from unmask.tokens.layouts import Layout
from unmask.tokens.pictures import ImageError, Placement, read_image
from unmask.tokens.prompts import Conditions
from unmask.tokens.sources import Picture

LONGEST_PROMPT = 400  # tokens; far longer than any prompt that the embedded model was trained on


class Model:
    """A loaded model. Every method checks its input first and raises ValueError (ImageError for pictures)

    ``executor``: decodes in place of the model's own network, for example an engine that many calls share; None: the network itself.
    """

    def __init__(self, parts: Parts, presets: Presets = OWN, *, executor: Executor | None = None) -> None:
        self.parts, self.presets, self.executor = parts, presets, executor

    @property
    def device(self) -> torch.device:
        return torch.device(self.parts.weights.device) if self.parts.weights else self.parts.net.embed.weight.device

    def with_sampler(self, change: Callable[[Sampler], Sampler]) -> Model:
        """The same model with ``change`` applied to every preset: ``model.with_sampler(lambda sampler: remdm(sampler, eta=0.2))``."""
        return Model(self.parts, self.presets.with_sampler(for_network(change, self.parts.net)), executor=self.executor)

    @checked
    def with_speed(self, speed: str | Fast) -> Model:
        """The same model at another speed: ``exact``, ``fast``, or parts of fast mode such as ``refresh,steps=0.25`` (``tasks.speeds``).
        Results name the parts that acted in ``approximate``. Samplers and options of a call take precedence.
        """
        return Model(self.parts, self.presets.with_speed(speed_of(speed)), executor=self.executor)

    @checked
    def with_quirks(self, choice: str) -> Model:
        """The same model with these deviations of its family's released scripts: usual, released or none (``pipeline.quirks``)."""
        return Model(chosen_quirks(self.parts, choice), self.presets, executor=self.executor)

    @checked
    def generate(
        self,
        prompt: str | Sequence[str],
        *,
        n: int = 1,
        seed: int = 0,
        size: tuple[int, int] | None = None,
        conditions: Conditions | None = None,
        plan: bool | Layout | None = None,
        attempts: int | None = None,
        trace: bool = False,
        steps: int | None = None,
        guidance_scale: float | None = None,
        temperature: float | None = None,
        settings: Sequence[str] = (),
        sampler: Sampler | None = None,
        live: Live | None = None,
    ) -> Drawings:
        """``n`` pictures of a prompt, or of each of several prompts in their order; picture j of every prompt has the seed ``seed + j``.

        ``size``: width and height in pixels, for models that draw any shape · ``plan``: generate a layout first (True), do not (False), or
        use this one · ``attempts``: best-of-N: generate up to this many pictures until the model's own critique accepts one; all of them
        are in ``Drawing.attempts`` · None for both: ``presets.plans`` and ``presets.attempts``, with one attempt if there is a trace ·
        ``steps``, ``guidance_scale``, ``temperature``: of the sampler (``tasks.sampler_options``) · ``settings``: any other field of it by
        path, for example ``["schedule.shift=3"]`` · ``live``: changes the one picture while it is drawn (``tasks.live``).
        """
        if not isinstance(prompt, str):
            alike = partial(self.generate, n=n, seed=seed, size=size, conditions=conditions, plan=plan)
            alike = partial(alike, attempts=attempts, trace=trace, steps=steps, guidance_scale=guidance_scale)
            more = partial(alike, temperature=temperature, settings=settings, sampler=sampler, live=live)
            return Drawings(drawing for one in several(prompt, self._prompt) for drawing in more(one))
        text, seeds = self._prompt(prompt), [seed + i for i in range(count_of(n, live))]
        warnings = self.parts.warnings(prompt, needs_object=True)
        preset = sampler or self.presets.generate(self.parts)
        chosen = with_options(preset, settings, steps, guidance_scale, temperature)
        thinking = as_asked(self.presets, plan, attempts, trace or not self.parts.names_object(prompt), size, live)
        if thinking.attempts > 1:
            self._no_trace(trace)
            self.presets.refuse("critique")
            self.parts.require(reflecting.NEEDS)
            think = partial(reflecting.think, self, [text] * n, seeds, thinking, chosen, conditions)
            return labelled(self, best_of(prompt, seeds, chosen, think, warnings), used_by(chosen, thinking, self))
        plans = layouts_of(self, text, seeds, thinking, conditions)
        tasks = [generate.Generate(prompt=text, conditions=conditions, plan=layout, size=size) for layout in plans]
        begun = live and live.begin(self.parts, self._prompt, tasks[0], made=thinking.plan)
        drawn = draw(self, tasks, seeds, chosen, prompt, trace, warnings, begun)
        return labelled(self, drawn, used_by(chosen, thinking, self))

    @checked
    def edit(
        self,
        image: Picture,
        instruction: str,
        *,
        n: int = 1,
        seed: int = 0,
        kind: str = "",
        reference: Picture | None = None,
        plan: bool | Layout = False,
        attempts: int = 1,
        trace: bool = False,
        steps: int | None = None,
        guidance_scale: float | None = None,
        temperature: float | None = None,
        settings: Sequence[str] = (),
        sampler: Sampler | None = None,
    ) -> Drawings:
        """``n`` versions of a picture, changed as the instruction says, in the model's own size.

        ``kind``: of edit, such as ``canny_control``, for models with several; some read a second picture (``reference``) · ``plan``:
        predict first what changes and where (True), or use this layout · ``attempts``: best-of-N: edit up to this many times until the
        model's own critique of before and after accepts one · the sampler's options and settings as in ``generate``.
        """
        picture, more = read_image(image), further(self.parts, kind, reference, attempts)
        text, seeds = self._prompt(instruction), [seed + i for i in range(count_of(n))]
        options, warnings = (settings, steps, guidance_scale, temperature), self.parts.warnings(instruction)
        chosen = with_options(sampler or self.presets.edit(self.parts), *options)
        thinking = Thinking(plan=plan is True, layout=plan if isinstance(plan, Layout) else None, attempts=attempts)
        used = used_by(chosen, thinking, self, edits=True)
        if thinking.attempts > 1:
            self._no_trace(trace)
            self.presets.refuse("edit", "critique")
            self.parts.require(revising.NEEDS)
            retry_sampler = with_options(sampler or self.presets.edit_again(self.parts), *options)
            think = partial(revising.revise, self, [picture] * n, [text] * n, seeds, thinking, chosen, retry_sampler)
            used |= {"edit_again": retry_sampler}
            return labelled(self, best_of(instruction, seeds, chosen, think, warnings), used)
        (pixels, _), views, layout = self.parts.preprocess(picture), self.parts.image_views(picture), thinking.layout
        if thinking.plan:
            self.parts.require(planning.PlanEdit.needs)
            (layout,) = revising.layouts(self, [(views, text)], [0])
            self.emit(0, layout)
        task = edit.Edit(pixels=pixels, instruction=text, look=views, plan=layout, kind=kind, references=more)
        return labelled(self, draw(self, [task] * n, seeds, chosen, instruction, trace, warnings), used)

    @checked
    def infill(
        self,
        image: Picture,
        region: Picture,
        *,
        prompt: str = "",
        seed: int = 0,
        trace: bool = False,
        steps: int | None = None,
        guidance_scale: float | None = None,
        temperature: float | None = None,
        settings: Sequence[str] = (),
    ) -> Drawing:
        """The picture with the white part of ``region`` (same size) generated anew, so that the whole shows ``prompt``."""
        self.presets.refuse("infill")
        chosen = with_options(self.presets.generate(self.parts), settings, steps, guidance_scale, temperature)
        picture, painted = read_image(image), read_image(region)
        if painted.size != picture.size:
            raise ImageError(f"the region is {painted.size} and the picture {picture.size}; give both the same size")
        pixels, warnings = self.parts.preprocess(picture)[0], self.parts.warnings(prompt)
        task = infill.Infill(pixels=pixels, region=self.parts.region(painted), prompt=self._prompt(prompt, empty=True))
        return labelled(self, draw(self, [task], [seed], chosen, prompt, trace, warnings), {"generate": chosen})[0]

    @checked
    def ask(
        self,
        image: Picture | None,
        question: str,
        *,
        seed: int = 0,
        trace: bool = False,
        max_tokens: int | None = None,
        length: int | None = None,
        stop: Sequence[str] = (),
        form: AnswerFormat | None = None,
        draft: str = "",
        steps: int | None = None,
        guidance_scale: float | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        settings: Sequence[str] = (),
    ) -> Answer:
        """Answer a question about a picture; None: without one, for models that answer such questions.

        ``max_tokens``: most tokens of the answer, which ends earlier at the model's end of turn; the model's context bounds it (None:
        ``length``) · ``length``: masked tokens that are decoded at a time (None: the model's preset); the answer depends on it, but not on
        ``max_tokens`` (``tasks.lengths``) · ``stop``: the text ends before the first of these strings · ``form``: a JSON schema or a
        regex that the answer matches (``grammars.answer_format``); ``Answer.value`` is its parsed value · ``draft``: the answer with gaps
        ``[mask]``, ``[mask:N]`` or, of models with slots, ``[slot:N]``, whose words stay (``tasks.drafts``).
        """
        canvas = self.parts.rows.canvas(self.presets.answer if length is None else length, max_tokens)
        extent = Extent(length=canvas, max_tokens=max_tokens, stop=tuple(stop))
        views, text = self.parts.question_views(image), self._prompt(question)
        chosen = with_options(self.presets.ask(self.parts), settings, steps, guidance_scale, temperature, top_p)
        asked = Asked(question=question, read=text, views=views, seed=seed, trace=trace, form=form, draft=draft)
        made = answered(self, asked, chosen, length, extent, self._prompt)
        approximate = self.presets.approximate(self.parts, {"ask": chosen})
        return replace(made, warnings=self.parts.warnings(question), approximate=approximate)

    @checked
    def describe(
        self,
        image: Picture,
        *,
        seed: int = 0,
        trace: bool = False,
        max_tokens: int | None = None,
        length: int | None = None,
        stop: Sequence[str] = (),
        steps: int | None = None,
        guidance_scale: float | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        settings: Sequence[str] = (),
    ) -> Answer:
        """A caption of a picture. The options are those of ``ask``."""
        return self.ask(
            image,
            self.parts.wording.describe,
            seed=seed,
            trace=trace,
            max_tokens=max_tokens,
            length=self.presets.caption if length is None else length,
            stop=stop,
            steps=steps,
            guidance_scale=guidance_scale,
            temperature=temperature,
            top_p=top_p,
            settings=settings,
        )

    @checked
    def infill_text(
        self,
        target: str,
        *,
        seed: int = 0,
        trace: bool = False,
        steps: int | None = None,
        guidance_scale: float | None = None,
        temperature: float | None = None,
        settings: Sequence[str] = (),
    ) -> Answer:
        """A caption with every ``[mask]`` replaced by one token, and every ``[mask:N]`` by N."""
        task = understand.FillText(target=self._prompt(expanded(target)))
        chosen = with_options(self.presets.fill(self.parts), settings, steps, guidance_scale, temperature)
        self.parts.require(task.needs)
        built = task.build(self.parts)
        check_context(built, self.presets.context)
        made = answer(self, task, built, chosen, question=target, seed=seed, trace=trace)
        approximate = self.presets.approximate(self.parts, {"fill": chosen})
        warnings = self.parts.warnings(expanded(target).replace(understand.GAP, " "))
        return replace(made, warnings=warnings, approximate=approximate)

    @checked
    def ground(
        self,
        image: Picture,
        phrases: str | Sequence[str],
        *,
        separately: bool = False,
        steps: int | None = None,
        seed: int = 0,
        settings: Sequence[str] = (),
    ) -> Grounding:
        """A box for every phrase, all in one pass; corners in pixels of the given picture. ``steps``: 1 (default) to 4.

        ``separately``: a sequence of its own for every phrase. It changes the boxes of models whose phrases attend to each other
        (``tasks.ground.Ground``).
        """
        if steps is not None and not 1 <= steps <= 4:
            raise ValueError(f"steps must be 1 to 4, the coordinates of a box; got {steps}")
        picture = read_image(image)
        views, placement = self.parts.image_views(picture), Placement(width=picture.width, height=picture.height)
        given = [phrases] if isinstance(phrases, str) else list(phrases)
        checked = tuple(self._prompt(p) for p in given)
        turns = [(p,) for p in checked] if separately and checked else [checked]
        tasks = [ground.Ground(pixels=views, phrases=turn) for turn in turns]
        self.parts.require(tasks[0].needs)
        chosen = with_options(self.presets.ground(self.parts, steps or 1), settings, steps)
        done = self.run([task.build(self.parts) for task in tasks], [seed] * len(tasks), chosen)
        found = [box for task, row in zip(tasks, done.rows, strict=True) for box in task.read(row, self.parts)]
        boxes = tuple(
            Box(phrase=p, **dict(zip(("x1", "y1", "x2", "y2"), placement.to_pixels(b), strict=True)))
            for p, b in zip(given, found, strict=True)
        )
        return Grounding(
            boxes=boxes,
            image_size=picture.size,
            seed=seed,
            seconds=done.seconds,
            settings=describe(chosen),
            image=picture,
            warnings=self.parts.warnings("\n".join(given)),
        )

    @checked
    def converse(
        self,
        messages: Sequence[Message],
        *,
        seed: int = 0,
        max_tokens: int | None = None,
        stop: Sequence[str] = (),
        steps: int | None = None,
        guidance_scale: float | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
    ) -> Turn:
        """The next turn of a conversation in words and pictures; append ``turn.message()`` to continue.

        ``messages``: of the system, the user and the assistant; a system message at the beginning takes the place of the model's own ·
        ``max_tokens``, ``stop``, ``temperature``, ``top_p``: of the words, as in ``ask`` (the layout of a picture does not count as words)
        · ``steps``, ``guidance_scale``: of the pictures.
        """
        conversing.check(messages)
        extent = Extent(length=self.presets.turn, max_tokens=max_tokens, stop=tuple(stop))
        said = [
            message if message.role == "system" else replace(message, text=self._prompt(message.text, empty=True))
            for message in messages
        ]
        self.presets.turn_words(self.parts)  # a model that holds no such conversations says so
        self.parts.require(conversing.NEEDS)
        began, preset = time.perf_counter(), self.presets
        presets = replace(
            preset,
            generate=lambda parts: with_options(preset.generate(parts), (), steps, guidance_scale),
            edit=lambda parts: with_options(preset.edit(parts), (), steps, guidance_scale),
            turn_words=lambda parts: with_options(preset.turn_words(parts), (), temperature=temperature, top_p=top_p),
        )
        turn = conversing.converse(Model(self.parts, presets, executor=self.executor), said, seed, extent)
        settings = {"words": describe(presets.turn_words(self.parts))}
        warnings = (*self.parts.warnings(messages[-1].text), *conversing.warnings(messages, self.parts))
        return replace(turn, seconds=time.perf_counter() - began, settings=settings, warnings=warnings)

    def run(
        self, sequences: Sequence[Tokens], seeds: Sequence[int], sampler: Sampler, on_step: OnStep | None = None
    ) -> Decoded:
        """Unmask all masked tokens of some sequences, in one batch; row i depends on its own seed alone."""
        if self.executor:
            return self.executor.run(sequences, seeds, sampler, on_step)
        began = time.perf_counter()
        known = self.parts.features.known(sequences, self.parts.net, self.device)
        done = decide(self.parts.net, known, seeds, sampler, device=self.device, on_step=on_step)
        return replace(done, seconds=time.perf_counter() - began)  # includes encoding the pictures

    def emit(self, row: int, event: Layout | Attempt) -> None:
        """Hand a layout or a round of picture ``row`` to the executor, which may pass it on to whoever follows the call."""
        if self.executor:
            self.executor.emit(row, event)

    def _no_trace(self, trace: bool) -> None:
        if trace:
            raise ValueError("trace works with one attempt only; leave out trace or attempts")

    def _prompt(self, text: str, *, empty: bool = False) -> str:
        if len(text) > 20 * LONGEST_PROMPT or len(self.parts.text.encode(text)) > LONGEST_PROMPT:
            raise ValueError(f"the prompt is longer than {LONGEST_PROMPT} tokens; shorten it")
        if not (read := self.parts.wording.read(text)).strip() and not empty:
            raise ValueError('the prompt is empty; give one, for example "a red apple"')
        return read
