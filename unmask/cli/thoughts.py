"""A sheet with the layout and the critique of a picture, attempt by attempt. Public idea: ``sheet_of(drawing)``."""

from __future__ import annotations

from PIL import Image

from unmask.cli.sheet import Cell, Row, sheet
from unmask.tasks.results import Drawing
from unmask.tokens.layouts import Layout
from unmask.tokens.pictures import draw_boxes

_COLUMNS = 4


def sheet_of(drawing: Drawing) -> Image.Image:
    """Every attempt with the boxes of its layout and its critique; a picture without attempts is shown alone."""
    if drawing.attempts:
        cells = [_cell(r.image, r.plan, f"{i}. {r.critique}") for i, r in enumerate(drawing.attempts, 1)]
    else:
        cells = [_cell(drawing.image, drawing.plan, "")]
    return sheet([Row(cells=tuple(cells), columns=_COLUMNS, title=drawing.prompt)])


def _cell(image: Image.Image, plan: Layout | None, words: str) -> Cell:
    lines = (words,) if words else ()
    if plan is None:
        return Cell(picture=image, lines=lines)
    wide, high = image.size
    boxes = [(t.phrase, (t.box[0] * wide, t.box[1] * high, t.box[2] * wide, t.box[3] * high)) for t in plan.objects]
    said = f"{plan.reason}: {', '.join(t.phrase for t in plan.objects)}".strip(": ")
    return Cell(picture=draw_boxes(image, boxes), lines=(*lines, *((said,) if said else ()), *plan.troubles))
