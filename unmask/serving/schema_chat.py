"""The request body of /v1/chat/completions. Public idea: ``Chat``, and ``ChatMessage`` with its text and its images.

``UNSUPPORTED`` lists the fields of OpenAI's API (and of servers that extend it) that would change the answer and that no model here can
follow: a request that sets one is an error which names it.
"""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr, field_validator, model_validator

from unmask.json_types import Json
from unmask.serving.schema import IGNORED, MOST_PICTURES, Sampled, Text, kinds_of, optional_may_be_null
from unmask.serving.unknown_fields import Policy, Unsupported, check_kinds, refuse_field

MOST_FORM = 20_000  # characters of an answer format; nested schemas are traversed repeatedly
MOST_STOPS = 4  # as in OpenAI's API
HARMLESS = IGNORED | {"prediction", "models"}  # a guess at the answer; other models to fall back on
_TOOLS = "the model calls no tools"
_ORDER = "tokens are unmasked in any order, not one after the other"
_PENALTY = "sampling has no penalties for repeated tokens"
_FORMAT, _USE_FORMAT = "it is a field of other servers", "use response_format with a JSON schema or a regex"
UNSUPPORTED = {
    "tools": Unsupported(reason=_TOOLS, neutral=([],)),
    "functions": Unsupported(reason=_TOOLS, neutral=([],)),
    "tool_choice": Unsupported(reason=_TOOLS, neutral=("none", "auto")),
    "function_call": Unsupported(reason=_TOOLS, neutral=("none", "auto")),
    "logprobs": Unsupported(reason=_ORDER, neutral=(False,)),
    "top_logprobs": Unsupported(reason=_ORDER, neutral=(0,)),
    "logit_bias": Unsupported(reason="logits are not biased", neutral=({},)),
    "presence_penalty": Unsupported(reason=_PENALTY, neutral=(0,)),
    "frequency_penalty": Unsupported(reason=_PENALTY, neutral=(0,)),
    "repetition_penalty": Unsupported(reason=_PENALTY, neutral=(1,)),
    "top_k": Unsupported(reason="sampling has no limit by rank", neutral=(0, -1), hint="use top_p"),
    "min_p": Unsupported(reason="sampling has no limit by ratio", neutral=(0,), hint="use top_p"),
    "min_tokens": Unsupported(reason="an answer has no minimum length", neutral=(0,)),
    "ignore_eos": Unsupported(reason="an answer stops at its end of turn", neutral=(False,)),
    "best_of": Unsupported(reason="answers are not ranked", neutral=(1,), hint="use n"),
    "audio": Unsupported(reason="the model has no voice"),
    "web_search_options": Unsupported(reason="the model does not search the web"),
    "guided_json": Unsupported(reason=_FORMAT, hint=_USE_FORMAT),
    "guided_regex": Unsupported(reason=_FORMAT, hint=_USE_FORMAT),
    "guided_choice": Unsupported(reason=_FORMAT, hint=_USE_FORMAT),
    "guided_grammar": Unsupported(reason=_FORMAT, hint=_USE_FORMAT),
    "grammar": Unsupported(reason=_FORMAT, hint=_USE_FORMAT),
}
_IMAGE_IN_MARKDOWN = re.compile(r"!\[[^\]]*\]\(\s*(data:[^\s)]+)\s*\)", re.IGNORECASE)


