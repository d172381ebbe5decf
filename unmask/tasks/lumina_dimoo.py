"""Lumina-DiMOO as published (arXiv 2510.06308): its rows, picture shapes and samplers.

Public idea: ``dimoo_parts(weights, raw, side) -> Parts``, and ``presets(raw)``. Drawing of any shape, editing, in- and outpainting,
questions about pictures. Pictures that are changed or read keep their shape, at about half or all of the area of a drawing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence as Items
from dataclasses import dataclass, replace
from functools import partial

from PIL import Image
from torch import Tensor

from unmask.checkpoints.elastic import Weights
from unmask.checkpoints.lavida_o import OWN_BLOCK
from unmask.checkpoints.lumina_dimoo import read_text
from unmask.checkpoints.stream import CheckpointError
from unmask.json_types import Json
from unmask.models.linear import pack
from unmask.sampling.lumina_dimoo import dimoo_edit, dimoo_image, dimoo_text
from unmask.sampling.sampler import Sampler
from unmask.sequence import Sequence
from unmask.tasks.free_sizes import grid_of
from unmask.tasks.parts import Parts, Presets
from unmask.tasks.rows import Extras, PlainRows
from unmask.tasks.some_tasks import drawing_and_answering
from unmask.tokens.layouts import Layout
from unmask.tokens.lumina_dimoo import (
    DRAW,
    SOURCE,
    STYLE,
    UNDERSTAND,
    DiMOOQuirks,
    Request,
    answer_last,
    drawing,
    editing,
    refuse_kind,
    request_of,
    understanding,
)
from unmask.tokens.lumina_dimoo import NO_QUIRKS as NO_DIMOO_QUIRKS
from unmask.tokens.prompts import RELEASED, Conditions, Wording
from unmask.tokens.quirks import NO_QUIRKS
from unmask.tokens.text import MASK
from unmask.tokens.turns import Said
from unmask.tokens.views import ImageViews

WORDING = replace(RELEASED, system="", newlines="", after_image="", describe="Describe this image in detail.")
SIDE = 64  # codes along a side of a square drawing: 1,024 pixels with the released tokenizer
_MOST_SHAPE = 4  # longest side / shortest
_GIVEN = frozenset(
    {"prompt", SOURCE, "assistant", "end"}
)  # what text guidance replaces by the mask: everything but the answer
_TASKS = "it draws, edits, infills, and answers questions"


@dataclass(frozen=True, kw_only=True)
class DiMOORows(PlainRows):
    """``change``: the released name of the task of an edit (``tokens.lumina_dimoo.request_of``) · ``references``: codes [h, w] of further
    pictures that it reads · ``quirks``: deviations of the released scripts.
    """

    change: str = "edit"
    references: tuple[Tensor, ...] = ()
    quirks: DiMOOQuirks = NO_DIMOO_QUIRKS

    def of_kind(self, kind: str, references: Items[Tensor]) -> DiMOORows:
        """ValueError for an unknown kind, and for a transfer of style without its reference, or another kind with one."""
        refuse_kind(kind := kind or self.change)
        if len(references) != (wanted := int(kind == STYLE)):
            more = "give the picture whose style it takes as the reference" if wanted else f"only {STYLE} takes one"
            raise ValueError(f"the kind {kind!r} reads {wanted} references, got {len(references)}; {more}")
        return replace(self, change=kind, references=tuple(references))

    def drawn_size(self, tokens: Parts, size: tuple[int, int]) -> tuple[int, int]:
        """Both sides in whole codes, and at most the area of a square drawing."""
        factor, area = tokens.vq.config.factor, size[0] * size[1]
        scale = min(1.0, tokens.side / math.sqrt(area))
        sides = [max(1, int(side * scale / factor + 1e-6)) * factor for side in size]
        return sides[0], sides[1]

    def canvas(self, length: int, max_tokens: int | None) -> int:
        return max(length, max_tokens or 0)

    def planning(self, tokens: Parts, prompt: str, length: int, conditions: Conditions | None) -> Sequence:
        raise ValueError(f"Lumina-DiMOO makes no layouts; {_TASKS}")

    def plan_in(self, tokens: Parts, ids: Items[int]) -> Layout:
        raise ValueError(f"Lumina-DiMOO makes no layouts; {_TASKS}")

    def drawing(self, tokens: Parts, prompt: str, extras: Extras) -> Sequence:
        if replace(extras, size=None) != Extras():
            raise ValueError(
                "Lumina-DiMOO draws from a prompt and a size alone; leave out conditions, layouts and attempts"
            )
        grid = tokens.grid if extras.size is None else grid_of(extras.size, tokens.side, tokens.vq.config.factor)
        return drawing(tokens.builder(), Request(system=DRAW, text=prompt), grid)

    def editing(
        self, tokens: Parts, look: Tensor | ImageViews, source: Tensor, instruction: str, plan: Layout | None
    ) -> Sequence:
        if plan is not None:
            raise ValueError(f"Lumina-DiMOO cannot edit by a layout; {_TASKS}")
        pictures = [source, *self.references]
        shape = pictures[-1 if self.quirks.size_of_reference else 0].shape
        request = request_of(self.change, instruction, self.quirks)
        return editing(tokens.builder(), request, pictures, (shape[0], shape[1]))

    def conversation(self, tokens: Parts, wording: Wording, said: Items[Said], length: int) -> Sequence:
        if len(said) > 1:
            raise ValueError("Lumina-DiMOO answers one message at a time; leave out the earlier ones")
        pictures = [tokens.encode(p).cpu() for p in said[0].pictures if isinstance(p, Tensor)]
        request = Request(system=wording.system or UNDERSTAND, text=said[0].text)
        return answer_last(understanding(tokens.builder(), request, pictures, length))

    def asking(
        self, tokens: Parts, picture: Tensor | ImageViews | None, question: str, length: int, name: str = "answer"
    ) -> Sequence:
        pictures = (picture,) if isinstance(picture, Tensor) else ()
        made = self.conversation(tokens, WORDING, [Said(role="user", text=question, pictures=pictures)], length)
        *given, answer = made.spans
        return replace(made, spans=(*given, replace(answer, name=name)))


def side_of(raw: Json, factor: int) -> int:
    """Pixels of a square drawing: 64 codes, or ``unmask.side`` of config.json. CheckpointError if the tokenizer cannot make it."""
    own = raw.get(OWN_BLOCK, {})
    side = own.get("side", SIDE * factor) if isinstance(own, dict) else own
    if not isinstance(side, int) or side < 4 * factor or side % (4 * factor):
        raise CheckpointError(
            f"config.json: unmask.side {side!r} is not possible; give a multiple of {4 * factor} pixels"
        )
    return side


def dimoo_parts(weights: Weights, raw: Json) -> Parts:
    """The parts of a model, with no weights loaded. ``raw``: its config.json."""
    checkpoint = weights.checkpoint
    text = read_text(checkpoint.place, raw)
    net, vq = checkpoint.modules()
    net.mask_id = text[MASK]
    pack(net)
    unit = 2 * checkpoint.vq_config.factor
    return Parts(
        text=text,
        net=net,
        vq=vq,
        wording=WORDING,
        side=side_of(raw, checkpoint.vq_config.factor),
        fold=1,
        quirks=NO_QUIRKS,
        rows=DiMOORows(),
        frame=partial(shaped, unit=unit, share=2),
        look_frame=partial(shaped, unit=unit, share=1),
        weights=weights,
    )


def shaped(image: Image.Image, side: int, *, unit: int, share: int) -> Image.Image:
    """The picture in the released size that fits its shape best, its middle kept. ``unit``: both sides are multiples of it · ``share``: the
    area is at most that of a square of side / ``share``. The released script cuts at random instead.
    """
    width, height = best_size(image.size, unit, (side // (unit * share)) ** 2)
    while image.width >= 2 * width and image.height >= 2 * height:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = max(width / image.width, height / image.height)
    covering = (max(width, round(image.width * scale)), max(height, round(image.height * scale)))
    if covering != image.size:
        image = image.resize(covering, Image.Resampling.BICUBIC)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def best_size(size: tuple[int, int], unit: int, most: int) -> tuple[int, int]:
    """Of the sizes of at most ``most`` squares of ``unit`` pixels, none of which could grow on both sides, the one of the nearest shape."""
    sizes = [
        (a * unit, b * unit)
        for a in range(1, most + 1)
        for b in range(most // (a + 1), most // a + 1)
        if b and a * b <= most < (a + 1) * (b + 1) and max(a, b) <= _MOST_SHAPE * min(a, b)
    ]
    ratios = {s: (s[0] / size[0], s[1] / size[1]) for s in sizes}
    return max(sizes, key=lambda s: (min(ratios[s]) / max(ratios[s]), s))


def _generate(tokens: Parts) -> Sampler:
    return dimoo_image()


def _edit(tokens: Parts) -> Sampler:
    return dimoo_edit()


def _text(tokens: Parts) -> Sampler:
    return dimoo_text(text_ids=tokens.text.size, mask_id=tokens.mask_id, drop=_GIVEN, end=tokens.text.ends)


PRESETS = drawing_and_answering("Lumina-DiMOO", _TASKS, generate=_generate, ask=_text, length=1024, edit=_edit)


def presets(raw: Json) -> Presets:
    """``PRESETS`` with the context of config.json."""
    context = int(raw.get("max_sequence_length", PRESETS.context))
    return replace(PRESETS, context=context, turn=min(PRESETS.turn, math.ceil(context / 2)))
