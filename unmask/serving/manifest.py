"""A file of requests, one per line. Public idea: ``read(path) -> [Line]``, where a line is a job or an error message.

Jobs have the arguments of the model's methods, by the same names. Images are file paths relative to the manifest, or data: URLs.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from unmask.grammars.answer_format import AnswerFormat, of_regex, of_schema
from unmask.json_types import Json
from unmask.pipeline.loading import needs_of
from unmask.pipeline.model import Model
from unmask.pipeline.text_model import TextModel
from unmask.serving.data_urls import read_data_url
from unmask.tasks.results import Answer, Drawing, Grounding
from unmask.tokens.layouts import Layout, layout_of


class DuplicateIds(ValueError):
    """Two lines have the same id."""


class _Job(BaseModel):
    """``id``: key of the result · ``settings``: sampler settings, as ``["schedule.steps=8"]`` · ``sampler``: name of a method's sampler,
    whose arguments are settings, too · ``schedule``, ``cache``: as --schedule and --cache, applied after it · ``speed``, ``quirks``: as of
    ``Model.with_speed`` and ``with_quirks``. Without them, those of the command.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, frozen=True)

    id: str = Field(min_length=1, max_length=500)
    seed: int = 0
    settings: tuple[str, ...] = ()
    sampler: str | None = None
    schedule: str | None = None
    cache: str | None = None
    speed: str | None = None
    quirks: Literal["usual", "released", "none"] | None = None

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, data: object) -> object:
        """A field with the value null counts as absent."""
        return {k: v for k, v in data.items() if v is not None} if isinstance(data, dict) else data


class _Sampled(_Job):
    """Fields of the sampler by the names of the command line."""

    steps: int | None = Field(None, ge=1, le=1024)
    guidance: float | None = Field(None, ge=0, le=100)
    temperature: float | None = Field(None, ge=0)

    @property
    def options(self) -> Json:
        """The arguments that every method of a model takes."""
        sampled = {"steps": self.steps, "guidance_scale": self.guidance, "temperature": self.temperature}
        return {"seed": self.seed, "settings": self.settings, **sampled}


class _PlacedObject(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, frozen=True)

    phrase: str
    box: tuple[float, float, float, float]


def _size(text: object) -> object:
    """``WIDTHxHEIGHT`` in pixels, both 1 to 4096."""
    if not isinstance(text, str):
        raise ValueError("must be a text such as 1536x768")
    found = re.fullmatch(r"([1-9][0-9]{0,3})[xX]([1-9][0-9]{0,3})", text)
    if not found or max(sides := (int(found[1]), int(found[2]))) > 4096:
        raise ValueError(f"{text[:30]!r} is not possible; give a size of 1x1 to 4096x4096 pixels, such as 1536x768")
    return sides


_Size = Annotated[tuple[int, int], BeforeValidator(_size)]
_Offset = Annotated[int, Field(ge=0, le=100_000)]


class Generate(_Sampled):
    """``boxes``: a layout to generate from, in fractions of the image · ``plan``, ``reflect``: as ``plan`` and ``attempts`` of
    ``Model.generate`` · ``size``: WIDTHxHEIGHT, for models that draw any shape · the others: conditions (``Parts.conditions``).
    """

    task: Literal["generate"]
    prompt: str
    plan: bool | None = None
    boxes: tuple[_PlacedObject, ...] = ()
    reflect: int | None = Field(None, ge=1, le=64)
    size: _Size | None = None
    luminance: float | None = Field(None, ge=0, le=1)
    contrast: float | None = Field(None, ge=0, le=0.5)
    score: float | None = Field(None, ge=0, le=10)
    crop: tuple[_Offset, _Offset] | None = None

    @property
    def needs(self) -> frozenset[str]:
        return needs_of("reflect" if (self.reflect or 1) > 1 else "plan" if self.plan else "generate")

    def ask(self, model: Model, folder: Path) -> Drawing:
        generate = model.generate  # ValueError of a text model
        layout: bool | Layout | None = layout_of([(b.phrase, b.box) for b in self.boxes]) if self.boxes else self.plan
        stated = {"luminance": self.luminance, "contrast": self.contrast, "score": self.score, "crop": self.crop}
        more: Json = {"conditions": model.parts.conditions(**stated), "size": self.size, **self.options}  # type: ignore[arg-type]
        return generate(self.prompt, plan=layout, attempts=self.reflect, **more)[0]


class Edit(_Sampled):
    """``kind``, ``reference``: for models with several kinds of edits, of which some read a second picture · ``reflect``: attempts."""

    task: Literal["edit"]
    image: str
    prompt: str
    plan: bool = False
    reflect: int = Field(1, ge=1, le=64)
    kind: str = Field("", max_length=40)
    reference: str | None = None

    @property
    def needs(self) -> frozenset[str]:
        return needs_of("edit-reflect" if self.reflect > 1 else "edit-plan" if self.plan else "edit")

    def ask(self, model: Model, folder: Path) -> Drawing:
        picture = _picture(folder, self.image)
        reference = None if self.reference is None else _picture(folder, self.reference)
        more: Json = {"attempts": self.reflect, "kind": self.kind, "reference": reference, **self.options}
        return model.edit(picture, self.prompt, plan=self.plan, **more)[0]


