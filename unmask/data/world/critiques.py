"""Captions that match a picture or do not, and the critique for each. Pure functions of their arguments and a ``Random``.

Public ideas: ``positive_pair``, ``negative_pair``, ``sample_pair`` return (caption, critique) for a picture; ``make_negatives`` returns a
caption and pictures that differ from it in one property each, the typical errors of image models; ``edited_pairs`` returns a picture after
an edit and (instruction, critique) pairs for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random

from unmask.data.world.edits import SceneEdit, edit
from unmask.data.world.language import (
    article,
    at,
    caption,
    listed,
    mentioned_objects,
    noun,
    number,
    plural,
    position_word,
    prefix,
    related,
    sized,
)
from unmask.data.world.questions import absent
from unmask.data.world.scenes import Scene, SceneObject, only_in, place, relation, shows_held_out, split_of
from unmask.data.world.vocabulary import BACKGROUNDS, CLASSES, LEVELS


def positive_pair(scene: Scene, rng: Random) -> tuple[str, str]:
    """A correct caption and an approving critique."""
    return caption(scene, rng), approval(rng)


def approval(rng: Random) -> str:
    return rng.choice(("the picture is correct", "everything is correct", "this is correct"))


def negative_pair(scene: Scene, rng: Random) -> tuple[str, str]:
    """A caption that is wrong in one property, and the critique that names it, with the caption as the target."""
    for _ in range(4):
        if found := rng.choice((_wrong_colour, _wrong_class, _wrong_count, _wrong_relation, _missing))(scene, rng):
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
    text = related(mentioned_objects(scene, 1.0, rng), scene.level, rng)
    return (prefix(rng) + text, approval(rng)) if text else None


def _complete_caption(
    scene: Scene, objects: Sequence[SceneObject], rng: Random, style: Callable[..., str] = listed
) -> str:
    """A caption with all colours for a scene of these objects; "" if that shows a held-out combination."""
    described = replace(scene, objects=tuple(objects))
    if shows_held_out(described) and not shows_held_out(scene):
        return ""
    style = sized if style is listed and rng.random() < 0.15 else style
    text = style(mentioned_objects(described, 1.0, rng), scene.level, rng)
    end = f" {BACKGROUNDS[scene.background][0]}" if rng.random() < 0.3 else ""
    return text and prefix(rng) + text + end


def _alike(scene: Scene, rng: Random) -> tuple[SceneObject, list[SceneObject]]:
    """A random object that is no distractor, and all objects of its class."""
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
    if len(scene.objects) != 2 or scene.objects[0].name == scene.objects[1].name:
        return None
    a, b = rng.sample(scene.objects, 2)
    other = rng.choice((_exchange, _transpose, lambda a, b: _transpose(*_exchange(a, b))))(a, b)
    text = _complete_caption(scene, other, rng, related)
    return (text, relation_critique(a.name, relation(*other), b.name)) if text else None


def _exchange(a: SceneObject, b: SceneObject) -> tuple[SceneObject, SceneObject]:
    """Exchange the positions: left of becomes right of."""
    return replace(a, x=b.x, y=b.y, size=b.size), replace(b, x=a.x, y=a.y, size=a.size)


def _transpose(a: SceneObject, b: SceneObject) -> tuple[SceneObject, SceneObject]:
    """Transpose the positions: left of becomes above."""
    return replace(a, x=a.y, y=a.x), replace(b, x=b.y, y=b.x)


def _wrong_background(scene: Scene, rng: Random) -> tuple[str, str]:
    expected = rng.choice([b for b in LEVELS[scene.level].backgrounds if b != scene.background])
    text = prefix(rng) + listed(mentioned_objects(scene, 1.0, rng), scene.level, rng)
    return f"{text} {BACKGROUNDS[expected][0]}", _background_critique(expected, scene.background)


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


def relation_critique(first: str, how: str, second: str) -> str:
    return f"the {first} should be {how} the {second}"


def _background_critique(expected: str, shown: str) -> str:
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


def _changed(scene: Scene, old: Sequence[SceneObject], new: Sequence[SceneObject]) -> Scene:
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
    wrong = _changed(scene, alike, [replace(t, colour=colour) for t in alike])
    return Negative(scene=wrong, critique=colour_critique(obj.name, len(alike), obj.colour, colour))


def _exchanged(scene: Scene, rng: Random) -> Negative | None:
    found, name = _one_colour(scene, rng), absent(scene, rng)
    if not found:
        return None
    obj, alike = found
    wrong = _changed(scene, alike, [replace(t, name=name) for t in alike])
    return Negative(scene=wrong, critique=_class_critique(obj.name, name, len(alike), rng))


def _fewer(scene: Scene, rng: Random) -> Negative | None:
    found = _one_colour(scene, rng)
    if not found or len(scene.objects) < 2:
        return None
    obj, alike = found
    wrong, left = _changed(scene, [obj], ()), len(alike) - 1
    words = count_critique(replace(obj, colour=""), left + 1, left) if left else missing_critique(obj.name, rng)
    return Negative(scene=wrong, critique=words)


def _more(scene: Scene, rng: Random) -> Negative | None:
    found, level = _one_colour(scene, rng), LEVELS[scene.level]
    spots = place(level, 1, rng, tuple((t.x, t.y, t.size) for t in scene.objects))
    if not found or not spots or len(scene.objects) >= level.most:
        return None
    (x, y, size), (obj, alike) = spots[0], found
    wrong = _changed(scene, (), [replace(obj, x=x, y=y, size=size)])
    return Negative(scene=wrong, critique=count_critique(replace(obj, colour=""), len(alike), len(alike) + 1))


def _swapped(scene: Scene, rng: Random) -> Negative | None:
    a, b = rng.sample([t for t in scene.objects if not t.distractor], 2)
    if a.name == b.name:
        return None
    wrong = _changed(scene, [a, b], _exchange(a, b))
    return Negative(scene=wrong, critique=relation_critique(a.name, relation(a, b), b.name))


def _other_background(scene: Scene, rng: Random) -> Negative | None:
    other = rng.choice([b for b in LEVELS[scene.level].backgrounds if b != scene.background])
    wrong = replace(scene, background=other)
    return Negative(scene=wrong, critique=_background_critique(scene.background, other))


# -- images after an edit ---------------------------------------------------------------------------------------------

UNCHANGED = "nothing has changed"
_SOMEWHERE = ("add", "move")  # any position that fits the instruction is correct


def edited_pairs(made: SceneEdit, rng: Random) -> tuple[Scene, list[tuple[str, str]]]:
    """A scene after an edit, and (instruction, critique) pairs for it; half of the instructions are met.

    Otherwise nothing changed, the object is wrong or another one was edited, something else changed too, or another edit was
    requested. All scenes are of the split of the source.
    """
    split = split_of(made.source)
    if rng.random() < 0.6:
        pairs = [(made.instruction, approval(rng))]
        if rng.random() < 0.4:
            other = edit(made.source, split, rng, made.kind if rng.random() < 0.5 else None)
            if other and (words := edit_critique(other, made.target, rng)):
                pairs.append((other.instruction, words))
        return made.target, pairs
    for way in rng.choices((_unchanged, _near_miss, _more_than_asked), (2, 5, 3), k=4):
        shown = way(made, rng)
        if shown and split_of(shown) == split and (words := edit_critique(made, shown, rng)):
            return shown, [(made.instruction, words)]
    return made.source, [(made.instruction, UNCHANGED)]


def _unchanged(made: SceneEdit, rng: Random) -> Scene:
    return made.source


def _more_than_asked(made: SceneEdit, rng: Random) -> Scene | None:
    more = edit(made.target, split_of(made.target), rng)
    return more.target if more else None


def _near_miss(made: SceneEdit, rng: Random) -> Scene | None:
    """The same kind of edit with another object or result; or the new object in another colour, class or position."""
    added, level = only_in(made.target, made.source), LEVELS[made.source.level]
    if not added or rng.random() < 0.4:
        other = edit(made.source, split_of(made.source), rng, made.kind)
        return other.target if other else None
    obj, rest = added[0], [t for t in made.target.objects if t not in added]
    if rng.random() < 0.3:
        return _changed(made.target, [obj], [replace(obj, name=absent(made.target, rng))])
    if rng.random() < 0.5:
        return _changed(made.target, [obj], [replace(obj, colour=rng.choice(level.colours))])
    spots = place(level, 1, rng, tuple((t.x, t.y, t.size) for t in rest))
    return _changed(made.target, [obj], [replace(obj, x=x, y=y, size=size) for x, y, size in spots])


def edit_critique(made: SceneEdit, shown: Scene, rng: Random) -> str:
    """Critique of a scene after an edit: first errors of the requested change, then of the rest; "" if there is no error."""
    if shown.signature == made.source.signature:
        return UNCHANGED
    expected = made.target
    added, removed = only_in(expected, made.source), only_in(made.source, expected)
    extra, found = only_in(shown, expected), []
    for obj in only_in(expected, shown):
        requested = obj in added
        other = _counterpart(obj, extra, made if requested else None)
        if other:
            extra.remove(other)
        words = (
            _replacement_critique(obj, other, made if requested else None, shown)
            if other
            else _number_critique(obj, expected, shown, rng)
        )
        found += [(not requested, words)] if words else []
    found += [(obj not in removed, _number_critique(obj, expected, shown, rng)) for obj in extra]
    if shown.background != expected.background:
        found.append((made.kind != "background", _background_critique(expected.background, shown.background)))
    return min(found, key=lambda f: f[0])[1] if found else ""


def _fits(obj: SceneObject, other: SceneObject, made: SceneEdit | None) -> bool:
    """Whether ``other`` is an equally correct result for the ``obj`` that ``made`` adds."""
    return (
        made is not None
        and made.kind in _SOMEWHERE
        and noun(obj) == noun(other)
        and position_word(obj) == position_word(other)
        and (made.kind == "add" or obj.size == other.size)
    )


def _counterpart(obj: SceneObject, extra: Sequence[SceneObject], made: SceneEdit | None) -> SceneObject | None:
    """The object shown in place of another one: equally correct, at the same position, of equal class and colour, or of equal class."""
    tests: tuple[Callable[[SceneObject], bool], ...] = (
        lambda t: _fits(obj, t, made),
        lambda t: t.box == obj.box,
        lambda t: noun(t) == noun(obj),
        lambda t: t.name == obj.name,
    )
    return next((t for test in tests for t in extra if test(t)), None)


def _replacement_critique(obj: SceneObject, other: SceneObject, made: SceneEdit | None, shown: Scene) -> str:
    """Critique of ``other`` in place of ``obj``; "" if it is correct."""
    if _fits(obj, other, made):
        return ""
    if noun(obj) != noun(other):
        alone = sum(t.name == obj.name for t in shown.objects) == 1
        if obj.name == other.name and obj.colour and other.colour and alone:
            return colour_critique(obj.name, 1, obj.colour, other.colour)
        return f"there should be {article(noun(obj))}, not {article(noun(other))}"
    if obj.size != other.size and (made is None or made.kind != "add"):
        return f"the {noun(obj)} should be {'bigger' if obj.size > other.size else 'smaller'}"
    if (where := position_word(obj)) != position_word(other):
        return f"the {noun(obj)} should be {at(where)}"
    return f"the {noun(obj)} should not move"


def _number_critique(obj: SceneObject, expected: Scene, shown: Scene, rng: Random) -> str:
    """Critique of too few or too many objects; an object of natural colour is counted with all of its class."""
    there, here = (
        sum(t.name == obj.name and obj.colour in ("", t.colour) for t in scene.objects) for scene in (expected, shown)
    )
    if not here:
        return missing_critique(noun(obj), rng)
    if not there:
        return f"there should be no {noun(obj)}"
    return count_critique(obj, there, here)
