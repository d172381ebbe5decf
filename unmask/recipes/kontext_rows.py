"""Rows of ``query_kontext``: drawings from words, edits, and drawings that take an object from a picture, of the small world or own.

Public ideas: ``world_rows(count, seed)`` and ``own_rows(data, kit)``. A square's code depends on that square alone, so the right codes of
an edited picture are known.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import dataclass, replace
from functools import lru_cache
from random import Random

import torch
from torch import Tensor

from unmask.data.opening import usable
from unmask.data.samples import DataError, EditPair
from unmask.data.sources import CachedEncoder, pixels_of
from unmask.data.world.language import article, at, noun, position_word
from unmask.data.world.pairs import Pairs
from unmask.data.world.scenes import Scene, SceneObject
from unmask.data.world.vocabulary import BACKGROUNDS
from unmask.pipeline.image_tokens import Kit, with_codes
from unmask.recipes.image_tokens import LONGEST, mini_kit
from unmask.recipes.query_conditioned import REFERENCE, SOURCE, reading, request
from unmask.sequence import Batch, Sequence, collate
from unmask.tokens.text import BOS, EOT, Text

_CLASSES, _COLOURS = ("apple", "cat", "car"), ("", "blue", "green")
ALONE = Pairs(classes=_CLASSES, colours=_COLOURS, backgrounds=("white", "sky"), places=True)  # drawings from words
WORLD = replace(ALONE, most=2)  # pictures that are edited
SIDE = 64  # pixels: 4 x 4 codes
KINDS = ("draw", "recolour", "replace", "reference")
_BATCH = 16


@dataclass(frozen=True, kw_only=True)
class Job:
    """``given``: None for a drawing from words · ``text``: of what the picture will show · ``changed``: the object that is drawn anew."""

    kind: str
    prompt: str
    given: Scene | None
    target: Scene
    text: str
    changed: SceneObject


def job(seed: int, index: int, split: str = "train", kind: str = "") -> Job:
    """Number ``index`` of a split: the target's text belongs to it. ``kind``: one of ``KINDS``; "": any."""
    rng = Random(f"query kontext/{seed}/{index}/{split}")
    chosen = kind or rng.choice(KINDS)
    pair = (WORLD if chosen in ("recolour", "replace") else ALONE)(seed, index, split)
    target = pair.scene
    index_of = rng.randrange(len(target.objects))
    obj = target.objects[index_of]
    if chosen == "draw":
        return Job(kind=chosen, prompt=pair.text, given=None, target=target, text=pair.text, changed=obj)
    if chosen == "reference":
        x, y = (rng.choice([v / 4 for v in range(3)]) for _ in range(2))
        given = Scene(objects=(replace(obj, x=x, y=y),), background=rng.choice(WORLD.backgrounds), level=target.level)
        prompt = f"draw this {obj.name} {at(position_word(obj))} {BACKGROUNDS[target.background][0]}"
        return Job(kind=chosen, prompt=prompt, given=given, target=target, text=WORLD.text(target), changed=obj)
    if chosen == "recolour":
        was = replace(obj, colour=rng.choice([c for c in WORLD.colours if c != obj.colour]))
        prompt = f"make the {was.name} {at(position_word(obj))} {obj.colour or 'natural'}"
    else:
        was = replace(obj, name=rng.choice([c for c in WORLD.classes if c != obj.name]))
        prompt = f"turn the {noun(was)} {at(position_word(obj))} into {article(obj.name)}"
    objects = (*target.objects[:index_of], was, *target.objects[index_of + 1 :])
    given = replace(target, objects=objects)
    return Job(kind=chosen, prompt=prompt, given=given, target=target, text=pair.text, changed=obj)


@lru_cache(maxsize=2)
def small_kit(pairs: Pairs) -> Kit:
    """The embedded model's tokenizers for pictures of ``SIDE`` pixels, with the codes that a small world has."""
    whole = replace(mini_kit(), side=SIDE)
    with torch.no_grad():
        codes = CachedEncoder(whole.vq.encode)(pixels_of([pairs(-1, i).scene for i in range(500)], SIDE))
    return replace(whole, vq=with_codes(whole.vq, codes.unique()))


