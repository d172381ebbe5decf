"""What an example must show or say, read from its words: so that a changed example is tested too.

Public ideas: ``wanted(prompt)``, ``truth(question, seen)``, ``edited(instruction, before)``. Each raises ValueError for words that it
cannot read; write the example in the words of the synthetic world.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

from unmask.data.world.language import NUMBERS, SIDES, number, position_word
from unmask.data.world.scenes import SceneObject
from unmask.data.world.vocabulary import CLASSES, COLOUR_NAMES
from unmask.evaluation.judge import Found, Seen
from unmask.evaluation.scoring import Related, Want, Wanted, strict

_NAMES = {form: name for name, (plural, _) in CLASSES.items() for form in (name, plural)}
_OBJECT = rf"(?:(?P<colour>{'|'.join(COLOUR_NAMES)}) )?(?P<name>{'|'.join(sorted(_NAMES, key=len, reverse=True))})"
_SIDE = {**{words: side for side, words in SIDES.items()}, **{side: side for side in SIDES}}
_RELATION = "|".join(sorted(_SIDE, key=len, reverse=True))
_POSITION = r"(?:at the|in the|to the) (?P<position>(?:top|bottom)(?: left| right)?|left|right|centre)"


@dataclass(frozen=True, kw_only=True)
class Picture:
    """What a picture must show: exactly these objects, on this background ("" for any)."""

    want: Want
    background: str = ""

    def shown(self, seen: Seen) -> bool:
        return strict(seen, self.want) and self.background in ("", seen.background)


def wanted(prompt: str) -> Picture:
    """``a red apple and two cats on a sand background``, ``a photo of a dog left of a cat``."""
    words, _, background = prompt.removeprefix("a photo of ").removeprefix("a picture of ").partition(" on a ")
    related = re.fullmatch(rf"(.*?) ({_RELATION}) (.*)", words)
    parts = [related[1], related[3]] if related else re.split(r", | and ", words)
    items = tuple(_item(part) for part in parts)
    relation = Related(first=items[0], relation=_SIDE[related[2]], second=items[1]) if related else None
    return Picture(want=Want(items=items, related=relation), background=background.removesuffix(" background"))


def _item(words: str) -> Wanted:
    found = re.fullmatch(rf"(?P<count>a|an|{'|'.join(NUMBERS)}) {_OBJECT}", words)
    if not found:
        raise ValueError(f"cannot read {words!r} as objects")
    count = 1 if found["count"] in ("a", "an") else NUMBERS.index(found["count"]) + 1
    return Wanted(name=_NAMES[found["name"]], count=count, colour=found["colour"], exact=count > 1)


def truth(question: str, seen: Seen) -> str:
    """The right answer to a question about a picture."""
    if question in ("what is this?", "which object is shown?"):
        (only,) = seen.objects
        return only.name
    if found := re.fullmatch(rf"how many (?:objects|things|{_OBJECT})(?: are there| do you see)?\?", question):
        return number(len(_all(found, seen) if found["name"] else seen.objects))
    if found := re.fullmatch(rf"(?:what|which) colour (?:is|are) the {_OBJECT}\?", question):
        (colour,) = {one.colour for one in _all(found, seen)}
        return colour
    if found := re.fullmatch(rf"where(?: in the picture)? is the {_OBJECT}\?", question):
        return position_word(_placed(_only(found, seen)))
    if found := re.fullmatch(rf"(?:is there|do you see|does the picture show) an? {_OBJECT}\?", question):
        return "yes" if _all(found, seen) else "no"
    if found := re.fullmatch(rf"what is (?P<relation>{_RELATION}) the {_OBJECT}\?", question):
        anchor = _only(found, seen)
        (other,) = [one for one in seen.objects if one is not anchor]
        return other.name
    raise ValueError(f"cannot read the question {question!r}")


def pointed(phrase: str, seen: Seen) -> Found:
    """The object that ``the red apple`` names."""
    found = re.fullmatch(rf"(?:the|a|an) {_OBJECT}", phrase)
    if not found:
        raise ValueError(f"cannot read the phrase {phrase!r}")
    return _only(found, seen)


Content = tuple[str, Counter[tuple[str, str, str]]]


def content(seen: Seen) -> Content:
    """The background, and the colour, name and position of every object."""
    return seen.background, Counter((one.colour, one.name, position_word(_placed(one))) for one in seen.objects)


def edited(instruction: str, before: Seen) -> Content:
    """The content of a picture after an edit."""
    background, objects = content(before)
    if found := re.fullmatch(r"(?:make|change) the background (?:to )?(\w+)", instruction):
        return found[1], objects
    if found := re.fullmatch(rf"(?:add|put|place) an? {_OBJECT} {_POSITION}", instruction):
        return background, objects + Counter([(found["colour"] or "", found["name"], found["position"])])
    for pattern in (
        rf"(?:remove|delete|take away) the {_OBJECT}",
        rf"(?:make|paint) the {_OBJECT} (?P<new>{'|'.join(COLOUR_NAMES)})",
        rf"(?:move|put|shift) the {_OBJECT} {_POSITION}",
    ):
        if found := re.fullmatch(pattern, instruction):
            one = _only(found, before)
            gone = objects - Counter([(one.colour, one.name, position_word(_placed(one)))])
            named = found.groupdict()
            if "new" not in named and "position" not in named:
                return background, gone
            at = named.get("position") or position_word(_placed(one))
            return background, gone + Counter([(named.get("new") or one.colour, one.name, at)])
    raise ValueError(f"cannot read the instruction {instruction!r}")


def _all(found: re.Match[str], seen: Seen) -> list[Found]:
    name, colour = _NAMES[found["name"]], found["colour"]
    return [one for one in seen.objects if one.name == name and colour in (None, one.colour)]


def _only(found: re.Match[str], seen: Seen) -> Found:
    one, *more = _all(found, seen) or [None]
    if one is None or more:
        raise ValueError(f"{found[0]!r} does not name one object of {[o.name for o in seen.objects]}")
    return one


def _placed(found: Found) -> SceneObject:
    x1, y1, x2, y2 = found.box
    return SceneObject(name=found.name, colour=found.colour, x=x1, y=y1, size=((x2 - x1) + (y2 - y1)) / 2)
