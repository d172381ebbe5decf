"""Chat template and task wording, as data.

Public idea: a ``Wording`` says how each request is put into words. ``RELEASED`` is the wire format of the released checkpoint (spec
2.1, 2.2: it must match byte for byte); ``COMPACT`` is the same conversation with every dispensable token left out, for models
as small as ``mini``, where a token of prompt costs as much as a token of picture.
"""

from __future__ import annotations

from dataclasses import dataclass

SYSTEM = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user provides, "
    "and assist the user with a variety of tasks using natural language."
)


@dataclass(frozen=True, kw_only=True)
class Wording:
    """``newlines`` follow every header. ``{caption}``, ``{micro}``, ``{question}``, ``{instruction}`` and ``{phrase}`` are filled in.

    ``after_image`` stands between a picture and the words about it. In ``edit`` the source picture stands where ``{look}`` (as features)
    and ``{source}`` (as codes) say. ``COMPACT`` has it last: the way from a source code to the code that is drawn in its place is then
    the same for every instruction and plan, which a small model with 1-D rotary positions needs in order to copy (see docs/log.md).
    Where ``edit`` has no ``{plan}``, a plan opens the model's own turn.
    ``plan`` and ``plan_edit`` ask for a layout before the picture, ``draw_planned`` for the picture that follows it. In a layout an object
    is ``placed``, where ``{box}`` is its box in tags of its own; ``between_placed`` stands between two of them, ``plan_reason`` or, for
    an edit of a kind, one of ``edit_reasons`` and ``reason_end`` before the first.
    ``critique`` asks what is wrong with a picture of ``{caption}``, ``critique_edit`` with the second of two pictures, which shall be the
    first as ``{instruction}`` changes it; a retry is told ``feedback`` and then every ``attempt`` so far, in
    which ``{look}`` is the picture. ``describe_and_draw`` asks for words and then a picture of what they say.
    ``one_turn``: of a conversation the last message and the last picture alone are read.
    ``field_by_field``: the values of a form are asked for one by one, and said in words; ``numbers`` are the words for 0, 1, 2 …
    ``locate`` asks for a box of ``{phrase}`` in a turn of its own; without it, a phrase stands in its tags right before its box.
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
    field_by_field: bool = False
    numbers: tuple[str, ...] = ()

    @property
    def drawing_words(self) -> str:
        """What a request to think of a drawing begins with."""
        return self.plan.partition("{caption}")[0]

    def reason(self, kind: str) -> str:
        """Why objects are placed in an edit of a kind. ValueError names the known kinds."""
        known = dict(self.edit_reasons)
        if kind not in known:
            raise ValueError(f"there is no reason for an edit of kind {kind!r}; the kinds are {', '.join(known)}")
        return known[kind]


_LAYOUT = "Please first think and plan the layout in LOC format."
_REASON = "Sure I should consider {} the objects in these locations :"
_ADJUST = ("recolour", "move", "resize")

RELEASED = Wording(
    system=SYSTEM,
    newlines="\n\n",
    draw="Generate an image with the caption:\n {caption} {micro}",
    edit="{look} {source}\n {instruction}",  # the chat template trims what the user says
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
    critique_edit=(  # our own words, in the manner of ``critique``: the paper judges drawings alone
        "Please evaluate this edited image based on the following instruction: {instruction} "
        "Focus on instruction following and on what should not change."
    ),
    feedback=" Please also consider past generations and their feedbacks. Do not repeat these errors ",
    attempt="Generation {number}: {look}\n Feedback {number}: {critique}",
    between_attempts="\n",
    one_turn=False,
    locate="Please locate {phrase} in this image. Give bounding boxes in LOC format.",
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
    numbers=("zero", "one", "two", "three", "four", "five", "six"),
)


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """Universal text conditioning (spec 2.4): properties of the wanted picture, said as text. None leaves one out.

    width, height: original size in pixels · top, left: crop offset in pixels · luminance, contrast: mean and deviation of the
    Rec. 709 luminance in 0..1 · score: aesthetic score · hps: preference score times ten. ValueError for what no picture has.
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
                raise ValueError(f"{name} {value} is nothing that a picture can have; give 0 to {most:g}")
        for name in ("width", "height", "top", "left"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ValueError(f"{name} {value} is no number of pixels; give 0 or more")

    def text(self, end: str = "") -> str:
        """``ORIGINAL WIDTH : 1024; …``, in the published order and format; ``end`` behind it unless there is nothing to say."""
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
