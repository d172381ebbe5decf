"""LLaDA2.0-Uni as published (arXiv 2604.20796): its rows, picture shapes and samplers.

Public idea: ``uni_parts(weights, raw) -> Parts``, and ``presets(raw)``. Drawing of any shape, editing, questions.
A code is 16 pixels of a picture that is read, and 32 of one that is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence as Items
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from PIL import Image
from torch import Tensor

from unmask.checkpoints.elastic import Weights
from unmask.checkpoints.llada2 import read_text
from unmask.checkpoints.llada2_uni import own_settings
from unmask.checkpoints.stream import CheckpointError
from unmask.json_types import Json
from unmask.models.linear import pack
from unmask.sampling.llada2 import llada2_edit, llada2_image, llada2_text
from unmask.sampling.rescaled import HeadDeviation
from unmask.sampling.sampler import Sampler
from unmask.sequence import Sequence
from unmask.tasks.free_sizes import grid_of
from unmask.tasks.parts import Parts, Presets, Refused
from unmask.tasks.rows import Extras, PlainRows
from unmask.tasks.some_tasks import drawing_and_answering
from unmask.tokens.layouts import Layout as Boxes
from unmask.tokens.llada2 import (
    BLOCK,
    IMAGE,
    UNCONDITION,
    Layout,
    draw_prompt,
    drawing,
    editing,
    header,
    null_prompt,
    thinking,
    thinking_prompt,
    understanding,
)
from unmask.tokens.prompts import RELEASED, Conditions, Wording
from unmask.tokens.quirks import NO_QUIRKS
from unmask.tokens.text import MASK
from unmask.tokens.turns import Said
from unmask.tokens.views import ImageViews

WORDING = replace(RELEASED, system="", newlines="", after_image="", describe="Describe this image in detail.")
SIDE = 1024  # pixels along a side of a square drawing
_UNIT = 32  # pixels: sides of pictures that are read are multiples of it
_LEAST, _MOST, _MOST_OF_SEVERAL = 128**2, 800**2, 448**2  # pixels of a picture that is read
_SMALLEST = 8  # codes along a side
_MOST_SHAPE = 4  # longest side / shortest
_THOUGHTS = 512  # tokens of thoughts before a drawing
_TASKS = "it draws, edits, and answers questions with and without a picture"


@dataclass(frozen=True, kw_only=True)
class UniRows(PlainRows):
    """``layout``: of blocks and codes · ``bare``: questions without roles, as the first release had them."""

    layout: Layout
    bare: bool = False

    def drawn_size(self, tokens: Parts, size: tuple[int, int]) -> tuple[int, int]:
        """Both sides in an even number of codes, at least 8, and at most the area of a square drawing."""
        unit = 2 * tokens.vq.config.factor
        scale = min(1.0, tokens.side / math.sqrt(size[0] * size[1]))
        sides = [max(_SMALLEST * unit // 2, int(side * scale / unit + 1e-6) * unit) for side in size]
        return sides[0], sides[1]

    def canvas(self, length: int, max_tokens: int | None) -> int:
        return max(length, max_tokens or 0)

    def planning(self, tokens: Parts, prompt: str, length: int, conditions: Conditions | None) -> Sequence:
        """The model's thoughts about a picture, which then stand before it."""
        if conditions is not None:
            raise ValueError("LLaDA2.0-Uni draws from a prompt and a size alone; leave out conditions")
        return thinking(tokens.builder(), prompt, length, self.layout)

    def plan_in(self, tokens: Parts, ids: Items[int]) -> Boxes:
        ends = (tokens.text[IMAGE], *tokens.text.ends)
        end = next((i for i, token in enumerate(ids) if token in ends), len(ids))
        return Boxes(objects=(), reason=tokens.text.raw(list(ids[:end])).strip())

    def drawing(self, tokens: Parts, prompt: str, extras: Extras) -> Sequence:
        """With thoughts, they stand between the prompt and the picture, whose size is the one asked for."""
        if replace(extras, size=None, plan=None) != Extras() or (extras.plan and extras.plan.objects):
            raise ValueError(
                "LLaDA2.0-Uni draws from a prompt and a size alone; leave out conditions, layouts of objects and attempts"
            )
        grid = tokens.grid if extras.size is None else grid_of(extras.size, tokens.side, tokens.vq.config.factor)
        b = tokens.builder()
        if extras.plan is None:
            return drawing(b, draw_prompt(b, prompt, grid), null_prompt(b, grid), grid, self.layout, prompt)
        given = [*thinking_prompt(b, prompt), *b.text.encode(extras.plan.reason), *header(b.text, grid)]
        null = [*thinking_prompt(b, UNCONDITION), *header(b.text, grid)]
        return drawing(b, given, null, grid, self.layout, prompt)

    def editing(
        self, tokens: Parts, look: Tensor | ImageViews, source: Tensor, instruction: str, plan: Boxes | None
    ) -> Sequence:
        if plan is not None:
            raise ValueError(f"LLaDA2.0-Uni cannot edit by a layout; {_TASKS}")
        return editing(tokens.builder(), source, instruction, self.layout)

    def conversation(self, tokens: Parts, wording: Wording, said: Items[Said], length: int) -> Sequence:
        """The system's message is left out: the model has one system message of its own for pictures."""
        turns = [
            (one.role, one.text, [tokens.encode(p).cpu() for p in one.pictures if isinstance(p, Tensor)])
            for one in said
            if one.role != "system"
        ]
        return understanding(tokens.builder(), turns, length, self.layout, bare=self.bare and len(turns) == 1)

    def asking(
        self, tokens: Parts, picture: Tensor | ImageViews | None, question: str, length: int, name: str = "answer"
    ) -> Sequence:
        pictures = (picture,) if isinstance(picture, Tensor) else ()
        made = self.conversation(tokens, WORDING, [Said(role="user", text=question, pictures=pictures)], length)
        *given, answer = made.spans
        return replace(made, spans=(*given, replace(answer, name=name)))


