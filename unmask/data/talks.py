"""Conversations of a row: LLaVA's ``conversations``, ``messages`` as chat APIs have them, and ``question`` with ``answer``.

Public idea: ``conversation(key, fields, find) -> Chat | Interleaved``. A conversation whose pictures all come before or in the first
question is a Chat; with pictures later, or in an answer, it is Interleaved.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from unmask.data.row_errors import RowError, shown
from unmask.data.samples import Chat, ImageRef, Interleaved, MixedTurn, Said
from unmask.json_types import Json

PLACEHOLDER = "<image>"
_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "system": "system",
}
_AT_PLACEHOLDER = re.compile(r"\s*(<image>)\s*")
_Find = Callable[[object], ImageRef]


@dataclass(frozen=True)
class _Slot:
    """A place for a picture: its own value, or the next of the row's pictures."""

    value: object = None


@dataclass(frozen=True, kw_only=True)
class _Message:
    role: str
    parts: tuple[str | _Slot, ...]


def talk_task(fields: Json) -> str:
    """``chat`` or ``interleaved``, from the places of the pictures alone."""
    try:
        return "interleaved" if _is_mixed(_messages(fields)) else "chat"
    except RowError:
        return "chat"


def conversation(key: str, fields: Json, find: _Find) -> Chat | Interleaved:
    """The conversation of a row. RowError for a wrong role, order or number of pictures, and if no answer is in it."""
    messages = _messages(fields)
    _refuse_order(messages)
    slots = [part for message in messages for part in message.parts if isinstance(part, _Slot)]
    pictures = _pictures(fields, slots)
    if fields.get("task") != "interleaved" and not _is_mixed(messages):
        turns = tuple(Said(role=m.role, text=_text(m)) for m in messages)
        return Chat(key=key, images=tuple(find(p) for p in pictures), turns=turns)
    if fields.get("task") == "chat":
        raise RowError("a picture comes after the first question; the task of such a row is 'interleaved'")
    left = iter(pictures)
    rest = list(left) if not slots else []
    turns = [
        MixedTurn(role=m.role, parts=tuple(p if isinstance(p, str) else find(next(left)) for p in m.parts))
        for m in messages
    ]
    if rest:
        first = next(i for i, turn in enumerate(turns) if turn.role == "user")
        turns[first] = MixedTurn(role="user", parts=(*map(find, rest), *turns[first].parts))
    return Interleaved(key=key, turns=tuple(turns))


def _is_mixed(messages: list[_Message]) -> bool:
    first = next((i for i, m in enumerate(messages) if m.role == "user"), 0)
    return any(isinstance(p, _Slot) for i, m in enumerate(messages) if i != first for p in m.parts)


def _pictures(fields: Json, slots: list[_Slot]) -> list[object]:
    """The pictures in order. RowError if the placeholders and the row's pictures differ in number."""
    given = next((fields[n] for n in ("images", "image", "jpg", "png", "file_name") if fields.get(n) is not None), [])
    left = list(given) if isinstance(given, list | tuple) else [given]
    free = [slot for slot in slots if slot.value is None]
    if not slots:
        return left
    if len(free) != len(left):
        raise RowError(f"the conversation has {len(free)} places for pictures ({PLACEHOLDER}) and {len(left)} pictures")
    rest = iter(left)
    return [next(rest) if slot.value is None else slot.value for slot in slots]


def _text(message: _Message) -> str:
    return " ".join(part for part in message.parts if isinstance(part, str)).strip()


def _refuse_order(messages: list[_Message]) -> None:
    roles = [m.role for m in messages if m.role != "system"]
    if not roles or roles[0] != "user":
        raise RowError("the conversation does not start with a question of the user")
    if any(a == b for a, b in zip(roles, roles[1:], strict=False)):
        raise RowError("two messages of the same role follow each other; user and assistant take turns")
    if roles[-1] != "assistant":
        raise RowError("the conversation does not end with an answer of the assistant")
    if any(m.role == "system" for m in messages[1:]):
        raise RowError("a system message comes after the first message")
    for message in messages:
        if not message.parts:
            raise RowError(f"a message of the {message.role} is empty")


def _messages(fields: Json) -> list[_Message]:
    found = next((fields[n] for n in ("conversations", "messages", "turns") if fields.get(n) is not None), None)
    if found is None:
        return list(_question(fields))
    if not isinstance(found, list) or not found:
        raise RowError(f"the conversation is {shown(found)}, not a list of messages")
    return [_message(one) for one in found]


def _question(fields: Json) -> Iterator[_Message]:
    answers = fields.get("answer", fields.get("answers"))
    answer = answers[0] if isinstance(answers, list) and answers else answers
    for role, said in (("user", fields.get("question")), ("assistant", answer)):
        if not isinstance(said, str) or not said.strip():
            raise RowError(f"the {'question' if role == 'user' else 'answer'} is {shown(said)}, not a text")
        yield _Message(role=role, parts=tuple(_split(said)))


def _message(value: object) -> _Message:
    if not isinstance(value, dict):
        raise RowError(f"a message is {shown(value)}, not an object")
    role = value.get("from", value.get("role"))
    if not isinstance(role, str) or role not in _ROLES:
        raise RowError(f"the role of a message is {shown(role)}; it is one of {', '.join(_ROLES)}")
    content = value.get("value", value.get("content", value.get("text")))
    if isinstance(content, str):
        return _Message(role=_ROLES[role], parts=tuple(_split(content)))
    if not isinstance(content, list):
        raise RowError(f"the content of a message is {shown(content)}, neither a text nor a list of parts")
    return _Message(role=_ROLES[role], parts=tuple(part for one in content for part in _part(one)))


def _part(value: object) -> Iterator[str | _Slot]:
    """A part of a message as chat APIs have them: {"type": "text", "text": …}, {"type": "image", "image": …}, {"type": "image_url", …}."""
    if isinstance(value, str):
        yield from _split(value)
        return
    kind = value.get("type") if isinstance(value, dict) else None
    if isinstance(value, dict) and kind == "text" and isinstance(value.get("text"), str):
        yield from _split(value["text"])
    elif isinstance(value, dict) and kind in ("image", "image_url"):
        url = value.get("image_url")
        given = url.get("url") if isinstance(url, dict) else url
        yield _Slot(next((v for v in (value.get("image"), given, value.get("path")) if v is not None), None))
    else:
        raise RowError(f"a part of a message is {shown(value)}; its type is text or image")


def _split(text: str) -> Iterator[str | _Slot]:
    """A text with placeholders -> texts and places for pictures; white space around a placeholder goes."""
    for piece in _AT_PLACEHOLDER.split(text):
        if piece == PLACEHOLDER:
            yield _Slot()
        elif piece.strip():
            yield piece.strip()
