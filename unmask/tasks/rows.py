"""How a model's family writes requests as sequences. Public idea: ``Rows``, a field of ``Parts``; ``ChatRows`` is that of Lavida-O.

Families differ in prompts and in how they read a picture: as features of a vision tower, or as codes.
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from unmask.sequence import Sequence
from unmask.tokens.build import FailedAttempt, asking, looking
from unmask.tokens.build import drawing as chat_drawing
from unmask.tokens.build import editing as chat_editing
from unmask.tokens.build import planning as chat_planning
from unmask.tokens.layouts import Layout, from_ids
from unmask.tokens.prompts import Conditions, Wording
from unmask.tokens.turns import Said
from unmask.tokens.turns import conversation as chat_conversation
from unmask.tokens.views import ImageViews

if TYPE_CHECKING:
    from unmask.tasks.parts import Parts


@dataclass(frozen=True, kw_only=True)
class Extras:
    """What a drawing may have besides its prompt: properties stated as text, a layout, earlier attempts with their critiques,
    and a size in pixels (width, height).
    """

    conditions: Conditions | None = None
    plan: Layout | None = None
    attempts: tuple[FailedAttempt, ...] = ()
    size: tuple[int, int] | None = None


class Rows(Protocol):
    """The sequences of a family. Spans have the names that tasks read: "image" of a drawing, ``name`` of a text, which comes last.

    ``canvas``: masked tokens of an answer of ``length``, where ``max_tokens`` are allowed: more where the row has the answer's end too ·
    ``announces``: a text may announce a picture, which is then drawn in its place · ``wording``: with the conversation's system message ·
    ``of_kind``: for edits of a named kind, with codes of further pictures; ValueError where there is one kind alone · ``drawn_size``: in
    which a drawing of a size (width, height) is made; None: all drawings have the size of the model · ``planning``: what is written before
    a drawing, in the span "plan" of ``length`` tokens, and ``plan_in`` its reading: a layout, or the thoughts of a model as its ``reason``.
    """

    @property
    def announces(self) -> bool: ...
    def of_kind(self, kind: str, references: Items[Tensor]) -> Rows: ...
    def drawn_size(self, tokens: Parts, size: tuple[int, int]) -> tuple[int, int] | None: ...
    def drawing(self, tokens: Parts, prompt: str, extras: Extras) -> Sequence: ...
    def planning(self, tokens: Parts, prompt: str, length: int, conditions: Conditions | None) -> Sequence: ...
    def plan_in(self, tokens: Parts, ids: Items[int]) -> Layout: ...
    def canvas(self, length: int, max_tokens: int | None) -> int: ...
    def editing(
        self, tokens: Parts, look: Tensor | ImageViews, source: Tensor, instruction: str, plan: Layout | None
    ) -> Sequence: ...
    def conversation(self, tokens: Parts, wording: Wording, said: Items[Said], length: int) -> Sequence: ...
    def asking(
        self, tokens: Parts, picture: Tensor | ImageViews | None, question: str, length: int, name: str = "answer"
    ) -> Sequence: ...


class PlainRows:
    """A base for families with one kind of edit, one size of drawing, canvases of the asked length, and texts that announce no picture."""

    @property
    def announces(self) -> bool:
        return False

    def of_kind(self, kind: str, references: Items[Tensor]) -> Rows:
        what = f"of the kind {kind[:50]!r}" if kind else "with a second picture"
        raise ValueError(f"this model cannot edit {what}; leave out the kind and the reference")

    def drawn_size(self, tokens: Parts, size: tuple[int, int]) -> tuple[int, int] | None:
        return None

    def canvas(self, length: int, max_tokens: int | None) -> int:
        return length


@dataclass(frozen=True, kw_only=True)
class ChatRows(PlainRows):
    """LLaDA's chat with features of the vision tower and codes of a generation branch."""

    @property
    def announces(self) -> bool:
        return True

    def editing(
        self, tokens: Parts, look: Tensor | ImageViews, source: Tensor, instruction: str, plan: Layout | None
    ) -> Sequence:
        given = {"fold": tokens.fold, "plan": tokens.planned(plan)}
        return chat_editing(tokens.builder(), look, source, instruction, tokens.grid, **given)  # type: ignore[arg-type]

    def planning(self, tokens: Parts, prompt: str, length: int, conditions: Conditions | None) -> Sequence:
        return chat_planning(tokens.builder(), prompt, length, conditions=conditions)

    def plan_in(self, tokens: Parts, ids: Items[int]) -> Layout:
        return from_ids(ids, tokens.text, tokens.wording)

    def conversation(self, tokens: Parts, wording: Wording, said: Items[Said], length: int) -> Sequence:
        return chat_conversation(replace(tokens.builder(), wording=wording), said, length)

    def drawing(self, tokens: Parts, prompt: str, extras: Extras) -> Sequence:
        if extras.size is not None:
            raise ValueError(f"this model draws squares of {tokens.side} pixels; leave out the size")
        return chat_drawing(
            tokens.builder(),
            prompt,
            tokens.grid,
            fold=tokens.fold,
            conditions=extras.conditions,
            plan=tokens.planned(extras.plan),
            attempts=extras.attempts,
        )

    def asking(
        self, tokens: Parts, picture: Tensor | ImageViews | None, question: str, length: int, name: str = "answer"
    ) -> Sequence:
        b = looking(tokens.builder(), picture)
        return asking(b, question, length, segment=b.first_segment, name=name).build(question)