def side_of(raw: Json, factor: int, path: Path = Path("config.json")) -> int:
    """Pixels of a square drawing: 1024, or ``unmask.side`` of config.json. CheckpointError for a side without a token."""
    side, unit = own_settings(raw, path).side or SIDE, 2 * factor
    if side % unit or side < _SMALLEST * factor:
        raise CheckpointError(
            f"{path}: unmask.side {side} is not possible; give a multiple of {unit} pixels, at least {_SMALLEST * factor}"
        )
    return side


def uni_parts(weights: Weights, raw: Json) -> Parts:
    """The parts of a model, with no weights loaded. ``raw``: its config.json."""
    checkpoint = weights.checkpoint
    text = read_text(checkpoint.place, pictures=True)
    if text.size > checkpoint.config.vocab_size:
        raise CheckpointError(
            f"{checkpoint.place}: the tokenizer has {text.size} ids and the model {checkpoint.config.vocab_size}"
        )
    net, vq = checkpoint.modules()
    net.mask_id = text[MASK]
    pack(net)
    factor = checkpoint.vq_config.factor
    return Parts(
        text=text,
        net=net,
        vq=vq,
        wording=WORDING,
        side=side_of(raw, factor, checkpoint.place / "config.json"),
        fold=1,
        quirks=NO_QUIRKS,
        rows=UniRows(layout=Layout(block=BLOCK, first_code=checkpoint.config.first_code)),
        frame=partial(edited, factor=factor),
        look_frame=partial(understood, most=_MOST),
        overview_frame=partial(understood, most=_MOST_OF_SEVERAL),
        weights=weights,
    )


def read_size(size: tuple[int, int], most: int) -> tuple[int, int]:
    """(height, width) of a picture that is read, of one of ``size`` (height, width): multiples of 32, of at most ``most`` pixels."""
    high, wide = (max(_UNIT, round(side / _UNIT) * _UNIT) for side in size)
    area = size[0] * size[1]
    if high * wide > most:
        scale = math.sqrt(most / area)
        high, wide = (max(_UNIT, math.floor(side * scale / _UNIT) * _UNIT) for side in size)
    elif high * wide < _LEAST:
        scale = math.sqrt(_LEAST / area)
        high, wide = (math.ceil(side * scale / _UNIT) * _UNIT for side in size)
    return high, wide


