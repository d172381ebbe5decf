"""Rows of MMaDA (Yang et al. 2025, arXiv 2505.15809; layout as released): text, pictures to read and pictures to draw in one vocabulary.

Public idea: ``drawing(b, caption, codes, ...)``, ``understanding(b, messages, answer, ...)``. A drawing's prompt stands at the end of a
field of fixed length. The padding before it is never read, so it is left out here and only counts as positions. The prompt without a
condition, which guidance compares with, lies in the same row in a segment of its own (``sampling/other_prompts.py``).
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass, replace

from torch import Tensor

from unmask.sequence import Sequence
from unmask.tokens.build import Builder
from unmask.tokens.prompts import RELEASED
from unmask.tokens.text import BOS, END_HEADER, EOS, EOT, HEADER, MASK, TEXT_CONTROL, Text
from unmask.tokens.turns import Said

RESERVED = tuple(f"<|reserved_token_{i}|>" for i in range(12))  # LLaDA's names of tokens that MMaDA gives a meaning
SOI, EOI, _, _, DRAW, LOOK_AT, _, _, _, PAD, THINK_AND_DRAW, INTERLEAVE = RESERVED
CONTROL = (*TEXT_CONTROL, *RESERVED)
THINK = (
    "You should first think about the reasoning process in the mind and then provide the user with the answer. The reasoning process is "
    "enclosed within <think> </think> tags, i.e. <think> reasoning process here </think> answer here\n"
)
THINK_TO_DRAW = (
    "You should first think out a more detailed version of the description and then provide the user with the image. The detailed "
    "description is enclosed within <think> </think> tags, i.e. <think> detailed description here </think> image here\n"
)
_THOUGHT, _END_THOUGHT = "\n<think>", "</think>"
_END_USER = "<eot_id>"  # as the released trainer writes it: a text, not the token that ends a turn
WORDING = replace(
    RELEASED,
    system="",
    newlines="\n",
    after_image="",
    draw="{caption}",
    describe="Please describe this image in detail.",
)
TOKENS = {  # MMaDA's names
    **{
        "bos": BOS,
        "eos": EOS,
        "mask": MASK,
        "end_header": END_HEADER,
        "soi": SOI,
        "eoi": EOI,
        "t2i": DRAW,
        "mmu": LOOK_AT,
    },
    **{"r2i": THINK_AND_DRAW, "pad": PAD, "interleave": INTERLEAVE},
}
NULL, SOURCE = "null", "source"  # spans: the prompt of guidance's second view, a picture that is read


@dataclass(frozen=True, kw_only=True)
class Field:
    """The prompt field of a drawing: ``length`` + 1 tokens. A longer prompt is cut."""

    length: int

    def prompt(self, b: Builder, caption: str) -> list[int]:
        """Ids of a caption's prompt without its padding."""
        ids = b.text.encode(caption) if caption else []
        ids = ids if ids[:1] == [b.text[BOS]] else [b.text[BOS], *ids]
        ids = [b.text[DRAW], *ids, b.text[EOS]]
        return ids if len(ids) <= self.length + 1 else [*ids[: self.length], b.text[EOS]]

    def say(self, b: Builder, name: str, ids: Items[int], *, segment: int = 0) -> Builder:
        """Append a prompt at the end of the field."""
        b.say(name, *ids, segment=segment)
        b.spans[-1] = replace(b.spans[-1], position_offset=self.length + 1 - len(ids))
        return b


def drawing(b: Builder, caption: str, codes: Tensor | tuple[int, int], *, field: Field) -> Sequence:
    """Text to picture. Spans: "null" (segment 1), "prompt", "assistant", "image", "end". Codes [h, w], or a grid of masked ones."""
    field.say(b, NULL, field.prompt(b, ""), segment=1)
    field.say(b, "prompt", field.prompt(b, caption))
    b.say("assistant", b.text[SOI]).codes("image", codes, fold=1, writable=True)
    return b.say("end", b.text[EOI]).build(caption)


def understanding(b: Builder, said: Items[Said], pictures: Items[Tensor], answer: list[int] | int) -> Sequence:
    """Messages, the last one from the user, and the next turn in the span "answer": its ids, or the number of masked tokens.

    ``pictures``: codes [h, w], which come before all text. Spans: "prompt", "source" of each picture, "prompt", "answer".
    """
    for number, codes in enumerate(pictures):
        b.say("prompt", *(() if number else (b.text[LOOK_AT],)), b.text[SOI])
        b.codes(SOURCE, codes, fold=1, writable=False).say("prompt", b.text[EOI])
    words: list[str | int] = [b.text[BOS]]
    for message in said:
        words += [*b.header(message.role), message.text.strip(), b.text[EOT]]
    b.say("prompt", *words, *b.header("assistant"))
    return b.write("answer", answer).build(said[-1].text)


