"""Questions about scenes with one right answer. Public idea: ``questions(scene, rng) -> [Question]``; ``KINDS`` names the kinds.

The words are those of ``language.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from unmask.data.world.language import SIDES, article, at, names, noun, number, plural, position_word
from unmask.data.world.scenes import INVERSE, Scene, SceneObject, held_out, relation, shows_held_out
from unmask.data.world.vocabulary import CLASSES, LEVELS


@dataclass(frozen=True, kw_only=True)
class Question:
    """``kind`` is one of ``KINDS``; ``text`` ends with a question mark; ``answer`` has one to three words."""

    kind: str
    text: str
    answer: str


def questions(scene: Scene, rng: Random) -> list[Question]:
    """At most one question of each kind that the scene allows; answers are balanced over many scenes."""
    pairs = ((kind, ask(scene, rng)) for kind, ask in _ASK.items())
    return [Question(kind=kind, text=found[0], answer=found[1]) for kind, found in pairs if found]


def _sayable(scene: Scene, *combination: str) -> bool:
    return not held_out(*combination) or shows_held_out(scene)


def _ask_what(scene: Scene, rng: Random) -> tuple[str, str] | None:
    objects = scene.objects
    if len(objects) == 1:
        return rng.choice(("what is this?", "what is in the picture?", "which object is shown?")), objects[0].name
    options = []
    for i, t in enumerate(objects):
        others = [o for j, o in enumerate(objects) if j != i]
        place = position_word(t)
        if all(position_word(o) != place for o in others):
            options.append((f"what is {at(place)}?", t.name))
        if all(o.colour and o.colour != t.colour for o in others) and t.colour:
            options.append((f"what is the {t.colour} object?", t.name))
            options.append((f"which object is {t.colour}?", t.name))
        anchor = rng.choice(others)
        rivals = [relation(o, anchor) for o in others if o is not anchor]
        if (found := relation(t, anchor)) and anchor.name != t.name and found not in rivals and "" not in rivals:
            if any(o is not anchor and o.name == anchor.name for o in objects):
                continue
            options.append((f"what is {found} the {anchor.name}?", t.name))
            options.append((f"what is {SIDES[found]} the {anchor.name}?", t.name))
    return rng.choice(options) if options else None


# Probability of keeping a counting question by its answer: balances the answers on grid scenes, see the test.
_KEEP = {0: 0.25, 1: 0.09, 2: 0.35}


def _ask_count(scene: Scene, rng: Random) -> tuple[str, str] | None:
    objects = scene.objects
    r = rng.random()
    if r < 0.2:
        count, many = len(objects), rng.choice(("things", "objects"))
    elif r < 0.3:
        count, many = 0, CLASSES[absent(scene, rng)][0]
    else:
        obj = rng.choice(objects)
        alike = [t for t in objects if t.name == obj.name]
        distinct = obj.colour and all(t.colour for t in alike) and rng.random() < 0.25
        count = sum(t.colour == obj.colour for t in alike) if distinct else len(alike)
        many = plural(obj) if distinct else CLASSES[obj.name][0]
    if rng.random() > _KEEP.get(count, 1.0):
        return None
    return rng.choice((f"how many {many} are there?", f"how many {many}?", f"how many {many} do you see?")), number(
        count
    )


def absent(scene: Scene, rng: Random) -> str:
    """A random class of the level that the scene does not show."""
    shown = {t.name for t in scene.objects}
    while (name := rng.choice(LEVELS[scene.level].classes)) in shown:
        pass
    return name


def _ask_colour(scene: Scene, rng: Random) -> tuple[str, str] | None:
    tinted = [t for t in scene.objects if t.colour]
    if not tinted:
        return None
    obj = rng.choice(tinted)
    alike = [t for t in scene.objects if t.name == obj.name]
    if any(t.colour != obj.colour for t in alike):
        return None
    verb, name = ("is", obj.name) if len(alike) == 1 else ("are", CLASSES[obj.name][0])
    return rng.choice((f"what colour {verb} the {name}?", f"which colour {verb} the {name}?")), obj.colour


def _ask_where(scene: Scene, rng: Random) -> tuple[str, str] | None:
    index = rng.randrange(len(scene.objects))
    phrases = names(scene.objects, index)
    if not phrases or scene.objects[index].size > 0.9:  # an object that fills the image has no position
        return None
    name = rng.choice(phrases)
    text = rng.choice((f"where is the {name}?", f"where in the picture is the {name}?"))
    return text, position_word(scene.objects[index])


def _ask_exists(scene: Scene, rng: Random) -> tuple[str, str] | None:
    yes, hard = rng.random() < 0.5, rng.random() < 0.5
    obj = rng.choice(scene.objects)
    name = noun(obj) if hard else obj.name
    if not yes:
        name = (_recoloured(scene, obj, rng) if hard else "") or absent(scene, rng)
    one = article(name)
    text = rng.choice((f"is there {one}?", f"do you see {one}?", f"does the picture show {one}?"))
    return text, "yes" if yes else "no"


def _recoloured(scene: Scene, obj: SceneObject, rng: Random) -> str:
    """The class in a colour that no object of it has; "" if an object has its natural colour, which may be the same."""
    colours = {t.colour for t in scene.objects if t.name == obj.name}
    if "" in colours:
        return ""
    wrong = [c for c in LEVELS[scene.level].colours if c not in colours and _sayable(scene, c, obj.name)]
    return f"{rng.choice(wrong)} {obj.name}" if wrong else ""


def _ask_compare(scene: Scene, rng: Random) -> tuple[str, str] | None:
    kinds = list({t.name: t for t in scene.objects}.values())
    if len(kinds) < 2:
        return None
    a, b = rng.sample(kinds, 2)
    count = {k.name: sum(t.name == k.name for t in scene.objects) for k in (a, b)}
    if count[a.name] != count[b.name]:
        more = count[a.name] > count[b.name]
        return f"are there more {CLASSES[a.name][0]} than {CLASSES[b.name][0]}?", "yes" if more else "no"
    if count[a.name] > 1:
        return None
    if max(a.size, b.size) > 1.25 * min(a.size, b.size) and rng.random() < 0.6:
        bigger = rng.random() < 0.5
        answer = max(a, b, key=lambda t: t.size) if bigger else min(a, b, key=lambda t: t.size)
        return f"which is {'bigger' if bigger else 'smaller'}, the {a.name} or the {b.name}?", answer.name
    found = relation(a, b)
    phrase = found if rng.random() < 0.5 else INVERSE.get(found, "")
    if not found or not _sayable(scene, phrase, a.name, b.name):
        return None
    return f"is the {a.name} {phrase} the {b.name}?", "yes" if phrase == found else "no"


_ASK: dict[str, Callable[[Scene, Random], tuple[str, str] | None]] = {
    "what": _ask_what,
    "count": _ask_count,
    "colour": _ask_colour,
    "where": _ask_where,
    "exists": _ask_exists,
    "compare": _ask_compare,
}
KINDS: tuple[str, ...] = tuple(_ASK)
