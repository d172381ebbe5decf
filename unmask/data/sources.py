"""Training batches from the world: image generation, visual questions and grounding, edits, captions.

Each source is a value; batch number ``step`` is a pure function of (seed, step). ``encode`` maps pixels [B, 3, H, W] in 0..1 to image
codes [B, h, w]; ``rendered`` renders the scenes of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count, islice
from random import Random

import numpy as np
import torch
from torch import Tensor

from unmask.data.world import language
from unmask.data.world.edits import EDIT_KINDS, SceneEdit, edit
from unmask.data.world.plans import edit_layout, scene_layout
from unmask.data.world.questions import questions as questions_of
from unmask.data.world.render import render
from unmask.data.world.scenes import Draft, Scene, sample
from unmask.data.world.vocabulary import CLASS_NAMES, COLOUR_NAMES
from unmask.sequence import Batch, Sequence, collate
from unmask.tokens.build import Builder, PlanIds, asking, drawing, editing, grounding, looking
from unmask.tokens.layouts import Layout, to_ids
from unmask.tokens.prompts import Conditions
from unmask.tokens.text import EOT, Text

Encode = Callable[[Tensor], Tensor]
Rendering = Callable[[list[Scene], int], Tensor]  # (scenes, side) -> pixels [B, 3, side, side], as of ``pixels_of``
Levels = tuple[tuple[str, float], ...]  # (name, weight)


class CachedEncoder:
    """Cache an encoder per patch: the real encoder runs only on new patches; the grid world has about 11,000.

    For encoders whose codes depend only on their own patch. ``side``: pixels per side of a patch.
    """

    def __init__(self, encode: Encode, side: int = 16, most: int = 200_000) -> None:
        self.encode, self.side, self.most = encode, side, most
        self.known: dict[bytes, int] = {}

    def __call__(self, pixels_B3HW: Tensor) -> Tensor:
        batch, _, high, wide = pixels_B3HW.shape
        n, rows, columns = self.side, high // self.side, wide // self.side
        whole = (pixels_B3HW * 255).round().to(torch.uint8).reshape(batch, 3, rows, n, columns, n)
        squares = whole.permute(0, 2, 4, 1, 3, 5).reshape(-1, 3 * n * n).numpy()
        keys = [row.tobytes() for row in squares]
        if fresh := {k: i for i, k in enumerate(keys) if k not in self.known}:
            if len(self.known) > self.most:
                self.known = {}
            pixels = torch.from_numpy(squares[list(fresh.values())]).reshape(-1, 3, n, n).float() / 255
            self.known.update(zip(fresh, self.encode(pixels).flatten().tolist(), strict=True))
        return torch.tensor([self.known[k] for k in keys]).reshape(batch, rows, columns)


def pixels_of(scenes: list[Scene], side: int) -> Tensor:
    """Rendered scenes: float32 [B, 3, side, side] in 0..1."""
    return torch.from_numpy(np.stack([render(s, side) for s in scenes])).permute(0, 3, 1, 2).float() / 255


def luminance_stats(pixels_3HW: Tensor) -> Conditions:
    """Luminance and contrast of an image in 0..1 (or uint8): mean and standard deviation of its Rec. 709 luminance (spec 2.4)."""
    weights = torch.tensor([0.2126, 0.7152, 0.0722])[:, None, None]
    if pixels_3HW.dtype == torch.uint8:
        pixels_3HW = pixels_3HW.float() / 255
    luminance = (pixels_3HW * weights).sum(0).clamp(max=1)  # rounding can exceed 1 for white
    return Conditions(luminance=float(luminance.mean()), contrast=min(0.5, float(luminance.std(correction=0))))


def train_scenes(levels: Levels, seed: int, first: int, rng: Random, draft: Draft = Draft()) -> Iterator[Scene]:
    """Training scenes from number ``first`` on, endlessly; the level of each is drawn by weight."""
    names, weights = zip(*levels, strict=True)
    return (sample(rng.choices(names, weights)[0], "train", seed, i, draft) for i in count(first))


def scenes_of_batch(
    levels: Levels, seed: int, step: int, batch: int, rng: Random, draft: Draft = Draft()
) -> Iterator[Scene]:
    """The scenes of batch number ``step``."""
    return islice(train_scenes(levels, seed, step * batch, rng, draft), batch)


def edits_of(
    levels: Levels, seed: int, step: int, batch: int, rng: Random, kinds: tuple[str, ...], draft: Draft = Draft()
) -> list[SceneEdit]:
    """The edits of batch number ``step``; kinds cycle through ``kinds``."""
    scenes = train_scenes(levels, seed, step * batch * 4, rng, draft)
    pairs: list[SceneEdit] = []
    while len(pairs) < batch:
        if made := edit(next(scenes), "train", rng, kinds[len(pairs) % len(kinds)]):
            pairs.append(made)
    return pairs


def short_caption(text: Text, scene: Scene, rng: Random, longest: int) -> str:
    """A caption of at most ``longest`` tokens, if four samples contain one: a long caption makes all rows of its batch long."""
    for _ in range(4):
        caption = language.caption(scene, rng)
        if len(text.encode(caption)) <= longest:
            break
    return caption


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A layout before its image: predicted with it in a share ``open`` of the samples, otherwise given (spec 3.3)."""

    open: float = 0.2

    def __call__(self, layout: Layout, b: Builder, rng: Random) -> PlanIds:
        return PlanIds(ids=tuple(to_ids(layout, b.text, b.wording)), open=rng.random() < self.open)


