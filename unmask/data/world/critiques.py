"""Captions that a picture meets or fails, and the critique that says so. A pure function each of its arguments and its ``Random``.

Public ideas: ``praise``, ``mismatch`` and ``claim`` find a caption for a picture; ``spoil`` finds wrong pictures for one caption, each
wrong in one point, as a model that draws makes them; ``judged`` finds what may be shown after an edit, and what is to be said of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random

from unmask.data.world.edits import Edit, edit
from unmask.data.world.language import (
    absent,
    article,
    at,
    caption,
    listed,
    noun,
    number,
    plural,
    position_word,
    prefix,
    related,
    sized,
    told,
)
from unmask.data.world.scenes import Scene, Thing, only_in, place, relation, shows_held_out, split_of
from unmask.data.world.vocabulary import BACKGROUNDS, CLASSES, LEVELS


def praise(scene: Scene, rng: Random) -> tuple[str, str]:
    """A right caption, and the critique that finds nothing wrong."""
    return caption(scene, rng), approval(rng)


def approval(rng: Random) -> str:
    return rng.choice(("the picture is correct", "everything is correct", "this is correct"))


def mismatch(scene: Scene, rng: Random) -> tuple[str, str]:
    """A caption the scene fails in one point, and the critique that names it, the caption taken as what was wanted."""
    for _ in range(4):
        if found := rng.choice((_wrong_colour, _wrong_class, _wrong_count, _wrong_relation, _missing))(scene, rng):
            return found
    return _wrong_background(scene, rng)


def claim(scene: Scene, rng: Random, placed: float = 0.0) -> tuple[str, str]:
    """A caption, right or wrong as often, and its critique. A share ``placed`` says how two things lie, where two do."""
    right = rng.random() < 0.5
    if placed and rng.random() < placed:
        if found := (_right_relation if right else _wrong_relation)(scene, rng):
            return found
    return (praise if right else mismatch)(scene, rng)


def _right_relation(scene: Scene, rng: Random) -> tuple[str, str] | None:
    said = related(told(scene, 1.0, rng), scene.level, rng)
    return (prefix(rng) + said, approval(rng)) if said else None


def _wanted(scene: Scene, things: Sequence[Thing], rng: Random, style: Callable[..., str] = listed) -> str:
    """A caption, every colour said, of a scene of these things; "" where it would show a held-out combination."""
    wanted = replace(scene, things=tuple(things))
    if shows_held_out(wanted) and not shows_held_out(scene):
        return ""
    style = sized if style is listed and rng.random() < 0.15 else style
    said = style(told(wanted, 1.0, rng), scene.level, rng)
    end = f" {BACKGROUNDS[scene.background][0]}" if rng.random() < 0.3 else ""
    return said and prefix(rng) + said + end


def _alike(scene: Scene, rng: Random) -> tuple[Thing, list[Thing]]:
    """A thing that captions speak of, and all of its class."""
    thing = rng.choice([t for t in scene.things if not t.distractor])
    return thing, [t for t in scene.things if t.name == thing.name]


def _wrong_colour(scene: Scene, rng: Random) -> tuple[str, str] | None:
    thing, alike = _alike(scene, rng)
    colour = rng.choice(LEVELS[scene.level].colours)
    if not thing.colour or colour == thing.colour or any(t.colour != thing.colour for t in alike):
        return None
    said = _wanted(scene, [replace(t, colour=colour) if t in alike else t for t in scene.things], rng)
    return (said, in_colour(thing.name, len(alike), colour, thing.colour)) if said else None


def _wrong_class(scene: Scene, rng: Random) -> tuple[str, str] | None:
    thing, alike = _alike(scene, rng)
    name = absent(scene, rng)
    said = _wanted(scene, [replace(t, name=name) if t in alike else t for t in scene.things], rng)
    if not said or any(t.colour != thing.colour or t.distractor for t in alike):
        return None
    return said, _of_class(name, thing.name, len(alike), rng)


def _missing(scene: Scene, rng: Random) -> tuple[str, str] | None:
    if len(scene.things) > 3:
        return None
    thing = replace(rng.choice(scene.things), name=absent(scene, rng), distractor=False)
    said = _wanted(scene, (*scene.things, thing), rng)
    return (said, not_there(thing.name, rng)) if said else None


def _wrong_count(scene: Scene, rng: Random) -> tuple[str, str] | None:
    thing, alike = _alike(scene, rng)
    count = rng.choice([n for n in range(1, 5) if n != len(alike)])
    if any(t.colour != thing.colour or t.distractor for t in alike):
        return None
    said = _wanted(scene, [t for t in scene.things if t not in alike] + [thing] * count, rng)
    return (said, as_many(replace(thing, colour=""), count, len(alike))) if said else None


def _wrong_relation(scene: Scene, rng: Random) -> tuple[str, str] | None:
    if len(scene.things) != 2 or scene.things[0].name == scene.things[1].name:
        return None
    a, b = rng.sample(scene.things, 2)
    other = rng.choice((_exchange, _transpose, lambda a, b: _transpose(*_exchange(a, b))))(a, b)
    said = _wanted(scene, other, rng, related)
    return (said, lying(a.name, relation(*other), b.name)) if said else None


def _exchange(a: Thing, b: Thing) -> tuple[Thing, Thing]:
    """Each in the other's place: left of becomes right of."""
    return replace(a, x=b.x, y=b.y, size=b.size), replace(b, x=a.x, y=a.y, size=a.size)


