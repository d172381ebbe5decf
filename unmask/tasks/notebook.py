"""Results as notebooks show them. Public idea: ``to_png`` for ``_repr_png_``, the rest for ``_repr_html_``. Texts are escaped."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence

from PIL import Image

from unmask.tokens.pictures import PixelBox, draw_boxes


def to_png(image: Image.Image) -> bytes:
    """The bytes of a PNG file."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def exchange_html(question: str, answer: str, trace: Sequence[str] = ()) -> str:
    """A question and its answer. ``trace``: the answer after every step, which is shown on a click."""
    steps = "".join(f"<li>{_lines(step)}</li>" for step in trace)
    film = _folded(f"steps: {len(trace) - 1}", f'<ol start="0">{steps}</ol>') if trace else ""
    return f"<p><em>{_lines(question)}</em></p><p>{_lines(answer)}</p>{film}"


def drawing_html(
    image: Image.Image, attempts: Sequence[tuple[Image.Image, str]], trace: Sequence[Image.Image]
) -> str | None:
    """A picture with what is shown on a click: its attempts with their critiques, and its trace. None where it has neither."""
    if not attempts and not trace:
        return None
    tried = "".join(f"<figure>{_img(one)}<figcaption>{_lines(said)}</figcaption></figure>" for one, said in attempts)
    film = "".join(_img(frame) for frame in trace)
    shown = _folded(f"attempts: {len(attempts)}", tried) if attempts else ""
    return _img(image) + shown + (_folded(f"steps: {len(trace) - 1}", film) if trace else "")


def boxes_html(image: Image.Image | None, boxes: Sequence[tuple[str, PixelBox]]) -> str:
    """A table of phrases and boxes, below the picture with the boxes drawn in if there is one."""
    rows = "".join(
        f"<tr><td>{html.escape(phrase)}</td>{''.join(f'<td>{v:.1f}</td>' for v in box)}</tr>" for phrase, box in boxes
    )
    head = "".join(f"<th>{name}</th>" for name in ("phrase", "x1", "y1", "x2", "y2"))
    shown = _img(draw_boxes(image, boxes)) if image is not None else ""
    return f"{shown}<table><tr>{head}</tr>{rows}</table>"


def turn_html(parts: Sequence[str | Image.Image]) -> str:
    """Words and pictures in their order."""
    return "".join(f"<p>{_lines(part)}</p>" if isinstance(part, str) else _img(part) for part in parts)


def _folded(summary: str, inside: str) -> str:
    return f"<details><summary>{html.escape(summary)}</summary>{inside}</details>"


def _img(image: Image.Image) -> str:
    data = base64.b64encode(to_png(image)).decode()
    return f'<img src="data:image/png;base64,{data}" width="{image.width}" height="{image.height}">'


def _lines(text: str) -> str:
    return html.escape(text).replace("\n", "<br>")
