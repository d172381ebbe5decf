"""From detections to verdicts: GenEval's rules, whole-scene equality, and intervals. Pure functions.

Public idea: ``verdict(seen, want)``. The six categories of GenEval (Ghosh et al., 2023) are the constructors ``single``,
``two``, ``counting``, ``colors``, ``position`` and ``color_attr``, named as that benchmark names them.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import sqrt

from unmask.data.world import scenes
from unmask.data.world.scenes import RELATIONS, Scene, SceneObject
from unmask.evaluation.judge import Box, Found, Seen

_SAME_PLACE = 0.5  # minimum IoU of a detected box with the true box
_BIG = 0.36  # of the picture's side: between the small and the big objects of the levels grid and free
Z = 1.959964  # two-sided 95 %


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """At least ``count`` objects of class ``name``, or exactly if ``exact``. ``colour``: None any, "" natural · ``size``: big, small, or ""
    for any.
    """

    name: str
    count: int = 1
    colour: str | None = None
    exact: bool = False
    size: str = ""

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"the count of {self.name!r} must be at least 1, got {self.count}")
        if self.size not in ("", "big", "small"):
            raise ValueError(f"the size of {self.name!r} must be big, small or empty, got {self.size!r}")


@dataclass(frozen=True, kw_only=True)
class Related:
    """``first`` lies ``relation`` ``second``: "a dog left of a cat" has the dog first. Counts are ignored.

    ``every``: the relation holds for every object of ``first`` with every object of ``second``, instead of the most confident of each.
    """

    first: Wanted
    relation: str
    second: Wanted
    every: bool = False

    def __post_init__(self) -> None:
        if self.relation not in RELATIONS:
            raise ValueError(f"unknown relation {self.relation!r}; the relations are {', '.join(RELATIONS)}")


@dataclass(frozen=True, kw_only=True)
class Want:
    """The content of a prompt: all items and, if given, a relation between two of them, and the background ("" for any)."""

    items: tuple[Wanted, ...]
    related: Related | None = None
    background: str = ""

    def __post_init__(self) -> None:
        names = {item.name for item in self.items}
        if self.related and not {self.related.first.name, self.related.second.name} <= names:
            raise ValueError(
                f"the relation names objects that are not in the items: {self.related}; add them to the items"
            )


def single(name: str) -> Want:
    """GenEval "single_object": the class is present."""
    return Want(items=(Wanted(name=name),))


def two(first: str, second: str) -> Want:
    """GenEval "two_object": both classes are present."""
    return Want(items=(Wanted(name=first), Wanted(name=second)))


def counting(name: str, count: int) -> Want:
    """GenEval "counting": exactly ``count`` objects of the class."""
    return Want(items=(Wanted(name=name, count=count, exact=True),))


def colors(name: str, colour: str) -> Want:
    """GenEval "colors": the most confident object of the class has the colour."""
    return Want(items=(Wanted(name=name, colour=colour),))


def position(first: Wanted, relation: str, second: Wanted) -> Want:
    """GenEval "position": both are present, in this relation."""
    return Want(items=(first, second), related=Related(first=first, relation=relation, second=second))


def color_attr(first: str, first_colour: str, second: str, second_colour: str) -> Want:
    """GenEval "color_attr": both are present, each in its own colour."""
    return Want(items=(Wanted(name=first, colour=first_colour), Wanted(name=second, colour=second_colour)))


def verdict(seen: Seen, want: Want) -> bool:
    """Whether the picture meets the prompt by GenEval's rules; other objects are ignored.

    As in GenEval, only the most confident objects of a class count, up to the requested number. Further objects have no effect
    unless the count is exact.
    """
    names = {item.name for item in want.items}
    present = all(_class_right(seen, [i for i in want.items if i.name == name]) for name in names)
    present = present and want.background in ("", seen.background)
    return present and (want.related is None or _related_right(seen, want.related))


def strict(seen: Seen, want: Want) -> bool:
    """``verdict``, and the image contains no other object."""
    return verdict(seen, want) and len(seen.objects) == sum(item.count for item in want.items)


def _by_confidence(seen: Seen, name: str) -> list[Found]:
    return sorted((t for t in seen.objects if t.name == name), key=lambda t: -t.score)


def _class_right(seen: Seen, items: list[Wanted]) -> bool:
    """All items of one class: enough objects (no more, if exact), and enough of the most confident ones in each colour and size."""
    total = sum(item.count for item in items)
    objects = _by_confidence(seen, items[0].name)
    if len(objects) < total or (len(objects) > total and any(item.exact for item in items)):
        return False
    required: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for item in items:
        if item.colour is not None:
            required[item.colour] += item.count
        if item.size:
            sizes[item.size] += item.count
    colours = required <= Counter(t.colour for t in objects[:total])
    return colours and sizes <= Counter(_size(t) for t in objects[:total])


def _size(found: Found) -> str:
    x1, y1, x2, y2 = found.box
    return "big" if (x2 - x1 + y2 - y1) / 2 > _BIG else "small"


def _related_right(seen: Seen, related: Related) -> bool:
    """By the box centres of the most confident object on each side, or of all pairs; one object never counts for both."""
    first, second = (
        [t for t in _by_confidence(seen, w.name) if w.colour is None or t.colour == w.colour]
        for w in (related.first, related.second)
    )
    others = [t for t in second if not first or t is not first[0]]
    if related.every:
        found = [scenes.relation(_point(a), _point(b)) for a in first for b in second if a is not b]
        return bool(found) and set(found) == {related.relation}
    if not first or not others:
        return False
    return scenes.relation(_point(first[0]), _point(others[0])) == related.relation


def _point(found: Found) -> SceneObject:
    x, y = found.centre
    return SceneObject(name=found.name, colour=found.colour, x=x, y=y, size=0.0)


def iou(a: Box, b: Box) -> float:
    """Intersection over union of two boxes (x1, y1, x2, y2); 0 if both are empty."""
    wide = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    high = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    both = wide * high
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both
    return both / union if union > 0 else 0.0


def right(found: Found, obj: SceneObject) -> bool:
    """Same class, same colour, and boxes that overlap with an IoU of at least 0.5."""
    same = found.name == obj.name and found.colour == obj.colour
    return same and iou(found.box, obj.box) >= _SAME_PLACE


def matches(seen: Seen, scene: Scene) -> bool:
    """Whether the whole scene is right: the background, and a one-to-one match of all objects by ``right``, nothing else."""
    if seen.background != scene.background or len(seen.objects) != len(scene.objects):
        return False
    return _pairs(list(seen.objects), list(scene.objects))


def _pairs(found: list[Found], objects: list[SceneObject]) -> bool:
    """Whether a perfect matching exists."""
    if not objects:
        return True
    return any(
        right(one, objects[0]) and _pairs(found[:i] + found[i + 1 :], objects[1:]) for i, one in enumerate(found)
    )


def interval(successes: float, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share. (0, 1) for no trials. Raises ValueError for impossible counts.

    ``successes`` may have a fraction: trials that are shares themselves.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"expected 0 <= successes <= n, got {successes} of {n}")
    if n == 0:
        return (0.0, 1.0)
    share, z2 = successes / n, Z * Z
    middle = share + z2 / (2 * n)
    spread = Z * sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    # At 0 and n the formula gives 0 and 1 up to rounding; exact values keep the share inside its interval.
    low = (middle - spread) / (1 + z2 / n) if successes else 0.0
    high = (middle + spread) / (1 + z2 / n) if successes < n else 1.0
    return (low, high)
