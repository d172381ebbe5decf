"""Text models (LLaDA, Dream): prompt -> text, and gaps in a text -> text.

Public idea: ``TextModel``, which ``unmask.load`` returns for them.

Sampler and network are those of pictures, without the generation branch. Attention is bidirectional over the whole sequence, prompt and
answer, as in training (Nie et al. 2025).
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar, NoReturn

import torch

from unmask.grammars.answer_format import AnswerFormat, Slot
from unmask.pipeline.catalogue import for_network
from unmask.pipeline.quirks import refuse_quirks
from unmask.pipeline.text_family import LLADA, TextFamily
from unmask.pipeline.text_gaps import FillGaps
from unmask.protocols import Denoiser
from unmask.sampling.fast import EXACT, Fast, acting
from unmask.sampling.sampler import Sampler
from unmask.sampling.stopping import Never
from unmask.sequence import Sequence
from unmask.tasks.arguments import checked
from unmask.tasks.conversing import Message, Turn, check, check_each
from unmask.tasks.drafts import Drafted, draft_length, gaps_in, refuse_beside
from unmask.tasks.forms import Request, answer_formed, filled
from unmask.tasks.lengths import Extent, read_words
from unmask.tasks.results import Answer, answered, describe
from unmask.tasks.running import (
    Decoded,
    Executor,
    OnStep,
    answer,
    answer_within,
    check_context,
    decide,
    device_of,
    follow,
)
from unmask.tasks.sampler_options import with_options
from unmask.tasks.speeds import speed_of
from unmask.tasks.understand import GAP
from unmask.tokens.build import Builder
from unmask.tokens.prompts import RELEASED
from unmask.tokens.text import Slots, Text

_NEEDS = frozenset({"und", "text_head"})
_ROLES = ("system", "user", "assistant")
Prompt = str | tuple[int, ...]
"""A text, or its token ids."""
_PICTURES = ("generate", "edit", "ground", "infill", "describe")


@dataclass(frozen=True, kw_only=True)
class TextParts:
    """``context``: longest sequence in tokens · ``family``: its chat template and published samplers."""

    text: Text
    net: Denoiser
    context: int
    family: TextFamily = LLADA

    @cached_property
    def slots(self) -> Slots | None:
        """The ids of slots, where the tokenizer has them."""
        return Slots.named(self.text)

    def builder(self) -> Builder:
        return Builder(text=self.text, wording=RELEASED, look_tokens=0)


@dataclass(frozen=True, kw_only=True)
class Reply:
    """A question in the chat template of the model's family; the answer has ``length`` tokens. ``messages``: those before the question."""

    question: str
    length: int
    messages: tuple[Message, ...] = ()
    needs: ClassVar[frozenset[str]] = _NEEDS

    def build(self, tokens: TextParts) -> Sequence:
        messages = (*self.messages, Message(role="user", text=self.question))
        return tokens.family.template.conversation(tokens.builder(), messages, self.length)

    def read(self, sequence: Sequence, tokens: TextParts) -> str:
        return answered(sequence, tokens.text)


@dataclass(frozen=True, kw_only=True)
class FormedReply:
    """A ``Reply`` whose answer is constrained to a format of one slot."""

    reply: Reply
    form: AnswerFormat
    slots: tuple[Slot, ...]
    needs: ClassVar[frozenset[str]] = _NEEDS

    def build(self, tokens: TextParts) -> Sequence:
        return self.reply.build(tokens)

    def read(self, sequence: Sequence, tokens: TextParts) -> str:
        return filled(self.form, self.slots, sequence)


@dataclass(frozen=True, kw_only=True)
class Continue:
    """A text, or its token ids, to continue without a template, for Base models. ``suffix``: text after the continuation."""

    prompt: Prompt
    length: int
    suffix: str = ""
    needs: ClassVar[frozenset[str]] = _NEEDS

    def build(self, tokens: TextParts) -> Sequence:
        given = [self.prompt] if isinstance(self.prompt, str) else self.prompt
        before = tokens.family.template.before(tokens.text)
        b = tokens.builder().say("prompt", *before, *given).write("answer", self.length)
        row = (b.say("given", self.suffix) if self.suffix else b).build(tokens.text.as_text(self.prompt))
        return tokens.family.template.row(row)

    def read(self, sequence: Sequence, tokens: TextParts) -> str:
        return answered(sequence, tokens.text)


