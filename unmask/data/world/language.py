"""Texts about scenes: captions, layouts, referring expressions.

Lower case, short and templated, because the models are tiny. All functions are pure functions of their arguments and a ``Random``.
Captions omit distractors; all other texts cover every visible object. Public ideas: ``caption``, ``layout`` and ``referring``.
Questions are in ``questions.py``, critiques in ``critiques.py``.

A text contains a held-out combination (colour x class, relation x pair) only if its scene shows one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from random import Random

from unmask.data.world.scenes import Scene, SceneObject, relation, relation_of_groups
from unmask.data.world.vocabulary import BACKGROUNDS, CLASSES, COLOUR_NAMES, LEVELS

Box = tuple[float, float, float, float]
NUMBERS = ("one", "two", "three", "four", "five", "six")
SIDES = {"left of": "to the left of", "right of": "to the right of", "above": "above", "below": "below"}
_EXTREMES = {"left of": "leftmost", "right of": "rightmost", "above": "topmost", "below": "bottommost"}
_MARGIN = 0.12  # of the image side: minimum lead of the leftmost of several objects to be called so


# -- words ------------------------------------------------------------------------------------------------------------


def noun(obj: SceneObject) -> str:
    """``red apple``, or ``apple`` for the natural colour."""
    return f"{obj.colour} {obj.name}" if obj.colour else obj.name


def plural(obj: SceneObject) -> str:
    """``red apples``."""
    many = CLASSES[obj.name][0]
    return f"{obj.colour} {many}" if obj.colour else many


def article(words: str) -> str:
    """``an apple``, ``a red apple``."""
    return ("an " if words[0] in "aeiou" else "a ") + words


def number(count: int) -> str:
    """``zero``, ``one`` … ``six``; digits beyond."""
    return NUMBERS[count - 1] if 1 <= count <= len(NUMBERS) else "zero" if count == 0 else str(count)


def amount(count: int, one: str, many: str) -> str:
    """``a red apple`` or ``two red apples``."""
    return article(one) if count == 1 else f"{number(count)} {many}"


def position_word(obj: SceneObject) -> str:
    """Cell of the object's centre in a 3x3 grid: ``top left``, ``top``, …, ``centre``, …"""
    x, y = obj.centre
    across = "left" if x < 0.4 else "right" if x > 0.6 else ""
    down = "top" if y < 0.4 else "bottom" if y > 0.6 else ""
    return f"{down} {across}".strip() or "centre"


def at(position: str) -> str:
    """``at the top left``, ``in the centre``."""
    return "in the centre" if position == "centre" else f"at the {position}"


@cache
def _size_bounds(level: str) -> tuple[float, float]:
    """(upper limit of small, lower limit of big)."""
    sizes = LEVELS[level].sizes
    low, high = min(sizes), max(sizes)
    if LEVELS[level].lattice:
        return ((low + high) / 2, (low + high) / 2)
    return (low + 0.3 * (high - low), low + 0.7 * (high - low))


def size_word(obj: SceneObject, level: str) -> str:
    """``big``, ``small``, or "" in between."""
    small, big = _size_bounds(level)
    return "big" if obj.size > big else "small" if obj.size < small else ""


