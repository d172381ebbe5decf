"""Drafts of answers: given words, and masked tokens or slots between them.

Public idea: ``Drafted(ask=Ask(...), draft="Step 1: [mask:12] Answer: [mask:4]")`` is an answer of which some tokens are given: structure
priors of Dimple (arXiv 2505.16990), and text infilling of LaViDa (arXiv 2505.16839), where a ``[slot:N]`` has room for N tokens and the
model may fill in fewer. ``with_gaps(b, target, tokens)`` is a text with such gaps.
"""

from __future__ import annotations

import re
from collections.abc import Sequence as Items
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol

import torch

from unmask.protocols import Task
from unmask.sequence import Sequence
from unmask.tasks.understand import GAP, Ask
from unmask.tokens.build import Builder
from unmask.tokens.text import MASK, Slots, Text

_MOST = 512  # masked tokens of a gap
_MANY = re.compile(r"\[mask:([0-9]{1,4})\]")
_GAPS = re.compile(r"(\s*\[mask(?::[0-9]{1,4})?\]|\[slot:[0-9]{1,4}\])")


class Drafting(Protocol):
    """The parts of a model that drafts need. ``slots``: None where the model has none."""

    @property
    def text(self) -> Text: ...
    @property
    def slots(self) -> Slots | None: ...


def expanded(text: str) -> str:
    """A text with ``[mask:N]`` as N times ``[mask]``. ValueError for a number that is not 1 to 512."""
    return _MANY.sub(lambda found: GAP * _number(found[0], int(found[1])), text)


@dataclass(frozen=True, kw_only=True)
class Drafted:
    """An answer that begins with ``draft``: words stay, ``[mask]`` is one masked token and ``[mask:N]`` are N, ``[slot:N]`` are N that a
    model with slots may leave empty. What follows the draft is masked too, up to the length of the answer. ``ask``: a task whose last span
    is the answer.
    """

    ask: Task[Any, str]
    draft: str
    needs: ClassVar[frozenset[str]] = Ask.needs

    def build(self, tokens: Drafting) -> Sequence:
        """ValueError for a draft without a masked token, one that is longer than the answer, and slots of a model that has none."""
        ids, masked = draft_ids(self.draft, tokens.text, tokens.slots)
        row = self.ask.build(tokens)
        answer = row.spans[-1]
        if len(ids) > len(answer):
            raise ValueError(
                f"the draft has {len(ids)} tokens and the answer {len(answer)}; allow a longer one (length)"
            )
        part = slice(answer.start, answer.start + len(ids))
        new_ids, new_masked = row.ids.clone(), row.masked.clone()
        new_ids[part], new_masked[part] = torch.tensor(ids), torch.tensor(masked)
        return replace(row, ids=new_ids, masked=new_masked)

    def read(self, sequence: Sequence, tokens: Drafting) -> str:
        """The text up to the first end of turn behind the draft, without the marks and the fillers of its slots."""
        text, answer = tokens.text, sequence.spans[-1]
        given, _ = draft_ids(self.draft, text, tokens.slots)
        ids = sequence.ids[answer.start : answer.stop].tolist()
        empty = {*text.ends, *_marks(tokens.slots)}
        inside = [i for i in ids[: len(given)] if i not in empty]
        behind = ids[len(given) :]
        end = next((n for n, i in enumerate(behind) if i in text.ends), len(behind))
        said = text.raw([*inside, *(i for i in behind[:end] if i not in empty)]).strip()
        return _closed(said, self.draft)


def with_gaps(b: Builder, target: str, tokens: Drafting) -> Builder:
    """Append a text with gaps: the tokens of a slot are one writable span, those of masks one each. ValueError as of ``pieces_of``."""
    for piece in pieces_of(target, tokens.text, tokens.slots):
        if piece.masked:
            for length in [len(piece.ids)] if piece.slot else [1] * len(piece.ids):
                b.write("answer", length)
        elif piece.ids:
            b.say("given", *piece.ids)
    return b


def read_gaps(sequence: Sequence, target: str, tokens: Drafting) -> str:
    """The text of ``with_gaps`` without the marks and the fillers of its slots."""
    marks = _marks(tokens.slots) if "[slot:" in target else ()
    return _closed(tokens.text.decode([i for i in sequence.ids.tolist() if i not in marks]), target)


def _marks(slots: Slots | None) -> tuple[int, ...]:
    return (slots.marker, slots.filler) if slots else ()


def _closed(said: str, draft: str) -> str:
    """The text of a draft without the double spaces that empty slots leave."""
    return re.sub(" {2,}", " ", said) if "[slot:" in draft else said


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A stretch of a draft: given or masked ids. ``slot``: of a slot, which its marker follows as a given piece."""

    ids: tuple[int, ...]
    masked: bool = False
    slot: bool = False


def pieces_of(draft: str, text: Text, slots: Slots | None) -> list[Piece]:
    """A draft piece by piece. The space before a word is in its token, so none is left before a ``[mask]``."""
    out = list[Piece]()
    for piece in _GAPS.split(draft):
        name = piece.strip()
        if name.startswith("[slot:"):
            if slots is None:
                raise ValueError("this model has no slots that it may leave empty; use [mask:N] for N tokens")
            out.append(Piece(ids=(text[MASK],) * _number(name, int(name[6:-1])), masked=True, slot=True))
            out.append(Piece(ids=(slots.marker,)))
        elif name == GAP or _MANY.fullmatch(name):
            count = _number(name, int(name[6:-1] or 1) if name != GAP else 1)
            out.append(Piece(ids=(text[MASK],) * count, masked=True))
        else:
            out.append(Piece(ids=tuple(text.encode(piece))))
    if not any(piece.masked for piece in out):
        raise ValueError(f"no {GAP} in {draft[:50]!r}; write [mask], [mask:N] or [slot:N] where the model writes")
    return out


def draft_ids(draft: str, text: Text, slots: Slots | None) -> tuple[list[int], list[bool]]:
    """The ids of a draft, and which of them are masked."""
    pieces = pieces_of(draft, text, slots)
    return [i for piece in pieces for i in piece.ids], [piece.masked for piece in pieces for _ in piece.ids]


def gaps_in(draft: str) -> int:
    """The masked tokens of a draft. ValueError for a gap that is too long."""
    return sum(_number(g, int(n or 1)) for g, n in re.findall(r"(\[(?:mask|slot)(?::([0-9]{1,4}))?\])", draft))


def draft_length(draft: str, parts: Drafting) -> int:
    """Tokens of a draft."""
    return len(draft_ids(draft, parts.text, parts.slots)[0])


def refuse_beside(max_tokens: int | None, stop: Items[str], form: object) -> None:
    """ValueError for options of an answer that a draft excludes."""
    given = {"max_tokens": max_tokens is not None, "stop": bool(stop), "form": form is not None}
    if wrong := [name for name, there in given.items() if there]:
        raise ValueError(f"{wrong[0]} cannot be combined with a draft, which says what the answer has; leave one out")


def _number(gap: str, count: int) -> int:
    if not 1 <= count <= _MOST:
        raise ValueError(f"{gap} is not possible; a gap has 1 to {_MOST} tokens")
    return count
