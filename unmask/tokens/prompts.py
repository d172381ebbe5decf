"""Chat template and task wording, as data.

Public idea: a ``Wording`` is the text format of each request. ``RELEASED`` is the format of the released checkpoint (spec 2.1, 2.2; it
must match byte for byte). ``COMPACT`` is the same conversation without dispensable tokens, for models as small as ``mini``, where a
prompt token costs as much as an image token.
"""

from __future__ import annotations

from dataclasses import dataclass

from unmask.tokens.reading import Reading

SYSTEM = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user provides, "
    "and assist the user with a variety of tasks using natural language."
)


@dataclass(frozen=True, kw_only=True)
class Wording:
    """Templates of one wording. ``{caption}``, ``{micro}``, ``{question}``, ``{instruction}`` and ``{phrase}`` are substituted.

    ``newlines`` follow every header; ``after_image`` separates an image from the text about it.
    ``edit``: ``{look}`` is the source image as features, ``{source}`` as codes. ``COMPACT`` puts it last, so that the distance from a
    source code to the generated code is the same for every instruction and plan; a small model with 1-D rotary positions needs this in
    order to copy (see docs/log.md). Without ``{plan}`` in ``edit``, a plan is at the start of the model's turn.
    ``plan`` and ``plan_edit`` request a layout before the image, ``draw_planned`` the image that follows it. An object of a layout is
    formatted as ``placed``, with ``{box}`` for its box tokens; ``between_placed`` separates objects; before the first one comes
    ``plan_reason`` or, for an edit, the entry of its kind in ``edit_reasons`` and ``reason_end``.
    ``critique`` requests a critique of an image of ``{caption}``, ``critique_edit`` of the second of two images as a result of
    ``{instruction}``. A further attempt is prompted with ``feedback`` and one ``attempt`` per earlier image ``{look}``.
    ``describe_and_draw`` requests a description and then an image of it.
    ``one_turn``: only the last message and the last image of a conversation are used.
    ``field_by_field``: the values of a structured answer are requested one by one in words; ``numbers`` are the words for 0, 1, 2 …
    ``reading``: how typed text is read; None: as it was typed.
    ``locate`` requests a box for ``{phrase}`` in a turn of its own; without it, a phrase in its tags directly precedes its box.
    ``locate_all`` requests boxes of several phrases in one turn, which begins with ``located``; its objects are formatted as in a layout.
    ``after_turn`` follows every end of turn; ``starts``: whether a conversation begins with the start-of-text token; ``around_image``:
    control tokens before and after an image.
    """

    system: str
    newlines: str
    draw: str
    edit: str
    ask: str
    describe: str
    complete: str
    after_image: str
    describe_and_draw: str
    plan: str
    draw_planned: str
    plan_edit: str
    placed: str
    between_placed: str
    plan_reason: str
    edit_reasons: tuple[tuple[str, str], ...]
    reason_end: str
    critique: str
    critique_edit: str
    feedback: str
    attempt: str
    between_attempts: str
    one_turn: bool
    locate: str = ""
    locate_all: str = ""
    located: str = ""
    field_by_field: bool = False
    numbers: tuple[str, ...] = ()
    reading: Reading | None = None
    after_turn: str = ""
    starts: bool = True
    around_image: tuple[str, str] | None = None

    def read(self, text: str) -> str:
        """A text that a user typed, as the model reads it."""
        return self.reading.read(text) if self.reading else text

    @property
    def drawing_words(self) -> str:
        """The beginning of a request to plan and draw."""
        return self.plan.partition("{caption}")[0]

    def reason(self, kind: str) -> str:
        """The reason text of an edit kind. ValueError for an unknown kind."""
        known = dict(self.edit_reasons)
        if kind not in known:
            raise ValueError(f"unknown edit kind {kind!r}; the kinds are {', '.join(known)}")
        return known[kind]


_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six")
_SPELLINGS = (
    ("color", "colour"),
    ("colors", "colours"),
    ("gray", "grey"),
    ("center", "centre"),
    ("aeroplane", "airplane"),
    ("aeroplanes", "airplanes"),
)
_LAYOUT = "Please first think and plan the layout in LOC format."
_REASON = "Sure I should consider {} the objects in these locations :"
_ADJUST = ("recolour", "move", "resize")

