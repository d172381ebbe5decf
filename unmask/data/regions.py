"""Boxes of a row -> fractions of its picture.

Public idea: ``phrases_of(fields, image, units)``. ``units`` are stated (``box_units`` in the row, or an option), or follow from the values:
if all numbers of the row's boxes are between 0 and 1 they are fractions, otherwise pixels. Boxes in 0..1000 cannot be told from pixels
and must be stated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import Enum

from unmask.data.row_errors import RowError, shown
from unmask.data.samples import ImageRef
from unmask.json_types import Json
from unmask.tokens.boxes import FractionBox

PHRASES = ("phrases", "phrase", "sentences", "ref_list", "expression", "answer", "label", "labels", "text", "caption")
_SLACK = 0.005  # boxes that go beyond the picture by less are cut: annotations are rounded to pixels
MOST_BOXES = 1000


class RowBoxes(Enum):
    """The unit of a row's boxes."""

    FRACTIONS = "fractions"
    PIXELS = "pixels"
    THOUSANDTHS = "thousandths"


def box_units_of(fields: Json) -> RowBoxes | None:
    """The units that a row states. RowError for an unknown name."""
    given = fields.get("box_units")
    if given is None:
        return None
    known = {unit.value: unit for unit in RowBoxes}
    if not isinstance(given, str) or given not in known:
        raise RowError(f"box_units is {shown(given)}; it is one of {', '.join(known)}")
    return known[given]


def phrases_of(fields: Json, image: ImageRef, units: RowBoxes | None) -> tuple[tuple[str, FractionBox], ...]:
    """(phrase, box in fractions) of every box. RowError for a box without a phrase, without area, or outside the picture."""
    pairs = _pairs(fields)
    if not pairs:
        raise RowError("the row has no box")
    if len(pairs) > MOST_BOXES:
        raise RowError(f"the row has {len(pairs):,} boxes, more than {MOST_BOXES:,}")
    boxes = [box for _, box in pairs]
    units = units or (RowBoxes.FRACTIONS if all(0 <= v <= 1 for box in boxes for v in box) else RowBoxes.PIXELS)
    scale = _scale(image, units)
    return tuple((phrase, _checked(box, scale, units)) for phrase, box in pairs)


def _scale(image: ImageRef, units: RowBoxes) -> tuple[float, float]:
    if units is RowBoxes.PIXELS:
        return image.size()
    return (1.0, 1.0) if units is RowBoxes.FRACTIONS else (1000.0, 1000.0)


def _checked(box: FractionBox, scale: tuple[float, float], units: RowBoxes) -> FractionBox:
    x1, y1, x2, y2 = (v / scale[i % 2] for i, v in enumerate(box))
    given = f"the box {[round(v, 3) for v in box]} in {units.value}"
    if x2 <= x1 or y2 <= y1:
        raise RowError(
            f"{given} has no area; 'box' is [left, top, right, bottom], 'bbox' is [left, top, width, height]"
        )
    if min(x1, y1) < -_SLACK or max(x2, y2) > 1 + _SLACK:
        size = f" of {scale[0]:g} x {scale[1]:g} pixels" if units is RowBoxes.PIXELS else ""
        hint = " (are its numbers 0 to 1000? then state box_units)" if size and max(box) <= 1000 else ""
        raise RowError(f"{given} is outside the picture{size}{hint}")
    return (max(x1, 0.0), max(y1, 0.0), min(x2, 1.0), min(y2, 1.0))


def _pairs(fields: Json) -> list[tuple[str, FractionBox]]:
    """(phrase, corners) in the row's own units."""
    many = fields.get("boxes")
    if many is not None:
        if not isinstance(many, list):
            raise RowError(f"'boxes' is {shown(many)}, not a list")
        if many and all(isinstance(one, dict) for one in many):
            return [pair for one in many for pair in _pairs(one)]
        return [(phrase, _corners(box)) for phrase, box in zip(_matching(fields, many), many, strict=True)]
    if fields.get("box") is not None:
        return [(phrase, _corners(fields["box"])) for phrase in _phrases(fields)]
    found = fields.get("bbox")
    if isinstance(found, list) and found and isinstance(found[0], list):
        return [(phrase, _from_size(box)) for phrase, box in zip(_matching(fields, found), found, strict=True)]
    return [(phrase, _from_size(found)) for phrase in _phrases(fields)]


def _matching(fields: Json, boxes: Sequence[object]) -> list[str]:
    """One phrase for each box."""
    phrases = _phrases(fields) if boxes else []
    if len(phrases) != len(boxes):
        raise RowError(f"there are {len(boxes)} boxes and {len(phrases)} phrases; each box needs one")
    return phrases


def _phrases(fields: Json) -> list[str]:
    """The phrases of a row: a text, texts, or RefCOCO's sentences. RowError if one is missing or empty."""
    found = next((fields[name] for name in PHRASES if fields.get(name) is not None), None)
    if found is None:
        raise RowError("the box has no phrase; it is called 'phrase'")
    made = []
    for one in found if isinstance(found, list) else [found]:
        said = next((one[n] for n in ("sent", "raw", "phrase") if one.get(n)), None) if isinstance(one, dict) else one
        if not isinstance(said, str) or not said.strip():
            raise RowError(f"the phrase of a box is {shown(one)}, not a text")
        made.append(said.strip())
    return made


def _numbers(box: object) -> list[float]:
    numbers = (
        [v for v in box if isinstance(v, int | float) and not isinstance(v, bool)] if isinstance(box, list) else []
    )
    if not isinstance(box, list) or len(box) != 4 or len(numbers) != 4 or not all(map(math.isfinite, numbers)):
        raise RowError(f"the box is {shown(box)}; it has four numbers")
    return [float(v) for v in numbers]


def _corners(box: object) -> FractionBox:
    x1, y1, x2, y2 = _numbers(box)
    return (x1, y1, x2, y2)


def _from_size(box: object) -> FractionBox:
    """COCO's [left, top, width, height] -> corners."""
    x, y, wide, high = _numbers(box)
    return (x, y, x + wide, y + high)
