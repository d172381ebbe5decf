"""What a client is told while it waits. Public idea: a ``Channel`` from the threads that work to the one reader of a stream, and listeners
that turn the steps of a job into events: ``PictureEvents`` and ``ChatEvents``.

A token that may still change is a *draft*, one that is decided is *committed*. Clients that know nothing of it get what OpenAI's API has:
previews of pictures, and text of which only the committed beginning is sent.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from unmask.sequence import Kind, Span
from unmask.sequence import Sequence as Tokens
from unmask.serving.service import Started
from unmask.tasks.generate import picture_so_far
from unmask.tasks.parts import Parts
from unmask.tasks.results import Attempt
from unmask.tasks.running import Shown
from unmask.tokens.layouts import Layout
from unmask.tokens.text import EOS, EOT, Text

Event = dict[str, Any]
Emit = Callable[[Event], None]
_SILENCE = 15.0  # seconds after which a stream says that it is alive
_BEGIN = 2.0  # seconds in which a mistake may still become a status of its own


class Channel:
    """``put`` in any thread; ``end`` once, when a job is over. For the event loop in which it is made."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[Event | BaseException | None] = asyncio.Queue()

    def put(self, event: Event | BaseException | None) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._queue.put_nowait, event)

    async def next(self, seconds: float) -> Event | BaseException | None:
        """The next event; TimeoutError if there is none within ``seconds``."""
        return await asyncio.wait_for(self._queue.get(), seconds)


class PictureEvents:
    """Events of one picture of a request. ``kind``: image_generation or image_edit · ``picture``: its number · ``partial``: how many
    previews · ``trace``: whether every step is told.
    """

    def __init__(
        self, emit: Emit, parts: Parts, *, kind: str, picture: int, partial: int, trace: bool, file: str
    ) -> None:
        self.emit, self.parts, self.kind, self.picture, self.file = emit, parts, kind, picture, file
        self.partial, self.trace = partial, trace
        self.round, self.judged, self.sent = 0, False, 0

    def queued(self, position: int) -> None:
        if self.trace:
            self._tell("queued", position=position)

    def shown(self, shown: Shown, behind: bool) -> None:
        stage = _stage(shown.sequence)
        if shown.number == 0:
            self._enter(stage)
        if stage == "draw":
            self._canvas(shown, behind)
        elif self.trace:
            tokens = tokens_of(shown.sequence, self.parts.text)
            self._tell("text", stage=stage, round=self.round, step=shown.number, of=shown.of, tokens=tokens)

    def told(self, thought: Layout | Attempt) -> None:
        if not self.trace:
            return
        if isinstance(thought, Layout):
            self._enter("plan")
            self._tell("plan", round=self.round, plan=thought.to_json())
        else:
            said = {"critique": thought.critique, "accepted": thought.accepted, "approval": thought.approval}
            self._tell("round", round=self.round, b64_json=encoded(thought.image, self.file), **said)

    def _enter(self, stage: str) -> None:
        """A plan or a picture after a critique is the next round's."""
        if stage in ("plan", "draw") and self.judged:
            self.round, self.judged, self.sent = self.round + 1, False, 0
        self.judged = self.judged or stage == "critique"

    def _canvas(self, shown: Shown, behind: bool) -> None:
        due = min(self.partial, shown.number * (self.partial + 1) // max(1, shown.of))
        preview = self.sent < due
        if not (self.trace or preview):
            return
        codes, masked = picture_so_far(shown.sequence, "image")
        late = behind and not preview and shown.number < shown.of
        image = None if late else self.parts.canvas(codes, masked)
        if self.trace:
            self._tell(
                "frame",
                round=self.round,
                step=shown.number,
                of=shown.of,
                grid=list(masked.shape),
                masked="".join("01"[v] for v in masked.flatten().int().tolist()),
                b64_json=encoded(image, "jpeg") if image else None,
            )
        if preview and image:
            self.emit(
                {
                    "type": f"{self.kind}.partial_image",
                    "b64_json": encoded(image, self.file),
                    "partial_image_index": self.sent,
                    "output_format": self.file,
                    "unmask": {"picture": self.picture, "round": self.round},
                }
            )
            self.sent += 1

    def _tell(self, what: str, **fields: Any) -> None:
        self.emit({"type": f"unmask.{what}", "picture": self.picture, **fields})


class ChatEvents:
    """What was written so far, as OpenAI's chunks. ``stream``: whether the committed beginning is sent at once · ``formed``: the answer
    is put together from what is written when all is there, so it is sent then, and lacks nothing.
    """

    def __init__(self, emit: Emit, text: Text, *, stream: bool, trace: bool, formed: bool = False) -> None:
        self.emit, self.text, self.stream, self.trace = emit, text, stream, trace
        self.formed = formed
        self.sent = ""
        self.last: Tokens | None = None

    def queued(self, position: int) -> None:
        if self.trace:
            self.emit({"delta": {}, "unmask": {"position": position}})

    def shown(self, shown: Shown, behind: bool) -> None:
        if _stage(shown.sequence) == "draw":
            if self.trace:
                _, masked = picture_so_far(shown.sequence, "image")
                flat = "".join("01"[v] for v in masked.flatten().int().tolist())
                grid = {"grid": list(masked.shape), "masked": flat}
                self.emit({"delta": {}, "unmask": {"step": shown.number, "of": shown.of, **grid}})
            return
        self.last = shown.sequence
        if self.trace:
            tokens = tokens_of(shown.sequence, self.text)
            self.emit({"delta": {}, "unmask": {"step": shown.number, "of": shown.of, "tokens": tokens}})
        if self.stream and not self.formed:
            self.say(_committed(shown.sequence, self.text))

    def told(self, thought: Layout | Attempt) -> None:
        if self.trace and isinstance(thought, Layout):
            self.emit({"delta": {}, "unmask": {"plan": thought.to_json()}})

    def say(self, whole: str) -> None:
        """Send what is new of a text that begins as it did before."""
        if whole.startswith(self.sent) and len(whole) > len(self.sent):
            self.emit({"delta": {"content": whole[len(self.sent) :]}})
            self.sent = whole

    @property
    def counts(self) -> tuple[int, int, bool]:
        """Tokens that were given and that were written, and whether there was no room for more."""
        if self.last is None:
            return 0, 0, False
        written = [self.last.ids[s.start : s.stop].tolist() for s in _open_spans(self.last)]
        ends, room = (self.text[EOT], self.text[EOS]), sum(map(len, written))
        used = sum(next((k for k, i in enumerate(ids) if i in ends), len(ids)) for ids in written)
        return len(self.last.ids) - room, used, used == room and not self.formed


@dataclass(frozen=True, kw_only=True)
class Wire:
    """How events become bytes: ``frame`` says it; ``last`` ends the stream."""

    frame: Callable[[Event], bytes]
    last: bytes = b"data: [DONE]\n\n"


def sse(event: Event, name: str | None = None) -> bytes:
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(event, allow_nan=False)}\n\n".encode("ascii")


