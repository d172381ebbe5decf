"""The loaded parts of a model, and the conversions between pictures, pixels and codes that tasks share.

Public idea: ``Parts``, the argument of every task's ``build`` and ``read``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, NoReturn

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from unmask.checkpoints.elastic import Weights
from unmask.checkpoints.loading import load
from unmask.models.elastic import Elastic
from unmask.protocols import Codec
from unmask.sampling.fast import EXACT, Fast, acting
from unmask.sampling.sampler import Sampler
from unmask.tasks.features import Features
from unmask.tasks.rows import ChatRows, Rows
from unmask.tokens.build import Builder, PlanIds
from unmask.tokens.layouts import Layout, to_ids
from unmask.tokens.magvit import ImageTokenizer
from unmask.tokens.pictures import Placement, read_image, reduced, square
from unmask.tokens.prompts import Conditions, Wording
from unmask.tokens.quirks import NO_QUIRKS, ReleasedQuirks
from unmask.tokens.sources import Picture
from unmask.tokens.text import MASK, Slots, Text
from unmask.tokens.views import AnyRes, ImageViews, Shrunk, to_pixels
from unmask.tokens.vocabulary import Vocabulary
from unmask.tokens.whole_blocks import WholeBlocks

PAPER = (250, 250, 250)  # padding colour of a picture that is not square
Frame = Callable[[Image.Image, int], Image.Image]  # (picture, side) -> picture whose sides the image tokenizer takes
MOST_PLAN = 512  # tokens
MOST_FEATURES = 2**28  # bytes of cached features: about 35 pictures of the released model at its largest


@dataclass(frozen=True, kw_only=True)
class Quirked:
    """Deviations of released scripts: those of the prompts and pictures, those of the family's rows, and the shape of a picture that is
    edited (None: that of the model).
    """

    quirks: ReleasedQuirks
    rows: Rows
    frame: Frame | None = None


@dataclass(frozen=True, kw_only=True)
class Parts:
    """``side``: pixels of a generated picture · ``fold``: codes per position along one side · ``paper``: padding colour of a picture
    that is not square · ``views``: how a picture is cut into views for the vision tower; None: it reads the square · ``rows``: how requests
    are written · ``frame``: shapes a picture that is changed; None: it is padded · ``look_frame``: and one that is
    only read; None: alike · ``overview_frame``: and one of several; None: alike · ``weights``: source of parts that are
    not loaded yet; None: everything is loaded · ``threaded_codec``: ``vq`` as a server runs it, in its own threads; None: ``vq`` itself ·
    ``features``: cache of encoded pictures · ``loaded``: the needs that were loaded · ``vocabulary``: the words that the model knows; None:
    any text · ``slots``: gaps that the model may leave empty; None: it has none · ``choices``: deviations of released scripts by name
    (``pipeline.quirks``); empty: the family has none.
    """

    text: Text
    net: Elastic
    vq: ImageTokenizer
    wording: Wording
    side: int
    fold: int
    quirks: ReleasedQuirks = NO_QUIRKS
    paper: tuple[int, int, int] = PAPER
    views: AnyRes | Shrunk | WholeBlocks | None = None
    rows: Rows = ChatRows()
    frame: Frame | None = None
    look_frame: Frame | None = None
    overview_frame: Frame | None = None
    weights: Weights | None = None
    threaded_codec: Codec | None = None
    vocabulary: Vocabulary | None = None
    slots: Slots | None = None
    choices: Mapping[str, Quirked] = field(default_factory=dict, compare=False, repr=False)
    features: Features = field(default_factory=lambda: Features(MOST_FEATURES), compare=False, repr=False)
    loaded: set[frozenset[str]] = field(default_factory=set, compare=False, repr=False)

    @torch.inference_mode(False)  # tensors of that mode say nothing about writes, and what follows from weights is kept
    def require(self, needs: frozenset[str]) -> None:
        """Load the parts in ``needs`` (``Task.needs``) that are not loaded yet."""
        # Looking through all weights takes as long as a step of a small model, so each set of needs is loaded once.
        if self.weights and not any(needs <= done for done in self.loaded):
            load(self.weights, self.net, self.vq, needs)
            self.loaded.add(needs)

    def names_object(self, text: str) -> bool:
        """Whether a text names something to draw; True for a model without a vocabulary."""
        return not self.vocabulary or self.vocabulary.names_object(self.wording.read(text))

    def warnings(self, text: str, *, needs_object: bool = False) -> tuple[str, ...]:
        """``Vocabulary.warnings`` of a text as the model reads it; () for a model without a vocabulary."""
        read = self.wording.read(text)
        return self.vocabulary.warnings(read, needs_object=needs_object) if self.vocabulary else ()

    @property
    def codec(self) -> Codec:
        """The image tokenizer, as tasks use it."""
        return self.vq if self.threaded_codec is None else self.threaded_codec

    @property
    def grid(self) -> tuple[int, int]:
        """Codes of one picture: (rows, columns)."""
        n = self.side // self.vq.config.factor
        return (n, n)

    @property
    def mask_id(self) -> int:
        return self.text[MASK]

    @property
    def look_tokens(self) -> int:
        """Feature rows of one view of a picture."""
        return self.net.config.vision.tokens if self.net.config.vision else 0

    def conditions(
        self,
        *,
        luminance: float | None = None,
        contrast: float | None = None,
        score: float | None = None,
        crop: tuple[int, int] | None = None,
    ) -> Conditions | None:
        """The given conditions (``crop``: top, left) added to the model's defaults; None if none is given."""
        top, left = crop or (None, None)
        asked = {"luminance": luminance, "contrast": contrast, "score": score, "top": top, "left": left}
        given: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
        return replace(self.quirks.conditions or Conditions(), **given) if given else None

    def builder(self) -> Builder:
        return Builder(text=self.text, wording=self.wording, look_tokens=self.look_tokens, quirks=self.quirks)

    def preprocess(self, image: Image.Image) -> tuple[Tensor, Placement]:
        """A picture padded to a square and resized, [3, side, side] in 0..1, and the placement that maps boxes back to its own pixels.

        Where there is a ``frame``, in the shape that it gives.
        """
        if self.frame:
            return to_pixels(self.frame(image, self.side)), Placement(width=image.width, height=image.height)
        padded, placement = square(image, self.side, self.paper)
        return to_pixels(padded), placement

    def region(self, painted: Image.Image) -> Tensor:
        """Where a picture is painted white, in the shape that ``preprocess`` gives to one of its size, bool."""
        shaped = self.frame(painted, self.side) if self.frame else square(painted, self.side, (0, 0, 0))[0]
        return to_pixels(shaped).mean(0) > 0.5

    def image_views(self, image: Image.Image) -> Tensor | ImageViews:
        """The views of a picture that the vision tower reads, or the pixels whose codes the text trunk reads. ValueError for a model that
        reads no pictures.
        """
        if self.net.config.first_code:
            frame = self.look_frame or self.frame
            return to_pixels(frame(image, self.side)) if frame else self.preprocess(image)[0]
        if self.net.vision is None:
            raise ValueError(
                "this model has no vision tower, so it cannot read pictures; use a checkpoint that has one"
            )
        if isinstance(self.views, Shrunk):
            return self._resized(self.views, reduced(image))
        return self.views(reduced(image)) if self.views else self.preprocess(image)[0]

    @torch.no_grad()
    def _resized(self, views: Shrunk, image: Image.Image) -> ImageViews:
        """The tokens of a picture, for which the vision tower runs now: they are computed from the features of all views."""
        self.require(frozenset({"vision"}))
        found, device = views(image), self.net.embed.weight.device
        features = self.features(found.views, lambda: self.net.features(found.views.to(device)), net=self.net)
        tokens = views.tokens(features, image.size)
        return ImageViews(views=found.views, rows=torch.arange(len(tokens)), tokens=tokens)

    def question_views(self, image: Picture | None) -> Tensor | ImageViews | None:
        """The views of the picture of a question; None without one. ValueError where the model needs one."""
        if image is None and not self.net.config.first_code:
            raise ValueError("the picture is missing, and this model answers questions about pictures; give one")
        return None if image is None else self.image_views(read_image(image))

    def overview(self, image: Image.Image) -> Tensor | ImageViews:
        """One view of the whole picture without detail crops, for requests with several pictures."""
        if self.overview_frame:
            return to_pixels(self.overview_frame(image, self.side))
        return self.views.one_of_several(reduced(image)) if self.views else self.image_views(image)

    def planned(self, layout: Layout | None) -> PlanIds | None:
        """A layout as the tokens before a picture. ValueError if it is longer than ``MOST_PLAN`` tokens."""
        if layout is None:
            return None
        ids = to_ids(layout, self.text, self.wording)
        if len(ids) > MOST_PLAN:
            raise ValueError(f"the layout has {len(ids)} tokens, more than {MOST_PLAN}; use fewer objects")
        return PlanIds(ids=tuple(ids))

    def encode(self, pixels_3HW: Tensor) -> Tensor:
        """One picture -> codes [h, w]."""
        with torch.no_grad():
            return self.codec.encode(pixels_3HW[None])[0]

    def decode(self, codes_Bhw: Tensor) -> list[Image.Image]:
        """Codes -> pictures."""
        with torch.no_grad():
            pixels = self.codec.decode(codes_Bhw)
        return [to_image(p, 0.0 if self.quirks.truncated_pixels else 0.5) for p in pixels]

    def canvas(self, codes_hw: Tensor, masked_hw: Tensor) -> Image.Image:
        """A partly decoded picture: unmasked codes decoded, masked ones as a grey grid."""
        factor = self.vq.config.factor
        pixels = np.asarray(self.decode(codes_hw.masked_fill(masked_hw, int(codes_hw[0, 0]))[None])[0]).copy()
        for row, column in masked_hw.nonzero().tolist():
            tile = pixels[row * factor : (row + 1) * factor, column * factor : (column + 1) * factor]
            tile[:] = 190
            tile[1:-1, 1:-1] = 212
        return Image.fromarray(pixels)


