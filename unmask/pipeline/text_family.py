"""What differs between families of text models: the chat template, the published samplers, the tokenizer.

Public idea: ``TextFamily``, one value for each family: ``LLADA``, ``DREAM`` and ``LLADA2``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Sequence as Items
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from unmask.checkpoints.llada2 import read_text as read_llada2
from unmask.sampling.llada2 import llada2_text
from unmask.sampling.presets import dream_text, llada_base, llada_instruct
from unmask.sampling.sampler import Sampler
from unmask.sampling.stopping import EndOfTurn
from unmask.sequence import Sequence
from unmask.tasks.conversing import Message
from unmask.tokens.build import PROMPT, Builder
from unmask.tokens.llada2 import BLOCK, END_ROLE, ROLE, in_blocks
from unmask.tokens.qwen import picture_ids, read_qwen
from unmask.tokens.text import BOS, END_HEADER, EOS, EOT, HEADER, MASK, TEXT_CONTROL, Text

LENGTH = 128  # tokens of LLaDA's published chat


@dataclass(frozen=True, kw_only=True)
class Template:
    """A chat template. A turn is ``header``, the message, ``end``; control tokens stand by our names, ``{role}`` for the role.

    ``start``: before everything · ``plain``: before text without a template, where the tokenizer has it · ``system``: the system message
    of a conversation without one, "" for none · ``trims``: whether messages lose white space at both ends · ``names``: of roles, where the
    family calls them otherwise · ``system_end``: a line at the end of every system message; a conversation without one then gets it alone ·
    ``row``: gives the tokens of a row their orders.
    """

    start: tuple[str, ...] = ()
    plain: tuple[str, ...] = ()
    header: tuple[str, ...]
    end: tuple[str, ...]
    system: str = ""
    trims: bool = False
    names: Mapping[str, str] = field(default_factory=dict)
    system_end: str = ""
    row: Callable[[Sequence], Sequence] = lambda row: row

    def turn(self, text: Text, role: str) -> list[str | int]:
        """The header of a turn."""
        name = self.names.get(role, role)
        return _resolved([piece.replace("{role}", name) for piece in self.header], text)

    def said(self, text: Text, message: Message) -> list[str | int]:
        """A finished turn."""
        words = message.text.strip() if self.trims else message.text
        if message.role == "system" and self.system_end:
            words = f"{words}\n{self.system_end}" if words else self.system_end
        return [*self.turn(text, message.role), words, *_resolved(self.end, text)]

    def before(self, text: Text) -> list[str | int]:
        """What stands before text without a template."""
        return [text[name] for name in self.plain if name in text.control]

    def conversation(self, b: Builder, messages: Items[Message], answer: list[int] | int) -> Sequence:
        """Messages, the last one from the user, and the answer: its ids, or the number of masked tokens."""
        given = list(messages)
        if (self.system or self.system_end) and given[0].role != "system":
            given.insert(0, Message(role="system", text=self.system))
        said: list[str | int] = _resolved(self.start, b.text)
        for message in given:
            said += self.said(b.text, message)
        b.say("prompt", *said, *self.turn(b.text, "assistant"))
        return self.row(b.write("answer", answer).build(messages[-1].text))


def _resolved(pieces: Items[str], text: Text) -> list[str | int]:
    return [text[piece] if piece in text.control else piece for piece in pieces]


@dataclass(frozen=True, kw_only=True)
class TextFamily:
    """``length``: tokens of a canvas unless a request says otherwise · ``chat``, ``base``, ``fill``: the published samplers of a question,
    of a text to continue and of gaps in a text, by the tokenizer and the number of masked tokens · ``read``: a folder's tokenizer ·
    ``context``: the field of config.json with the longest sequence.
    """

    template: Template
    length: int
    chat: Callable[[Text, int], Sampler]
    base: Callable[[Text, int], Sampler]
    fill: Callable[[Text, int], Sampler]
    read: Callable[[Path], Text]
    context: str


def _ends(text: Text) -> tuple[int, int]:
    return text[EOT], text[EOS]


def _llada_chat(text: Text, length: int) -> Sampler:
    return llada_instruct(null_id=text[MASK], drop=PROMPT, end=_ends(text), block=min(32, length))


def _llada_base(text: Text, length: int) -> Sampler:
    return llada_base(null_id=text[MASK], drop=PROMPT, end=_ends(text), length=length)


def _llada_fill(text: Text, gaps: int) -> Sampler:
    return llada_base(null_id=text[MASK], drop=PROMPT, length=gaps)


def _dream(text: Text, length: int) -> Sampler:
    return replace(_dream_fill(text, length), stopping=EndOfTurn(ids=_ends(text)))


def _dream_fill(text: Text, gaps: int) -> Sampler:
    return dream_text(length=gaps, never=(text[MASK], *picture_ids(text)), size=text.size)


def _llada2(text: Text, length: int) -> Sampler:
    return llada2_text(text_ids=text.size, mask_id=text[MASK], end=_ends(text), block=BLOCK)


def _llada2_fill(text: Text, gaps: int) -> Sampler:
    return llada2_text(text_ids=text.size, mask_id=text[MASK], block=BLOCK)


def _read_llada(folder: Path) -> Text:
    return Text.load(folder / "tokenizer.json", TEXT_CONTROL)


LLADA = TextFamily(
    template=Template(start=(BOS,), header=(HEADER, "{role}", END_HEADER, "\n\n"), end=(EOT,), trims=True),
    length=LENGTH,
    chat=_llada_chat,
    base=_llada_base,
    fill=_llada_fill,
    read=_read_llada,
    context="max_sequence_length",
)
CHATML = Template(plain=(BOS,), header=(HEADER, "{role}\n"), end=(EOT, "\n"), system="You are a helpful assistant.")
DREAM = TextFamily(
    template=CHATML,
    length=512,
    chat=_dream,
    base=_dream,
    fill=_dream_fill,
    read=read_qwen,
    context="max_position_embeddings",
)
LLADA2 = TextFamily(
    template=Template(
        header=(ROLE, "{role}", END_ROLE),
        end=(EOT,),
        names={"system": "SYSTEM", "user": "HUMAN", "assistant": "ASSISTANT"},
        system_end="detailed thinking off",
        row=partial(in_blocks, block=BLOCK),
    ),
    length=512,
    chat=_llada2,
    base=_llada2,
    fill=_llada2_fill,
    read=partial(read_llada2, pictures=False),
    context="max_position_embeddings",
)
