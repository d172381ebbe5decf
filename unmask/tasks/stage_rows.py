"""Training rows of the published stages of LaViDa-O, as far as they differ from those of fine-tuning (spec 2.2, 2.4, 3.2 to 3.4).

Public idea: ``StageRows`` has a function for each kind of row. A picture to generate is cropped instead of padded, the prompt states its
size, crop and luminance, long captions are shortened at times, edits have layouts too, and a picture may come after earlier attempts and
their critiques. The rest is ``tasks.examples.Examples``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Items
from dataclasses import dataclass, replace
from random import Random

from torch import Tensor

from unmask.data.codes import Shards
from unmask.data.samples import Caption, Critique, EditPair, ImageRef, Sample
from unmask.data.sources import luminance_stats
from unmask.data.squares import Pad, Square, Squared
from unmask.sequence import Sequence
from unmask.tasks.parts import Parts
from unmask.tokens.boxes import FractionBox
from unmask.tokens.build import FailedAttempt, PlanIds, drawing, editing, plan_ids, planning, planning_edit
from unmask.tokens.layouts import Layout, Placed, to_ids
from unmask.tokens.prompts import Conditions
from unmask.tokens.views import to_pixels

Objects = Items[tuple[str, FractionBox]]  # phrases and their boxes in fractions of a picture
_LONG, _CUT = 150, 800  # characters of a caption that may be shortened, and that are read at all
_SHORTENED, _UNSTATED, _LUMINANCE = (
    0.2,
    0.3,
    0.5,
)  # shares: captions shortened, prompts without conditions, luminance stated
_ATTEMPTS = 5  # earlier pictures in a prompt, at most
_SENTENCE = re.compile(r"(?<=[.!?])\s+")


@dataclass(frozen=True, kw_only=True)
class StageRows:
    """``parts``: with the side and fold of the stage · ``square``: how a picture to generate becomes a square · ``shards``: codes made with
    it before training; None: encode each picture when it comes up · ``boxes``: of a picture, by its name · ``attempts``: critiques, by
    the prompt of the picture that they are about · ``length``: tokens of a layout in a row of its own.

    ImageError for a picture that cannot be read, ValueError for a text that is too long or a picture without what a row needs.
    """

    parts: Parts
    square: Square
    boxes: Mapping[str, Objects]
    attempts: Mapping[str, Items[Critique]]
    length: int
    shards: Shards | None = None

    # -- text -> picture ----------------------------------------------------------------------------------------------

    def draw(self, sample: Caption, rng: Random) -> Sequence:
        return self._drawn(sample, rng, _unplanned)

    def draw_planned(self, sample: Caption, rng: Random) -> Sequence:
        """The picture of a layout that is given."""
        return self._drawn(sample, rng, self._given)

    def draw_open(self, sample: Caption, rng: Random) -> Sequence:
        """A layout and its picture, both masked."""
        return self._drawn(sample, rng, self._open)

    def plan(self, sample: Caption, rng: Random) -> Sequence:
        """The layout alone, which ends with the token that announces the picture."""
        return self._planned(sample, rng)

    # -- with earlier attempts ----------------------------------------------------------------------------------------

    def retry(self, sample: Caption, rng: Random) -> Sequence:
        return self._drawn(sample, rng, _unplanned, self._failed(sample, rng))

    def retry_planned(self, sample: Caption, rng: Random) -> Sequence:
        return self._drawn(sample, rng, self._given, self._failed(sample, rng))

    def retry_open(self, sample: Caption, rng: Random) -> Sequence:
        return self._drawn(sample, rng, self._open, self._failed(sample, rng))

    def retry_plan(self, sample: Caption, rng: Random) -> Sequence:
        return self._planned(sample, rng, self._failed(sample, rng))

    def unified(self, share: float) -> Callable[[Caption, Random], Sequence]:
        """One process of text and picture (``corruption.collapsing``): a share of the rows has the announcement in place of the picture."""

        def row(sample: Caption, rng: Random) -> Sequence:
            return self.plan(sample, rng) if rng.random() < share else self.draw_open(sample, rng)

        return row

    # -- edits --------------------------------------------------------------------------------------------------------

    def edit_planned(self, sample: EditPair, rng: Random) -> Sequence:
        """The edited picture after a layout of what changes, which is given."""
        return self._edited(sample, PlanIds(ids=tuple(self._edit_layout(sample, rng))))

    def edit_open(self, sample: EditPair, rng: Random) -> Sequence:
        """The layout of what changes and the edited picture, both masked."""
        return self._edited(sample, PlanIds(ids=tuple(self._edit_layout(sample, rng)), open=True))

    def edit_plan(self, sample: EditPair, rng: Random) -> Sequence:
        ids = plan_ids(self.parts.text, self._edit_layout(sample, rng), self.length)
        views = self.parts.image_views(sample.source.open())
        return planning_edit(self.parts.builder(), views, self.parts.wording.read(sample.instruction), ids)

    # -- which samples suit -------------------------------------------------------------------------------------------

    def has_layout(self, sample: Sample) -> bool:
        """Whether the picture of a caption, or the result of an edit, has boxes."""
        if isinstance(sample, EditPair):
            return sample.target.name in self.boxes
        return isinstance(sample, Caption) and sample.image.name in self.boxes

    def has_attempts(self, sample: Sample) -> bool:
        """Whether there are critiques of other pictures of a caption's text."""
        return isinstance(sample, Caption) and any(
            c.image.name != sample.image.name for c in self.attempts.get(sample.text, ())
        )

    def has_both(self, sample: Sample) -> bool:
        return self.has_layout(sample) and self.has_attempts(sample)

    # -- what they share ----------------------------------------------------------------------------------------------

    def _drawn(
        self,
        sample: Caption,
        rng: Random,
        plan: Callable[[ImageRef, Squared], PlanIds | None],
        attempts: Items[FailedAttempt] = (),
    ) -> Sequence:
        squared = self.square(sample.image.open(), self.parts.side, rng)
        pixels = to_pixels(squared.image)
        text = self.parts.wording.read(shortened(sample.text, rng))
        return drawing(
            self.parts.builder(),
            text,
            self._codes(sample.image, pixels),
            fold=self.parts.fold,
            conditions=stated(squared, pixels, rng),
            plan=plan(sample.image, squared),
            attempts=attempts,
        )

    def _codes(self, ref: ImageRef, pixels: Tensor) -> Tensor:
        made = self.shards.get(ref.fingerprint()) if self.shards is not None else None
        return self.parts.encode(pixels) if made is None else made

    def _given(self, ref: ImageRef, squared: Squared) -> PlanIds:
        return PlanIds(ids=tuple(self._layout(self.boxes[ref.name], squared, self.parts.wording.plan_reason)))

    def _open(self, ref: ImageRef, squared: Squared) -> PlanIds:
        return replace(self._given(ref, squared), open=True)

    def _planned(self, sample: Caption, rng: Random, attempts: Items[FailedAttempt] = ()) -> Sequence:
        squared = self.square(sample.image.open(), self.parts.side, rng)
        ids = plan_ids(self.parts.text, list(self._given(sample.image, squared).ids), self.length)
        text = self.parts.wording.read(shortened(sample.text, rng))
        conditions = stated(squared, to_pixels(squared.image), rng)
        return planning(self.parts.builder(), text, ids, conditions=conditions, attempts=attempts)

    def _layout(self, objects: Objects, squared: Squared, reason: str) -> list[int]:
        """Ids of a layout of the first objects that fit into ``length``; an object that was cropped away is left out."""
        inside = [(phrase, box) for phrase, whole in objects if (box := squared.box(whole)) is not None]
        placed = tuple(Placed(phrase=self.parts.wording.read(phrase), box=box) for phrase, box in inside)
        for count in range(len(placed), 0, -1):
            ids = to_ids(Layout(objects=placed[:count], reason=reason), self.parts.text, self.parts.wording)
            if len(ids) + 2 <= self.length:
                return ids
        raise ValueError("the picture has no object whose layout fits; check its boxes")

    def _edit_layout(self, sample: EditPair, rng: Random) -> list[int]:
        """The layout of an edit's result. Its reason follows from the first word of the instruction, where that names a kind of edit."""
        wording, target = self.parts.wording, sample.target.open()
        kind = next(iter(sample.instruction.lower().split()), "")
        reasons = dict(wording.edit_reasons)
        squared = Pad(paper=self.parts.paper)(target, self.parts.side, rng)
        return self._layout(self.boxes[sample.target.name], squared, reasons.get(kind, reasons["background"]))

    def _edited(self, sample: EditPair, plan: PlanIds) -> Sequence:
        source, target = sample.source.open(), sample.target.open()
        codes = [self.parts.encode(self.parts.preprocess(image)[0]) for image in (source, target)]
        text = self.parts.wording.read(sample.instruction)
        views, fold = self.parts.image_views(source), self.parts.fold
        return editing(self.parts.builder(), views, codes[0], text, codes[1], fold=fold, plan=plan)

    def _failed(self, sample: Caption, rng: Random) -> list[FailedAttempt]:
        known = [c for c in self.attempts[sample.text] if c.image.name != sample.image.name]
        shown = rng.sample(known, rng.randint(1, min(len(known), _ATTEMPTS)))
        return [FailedAttempt(picture=self.parts.overview(c.image.open()), critique=c.verdict) for c in shown]


def _unplanned(ref: ImageRef, squared: Squared) -> None:
    return None


def shortened(caption: str, rng: Random) -> str:
    """A caption of at most 800 characters; of a fifth of those over 150 only the first sentences, their number drawn at random."""
    caption = caption[:_CUT]
    if len(caption) <= _LONG or rng.random() >= _SHORTENED:
        return caption
    sentences = _SENTENCE.split(caption)
    return " ".join(sentences[: rng.randint(1, len(sentences))])


def stated(squared: Squared, pixels: Tensor, rng: Random) -> Conditions:
    """What a prompt states of its picture (spec 2.4): nothing in 30 % of the rows; else the size before the crop and the crop, and
    luminance and contrast in half of the rows each. Samples have no scores, so none are stated.
    """
    if rng.random() < _UNSTATED:
        return Conditions()
    whole = squared.conditions or Conditions()
    found = luminance_stats(pixels)
    return replace(
        whole,
        luminance=found.luminance if rng.random() < _LUMINANCE else None,
        contrast=found.contrast if rng.random() < _LUMINANCE else None,
    )