async def opened(channel: Channel, gone: asyncio.Future[Any]) -> list[Event]:
    """What comes first, so that a mistake which shows at once is answered with a status; nothing if nothing came for a while."""
    getting = asyncio.ensure_future(channel.next(_BEGIN))
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
    started: Sequence[Started],
    gone: asyncio.Future[Any],
    wire: Wire,
    told: Callable[[BaseException], Event],
) -> AsyncIterator[bytes]:
    """All events until each job has ended (None, once a job), or the client has gone, which cancels what is left."""
    left = len(started)
    try:
        for event in early:
            yield wire.frame(event)
        while left:
            getting = asyncio.ensure_future(channel.next(_SILENCE))
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
                yield sse(told(event), "error")
                return
            else:
                yield wire.frame(event)
        yield wire.last
    finally:
        gone.cancel()
        for one in started:
            one.job.cancel()


def encoded(image: Image.Image, file: str) -> str:
    """A picture as base64 of a png, jpeg or webp file."""
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, file.upper(), **({} if file == "png" else {"quality": 90}))
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def tokens_of(sequence: Tokens, text: Text) -> list[Event]:
    """Every token that is written: its text, ``_`` while it is undecided."""
    return [
        {
            "text": "_" if bool(sequence.masked[i]) else text.show([int(sequence.ids[i])]),
            "committed": not bool(sequence.masked[i]),
        }
        for span in _open_spans(sequence)
        for i in range(span.start, span.stop)
    ]


def _open_spans(sequence: Tokens) -> list[Span]:
    return [s for s in sequence.spans if s.writable and s.kind == Kind.TEXT]


def _stage(sequence: Tokens) -> str:
    names = {span.name for span in sequence.spans if span.writable}
    return "draw" if "image" in names else "plan" if "plan" in names else "critique"


def _committed(sequence: Tokens, text: Text) -> str:
    """The text up to the first token that may still change, without half a character."""
    ids: list[int] = []
    for span in _open_spans(sequence):
        for i in range(span.start, span.stop):
            if bool(sequence.masked[i]):
                return text.decode(ids).rstrip("\ufffd")
            ids.append(int(sequence.ids[i]))
    return text.decode(ids).rstrip("\ufffd")