@dataclass(frozen=True, kw_only=True)
class Refused:
    """The preset of a task that a family does not have: calling it is a ValueError. ``told``: such as "MMaDA cannot edit" · ``has``: what
    the family can do.
    """

    told: str
    has: str

    def __call__(self, *given: object) -> NoReturn:
        raise ValueError(f"{self.told}; {self.has}")


@dataclass(frozen=True, kw_only=True)
class Presets:
    """The sampler of every task for one family of models, and the lengths of answers in tokens.

    ``plans``, ``attempts``: how a picture is generated unless a call says otherwise: from a layout, and as the best of so many attempts ·
    ``edit_again``: further attempts at an edit, hot enough to differ · ``turn``: text of one turn of a conversation · ``context``: longest
    sequence · ``infill``: the refusal of a family that draws and cannot infill ·
    ``fast``, ``exact``: the fast mode that these presets have, and the same presets without it (None: they have none).
    """

    generate: Callable[[Parts], Sampler]
    edit: Callable[[Parts], Sampler]
    edit_again: Callable[[Parts], Sampler]
    ask: Callable[[Parts], Sampler]
    fill: Callable[[Parts], Sampler]
    ground: Callable[[Parts, int], Sampler]
    plan: Callable[[Parts], Sampler]
    plan_edit: Callable[[Parts], Sampler]
    critique: Callable[[Parts], Sampler]
    turn_words: Callable[[Parts], Sampler]
    answer: int
    caption: int
    plan_length: int
    edit_plan_length: int
    critique_length: int
    turn: int
    context: int
    plans: bool = False
    attempts: int = 1
    infill: Refused | None = None
    fast: Fast = EXACT
    exact: Presets | None = None

    def refuse(self, *names: str) -> None:
        """ValueError for the first of these presets that the family does not have."""
        for name in names:
            if isinstance(make := getattr(self, name), Refused):
                make()

    def with_sampler(self, change: Callable[[Sampler], Sampler]) -> Presets:
        """The same presets with ``change`` applied to the sampler of every task."""
        makers = {f.name: make for f in fields(self) if callable(make := getattr(self, f.name))}
        changed: dict[str, Any] = {name: _then(make, change) for name, make in makers.items()}
        return replace(self, **changed, exact=self.exact and self.exact.with_sampler(change))

    def with_speed(self, fast: Fast) -> Presets:
        """The same presets with this fast mode in place of the one they have; boxes have no part in it. ``EXACT``: with none."""
        exact = self.exact or self
        if fast == EXACT:
            return exact
        changed: dict[str, Any] = {
            name: _then(getattr(exact, name), getattr(fast, kind)) for name, kind in _KINDS.items()
        }
        return replace(exact, **changed, fast=fast, exact=exact)

    def approximate(self, parts: Parts, used: Mapping[str, Sampler]) -> tuple[str, ...]:
        """The parts of fast mode in samplers that were used, by the names of their presets; () without fast mode."""
        if self.exact is None:
            return ()
        some = [
            acting(getattr(self.fast, _KINDS[name]), getattr(self.exact, name)(parts), sampler)
            for name, sampler in used.items()
        ]
        return tuple(dict.fromkeys(label for labels in some for label in labels))


# The change in ``Fast`` that applies to each preset.
_KINDS = {
    **{"generate": "draw", "edit": "edit", "edit_again": "edit"},
    **dict.fromkeys(("ask", "fill", "plan", "plan_edit", "critique", "turn_words"), "text"),
}


def _then(make: Callable[..., Sampler], change: Callable[[Sampler], Sampler]) -> Callable[..., Sampler]:
    return make if isinstance(make, Refused) else lambda *given: change(make(*given))


def to_image(pixels_3HW: Tensor, rounding: float = 0.5) -> Image.Image:
    """Pixels in 0..1 -> RGB picture; ``rounding`` is added before the fraction is cut off."""
    array = (pixels_3HW.detach().float().cpu() * 255 + rounding).clamp(0, 255).byte().permute(1, 2, 0).numpy()
    return Image.fromarray(array)
