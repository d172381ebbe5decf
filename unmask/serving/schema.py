"""Request bodies of the HTTP API: every field with its meaning and bounds.

Public idea: a body is validated as one of ``Draw``, ``Edit``, ``Ground``, ``Infill``, or as ``schema_chat.Chat``. A field with the value
null counts as absent. Fields of OpenAI's API that have no meaning here (``IGNORED``) are accepted and dropped. Other unknown fields are
dropped too, and ``ignored`` names them; one that resembles a known field is rejected as misspelt.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from types import UnionType
from typing import Annotated, Any, ClassVar, Literal, Self, Union, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    PrivateAttr,
    model_validator,
)

from unmask.json_types import Json
from unmask.serving.schema_live import Lively
from unmask.serving.unknown_fields import Policy, check_kinds, refuse_field, refuse_text, sort_fields
from unmask.tokens.lumina_dimoo import KINDS, VIEW
from unmask.tokens.text import BINS

MOST_WORDS = 8000  # characters per text; the model's own limit, in tokens, is lower
MOST_PICTURES = 10  # per request
_STEP = 1 / BINS  # between two coordinates of a box
MOST_SEED = 2**53 - 1  # the largest integer that every JSON parser represents exactly
IGNORED = frozenset(
    {
        *("user", "metadata", "store", "safety_identifier", "prompt_cache_key", "service_tier"),
        *("temperature", "top_p", "frequency_penalty", "presence_penalty", "stop", "stream_options", "verbosity"),
        *("reasoning_effort", "parallel_tool_calls", "prompt_cache_retention"),
    }
)
# auto, or a size of 1 to 4096 pixels; in a square the group of the side occurs twice
_SIDE = "([1-9][0-9]{0,2}|[1-3][0-9]{3}|40[0-8][0-9]|409[0-6])"  # 1 to 4096
_SIZE = re.compile(rf"^(auto|{_SIDE}[xX]{_SIDE})$")
SQUARE = rf"^(auto|{_SIDE}[xX]\2)$"  # sizes of models that draw squares alone
SIZES = "use auto, or a square such as 512x512, up to 4096x4096"
KIND = rf"^({'|'.join(KINDS)}|{VIEW})$"
# A character that is neither white space nor invisible (categories Cc, Cf, Z), which models read as no text. JSON Schema has no escape for
# characters above U+FFFF, so they are in the pattern as themselves.
NONBLANK = (
    r"[^\x00-\x20\x7f-\xa0\xad\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u1680\u180e\u2000-\u200f"
    r"\u2028-\u202f\u205f-\u206f\u3000\ufeff\ufff9-\ufffb"
    "\U000110bd\U000110cd\U00013430-\U0001343f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0001\U000e0020-\U000e007f]"
)
_VISIBLE = re.compile(NONBLANK)
_SHARE = "(1|0[.][0-9]{0,5}[1-9])"  # above 0, at most 1
_PART = f"(steps|threshold)={_SHARE}|(refresh|cache|shift)=[1-9][0-9]?|interval=0:{_SHARE}"
_WORD = f"(exact|fast|interval|refresh|steps|shift|threshold|cache|{_PART})"
SPEED = f"^{_WORD}(,{_WORD}){{0,3}}$"
_STEPS = f"(:steps=([1-9][0-9]{{0,2}}|{_SHARE}))?"
_SHIFT = f"(:shift=([1-9][0-9]?|{_SHARE}))?"
SCHEDULE = f"^(own|(equal|cosine|half_cosine|logit_normal|reverse_time){_STEPS}|shift{_SHIFT}{_STEPS})$"
CACHE = "^(own|none|prefix|cropped|prompt|block(:refresh=[1-9][0-9]{0,2})?|free(:refresh=[01])?)$"


def visible(text: str) -> bool:
    """Whether a text has a character that models read."""
    return bool(_VISIBLE.search(text))


def _must_be_visible(text: str) -> str:
    if not visible(text):
        raise ValueError('it is empty, without a visible character; write something, for example "a red apple"')
    return text


Visible = AfterValidator(_must_be_visible)
Text = Annotated[str, Field(max_length=MOST_WORDS)]
Number = BeforeValidator(refuse_text)
Pixels = Annotated[int, Field(ge=0, le=100_000), Number]
Fraction = Annotated[float, Field(ge=0, le=1), Number]
Setting = Annotated[str, Field(max_length=200, pattern=r"^[^=]+=")]


class Strict(BaseModel):
    """Rejects unknown fields, NaN and infinity."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


