"""Chat answers in OpenAI's format. Public idea: ``Reply``, whole or as the chunks of a stream, with the same content in both."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from unmask.serving.chat_events import ChatEvents, Count
from unmask.serving.delivery import encoded
from unmask.serving.streams import Event
from unmask.tasks.conversing import Turn
from unmask.tasks.results import Answer, labels


@dataclass(frozen=True, kw_only=True)
class Content:
    """What an answer contains: ``text`` is the content of the message, ``pictures`` are PNG files in base64."""

    text: str
    pictures: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Reply:
    """A response to a chat request.

    ``model``, ``name``: of the response · ``unread``: number of messages that an answer about an image did not read · ``warnings``: about
    the request · ``markdown``: images are part of the text · ``counted``: a stream ends with a chunk of its usage.
    """

    model: str
    name: str
    unread: int = 0
    warnings: tuple[str, ...] = ()
    markdown: bool = False
    counted: bool = False
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, found: Sequence[Answer | Turn], counts: Sequence[Count]) -> Event:
        """The response with one choice per answer."""
        choices = [self._choice(i, one, several=len(found) > 1) for i, one in enumerate(found)]
        own = {"usage": usage(counts), "unmask": self._metadata(found[0])}
        return {**self._head("chat.completion"), "choices": choices, **own}

    def greetings(self, answers: int) -> list[Event]:
        """The first chunk of every choice."""
        return [{"index": i, "delta": {"role": "assistant", "content": ""}} for i in range(answers)]

    def chunk(self, event: Event) -> Event:
        """An event as a chunk; fields other than those of a choice are placed beside ``choices``. One without a delta has no choice."""
        more = {k: v for k, v in event.items() if k not in ("index", "delta", "finish_reason")}
        choices = []
        if "delta" in event:
            end = {"finish_reason": event.get("finish_reason"), "logprobs": None}
            choices = [{"index": event.get("index", 0), "delta": event["delta"], **end}]
        counted = {"usage": None} if self.counted else {}
        return {**self._head("chat.completion.chunk"), "choices": choices, **counted, **more}

    def finish(self, found: Answer | Turn, events: ChatEvents) -> None:
        """Send the rest of an answer: its text, its images, and the chunk that ends the choice."""
        content = self.content(found)
        events.say(content.text)
        if content.pictures and not self.markdown:
            events.put(delta={"images": _images(content)})
        own = {**self._metadata(found), **_own_images(found, content)}
        events.put(delta={}, finish_reason=found.finish_reason, unmask=own)

    def closing(self, counts: Sequence[Count]) -> list[Event]:
        """The last chunk of a stream: its usage, if the client wants it."""
        return [{"usage": usage(counts)}] if self.counted else []

    def content(self, found: Answer | Turn) -> Content:
        """The content of a message. With ``markdown`` the images are in the text, where the turn has them."""
        if not isinstance(found, Turn):
            return Content(text=found.text)
        parts = [part if isinstance(part, str) else encoded(part, "png") for part in found.parts]
        pictures = tuple(made for made, part in zip(parts, found.parts, strict=True) if not isinstance(part, str))
        if not (self.markdown and pictures):
            return Content(text=found.text, pictures=pictures)
        shown = [
            made if isinstance(part, str) else f"![image]({_url(made)})"
            for made, part in zip(parts, found.parts, strict=True)
        ]
        return Content(text="\n\n".join(shown), pictures=pictures)

    def _choice(self, index: int, found: Answer | Turn, *, several: bool) -> Event:
        content = self.content(found)
        message: Event = {"role": "assistant", "content": content.text, "refusal": None}
        if content.pictures and not self.markdown:
            message["images"] = _images(content)
        message["unmask"] = {**(self._metadata(found) if several else {}), **_own_images(found, content)}
        return {"index": index, "message": message, "finish_reason": found.finish_reason, "logprobs": None}

    def _head(self, kind: str) -> Event:
        return {"id": self.name, "object": kind, "created": self.created, "model": self.model}

    def _metadata(self, found: Answer | Turn) -> Event:
        return {
            "seed": found.seed,
            "seconds": round(found.seconds, 4),
            "settings": found.settings,
            "unread": found.unread if isinstance(found, Turn) else self.unread,
            "warnings": [*found.warnings, *self.warnings],
            **labels(found.approximate),
        }


def usage(counts: Sequence[Count]) -> Event:
    """Tokens of all answers to one prompt."""
    prompt, completion = max(c.prompt for c in counts), sum(c.completion for c in counts)
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _own_images(found: Answer | Turn, content: Content) -> Event:
    """The images with their layouts. A layout exists only if the turn has exactly one image."""
    plan = found.plan.to_json() if isinstance(found, Turn) and found.plan else None
    return {"images": [{"b64_json": picture, "plan": plan} for picture in content.pictures]}


def _images(content: Content) -> list[Event]:
    """Images as chat clients read them beside the content."""
    return [
        {"type": "image_url", "image_url": {"url": _url(picture)}, "index": i}
        for i, picture in enumerate(content.pictures)
    ]


def _url(picture: str) -> str:
    return f"data:image/png;base64,{picture}"
