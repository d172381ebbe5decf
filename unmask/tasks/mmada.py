"""MMaDA as published (arXiv 2505.15809): its rows, pictures of 512 pixels and samplers.

Public idea: ``mmada_parts(checkpoint, weights, raw) -> Parts``, and ``PRESETS``. Drawing, also by a description that it writes
first, infilling, understanding and text; it was trained for no edits, boxes or layouts.
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass, replace

from PIL import Image
from torch import Tensor

from unmask.checkpoints.elastic import Weights
from unmask.checkpoints.mmada import read_text, sizes_of
from unmask.json_types import Json
from unmask.models.linear import pack
from unmask.sampling.mmada import mmada_image, mmada_text
from unmask.sampling.sampler import Sampler
from unmask.sequence import Sequence
from unmask.tasks.parts import Parts, Presets
from unmask.tasks.rows import Extras, PlainRows
from unmask.tasks.some_tasks import drawing_and_answering
from unmask.tokens.layouts import Layout
from unmask.tokens.magvit import MagvitConfig
from unmask.tokens.mmada import SOURCE, WORDING, Field, drawing, thinking, thought_in, understanding
from unmask.tokens.prompts import Conditions, Wording
from unmask.tokens.quirks import NO_QUIRKS
from unmask.tokens.text import EOS, EOT, MASK
from unmask.tokens.turns import Said
from unmask.tokens.views import ImageViews

_PROMPT = frozenset({"prompt", SOURCE})  # what text guidance replaces by the mask
QUIRKS = replace(NO_QUIRKS, truncated_pixels=True)


@dataclass(frozen=True, kw_only=True)
class MMaDARows(PlainRows):
    """``field``: of the prompts of drawings."""

    field: Field

    def editing(
        self, tokens: Parts, look: Tensor | ImageViews, source: Tensor, instruction: str, plan: Layout | None
    ) -> Sequence:
        raise ValueError("MMaDA cannot edit; it draws, infills, and answers questions with and without a picture")

    def conversation(self, tokens: Parts, wording: Wording, said: Items[Said], length: int) -> Sequence:
        codes = [
            tokens.encode(picture).cpu() for one in said for picture in one.pictures if isinstance(picture, Tensor)
        ]
        first = [Said(role="system", text=wording.system)] if wording.system else []
        return understanding(tokens.builder(), [*first, *said], codes, length)

    def drawing(self, tokens: Parts, prompt: str, extras: Extras) -> Sequence:
        if replace(extras, plan=None) != Extras() or (extras.plan and extras.plan.objects):
            raise ValueError("MMaDA draws from a prompt alone; leave out conditions, layouts, attempts and sizes")
        said = extras.plan.reason if extras.plan else ""
        return drawing(tokens.builder(), said or prompt, tokens.grid, field=self.field)

    def planning(self, tokens: Parts, prompt: str, length: int, conditions: Conditions | None) -> Sequence:
        """A detailed description of the picture, which is then its prompt; no sampler of it is released."""
        if conditions is not None:
            raise ValueError("MMaDA draws from a prompt alone; leave out conditions")
        return thinking(tokens.builder(), prompt, length, field=self.field)

    def plan_in(self, tokens: Parts, ids: Items[int]) -> Layout:
        return Layout(objects=(), reason=thought_in(ids, tokens.text))

    def asking(
        self, tokens: Parts, picture: Tensor | ImageViews | None, question: str, length: int, name: str = "answer"
    ) -> Sequence:
        if isinstance(picture, ImageViews):
            raise ValueError("MMaDA reads a picture as codes, not as views; give its pixels")
        codes = [] if picture is None else [tokens.encode(picture).cpu()]
        made = understanding(tokens.builder(), [Said(role="user", text=question)], codes, length)
        *given, answer = made.spans
        return replace(made, spans=(*given, replace(answer, name=name)))


def mmada_parts(weights: Weights, raw: Json) -> Parts:
    """The parts of a model, with no weights loaded. ``raw``: its config.json. CheckpointError where something does not fit."""
    checkpoint = weights.checkpoint
    assert isinstance(checkpoint.vq_config, MagvitConfig)
    text = read_text(checkpoint.place, raw)
    side, length = sizes_of(raw, checkpoint.vq_config)
    net, vq = checkpoint.modules()
    net.mask_id = text[MASK]
    pack(net)
    rows = MMaDARows(field=Field(length=length))
    fixed = {"wording": WORDING, "side": side, "fold": 1, "quirks": QUIRKS, "rows": rows, "frame": centred}
    return Parts(text=text, net=net, vq=vq, weights=weights, **fixed)  # type: ignore[arg-type]


def centred(image: Image.Image, side: int) -> Image.Image:
    """The short side scaled to ``side`` (bicubic), and the middle of the long one."""
    short = min(image.size)
    width, height = (side if s == short else max(side, int(side * s / short)) for s in image.size)
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - side) / 2), round((height - side) / 2)
    return image.crop((left, top, left + side, top + side))


def _generate(tokens: Parts) -> Sampler:
    return mmada_image(codes=tokens.grid[0] * tokens.grid[1])


def _text(tokens: Parts) -> Sampler:
    end = (tokens.text[EOT], tokens.text[EOS])
    return mmada_text(text_ids=tokens.text.size, mask_id=tokens.mask_id, drop=_PROMPT, end=end)


_TASKS = "it draws, infills, and answers questions with and without a picture"
_DESCRIPTION = 256  # tokens of a description before a drawing, of the 512 of its field
PRESETS = replace(
    drawing_and_answering("MMaDA", _TASKS, generate=_generate, ask=_text, length=512),
    plan=_text,
    plan_length=_DESCRIPTION,
)


def presets(raw: Json) -> Presets:
    """``PRESETS`` with the context of config.json."""
    context = int(raw.get("max_sequence_length", PRESETS.context))
    return replace(PRESETS, context=context, turn=min(PRESETS.turn, context // 2))
