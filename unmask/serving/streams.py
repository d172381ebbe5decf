"""Server-sent events. Public idea: a ``Channel`` from worker threads to the one reader of a stream, and listeners that turn the steps of a
job into events: ``PictureEvents``, and ``chat_events.ChatEvents``.

A masked token, or one that may still change, is a *draft*; any other is *committed*. Clients of OpenAI's API get what that API has:
previews of pictures, and text, of which only the committed beginning is sent.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

from unmask.json_types import Json
from unmask.sequence import Kind, Span
from unmask.sequence import Sequence as Tokens
from unmask.serving.delivery import Delivery, encoded
from unmask.tasks.generate import picture_so_far
from unmask.tasks.parts import Parts
from unmask.tasks.results import Attempt
from unmask.tasks.running import StepEvent
from unmask.tokens.layouts import Layout
from unmask.tokens.text import Text

Event = Json
Emit = Callable[[Event], None]
_KEEP_ALIVE = 15.0  # seconds without an event, after which a stream sends a comment
_FIRST_EVENT = 2.0  # seconds in which an error can still become an HTTP status


class Channel:
    """``put`` in any thread, ``next`` in the event loop in which it was made. None: one job has ended."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[Event | BaseException | None] = asyncio.Queue()

    def put(self, event: Event | BaseException | None) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._queue.put_nowait, event)

    async def next(self, seconds: float) -> Event | BaseException | None:
        """The next event. TimeoutError if none comes within ``seconds``."""
        return await asyncio.wait_for(self._queue.get(), seconds)


class PictureEvents:
    """Events of one picture of a request. ``kind``: image_generation or image_edit · ``picture``: its number · ``partial``: number of
    previews, of all attempts together · ``trace``: whether every step is sent · ``delivery``: size and format of the previews.
    """

    def __init__(
        self, emit: Emit, parts: Parts, *, kind: str, picture: int, partial: int, trace: bool, delivery: Delivery
    ) -> None:
        self.emit, self.parts, self.kind, self.picture, self.delivery = emit, parts, kind, picture, delivery
        self.partial, self.trace = partial, trace
        self.round, self.judged, self.sent = 0, False, 0

    def on_queued(self, position: int) -> None:
        if self.trace:
            self._emit("queued", position=position)

    def on_step(self, event: StepEvent, behind: bool) -> None:
        stage = stage_of(event.sequence)
        if event.number == 0:
            self._enter(stage)
        if stage == "draw":
            self._canvas(event, behind)
        elif self.trace:
            tokens = tokens_of(event.sequence, self.parts.text)
            self._emit("text", stage=stage, round=self.round, step=event.number, of=event.of, tokens=tokens)

    def on_event(self, event: Layout | Attempt) -> None:
        if not self.trace:
            return
        if isinstance(event, Layout):
            self._enter("plan")
            self._emit("plan", round=self.round, plan=event.to_json())
        else:
            judged = {"critique": event.critique, "accepted": event.accepted, "approval": event.approval}
            self._emit("round", round=self.round, b64_json=encoded(event.image, self.delivery.file), **judged)

    def _enter(self, stage: str) -> None:
        """A plan or a picture after a critique begins the next round."""
        if stage in ("plan", "draw") and self.judged:
            self.round, self.judged = self.round + 1, False
        self.judged = self.judged or stage == "critique"

    def _canvas(self, event: StepEvent, behind: bool) -> None:
        due = min(self.partial, event.number * (self.partial + 1) // max(1, event.of))
        preview = self.sent < due
        if not (self.trace or preview):
            return
        codes, masked = picture_so_far(event.sequence, "image")
        late = behind and not preview and event.number < event.of
        image = None if late else self.parts.canvas(codes, masked)
        if self.trace:
            self._emit(
                "frame",
                round=self.round,
                step=event.number,
                of=event.of,
                grid=list(masked.shape),
                masked="".join("01"[v] for v in masked.flatten().int().tolist()),
                b64_json=encoded(image, "jpeg") if image else None,
                **({"patch": event.patch} if event.patch else {}),
            )
        if preview and image:
            self.emit(
                {
                    "type": f"{self.kind}.partial_image",
                    "b64_json": self.delivery.encoded(image),
                    "partial_image_index": self.sent,
                    **self.delivery.about(image),
                    "unmask": {"picture": self.picture, "round": self.round},
                }
            )
            self.sent += 1

    def _emit(self, what: str, **fields: object) -> None:
        self.emit({"type": f"unmask.{what}", "picture": self.picture, **fields})


@dataclass(frozen=True, kw_only=True)
class Wire:
    """How events become bytes: ``frame`` encodes one · ``closing``: events after all calls have ended · ``last`` ends the stream."""

    frame: Callable[[Event], bytes]
    closing: Callable[[], Sequence[Event]] = tuple
    last: bytes = b"data: [DONE]\n\n"


def sse(event: Event, name: str | None = None) -> bytes:
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(event, allow_nan=False)}\n\n".encode("ascii")


async def opened(channel: Channel, gone: asyncio.Future[None]) -> list[Event]:
    """The first event, or none if it takes longer than two seconds. Raises an early error, which then becomes an HTTP status."""
    getting = asyncio.ensure_future(channel.next(_FIRST_EVENT))
    await asyncio.wait({getting, gone}, return_when=asyncio.FIRST_COMPLETED)
    if not getting.done():
        getting.cancel()
        raise ConnectionAbortedError("the client has gone")
    try:
        first = getting.result()
    except TimeoutError:
        return []
    if isinstance(first, BaseException):
        raise first
    return [] if first is None else [first]


async def streamed(
    channel: Channel,
    early: Sequence[Event],
    cancels: Sequence[Callable[[], None]],
    gone: asyncio.Future[None],
    wire: Wire,
    error_payload: Callable[[BaseException], Event],
) -> AsyncIterator[bytes]:
    """All events until every run has ended (one None for each). ``cancels``: end one run each, if the client leaves."""
    left = len(cancels)
    try:
        for event in early:
            yield wire.frame(event)
        while left:
            getting = asyncio.ensure_future(channel.next(_KEEP_ALIVE))
            await asyncio.wait({getting, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not getting.done():
                getting.cancel()
                return
            try:
                event = getting.result()
            except TimeoutError:
                yield b": still at work\n\n"
                continue
            if event is None:
                left -= 1
            elif isinstance(event, BaseException):
                yield sse(error_payload(event), "error")
                return
            else:
                yield wire.frame(event)
        for event in wire.closing():
            yield wire.frame(event)
        yield wire.last
    finally:
        gone.cancel()
        for cancel in cancels:
            cancel()


def tokens_of(sequence: Tokens, text: Text) -> list[Event]:
    """Every writable text token: its text (``_`` while it is masked), and whether it is committed."""
    return [
        {
            "text": "_" if bool(sequence.masked[i]) else text.show([int(sequence.ids[i])]),
            "committed": not bool(sequence.masked[i]),
        }
        for span in open_spans(sequence)
        for i in range(span.start, span.stop)
    ]


def open_spans(sequence: Tokens) -> list[Span]:
    return [s for s in sequence.spans if s.writable and s.kind == Kind.TEXT]


def stage_of(sequence: Tokens) -> str:
    names = {span.name for span in sequence.spans if span.writable}
    return "draw" if "image" in names else "plan" if "plan" in names else "critique"
