"""A user's samples as training rows, built by the functions that build the requests of every task (``tokens.build``, ``tokens.turns``).

Public idea: ``formats_of(parts, codes)`` -> a ``Format`` for each thing that a model learns from captions, chats, boxes, edits and
critiques. A picture that is not square is padded, as a request pads it; those of captions may be cropped instead (``Cropping``).
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import dataclass, replace
from functools import partial
from random import Random

from PIL import Image
from torch import Tensor

from unmask.data.kept_codes import KeptCodes
from unmask.data.own import Format
from unmask.data.samples import Boxes, Broken, Caption, Chat, Critique, EditPair, ImageRef, Interleaved, Sample
from unmask.data.sources import luminance_stats
from unmask.data.squares import Crop, Squared
from unmask.sequence import Sequence
from unmask.tasks.parts import Parts, Presets
from unmask.tokens.boxes import FractionBox
from unmask.tokens.build import PlanIds, asking, drawing, editing, grounding, looking, plan_ids, planning
from unmask.tokens.layouts import Layout, Placed, to_ids
from unmask.tokens.pictures import Placement
from unmask.tokens.prompts import Conditions
from unmask.tokens.sources import ImageError
from unmask.tokens.text import EOT, EXP, Text
from unmask.tokens.turns import Said as Turn
from unmask.tokens.turns import announced, conversation, opened
from unmask.tokens.views import to_pixels

LONGEST = 400  # tokens of a caption, question or instruction; requests may have as many
_MOST_PHRASES = 8  # of one row
Answered = Callable[[Text, str, Random], list[int]]  # an answer -> the ids that a model learns
Phrases = Callable[[Caption], Items[tuple[str, FractionBox]]]
_BLOCK = 32  # tokens: published samplers write answers in blocks of so many
_MOST_CROPS = 8  # of one picture, until one has an object of its boxes in it


@dataclass(frozen=True, kw_only=True)
class Cropping:
    """How pictures of captions become square, and the codes of these squares; they share none with those of padded pictures."""

    square: Crop
    codes: KeptCodes

    def code(self, ref: ImageRef, squared: Squared) -> Tensor:
        """Codes [h, w] of a crop."""
        said = squared.conditions
        assert said is not None
        crop = "" if self.square.middle else f" {said.top} {said.left}"
        return self.codes(ref.fingerprint() + crop, lambda: to_pixels(squared.image))


def formats_of(
    parts: Parts, codes: KeptCodes, presets: Presets, boxes: Phrases, crop: Cropping | None = None
) -> tuple[Format, ...]:
    """The formats of a model that draws: "draw" and "describe" of captions, layouts ("plan") and pictures of them ("draw_planned"), "chat",
    "ground", "edit", "critique", and of turns of text and pictures the words ("announce") and the picture after them ("illustrate").

    ``boxes``: the objects of a caption's picture, from which its layout is made. A model that draws from layouts by default (``presets``)
    learns one for every caption: without boxes it is the caption over the whole picture. A model without a vision tower learns to draw
    only. ``crop``: crop the pictures that are drawn from captions, with their layouts, and state the crop in the prompt, as the paper does;
    None: pad them. All other pictures are padded.
    """
    made = Examples(
        parts=parts,
        codes=codes,
        boxes=boxes,
        crop=crop,
        plan_length=presets.plan_length,
        always_plans=presets.plans,
        turn=presets.turn,
    )
    guarded = partial(safe, context=presets.context)
    drawn = [
        Format(name="draw", task="caption", row=guarded(made.draw), share=2.0),
        Format(name="draw_planned", task="caption", row=guarded(made.draw_planned), share=2.0, suits=made.plans),
        Format(name="plan", task="caption", row=guarded(made.plan), suits=made.plans),
    ]
    if parts.net.config.vision is None:
        return tuple(drawn)
    return (
        *drawn,
        Format(name="describe", task="caption", row=guarded(made.describe)),
        Format(name="chat", task="chat", row=guarded(made.chat)),
        Format(name="ground", task="boxes", row=guarded(made.ground)),
        Format(name="edit", task="edit", row=guarded(made.edit), share=2.0),
        Format(name="critique", task="critique", row=guarded(made.critique)),
        Format(name="announce", task="interleaved", row=guarded(made.announce)),
        Format(name="illustrate", task="interleaved", row=guarded(made.illustrate), suits=made.illustrates),
    )


@dataclass(frozen=True, kw_only=True)
class Examples:
    """A row for each kind of sample. ``codes``: of the pictures that are generated or edited · ``answered``: the ids of an answer; None:
    ``padded_answer``. ImageError for a picture that cannot be read, ValueError for a text that is too long.
    """

    parts: Parts
    codes: KeptCodes
    boxes: Phrases
    plan_length: int
    always_plans: bool
    turn: int
    crop: Cropping | None = None
    answered: Answered | None = None

    def draw(self, sample: Caption, rng: Random) -> Sequence:
        return self._drawn(sample, rng, planned=False)

    def draw_planned(self, sample: Caption, rng: Random) -> Sequence:
        return self._drawn(sample, rng, planned=True)

    def plan(self, sample: Caption, rng: Random) -> Sequence:
        text = self._short("caption", sample.text)
        if self.crop is None:
            ids, conditions = self._layout(sample, None), None
        else:
            image = sample.image.open()
            squared = self._cropped(sample, image, rng)
            ids, conditions = self._layout(sample, squared), self._conditions(image, squared)
        ids = plan_ids(self.parts.text, ids, self.plan_length)
        return planning(self.parts.builder(), text, ids, conditions=conditions)

    def _drawn(self, sample: Caption, rng: Random, *, planned: bool) -> Sequence:
        image, text = sample.image.open(), self._short("caption", sample.text)
        squared = self._cropped(sample, image, rng)
        if squared is None or self.crop is None:
            codes = self._codes(sample.image, image)
        else:
            codes = self.crop.code(sample.image, squared)
        conditions = self._conditions(image, squared)
        plan = PlanIds(ids=tuple(self._layout(sample, squared))) if planned else None
        return drawing(self.parts.builder(), text, codes, fold=self.parts.fold, conditions=conditions, plan=plan)

    def _cropped(self, sample: Caption, image: Image.Image, rng: Random) -> Squared | None:
        """A crop with an object of the picture's boxes in it, where it has boxes. None: the picture is padded."""
        if self.crop is None:
            return None
        boxes = [box for _, box in self.boxes(sample)]
        for _ in range(_MOST_CROPS):
            squared = self.crop.square(image, self.parts.side, rng)
            if not boxes or any(squared.box(box) for box in boxes):
                return squared
        return None

    def plans(self, sample: Sample) -> bool:
        """Whether a caption's picture has a layout to learn. A model that draws without layouts by default learns only those of boxes."""
        assert isinstance(sample, Caption)
        return (self.always_plans or bool(self.boxes(sample))) and bool(self._fitting(self._phrases(sample)))

    def _layout(self, sample: Caption, squared: Squared | None) -> list[int]:
        """Ids of the layout of a picture that is cropped, or padded if there is no crop, with as many of its objects as fit into a plan."""
        phrases = self._phrases(sample)
        if squared is None:
            size = sample.image.size()
            return self._fitting([(phrase, _padded(box, size)) for phrase, box in phrases])
        if not self.boxes(sample):
            return self._fitting(phrases)  # the caption over the whole square
        return self._fitting([(phrase, moved) for phrase, box in phrases if (moved := squared.box(box))])

    def _phrases(self, sample: Caption) -> list[tuple[str, FractionBox]]:
        """The objects of a caption's picture; without boxes the beginning of the caption over the whole picture."""
        text, read = self.parts.text, self.parts.wording.read
        if found := self.boxes(sample):
            return [(read(phrase), box) for phrase, box in found]
        return [(text.decode(text.encode(read(sample.text))[: self.plan_length // 2]), (0.0, 0.0, 1.0, 1.0))]

    def _fitting(self, phrases: list[tuple[str, FractionBox]]) -> list[int]:
        """Ids of a layout of the first objects that fit into a plan; none if not even one does."""
        wording = self.parts.wording
        placed = tuple(Placed(phrase=phrase, box=box) for phrase, box in phrases)
        for count in range(len(placed), 0, -1):
            ids = to_ids(Layout(objects=placed[:count], reason=wording.plan_reason), self.parts.text, wording)
            if len(ids) + 2 <= self.plan_length:
                return ids
        return []

    def describe(self, sample: Caption, rng: Random) -> Sequence:
        b = looking(self.parts.builder(), self.parts.image_views(sample.image.open()))
        answer = self._answer(self._short("caption", sample.text), rng)
        return asking(b, b.wording.describe, answer, segment=b.first_segment).build()

    def chat(self, sample: Chat, rng: Random) -> Sequence:
        """A model of one turn learns all answers, each in its own segment; others learn one of them after the turns before it."""
        views = [self.parts.image_views(ref.open()) for ref in sample.images[:1]]
        if len(sample.images) > 1:
            views = [self.parts.overview(ref.open()) for ref in sample.images]
        b, turns = self.parts.builder(), sample.turns
        if turns and turns[0].role == "system":
            if not b.wording.one_turn:
                b.wording = replace(b.wording, system=turns[0].text)
            turns = turns[1:]
        pairs = [i for i in range(1, len(turns)) if turns[i].role == "assistant" and turns[i - 1].role == "user"]
        if not pairs:
            raise ValueError("no answer of the assistant follows a question")
        if b.wording.one_turn:
            looking(b, views[-1] if views else None)
            for segment, at in enumerate(pairs[:_MOST_PHRASES], b.first_segment):
                question = self.parts.wording.read(turns[at - 1].text)
                asking(b, question, self._answer(turns[at].text, rng), segment=segment)
            return b.build()
        at = rng.choice(pairs)
        messages = [
            Turn(role=t.role, text=t.text, pictures=() if i else tuple(views)) for i, t in enumerate(turns[:at])
        ]
        return conversation(b, messages, self._answer(turns[at].text, rng))

    def ground(self, sample: Boxes, rng: Random) -> Sequence:
        """Several phrases, each in its own segment; one where all tokens of the model attend to each other."""
        image = sample.image.open()
        b = self.parts.builder()
        looking(b.say("prompt", "'") if b.quirks.stray_apostrophe else b, self.parts.image_views(image))
        phrases = rng.sample(sample.phrases, min(len(sample.phrases), 1 if b.quirks.one_segment else _MOST_PHRASES))
        for segment, (phrase, box) in enumerate(phrases, b.first_segment):
            read = self._short("phrase", self.parts.wording.read(phrase))
            grounding(b, read, _padded(box, image.size), segment=segment)
        return b.build()

    def edit(self, sample: EditPair, rng: Random) -> Sequence:
        source, target = sample.source.open(), sample.target.open()
        text = self._short("instruction", sample.instruction)
        codes = self._codes(sample.source, source), self._codes(sample.target, target)
        views = self.parts.image_views(source)
        return editing(self.parts.builder(), views, codes[0], text, codes[1], fold=self.parts.fold)

    def critique(self, sample: Critique, rng: Random) -> Sequence:
        b = looking(self.parts.builder(), self.parts.image_views(sample.image.open()))
        asked = b.wording.critique.format(caption=self._short("prompt", sample.prompt))
        return asking(b, asked, self._answer(sample.verdict, rng), segment=b.first_segment).build()

    def announce(self, sample: Interleaved, rng: Random) -> Sequence:
        """The first answer: its words up to a picture, and the token that announces one."""
        messages, words, picture = self._first_answer(sample)
        ids = self.parts.text.encode(words) + ([self.parts.text[EXP]] if picture else [])
        room = self.turn if self.parts.wording.one_turn else _BLOCK
        end = [self.parts.text[EOT]] * (room - len(ids) % room)
        return conversation(self.parts.builder(), messages, ids + end)

    def illustrate(self, sample: Interleaved, rng: Random) -> Sequence:
        """The picture in place of the token that announces it."""
        picture = self._first_answer(sample)[2]
        assert picture is not None
        row, parts = self.announce(sample, rng), self.parts
        at = announced(row, parts.text)
        assert at is not None
        row = opened(row, at, parts.grid, parts.fold, parts.text)
        codes, ids = self._codes(picture, picture.open()).flatten(), row.ids.clone()
        ids[at : at + len(codes)] = codes
        return replace(row, ids=ids, masked=row.masked & False)

    def illustrates(self, sample: Sample) -> bool:
        """Whether the first answer has a picture. A sample without an answer counts, so that its fault is named."""
        assert isinstance(sample, Interleaved)
        answer = next((turn for turn in sample.turns if turn.role == "assistant"), None)
        return answer is None or any(isinstance(part, ImageRef) for part in answer.parts)

    def _first_answer(self, sample: Interleaved) -> tuple[list[Turn], str, ImageRef | None]:
        """The messages before the first answer, its words up to its first picture, and that picture."""
        at = next((i for i, turn in enumerate(sample.turns) if turn.role == "assistant"), 0)
        before = [turn for turn in sample.turns[:at] if turn.role == "user"]
        if not before:
            raise ValueError("no answer of the assistant follows a message of the user")
        many = sum(isinstance(part, ImageRef) for turn in before for part in turn.parts) > 1
        view = self.parts.overview if many else self.parts.image_views
        messages = []
        for turn in before:
            views = tuple(view(part.open()) for part in turn.parts if isinstance(part, ImageRef))
            messages.append(Turn(role="user", text=self.parts.wording.read(_words(turn.parts)), pictures=views))
        parts = sample.turns[at].parts
        first = next((i for i, part in enumerate(parts) if isinstance(part, ImageRef)), len(parts))
        picture = parts[first] if first < len(parts) else None
        return messages, _words(parts[:first]), picture if isinstance(picture, ImageRef) else None

    def _codes(self, ref: ImageRef, image: Image.Image) -> Tensor:
        return self.codes(ref.fingerprint(), lambda: self.parts.preprocess(image)[0])

    def _conditions(self, image: Image.Image, squared: Squared | None) -> Conditions | None:
        """What the prompt states of a picture: its own size, its crop and its luminance. A model whose prompts state nothing by default
        states size and crop of pictures of which a part was cut off, and None of others.
        """
        usual, crop = self.parts.quirks.conditions, squared.conditions if squared else None
        if usual is None:
            return None if image.width == image.height else crop
        found = luminance_stats(to_pixels(squared.image) if squared else self.parts.preprocess(image)[0])
        place = (crop.top, crop.left) if crop else (usual.top, usual.left)
        measured = replace(found, width=image.width, height=image.height, top=place[0], left=place[1])
        names = ("width", "height", "top", "left", "luminance", "contrast")
        return replace(usual, **{n: getattr(measured, n) for n in names if getattr(usual, n) is not None})

    def _short(self, what: str, text: str) -> str:
        """The text as the model reads it. ValueError if it is longer than requests may be."""
        read = self.parts.wording.read(text) if what in ("caption", "instruction", "prompt") else text
        if (count := len(self.parts.text.encode(read))) > LONGEST:
            raise ValueError(f"the {what} has {count} tokens, more than {LONGEST}")
        return read

    def _answer(self, answer: str, rng: Random) -> list[int]:
        if self.answered is not None:
            return self.answered(self.parts.text, answer, rng)
        return padded_answer(self.parts.text, answer, rng, short=self.parts.wording.one_turn)


def _words(parts: Items[str | ImageRef]) -> str:
    return " ".join(part.strip() for part in parts if isinstance(part, str) and part.strip())


def padded_answer(text: Text, answer: str, rng: Random, *, short: bool) -> list[int]:
    """An answer and its end of turn. ``short``: followed by up to two more, as models that write an answer at once learn it; otherwise the
    last block is filled up with them.
    """
    ids = text.encode(answer.strip())
    if short:
        return ids + [text[EOT]] * rng.randint(1, 3)
    return ids + [text[EOT]] * (_BLOCK - len(ids) % _BLOCK)


def _padded(box: FractionBox, size: tuple[int, int]) -> FractionBox:
    """A box in fractions of the picture as fractions of the square that it is padded to."""
    (wide, high), (x1, y1, x2, y2) = size, box
    return Placement(width=wide, height=high).to_fractions((x1 * wide, y1 * high, x2 * wide, y2 * high))


def safe(make: Callable[..., Sequence], context: int) -> Callable[[Sample, Random], Sequence | Broken]:
    """``make``, with a ``Broken`` instead of its errors and of rows of more than ``context`` tokens."""

    def row(sample: Sample, rng: Random) -> Sequence | Broken:
        try:
            made = make(sample, rng)
            if len(made.ids) > context:
                raise ValueError(f"the row has {len(made.ids)} tokens, more than the model's {context}")
        except (ImageError, ValueError) as error:
            return Broken(key=sample.key, reason=f"{sample.key}: {str(error).partition('; ')[0]}")
        return made

    return row
