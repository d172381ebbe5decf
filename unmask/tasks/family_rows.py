"""A user's samples as training rows of the published families, as their trainers write them.

Public ideas: ``reading_formats`` (LaViDa, Dimple), ``mmada_formats`` and ``dimoo_formats`` return the ``Format``s of a model; ``to_block``
and ``to_random_length`` say how an answer ends. Rows of MMaDA and Lumina-DiMOO hold codes as text ids where they are learned, because the
published losses are over the whole vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from random import Random

from PIL import Image
from torch import Tensor

from unmask.data.codes import MadeBy, weights_hash
from unmask.data.kept_codes import KeptCodes
from unmask.data.own import Format
from unmask.data.samples import Broken, Caption, Chat, EditPair, ImageRef, Interleaved, Sample
from unmask.sequence import Sequence, Span
from unmask.tasks.examples import Answered, Examples, safe
from unmask.tasks.parts import Parts, Presets
from unmask.tokens.lumina_dimoo import (
    DRAW,
    UNDERSTAND,
    Request,
    request_of,
    training_drawing,
    training_editing,
    training_understanding,
)
from unmask.tokens.mmada import Field, training_thinking, understanding
from unmask.tokens.mmada import training_drawing as mmada_drawing
from unmask.tokens.text import EOS, EOT, Slots, Text
from unmask.tokens.turns import Said
from unmask.tokens.views import to_pixels

NULL = 0.1  # share of drawings and edits that are learned without their prompt
_BLOCK = 32  # tokens
_LONGEST = 5120  # tokens of a row of Lumina-DiMOO's trainer, more than its config.json may say


def to_block(text: Text, answer: str, rng: Random, *, after: str = "") -> list[int]:
    """An answer, its end of turn (and ``after``, the text that follows one), and the end of text up to a whole block (LaViDa, Dream)."""
    ids = [*text.encode(answer.strip()), text[EOT], *(text.encode(after) if after else ())]
    return ids + [text[EOS]] * (-len(ids) % _BLOCK)


@dataclass(frozen=True, kw_only=True)
class Slotted:
    """``to_block`` of answers with slots for infilling (LaViDa, arXiv 2505.16839, stage 3): in a ``share`` of the answers of more than 3
    words, 1 to 5 (of long answers 10) gaps between words get 0 to 5 fillers and a marker.
    """

    slots: Slots
    share: float
    after: str = ""

    def __call__(self, text: Text, answer: str, rng: Random) -> list[int]:
        words = answer.split()
        if len(words) <= 3 or rng.random() >= self.share:
            return to_block(text, answer, rng, after=self.after)
        most = min(max(5, len(words) // 10), 10, len(words) - 1)
        at, ids, begun = sorted(rng.sample(range(1, len(words)), rng.randint(1, most))), list[int](), 0
        for place in at:
            ids += text.encode((" " if begun else "") + " ".join(words[begun:place]) + " ")
            ids += [self.slots.filler] * rng.randint(0, 5) + [self.slots.marker]
            begun = place
        ids += [*text.encode(" " + " ".join(words[begun:])), text[EOT]]
        ids += text.encode(self.after) if self.after else []
        return ids + [text[EOS]] * (-len(ids) % _BLOCK)


def marks_given(row: Sequence, marker: int) -> Sequence:
    """The row with the markers of its slots given: they are seen and never learned."""
    spans = list[Span]()
    for span in row.spans:
        at = [i for i in range(span.start, span.stop) if span.writable and int(row.ids[i]) == marker]
        edges = sorted({span.start, span.stop, *at, *(i + 1 for i in at)})
        for start, stop in zip(edges, edges[1:], strict=False):
            spans.append(replace(span, start=start, stop=stop, writable=span.writable and start not in at))
    return replace(row, spans=tuple(spans))


def to_random_length(text: Text, answer: str, rng: Random) -> list[int]:
    """An answer of n tokens and 1 or more ends of text, up to a random length: at most the power of two above n, and from 16 tokens on the
    next multiple of 16 (Dimple, arXiv 2505.16990, dynamic padding).
    """
    ids = text.encode(answer.strip())
    most = 1 << len(ids).bit_length() if len(ids) < 16 else (len(ids) // 16 + 1) * 16
    return ids + [text[EOS]] * (rng.randint(len(ids) + 1, most) - len(ids))


def reading_formats(
    parts: Parts, presets: Presets, answered: Answered, marker: int | None = None
) -> tuple[Format, ...]:
    """The formats "describe" and "chat" of a model that reads pictures and draws none. The first token after a picture is kept, as in
    training. ``marker``: a token that is given wherever it stands in an answer.
    """
    parts = replace(parts, quirks=replace(parts.quirks, dropped_token=False))
    none = MadeBy(weights="", side=0, square="")  # no row has codes
    made = Examples(
        parts=parts,
        codes=KeptCodes(encode=parts.encode, made_by=none),
        boxes=lambda sample: (),
        plan_length=1,
        always_plans=False,
        turn=presets.turn,
        answered=answered,
    )

    def guarded(make: Callable[..., Sequence]) -> Callable[[Sample, Random], Sequence | Broken]:
        if marker is None:
            return safe(make, presets.context)
        return safe(lambda sample, rng: marks_given(make(sample, rng), marker), presets.context)

    return (
        Format(name="describe", task="caption", row=guarded(made.describe)),
        Format(name="chat", task="chat", row=guarded(made.chat)),
    )


def family_codes(parts: Parts, folder: Path | None) -> KeptCodes:
    """Codes of pictures in the shapes that the family gives them, kept in a file of the run's ``folder``."""
    made_by = MadeBy(
        weights=weights_hash(parts.vq, config=parts.vq.config), side=parts.side, square="shape of the family"
    )
    return KeptCodes(encode=parts.encode, made_by=made_by, path=folder / "codes.sqlite" if folder else None)


