"""Captions that match a picture or do not, and the critique for each. Pure functions of their arguments and a ``Random``.

Public ideas: ``positive_pair``, ``negative_pair``, ``sample_pair`` return (caption, critique) for a picture; ``make_negatives`` returns a
caption and pictures that differ from it in one property each, the typical errors of image models. Critiques of edits are in
``edit_critiques.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random

from unmask.data.world.language import (
    article,
    caption,
    common_size,
    groups_of,
    listed,
    mentioned_objects,
    noun,
    number,
    plural,
    prefix,
    related,
    related_sized,
    relating,
    sized,
)
from unmask.data.world.questions import absent
from unmask.data.world.scenes import Scene, SceneObject, place, relation_of_groups, shows_held_out, split_of
from unmask.data.world.vocabulary import BACKGROUNDS, CLASSES, LEVELS


def positive_pair(scene: Scene, rng: Random) -> tuple[str, str]:
    """A correct caption and an approving critique."""
    return caption(scene, rng), approval(rng)


def approval(rng: Random) -> str:
    return rng.choice(("the picture is correct", "everything is correct", "this is correct"))


def negative_pair(scene: Scene, rng: Random) -> tuple[str, str]:
    """A caption that is wrong in one property, and the critique that names it, with the caption as the target."""
    for _ in range(4):
        if found := rng.choice(_WAYS)(scene, rng):
            return found
    return _wrong_background(scene, rng)


def sample_pair(scene: Scene, rng: Random, related: float = 0.0) -> tuple[str, str]:
    """A caption and its critique, correct with probability 0.5. ``related``: probability of a caption with a spatial relation."""
    right = rng.random() < 0.5
    if related and rng.random() < related:
        if found := (_right_relation if right else _wrong_relation)(scene, rng):
            return found
    return (positive_pair if right else negative_pair)(scene, rng)


def _right_relation(scene: Scene, rng: Random) -> tuple[str, str] | None:
    text = relating(scene, rng, 1.0)
    return (text, approval(rng)) if text else None


def _complete_caption(
    scene: Scene, objects: Sequence[SceneObject], rng: Random, style: Callable[..., str] = listed
) -> str:
    """A caption with all colours for a scene of these objects; "" if that shows a held-out combination.

    A list may become one with sizes, or the relation of two groups.
    """
    described = replace(scene, objects=tuple(objects))
    if shows_held_out(described) and not shows_held_out(scene):
        return ""
    mentioned = mentioned_objects(described, 1.0, rng)
    if style is listed:
        drawn = rng.random()
        style = sized if drawn < 0.15 else related if drawn < 0.35 else related_sized if drawn < 0.45 else listed
        text = style(mentioned, scene.level, rng) or listed(mentioned, scene.level, rng)
    else:
        text = style(mentioned, scene.level, rng)
    end = f" {BACKGROUNDS[scene.background][0]}" if rng.random() < 0.3 else ""
    return text and prefix(rng) + text + end


def _alike(scene: Scene, rng: Random) -> tuple[SceneObject, list[SceneObject]]:
    """A random object that is not a distractor, and all objects of its class."""
    obj = rng.choice([t for t in scene.objects if not t.distractor])
    return obj, [t for t in scene.objects if t.name == obj.name]


def _wrong_colour(scene: Scene, rng: Random) -> tuple[str, str] | None:
    obj, alike = _alike(scene, rng)
    colour = rng.choice(LEVELS[scene.level].colours)
    if not obj.colour or colour == obj.colour or any(t.colour != obj.colour for t in alike):
        return None
    text = _complete_caption(scene, [replace(t, colour=colour) if t in alike else t for t in scene.objects], rng)
    return (text, colour_critique(obj.name, len(alike), colour, obj.colour)) if text else None


def _wrong_class(scene: Scene, rng: Random) -> tuple[str, str] | None:
    obj, alike = _alike(scene, rng)
    name = absent(scene, rng)
    text = _complete_caption(scene, [replace(t, name=name) if t in alike else t for t in scene.objects], rng)
    if not text or any(t.colour != obj.colour or t.distractor for t in alike):
        return None
    return text, _class_critique(name, obj.name, len(alike), rng)


def _missing(scene: Scene, rng: Random) -> tuple[str, str] | None:
    if len(scene.objects) > 3:
        return None
    obj = replace(rng.choice(scene.objects), name=absent(scene, rng), distractor=False)
    text = _complete_caption(scene, (*scene.objects, obj), rng)
    return (text, missing_critique(obj.name, rng)) if text else None


def _wrong_count(scene: Scene, rng: Random) -> tuple[str, str] | None:
    obj, alike = _alike(scene, rng)
    count = rng.choice([n for n in range(1, 5) if n != len(alike)])
    if any(t.colour != obj.colour or t.distractor for t in alike):
        return None
    text = _complete_caption(scene, [t for t in scene.objects if t not in alike] + [obj] * count, rng)
    return (text, count_critique(replace(obj, colour=""), count, len(alike))) if text else None


def _wrong_relation(scene: Scene, rng: Random) -> tuple[str, str] | None:
    groups = groups_of([t for t in scene.objects if not t.distractor])
    if len(groups) != 2 or groups[0][0].name == groups[1][0].name:
        return None
    rng.shuffle(groups)
    other = _rearranged(groups, rng)
    style = related_sized if rng.random() < 0.2 else related
    text = _complete_caption(scene, [*other[0], *other[1]], rng, style)
    words = those(groups[0]), relation_of_groups(*other), those(groups[1])
    return (text, relation_critique(*words)) if text else None


def _rearranged(groups: Sequence[Sequence[SceneObject]], rng: Random) -> list[list[SceneObject]]:
    """The same groups in another relation: mirrored (left of becomes right of), transposed (left of becomes above) or both.

    Of two objects, mirroring exchanges the positions.
    """
    mirrored, transposed = rng.choice(((True, False), (False, True), (True, True)))
    made = [list(group) for group in groups]
    if mirrored and sum(map(len, made)) == 2:
        first, second = _exchange(made[0][0], made[1][0])
        made = [[first], [second]]
    elif mirrored:
        made = [[replace(t, x=1 - t.x - t.size, y=1 - t.y - t.size) for t in group] for group in made]
    return [[replace(t, x=t.y, y=t.x) for t in group] for group in made] if transposed else made


def _wrong_size(scene: Scene, rng: Random) -> tuple[str, str] | None:
    obj, alike = _alike(scene, rng)
    shown = common_size(alike, scene.level)
    if not shown or any(t.colour != obj.colour or t.distractor for t in alike):
        return None
    sizes = LEVELS[scene.level].sizes
    size = min(sizes) if shown == "big" else max(sizes)
    others = [t for t in scene.objects if t not in alike]
    changed = [replace(t, x=t.centre[0] - size / 2, y=t.centre[1] - size / 2, size=size) for t in alike]
    text = _complete_caption(scene, [*others, *changed], rng, related_sized if rng.random() < 0.4 else sized)
    return (text, size_critique(alike, bigger=shown == "small")) if text else None


_WAYS = (_wrong_colour, _wrong_class, _wrong_count, _wrong_relation, _missing, _wrong_size)


def _exchange(a: SceneObject, b: SceneObject) -> tuple[SceneObject, SceneObject]:
    """Exchange the positions: left of becomes right of."""
    return replace(a, x=b.x, y=b.y, size=b.size), replace(b, x=a.x, y=a.y, size=a.size)


def _wrong_background(scene: Scene, rng: Random) -> tuple[str, str]:
    expected = rng.choice([b for b in LEVELS[scene.level].backgrounds if b != scene.background])
    text = prefix(rng) + listed(mentioned_objects(scene, 1.0, rng), scene.level, rng)
    return f"{text} {BACKGROUNDS[expected][0]}", background_critique(expected, scene.background)


# -- texts of critiques ------------------------------------------------------------------------------------------


def colour_critique(name: str, count: int, expected: str, shown: str) -> str:
    return f"the {name if count == 1 else CLASSES[name][0]} should be {expected}, not {shown}"


def _class_critique(expected: str, shown: str, count: int, rng: Random) -> str:
    if count > 1:
        return f"there should be {CLASSES[expected][0]}, not {CLASSES[shown][0]}"
    return rng.choice((f"there is no {expected}", f"there should be {article(expected)}, not {article(shown)}"))


def missing_critique(words: str, rng: Random) -> str:
    return rng.choice((f"there is no {words}", f"{article(words)} is missing"))


def count_critique(obj: SceneObject, expected: int, shown: int) -> str:
    many = f"one {noun(obj)}" if expected == 1 else f"{number(expected)} {plural(obj)}"
    return f"there should be {many}, not {number(shown)}"


def those(group: Sequence[SceneObject]) -> str:
    """The class of a group in singular or plural, as after "the"."""
    return group[0].name if len(group) == 1 else CLASSES[group[0].name][0]


def size_critique(group: Sequence[SceneObject], *, bigger: bool) -> str:
    return f"the {those(group)} should be {'bigger' if bigger else 'smaller'}"


def relation_critique(first: str, how: str, second: str) -> str:
    return f"the {first} should be {how} the {second}"


def background_critique(expected: str, shown: str) -> str:
    return f"the background should be {expected}, not {shown}"


# -- negatives of one caption ------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Negative:
    """A scene that does not match the caption, and the critique of it."""

    scene: Scene
    critique: str


def make_negatives(scene: Scene, rng: Random, most: int = 3) -> tuple[str, list[Negative]]:
    """A complete caption of a scene and up to ``most`` different negatives, each wrong in one property. All are of the scene's split."""
    mentioned = [t for t in scene.objects if not t.distractor]
    text = related(mentioned, scene.level, rng) if rng.random() < 0.5 else ""
    ways = [_recoloured, _exchanged, _fewer, _more, *([_swapped] * 2 if text else ())]
    text = prefix(rng) + (text or listed(rng.sample(mentioned, len(mentioned)), scene.level, rng))
    if rng.random() < 0.3:
        text = f"{text} {BACKGROUNDS[scene.background][0]}"
        ways.append(_other_background)
    found: dict[str, Negative] = {}
    for _ in range(8 * most):
        made = rng.choice(ways)(scene, rng)
        if made and made.critique not in found and split_of(scene) in ("test", split_of(made.scene)):
            found[made.critique] = made
        if len(found) == most:
            break
    return text, list(found.values())