def understood(image: Image.Image, side: int, *, most: int) -> Image.Image:
    """A picture that is read: scaled to cover ``read_size``, and its middle in whole units, which may be longer in one direction."""
    high, wide = read_size((image.height, image.width), most)
    scale = max(high / image.height, wide / image.width)
    covering = (int(round(image.width * scale)), int(round(image.height * scale)))
    if covering != image.size:
        image = image.resize(covering, Image.Resampling.BICUBIC)
    kept = (max(wide, covering[0] // _UNIT * _UNIT), max(high, covering[1] // _UNIT * _UNIT))
    return centred(image, kept)


def centred(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The middle of a picture, (width, height); where it is smaller, it stands at the left or the top of black, as released."""
    left, top = (max(0, (side - kept) // 2) for side, kept in zip(image.size, size, strict=True))
    return image.crop((left, top, left + size[0], top + size[1]))


def edit_sizes(patches: int) -> list[tuple[int, int]]:
    """The shapes (width, height) in pixels of pictures that are edited: at most ``patches`` squares of 32 pixels, not longer than
    4 : 1, and no side too short for its token.
    """
    wide, high, out = patches, 1, []
    while wide:
        if max(wide, high) <= _MOST_SHAPE * min(wide, high) and 2 * min(wide, high) >= _SMALLEST:
            out.append((wide * _UNIT, high * _UNIT))
        if wide * (high + 1) <= patches:
            high += 1
        else:
            wide -= 1
    return out


def edit_size(size: tuple[int, int], patches: int) -> tuple[int, int]:
    """Of ``edit_sizes``, the one nearest to the shape of ``size``, both (width, height)."""
    ratios = {s: (s[0] / size[0], s[1] / size[1]) for s in edit_sizes(patches)}
    return max(ratios, key=lambda s: (min(ratios[s]) / max(ratios[s]), s))


def edited(image: Image.Image, side: int, *, factor: int, cut: bool = False) -> Image.Image:
    """A picture that is edited: in the nearest shape, whose drawing has about the area of the model's square. ``cut``: the middle of that
    many pixels without scaling, as released: of a large photograph a small part.
    """
    width, height = edit_size(image.size, (side // (2 * factor)) ** 2)
    if not cut:
        scale = max(width / image.width, height / image.height)
        covering = (max(width, round(image.width * scale)), max(height, round(image.height * scale)))
        image = image.resize(covering, Image.Resampling.BICUBIC) if covering != image.size else image
    return centred(image, (width, height))


def _block(tokens: Parts) -> int:
    return tokens.rows.layout.block if isinstance(tokens.rows, UniRows) else BLOCK


def _generate(tokens: Parts) -> Sampler:
    return llada2_image(deviation=HeadDeviation(head=tokens.net.text_head), block=_block(tokens))


def _edit(tokens: Parts) -> Sampler:
    return llada2_edit(deviation=HeadDeviation(head=tokens.net.text_head), block=_block(tokens))


def _text(tokens: Parts) -> Sampler:
    return _ending(tokens, tokens.text.ends)


def _thoughts(tokens: Parts) -> Sampler:
    """They end where the model announces its picture."""
    return _ending(tokens, (tokens.text[IMAGE], *tokens.text.ends))


def _ending(tokens: Parts, end: tuple[int, ...]) -> Sampler:
    first = tokens.net.config.first_code
    return llada2_text(text_ids=first, mask_id=tokens.mask_id, end=end, block=_block(tokens))


PRESETS = replace(
    drawing_and_answering("LLaDA2.0-Uni", _TASKS, generate=_generate, ask=_text, length=512, edit=_edit),
    plan=_thoughts,
    plan_length=_THOUGHTS,
    infill=Refused(told="LLaDA2.0-Uni cannot infill pictures", has=_TASKS),
)


def presets(raw: Json) -> Presets:
    """``PRESETS`` with the context of config.json."""
    context = int(raw.get("max_position_embeddings", PRESETS.context))
    return replace(PRESETS, context=context, turn=min(PRESETS.turn, math.ceil(context / 2)))
