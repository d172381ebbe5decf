"""Scenes: objects with positions and colours on a background, and the split of a scene.

A scene is a pure function of (level, split, seed, index). The splits are disjoint by construction: the split is a function of
the content (``split_of``), and sampling rejects scenes of other splits. All *held-out combinations* (colour x class, class pair,
relation x pair) belong to the test split: training and validation scenes never show one.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable, Iterator, Sequence
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
Spot = tuple[float, float, float]  # x, y, size
_SCATTERED = 0.25  # share of grouped scenes without a line between the groups
_ONE_SMALLER = 0.14  # probability that an object is smaller than its group
_ATTEMPTS = 30  # placements of two groups


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
    ``tinted``: probability of a recolouring, per object · ``distractors``: probability of one object that captions omit ·
    ``grouped``: probability that two or more objects form two groups (each of one class and colour, usually of one size, mostly on
    either side of a line), so that a caption can combine count, relation, colour and size; ``alike`` applies to the other scenes.
    """

    counts: tuple[tuple[int, float], ...] = ((1, 0.3), (2, 0.4), (3, 0.18), (4, 0.12))
    alike: float = 0.3
    tinted: float = 0.65
    distractors: float = 0.0
    grouped: float = 0.0


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


def relation_of_groups(first: Sequence[SceneObject], second: Sequence[SceneObject]) -> str:
    """The relation that every object of ``first`` has to every object of ``second``, or "" if there is none."""
    found = {relation(a, b) for a in first for b in second}
    return found.pop() if len(found) == 1 else ""


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
    if draft.grouped and count > 1 and rng.random() < draft.grouped:
        return Scene(objects=_two_groups(level, draft, count, rng), background=_backdrop(level, rng), level=level.name)
    spots = place(level, count, rng)
    alike = count > 1 and rng.random() < draft.alike
    kinds = [_kind(level, draft, rng) for _ in spots]
    if alike:
        kinds = [kinds[0]] * len(spots)
    ignored = len(spots) - 1 if len(spots) > 1 and rng.random() < draft.distractors else -1
    objects = tuple(
        SceneObject(name=name, colour=colour, x=x, y=y, size=size, distractor=i == ignored)
        for i, ((name, colour), (x, y, size)) in enumerate(zip(kinds, spots, strict=True))
    )
    return Scene(objects=objects, background=_backdrop(level, rng), level=level.name)


def _kind(level: Level, draft: Draft, rng: Random) -> tuple[str, str]:
    return rng.choice(level.classes), rng.choice(level.colours) if rng.random() < draft.tinted else ""


def _backdrop(level: Level, rng: Random) -> str:
    return rng.choice(level.backgrounds)


def _two_groups(level: Level, draft: Draft, count: int, rng: Random) -> tuple[SceneObject, ...]:
    """Two groups of different classes (see ``Draft.grouped``); fewer objects than ``count`` if there is no space."""
    kinds = [_kind(level, draft, rng), _kind(level, draft, rng)]
    while kinds[1][0] == kinds[0][0]:
        kinds[1] = _kind(level, draft, rng)
    first = rng.randint(1, count - 1)
    if rng.random() < _SCATTERED:
        spots = place(level, count, rng)
        first = min(first, len(spots) - 1)
        parts = [spots[:first], spots[first:]]
    else:
        parts = _apart_by_a_line(level, (first, count - first), rng)
    return tuple(
        SceneObject(name=name, colour=colour, x=x, y=y, size=size)
        for (name, colour), part in zip(kinds, parts, strict=True)
        for x, y, size in part
    )


def _apart_by_a_line(level: Level, numbers: tuple[int, int], rng: Random) -> list[list[Spot]]:
    """Positions of two groups on either side of a line, all in the same relation if one of some attempts gives that."""
    parts: list[list[Spot]] = []
    for _ in range(_ATTEMPTS):
        parts = _beside(level, numbers, rng)
        first, second = ([_at(spot) for spot in part] for part in parts)
        if (len(first), len(second)) == numbers and relation_of_groups(first, second):
            break
    return parts


def _beside(level: Level, numbers: tuple[int, int], rng: Random) -> list[list[Spot]]:
    """One attempt: a line, and objects of one size on each side; one object in seven is as small as the level allows."""
    sizes = [min(_size(level, rng), 0.5) for _ in numbers]
    low, high = sizes[0], 1 - sizes[1]
    n = level.lattice
    line = rng.randint(round(low * n), round(high * n)) / n if n else rng.uniform(low, high)
    ends = [(0.0, line), (line, 1.0)]
    turned, mirrored = rng.random() < 0.5, rng.random() < 0.5
    if mirrored:
        ends = [(1 - high, 1 - low) for low, high in ends]

    def side_of_line(number: int, size: float, end: tuple[float, float]) -> list[Spot]:
        x, y = ((0.0, 1.0), end) if turned else (end, (0.0, 1.0))
        small = min(size, *level.sizes)
        return _fill(number, lambda: _within(level, x, y, small if rng.random() < _ONE_SMALLER else size, rng))

    return [side_of_line(number, size, end) for number, size, end in zip(numbers, sizes, ends, strict=True)]


def _at(spot: Spot) -> SceneObject:
    return SceneObject(name="", colour="", x=spot[0], y=spot[1], size=spot[2])


def place(level: Level, count: int, rng: Random, taken: tuple[Spot, ...] = ()) -> list[Spot]:
    """Up to ``count`` positions (x, y, size) without overlap with each other or ``taken``; fewer if there is no space."""
    return _fill(count, lambda: _spot(level, rng), taken)


def _fill(count: int, propose: Callable[[], Spot], taken: tuple[Spot, ...] = ()) -> list[Spot]:
    """Up to ``count`` proposals that overlap neither each other nor ``taken``."""
    spots: list[Spot] = []
    for _ in range(count):
        for _attempt in range(30):
            spot = propose()
            if all(apart(spot, other) for other in (*taken, *spots)):
                spots.append(spot)
                break
    return spots


def _spot(level: Level, rng: Random) -> Spot:
    size = _size(level, rng)
    return _within(level, (0.0, 1.0), (0.0, 1.0), size, rng)


def _size(level: Level, rng: Random) -> float:
    if not level.lattice:
        return rng.uniform(level.sizes[0], level.sizes[-1])
    return level.sizes[0] if rng.random() < 0.72 else level.sizes[1]


def _within(level: Level, x_range: tuple[float, float], y_range: tuple[float, float], size: float, rng: Random) -> Spot:
    """A position of an object of this size between these bounds."""
    bounds = ((low, high - size) for low, high in (x_range, y_range))
    if not level.lattice:
        x, y = (rng.uniform(low, high) for low, high in bounds)
    else:
        n = level.lattice
        x, y = (rng.randint(round(low * n), round(high * n)) / n for low, high in bounds)
    return (x, y, size)


def apart(a: Spot, b: Spot) -> bool:
    """Whether two squares (x, y, size) do not overlap."""
    return a[0] + a[2] <= b[0] or b[0] + b[2] <= a[0] or a[1] + a[2] <= b[1] or b[1] + b[2] <= a[1]
