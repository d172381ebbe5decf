"""Training batches for planning and reflection: plans, critiques, further attempts (spec 2.2, 3.3).

Each source is a value; batch number ``step`` is a pure function of (seed, step), as in ``sources``. Plans together with their images
are ``sources.Drawings`` and ``sources.Edits`` with a ``plan``.
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass
from random import Random

from torch import Tensor

from unmask.corruption.collapsing import Collapsing
from unmask.data.sources import (
    Encode,
    Levels,
    Planned,
    Rendering,
    answer_ids,
    edits_of,
    pixels_of,
    scenes_of_batch,
    short_caption,
    train_scenes,
)
from unmask.data.world import critiques, edit_critiques, language
from unmask.data.world.edits import EDIT_KINDS
from unmask.data.world.plans import edit_layout, scene_layout
from unmask.data.world.scenes import Draft, Scene
from unmask.sequence import Batch, Sequence, collate
from unmask.tokens.build import (
    Builder,
    FailedAttempt,
    PlanIds,
    asking,
    drawing,
    illustrating,
    looking,
    plan_ids,
    planning,
    planning_edit,
)
from unmask.tokens.layouts import to_ids
from unmask.tokens.text import Text


@dataclass(frozen=True, kw_only=True)
class Plans:
    """Caption -> layout, in ``length`` tokens. ``related``: share of captions with a spatial relation, if the scene has one."""

    text: Text
    seed: int
    length: int
    batch: int = 16
    levels: Levels = (("grid", 1.0),)
    draft: Draft = Draft()
    longest: int = 18
    related: float = 0.0

    def __call__(self, step: int) -> Batch:
        rng = Random(f"plans/{self.seed}/{step}")
        rows = []
        for scene in scenes_of_batch(self.levels, self.seed + 5, step, self.batch, rng, self.draft):
            b = Builder(text=self.text)
            relating = language.relating(scene, rng) if rng.random() < self.related else ""
            caption = relating or short_caption(self.text, scene, rng, self.longest)
            ids = to_ids(scene_layout(scene, caption, b.wording, rng), self.text, b.wording)
            rows.append(planning(b, caption, plan_ids(self.text, ids, self.length)))
        return collate(rows, range(self.batch))


@dataclass(frozen=True, kw_only=True)
class EditPlans:
    """Image and instruction -> layout of the changed objects, in ``length`` tokens. Kinds cycle through ``kinds``."""

    text: Text
    seed: int
    length: int
    look_tokens: int
    batch: int = 7
    side: int = 128
    levels: Levels = (("grid", 1.0),)
    kinds: tuple[str, ...] = EDIT_KINDS
    draft: Draft = Draft()
    rendered: Rendering = pixels_of

    def __call__(self, step: int) -> Batch:
        rng = Random(f"edit plans/{self.seed}/{step}")
        pairs = edits_of(self.levels, self.seed + 6, step, self.batch, rng, self.kinds, self.draft)
        pixels = self.rendered([p.source for p in pairs], self.side)
        rows = []
        for i, pair in enumerate(pairs):
            b = Builder(text=self.text, look_tokens=self.look_tokens)
            ids = to_ids(edit_layout(pair, b.wording), self.text, b.wording)
            rows.append(planning_edit(b, pixels[i], pair.instruction, plan_ids(self.text, ids, self.length)))
        return collate(rows, range(self.batch))


def answering(b: Builder, pairs: Items[tuple[str, str]], rng: Random, length: int) -> Sequence:
    """The context of ``b``, then (question, answer) pairs, each in its own segment, answers padded to ``length`` tokens."""
    for segment, (question, answer) in enumerate(pairs, 1):
        asking(b, question, answer_ids(b.text, answer, rng, length), segment=segment)
    return b.build()


@dataclass(frozen=True, kw_only=True)
class Critiques:
    """Image and caption -> critique, in ``length`` tokens. Half of the captions are correct.

    Each image has ``captions`` pairs in separate segments. ``related``: share of captions with a spatial relation, if there is one.
    """

    text: Text
    seed: int
    look_tokens: int
    batch: int = 10
    side: int = 128
    length: int = 16
    captions: int = 4
    levels: Levels = (("grid", 1.0),)
    draft: Draft = Draft()
    related: float = 0.0
    rendered: Rendering = pixels_of

    def __call__(self, step: int) -> Batch:
        rng = Random(f"critiques/{self.seed}/{step}")
        scenes = list(scenes_of_batch(self.levels, self.seed + 7, step, self.batch, rng, self.draft))
        pixels = self.rendered(scenes, self.side)
        rows = []
        for i, scene in enumerate(scenes):
            b = looking(Builder(text=self.text, look_tokens=self.look_tokens), pixels[i])
            sampled = [critiques.sample_pair(scene, rng, self.related) for _ in range(self.captions)]
            pairs = [(b.wording.critique.format(caption=caption), words) for caption, words in sampled]
            rows.append(answering(b, pairs, rng, self.length))
        return collate(rows, range(self.batch))


@dataclass(frozen=True, kw_only=True)
class EditCritiques:
    """Images before and after, instruction -> critique, in ``length`` tokens. Half of the instructions are met.

    Two instructions for one pair of images have separate segments. Kinds cycle through ``kinds``.
    """

    text: Text
    seed: int
    look_tokens: int
    batch: int = 10
    side: int = 128
    length: int = 16
    levels: Levels = (("grid", 1.0),)
    kinds: tuple[str, ...] = EDIT_KINDS
    draft: Draft = Draft()
    rendered: Rendering = pixels_of

    def __call__(self, step: int) -> Batch:
        rng = Random(f"edit critiques/{self.seed}/{step}")
        pairs = edits_of(self.levels, self.seed + 15, step, self.batch, rng, self.kinds, self.draft)
        shown = [edit_critiques.edited_pairs(pair, rng) for pair in pairs]
        before = self.rendered([pair.source for pair in pairs], self.side)
        after = self.rendered([scene for scene, _ in shown], self.side)
        rows = []
        for i, (_, instructions) in enumerate(shown):
            b = looking(Builder(text=self.text, look_tokens=self.look_tokens), before[i], after[i])
            critiques_ = [(b.wording.critique_edit.format(instruction=text), words) for text, words in instructions]
            rows.append(answering(b, critiques_, rng, self.length))
        return collate(rows, range(self.batch))


@dataclass(frozen=True, kw_only=True)
class Retries:
    """Caption, earlier failed images and their critiques -> image. ``plan``: layout before the image; None: no layout."""

    text: Text
    encode: Encode
    seed: int
    look_tokens: int
    batch: int = 8
    side: int = 128
    fold: int = 2
    most: int = 3
    plan: Planned | None = None
    levels: Levels = (("grid", 1.0),)
    draft: Draft = Draft()
    rendered: Rendering = pixels_of

    def __call__(self, step: int) -> Batch:
        rng = Random(f"retries/{self.seed}/{step}")
        scenes = train_scenes(self.levels, self.seed + 8, step * self.batch * 4, rng, self.draft)
        tasks = []
        while len(tasks) < self.batch:
            scene = next(scenes)
            caption, negatives = critiques.make_negatives(scene, rng, rng.randint(1, self.most))
            if negatives:
                tasks.append((scene, caption, negatives))
        codes = self.encode(self.rendered([scene for scene, *_ in tasks], self.side))
        rows = [self._row(scene, said, wrong, codes[i], rng) for i, (scene, said, wrong) in enumerate(tasks)]
        return collate(rows, range(self.batch))

    def _row(
        self, scene: Scene, caption: str, negatives: list[critiques.Negative], codes: Tensor, rng: Random
    ) -> Sequence:
        b = Builder(text=self.text, look_tokens=self.look_tokens)
        pixels = self.rendered([s.scene for s in negatives], self.side)
        attempts = [FailedAttempt(picture=p, critique=s.critique) for p, s in zip(pixels, negatives, strict=True)]
        plan = self.plan(scene_layout(scene, caption, b.wording, rng), b, rng) if self.plan else None
        return drawing(b, caption, codes, fold=self.fold, plan=plan, attempts=attempts)


@dataclass(frozen=True, kw_only=True)
class Illustrations:
    """Image -> its caption and the token that announces an image, in ``length`` text tokens (spec 4.9).

    Other rows contain caption and image; both are predicted in a share ``plan.open`` of them. ``unified``: use the shares of this
    corruption process, which also masks the rows; the caption is then always predicted.
    """

    text: Text
    encode: Encode
    seed: int
    look_tokens: int
    length: int
    batch: int = 4
    side: int = 128
    fold: int = 2
    plan: Planned = Planned()
    unified: Collapsing | None = None
    levels: Levels = (("grid", 1.0),)
    draft: Draft = Draft()
    longest: int = 18
    rendered: Rendering = pixels_of

    def __call__(self, step: int) -> Batch:
        rng = Random(f"illustrations/{self.seed}/{step}")
        scenes = list(scenes_of_batch(self.levels, self.seed + 9, step, self.batch, rng, self.draft))
        pixels = self.rendered(scenes, self.side)
        codes, collapsed = self.encode(pixels), self.unified.share() if self.unified else 0.0
        rows = []
        for i, scene in enumerate(scenes):
            b = looking(Builder(text=self.text, look_tokens=self.look_tokens), pixels[i])
            words = self.text.encode(short_caption(self.text, scene, rng, self.longest))
            question = b.wording.describe_and_draw
            if (rng.random() < collapsed) if self.unified else i % 2:
                rows.append(asking(b, question, plan_ids(self.text, words, self.length)).build())
            else:
                given = PlanIds(ids=tuple(words), open=bool(self.unified) or rng.random() < self.plan.open)
                rows.append(illustrating(b, question, given, codes[i], fold=self.fold).build())
        return collate(rows, range(self.batch))