@dataclass(frozen=True, kw_only=True)
class MMaDAExamples:
    """Rows of MMaDA. ``field``: of the prompts of drawings; texts about a picture have as many tokens, others those of a whole drawing ·
    ``whole``: texts without pictures are learned whole, not their answers alone (stages 1 and 2).
    """

    parts: Parts
    codes: KeptCodes
    field: Field
    whole: bool = False

    def draw(self, sample: Caption, rng: Random) -> Sequence:
        caption = "" if rng.random() < NULL else sample.text
        codes = self._codes(sample.image, sample.image.open())
        return mmada_drawing(self.parts.builder(), caption, codes, field=self.field)

    def think(self, sample: Interleaved, rng: Random) -> Sequence:
        """A prompt, its detailed description and the picture: a message of the user, and an answer of words and a picture."""
        at = next((i for i, turn in enumerate(sample.turns) if turn.role == "assistant"), 0)
        prompt = " ".join(
            p for turn in sample.turns[:at] if turn.role == "user" for p in turn.parts if isinstance(p, str)
        )
        if not prompt.strip():
            raise ValueError("no answer of the assistant follows a message of the user")
        words = " ".join(part for part in sample.turns[at].parts if isinstance(part, str))
        picture = next((part for part in sample.turns[at].parts if isinstance(part, ImageRef)), None)
        if picture is None or not words.strip():
            raise ValueError("the first answer needs words and a picture")
        codes = self._codes(picture, picture.open())
        return training_thinking(self.parts.builder(), prompt, words, codes, field=self.field)

    def describe(self, sample: Caption, rng: Random) -> Sequence:
        said = [Said(role="user", text=self.parts.wording.describe)]
        return self._answered(said, [self._codes(sample.image, sample.image.open())], sample.text)

    def look(self, sample: Chat, rng: Random) -> Sequence:
        said, answer = drawn_turn(sample, rng)
        return self._answered(said, [self._codes(ref, ref.open()) for ref in sample.images], answer)

    def talk(self, sample: Chat, rng: Random) -> Sequence:
        said, answer = drawn_turn(sample, rng)
        row = self._answered(said, [], answer)
        if not self.whole:
            return row
        b = self.parts.builder()
        return b.write("text", row.ids.tolist()).build(row.request)

    def _answered(self, said: Items[Said], codes: list[Tensor], answer: str) -> Sequence:
        """The answer and the end of text up to the end of the field, all of which are learned."""
        text, (rows, columns) = self.parts.text, self.parts.grid
        ids = [*text.encode(answer.strip()), text[EOS]]
        row = understanding(self.parts.builder(), said, codes, ids)
        before = 1 + sum(len(one.flatten()) + 2 for one in codes) if codes else 0
        most = self.field.length if codes else self.field.length + rows * columns + 3
        if (length := len(row.ids) - before) > most:
            raise ValueError(f"question and answer have {length} tokens, more than {most}")
        return understanding(self.parts.builder(), said, codes, ids + [text[EOS]] * (most - length))

    def _codes(self, ref: ImageRef, image: Image.Image) -> Tensor:
        return self.codes(ref.fingerprint(), lambda: self.parts.preprocess(image)[0])


