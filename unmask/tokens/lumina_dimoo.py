"""Rows of Lumina-DiMOO (Xin et al. 2025, arXiv 2510.06308; as released): one vocabulary, an end of line after every row of codes.

Public idea: ``drawing``, ``editing`` and ``understanding`` build a request; ``request_of(kind, text)`` has the sentences of the released
tasks. The prompts that guidance compares with lie in the same row, each in a segment of its own (``sampling/other_prompts.py``).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence as Items
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from unmask.sequence import Sequence
from unmask.tokens.build import Builder
from unmask.tokens.text import END_ANSWER, EOS, MASK, Text

SYSTEM, END_SYSTEM, USER, END_USER = "<system>", "</system>", "<user>", "</user>"
IMAGE, END_IMAGE, UNCONDITION, ANSWER = "<IMAGE>", "</IMAGE>", "<uncondition>", "<answer>"
LINE, PADDING = (
    "<|reserved_token_0|>",
    "<|reserved_pad|>",
)  # of the filler behind an answer the released name is not known
CONTROL = (EOS, MASK, LINE, SYSTEM, END_SYSTEM, USER, END_USER, IMAGE, END_IMAGE, UNCONDITION, ANSWER, END_ANSWER)
NULL, NULL_TEXT, NULL_IMAGE, SOURCE = "null", "null text", "null image", "source"

_PADDING, _RELEASED_IDS = 126_339, 126_356  # the filler of the released tokenizer, and its length

DRAW = "Generate an image according to the text prompt."
UNDERSTAND = (
    "You are a multimodal model that can process both text and images. Answer the following question based on the provided images. "
    "Analyze each image and combine relevant details to answer."
)
_CHANGE = "Generate an image applying the following editing instruction based on the original image."
_OTHERWISE = "Generate an image according to the prompt and image."
_STYLE = "Transform the current image into the style of the provided image."
_MAPS = {
    "canny": "canny edge map",
    "hed": "hed edge map",
    "normal": "normal map",
    "sam2": "sam2 mask",
    "depth": "depth map",
    "openpose": "pose estimation map",
}


# Released names of tasks that make a picture of a picture; a view is named in words.
KINDS = (
    "edit",
    *(f"edit_{what}" for what in ("add", "remove", "replace", "background", "text_transfer")),
    *(f"{what}_control" for what in ("canny", "hed", "depth", "openpose")),
    *(f"{what}_pred" for what in ("canny", "hed", "depth", "openpose")),
    *(f"dense_{what}" for what in _MAPS),
    "subject_driven",
    "image_ref_transfer",
)
VIEW = r"multi_view_[a-z]{1,20}"
STYLE = "image_ref_transfer"  # the kind that reads a second picture


@dataclass(frozen=True, kw_only=True)
class DiMOOQuirks:
    """Behaviour of the released scripts that is a fault, or looks like one. All are off by default.

    ``general_pred``: ``depth_pred`` and its like get a general sentence and not that of dense prediction · ``size_of_reference``: a
    transfer of style has the size of the picture whose style it takes.
    """

    general_pred: bool = False
    size_of_reference: bool = False


NO_QUIRKS, RELEASED_QUIRKS = DiMOOQuirks(), DiMOOQuirks(general_pred=True, size_of_reference=True)


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a prompt says: a system sentence, and the user's words."""

    system: str
    text: str


def refuse_kind(kind: str) -> None:
    """ValueError for a name that is no task of pictures."""
    if kind not in KINDS and not re.fullmatch(VIEW, kind):
        near = difflib.get_close_matches(kind, KINDS, 1)
        hint = (
            f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(KINDS)}, or multi_view_left and its like"
        )
        raise ValueError(f"there is no kind of edit {kind[:50]!r}; {hint}")


