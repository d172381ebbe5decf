"""Text models (LLaDA): prompt -> text, and gaps in a text -> text. Public idea: ``TextModel``, which ``unmask.load`` returns for them.

Sampler and network are those of pictures, without the generation branch. Attention is bidirectional over the whole sequence, prompt and
answer, as in training (Nie et al. 2025).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NoReturn

import torch

from unmask.checkpoints.elastic import Weights, WeightStorage
from unmask.checkpoints.lavida_o import read_json
from unmask.checkpoints.llada import survey_llada
from unmask.checkpoints.loading import load
from unmask.checkpoints.stream import CheckpointError
from unmask.grammars.answer_format import AnswerFormat, Slot
from unmask.pipeline.catalogue import for_network
from unmask.protocols import Denoiser, Task
from unmask.sampling.presets import llada_base, llada_instruct
from unmask.sampling.sampler import Sampler
from unmask.sequence import Sequence
from unmask.tasks.forms import bound, filled, formed
from unmask.tasks.results import Answer, answered
from unmask.tasks.running import Decoded, Executor, OnStep, answer, decide, device_of
from unmask.tasks.sampler_options import with_options
from unmask.tasks.understand import GAP
from unmask.tokens.build import PROMPT, Builder
from unmask.tokens.prompts import RELEASED
from unmask.tokens.text import BOS, EOS, EOT, MASK, TEXT_CONTROL, Text

_NEEDS = frozenset({"und", "text_head"})
_PICTURES = ("generate", "edit", "ground", "infill", "describe")


@dataclass(frozen=True, kw_only=True)
class TextParts:
    """``context``: longest sequence in tokens."""

    text: Text
    net: Denoiser
    context: int

    def builder(self) -> Builder:
        return Builder(text=self.text, wording=RELEASED, look_tokens=0)


@dataclass(frozen=True, kw_only=True)
class Reply:
    """A question in LLaDA's chat template, which is Llama 3's (spec 2.1); the answer has ``length`` tokens."""

    question: str
    length: int
    needs: ClassVar[frozenset[str]] = _NEEDS

    def build(self, tokens: TextParts) -> Sequence:
        text, b = tokens.text, tokens.builder()
        asked = (*b.header("user"), self.question.strip(), text[EOT])
        b.say("prompt", text[BOS], *asked, *b.header("assistant"))
        return b.write("answer", self.length).build(self.question)

    def read(self, sequence: Sequence, tokens: TextParts) -> str:
        return answered(sequence, tokens.text)


@dataclass(frozen=True, kw_only=True)
class FormedReply:
    """A ``Reply`` whose answer is constrained to a format of one slot."""

    question: str
    length: int
    form: AnswerFormat
    slots: tuple[Slot, ...]
    needs: ClassVar[frozenset[str]] = _NEEDS

    def build(self, tokens: TextParts) -> Sequence:
        self.slots[0].check(self.length)
        return Reply(question=self.question, length=self.length).build(tokens)

    def read(self, sequence: Sequence, tokens: TextParts) -> str:
        return filled(self.form, self.slots, sequence)


@dataclass(frozen=True, kw_only=True)
class Continue:
    """A text to continue without a template, for Base models."""

    prompt: str
    length: int
    needs: ClassVar[frozenset[str]] = _NEEDS

    def build(self, tokens: TextParts) -> Sequence:
        return tokens.builder().say("prompt", self.prompt).write("answer", self.length).build(self.prompt)

    def read(self, sequence: Sequence, tokens: TextParts) -> str:
        return answered(sequence, tokens.text)


@dataclass(frozen=True, kw_only=True)
class FillGaps:
    """A text in which every ``[mask]`` is a gap of one token; given words stay."""

    target: str
    needs: ClassVar[frozenset[str]] = _NEEDS

    def build(self, tokens: TextParts) -> Sequence:
        if GAP not in self.target:
            raise ValueError(f"no {GAP} in {self.target!r}; write one for every missing token")
        b = tokens.builder()
        # The token of a word includes the space before it, so no space is left before a gap.
        for piece in re.split(rf"\s*({re.escape(GAP)})", self.target):
            if piece == GAP:
                b.write("answer", 1)
            elif piece:
                b.say("given", piece)
        return b.build(self.target)

    def read(self, sequence: Sequence, tokens: TextParts) -> str:
        return tokens.text.decode(sequence.ids.tolist())


def load_text(folder: Path, *, device: str = "cpu", storage: WeightStorage | None = None) -> TextModel:
    """The model of a folder in LLaDA's layout: config.json, tokenizer.json, model*.safetensors. CheckpointError if they do not match."""
    weights = Weights(checkpoint=survey_llada(folder), device=device, storage=storage or WeightStorage())
    text = Text.load(folder / "tokenizer.json", TEXT_CONTROL)
    net, vq = weights.checkpoint.modules()
    if text.size > net.config.vocab_size:  # the embedding may have spare rows
        raise CheckpointError(f"{folder}: the tokenizer has {text.size} ids and the model {net.config.vocab_size}")
    if text[MASK] != net.mask_id:
        raise CheckpointError(f"{folder}: {MASK} is {text[MASK]} in the tokenizer and {net.mask_id} in config.json")
    context = int(read_json(folder / "config.json").get("max_sequence_length", 4096))
    load(weights, net, vq, _NEEDS)
    return TextModel(TextParts(text=text, net=net, context=context))


