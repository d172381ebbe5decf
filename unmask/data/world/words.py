"""The vocabulary of a level: every word that its captions, questions, instructions and phrases use. Public idea: ``vocabulary``."""

from __future__ import annotations

from unmask.data.world.language import NUMBERS, SIDES
from unmask.data.world.vocabulary import CLASSES, LEVELS
from unmask.tokens.vocabulary import Vocabulary

_POSITIONS = ("top left", "top", "top right", "left", "centre", "right", "bottom left", "bottom", "bottom right")
_ACTIONS = (
    *("add", "put", "place", "remove", "delete", "take away", "replace", "change", "turn"),
    *("make", "paint", "move", "shift", "enlarge", "shrink", "use"),
)
_SPELLINGS = {"grey": ("gray",), "centre": ("center",), "airplane": ("airplanes", "aeroplane", "aeroplanes")}
# The other words of the templates, then words that requests contain anywhere and that name nothing to draw.
_WORDS = (
    *("photo", "picture", "image", "background", "backgrounds", "colour", "color", "colours", "colors"),
    *("object", "objects", "thing", "things", "bigger", "smaller", "leftmost", "rightmost", "topmost", "bottommost"),
    *("what", "which", "where", "how many", "is", "are", "there", "do", "does", "you", "see", "show", "shown", "this"),
    *("more", "than", "or", "a", "an", "the", "and", "of", "with", "in", "on", "at", "to", "into", "then"),
    *("draw", "describe", "caption"),
    *("please", "i", "me", "my", "we", "us", "it", "its", "they", "them", "that", "these", "those", "your", "am", "be"),
    *("can", "could", "would", "will", "want", "like", "give", "create", "generate", "drawing", "pictures", "photos"),
    *("images", "has", "have", "for", "from", "by", "as", "s"),
)


def vocabulary(level: str, name: str) -> Vocabulary:
    """The vocabulary of a model called ``name`` that was trained on ``level``. KeyError for an unknown level."""
    known = LEVELS[level]
    counts = NUMBERS[: known.most]
    plurals = {one: (CLASSES[one][0],) for one in known.classes if CLASSES[one][0] != one}
    digits = {word: (str(count),) for count, word in enumerate(counts, 1)}
    return Vocabulary(
        name=name,
        draws=(
            f"draws {counts[0]} to {counts[-1]} of {len(known.classes)} objects ({', '.join(known.classes)}), each in its own colour or in "
            f"{_either(known.colours)}, on a {_either(known.backgrounds)} background"
        ),
        groups={
            "objects": known.classes,
            "colours": known.colours,
            "numbers": counts,
            "backgrounds": known.backgrounds,
            "relations": tuple(SIDES),
            "positions": _POSITIONS,
            "sizes": ("big", "small"),
            "actions": _ACTIONS,
        },
        forms=plurals | digits | _SPELLINGS,
        words=_WORDS,
    )


def _either(words: tuple[str, ...]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}"