def request_of(kind: str, text: str, quirks: DiMOOQuirks = NO_QUIRKS) -> Request:
    """The sentences of a task that makes a picture of a picture, by its released name: ``edit_add``, ``canny_control``, ``subject_driven``,
    ``image_ref_transfer``, ``multi_view_left``, ``dense_depth`` … A name with none of these words gets a general sentence.
    """
    if kind.endswith("_pred") and not quirks.general_pred:
        kind = f"dense_{kind.removesuffix('_pred')}"
    if "dense" in kind:
        found = next((words for name, words in _MAPS.items() if name in kind), None)
        if found is None:
            raise ValueError(f"unknown dense prediction {kind!r}; name one of {', '.join(_MAPS)}")
        return Request(
            system="Perform dense prediction on the given images.",
            text=f"Generate a {found} according to the image.",
        )
    if "control" in kind:
        system = "Generate an image according to the text prompt and the given control image."
        return Request(system=system, text=text)
    if "subject" in kind:
        system = "Generate an image according to the text prompt and the given object image."
        return Request(system=system, text=text)
    if "edit" in kind:
        return Request(system=_CHANGE, text=text)
    if "ref_transfer" in kind:
        return Request(system=_STYLE, text=_STYLE)
    if "multi_view" in kind:
        view = kind.partition("multi_view_")[2]
        said = f"Generate the {view} view based on the provided front view."
        return Request(system="Generate a view-image based on the given image.", text=said)
    return Request(system=_OTHERWISE, text=text)


def prompt_of(b: Builder, request: Request, *, null: bool = False) -> list[int]:
    """Ids of a prompt. ``null``: without the user's words."""
    text = b.text
    words = [text[UNCONDITION]] if null else text.encode(request.text)
    return [text[SYSTEM], *text.encode(request.system), text[END_SYSTEM], text[USER], *words, text[END_USER]]


def lines(
    b: Builder, codes: Tensor | tuple[int, int], name: str, *, writable: bool = False, segment: int = 0
) -> Builder:
    """Append a picture of codes [h, w], or a grid of masked ones, between its begin and end, a span a line."""
    rows = codes[0] if isinstance(codes, tuple) else len(codes)
    b.say("line" if writable else name, b.text[IMAGE], segment=segment)
    for row in range(rows):
        line = (1, codes[1]) if isinstance(codes, tuple) else codes[row : row + 1]
        b.codes(name, line, fold=1, writable=writable, segment=segment)
        last = row == rows - 1
        b.say("line" if writable else name, b.text[LINE], *((b.text[END_IMAGE],) if last else ()), segment=segment)
    return b


def shown(
    b: Builder, request: Request, pictures: Items[Tensor], name: str, *, null: bool = False, segment: int = 0
) -> Builder:
    """Append a prompt with pictures before its last token, all in spans of ``name`` if given, else "prompt" and "source"."""
    *ids, last = prompt_of(b, request, null=null)
    b.say(name or "prompt", *ids, *(() if pictures else (last,)), segment=segment)
    for codes in pictures:
        lines(b, codes, name or SOURCE, segment=segment)
    return b.say(name or "prompt", last, segment=segment) if pictures else b


def drawing(b: Builder, request: Request, codes: Tensor | tuple[int, int]) -> Sequence:
    """Text to picture. Spans: "null" (segment 1), "prompt", "assistant", "line" and "image" in turn, "end"."""
    shown(b, request, (), NULL, null=True, segment=1)
    return _answered(shown(b, request, (), ""), codes, request.text)


def editing(b: Builder, request: Request, pictures: Items[Tensor], codes: Tensor | tuple[int, int]) -> Sequence:
    """Pictures and text to a picture. The prompts of guidance are "null text", which has the pictures alone, and "null image", which has
    the text alone.
    """
    shown(b, request, pictures, NULL_TEXT, null=True, segment=1)
    shown(b, request, (), NULL_IMAGE, segment=2)
    return _answered(shown(b, request, pictures, ""), codes, request.text)


def understanding(b: Builder, request: Request, pictures: Items[Tensor], answer: list[int] | int) -> Sequence:
    """A question about pictures, and the answer: its ids, or the number of masked tokens."""
    shown(b, request, pictures, "").say("assistant", b.text[ANSWER]).write("answer", answer)
    return b.say("end", b.text[END_ANSWER]).build(request.text)