def changed(scene: Scene, old: Sequence[SceneObject], new: Sequence[SceneObject]) -> Scene:
    return replace(scene, objects=(*(t for t in scene.objects if t not in old), *new))


def _one_colour(scene: Scene, rng: Random) -> tuple[SceneObject, list[SceneObject]] | None:
    """A random object and all objects of its class, if they have the same colour."""
    obj, alike = _alike(scene, rng)
    return None if any(t.colour != obj.colour or t.distractor for t in alike) else (obj, alike)


def _recoloured(scene: Scene, rng: Random) -> Negative | None:
    found, colour = _one_colour(scene, rng), rng.choice(LEVELS[scene.level].colours)
    if not found or found[0].colour in ("", colour):
        return None
    obj, alike = found
    wrong = changed(scene, alike, [replace(t, colour=colour) for t in alike])
    return Negative(scene=wrong, critique=colour_critique(obj.name, len(alike), obj.colour, colour))


def _exchanged(scene: Scene, rng: Random) -> Negative | None:
    found, name = _one_colour(scene, rng), absent(scene, rng)
    if not found:
        return None
    obj, alike = found
    wrong = changed(scene, alike, [replace(t, name=name) for t in alike])
    return Negative(scene=wrong, critique=_class_critique(obj.name, name, len(alike), rng))