def mmada_formats(made: MMaDAExamples, presets: Presets) -> tuple[Format, ...]:
    """The formats "draw" and "describe" of captions, "look" of conversations about pictures, "talk" of others, "think" of those in which
    the assistant describes a picture and draws it.
    """
    guarded = partial(safe, context=presets.context)
    return (
        Format(name="draw", task="caption", row=guarded(made.draw), share=2.0),
        Format(name="describe", task="caption", row=guarded(made.describe)),
        Format(
            name="look", task="chat", row=guarded(made.look), suits=lambda s: isinstance(s, Chat) and bool(s.images)
        ),
        Format(name="talk", task="chat", row=guarded(made.talk), suits=lambda s: isinstance(s, Chat) and not s.images),
        Format(name="think", task="interleaved", row=guarded(made.think)),
    )


@dataclass(frozen=True, kw_only=True)
class DiMOOExamples:
    """Rows of Lumina-DiMOO. ``length``: tokens of an answer and its filler · ``change``: the released name of the task of edits."""

    parts: Parts
    codes: KeptCodes
    length: int = 1024
    change: str = "edit"

    def draw(self, sample: Caption, rng: Random) -> Sequence:
        request, codes = Request(system=DRAW, text=sample.text), self._looked(sample.image)
        return training_drawing(self.parts.builder(), request, codes, null=rng.random() < NULL)

    def edit(self, sample: EditPair, rng: Random) -> Sequence:
        source, target = (self._changed(ref) for ref in (sample.source, sample.target))
        if source.shape != target.shape:
            raise ValueError("source and target have different shapes")
        request = request_of(self.change, sample.instruction)
        return training_editing(self.parts.builder(), request, [source], target, null=rng.random() < NULL)

    def describe(self, sample: Caption, rng: Random) -> Sequence:
        return self._answered(self.parts.wording.describe, "", [sample.image], sample.text)

    def chat(self, sample: Chat, rng: Random) -> Sequence:
        """An answer with the question before it; the model reads no earlier turns."""
        said, answer = drawn_turn(sample, rng)
        system = said[0].text if said[0].role == "system" else ""
        return self._answered(said[-1].text, system, sample.images, answer)

    def _answered(self, question: str, system: str, pictures: Items[ImageRef], answer: str) -> Sequence:
        ids, codes = self.parts.text.encode(answer.strip()), [self._looked(ref) for ref in pictures]
        if (length := len(ids) + 1) > self.length:
            raise ValueError(f"the answer has {length} tokens, more than {self.length}")
        request = Request(system=system or UNDERSTAND, text=question)
        return training_understanding(self.parts.builder(), request, codes, ids, self.length - length)

    def _looked(self, ref: ImageRef) -> Tensor:
        """Codes of a picture that is drawn or read: twice the area of one that is changed."""
        frame, side = self.parts.look_frame, self.parts.side
        assert frame is not None
        return self.codes(f"{ref.fingerprint()} whole", lambda: to_pixels(frame(ref.open(), side)))

    def _changed(self, ref: ImageRef) -> Tensor:
        return self.codes(ref.fingerprint(), lambda: self.parts.preprocess(ref.open())[0])


def dimoo_formats(made: DiMOOExamples, presets: Presets) -> tuple[Format, ...]:
    """The formats "draw" and "describe" of captions, "edit" of pairs, "chat" of conversations."""
    guarded = partial(safe, context=max(presets.context, _LONGEST))
    return (
        Format(name="draw", task="caption", row=guarded(made.draw), share=2.0),
        Format(name="describe", task="caption", row=guarded(made.describe)),
        Format(name="edit", task="edit", row=guarded(made.edit), share=2.0),
        Format(name="chat", task="chat", row=guarded(made.chat)),
    )


def drawn_turn(sample: Chat, rng: Random) -> tuple[list[Said], str]:
    """The messages up to a question that is drawn at random, and its answer. ValueError where there is none."""
    turns = sample.turns
    pairs = [i for i in range(1, len(turns)) if turns[i].role == "assistant" and turns[i - 1].role == "user"]
    if not pairs:
        raise ValueError("no answer of the assistant follows a question")
    at = rng.choice(pairs)
    return [Said(role=turn.role, text=turn.text) for turn in turns[:at]], turns[at].text
