"""Examples in the report, failures first. Public idea: ``cards(measured) -> {kind: [Card]}``."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from unmask.data.world.render import render
from unmask.evaluation.evaluate import Measured, Row
from unmask.evaluation.scoring import iou
from unmask.tokens.boxes import FractionBox
from unmask.tokens.pictures import square

_FAILURES, _OTHERS = 12, 6  # shown per kind
_SIDE = 192  # pixels of a grounding picture on the page, so that its boxes can be distinguished
_MOST = 384  # pixels along the side of a picture on the page
_TRUE, _FOUND = (20, 150, 60), (220, 40, 40)


@dataclass(frozen=True, kw_only=True)
class ReportCard:
    """One verdict (None: not judged): prompt, result, and pictures as data URIs."""

    right: bool | None
    text: str
    note: str
    pictures: tuple[str, ...]


def cards(part: Measured) -> dict[str, list[ReportCard]]:
    """By kind: the first failures, then the first successes, then the first unjudged items."""
    kinds: dict[str, list[tuple[Any, Row]]] = {}
    for item, row in zip(part.items, part.rows, strict=True):
        kinds.setdefault(row.get("kind", part.name), []).append((item, row))
    chosen = {}
    for kind, pairs in kinds.items():
        order = ((False, _FAILURES), (True, _OTHERS), (None, _OTHERS))
        shown = [pair for verdict, most in order for pair in [p for p in pairs if passed(p[1]) is verdict][:most]]
        chosen[kind] = [_card(part, item, row) for item, row in shown]
    return chosen


def passed(row: Row) -> bool | None:
    """Whether an item passed: right, all phrases found, or the scene recognised exactly after the tokenizer. None: not judged."""
    if "iou_1" in row:
        return all(value >= 0.5 for value in row["iou_1"])
    return row["right"] if "right" in row else bool(row["rebuilt"]["exact"])


def _card(part: Measured, item: Any, row: Row) -> ReportCard:
    if "iou_1" in row:
        note = "IoU " + ", ".join(f"{v:.2f}" for v in row["iou_1"]) + " (green: true, red: found in one step)"
        true = [item.scene.objects[obj].box for _, obj in item.phrases]
        pictures = [_boxed(Image.fromarray(render(item.scene)), zip(true, row["boxes_1"], strict=True))]
    elif "box" in row:
        note = f"IoU {row['iou']:.2f} (green: true, red: found)"
        pictures = [_boxed(square(item.picture(), _SIDE)[0], [(item.box, row["box"])])]
    elif "answer" in row:
        note, pictures = f"“{row['answer']}”, expected “{row['wanted']}”", [render(item.scene)]
    elif "critique" in row:
        note, pictures = f"“{row['critique']}”, expected “{row['wanted'] or 'is correct'}”", [render(item.scene)]
    elif "tries" in row:
        note = " → ".join(f"“{t['critique']}”" for t in row["tries"])
        pictures = [part.pictures(row["key"], f"try{i}") for i in range(1, len(row["tries"]) + 1)]
    else:
        note = _detections(row)
        names = ("before", "drawn") if part.name in ("edit", "edit_plan", "vq") else ("drawn",)
        pictures = [part.pictures(row["key"], name) for name in names]
    text = row["text"] if "error" not in row else f"scene {row['key']}"
    return ReportCard(right=passed(row), text=text, note=note, pictures=tuple(_uri(p) for p in pictures))


def _detections(row: Row) -> str:
    """The judge's detections, or the reconstruction error."""
    if "error" not in row and "seen" not in row:
        return "not judged"
    if "seen" not in row:
        return f"error {row['error']:.5f}; the judge recognises {'all' if row['rebuilt']['exact'] else 'not all'} of it"
    objects = [f"{colour} {name}".strip() for colour, name, _, _ in row["seen"]["things"]]
    return f"detected: {', '.join(objects) or 'nothing'} on {row['seen']['background']}"


def _boxed(picture: Image.Image, boxes: Iterable[tuple[FractionBox, Sequence[float]]]) -> np.ndarray:
    """A square picture with (true, found) boxes."""
    image = picture.resize((_SIDE, _SIDE))
    pen = ImageDraw.Draw(image)
    for true, box in boxes:
        pen.rectangle([v * (_SIDE - 1) for v in true], outline=_TRUE, width=2)
        pen.rectangle(
            [v * (_SIDE - 1) for v in box],
            outline=_TRUE if iou(true, (box[0], box[1], box[2], box[3])) >= 0.5 else _FOUND,
        )
    return np.asarray(image)


def _uri(picture: np.ndarray) -> str:
    buffer = io.BytesIO()
    image = Image.fromarray(picture)
    image.thumbnail((_MOST, _MOST))  # smaller images keep their size
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