@dataclass(frozen=True, kw_only=True)
class Drawings:
    """Caption -> image. ``fold``: 1 puts one code at each position, 2 folds 2x2 codes · ``conditions``: share of captions with conditions.

    ``longest``: target length of captions in tokens · ``plan``: layout before the image; None: no layout.
    """

    text: Text
    encode: Encode
    seed: int
    batch: int = 48
    side: int = 128
    fold: int = 2
    levels: Levels = (("grid", 1.0),)
    draft: Draft = Draft()
    conditions: float = 0.0
    longest: int = 18
    plan: Planned | None = None
    rendered: Rendering = pixels_of

    def __call__(self, step: int) -> Batch:
        rng = Random(f"drawings/{self.seed}/{step}")
        scenes = list(scenes_of_batch(self.levels, self.seed, step, self.batch, rng, self.draft))
        pixels = self.rendered(scenes, self.side)
        codes = self.encode(pixels)
        rows = []
        for i, scene in enumerate(scenes):
            conditions = luminance_stats(pixels[i]) if rng.random() < self.conditions else None
            b = Builder(text=self.text)
            caption = short_caption(self.text, scene, rng, self.longest)
            plan = self.plan(scene_layout(scene, caption, b.wording, rng), b, rng) if self.plan else None
            rows.append(drawing(b, caption, codes[i], fold=self.fold, conditions=conditions, plan=plan))
        return collate(rows, range(self.batch))


@dataclass(frozen=True, kw_only=True)
class VisualQuestions:
    """Images with questions, phrases to ground and captions, each in its own segment after the shared image.

    ``answer_length``: tokens of every answer including end-of-turn tokens; 0: one to three end-of-turn tokens after it.
    """

    text: Text
    seed: int
    look_tokens: int
    batch: int = 10
    side: int = 128
    questions: int = 3
    phrases: int = 2
    describe: float = 0.15
    levels: Levels = (("grid", 0.85), ("free", 0.15))
    draft: Draft = Draft()
    answer_length: int = 0
    rendered: Rendering = pixels_of

    def __call__(self, step: int) -> Batch:
        rng = Random(f"looks/{self.seed}/{step}")
        scenes = list(scenes_of_batch(self.levels, self.seed + 1, step, self.batch, rng, self.draft))
        pixels = self.rendered(scenes, self.side)
        rows = [self._row(scene, pixels[i], rng) for i, scene in enumerate(scenes)]
        return collate(rows, range(self.batch))

    def _row(self, scene: Scene, pixels: Tensor, rng: Random) -> Sequence:
        b = looking(Builder(text=self.text, look_tokens=self.look_tokens), pixels)
        segment = 0
        describe = rng.random() < self.describe
        # A caption is about as long as two questions: rows with a caption have fewer questions and phrases.
        questions = questions_of(scene, rng)
        rng.shuffle(questions)
        for question in questions[: self.questions - describe]:
            segment += 1
            asking(b, question.text, answer_ids(self.text, question.answer, rng, self.answer_length), segment=segment)
        phrases = language.referring(scene, rng)
        rng.shuffle(phrases)
        for phrase, obj in phrases[: self.phrases - describe]:
            segment += 1
            grounding(b, phrase, scene.objects[obj].box, segment=segment)
        if describe or not segment:
            words = answer_ids(self.text, language.caption(scene, rng), rng, self.answer_length)
            asking(b, b.wording.describe, words, segment=segment + 1)
        return b.build()