def thinking(b: Builder, prompt: str, length: int, *, field: Field) -> Sequence:
    """The row of a detailed description of a picture, before it is drawn, with ``length`` masked tokens or as many as its field has. Spans:
    "prompt", "plan".
    """
    given = [*_described(b, prompt), *b.text.encode(_THOUGHT)]
    if (room := field.length - len(given) + 1) < 1:
        raise ValueError(f"the prompt leaves no room for a description among {field.length} tokens; shorten it")
    return b.say("prompt", *given).write("plan", min(length, room)).build(prompt)


def thought_in(ids: Items[int], text: Text) -> str:
    """The description that a model has written, without the tag and the tokens that end it."""
    ends = (text[EOS], text[EOT])
    end = next((i for i, token in enumerate(ids) if token in ends), len(ids))
    return text.raw(list(ids[:end])).partition(_END_THOUGHT)[0].strip()


def training_thinking(b: Builder, prompt: str, thought: str, codes: Tensor, *, field: Field) -> Sequence:
    """A prompt, its detailed description and the picture. Spans: "prompt", "plan" up to the end of the field, "begin", "image", "end".

    The codes are text ids, as in ``training_drawing``. ValueError for a description that is longer than the field.
    """
    given = _described(b, prompt)
    ids = [*b.text.encode(_THOUGHT + thought.strip() + _END_THOUGHT), b.text[EOS]]
    if (filler := field.length + 1 - len(given) - len(ids)) < 0:
        raise ValueError(f"prompt and description have {len(given) + len(ids) - 1} tokens, more than {field.length}")
    b.say("prompt", *given).write("plan", ids + [b.text[EOS]] * filler).say("begin", b.text[SOI])
    b.write("image", [b.text.size + c for c in codes.flatten().tolist()])
    return b.say("end", b.text[EOI]).build(prompt)


def _described(b: Builder, prompt: str) -> list[int]:
    """The ids before a description."""
    text = b.text
    asked = text.encode("\n" + THINK_TO_DRAW + prompt.strip() + _END_USER)
    headers = [[text[HEADER], *text.encode(role), text[END_HEADER]] for role in ("user", "assistant")]
    return [text[THINK_AND_DRAW], text[BOS], *headers[0], *asked, *headers[1]]


def training_drawing(b: Builder, caption: str, codes: Tensor, *, field: Field) -> Sequence:
    """A drawing with its padding, in a segment of its own, and without a second prompt. Spans: "pad", then as of ``drawing``, in segment 2.

    The codes are text ids: the released loss is over the whole vocabulary. The tokens around the picture are targets, too.
    """
    ids = field.prompt(b, caption)
    b.say("pad", *[b.text[PAD]] * (field.length + 1 - len(ids)), segment=1)
    b.say("prompt", *ids).write("begin", [b.text[SOI]]).write(
        "image", [b.text.size + c for c in codes.flatten().tolist()]
    )
    b.write("end", [b.text[EOI]])
    pad, *rest = b.spans
    shift = len(pad)
    b.spans = [pad, *(replace(s, segment=2, position_offset=shift if s.name == "prompt" else 0) for s in rest)]
    return b.build(caption)


def training_text(b: Builder, ids: Items[int], length: int) -> list[int]:
    """A text of ``length`` tokens, filled with the end of text, which is learned; a longer one is cut without it."""
    whole = [b.text[BOS], *ids, b.text[EOS]]
    return (whole + [b.text[EOS]] * (length - len(whole)))[:length]


def training_understanding(b: Builder, task: str, codes: Tensor, ids: Items[int], length: int) -> list[int]:
    """A picture and a text of ``length`` tokens that ends in the end of text. ``task``: LOOK_AT; THINK_AND_DRAW has the text first."""
    text = training_text(b, ids, length)
    text[-1] = b.text[EOS]
    picture = [b.text[SOI], *(b.text.size + c for c in codes.flatten().tolist()), b.text[EOI]]
    return [b.text[task], *text, *picture] if task == THINK_AND_DRAW else [b.text[task], *picture, *text]