def _join(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


# -- captions ---------------------------------------------------------------------------------------------------------


def caption(scene: Scene, rng: Random) -> str:
    """A complete and true description without distractors; two thirds are short and similar to GenEval prompts."""
    long = rng.random() < 0.35
    objects = mentioned_objects(scene, 0.9, rng)
    style = (
        rng.choice((_placed, sized, _remarked, related_sized)) if long else related if rng.random() < 0.6 else listed
    )
    phrase = prefix(rng) + (style(objects, scene.level, rng) or listed(objects, scene.level, rng))
    return f"{phrase} {BACKGROUNDS[scene.background][0]}" if rng.random() < (0.55 if long else 0.32) else phrase


def prefix(rng: Random) -> str:
    r = rng.random()
    return "a photo of " if r < 0.4 else "a picture of " if r < 0.5 else ""


def mentioned_objects(scene: Scene, rate: float, rng: Random) -> list[SceneObject]:
    """The objects that a caption mentions, in random order; colours are kept with probability ``rate``, consistently for equal objects."""
    objects = [t for t in scene.objects if not t.distractor]
    rng.shuffle(objects)
    kept: dict[tuple[str, str], bool] = {}
    for t in objects:
        if t.colour and (t.name, t.colour) not in kept:
            kept[t.name, t.colour] = rng.random() < rate
    return [t if kept.get((t.name, t.colour), True) else replace(t, colour="") for t in objects]


def groups_of(objects: Sequence[SceneObject]) -> list[list[SceneObject]]:
    """The objects by class and colour, in the order of the first of each."""
    groups: dict[tuple[str, str], list[SceneObject]] = {}
    for t in objects:
        groups.setdefault((t.name, t.colour), []).append(t)
    return list(groups.values())


def common_size(group: Sequence[SceneObject], level: str) -> str:
    """The size word of a group; "" if its objects differ or have none."""
    words = {size_word(t, level) for t in group}
    return words.pop() if len(words) == 1 else ""


def group_phrase(group: Sequence[SceneObject], size: str = "") -> str:
    """``a red apple``, ``two big red apples``. ``size``: word for all of them, "" for none."""
    one, many = (f"{size} {words}".strip() for words in (noun(group[0]), plural(group[0])))
    return amount(len(group), one, many)


def listed(objects: Sequence[SceneObject], level: str, rng: Random) -> str:
    """``two red apples and a cat``."""
    return _join([group_phrase(group) for group in groups_of(objects)])


def related(objects: Sequence[SceneObject], level: str, rng: Random) -> str:
    """``two red apples left of a cat`` for two different groups of objects in a clear relation, else ""."""
    return _related(objects, rng, lambda group: group_phrase(group))


def related_sized(objects: Sequence[SceneObject], level: str, rng: Random) -> str:
    """``two big red apples left of a small cat``, as ``related``; sizes where all objects of a group share one."""
    return _related(objects, rng, lambda group: group_phrase(group, common_size(group, level)))


def relating(scene: Scene, rng: Random, rate: float = 0.9) -> str:
    """A caption with a spatial relation, in part with sizes or the background; "" if the scene has no clear one. ``rate``: as of
    ``mentioned_objects``.
    """
    style = related_sized if rng.random() < 0.2 else related
    text = style(mentioned_objects(scene, rate, rng), scene.level, rng)
    end = f" {BACKGROUNDS[scene.background][0]}" if rng.random() < 0.25 else ""
    return text and prefix(rng) + text + end


def _related(objects: Sequence[SceneObject], rng: Random, phrase: Callable[[Sequence[SceneObject]], str]) -> str:
    groups = groups_of(objects)
    if len(groups) != 2 or not (found := relation_of_groups(*groups)):
        return ""
    side = found if rng.random() < 0.8 else SIDES[found]
    return f"{phrase(groups[0])} {side} {phrase(groups[1])}"


def _placed(objects: Sequence[SceneObject], level: str, rng: Random) -> str:
    """``a cat at the top left and a big red apple at the bottom``; of three or more objects only the first two get a position."""
    if len({noun(t) for t in objects}) < len(objects):
        return _placed_alike(objects) if len({noun(t) for t in objects}) == 1 else ""
    placed = len(objects) if len(objects) <= 2 else 2
    sized = rng.random() < 0.3
    phrases = []
    for i, t in enumerate(objects):
        words = f"{size_word(t, level)} {noun(t)}".strip() if sized else noun(t)
        phrases.append(f"{article(words)} {at(position_word(t))}" if i < placed else article(words))
    # Objects without a position come first; after a position they would seem to share it.
    return _join(phrases[placed:] + phrases[:placed])


def _placed_alike(objects: Sequence[SceneObject]) -> str:
    """``two dogs, one at the top and one at the left``; "" for more than two."""
    if len(objects) != 2:
        return ""
    first, second = (at(position_word(t)) for t in objects)
    return f"two {plural(objects[0])}, one {first} and one {second}"


def sized(objects: Sequence[SceneObject], level: str, rng: Random) -> str:
    """``two big dogs and a small red apple``."""
    groups: dict[tuple[str, str, str], list[SceneObject]] = {}
    for t in objects:
        groups.setdefault((size_word(t, level), t.name, t.colour), []).append(t)
    return _join(
        [amount(len(g), f"{s} {noun(g[0])}".strip(), f"{s} {plural(g[0])}".strip()) for (s, *_), g in groups.items()]
    )


def _remarked(objects: Sequence[SceneObject], level: str, rng: Random) -> str:
    """``a dog, a cat and a red apple with the dog left of the cat``; "" without a clear relation."""
    single = [t for t in objects if sum(o.name == t.name for o in objects) == 1]
    if len(single) < 2 or not (found := relation(single[0], single[1])):
        return ""
    return f"{listed(objects, level, rng)} with the {single[0].name} {found} the {single[1].name}"


# -- layouts and referring expressions --------------------------------------------------------------------------------


def layout(scene: Scene, rng: Random, mentions: str = "") -> tuple[tuple[str, Box], ...]:
    """(phrase, box) of every visible object, in the order of mention in ``mentions``, then the others; equal phrases from top to bottom
    and left to right. One layout in five includes sizes.
    """
    sized = rng.random() < 0.2
    ordered = sorted(scene.objects, key=lambda t: (_named_at(t, mentions), t.centre[1], t.centre[0]))
    return tuple((f"{size_word(t, scene.level)} {noun(t)}".strip() if sized else noun(t), t.box) for t in ordered)


# Not after a colour: "a purple dog" does not mention a dog of natural colour.
_BARE = "".join(rf"(?<!\b{colour} )" for colour in COLOUR_NAMES)


def _named_at(obj: SceneObject, mentions: str) -> int:
    """Position of the first mention of an object in a text, with or without its colour; the text's length if there is none."""
    for words in (noun(obj), plural(obj), obj.name, CLASSES[obj.name][0]):
        if found := re.search(rf"{_BARE}\b{words}\b", mentions):
            return found.start()
    return len(mentions)


def names(objects: Sequence[SceneObject], index: int) -> list[str]:
    """Class, and colour with class, if they identify this object uniquely; shortest first, without ``the``.

    If another object of the class has its natural colour, colour does not identify: the natural colour may be the same.
    """
    obj = objects[index]
    rivals = [t for i, t in enumerate(objects) if i != index and t.name == obj.name]
    if not rivals:
        return [obj.name, noun(obj)] if obj.colour else [obj.name]
    if obj.colour and all(t.colour and t.colour != obj.colour for t in rivals):
        return [noun(obj)]
    return []


def referring(scene: Scene, rng: Random) -> list[tuple[str, int]]:
    """A referring expression for every object that has an unambiguous one, with its index in ``scene.objects``."""
    found = []
    for index in range(len(scene.objects)):
        first, second = (_by_name, _by_relation) if rng.random() < 0.75 else (_by_relation, _by_name)
        for way in (first, by_extreme, second):
            if phrase := way(scene, index, rng):
                found.append((f"the {phrase}", index))
                break
    return found


def _by_name(scene: Scene, index: int, rng: Random) -> str:
    phrases = names(scene.objects, index)
    return "" if not phrases else phrases[0] if rng.random() < 0.6 else phrases[-1]


def _by_relation(scene: Scene, index: int, rng: Random) -> str:
    """``red apple left of the cat``: no other object of the class has this relation to the cat, or an unclear one."""
    objects = scene.objects
    obj = objects[index]
    anchors = [i for i, t in enumerate(objects) if t.name != obj.name and names(objects, i)]
    if not anchors:
        return ""
    anchor = rng.choice(anchors)
    found = relation(obj, objects[anchor])
    rivals = [t for i, t in enumerate(objects) if i != index and t.name == obj.name]
    if not found or any(relation(t, objects[anchor]) in ("", found) for t in rivals):
        return ""
    return f"{noun(obj)} {found} the {names(objects, anchor)[0]}"


def by_extreme(scene: Scene, index: int, rng: Random) -> str:
    """``big dog``, ``leftmost dog`` or ``dog at the top left`` among several objects of a class, else ""."""
    obj = scene.objects[index]
    rivals = [t for i, t in enumerate(scene.objects) if i != index and t.name == obj.name]
    if not rivals:
        return ""
    phrases = []
    if (size := size_word(obj, scene.level)) and not any(size_word(t, scene.level) in (size, "") for t in rivals):
        phrases.append(f"{size} {obj.name}")
    (x, y), centres = obj.centre, [t.centre for t in rivals]
    leads = {
        "left of": min(cx - x for cx, _ in centres),
        "right of": min(x - cx for cx, _ in centres),
        "above": min(cy - y for _, cy in centres),
        "below": min(y - cy for _, cy in centres),
    }
    phrases += [f"{_EXTREMES[side]} {obj.name}" for side, lead in leads.items() if lead > _MARGIN]
    if (place := position_word(obj)) not in {position_word(t) for t in rivals}:
        phrases.append(f"{obj.name} {at(place)}")
    return rng.choice(phrases) if phrases else ""