class TextModel:
    """A loaded text model. Every method checks its input first and raises ValueError. ``executor``: as in ``Model``."""

    def __init__(
        self,
        parts: TextParts,
        *,
        executor: Executor | None = None,
        change: Callable[[Sampler], Sampler] = lambda sampler: sampler,
    ) -> None:
        self.parts, self.executor, self.change = parts, executor, change

    def with_sampler(self, change: Callable[[Sampler], Sampler]) -> TextModel:
        """The same model with ``change`` applied to the preset of every task."""
        return TextModel(self.parts, executor=self.executor, change=for_network(change, self.parts.net))

    def __getattr__(self, name: str) -> NoReturn:
        if name in _PICTURES:
            raise ValueError(f"this is a text model, which cannot {name}; it takes a question or a text with {GAP}")
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    @property
    def device(self) -> torch.device:
        return device_of(self.parts.net)

    def ask(
        self,
        question: str,
        *,
        max_tokens: int = 128,
        seed: int = 0,
        trace: bool = False,
        steps: int | None = None,
        guidance_scale: float | None = None,
        temperature: float | None = None,
        settings: Items[str] = (),
        sampler: Sampler | None = None,
        form: AnswerFormat | None = None,
    ) -> Answer:
        """Answer a question in at most ``max_tokens`` tokens, with the chat template and the published settings of Instruct.

        ``form``: a JSON schema or a regex that the answer matches (``grammars.answer_format``); ``Answer.value`` is its parsed value ·
        ``steps``: of every block.
        """
        text = self.parts.text
        end = (text[EOT], text[EOS])
        preset = llada_instruct(null_id=text[MASK], drop=PROMPT, end=end, block=min(32, max(1, max_tokens)))
        chosen = sampler or self.change(preset)
        chosen = with_options(chosen, settings, steps, guidance_scale, temperature)
        if form is not None:
            return self._formed(question, max_tokens, form, chosen, seed, trace)
        return self._answer(Reply(question=question, length=max_tokens), chosen, question, seed, trace)

    def complete(
        self,
        prompt: str,
        *,
        max_tokens: int = 128,
        seed: int = 0,
        trace: bool = False,
        steps: int | None = None,
        guidance_scale: float | None = None,
        temperature: float | None = None,
        settings: Items[str] = (),
        sampler: Sampler | None = None,
    ) -> Answer:
        """Continue a text by ``max_tokens`` tokens, without a template, with the published settings of Base."""
        preset = llada_base(null_id=self.parts.text[MASK], drop=PROMPT, length=max(1, max_tokens))
        chosen = sampler or self.change(preset)
        chosen = with_options(chosen, settings, steps, guidance_scale, temperature)
        return self._answer(Continue(prompt=prompt, length=max_tokens), chosen, prompt, seed, trace)

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
        """A text with every ``[mask]`` replaced by one token, most confident first."""
        preset = llada_base(null_id=self.parts.text[MASK], drop=PROMPT, length=max(1, target.count(GAP)))
        chosen = with_options(self.change(preset), settings, steps, guidance_scale, temperature)
        return self._answer(FillGaps(target=target), chosen, target, seed, trace)

    def run(
        self, sequences: Items[Sequence], seeds: Items[int], sampler: Sampler, on_step: OnStep | None = None
    ) -> Decoded:
        """Unmask all masked tokens of some sequences, in one batch; row i depends on its own seed alone."""
        if self.executor:
            return self.executor.run(sequences, seeds, sampler, on_step)
        return decide(self.parts.net, sequences, seeds, sampler, device=self.device, on_step=on_step)

    def _formed(
        self, question: str, length: int, form: AnswerFormat, sampler: Sampler, seed: int, trace: bool
    ) -> Answer:
        slots = tuple(form.slots(self.parts.text, RELEASED))
        task = FormedReply(question=question, length=length, form=form, slots=slots)
        return formed(self._answer(task, bound(sampler, slots), question, seed, trace), form, sampler)

    def _answer(self, task: Task[TextParts, str], sampler: Sampler, question: str, seed: int, trace: bool) -> Answer:
        if not question.strip():
            raise ValueError("the text is empty; give a question or a text")
        if (length := getattr(task, "length", 1)) < 1:
            raise ValueError(f"max_tokens must be at least 1, got {length}")
        built = task.build(self.parts)
        if len(built.ids) > self.parts.context:
            raise ValueError(
                f"prompt and answer have {len(built.ids)} tokens, more than the model's context of {self.parts.context}; "
                "shorten the prompt or lower max_tokens"
            )
        return answer(self, task, built, sampler, question=question, seed=seed, trace=trace)
