"""Pictures after an edit, and the critique for each. Pure functions of their arguments and a ``Random``.

Public ideas: ``edited_pairs`` returns a picture after an edit and (instruction, critique) pairs for it; ``edit_critique`` criticises a
given picture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from random import Random

from unmask.data.world.critiques import (
    approval,
    background_critique,
    changed,
    colour_critique,
    count_critique,
    missing_critique,
)
from unmask.data.world.edits import SceneEdit, edit
from unmask.data.world.language import article, at, noun, position_word
from unmask.data.world.questions import absent
from unmask.data.world.scenes import Scene, SceneObject, only_in, place, split_of
from unmask.data.world.vocabulary import LEVELS

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
        return changed(made.target, [obj], [replace(obj, name=absent(made.target, rng))])
    if rng.random() < 0.5:
        return changed(made.target, [obj], [replace(obj, colour=rng.choice(level.colours))])
    spots = place(level, 1, rng, tuple((t.x, t.y, t.size) for t in rest))
    return changed(made.target, [obj], [replace(obj, x=x, y=y, size=size) for x, y, size in spots])


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
        found.append((made.kind != "background", background_critique(expected.background, shown.background)))
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