def _transpose(a: Thing, b: Thing) -> tuple[Thing, Thing]:
    """Mirrored at the diagonal: left of becomes above."""
    return replace(a, x=a.y, y=a.x), replace(b, x=b.y, y=b.x)


def _wrong_background(scene: Scene, rng: Random) -> tuple[str, str]:
    wanted = rng.choice([b for b in LEVELS[scene.level].backgrounds if b != scene.background])
    said = prefix(rng) + listed(told(scene, 1.0, rng), scene.level, rng)
    return f"{said} {BACKGROUNDS[wanted][0]}", _before(wanted, scene.background)


# -- what is wrong, in words ------------------------------------------------------------------------------------------


def in_colour(name: str, count: int, wanted: str, shown: str) -> str:
    return f"the {name if count == 1 else CLASSES[name][0]} should be {wanted}, not {shown}"


def _of_class(wanted: str, shown: str, count: int, rng: Random) -> str:
    if count > 1:
        return f"there should be {CLASSES[wanted][0]}, not {CLASSES[shown][0]}"
    return rng.choice((f"there is no {wanted}", f"there should be {article(wanted)}, not {article(shown)}"))


def not_there(words: str, rng: Random) -> str:
    return rng.choice((f"there is no {words}", f"{article(words)} is missing"))


def as_many(thing: Thing, wanted: int, shown: int) -> str:
    many = f"one {noun(thing)}" if wanted == 1 else f"{number(wanted)} {plural(thing)}"
    return f"there should be {many}, not {number(shown)}"


def lying(first: str, how: str, second: str) -> str:
    return f"the {first} should be {how} the {second}"


def _before(wanted: str, shown: str) -> str:
    return f"the background should be {wanted}, not {shown}"


# -- wrong pictures of one caption ------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Spoilt:
    """A picture that misses what was wanted, and the critique that says in what."""

    scene: Scene
    critique: str


def spoil(scene: Scene, rng: Random, most: int = 3) -> tuple[str, list[Spoilt]]:
    """A complete caption of a scene, and up to ``most`` pictures wrong in one point each, no two alike. They are of the scene's split."""
    wanted = [t for t in scene.things if not t.distractor]
    said = related(wanted, scene.level, rng) if rng.random() < 0.5 else ""
    ways = [_recoloured, _exchanged, _fewer, _more, *([_swapped] * 2 if said else ())]
    said = prefix(rng) + (said or listed(rng.sample(wanted, len(wanted)), scene.level, rng))
    if rng.random() < 0.3:
        said = f"{said} {BACKGROUNDS[scene.background][0]}"
        ways.append(_elsewhere)
    found: dict[str, Spoilt] = {}
    for _ in range(8 * most):
        made = rng.choice(ways)(scene, rng)
        if made and made.critique not in found and split_of(scene) in ("test", split_of(made.scene)):
            found[made.critique] = made
        if len(found) == most:
            break
    return said, list(found.values())


