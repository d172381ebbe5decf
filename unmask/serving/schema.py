"""What may be asked of the server: the one source of every field, its meaning and its bounds.

Public idea: a body is validated as one of ``Draw``, ``Edit``, ``Ground``, ``Infill``, ``Chat``. Unknown fields are refused by name, so that
a misspelt one is not silently without effect; fields of OpenAI's API that mean nothing here (``IGNORED``) are let through.
"""

from __future__ import annotations

import difflib
import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

MOST_WORDS = 8000  # characters of a text; the model's own limit, in tokens, is lower
MOST_PICTURES = 10  # of one request
MOST_FORM = 20_000  # characters of a form; its schema is looked through again for every part of it
MOST_SEED = 2**53 - 1  # what JSON carries everywhere
IGNORED = frozenset(
    {
        *("user", "metadata", "store", "safety_identifier", "prompt_cache_key", "service_tier"),
        *("quality", "style", "background", "moderation", "output_compression", "input_fidelity"),
        *("temperature", "top_p", "frequency_penalty", "presence_penalty", "stop", "stream_options", "verbosity"),
        *("reasoning_effort", "parallel_tool_calls", "prompt_cache_retention"),
    }
)
Text = Annotated[str, Field(max_length=MOST_WORDS)]
Pixels = Annotated[int, Field(ge=0, le=100_000)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Setting = Annotated[str, Field(max_length=200, pattern=r"^[^=]+=")]


class Strict(BaseModel):
    """No other fields, no NaN and no infinity."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Fields(Strict):
    """What every request may say."""

    model: str | None = Field(None, max_length=500, description="The served model's name, as in /v1/models.")
    seed: int | None = Field(
        None,
        ge=0,
        le=MOST_SEED,
        description="The same seed gives the same answer, whoever else is served; absent: a random one, which is reported.",
    )
    settings: list[Setting] = Field(
        [],
        max_length=32,
        description='Fields of the sampler by name, such as "schedule.steps=8"; /v1/fields lists them as x-unmask-settings.',
    )
    sampler: str | None = Field(
        None,
        max_length=100,
        description="A method's sampler in place of the model's preset, such as remdm; `settings` may set its arguments (docs/methods.md).",
    )
    priority: int = Field(
        0,
        ge=-8,
        le=8,
        description="Each level more is worth twice the share of the device and some places in the queue.",
    )

    @model_validator(mode="before")
    @classmethod
    def _known(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        kept = {k: v for k, v in data.items() if k in cls.model_fields or k not in IGNORED}
        for name in kept:
            if name not in cls.model_fields:
                near = difflib.get_close_matches(str(name)[:50], list(cls.model_fields), 1)
                hint = f"; did you mean {near[0]}?" if near else f"; known: {', '.join(cls.model_fields)}"
                raise ValueError(f"there is no field {str(name)[:50]!r}{hint}")
        return kept


class Sampled(Fields):
    """What a request may say of how it is decided."""

    steps: int | None = Field(
        None, ge=1, le=1024, description="Steps in which everything is decided; absent: the model's preset."
    )
    guidance: float | None = Field(
        None, ge=0, le=100, description="How strongly the prompt guides; 0: not at all; absent: the model's preset."
    )

    @property
    def guided(self) -> list[str]:
        """``guidance`` as a setting of a sampler."""
        return [f"guidance.scale={self.guidance}"] if self.guidance is not None else []

    @property
    def paced(self) -> list[str]:
        """``steps`` and ``guidance``."""
        return [*([f"schedule.steps={self.steps}"] if self.steps is not None else []), *self.guided]

    @property
    def overrides(self) -> list[str]:
        """``steps``, ``guidance`` and ``settings``."""
        return [*self.paced, *self.settings]


class Streamed(Strict):
    """How pictures come back."""

    n: int = Field(1, ge=1, le=MOST_PICTURES, description="How many pictures; picture i has the seed ``seed + i``.")
    size: str = Field(
        "auto", max_length=20, description="auto, or the size that the model draws in (/v1/models), such as 128x128."
    )
    response_format: Literal["b64_json"] | None = Field(
        None, description="Pictures come as base64 in the answer; there are no URLs."
    )
    output_format: Literal["png", "jpeg", "webp"] = Field("png", description="What kind of file a picture is.")
    stream: bool = Field(False, description="Answer with events as they happen (server-sent events).")
    partial_images: int = Field(
        0, ge=0, le=3, description="With stream: so many previews of each picture on the way, evenly spread."
    )
    trace: bool = Field(
        False, description="With stream: every step of every stage, as unmask.* events; else without effect."
    )


class BoxOf(Strict):
    """A thing and where it shall be."""

    phrase: str = Field(min_length=1, max_length=200, description="What shall be in the box.")
    box: tuple[Fraction, Fraction, Fraction, Fraction] = Field(
        description="x1, y1, x2, y2 as fractions of the picture, from the top left."
    )


class Planned(Strict):
    """Thinking: of a layout before, and of what came of it behind."""

    plan: bool = Field(False, description="Think of a layout first.")
    boxes: list[BoxOf] | None = Field(
        None, min_length=1, max_length=32, description="Take this layout instead; leave out plan then."
    )
    reflect: int = Field(
        1, ge=1, le=16, description="Make up to so many pictures, until one finds the model's own approval."
    )

    @model_validator(mode="after")
    def _one_plan(self) -> Planned:
        if self.plan and self.boxes:
            raise ValueError("boxes are a plan already; leave out plan or boxes")
        return self


class Draw(Sampled, Streamed, Planned):
    """Pictures of a prompt."""

    prompt: Text = Field(min_length=1, description="What the picture shall show.")
    luminance: float | None = Field(
        None, ge=0, le=1, description="How light it shall be: its mean luminance, 0 black, 1 white."
    )
    contrast: float | None = Field(
        None, ge=0, le=0.5, description="How far its luminance shall vary: the standard deviation."
    )
    score: float | None = Field(
        None, ge=0, le=10, description="The aesthetic score it shall have; not every model was taught one."
    )
    crop: tuple[Pixels, Pixels] | None = Field(
        None, description="Pixels cut off above and at the left of the original; [0, 0]: a picture that is not cropped."
    )


class Edit(Sampled, Streamed, Planned):
    """A picture changed as an instruction says, or, with a mask, drawn anew where the mask says. Comes as a form, the pictures as files."""

    prompt: Text = Field(
        description="What shall change; with a mask, what the whole picture shall show (may be empty)."
    )


class Infill(Sampled, Streamed):
    """A picture with a region drawn anew, or a text with its gaps filled."""

    image: str | None = Field(None, description="A data: URL of the picture.")
    mask: str | None = Field(
        None,
        description="A data: URL of a picture of the same size: white, or transparent where it has any, is drawn anew.",
    )
    prompt: Text = Field("", description="What the whole picture shall show.")
    text: Text | None = Field(
        None, description="Instead of a picture: a text in which every [mask] is one token to find."
    )

    @model_validator(mode="after")
    def _one_kind(self) -> Infill:
        if self.text is not None and (self.image or self.mask):
            raise ValueError("give a text, or an image and a mask, not both")
        if self.text is None and not (self.image and self.mask):
            raise ValueError(
                "an image needs a mask of the same size, and a mask an image; or give a text with [mask] in it"
            )
        return self


class Ground(Fields):
    """Where things are in a picture."""

    image: str = Field(description="A data: URL of the picture.")
    phrases: list[Annotated[str, Field(min_length=1, max_length=500)]] = Field(
        min_length=1, max_length=64, description="What to find; each gets one box."
    )
    steps: int = Field(1, ge=1, le=4, description="In how many steps the four coordinates are decided.")


class ImageUrl(BaseModel):
    """A picture in a message."""

    model_config = ConfigDict(extra="ignore")
    url: str = Field(description="A data: URL; the server fetches nothing.")


class ContentPart(BaseModel):
    """A piece of a message."""

    model_config = ConfigDict(extra="ignore")
    type: Literal["text", "image_url"] = Field(description="Words, or a picture.")
    text: Text = Field("", description="The words.")
    image_url: ImageUrl | None = Field(None, description="The picture.")

    @model_validator(mode="after")
    def _whole(self) -> ContentPart:
        if self.type == "image_url" and self.image_url is None:
            raise ValueError("a part of type image_url needs an image_url")
        return self


class ChatMessage(BaseModel):
    """What was said."""

    model_config = ConfigDict(extra="ignore")
    role: Literal["system", "developer", "user", "assistant"] = Field(
        description="Who said it; system and developer messages are not read, since the model was trained with words of its own there."
    )
    content: Text | list[ContentPart] | None = Field(None, description="Words, or pieces of text and pictures.")

    @property
    def words(self) -> str:
        if isinstance(self.content, list):
            return "\n".join(part.text for part in self.content if part.type == "text")
        return self.content or ""

    @property
    def pictures(self) -> list[str]:
        parts = self.content if isinstance(self.content, list) else []
        return [part.image_url.url for part in parts if part.image_url]


class Chat(Sampled):
    """A conversation. With a picture the last question is answered about the last picture; else the next turn is written."""

    messages: list[ChatMessage] = Field(
        min_length=1, max_length=256, description="What was said so far, the user last."
    )
    n: Literal[1] = Field(1, description="One answer.")
    draw: bool | None = Field(
        None,
        description="true: the turn may hold pictures; false: it answers about a picture, or fails; absent: as the messages suggest.",
    )
    max_tokens: int | None = Field(None, ge=1, le=1024, description="The longest answer; absent: the model's preset.")
    max_completion_tokens: int | None = Field(None, ge=1, le=1024, description="The newer name of max_tokens.")
    response_format: dict[str, Any] | None = Field(
        None,
        description='A form that the answer fits: {"type": "json_schema", "json_schema": {"schema": …}} or {"type": "regex", "regex": …}.',
    )
    stream: bool = Field(False, description="Answer in chunks; content is only ever what is decided for good.")
    trace: bool = Field(
        False, description="With stream: also drafts, chunks whose field unmask shows every token after every step."
    )

    @property
    def longest(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @field_validator("response_format")
    @classmethod
    def _not_huge(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        try:
            if value is not None and len(json.dumps(value)) > MOST_FORM:
                raise ValueError(f"a form has at most {MOST_FORM:,} characters; make it shorter")
        except RecursionError as error:
            raise ValueError("the form is nested too deeply; make it flatter") from error
        return value

    @property
    def formed(self) -> bool:
        """Whether the answer shall have a form."""
        return self.response_format is not None and self.response_format.get("type") != "text"


ENDPOINTS: dict[str, type[Fields]] = {"generate": Draw, "edit": Edit, "ground": Ground, "infill": Infill, "chat": Chat}
