"""Raw continuations of text, /v1/completions: the request body, its calls and its answers.

Public idea: ``Complete`` is the body, ``Completions.of(body, ...)`` the response, whole or as the chunks of a stream. A text model
continues the prompt without a chat template. With ``suffix`` it writes the text between the prompt and the suffix, which a masked model
does without special training.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from unmask.pipeline.text_model import Prompt, TextModel
from unmask.sequence import Sequence as Tokens
from unmask.serving.calls import by_sampler, checked
from unmask.serving.errors import about
from unmask.serving.schema import IGNORED, Sampled, Visible
from unmask.serving.schema_chat import MOST_STOPS, UNSUPPORTED, StreamOptions, TokenCount
from unmask.serving.streams import Emit, Event, open_spans
from unmask.serving.unknown_fields import Policy, Unsupported, ignored_warning
from unmask.tasks.results import Answer, labels
from unmask.tasks.running import StepEvent
from unmask.tokens.text import EOS, EOT, Text

MOST_PROMPTS = 64  # per request, each of which is continued n times
MOST_CHARACTERS = 100_000  # of a prompt; the model's own limit, in tokens, is lower
_LIKELIHOOD = (
    "a masked model has no next-token probabilities, and its bound of the likelihood depends on where the prompt ends, which this request "
    "does not say"
)
_REFUSED = {
    **{name: UNSUPPORTED[name] for name in ("logit_bias", "presence_penalty", "frequency_penalty", "top_k", "min_p")},
    "logprobs": Unsupported(reason=_LIKELIHOOD, hint="use unmask.evaluation.likelihood in Python"),
    "best_of": UNSUPPORTED["best_of"],
}
_Words = Annotated[str, Field(min_length=1, max_length=MOST_CHARACTERS), Visible]
_Token = Annotated[int, Field(ge=0, lt=2**31)]
_Tokens = Annotated[list[_Token], Field(min_length=1, max_length=MOST_CHARACTERS)]


class Complete(Sampled):
    """A text, or several, to continue without a chat template. For text models only."""

    prompt: _Words | _Tokens | Annotated[list[_Words | _Tokens], Field(min_length=1, max_length=MOST_PROMPTS)] = Field(
        description="The text, its token ids, or a list of several; each of them is continued."
    )
    suffix: str = Field(
        "", max_length=MOST_CHARACTERS, description="Text after the continuation, which then has max_tokens tokens."
    )
    max_tokens: TokenCount = Field(
        16, description="Maximum number of tokens of a continuation; the model's context bounds it."
    )
    n: int = Field(1, ge=1, le=16, description="Number of continuations of each prompt. Number i uses seed + i.")
    echo: bool = Field(False, description="Put the prompt before the continuation.")
    temperature: float | None = Field(
        None, ge=0, le=2, description="Temperature of the text. 0 is greedy. Default: the model's preset."
    )
    top_p: float | None = Field(
        None, gt=0, le=1, description="Sample from the most probable tokens whose probabilities sum to top_p."
    )
    stop: list[Annotated[str, Field(min_length=1, max_length=200)]] = Field(
        [], max_length=MOST_STOPS * 4, description="The continuation ends before the first of these texts."
    )
    stream: bool = Field(False, description="Stream the continuations in chunks.")
    stream_options: StreamOptions | None = Field(None, description="Options of a stream.")

    @field_validator("stop", mode="before", json_schema_input_type=str | list[str] | None)
    @classmethod
    def _as_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @classmethod
    def policy(cls) -> Policy:
        known = set(cls.model_fields)
        return Policy(known=known, harmless=IGNORED - known - set(_REFUSED), unsupported=_REFUSED)

    @property
    def prompts(self) -> list[Prompt]:
        """Each prompt as a text or as token ids."""
        given: Any = self.prompt
        several = isinstance(given, list) and not isinstance(given[0], int)
        return [one if isinstance(one, str) else tuple(one) for one in (given if several else [given])]

    @property
    def counted(self) -> bool:
        """Whether a stream ends with a chunk that holds its usage."""
        return self.stream_options is not None and self.stream_options.include_usage


@by_sampler
def completing(body: Complete, prompt: Prompt, seed: int) -> Callable[[TextModel], Answer]:
    """The continuation of one prompt."""

    def ask(model: TextModel) -> Answer:
        options = {"seed": seed, "temperature": body.temperature, "top_p": body.top_p}
        settings = checked(body.overrides)
        with about("prompt"):
            most = {"suffix": body.suffix, "max_tokens": body.max_tokens, "stop": body.stop}
            return model.complete(prompt, settings=settings, **most, **options)

    return ask


def text_only(model: object) -> TextModel:
    """The model, if it is a text model. ValueError names what to use instead."""
    if not isinstance(model, TextModel):
        raise ValueError(
            "prompt: this model reads and draws images in conversations, it does not continue raw text; use /v1/chat/completions"
        )
    return model


class CompletionEvents:
    """Listens to one continuation, number ``index`` of a response. Of a stream it sends the text before the first masked token."""

    def __init__(self, emit: Emit, text: Text, body: Complete, *, index: int) -> None:
        self.emit, self.text, self.index, self.stream = emit, text, index, body.stream
        self.most, self.stop = body.max_tokens, tuple(body.stop)
        self.last: Tokens | None = None
        self.sent = 0

    def on_queued(self, position: int) -> None:
        """Nothing is sent before the first token."""

    def on_event(self, event: object) -> None:
        """A continuation has no layout and no attempts."""

    def on_step(self, event: StepEvent, behind: bool) -> None:
        self.last = event.sequence
        if self.stream:
            said = self.read().text
            held = [n for stop in self.stop for n in range(1, len(stop)) if said.endswith(stop[:n])]
            self._send(said[: len(said) - max(held, default=0)])

    def end(self, found: Answer) -> None:
        """Send the rest of the text, and the event that ends it."""
        read = self.read()
        self._send(read.text)
        self.emit({"index": self.index, "text": "", "finish_reason": read.reason})

    def read(self) -> Continuation:
        """The continuation before the first masked token."""
        if self.last is None:
            return Continuation(text="", reason="length", tokens=0, prompt=0)
        (span,) = open_spans(self.last)
        ids, masked = (x[span.start : span.stop].tolist() for x in (self.last.ids, self.last.masked))
        ids = ids[: masked.index(True) if True in masked else len(ids)]
        ends = (self.text[EOT], self.text[EOS])
        ended = next((n for n, i in enumerate(ids) if i in ends), None)
        kept = ids[: self.most if ended is None else min(ended, self.most)]
        said = self.text.raw(kept)
        if self.text.decode_begun(kept) != self.text.decode(kept):
            said = said[:-1]  # an incomplete character
        found = [at for stop in self.stop if (at := said.find(stop)) >= 0]
        complete = bool(found) or (ended is not None and ended <= self.most)
        return Continuation(
            text=said[: min(found)] if found else said,
            reason="stop" if complete else "length",
            tokens=len(kept),
            prompt=len(self.last.ids) - len(span),
        )

    def _send(self, said: str) -> None:
        if len(said) > self.sent:
            self.emit({"index": self.index, "text": said[self.sent :]})
            self.sent = len(said)


@dataclass(frozen=True, kw_only=True)
class Continuation:
    """A text, why it ended, and its number of tokens; ``prompt``: tokens before and after it."""

    text: str
    reason: Literal["stop", "length"]
    tokens: int
    prompt: int


@dataclass(frozen=True, kw_only=True)
class Completions:
    """A response to a request. ``echoes``: the text before each continuation · ``n``: continuations of a prompt · ``warnings``: about the
    request · ``counted``: a stream ends with a chunk of its usage.
    """

    model: str
    name: str
    echoes: Sequence[str]
    n: int
    warnings: tuple[str, ...] = ()
    counted: bool = False
    created: int = field(default_factory=lambda: int(time.time()))

    @classmethod
    def of(cls, body: Complete, model: TextModel, *, model_name: str, name: str) -> Completions:
        given = [model.parts.text.as_text(prompt) if body.echo else "" for prompt in body.prompts]
        echoes = [echo for echo in given for _ in range(body.n)]
        told = ignored_warning(body.ignored)
        return cls(model=model_name, name=name, echoes=echoes, n=body.n, warnings=told, counted=body.counted)

    def whole(self, listeners: Sequence[CompletionEvents], found: Sequence[Answer]) -> Event:
        choices = []
        for echo, one in zip(self.echoes, listeners, strict=True):
            read = one.read()
            end = {"logprobs": None, "finish_reason": read.reason}
            choices.append({"text": echo + read.text, "index": one.index, **end})
        seconds = round(sum(answer.seconds for answer in found), 4)
        own = {
            "seed": found[0].seed,
            "seconds": seconds,
            "settings": found[0].settings,
            "warnings": list(self.warnings),
            **labels(found[0].approximate),
        }
        return {**self._head(), "choices": choices, "usage": self._usage(listeners), "unmask": own}

    def greetings(self) -> list[Event]:
        """The chunks with the prompts, where they are echoed."""
        return [{"index": i, "text": echo} for i, echo in enumerate(self.echoes) if echo]

    def chunk(self, event: Event) -> Event:
        more = {k: v for k, v in event.items() if k not in ("index", "text", "finish_reason")}
        choice = {"text": event.get("text"), "index": event.get("index"), "logprobs": None}
        choices = [{**choice, "finish_reason": event.get("finish_reason")}] if "text" in event else []
        return {**self._head(), "choices": choices, **({"usage": None} if self.counted else {}), **more}

    def closing(self, listeners: Sequence[CompletionEvents]) -> list[Event]:
        return [{"usage": self._usage(listeners)}] if self.counted else []

    def _usage(self, listeners: Sequence[CompletionEvents]) -> Event:
        """Tokens of all prompts, each counted once, and of all continuations."""
        read = [one.read() for one in listeners]
        prompt, completion = sum(one.prompt for one in read[:: self.n]), sum(one.tokens for one in read)
        return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}

    def _head(self) -> Event:
        return {"id": self.name, "object": "text_completion", "created": self.created, "model": self.model}
