"""Rows of LLaDA2.0-Uni (arXiv 2604.20796; layout as released), and blocks of rows in which a token reads its own block and earlier ones.

Public idea: ``drawing``, ``editing`` and ``understanding`` build a request; ``in_blocks(row, size)`` gives every token the number of its
block as its order. Blocks are counted from the start of the row, so the end of a prompt and the first tokens of an answer share one. The
prompts that guidance compares with lie in the same row, each in a segment of its own (``sampling/other_prompts.py``). The released code
pads or cuts them to the length of the prompt; here the padding only shifts their blocks.
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass, replace

import torch
from tokenizers import AddedToken, Tokenizer
from torch import Tensor

from unmask.placing import Kind
from unmask.sequence import Sequence, Span
from unmask.tokens.build import Builder
from unmask.tokens.text import BOS, EOS, EOT, MASK, Text

ROLE, END_ROLE = "<role>", "</role>"
IMAGE, END_IMAGE, BEGIN_CODES = "<|image|>", "<|/image|>", "<boi>"
SPELLED = {EOT: "<|role_end|>", MASK: "<|mask|>"}  # our names -> those of the family
CONTROL = (BOS, EOS, EOT, MASK, ROLE, END_ROLE)
PICTURE_CONTROL = (*CONTROL, IMAGE, END_IMAGE, BEGIN_CODES)
UNCONDITION = "<uncondition>"  # a text, not a token
BLOCK = 32  # tokens of a block of the released models
NULL, NULL_TEXT, NULL_IMAGE, SOURCE = "null", "null text", "null image", "source"
DRAW = " You are a text-to-image generation assistant. "
THINK_TO_DRAW = " You are a text-to-image generation assistant with a thinking process. "
EDIT = " You are an image editing assistant. "
UNDERSTAND = " You are a multimodal understanding assistant. "
_SIDES = 255  # the largest side that has a token
_SHOWN = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>")


def side_token(side: int) -> str:
    """The name of the token of a side of ``side`` codes."""
    return f"<|reserved_token_{side}|>"


def make_text(tokenizer: Tokenizer, *, pictures: bool) -> Text:
    """The tokenizer with its control tokens. Names of added tokens in a user's text stay text, those of image codes too.

    TokenizerError if a control token is missing.
    """
    added = [t.content for t in tokenizer.get_added_tokens_decoder().values() if not t.special]
    hidden = [AddedToken(name, normalized=False, special=True) for name in added if name not in _SHOWN]
    tokenizer.add_special_tokens(hidden)  # known tokens keep their ids
    control = PICTURE_CONTROL if pictures else CONTROL
    if pictures:
        sides = [side_token(n) for n in range(_SIDES + 1) if tokenizer.token_to_id(side_token(n)) is not None]
        control = (*control, *sides)
    return Text(tokenizer, control, SPELLED)


def header(text: Text, grid: tuple[int, int]) -> list[int]:
    """Ids before the codes of a picture of ``grid`` (rows, columns). ValueError for a side that has no token."""
    for name, side in zip(("high", "wide"), grid, strict=True):
        if side_token(side) not in text.control:
            raise ValueError(
                f"a picture {side} codes {name} has no size token: sides are 8, 10, 12 ... 36 and 37 to {_SIDES} codes; "
                "give another size (codes are 16 pixels of a picture that is read, and 32 of one that is drawn)"
            )
    return [text[IMAGE], *(text[side_token(side)] for side in grid), text[BEGIN_CODES]]


def roles(text: Text, role: str, words: str = "") -> list[int]:
    """Ids of ``<role>ROLE</role>``, and of the words behind it."""
    return [text[ROLE], *text.encode(role), text[END_ROLE], *(text.encode(words) if words else ())]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """``block``: tokens of a block · ``first_code``: text id of code 0."""

    block: int
    first_code: int


def _source(b: Builder, codes: Tensor, layout: Layout) -> list[int]:
    """A picture as text ids: size, codes, end."""
    grid = (codes.shape[0], codes.shape[1])
    own = [layout.first_code + c for c in codes.flatten().tolist()]
    return [*header(b.text, grid), *own, b.text[END_IMAGE]]


def _system(b: Builder, words: str) -> list[int]:
    return [*roles(b.text, "SYSTEM", words), *roles(b.text, "HUMAN")]


def draw_prompt(b: Builder, words: str, grid: tuple[int, int], *, system: str = DRAW) -> list[int]:
    """Ids of the prompt of a drawing, up to its first code."""
    return [*_system(b, system), *b.text.encode(words), *roles(b.text, "ASSISTANT"), *header(b.text, grid)]


def null_prompt(b: Builder, grid: tuple[int, int], *, system: str = DRAW) -> list[int]:
    """Ids of the prompt that guidance of a drawing compares with."""
    return draw_prompt(b, UNCONDITION, grid, system=system)


def drawing(
    b: Builder,
    prompt: Items[int],
    null: Items[int],
    codes: Tensor | tuple[int, int],
    layout: Layout,
    request: str,
    *,
    least: int = 0,
) -> Sequence:
    """Text to picture. Spans: "null" (segment 1), "prompt", "image", "surplus". Codes [h, w], or a grid of masked ones. ``null``: the
    prompt that guidance compares with · the surplus fills the last block, as released: its codes see it · ``least``: codes and
    surplus together, for the released loop, which goes on behind the picture.
    """
    other(b, NULL, null, len(prompt), layout, segment=1)
    b.say("prompt", *prompt).codes("image", codes, fold=1, writable=True)
    return in_blocks(_filled(b, layout.block, least).build(request), layout.block)


def _filled(b: Builder, block: int, least: int = 0) -> Builder:
    """Append masked codes up to the end of a block, which are thrown away."""
    more = max(0, least - len(b.spans[-1]))
    rest = more + -(more + sum(len(span) for span in b.spans if not span.segment)) % block
    return b.codes("surplus", (1, rest), fold=1, writable=True) if rest else b


def edit_prompts(
    b: Builder, source: Tensor, instruction: str, layout: Layout
) -> tuple[list[int], list[int], list[int]]:
    """Text ids of the prompt of an edit, of the one without its instruction, and of the one without its picture."""
    text, grid = b.text, (source.shape[0], source.shape[1])
    begin, shown = _system(b, EDIT), _source(b, source, layout)
    words, end = text.encode(instruction), [*roles(text, "ASSISTANT"), *header(text, grid)]
    nothing = text.encode(UNCONDITION)
    return [*begin, *shown, *words, *end], [*begin, *shown, *nothing, *end], [*begin, text[IMAGE], *words, *end]


def editing(b: Builder, source: Tensor, instruction: str, layout: Layout) -> Sequence:
    """A picture and an instruction to a picture of the same size. Spans: "null text", "null image", "prompt", "source", "prompt", "image",
    "surplus".
    """
    grid = (source.shape[0], source.shape[1])
    prompt, no_text, no_image = edit_prompts(b, source, instruction, layout)
    first = len(_system(b, EDIT)) + len(header(b.text, grid))
    other(b, NULL_TEXT, no_text, len(prompt), layout, segment=1)
    other(b, NULL_IMAGE, no_image, len(prompt), layout, segment=2)
    b.say("prompt", *prompt[:first]).codes(SOURCE, source, fold=1, writable=False)
    b.say("prompt", *prompt[first + source.numel() :]).codes("image", grid, fold=1, writable=True)
    return in_blocks(_filled(b, layout.block).build(instruction), layout.block)


def understanding(
    b: Builder,
    turns: Items[tuple[str, str, Items[Tensor]]],
    answer: list[int] | int,
    layout: Layout,
    *,
    bare: bool = False,
) -> Sequence:
    """Turns of (role, text, pictures [h, w]), the last one from the user, and the answer: its ids, or the number of masked tokens.

    Roles are "user" and "assistant". Pictures stand at the start of their turn. ``bare``: pictures and text without roles, as the first
    release had it. Spans: "prompt", "source" of each picture, "prompt", "answer".
    """
    text, given = b.text, list[int]() if bare else roles(b.text, "SYSTEM", UNDERSTAND)
    for role, words, pictures in turns:
        given += [] if bare else roles(text, "HUMAN" if role == "user" else "ASSISTANT")
        for codes in pictures:
            b.say("prompt", *given, *header(text, (codes.shape[0], codes.shape[1])))
            b.codes(SOURCE, codes, fold=1, writable=False)
            given = [text[END_IMAGE]]
        given += text.encode(words)
    b.say("prompt", *given, *(() if bare else roles(text, "ASSISTANT")))
    if isinstance(answer, int) and answer:  # whole blocks, as released: an answer sees the masks behind it
        answer += -(len(b.ids) + answer) % layout.block
    return in_blocks(b.write("answer", answer).build(turns[-1][1]), layout.block)


def other(b: Builder, name: str, ids: Items[int], length: int, layout: Layout, *, segment: int) -> Builder:
    """Append another prompt as long as the prompt of ``length``: a longer one loses its front, padding of a shorter one is left out."""
    kept = list(ids)[-length:]
    pad = length - len(kept)
    b.say(name, *kept, segment=segment)
    b.spans[-1] = _placed(b.spans[-1], pad, layout.block)
    return b


def in_blocks(row: Sequence, block: int) -> Sequence:
    """The row with the number of its block as every token's order; spans of other segments keep theirs."""
    spans, before = list[Span](), 0
    for span in row.spans:
        spans.append(span if span.segment else _placed(span, before, block))
        before += 0 if span.segment else len(span)
    return replace(row, spans=tuple(spans))


def _placed(span: Span, before: int, block: int) -> Span:
    return replace(span, order=before // block, order_phase=before % block, order_step=block)


def text_row(ids: Items[int], block: int, *, masked: Items[bool] | None = None) -> Sequence:
    """Ids of text as one row of blocks, in one span "prompt"."""
    span = Span(name="prompt", kind=Kind.TEXT, start=0, stop=len(ids))
    open_ = torch.tensor(masked if masked is not None else [False] * len(ids))
    return in_blocks(Sequence(ids=torch.tensor(list(ids)), masked=open_, spans=(span,)), block)