def _changed(scene: Scene, old: Sequence[Thing], new: Sequence[Thing]) -> Scene:
    return replace(scene, things=(*(t for t in scene.things if t not in old), *new))


def _uniform(scene: Scene, rng: Random) -> tuple[Thing, list[Thing]] | None:
    """A thing and all of its class, where they are of one colour."""
    thing, alike = _alike(scene, rng)
    return None if any(t.colour != thing.colour or t.distractor for t in alike) else (thing, alike)


def _recoloured(scene: Scene, rng: Random) -> Spoilt | None:
    found, colour = _uniform(scene, rng), rng.choice(LEVELS[scene.level].colours)
    if not found or found[0].colour in ("", colour):
        return None
    thing, alike = found
    wrong = _changed(scene, alike, [replace(t, colour=colour) for t in alike])
    return Spoilt(scene=wrong, critique=in_colour(thing.name, len(alike), thing.colour, colour))


def _exchanged(scene: Scene, rng: Random) -> Spoilt | None:
    found, name = _uniform(scene, rng), absent(scene, rng)
    if not found:
        return None
    thing, alike = found
    wrong = _changed(scene, alike, [replace(t, name=name) for t in alike])
    return Spoilt(scene=wrong, critique=_of_class(thing.name, name, len(alike), rng))


def _fewer(scene: Scene, rng: Random) -> Spoilt | None:
    found = _uniform(scene, rng)
    if not found or len(scene.things) < 2:
        return None
    thing, alike = found
    wrong, left = _changed(scene, [thing], ()), len(alike) - 1
    words = as_many(replace(thing, colour=""), left + 1, left) if left else not_there(thing.name, rng)
    return Spoilt(scene=wrong, critique=words)


def _more(scene: Scene, rng: Random) -> Spoilt | None:
    found, level = _uniform(scene, rng), LEVELS[scene.level]
    spots = place(level, 1, rng, tuple((t.x, t.y, t.size) for t in scene.things))
    if not found or not spots or len(scene.things) >= level.most:
        return None
    (x, y, size), (thing, alike) = spots[0], found
    wrong = _changed(scene, (), [replace(thing, x=x, y=y, size=size)])
    return Spoilt(scene=wrong, critique=as_many(replace(thing, colour=""), len(alike), len(alike) + 1))


def _swapped(scene: Scene, rng: Random) -> Spoilt | None:
    a, b = rng.sample([t for t in scene.things if not t.distractor], 2)
    if a.name == b.name:
        return None
    wrong = _changed(scene, [a, b], _exchange(a, b))
    return Spoilt(scene=wrong, critique=lying(a.name, relation(a, b), b.name))


def _elsewhere(scene: Scene, rng: Random) -> Spoilt | None:
    other = rng.choice([b for b in LEVELS[scene.level].backgrounds if b != scene.background])
    wrong = replace(scene, background=other)
    return Spoilt(scene=wrong, critique=_before(scene.background, other))


# -- pictures after an edit ---------------------------------------------------------------------------------------------

UNDONE = "nothing has changed"
_SOMEWHERE = ("add", "move")  # any place is right that the instruction's words fit


def judged(made: Edit, rng: Random) -> tuple[Scene, list[tuple[str, str]]]:
    """What may be shown after an edit, and instructions, each with the critique of that picture. Half of all are met.

    Those that are not: nothing was done, the thing came out wrong or another one was edited, something else changed too, or another
    edit was asked for. All scenes are of the split of the source.
    """
    split = split_of(made.source)
    if rng.random() < 0.6:
        asked = [(made.instruction, approval(rng))]
        if rng.random() < 0.4:
            other = edit(made.source, split, rng, made.kind if rng.random() < 0.5 else None)
            if other and (words := fault(other, made.target, rng)):
                asked.append((other.instruction, words))
        return made.target, asked
    for way in rng.choices((_undone, _near_miss, _more_than_asked), (2, 5, 3), k=4):
        shown = way(made, rng)
        if shown and split_of(shown) == split and (words := fault(made, shown, rng)):
            return shown, [(made.instruction, words)]
    return made.source, [(made.instruction, UNDONE)]


def _undone(made: Edit, rng: Random) -> Scene:
    return made.source


