"""The steps of a chat answer as events. Public idea: ``ChatEvents``, the listener of one answer, and ``Count``, its tokens."""

from __future__ import annotations

from dataclasses import dataclass

from unmask.sequence import Sequence as Tokens
from unmask.serving.streams import Emit, open_spans, stage_of, tokens_of
from unmask.tasks.generate import picture_so_far
from unmask.tasks.lengths import Extent, words_so_far
from unmask.tasks.results import Attempt
from unmask.tasks.running import StepEvent
from unmask.tokens.layouts import Layout
from unmask.tokens.text import EOS, EOT, EXP, Text


@dataclass(frozen=True, kw_only=True)
class Count:
    """Tokens of the prompt and of the answer."""

    prompt: int
    completion: int


class ChatEvents:
    """The text so far, as OpenAI's chunks. ``index``: number of the answer · ``extent``: limits of the answer, which is sent step by step,
    up to its first masked token; None: it is sent when it is complete. Structured output is assembled at the end, and only complete words
    show whether they are an answer or the layout of an image.
    """

    def __init__(self, emit: Emit, text: Text, *, trace: bool, index: int = 0, extent: Extent | None = None) -> None:
        self.emit, self.text, self.trace = emit, text, trace
        self.index, self.extent = index, extent
        self.sent = ""
        self.last: Tokens | None = None

    def on_queued(self, position: int) -> None:
        self._trace(position=position)

    def on_step(self, event: StepEvent, behind: bool) -> None:
        sequence, step = event.sequence, {"step": event.number, "of": event.of}
        if stage_of(sequence) == "draw":
            if self.trace:
                _, masked = picture_so_far(sequence, "image")
                flat = "".join("01"[v] for v in masked.flatten().int().tolist())
                self._trace(**step, grid=list(masked.shape), masked=flat)
            return
        self.last = sequence
        if self.trace:
            self._trace(**step, tokens=tokens_of(sequence, self.text))
        if self.extent:
            self.say(words_so_far(sequence, self.text, self.extent))

    def on_event(self, event: Layout | Attempt) -> None:
        if isinstance(event, Layout):
            self._trace(plan=event.to_json())

    def say(self, whole: str) -> None:
        """Send the part of a text that has not been sent yet."""
        if whole.startswith(self.sent) and len(whole) > len(self.sent):
            self.put(delta={"content": whole[len(self.sent) :]})
            self.sent = whole

    def put(self, **event: object) -> None:
        """Send a chunk of this answer."""
        self.emit({"index": self.index, **event})

    @property
    def count(self) -> Count:
        if self.last is None:
            return Count(prompt=0, completion=0)
        written = [self.last.ids[s.start : s.stop].tolist() for s in open_spans(self.last)]
        ends, canvas = {self.text.control.get(name) for name in (EOT, EOS, EXP)}, sum(map(len, written))
        used = sum(next((k for k, i in enumerate(ids) if i in ends), len(ids)) for ids in written)
        most = self.extent.limit if self.extent else used
        return Count(prompt=len(self.last.ids) - canvas, completion=min(used, most))

    def _trace(self, **about: object) -> None:
        if self.trace:
            self.put(delta={}, unmask=about)
