"""The answers of the HTTP API as schemas, for /openapi.json.

Public idea: a route takes ``**answers(Model)`` or ``**answers(Model, *events)`` where it may stream. The models describe what
``serving.answers`` builds; tests/serving/test_contract.py holds real answers against them. Clients must accept fields that are not
described here, because later versions add some.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from unmask.json_types import Json


class Open(BaseModel):
    """An object of an answer: more fields may follow in later versions."""

    model_config = ConfigDict(extra="allow")


class ErrorDetail(BaseModel):
    """``message`` states the problem and, after its last semicolon, what to do."""

    message: str = Field(min_length=1)
    type: Literal[
        "invalid_request_error", "authentication_error", "permission_error", "rate_limit_error", "server_error"
    ]
    param: str | None = Field(
        description="Dotted path of the field, such as messages.0.content; null for the whole request."
    )
    code: str = Field(description="The kind of error, see docs/api.md.")


class Error(BaseModel):
    """Every error of the server."""

    error: ErrorDetail


class Status(Open):
    """State of the process."""

    status: Literal["ok", "ready", "draining"]


class ModelCard(Open):
    """The served model; ``unmask`` holds its tasks and the side of its images in pixels."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    unmask: Json


class ModelList(Open):
    """OpenAI's model list, with one entry."""

    object: Literal["list"]
    data: list[ModelCard] = Field(min_length=1, max_length=1)


class FieldSchemas(Open):
    """JSON schemas of the request bodies by task."""

    generate: Json
    edit: Json
    ask: Json
    ground: Json
    infill: Json
    chat: Json


class PictureDetails(Open):
    """How a picture was made. ``rounds``: all attempts · ``settings``: all parts of the sampler with their values · ``approximate``: the
    parts of fast mode that acted; absent from an exact answer.
    """

    seed: int
    seconds: float
    plan: Json | None
    rounds: list[Json]
    settings: Json
    approximate: list[str] = []


class PictureEntry(Open):
    """One picture: ``b64_json``, a file in base64, or ``url``."""

    b64_json: str | None = None
    url: str | None = None
    unmask: PictureDetails


class Pictures(Open):
    """OpenAI's answer to a request for images."""

    created: int
    data: list[PictureEntry] = Field(min_length=1)


class Changed(Open):
    """A change of a drawing was taken. ``patch``: its number; frames that follow it have this number or a higher one."""

    name: str
    patch: int


class Filled(Open):
    """A text with its gaps filled in."""

    text: str
    seed: int
    seconds: float
    settings: Json
    approximate: list[str] = []


class GroundedBox(Open):
    """A phrase and its box: x1, y1, x2, y2 as fractions of the image."""

    phrase: str
    box: list[float] = Field(min_length=4, max_length=4)


class Grounded(Open):
    """One box per phrase. ``width``, ``height``: of the image in pixels."""

    boxes: list[GroundedBox]
    width: int
    height: int
    seed: int
    seconds: float
    settings: Json


class Usage(Open):
    """Numbers of tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Spoken(Open):
    """The assistant's message. ``unmask.images``: its pictures."""

    role: Literal["assistant"]
    content: str | None
    unmask: Json


class ChatChoice(Open):
    """An answer."""

    index: int
    message: Spoken
    finish_reason: Literal["stop", "length"]


class ChatAnswer(Open):
    """OpenAI's chat completion."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice] = Field(min_length=1)
    usage: Usage
    unmask: Json


class ChunkChoice(Open):
    """A piece of a chat answer."""

    index: int
    delta: Json
    finish_reason: Literal["stop", "length"] | None


class ChatChunk(Open):
    """OpenAI's chunk of a chat completion; ``unmask``: a step (with trace), or the details of the answer at its end."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | None = None
    unmask: Json | None = None


class PictureEvent(Open):
    """An event of a picture. ``partial_image`` and ``completed`` hold the picture; unmask.* events are sent with trace."""

    type: Literal[
        "image_generation.partial_image",
        "image_generation.completed",
        "image_edit.partial_image",
        "image_edit.completed",
        "unmask.queued",
        "unmask.text",
        "unmask.plan",
        "unmask.frame",
        "unmask.round",
    ]
    b64_json: str | None = None