@lru_cache(maxsize=2)
def _encoder(pairs: Pairs) -> Callable[[Tensor], Tensor]:
    return CachedEncoder(small_kit(pairs).vq.encode)


@torch.no_grad()
def codes_of(scenes: Items[Scene], pairs: Pairs = WORLD) -> Tensor:
    """[N, h, w], of the codes that the world of ``pairs`` has."""
    return _encoder(pairs)(pixels_of(list(scenes), SIDE))


@dataclass(frozen=True, kw_only=True)
class Rows:
    """``prompts`` with the codes of given pictures (None: none) and of targets [N, h, w] · ``texts``: of the targets · ``kinds``: of
    ``KINDS``, "" for own data · ``changed [N, h, w]``: the squares of the object that is drawn anew; None for own data.
    """

    prompts: tuple[str, ...]
    texts: tuple[str, ...]
    kinds: tuple[str, ...]
    given: tuple[Tensor | None, ...]
    targets: Tensor
    changed: Tensor | None = None

    def row(self, i: int, text: Text, queries: int, *, stage: int) -> Sequence:
        """A training row: in stage 0 the text of the target to write, later the target to draw."""
        prompt = [text[BOS], *text.encode(self.prompts[i]), text[EOT]]
        if stage == 0:
            return reading(prompt, [*text.encode(self.texts[i]), text[EOT]], self.given[i])
        name = REFERENCE if self.kinds[i] == "reference" else SOURCE
        return request(prompt, queries, self.targets[i], self.given[i], name=name)


@lru_cache(maxsize=4)
def world_rows(count: int, seed: int, split: str = "train", kind: str = "") -> Rows:
    """Of the small world."""
    jobs = [job(seed, i, split, kind) for i in range(count)]
    scenes = [one.given or one.target for one in jobs]
    given = codes_of(scenes)
    return Rows(
        prompts=tuple(one.prompt for one in jobs),
        texts=tuple(one.text for one in jobs),
        kinds=tuple(one.kind for one in jobs),
        given=tuple(given[i] if one.given else None for i, one in enumerate(jobs)),
        targets=codes_of([one.target for one in jobs]),
        changed=torch.stack([_squares(one.changed, given.shape[1]) for one in jobs]),
    )


def _squares(obj: SceneObject, side: int) -> Tensor:
    """Those that an object covers, [side, side] bool."""
    found = torch.zeros(side, side, dtype=torch.bool)
    x, y, size = (round(v * side) for v in (obj.x, obj.y, obj.size))
    found[y : y + size, x : x + size] = True
    return found


@lru_cache(maxsize=2)
def own_rows(data: str, kit: Kit) -> Rows:
    """Of a user's pairs. In stage 0 the understanding network repeats the instruction: own data has no text of the result.

    DataError where too many rows are broken, or none is an edit.
    """

    def wrong(sample: EditPair) -> str:
        tokens = len(kit.text.encode(sample.instruction))
        return f"{sample.key} has an instruction of {tokens} tokens, more than {LONGEST}" if tokens > LONGEST else ""

    prompts, given, targets = [], [], []
    for sample, pictures in usable(data, EditPair, wrong=wrong):
        prompts.append(sample.instruction)
        given.append(kit.encode(pictures[0]))
        targets.append(kit.encode(pictures[1]))
    if not prompts:
        raise DataError(f"{data} has no pair of pictures with an instruction; see the task edit in docs/data.md")
    texts = tuple(prompts)
    return Rows(prompts=texts, texts=texts, kinds=("",) * len(texts), given=tuple(given), targets=torch.stack(targets))


@dataclass(frozen=True, kw_only=True)
class Batches:
    """Drawn with replacement."""

    rows: Callable[[], Rows]
    row: Callable[[Rows, int], Sequence]
    seed: int

    def __call__(self, step: int) -> Batch:
        rng, rows = Random(f"query kontext/{self.seed}/{step}"), self.rows()
        some = [rng.randrange(len(rows.prompts)) for _ in range(_BATCH)]
        return collate([self.row(rows, i) for i in some], range(_BATCH))