class TextModel:
    """A loaded text model. Every method checks its input first and raises ValueError. ``executor``: as in ``Model``."""

    def __init__(
        self,
        parts: TextParts,
        *,
        executor: Executor | None = None,
        change: Callable[[Sampler], Sampler] = lambda sampler: sampler,
        fast: Fast = EXACT,
    ) -> None:
        self.parts, self.executor, self.change, self.fast = parts, executor, change, fast

    def with_sampler(self, change: Callable[[Sampler], Sampler]) -> TextModel:
        """The same model with ``change`` applied to the preset of every task."""
        return TextModel(self.parts, executor=self.executor, change=for_network(change, self.parts.net), fast=self.fast)

    @checked
    def with_speed(self, speed: str | Fast) -> TextModel:
        """The same model at another speed, as ``Model.with_speed``."""
        return TextModel(self.parts, executor=self.executor, change=self.change, fast=speed_of(speed))

    @checked
    def with_quirks(self, choice: str) -> TextModel:
        """The same model: text models have no deviations to choose. ValueError for any choice but "usual"."""
        refuse_quirks(choice, None)
        return self

    def __getattr__(self, name: str) -> NoReturn:
        if name in _PICTURES:
            raise ValueError(f"this is a text model, which cannot {name}; it takes a question or a text with {GAP}")
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    @property
    def device(self) -> torch.device:
        return device_of(self.parts.net)

    @checked
    def ask(
        self,
        question: str,
        *,
        messages: Items[Message] = (),
        max_tokens: int | None = None,
        length: int | None = None,
        stop: Items[str] = (),
        seed: int = 0,
        trace: bool = False,
        steps: int | None = None,
        guidance_scale: float | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        settings: Items[str] = (),
        sampler: Sampler | None = None,
        form: AnswerFormat | None = None,
        draft: str = "",
    ) -> Answer:
        """Answer a question with the chat template and the published settings of the model's family.

        ``messages``: what was said before the question, by the system, the user and the assistant · ``max_tokens``: most tokens of the
        answer, which ends earlier at the model's end of turn; the model's context bounds it (None: ``length``) · ``length``: masked tokens
        that are decoded at a time (LLaDA: in blocks of 32); the answer depends on it, but not on ``max_tokens`` (``tasks.lengths``) ·
        ``stop``: the text ends before the first of these strings · ``form``: a JSON schema or a regex that the answer matches
        (``grammars.answer_format``); ``Answer.value`` is its parsed value · ``draft``: the answer with gaps (``tasks.drafts``) ·
        ``steps``: of every block.
        """
        family = self.parts.family
        extent = Extent(length=family.length if length is None else length, max_tokens=max_tokens, stop=tuple(stop))
        _check_texts(messages)
        preset = family.chat(self.parts.text, extent.length)
        chosen = with_options(sampler or self._changed(preset), settings, steps, guidance_scale, temperature, top_p)
        reply = Reply(question=_given(question), length=extent.length, messages=tuple(messages))
        if draft:
            refuse_beside(max_tokens, stop, form)
            if length is None:
                room = self.parts.context - len(replace(reply, length=0).build(self.parts).ids)
                reply = replace(reply, length=max(draft_length(draft, self.parts), min(extent.length, room)))
            return self._labelled(self._drafted(reply, draft, chosen, seed, trace), preset, chosen)
        if form is not None:
            return self._labelled(self._formed(reply, form, chosen, extent, seed, trace), preset, chosen)
        return self._labelled(self._written(reply, chosen, extent, question, seed, trace), preset, chosen)

    @checked
    def converse(
        self,
        messages: Items[Message],
        *,
        seed: int = 0,
        max_tokens: int | None = None,
        stop: Items[str] = (),
        steps: int | None = None,
        guidance_scale: float | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
    ) -> Turn:
        """The next turn of a conversation; append ``turn.message()`` to continue. The options are those of ``ask``.

        ``messages``: of the system, the user and the assistant; the last one is from the user. ValueError for a conversation that is
        longer than the model's context.
        """
        check(messages, _ROLES)
        _check_texts(messages)
        said = self.ask(
            messages[-1].text,
            messages=messages[:-1],
            max_tokens=max_tokens,
            stop=stop,
            seed=seed,
            steps=steps,
            guidance_scale=guidance_scale,
            temperature=temperature,
            top_p=top_p,
        )
        return Turn(
            parts=(said.text,) if said.text else (),
            seed=seed,
            seconds=said.seconds,
            settings={"words": said.settings},
            finish_reason=said.finish_reason,
            approximate=said.approximate,
        )

    @checked
    def complete(
        self,
        prompt: Prompt,
        *,
        suffix: str = "",
        max_tokens: int | None = None,
        length: int | None = None,
        stop: Items[str] = (),
        seed: int = 0,
        trace: bool = False,
        steps: int | None = None,
        guidance_scale: float | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        settings: Items[str] = (),
        sampler: Sampler | None = None,
    ) -> Answer:
        """Continue a text, without a template, with the published settings of base models. The options are those of ``ask``; a canvas of
        ``length`` tokens is one block.

        ``prompt``: a text or its token ids · ``suffix``: text after the continuation, which then has one canvas of ``max_tokens`` tokens,
        or of as many as fit into the context.
        """
        question, family = self._checked(prompt), self.parts.family
        if suffix:
            wanted = length or max_tokens or family.length
            beside = len(Continue(prompt=prompt, length=0, suffix=suffix).build(self.parts).ids)
            length = max(1, min(wanted, self.parts.context - beside))
        extent = Extent(length=family.length if length is None else length, max_tokens=max_tokens, stop=tuple(stop))
        preset = family.base(self.parts.text, extent.length)
        chosen = with_options(sampler or self._changed(preset), settings, steps, guidance_scale, temperature, top_p)
        task = Continue(prompt=prompt, length=extent.length, suffix=suffix)
        if not suffix:
            return self._labelled(self._written(task, chosen, extent, question, seed, trace), preset, chosen)
        return self._labelled(self._inserted(task, chosen, extent, question, seed, trace), preset, chosen)

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
        settings: Items[str] = (),
    ) -> Answer:
        """A text with every ``[mask]`` replaced by one token, ``[mask:N]`` by N, and ``[slot:N]`` by up to N, of models with slots."""
        preset = self.parts.family.fill(self.parts.text, max(1, gaps_in(target)))
        chosen = with_options(self._changed(preset), settings, steps, guidance_scale, temperature)
        task = FillGaps(target=_given(target))
        built = task.build(self.parts)
        check_context(built, self.parts.context)
        made = answer(self, task, built, chosen, question=target, seed=seed, trace=trace)
        return self._labelled(made, preset, chosen)

    def run(
        self, sequences: Items[Sequence], seeds: Items[int], sampler: Sampler, on_step: OnStep | None = None
    ) -> Decoded:
        """Unmask all masked tokens of some sequences, in one batch; row i depends on its own seed alone."""
        if self.executor:
            return self.executor.run(sequences, seeds, sampler, on_step)
        return decide(self.parts.net, sequences, seeds, sampler, device=self.device, on_step=on_step)

    def _changed(self, preset: Sampler) -> Sampler:
        """A preset at the model's speed, and then with its change."""
        return self.change(self.fast.text(preset))

    def _labelled(self, made: Answer, preset: Sampler, final: Sampler) -> Answer:
        """The answer with the parts of fast mode that its sampler has."""
        return replace(made, approximate=acting(self.fast.text, self.change(preset), final))

    def _formed(
        self, reply: Reply, form: AnswerFormat, sampler: Sampler, extent: Extent, seed: int, trace: bool
    ) -> Answer:
        slots = tuple(form.slots(self.parts.text, RELEASED))

        def task(lengths: tuple[int, ...]) -> FormedReply:
            return FormedReply(reply=replace(reply, length=lengths[0]), form=form, slots=slots)

        request = Request(slots=slots, form=form, extent=extent, context=self.parts.context)
        return answer_formed(self, task, sampler, request, question=reply.question, seed=seed, trace=trace)

    def _drafted(self, reply: Reply, draft: str, sampler: Sampler, seed: int, trace: bool) -> Answer:
        task = Drafted(ask=reply, draft=draft)
        built = task.build(self.parts)
        check_context(built, self.parts.context)
        whole = replace(sampler, stopping=Never())  # an end of turn before the draft's last words ends nothing
        return answer(self, task, built, whole, question=reply.question, seed=seed, trace=trace)

    def _inserted(
        self, task: Continue, sampler: Sampler, extent: Extent, question: str, seed: int, trace: bool
    ) -> Answer:
        built = task.build(self.parts)
        check_context(built, self.parts.context)
        done = follow(self, built, seed, sampler, trace=trace)
        (span,) = (s for s in built.spans if s.name == "answer")
        words = read_words(done.row.ids[span.start : span.stop].tolist(), self.parts.text, extent)
        said = Answer(text=words.text, question=question, seed=seed, seconds=done.seconds, settings=describe(sampler))
        return replace(said, trace=done.trace, finish_reason=words.finish_reason)

    def _checked(self, prompt: Prompt) -> str:
        """A prompt as text. ValueError for an empty one and for ids that are not in the vocabulary."""
        if isinstance(prompt, str):
            return _given(prompt)
        if wrong := [i for i in prompt if not 0 <= i < self.parts.text.size]:
            raise ValueError(
                f"token id {wrong[0]} is not in the vocabulary of {self.parts.text.size} ids; check the tokenizer"
            )
        if not prompt:
            raise ValueError("the prompt has no tokens; give at least one")
        return self.parts.text.as_text(prompt)

    def _written(
        self, task: Reply | Continue, sampler: Sampler, extent: Extent, question: str, seed: int, trace: bool
    ) -> Answer:
        given = {"context": self.parts.context, "question": question, "seed": seed, "trace": trace}
        return answer_within(self, task.build(self.parts), sampler, extent, **given)


def _given(text: str) -> str:
    if not text.strip():
        raise ValueError("the text is empty; give a question or a text")
    return text


def _check_texts(messages: Items[Message]) -> None:
    check_each(messages, _ROLES)
    for number, message in enumerate(messages, 1):
        if message.images:
            raise ValueError(f"message {number} has pictures, and this is a text model; leave them out")
