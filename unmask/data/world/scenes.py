"""Scenes: objects with positions and colours on a background, and the split of a scene.

A scene is a pure function of (level, split, seed, index). The splits are disjoint by construction: the split is a function of
the content (``split_of``), and sampling rejects scenes of other splits. All *held-out combinations* (colour x class, class pair,
relation x pair) belong to the test split: training and validation scenes never show one.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from random import Random

from unmask.data.world.vocabulary import LEVELS, Level

SPLITS = ("train", "validation", "test")
HELD_OUT_SHARE = 0.25  # share of test scenes with a held-out combination
_HELD_ONE_IN = 12
_CLEAR = 1.3  # a relation is stated only if one axis dominates the other by this factor
INVERSE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
RELATIONS = tuple(INVERSE)


@dataclass(frozen=True, kw_only=True)
class SceneObject:
    """One object: class name, colour ("" is natural), top left corner and side as fractions of the picture's side."""

    name: str
    colour: str
    x: float
    y: float
    size: float
    distractor: bool = False

    @property
    def box(self) -> tuple[float, float, float, float]:
        """(x1, y1, x2, y2) as fractions of the picture's side."""
        return (self.x, self.y, self.x + self.size, self.y + self.size)

    @property
    def centre(self) -> tuple[float, float]:
        return (self.x + self.size / 2, self.y + self.size / 2)


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Objects on a background. ``level`` is a name in ``LEVELS``; later objects lie on top of earlier ones."""

    objects: tuple[SceneObject, ...]
    background: str
    level: str

    @cached_property
    def signature(self) -> str:
        """The content as text, independent of the order of objects; its hash determines the split."""
        parts = sorted(f"{t.name}/{t.colour}/{t.x:.4f}/{t.y:.4f}/{t.size:.4f}" for t in self.objects)
        return f"{self.level}|{self.background}|" + ";".join(parts)


@dataclass(frozen=True, kw_only=True)
class Draft:
    """Distribution of scenes.

    ``counts``: ((number of objects, weight), ...) · ``alike``: probability that all objects of a scene share class and colour ·
    ``tinted``: probability of a recolouring, per object · ``distractors``: probability of one object that captions omit.
    """

    counts: tuple[tuple[int, float], ...] = ((1, 0.3), (2, 0.4), (3, 0.18), (4, 0.12))
    alike: float = 0.3
    tinted: float = 0.65
    distractors: float = 0.0


def _hash(text: str) -> int:
    return zlib.crc32(text.encode())


def relation(a: SceneObject, b: SceneObject) -> str:
    """Spatial relation of ``a`` to ``b``: one of ``RELATIONS``, or "" if neither axis clearly dominates."""
    (ax, ay), (bx, by) = a.centre, b.centre
    dx, dy = bx - ax, by - ay
    if abs(dx) > _CLEAR * abs(dy):
        return "left of" if dx > 0 else "right of"
    if abs(dy) > _CLEAR * abs(dx):
        return "above" if dy > 0 else "below"
    return ""


def only_in(scene: Scene, other: Scene) -> list[SceneObject]:
    """Objects of a scene that are not in another one."""
    return [obj for obj in scene.objects if obj not in other.objects]


@cache
def held_out(*combination: str) -> bool:
    """Whether (colour, class), (class, class) or (relation, class, class) is reserved for the test split."""
    if len(combination) == 2 and combination[0] > combination[1]:
        combination = (combination[1], combination[0])
    if len(combination) == 3 and combination[0] in ("right of", "below"):
        combination = (INVERSE[combination[0]], combination[2], combination[1])
    return _hash("held-out/" + "/".join(combination)) % _HELD_ONE_IN == 0


def combinations(scene: Scene) -> Iterator[tuple[str, ...]]:
    """Every (colour, class), (class, class) and (relation, class, class) that the scene shows."""
    for obj in scene.objects:
        if obj.colour:
            yield (obj.colour, obj.name)
    for a, b in itertools.combinations(scene.objects, 2):
        if a.name == b.name:
            continue
        yield (a.name, b.name)
        if found := relation(a, b):
            yield (found, a.name, b.name)


def shows_held_out(scene: Scene) -> bool:
    """Whether the scene shows a combination held out for the test split."""
    return any(held_out(*c) for c in combinations(scene))


def split_of(scene: Scene) -> str:
    """The split of a scene: "test" (held-out combination, or hash), "validation" or "train"."""
    if shows_held_out(scene):
        return "test"
    bucket = _hash(scene.signature) % 20
    return "test" if bucket < 2 else "validation" if bucket == 2 else "train"


def sample(level: str, split: str, seed: int, index: int, draft: Draft = Draft()) -> Scene:
    """Scene number ``index`` of a split; deterministic. Raises ValueError for an unknown level or split."""
    if level not in LEVELS:
        raise ValueError(f"unknown level {level!r}; the levels are {', '.join(LEVELS)}")
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; the splits are {', '.join(SPLITS)}")
    rng = Random(f"{level}/{split}/{seed}/{index}")
    want_held_out = split == "test" and rng.random() < HELD_OUT_SHARE
    for _ in range(400):
        scene = _draw(LEVELS[level], draft, rng)
        if split_of(scene) == split and (split != "test" or shows_held_out(scene) == want_held_out):
            return scene
    # Some drafts cannot show held-out combinations (a single natural object has none): then any scene of the split is used.
    for _ in range(4000):
        scene = _draw(LEVELS[level], draft, rng)
        if split_of(scene) == split:
            return scene
    raise ValueError(f"no {split} scene of level {level!r} found for {draft}")


def _draw(level: Level, draft: Draft, rng: Random) -> Scene:
    numbers, weights = zip(*draft.counts, strict=True)
    count = min(rng.choices(numbers, weights)[0], level.most)
    spots = place(level, count, rng)
    alike = count > 1 and rng.random() < draft.alike
    kinds = [
        (rng.choice(level.classes), rng.choice(level.colours) if rng.random() < draft.tinted else "") for _ in spots
    ]
    if alike:
        kinds = [kinds[0]] * len(spots)
    ignored = len(spots) - 1 if len(spots) > 1 and rng.random() < draft.distractors else -1
    objects = tuple(
        SceneObject(name=name, colour=colour, x=x, y=y, size=size, distractor=i == ignored)
        for i, ((name, colour), (x, y, size)) in enumerate(zip(kinds, spots, strict=True))
    )
    return Scene(objects=objects, background=rng.choice(level.backgrounds), level=level.name)


def place(
    level: Level, count: int, rng: Random, taken: tuple[tuple[float, float, float], ...] = ()
) -> list[tuple[float, float, float]]:
    """Up to ``count`` positions (x, y, size) without overlap with each other or ``taken``; fewer if there is no space."""
    spots: list[tuple[float, float, float]] = []
    for _ in range(count):
        for _attempt in range(30):
            spot = _spot(level, rng)
            if all(apart(spot, other) for other in (*taken, *spots)):
                spots.append(spot)
                break
    return spots


def _spot(level: Level, rng: Random) -> tuple[float, float, float]:
    if not level.lattice:
        size = rng.uniform(level.sizes[0], level.sizes[-1])
        return (rng.uniform(0, 1 - size), rng.uniform(0, 1 - size), size)
    size = level.sizes[0] if rng.random() < 0.72 else level.sizes[1]
    steps = level.lattice - round(size * level.lattice)
    return (rng.randint(0, steps) / level.lattice, rng.randint(0, steps) / level.lattice, size)


def apart(a: tuple[float, float, float], b: tuple[float, float, float]) -> bool:
    """Whether two squares (x, y, size) do not overlap."""
    return a[0] + a[2] <= b[0] or b[0] + b[2] <= a[0] or a[1] + a[2] <= b[1] or b[1] + b[2] <= a[1]