class Ask(_Sampled):
    """``image``: omitted for a text model · ``schema`` or ``regex``: the format of the answer · ``plain``: continue the text without a chat
    template (text models) · the others as in ``Model.ask``.
    """

    task: Literal["ask"]
    prompt: str
    image: str | None = None
    max_tokens: int | None = Field(None, ge=1)
    length: int | None = Field(None, ge=1)
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    draft: str = Field("", max_length=8000)
    plain: bool = False
    top_p: float | None = Field(None, gt=0, le=1)
    form: Json | None = Field(None, alias="schema")
    regex: str | None = None

    @field_validator("stop", mode="before")
    @classmethod
    def _as_list(cls, value: object) -> object:
        return [value] if isinstance(value, str) else value

    @property
    def needs(self) -> frozenset[str]:
        return needs_of("ask")

    def ask(self, model: Model | TextModel, folder: Path) -> Answer:
        form = self._answer_format()
        more: Json = {**self.options, "max_tokens": self.max_tokens, "length": self.length, "stop": self.stop}
        more |= {"top_p": self.top_p}
        if isinstance(model, TextModel):
            return self._of_text(model, form, more)
        if self.plain:
            raise ValueError("plain is for text models, and this model reads images; omit plain")
        if (
            self.image is None and not model.parts.net.config.first_code
        ):  # a model of its kind answers without a picture, too
            raise ValueError("a question needs an image; set image")
        picture = None if self.image is None else _picture(folder, self.image)
        return model.ask(picture, self.prompt, form=form, draft=self.draft, **more)

    def _of_text(self, model: TextModel, form: AnswerFormat | None, more: Json) -> Answer:
        if self.image is not None:
            raise ValueError("this is a text model without image input; omit image")
        if not self.plain:
            return model.ask(self.prompt, form=form, draft=self.draft, **more)
        if form is not None or self.draft:
            raise ValueError("plain cannot be combined with schema, regex or draft; omit one of them")
        return model.complete(self.prompt, **more)

    def _answer_format(self) -> AnswerFormat | None:
        if self.form is not None and self.regex is not None:
            raise ValueError("schema and regex exclude each other; set one of them")
        if self.form is not None:
            return of_schema(self.form)
        return of_regex(self.regex) if self.regex is not None else None


class Ground(_Job):
    task: Literal["ground"]
    image: str
    phrases: tuple[str, ...] = Field(min_length=1)
    steps: int = Field(1, ge=1, le=4)

    @property
    def needs(self) -> frozenset[str]:
        return needs_of("ground")

    def ask(self, model: Model, folder: Path) -> Grounding:
        picture = _picture(folder, self.image)
        return model.ground(
            picture, self.phrases, steps=self.steps if self.steps > 1 else None, seed=self.seed, settings=self.settings
        )


class Infill(_Sampled):
    """An image with a ``mask``, whose white part is regenerated; or a ``text`` with [mask] in it."""

    task: Literal["infill"]
    image: str | None = None
    mask: str | None = None
    prompt: str = ""
    text: str | None = None

    @model_validator(mode="after")
    def _one_of_two(self) -> Infill:
        if (self.text is None) == (self.image is None or self.mask is None):
            raise ValueError("infill needs image and mask, or a text that contains [mask]")
        return self

    @property
    def needs(self) -> frozenset[str]:
        return needs_of("infill-text" if self.text is not None else "infill")

    def ask(self, model: Model, folder: Path) -> Drawing | Answer:
        if self.text is not None:
            return model.infill_text(self.text, **self.options)
        picture, region = _picture(folder, self.image or ""), _picture(folder, self.mask or "")
        return model.infill(picture, region, prompt=self.prompt, **self.options)


def _picture(folder: Path, text: str) -> Path | bytes:
    """A path relative to the manifest, or the bytes of a data: URL."""
    return read_data_url(text, "image") if text.lstrip()[:5].lower() == "data:" else folder / text


Result = Drawing | Answer | Grounding
Job = Generate | Edit | Ask | Ground | Infill
_JOB: TypeAdapter[Job] = TypeAdapter(Annotated[Job, Field(discriminator="task")])


@dataclass(frozen=True, kw_only=True)
class Line:
    """``number`` from 1 · ``id``: None if it could not be read · ``job``: None if the line has an error, ``wrong`` · ``digest``: of its
    JSON, without regard to spaces and the order of fields.
    """

    number: int
    id: str | None
    job: Job | None
    wrong: str = ""
    digest: str = ""

    @property
    def key(self) -> str | int:
        """Key of the result."""
        return self.number if self.id is None else self.id


def read(path: Path) -> list[Line]:
    """All lines that are not empty. Raises DuplicateIds, and OSError if the file cannot be read."""
    with path.open("rb") as file:
        lines = [_line(number, raw) for number, raw in enumerate(file, 1) if raw.strip()]
    first: dict[str, int] = {}
    for line in lines:
        if line.id is not None and first.setdefault(line.id, line.number) != line.number:
            raise DuplicateIds(
                f"lines {first[line.id]} and {line.number} of {path} have the same id {line.id!r}; ids must be unique"
            )
    return lines


def _line(number: int, raw: bytes) -> Line:
    try:
        found = json.loads(raw.decode("utf-8-sig" if number == 1 else "utf-8"))
    except (ValueError, RecursionError) as error:
        return Line(number=number, id=None, job=None, wrong=f"invalid JSON: {error}", digest=_digest(raw.strip()))
    digest = _digest(json.dumps(found, sort_keys=True).encode())
    id_ = found.get("id") if isinstance(found, dict) else None
    known = id_ if isinstance(id_, str) and id_ else None
    try:
        return Line(number=number, id=known, job=_JOB.validate_python(found), digest=digest)
    except ValidationError as error:
        return Line(number=number, id=known, job=None, wrong=_said(error), digest=digest)


def _digest(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()[:16]


def _said(error: ValidationError) -> str:
    """The first validation error and its location."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"][1:])
    return f"{place}: {first['msg']}" if place else str(first["msg"])