class CompletionChoice(Open):
    """A continuation of a prompt; in a stream, a piece of it."""

    text: str
    index: int
    logprobs: None
    finish_reason: Literal["stop", "length"] | None


class CompletionAnswer(Open):
    """OpenAI's text completion, also as a chunk of a stream."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None


class TalkModel(Open):
    """The model of a server of talks. ``seconds``: length of a chunk · ``rate``: samples a second · ``most``: talks at the same time."""

    id: str
    seconds: float
    rate: int
    faces: int
    moves: str
    most: int
    running: int


class TalkChunk(Open):
    """A chunk of a talk: a picture as a PNG file, and its sound as 16 bit samples, little endian, both in base64. ``change``: the last one
    that acts on it · ``waiting``: letters that are not spoken yet · ``milliseconds``: that it took to make.
    """

    type: Literal["unmask.chunk"]
    number: int
    b64_json: str
    sound: str
    change: int
    waiting: int
    milliseconds: float


class TalkEnd(Open):
    """The end of a talk that has lasted its time."""

    type: Literal["unmask.talk.completed"]
    name: str
    seed: int
    changes: int


class TalkChanged(Open):
    """A change of a talk was taken. ``change``: its number; chunks that follow it have this number or a higher one."""

    name: str
    change: int
    waiting: int


_EVENTS: dict[type[BaseModel], type[BaseModel]] = {
    Pictures: PictureEvent,
    ChatAnswer: ChatChunk,
    CompletionAnswer: CompletionAnswer,
}
COMPONENTS: tuple[type[BaseModel], ...] = (
    *(Error, Status, ModelCard, ModelList, FieldSchemas, Pictures, PictureEvent, Changed, Filled, Grounded),
    *(ChatAnswer, ChatChunk, CompletionAnswer),
)
TALK_COMPONENTS: tuple[type[BaseModel], ...] = (Error, Status, TalkModel, TalkChunk, TalkEnd, TalkChanged)


def answers(*bodies: type[BaseModel], status: int = 200) -> dict[str, Any]:
    """The parameter ``responses`` of a route that answers with one of ``bodies``, or with a stream of their events."""
    refs = [{"$ref": f"#/components/schemas/{body.__name__}"} for body in bodies]
    content: Json = {"application/json": {"schema": refs[0] if len(refs) == 1 else {"anyOf": refs}}}
    streamed = [_EVENTS[body] for body in bodies if body in _EVENTS]
    if streamed:
        content["text/event-stream"] = {"schema": _stream(streamed)}
    return {"responses": {status: {"description": "Successful response.", "content": content}}}


def events(*kinds: type[BaseModel]) -> dict[str, Any]:
    """The parameter ``responses`` of a route that always streams."""
    content = {"text/event-stream": {"schema": _stream(list(kinds))}}
    return {"responses": {200: {"description": "Successful response.", "content": content}}}


def _stream(kinds: list[type[BaseModel]]) -> Json:
    """A stream, described by one of its events."""
    refs = [{"$ref": f"#/components/schemas/{kind.__name__}"} for kind in (*kinds, Error)]
    event = {"contentMediaType": "application/json", "contentSchema": {"anyOf": refs}}
    return {
        "type": "object",
        "description": "With stream: a server-sent event. Its data is a JSON object; that of the last one is [DONE]. An error after the "
        "first event is the event `error`.",
        "properties": {
            "event": {"type": "string"},
            "data": {"type": "string", "anyOf": [{"const": "[DONE]"}, event]},
        },
        "required": ["data"],
    }


def readiness() -> dict[str, Any]:
    """The parameter ``responses`` of /readyz, whose body is the same with 200 and 503."""
    ready, draining = answers(Status)["responses"][200], answers(Status)["responses"][200]
    return {"responses": {200: ready, 503: {**draining, "description": "The server shuts down."}}}


def plain_text() -> dict[str, Any]:
    """The parameter ``responses`` of a route that answers with text."""
    content = {"text/plain": {"schema": {"type": "string"}}}
    return {"responses": {200: {"description": "Metrics in the text format of Prometheus.", "content": content}}}
