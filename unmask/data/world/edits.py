"""Editing instructions: two scenes that differ in one object, and the instruction that turns one into the other.

The instruction refers to its object unambiguously and determines the result (if several free positions fit its words, each of
them is right). Public idea: ``edit(scene, split, rng)``; both scenes belong to the split.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from random import Random

from unmask.data.world.language import article, at, by_extreme, names, noun, position_word
from unmask.data.world.scenes import Scene, SceneObject, apart, place, split_of
from unmask.data.world.vocabulary import LEVELS, Level

_ATTEMPTS = 24  # proposals per kind
_FACTOR = 1.5  # size factor of a resize on levels without a lattice
Spot = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class SceneEdit:
    """``instruction`` turns ``source`` into ``target``; ``kind`` is one of ``EDIT_KINDS``."""

    kind: str
    instruction: str
    source: Scene
    target: Scene


def edit(scene: Scene, split: str, rng: Random, kind: str | None = None) -> SceneEdit | None:
    """An edit of the given kind, or of any possible kind; None if there is none.

    The target of a train or validation scene belongs to the same split; that of a test scene may be any scene. Raises
    ValueError for a scene of another split and for an unknown kind.
    """
    if kind is not None and kind not in _PROPOSE:
        raise ValueError(f"unknown kind of edit {kind!r}; the kinds are {', '.join(EDIT_KINDS)}")
    if split_of(scene) != split:
        raise ValueError(
            f"the scene belongs to the split {split_of(scene)!r}, not to {split!r}; pass the split of the scene"
        )
    for chosen in (kind,) if kind else rng.sample(EDIT_KINDS, len(EDIT_KINDS)):
        for _ in range(_ATTEMPTS):
            found = _PROPOSE[chosen](scene, rng)
            if found and (split == "test" or split_of(found[1]) == split):
                return SceneEdit(kind=chosen, instruction=found[0], source=scene, target=found[1])
    return None


Proposal = tuple[str, Scene] | None


def _named(scene: Scene, rng: Random) -> tuple[int, str] | None:
    """A random object and an unambiguous expression for it with ``the``: by class or colour, else by size or position."""
    index = rng.randrange(len(scene.objects))
    phrases = names(scene.objects, index)
    name = rng.choice(phrases) if phrases else by_extreme(scene, index, rng)
    return (index, f"the {name}") if name else None


def _with(scene: Scene, index: int, obj: SceneObject) -> Scene:
    return replace(scene, objects=(*scene.objects[:index], obj, *scene.objects[index + 1 :]))


def _spot(obj: SceneObject) -> Spot:
    return (obj.x, obj.y, obj.size)


def _free(scene: Scene, spot: Spot, index: int) -> bool:
    """Whether a position overlaps no object except the one at ``index``."""
    return all(i == index or apart(spot, _spot(t)) for i, t in enumerate(scene.objects))


def _kind(level: Level, rng: Random) -> tuple[str, str]:
    """A class and, with probability 0.65, a colour."""
    return rng.choice(level.classes), rng.choice(level.colours) if rng.random() < 0.65 else ""


def _add(scene: Scene, rng: Random) -> Proposal:
    level = LEVELS[scene.level]
    spots = place(level, 1, rng, tuple(_spot(t) for t in scene.objects)) if len(scene.objects) < level.most else []
    if not spots:
        return None
    name, colour = _kind(level, rng)
    x, y, size = spots[0]
    obj = SceneObject(name=name, colour=colour, x=x, y=y, size=size)
    verb = rng.choice(("add", "put", "place"))
    return f"{verb} {article(noun(obj))} {at(position_word(obj))}", replace(scene, objects=(*scene.objects, obj))


def _remove(scene: Scene, rng: Random) -> Proposal:
    named = _named(scene, rng)
    if not named or len(scene.objects) < 2:
        return None
    index, name = named
    target = replace(scene, objects=scene.objects[:index] + scene.objects[index + 1 :])
    return f"{rng.choice(('remove', 'delete', 'take away'))} {name}", target


def _replace(scene: Scene, rng: Random) -> Proposal:
    named = _named(scene, rng)
    if not named:
        return None
    index, old = named
    name, colour = _kind(LEVELS[scene.level], rng)
    obj = replace(scene.objects[index], name=name, colour=colour)
    if name == scene.objects[index].name:
        return None
    new = article(noun(obj))
    phrases = (f"replace {old} with {new}", f"change {old} to {new}", f"turn {old} into {new}")
    return rng.choice(phrases), _with(scene, index, obj)


def _recolour(scene: Scene, rng: Random) -> Proposal:
    named = _named(scene, rng)
    colour = rng.choice(LEVELS[scene.level].colours)
    if not named or scene.objects[named[0]].colour == colour:
        return None
    index, name = named
    phrases = (f"make {name} {colour}", f"paint {name} {colour}", f"change the colour of {name} to {colour}")
    return rng.choice(phrases), _with(scene, index, replace(scene.objects[index], colour=colour))


def _move(scene: Scene, rng: Random) -> Proposal:
    named = _named(scene, rng)
    if not named:
        return None
    index, name = named
    obj, level = scene.objects[index], LEVELS[scene.level]
    span = 1 - obj.size
    if level.lattice:
        steps = round(span * level.lattice)
        x, y = rng.randint(0, steps) / level.lattice, rng.randint(0, steps) / level.lattice
    else:
        x, y = rng.uniform(0, span), rng.uniform(0, span)
    moved = replace(obj, x=x, y=y)
    where = position_word(moved)
    if where == position_word(obj) or not _free(scene, (x, y, obj.size), index):
        return None
    to = f"to the {where}"
    return f"{rng.choice(('move', 'put', 'shift'))} {name} {to}", _with(scene, index, moved)


def _resize(scene: Scene, rng: Random) -> Proposal:
    named = _named(scene, rng)
    if not named:
        return None
    index, name = named
    obj, level = scene.objects[index], LEVELS[scene.level]
    resized = _lattice_sizes(obj, level) if level.lattice else _free_sizes(obj, level, rng)
    for x, y, size in resized:
        if _free(scene, (x, y, size), index):
            bigger = size > obj.size
            phrases = (
                f"make {name} {'bigger' if bigger else 'smaller'}",
                f"{'enlarge' if bigger else 'shrink'} {name}",
            )
            return rng.choice(phrases), _with(scene, index, replace(obj, x=x, y=y, size=size))
    return None


def _lattice_sizes(obj: SceneObject, level: Level) -> Iterator[Spot]:
    """The other size of the level: first with the same top left corner, then at all positions that overlap the old one."""
    size = next(s for s in level.sizes if s != obj.size)
    steps = max(0, round((size - obj.size) * level.lattice))
    for back in sorted(((i, j) for i in range(steps + 1) for j in range(steps + 1)), key=sum):
        x, y = obj.x - back[0] / level.lattice, obj.y - back[1] / level.lattice
        if x >= 0 and y >= 0 and x + size <= 1 and y + size <= 1:
            yield (x, y, size)


def _free_sizes(obj: SceneObject, level: Level, rng: Random) -> Iterator[Spot]:
    """Scaled about the centre and shifted into the image; none outside the level's sizes."""
    size = obj.size * (_FACTOR if rng.random() < 0.5 else 1 / _FACTOR)
    if min(level.sizes) <= size <= max(level.sizes):
        x, y = (min(max(c - size / 2, 0.0), 1 - size) for c in obj.centre)
        yield (x, y, size)


def _background(scene: Scene, rng: Random) -> Proposal:
    new = rng.choice(LEVELS[scene.level].backgrounds)
    if new == scene.background:
        return None
    phrases = (f"change the background to {new}", f"make the background {new}", f"use a {new} background")
    return rng.choice(phrases), replace(scene, background=new)


_PROPOSE: dict[str, Callable[[Scene, Random], Proposal]] = {
    "add": _add,
    "remove": _remove,
    "replace": _replace,
    "recolour": _recolour,
    "move": _move,
    "resize": _resize,
    "background": _background,
}
EDIT_KINDS: tuple[str, ...] = tuple(_PROPOSE)
