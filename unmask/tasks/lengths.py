"""The length of a text answer: where it ends, and how many masked tokens are decoded for it.

Public idea: ``Extent`` is what a caller allows; ``written(run, sequence, ...)`` decodes such a text; ``read_words(ids, ...)`` cuts it.

A masked model reads its masked tokens too, so an answer depends on how many there are: the *canvas*. Its length is a preset of the model,
never ``max_tokens``. If a canvas fills up without an end of turn and ``max_tokens`` allows more, another canvas is appended (the
semi-autoregressive decoding of LLaDA, Nie et al. 2025). So an answer at a lower ``max_tokens`` is the beginning of the one at a higher.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import dataclass, replace

from unmask.protocols import Bounded, Correcting
from unmask.rng import key
from unmask.sampling.blocks import ByOrder
from unmask.sampling.sampler import Sampler
from unmask.sampling.stopping import Until
from unmask.sequence import Sequence
from unmask.tasks.results import FinishReason
from unmask.tokens.text import Text
from unmask.tokens.turns import extended

Run = Callable[[Sequence, int, Sampler], Sequence]  # (sequence, seed, sampler) -> the sequence with nothing masked


@dataclass(frozen=True, kw_only=True)
class Extent:
    """``length``: tokens of a canvas · ``max_tokens``: most tokens of the answer; None: one canvas · ``stop``: the text ends before the
    first of these strings. ValueError for a length or a maximum below 1 and for an empty stop string.
    """

    length: int
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, got {self.max_tokens}")
        if self.length < 1:
            raise ValueError(f"length must be at least 1, got {self.length}")
        if "" in self.stop:
            raise ValueError("a stop string is empty; leave it out")

    @property
    def limit(self) -> int:
        return self.length if self.max_tokens is None else self.max_tokens


@dataclass(frozen=True, kw_only=True)
class Words:
    """What the ids of an answer say. ``tokens``: how many of them, without the end of turn · ``finish_reason``: "length" if the text was
    cut off by ``max_tokens`` or by the model's context, otherwise "stop" · ``cut``: whether that or a stop string cut it off.
    """

    text: str
    tokens: int
    finish_reason: FinishReason
    cut: bool = False


def read_words(ids: Items[int], text: Text, extent: Extent) -> Words:
    """The text up to the end of turn, the first stop string, or ``max_tokens`` tokens, whichever comes first."""
    ends = text.ends
    ended = next((n for n, i in enumerate(ids) if i in ends), None)
    kept = ids[: extent.limit if ended is None else min(ended, extent.limit)]
    said = text.decode(kept)
    stopped = _before_stop(said, extent.stop)
    if stopped is not None:
        return Words(text=stopped, tokens=len(kept), finish_reason="stop", cut=True)
    if ended is not None and ended <= extent.limit:
        return Words(text=said, tokens=len(kept), finish_reason="stop")
    return Words(text=text.decode_begun(kept), tokens=len(kept), finish_reason="length", cut=True)


def words_so_far(sequence: Sequence, text: Text, extent: Extent) -> str:
    """The beginning of the answer of an unfinished sequence that can no longer change: a stream may send it.

    It leaves out what may be the beginning of a stop string, and an incomplete character.
    """
    said = read_words(leading(sequence), text, extent).text
    held = [n for stop in extent.stop for n in range(1, len(stop)) if said.endswith(stop[:n])]
    return said[: len(said) - max(held, default=0)]


def leading(sequence: Sequence) -> list[int]:
    """The ids of the last span, the answer, before its first masked token."""
    span = sequence.spans[-1]
    ids, masked = (x[span.start : span.stop].tolist() for x in (sequence.ids, sequence.masked))
    return ids[: masked.index(True) if True in masked else len(ids)]


def written(
    run: Run,
    sequence: Sequence,
    seed: int,
    sampler: Sampler,
    extent: Extent,
    *,
    text: Text,
    context: int,
    ends: Items[str] | None = None,
) -> Sequence:
    """A sequence whose last span, the answer, has an end or ``max_tokens`` tokens.

    That span is ``extent.length`` masked tokens at first. ``context``: longest sequence in tokens; a maximum beyond it is cut to it ·
    ``ends``: control tokens that end the text; None: those of the tokenizer. ValueError if the prompt leaves no token for an answer.

    Where no canvas attends to a later one (``Span.order_step``), one run decodes all of them: what is finished joins its cache, and
    a canvas behind the end of turn is never computed.
    """
    sequence = _fitted(sequence, text, context)
    final = text.ends if ends is None else tuple(text[end] for end in ends)
    if 0 < sequence.spans[-1].order_step <= extent.length and not _revises(sampler):
        room = context - len(sequence.ids)
        more = min(-(-extent.limit // extent.length) * extent.length - len(sequence.spans[-1]), room)
        if more > 0:
            ended = Until(enough=_Ended(ids=final), fill=text.ends[0], stopping=sampler.stopping)
            sampler = replace(sampler, blocks=ByOrder(blocks=sampler.blocks), stopping=ended)
            sequence = extended(sequence, more, text)
        return run(sequence, seed, sampler)
    number = 0
    while True:
        done = run(sequence, key(seed, "canvas", number) if number else seed, sampler)
        ids, room = leading(done), context - len(done.ids)
        if len(ids) >= extent.limit or room < 1 or any(i in final for i in ids):
            return done
        sequence, number = extended(done, min(extent.length, room), text), number + 1


def until_enough(sampler: Sampler, text: Text, extent: Extent) -> Sampler:
    """The sampler, which also ends as soon as the text before ``max_tokens`` or a stop string is unmasked: the rest is not paid for.

    A sampler that masks or changes tokens again stays as it is, because its text is not final before the end.
    """
    if _revises(sampler):
        return sampler
    enough = _Enough(text=text, extent=extent)
    return replace(sampler, stopping=Until(enough=enough, fill=text.ends[0], stopping=sampler.stopping))


def _revises(sampler: Sampler) -> bool:
    """Whether a sampler masks or changes tokens again."""
    remasks = isinstance(sampler.selection, Bounded) and sampler.selection.extra_steps(1, 1) is not None
    return remasks or isinstance(sampler.stopping, Correcting)


@dataclass(frozen=True, kw_only=True)
class _Ended:
    """Whether the leading ids of an answer have one of ``ids``."""

    ids: tuple[int, ...]

    def __call__(self, ids: Items[int]) -> bool:
        return not set(self.ids).isdisjoint(ids)


@dataclass(frozen=True, kw_only=True)
class _Enough:
    """Whether the leading ids of an answer settle it: one id more than the maximum (it may be the end of turn), or a stop string."""

    text: Text
    extent: Extent

    def __call__(self, ids: Items[int]) -> bool:
        if len(ids) > self.extent.limit:
            return True
        return _before_stop(self.text.decode(ids), self.extent.stop) is not None


def _before_stop(said: str, stop: Items[str]) -> str | None:
    """The text before the first stop string; None if there is none in it."""
    found = [at for one in stop if (at := said.find(one)) >= 0]
    return said[: min(found)] if found else None


def _fitted(sequence: Sequence, text: Text, context: int) -> Sequence:
    """The sequence with its canvas shortened to the context."""
    span, over = sequence.spans[-1], len(sequence.ids) - context
    if over >= len(span):
        raise ValueError(
            f"the prompt has {span.start} tokens, which leaves no room for an answer in the model's context of {context}; "
            "shorten it, or leave out the oldest messages of a conversation"
        )
    return extended(sequence, -over, text) if over > 0 else sequence