def optional_may_be_null(schema: Json) -> None:
    """Say in the JSON schema that every optional field may be null."""
    for name, field in schema.get("properties", {}).items():
        choices = field.get("anyOf", [])
        if name not in schema.get("required", []) and not any(c.get("type") == "null" for c in choices):
            about = {k: field.pop(k) for k in ("title", "description", "default") if k in field}
            inside = choices or [dict(field)]
            field.clear()
            field.update({"anyOf": [*inside, {"type": "null"}], **about})


_REQUEST = ConfigDict(extra="ignore", allow_inf_nan=False, json_schema_extra=optional_may_be_null)


@functools.cache
def kinds_of(body: type[BaseModel]) -> dict[str, frozenset[type]]:
    """The types that each field of a body takes, where it is not an object."""
    return {name: frozenset(_flat(field.annotation)) for name, field in body.model_fields.items()}


def _flat(annotation: Any) -> Iterator[type]:
    if isinstance(annotation, type):
        yield annotation
    for inner in get_args(annotation) if get_origin(annotation) in (Union, UnionType, Annotated) else ():
        yield from _flat(inner)


class OwnOptions(Strict):
    """Options of this server that OpenAI's API does not have."""

    lora: str | None = Field(
        None,
        max_length=100,
        description="Name of a LoRA adapter, as /v1/models lists them under unmask.adapters. Default: the model without an adapter.",
    )