def _more_than_asked(made: Edit, rng: Random) -> Scene | None:
    more = edit(made.target, split_of(made.target), rng)
    return more.target if more else None


def _near_miss(made: Edit, rng: Random) -> Scene | None:
    """The same kind of edit of something else or to something else; or the new thing in another colour, class or place."""
    come, level = only_in(made.target, made.source), LEVELS[made.source.level]
    if not come or rng.random() < 0.4:
        other = edit(made.source, split_of(made.source), rng, made.kind)
        return other.target if other else None
    thing, rest = come[0], [t for t in made.target.things if t not in come]
    if rng.random() < 0.3:
        return _changed(made.target, [thing], [replace(thing, name=absent(made.target, rng))])
    if rng.random() < 0.5:
        return _changed(made.target, [thing], [replace(thing, colour=rng.choice(level.colours))])
    spots = place(level, 1, rng, tuple((t.x, t.y, t.size) for t in rest))
    return _changed(made.target, [thing], [replace(thing, x=x, y=y, size=size) for x, y, size in spots])


def fault(made: Edit, shown: Scene, rng: Random) -> str:
    """What is wrong with a picture after an edit: of what was asked for, else of the rest; "" where nothing is."""
    if shown.signature == made.source.signature:
        return UNDONE
    wanted = made.target
    come, gone = only_in(wanted, made.source), only_in(made.source, wanted)
    extra, found = only_in(shown, wanted), []
    for thing in only_in(wanted, shown):
        asked = thing in come
        other = _counterpart(thing, extra, made if asked else None)
        if other:
            extra.remove(other)
        words = _instead(thing, other, made if asked else None, shown) if other else _amiss(thing, wanted, shown, rng)
        found += [(not asked, words)] if words else []
    found += [(thing not in gone, _amiss(thing, wanted, shown, rng)) for thing in extra]
    if shown.background != wanted.background:
        found.append((made.kind != "background", _before(wanted.background, shown.background)))
    return min(found, key=lambda f: f[0])[1] if found else ""


def _fits(thing: Thing, other: Thing, made: Edit | None) -> bool:
    """Whether ``other`` is as good as the ``thing`` that ``made`` brings."""
    return (
        made is not None
        and made.kind in _SOMEWHERE
        and noun(thing) == noun(other)
        and position_word(thing) == position_word(other)
        and (made.kind == "add" or thing.size == other.size)
    )


def _counterpart(thing: Thing, extra: Sequence[Thing], made: Edit | None) -> Thing | None:
    """What is shown in place of a thing: as good, in the same place, of the same look, of the same class."""
    tests: tuple[Callable[[Thing], bool], ...] = (
        lambda t: _fits(thing, t, made),
        lambda t: t.box == thing.box,
        lambda t: noun(t) == noun(thing),
        lambda t: t.name == thing.name,
    )
    return next((t for test in tests for t in extra if test(t)), None)


def _instead(thing: Thing, other: Thing, made: Edit | None, shown: Scene) -> str:
    """What is wrong with ``other`` where ``thing`` was wanted; "" where nothing is."""
    if _fits(thing, other, made):
        return ""
    if noun(thing) != noun(other):
        alone = sum(t.name == thing.name for t in shown.things) == 1
        if thing.name == other.name and thing.colour and other.colour and alone:
            return in_colour(thing.name, 1, thing.colour, other.colour)
        return f"there should be {article(noun(thing))}, not {article(noun(other))}"
    if thing.size != other.size and (made is None or made.kind != "add"):
        return f"the {noun(thing)} should be {'bigger' if thing.size > other.size else 'smaller'}"
    if (where := position_word(thing)) != position_word(other):
        return f"the {noun(thing)} should be {at(where)}"
    return f"the {noun(thing)} should not move"


def _amiss(thing: Thing, wanted: Scene, shown: Scene, rng: Random) -> str:
    """There are too few or too many of a thing; one in its natural colour is counted with all of its class."""
    there, here = (
        sum(t.name == thing.name and thing.colour in ("", t.colour) for t in scene.things) for scene in (wanted, shown)
    )
    if not here:
        return not_there(noun(thing), rng)
    if not there:
        return f"there should be no {noun(thing)}"
    return as_many(thing, there, here)