def _as_integer(value: object) -> object:
    """A huge number without a fraction as an integer, which the validator takes in any size."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


TokenCount = Annotated[int, Field(ge=1), BeforeValidator(_as_integer)]
"""A number of tokens."""
_LENIENT = ConfigDict(extra="ignore", allow_inf_nan=False, json_schema_extra=optional_may_be_null)


class Part(BaseModel):
    """A part of a body: unknown fields are ignored, and null counts as absent."""

    model_config = _LENIENT

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        kept = {k: v for k, v in data.items() if v is not None}
        check_kinds(kept, kinds_of(cls))
        return kept


class ImageUrl(Part):
    """An image in a message. Other fields, such as ``detail``, are ignored."""

    url: str = Field(description="The image as a data: URL; the server does not fetch URLs.")


class ContentPart(Part):
    """A part of a message."""

    type: Literal["text", "image_url"] = Field(description="Text or an image.")
    text: Text = Field("", description="The text.")
    image_url: ImageUrl | None = Field(None, description="The image: an object with its url, or the url itself.")

    @field_validator("type", mode="before")
    @classmethod
    def _known_type(cls, value: Any) -> Any:
        if value not in ("text", "image_url"):
            raise ValueError(f"{_shown(value)} is not supported; use text or image_url")
        return value

    @field_validator("image_url", mode="before", json_schema_input_type=ImageUrl | str | None)
    @classmethod
    def _as_object(cls, value: Any) -> Any:
        return {"url": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.type == "image_url" and self.image_url is None:
            raise ValueError("a part of type image_url needs the field image_url; add it")
        if self.type == "text" and "text" not in self.model_fields_set:
            raise ValueError("a part of type text needs the field text; add it")
        return self


class ChatMessage(Part):
    """A message of the conversation. An answer of this server may be sent back as it is, with its images."""

    role: Literal["system", "developer", "user", "assistant"] = Field(description="Author of the message.")
    content: list[ContentPart] = Field(
        [],
        description="Text, or a list of text and image parts. Images in Markdown with a data: URL count as image parts.",
    )
    images: list[ContentPart] = Field([], max_length=64, description="Images of an answer, as in the response.")

    @field_validator("role", mode="before")
    @classmethod
    def _known_role(cls, value: Any) -> Any:
        if value in ("tool", "function"):
            raise ValueError(f"{value} is not supported, because {_TOOLS}; send the result in a message of the user")
        return value

    @field_validator("content", mode="before", json_schema_input_type=str | list[ContentPart] | None)
    @classmethod
    def _as_parts(cls, value: Any) -> Any:
        if not isinstance(value, str | list):
            raise ValueError(f"expected text or a list of parts, got {_shown(value)}; send a string")
        parts = [{"type": "text", "text": value}] if isinstance(value, str) else value
        return [small for part in parts for small in _without_markdown(part)]

    @model_validator(mode="before")
    @classmethod
    def _no_tools(cls, data: Any) -> Any:
        for name in ("tool_calls", "function_call", "audio"):
            if isinstance(data, dict) and data.get(name):
                raise refuse_field(
                    name, data[name], f"not supported: {_TOOLS}, and it has no voice; leave the message out"
                )
        return data

    @model_validator(mode="after")
    def _images_of_speakers(self) -> Self:
        if self.pictures and self.role not in ("user", "assistant"):
            raise refuse_field(
                "content", None, f"a {self.role} message cannot contain images; move them to a user message"
            )
        return self

    @property
    def words(self) -> str:
        return "\n".join(part.text for part in self.content if part.type == "text")

    @property
    def pictures(self) -> list[str]:
        """Its images as URLs."""
        return [part.image_url.url for part in [*self.content, *self.images] if part.image_url]


class StreamOptions(Part):
    """Options of a stream."""

    include_usage: bool = Field(False, description="Send a last chunk with usage and no choices.")


class Chat(Sampled):
    """A conversation. With an image, the last message is a question about it; otherwise the next turn is generated."""

    messages: list[ChatMessage] = Field(
        min_length=1, max_length=256, description="The messages so far; the last one is from the user."
    )
    n: int = Field(1, ge=1, le=MOST_PICTURES, description="Number of answers. Answer i uses seed + i.")
    draw: bool | None = Field(
        None,
        description="true: the turn may contain images. false: answer about an image. Default: false if there is an image, else true.",
    )
    image_output: Literal["images", "markdown"] | None = Field(
        None,
        description="Where images of the answer are: in message.images, or as Markdown with data: URLs in message.content. Default: the "
        "server's option --image-output, which is images unless it is set.",
    )
    modalities: list[Literal["text", "image"]] | None = Field(
        None, max_length=8, description='With "image", draw is true unless it is set.'
    )
    max_tokens: TokenCount | None = Field(
        None,
        description="Maximum number of tokens in the answer; values above the model's limit count as the limit.",
    )
    max_completion_tokens: TokenCount | None = Field(None, description="Newer name of max_tokens.")
    temperature: float | None = Field(
        None, ge=0, le=2, description="Temperature of the text. 0 is greedy. Default: the model's preset."
    )
    top_p: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Sample from the most probable tokens whose probabilities sum to top_p. Default: 1, all tokens.",
    )
    stop: list[Annotated[str, Field(min_length=1, max_length=200)]] = Field(
        [], max_length=MOST_STOPS, description="The answer ends before the first of these texts."
    )
    response_format: Json | None = Field(
        None,
        description='Format of the answer: {"type": "json_schema", "json_schema": {"schema": …}} or {"type": "regex", "regex": …}.',
    )
    draft: Text = Field(
        "",
        description="The answer with gaps: [mask] is one token, [mask:N] are N, [slot:N] up to N (LaViDa); other words stay. For a text "
        "model, and for answers about an image; excludes max_tokens, stop and response_format.",
    )
    stream: bool = Field(False, description="Stream the answer in chunks; content holds final tokens only.")
    stream_options: StreamOptions | None = Field(None, description="Options of a stream.")
    trace: bool = Field(
        False,
        description="With stream: also send drafts; the field unmask of a chunk holds all tokens after each step.",
    )

    _after: int = PrivateAttr(0)

    @model_validator(mode="after")
    def _to_the_last_of_the_user(self) -> Self:
        """Drop the messages after the last one of the user, which some clients add."""
        last = max((i for i, m in enumerate(self.messages) if m.role == "user"), default=len(self.messages) - 1)
        self._after = len(self.messages) - 1 - last
        self.messages = self.messages[: last + 1]
        return self

    @property
    def after(self) -> int:
        """Number of messages after the last one of the user; they are not read."""
        return self._after

    @classmethod
    def policy(cls) -> Policy:
        fields = cls.model_fields
        return Policy(known=fields, harmless=HARMLESS - set(fields) - set(UNSUPPORTED), unsupported=UNSUPPORTED)

    @field_validator("stop", mode="before", json_schema_input_type=str | list[str] | None)
    @classmethod
    def _as_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("modalities", mode="before")
    @classmethod
    def _no_voice(cls, value: Any) -> Any:
        if isinstance(value, list) and "audio" in value:
            raise ValueError("audio is not supported, because the model has no voice; use text and image")
        return value

    @field_validator("response_format")
    @classmethod
    def _not_huge(cls, value: Json | None) -> Json | None:
        try:
            if value is not None and len(json.dumps(value)) > MOST_FORM:
                raise ValueError(f"the schema has more than {MOST_FORM:,} characters; make it shorter")
        except RecursionError as error:
            raise ValueError("the schema is nested too deeply; make it flatter") from error
        return value

    @property
    def longest(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def formed(self) -> bool:
        """Whether the answer has a required format."""
        return self.response_format is not None and self.response_format.get("type") != "text"

    @property
    def pictures(self) -> list[str]:
        """The images of all messages as URLs."""
        return [url for message in self.messages for url in message.pictures]

    @property
    def draws(self) -> bool:
        """Whether the answer is a turn that may contain images: as ``draw`` says, else with the modality image, else without an image."""
        return (not self.pictures or "image" in (self.modalities or ())) if self.draw is None else self.draw

    @property
    def counted(self) -> bool:
        """Whether a stream ends with a chunk that holds its usage."""
        return self.stream_options is not None and self.stream_options.include_usage


def _without_markdown(part: Any) -> list[Any]:
    """A text part as its text and the images that it contains in Markdown; any other part as it is."""
    text = part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None
    urls = _IMAGE_IN_MARKDOWN.findall(text) if isinstance(text, str) else []
    if not urls:
        return [part]
    shorter = {**part, "text": _IMAGE_IN_MARKDOWN.sub("", str(text)).strip()}
    return [*({"type": "image_url", "image_url": {"url": url}} for url in urls), shorter]


def _shown(value: object) -> str:
    """A value in a message: JSON, at most 50 characters."""
    return json.dumps(value, default=str)[:50]