class Fields(BaseModel):
    """Fields of every request."""

    model_config = _REQUEST
    as_texts: ClassVar[bool] = False  # a form, whose numbers are texts
    _ignored: tuple[str, ...] = PrivateAttr(())

    model: str | None = Field(None, max_length=500, description="Name of the served model, as listed by /v1/models.")
    seed: int | None = Field(
        None,
        ge=0,
        le=MOST_SEED,
        description="Random seed. The same seed gives the same answer, independent of other requests. Default: random.",
    )
    settings: list[Setting] = Field(
        [],
        max_length=32,
        description='Sampler settings by name, such as "schedule.steps=8". /v1/fields lists them as x-unmask-settings.',
    )
    sampler: str | None = Field(
        None,
        max_length=100,
        description="A method's sampler in place of the model's preset, such as remdm; `settings` may set its arguments (docs/methods.md).",
    )
    schedule: Annotated[str, Field(max_length=100, json_schema_extra={"pattern": SCHEDULE})] | None = Field(
        None,
        description="How many tokens each step unmasks, such as cosine or shift:shift=0.33, in place of the sampler's own schedule "
        "(docs/decoding/lavida.md).",
    )
    cache: Annotated[str, Field(max_length=100, json_schema_extra={"pattern": CACHE})] | None = Field(
        None,
        description="Which keys and values are kept between steps: none, prefix, cropped, block, prompt or free (docs/decoding/lavida.md).",
    )
    speed: Annotated[str, Field(max_length=100, json_schema_extra={"pattern": SPEED})] | None = Field(
        None,
        description="exact, fast (approximate), or parts of fast mode such as refresh,steps=0.25 (docs/fast.md). Default: as the server "
        "was started.",
    )
    quirks: Literal["usual", "released", "none"] | None = Field(
        None,
        description="Deviations of a family's released scripts (docs/models.md), for models that have some. Default: as the server was "
        "started.",
    )
    priority: int = Field(
        0,
        ge=-8,
        le=8,
        description="Scheduling priority. Each level doubles the share of compute and moves the request forward in the queue.",
    )
    unmask: OwnOptions | None = Field(None, description='Further options, such as {"lora": "NAME"}.')

    @model_validator(mode="wrap")
    @classmethod
    def _known(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        if not isinstance(data, dict):
            return handler(data)
        if data.get("lora") is not None:
            raise refuse_field("lora", None, 'an adapter is chosen in the object unmask; send "unmask": {"lora": NAME}')
        kept, ignored = sort_fields(data, cls.policy())
        check_kinds(kept, kinds_of(cls), as_texts=cls.as_texts)
        body = handler(kept)
        body._ignored = ignored
        return body

    @classmethod
    def policy(cls) -> Policy:
        """What becomes of fields that are not in the schema."""
        return Policy(known=cls.model_fields, harmless=IGNORED - set(cls.model_fields))

    @property
    def lora(self) -> str | None:
        """The name of the adapter to use."""
        return self.unmask.lora if self.unmask else None

    @property
    def ignored(self) -> tuple[str, ...]:
        """Names of unknown fields that the request contained."""
        return self._ignored


class Sampled(Fields):
    """Fields that control sampling."""

    steps: int | None = Field(None, ge=1, le=1024, description="Number of sampling steps. Default: the model's preset.")
    guidance: float | None = Field(
        None, ge=0, le=100, description="Guidance scale; 0 turns guidance off. Default: the model's preset."
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


def _a_size(size: str) -> str:
    if _SIZE.fullmatch(size):
        return size
    if re.fullmatch(r"[0-9]{1,9}[xX][0-9]{1,9}", size):
        raise ValueError(f"{size} is not possible, because the sides must be 1 to 4096; {SIZES}")
    raise ValueError(f"{size[:30]!r} is not a size; {SIZES}")


def _opaque(background: object) -> object:
    if background == "transparent":
        raise ValueError("this model generates no transparent images; use opaque or auto")
    return background


class Streamed(BaseModel):
    """Fields that control how images are returned."""

    model_config = _REQUEST

    n: int = Field(1, ge=1, le=MOST_PICTURES, description="Number of images. Image i uses seed + i.")
    size: Annotated[str, AfterValidator(_a_size)] = Field(
        "auto",
        json_schema_extra={"pattern": _SIZE.pattern},
        description="Size of the images: auto for the model's own, or any square up to 4096x4096, to which they are resized. Models that "
        "draw any shape (/v1/fields) also take others, such as 1536x768.",
    )
    response_format: Literal["b64_json", "url"] | None = Field(
        None, description="url: the server keeps the image for an hour and returns its URL. Default: base64."
    )
    output_format: Literal["png", "jpeg", "webp"] = Field("png", description="File format of the images.")
    output_compression: int | None = Field(
        None, ge=0, le=100, description="Quality of jpeg and webp files, 100 is best. Default: 90."
    )
    background: Annotated[Literal["auto", "opaque"], BeforeValidator(_opaque)] = Field(
        "auto", description="Only opaque images are generated."
    )
    quality: Literal["auto", "low", "medium", "high", "xhigh", "max", "standard", "hd"] = Field(
        "auto", description="Accepted for OpenAI's clients; has no effect, which a warning says."
    )
    style: Literal["vivid", "natural"] | None = Field(None, description="As quality.")
    input_fidelity: Literal["low", "high"] | None = Field(None, description="As quality.")
    moderation: Literal["auto", "low"] | None = Field(
        None, description="Accepted for OpenAI's clients; nothing is moderated."
    )
    stream: bool = Field(False, description="Stream the answer as server-sent events.")
    partial_images: int = Field(0, ge=0, le=3, description="With stream: number of evenly spaced previews per image.")
    trace: bool = Field(False, description="With stream: also send every sampling step as unmask.* events.")

    @property
    def pixels(self) -> tuple[int, int] | None:
        """Width and height of the images; None for the model's own."""
        if self.size == "auto":
            return None
        width, _, height = self.size.lower().partition("x")
        return int(width), int(height)


def _apart(a: float, b: float) -> tuple[float, float]:
    """Two coordinates in order, at least one step apart."""
    low, high = min(a, b), max(a, b)
    return (low, high) if high - low >= _STEP else (min(low, 1 - _STEP), min(low, 1 - _STEP) + _STEP)


class BoxOf(Strict):
    """An object and its bounding box."""

    phrase: Annotated[str, Visible] = Field(min_length=1, max_length=200, description="The object in the box.")
    box: tuple[Fraction, Fraction, Fraction, Fraction] = Field(
        description="x1, y1, x2, y2 as fractions of the image; the origin is the top left corner."
    )

    @property
    def corners(self) -> tuple[float, float, float, float]:
        """The box with its corners in order, and at least one step of a coordinate wide and high."""
        x1, y1, x2, y2 = self.box
        (left, right), (top, bottom) = _apart(x1, x2), _apart(y1, y2)
        return left, top, right, bottom


class Planned(BaseModel):
    """Planning before and reflection after generation."""

    model_config = _REQUEST

    plan: bool | None = Field(
        None, description="Plan a layout of boxes first. Default: the model's preset; false for edits."
    )
    boxes: list[BoxOf] | None = Field(
        None, min_length=1, max_length=32, description="Use this layout instead of planning one; excludes plan."
    )
    reflect: int | None = Field(
        None,
        ge=1,
        le=16,
        description="Maximum number of attempts. Stops at the first image that the model's own critique accepts. "
        "Default: the model's preset; 1 for edits and with plan or boxes.",
    )

    @model_validator(mode="after")
    def _one_plan(self) -> Planned:
        if self.plan and self.boxes:
            raise refuse_field("boxes", None, "they are a plan themselves; send plan or boxes, not both")
        return self


class Draw(Sampled, Streamed, Planned, Lively):
    """Images from a prompt."""

    prompt: Annotated[Text, Visible] = Field(min_length=1, description="Description of the image.")
    luminance: float | None = Field(
        None, ge=0, le=1, description="Luminance condition: mean luminance, 0 is black, 1 is white."
    )
    contrast: float | None = Field(
        None, ge=0, le=0.5, description="Contrast condition: standard deviation of the luminance."
    )
    score: float | None = Field(
        None, ge=0, le=10, description="Aesthetic score condition. Only some models are trained with it."
    )
    crop: tuple[Pixels, Pixels] | None = Field(
        None, description="Crop offsets condition: pixels cut off at the top and at the left; [0, 0] means not cropped."
    )


class Edit(Sampled, Streamed, Planned):
    """An image edited by an instruction or, with a mask, inpainted. Sent as multipart/form-data with the images as files."""

    as_texts: ClassVar[bool] = True

    prompt: Text = Field(description="The edit instruction. With a mask: description of the whole image; may be empty.")
    kind: Annotated[str, Field(max_length=40, json_schema_extra={"pattern": KIND})] | None = Field(
        None,
        description="Kind of edit, for models with several, such as depth_control. image_ref_transfer reads a second image, in the file "
        "field reference.",
    )


class Infill(Sampled, Streamed):
    """An image with a region to inpaint, or a text with masked tokens to fill in."""

    image: str | None = Field(None, description="The image as a data: URL in base64: data:image/png;base64,...")
    mask: str | None = Field(
        None,
        description="The mask as a data: URL, with the image's size. White (or transparent) pixels are regenerated.",
    )
    prompt: Text = Field("", description="Description of the whole image.")
    text: Text | None = Field(None, description="A text instead of an image; each [mask] is one token to fill in.")

    @model_validator(mode="after")
    def _one_kind(self) -> Infill:
        if self.text is not None and not (self.image is None and self.mask is None):
            raise refuse_field("text", None, "a text has no image and no mask; send text, or image and mask, not both")
        if self.text is None and (self.image is None or self.mask is None):
            missing = "image" if self.image is None else "mask"
            raise refuse_field(
                missing, None, "image and mask are required together; send both, or a text that contains [mask]"
            )
        return self


class Ground(Fields):
    """Bounding boxes for phrases in an image."""

    image: str = Field(description="The image as a data: URL in base64: data:image/png;base64,...")
    phrases: list[Annotated[str, Field(min_length=1, max_length=500), Visible]] = Field(
        min_length=1, max_length=64, description="Phrases to locate; each gets one box."
    )
    steps: int = Field(1, ge=1, le=4, description="Number of steps in which the four coordinates are unmasked.")
