"""A file of requests, one per line. Public idea: ``read(path) -> [Line]``, where a line is a job or an error message.

Jobs have the arguments of the model's methods, by the same names. Images are file paths relative to the manifest, or data: URLs.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator, model_validator

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
    whose arguments are settings, too · ``speed``: as of ``Model.with_speed``; the speed of the command without it.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, frozen=True)

    id: str = Field(min_length=1, max_length=500)
    seed: int = 0
    settings: tuple[str, ...] = ()
    sampler: str | None = None
    speed: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, data: object) -> object:
        """A field with the value null counts as absent."""
        return {k: v for k, v in data.items() if v is not None} if isinstance(data, dict) else data


class _PlacedObject(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, frozen=True)

    phrase: str
    box: tuple[float, float, float, float]


class Generate(_Job):
    """``boxes``: a layout to generate from, in fractions of the image · ``plan``, ``reflect``: as ``plan`` and ``attempts`` of
    ``Model.generate``.
    """

    task: Literal["generate"]
    prompt: str
    plan: bool | None = None
    boxes: tuple[_PlacedObject, ...] = ()
    reflect: int | None = Field(None, ge=1, le=64)

    @property
    def needs(self) -> frozenset[str]:
        return needs_of("reflect" if (self.reflect or 1) > 1 else "plan" if self.plan else "generate")

    def ask(self, model: Model, folder: Path) -> Drawing:
        layout: bool | Layout | None = layout_of([(b.phrase, b.box) for b in self.boxes]) if self.boxes else self.plan
        return model.generate(self.prompt, seed=self.seed, plan=layout, attempts=self.reflect, settings=self.settings)[
            0
        ]


class Edit(_Job):
    task: Literal["edit"]
    image: str
    prompt: str
    plan: bool = False

    @property
    def needs(self) -> frozenset[str]:
        return needs_of("edit-plan" if self.plan else "edit")

    def ask(self, model: Model, folder: Path) -> Drawing:
        picture = _picture(folder, self.image)
        return model.edit(picture, self.prompt, seed=self.seed, plan=self.plan, settings=self.settings)[0]


class Ask(_Job):
    """``image``: omitted for a text model · ``schema`` or ``regex``: the format of the answer · the others as in ``Model.ask``."""

    task: Literal["ask"]
    prompt: str
    image: str | None = None
    max_tokens: int | None = Field(None, ge=1)
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    temperature: float | None = Field(None, ge=0)
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
        more: Json = {"form": self._answer_format(), "seed": self.seed, "settings": self.settings}
        more |= {"max_tokens": self.max_tokens, "stop": self.stop}
        more |= {"temperature": self.temperature, "top_p": self.top_p}
        if isinstance(model, TextModel):
            if self.image is not None:
                raise ValueError("this is a text model without image input; omit image")
            return model.ask(self.prompt, **more)
        if (
            self.image is None and not model.parts.net.config.first_code
        ):  # a model of its kind answers without a picture, too
            raise ValueError("a question needs an image; set image")
        return model.ask(None if self.image is None else _picture(folder, self.image), self.prompt, **more)

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


class Infill(_Job):
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
            return model.infill_text(self.text, seed=self.seed, settings=self.settings)
        picture, region = _picture(folder, self.image or ""), _picture(folder, self.mask or "")
        return model.infill(picture, region, prompt=self.prompt, seed=self.seed, settings=self.settings)


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