RELEASED = Wording(
    system=SYSTEM,
    newlines="\n\n",
    draw="Generate an image with the caption:\n {caption} {micro}",
    edit="{look} {source}\n {instruction}",  # the chat template strips the user text
    ask="{question}",
    describe="Please describe this image.",
    complete="Please write a caption.",
    after_image="\n ",
    describe_and_draw="Please describe this image, then draw what you described.",
    plan="Generate an image with the caption: {caption} {micro}. " + _LAYOUT,
    draw_planned="Generate an image with the caption:\n {caption} {micro}",
    plan_edit="{instruction}. " + _LAYOUT,
    placed="<box_p> {phrase} </box_p>{box}",
    between_placed=", ",
    plan_reason="Sure I should place the objects in the following manner",
    edit_reasons=(
        ("add", _REASON.format("adding")),
        ("remove", _REASON.format("removing")),
        ("replace", _REASON.format("replacing")),
        *((kind, _REASON.format("adjusting")) for kind in _ADJUST),
        ("background", _REASON.format("edit")),
    ),
    reason_end=" ",
    critique=(
        "Please evaluate this generated image based on the following prompt: {caption} Focus on text alignment and compositionality."
    ),
    critique_edit=(  # our own text, modelled on ``critique``: the paper has critiques of generated images only
        "Please evaluate this edited image based on the following instruction: {instruction} "
        "Focus on instruction following and on what should not change."
    ),
    feedback=" Please also consider past generations and their feedbacks. Do not repeat these errors ",
    attempt="Generation {number}: {look}\n Feedback {number}: {critique}",
    between_attempts="\n",
    one_turn=False,
    locate="Please locate {phrase} in this image. Give bounding boxes in LOC format.",
    locate_all="Please describe this image with dense localized caption. Give bounding boxes in LOC format.",
    located="There are following objects in the scene. ",
)

COMPACT = Wording(
    system="",
    newlines="",
    draw="{caption} {micro}",
    edit="{instruction}{plan}{look}{source}",
    ask="{question}",
    describe="describe",
    complete="caption",
    after_image="",
    describe_and_draw="describe, then draw",
    plan="draw {caption} {micro}",
    draw_planned="draw {caption} {micro}",
    plan_edit="{instruction}",
    placed="{phrase}{box}",
    between_placed="",
    plan_reason="",
    edit_reasons=(
        ("add", "add"),
        ("remove", "remove"),
        ("replace", "replace"),
        ("recolour", "paint"),
        ("move", "move"),
        ("resize", "make"),
        ("background", "background"),
    ),
    reason_end=",",
    critique="is this {caption}",
    critique_edit="does this {instruction}",
    feedback="",
    attempt="{look}{critique}",
    between_attempts="",
    one_turn=True,
    field_by_field=True,
    numbers=_NUMBERS,
    reading=Reading(
        numbers=_NUMBERS,
        spellings=_SPELLINGS,
        questions=("what", "which", "where", "how", "is", "are", "do", "does"),
    ),
)


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """Universal text conditioning (spec 2.4): properties of the image, written as text. None omits a property.

    width, height: original size in pixels · top, left: crop offset in pixels · luminance, contrast: mean and deviation of the
    Rec. 709 luminance in 0..1 · score: aesthetic score · hps: preference score times ten. ValueError for values out of range.
    """

    width: int | None = None
    height: int | None = None
    top: int | None = None
    left: int | None = None
    luminance: float | None = None
    contrast: float | None = None
    score: float | None = None
    hps: float | None = None

    def __post_init__(self) -> None:
        for name, most in (("luminance", 1.0), ("contrast", 0.5), ("score", 10.0), ("hps", 10.0)):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= most:
                raise ValueError(f"{name} {value} is out of range; give 0 to {most:g}")
        for name in ("width", "height", "top", "left"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ValueError(f"{name} {value} is not a number of pixels; give 0 or more")

    def text(self, end: str = "") -> str:
        """``ORIGINAL WIDTH : 1024; …``, in the published order and format, followed by ``end``; "" without properties."""
        whole = (
            ("ORIGINAL WIDTH", self.width),
            ("ORIGINAL HEIGHT", self.height),
            ("TOP", self.top),
            ("LEFT", self.left),
        )
        real = (("LUMINANCE", self.luminance), ("CONTRAST", self.contrast), ("SCORE", self.score), ("HPS", self.hps))
        parts = [f"{name} : {value}" for name, value in whole if value is not None]
        parts += [f"{name} : {value:.3f}" for name, value in real if value is not None]
        return "; ".join(parts) + (end if parts else "")