def _fewer(scene: Scene, rng: Random) -> Negative | None:
    found = _one_colour(scene, rng)
    if not found or len(scene.objects) < 2:
        return None
    obj, alike = found
    wrong, left = changed(scene, [obj], ()), len(alike) - 1
    words = count_critique(replace(obj, colour=""), left + 1, left) if left else missing_critique(obj.name, rng)
    return Negative(scene=wrong, critique=words)


def _more(scene: Scene, rng: Random) -> Negative | None:
    found, level = _one_colour(scene, rng), LEVELS[scene.level]
    spots = place(level, 1, rng, tuple((t.x, t.y, t.size) for t in scene.objects))
    if not found or not spots or len(scene.objects) >= level.most:
        return None
    (x, y, size), (obj, alike) = spots[0], found
    wrong = changed(scene, (), [replace(obj, x=x, y=y, size=size)])
    return Negative(scene=wrong, critique=count_critique(replace(obj, colour=""), len(alike), len(alike) + 1))


def _swapped(scene: Scene, rng: Random) -> Negative | None:
    a, b = rng.sample([t for t in scene.objects if not t.distractor], 2)
    if a.name == b.name:
        return None
    wrong = changed(scene, [a, b], _exchange(a, b))
    first, second = ([t for t in scene.objects if noun(t) == noun(one)] for one in (a, b))
    words = those(first), relation_of_groups(first, second), those(second)
    return Negative(scene=wrong, critique=relation_critique(*words)) if words[1] else None


def _other_background(scene: Scene, rng: Random) -> Negative | None:
    other = rng.choice([b for b in LEVELS[scene.level].backgrounds if b != scene.background])
    wrong = replace(scene, background=other)
    return Negative(scene=wrong, critique=background_critique(scene.background, other))