def _answered(b: Builder, codes: Tensor | tuple[int, int], request: str) -> Sequence:
    b.say("assistant", b.text[ANSWER])
    return lines(b, codes, "image", writable=True).say("end", b.text[END_ANSWER]).build(request)


def training_drawing(b: Builder, request: Request, codes: Tensor, *, null: bool) -> Sequence:
    """A drawing without a second prompt, for a loss over the whole vocabulary: the codes are text ids, each line of them in a writable span
    "image". ``null``: without the user's words.
    """
    return _learned(shown(b, request, (), "", null=null), codes, request.text)


def training_editing(b: Builder, request: Request, pictures: Items[Tensor], codes: Tensor, *, null: bool) -> Sequence:
    """As ``training_drawing``, of pictures. ``null``: without the user's words and without the pictures, as released."""
    return _learned(shown(b, request, () if null else pictures, "", null=null), codes, request.text)


def training_understanding(
    b: Builder, request: Request, pictures: Items[Tensor], answer: list[int], fill: int
) -> Sequence:
    """A question about pictures, its answer with the end of it ("answer"), and ``fill`` tokens that are learned, too ("filler")."""
    shown(b, request, pictures, "").say("assistant", b.text[ANSWER]).write("answer", [*answer, b.text[END_ANSWER]])
    padding = padding_id(b.text)
    return (b if padding is None or fill < 1 else b.write("filler", [padding] * fill)).build(request.text)


def padding_id(text: Text) -> int | None:
    """The token behind an answer. In LLaDA's tokenizer its name is not known, but its id; None in other ones that do not name it."""
    found = text.tokenizer.token_to_id(PADDING)
    return _PADDING if found is None and text.size == _RELEASED_IDS else found


def _learned(b: Builder, codes: Tensor, request: str) -> Sequence:
    b.say("assistant", b.text[ANSWER], b.text[IMAGE])
    for line in codes.tolist():
        b.write("image", [b.text.size + code for code in line]).say("line", b.text[LINE])
    return b.say("end", b.text[END_IMAGE], b.text[END_ANSWER]).build(request)


def answer_last(row: Sequence) -> Sequence:
    """``understanding`` with the end of the answer before the answer, at the same position: readers find the answer in the last span."""
    *given, answer, end = row.spans
    order = torch.cat(
        [torch.arange(answer.start), torch.arange(end.start, end.stop), torch.arange(answer.start, answer.stop)]
    )
    moved = replace(end, start=answer.start, stop=answer.start + len(end), position_offset=len(answer))
    last = replace(answer, start=moved.stop, stop=end.stop, positions_of="assistant", position_offset=1)
    return replace(row, ids=row.ids[order], masked=row.masked[order], spans=(*given, moved, last))


def covered(grid: tuple[int, int], factor: int, ratios: tuple[float, float]) -> Tensor:
    """The share of each code that a centred box of ``ratios`` (height, width) of a picture covers, [h, w]. Inpainting masks those covered
    by more than half, outpainting those covered by less; both keep a code of which half is covered.
    """
    sides = []
    for cells, ratio in zip(grid, ratios, strict=True):
        pixels = cells * factor
        box = round(pixels * ratio)
        first = (pixels - box) // 2
        inside = torch.zeros(pixels)
        inside[first : first + box] = 1
        sides.append(inside.view(cells, factor).mean(1))
    return sides[0][:, None] * sides[1][None, :]


def broken_lines(codes: Tensor, text_ids: tuple[int, int, int], first_code: int) -> list[int]:
    """A picture as the released understanding script writes it, which breaks its lines twice and loses its end. For parity alone.

    ``text_ids``: begin of a picture, end of line, end of a picture.
    """
    begin, line, end = text_ids
    whole = [begin, *(i for row in codes.tolist() for i in [*(first_code + c for c in row), line]), end]
    wide = codes.shape[1]
    return [i for row in range(len(codes)) for i in [*whole[row * wide : (row + 1) * wide], line]]