def answer_ids(text: Text, answer: str, rng: Random, answer_length: int = 0) -> list[int]:
    """Answer ids followed by one to three end-of-turn tokens, or padded with them to ``answer_length`` (at least one).

    The span length must not reveal the answer, and a model trained on short spans only would fill long ones with text.
    """
    ids = text.encode(answer)
    return ids + [text[EOT]] * (max(1, answer_length - len(ids)) if answer_length else rng.randint(1, 3))


@dataclass(frozen=True, kw_only=True)
class Edits:
    """Source image and instruction -> edited image. The kinds cycle through ``kinds``; ``plan`` as in ``Drawings``."""

    text: Text
    encode: Encode
    seed: int
    look_tokens: int
    batch: int = 12
    side: int = 128
    fold: int = 2
    levels: Levels = (("grid", 1.0),)
    kinds: tuple[str, ...] = EDIT_KINDS
    draft: Draft = Draft()
    plan: Planned | None = None
    rendered: Rendering = pixels_of

    def __call__(self, step: int) -> Batch:
        rng = Random(f"edits/{self.seed}/{step}")
        pairs = edits_of(self.levels, self.seed + 2, step, self.batch, rng, self.kinds, self.draft)
        before, after = (self.rendered([getattr(p, n) for p in pairs], self.side) for n in ("source", "target"))
        source, target = self.encode(before), self.encode(after)
        rows = []
        for i, pair in enumerate(pairs):
            b = Builder(text=self.text, look_tokens=self.look_tokens)
            plan = self.plan(edit_layout(pair, b.wording), b, rng) if self.plan else None
            rows.append(editing(b, before[i], source[i], pair.instruction, target[i], fold=self.fold, plan=plan))
        return collate(rows, range(self.batch))


@dataclass(frozen=True, kw_only=True)
class Captions:
    """Captions without images, for text infilling."""

    text: Text
    seed: int
    batch: int = 16
    levels: Levels = (("grid", 0.7), ("free", 0.3))

    def __call__(self, step: int) -> Batch:
        rng = Random(f"captions/{self.seed}/{step}")
        rows = []
        for scene in scenes_of_batch(self.levels, self.seed + 3, step, self.batch, rng):
            b = looking(Builder(text=self.text), None)
            rows.append(asking(b, b.wording.complete, answer_ids(self.text, language.caption(scene, rng), rng)).build())
        return collate(rows, range(self.batch))


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """Images with labels of the object in each of ``cells`` x ``cells`` cells, for training the vision tower."""

    seed: int
    batch: int = 64
    side: int = 128
    cells: int = 4
    levels: Levels = (("grid", 0.75), ("free", 0.25))
    draft: Draft = Draft(counts=((1, 0.1), (2, 0.2), (3, 0.3), (4, 0.4)), alike=0.1)
    rendered: Rendering = pixels_of

    def __call__(self, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        rng = Random(f"labelled/{self.seed}/{step}")
        scenes = list(scenes_of_batch(self.levels, self.seed + 4, step, self.batch, rng, self.draft))
        labels = torch.stack([cell_labels(s, self.cells) for s in scenes])
        return self.rendered(scenes, self.side), {k: labels[..., i] for i, k in enumerate(LABELS)}


# name -> number of classes: class and colour of the object in a cell (0: none), part of the object, size; and the index of the
# cell, because the text model gets positions only from the features (values carry no rotary position).
LABELS = {"class": len(CLASS_NAMES) + 1, "colour": len(COLOUR_NAMES) + 2, "part": 10, "size": 4, "cell": 16}


def cell_labels(scene: Scene, cells: int) -> Tensor:
    """Labels of the object over each cell's centre: long [cells, cells, len(LABELS)]."""
    out = torch.zeros(cells, cells, len(LABELS), dtype=torch.long)
    out[..., -1] = torch.arange(cells * cells).reshape(cells, cells)
    for obj in scene.objects:
        for row in range(cells):
            for column in range(cells):
                x, y = ((column + 0.5) / cells - obj.x) / obj.size, ((row + 0.5) / cells - obj.y) / obj.size
                if 0 <= x < 1 and 0 <= y < 1:
                    colour = 2 + COLOUR_NAMES.index(obj.colour) if obj.colour else 1
                    part = 1 + int(y * 3) * 3 + int(x * 3)
                    size = 1 + min(2, int(obj.size * 6))
                    out[row, column, :-1] = torch.tensor([1 + CLASS_NAMES.index(obj.name), colour, part, size])
    return out
