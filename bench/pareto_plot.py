"""Quality against time as a picture. Public idea: ``plot({task: (all rows, rows on the front)}, path)``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from unmask.json_types import Json

WIDTH, HEIGHT, EDGE = 900, 460, 70
INK, GREY, BLUE, RED = (40, 40, 40), (170, 176, 186), (42, 111, 219), (200, 60, 50)


def plot(tasks: Mapping[str, tuple[Sequence[Json], Sequence[Json]]], path: Path) -> None:
    """One panel per task: CPU time of a request to the right, as a fraction of exact's (the median of pairs, which a busy machine moves
    little), and judged quality upwards with its 95 % interval. The front is blue and joined, exact is red, the others are grey.
    """
    shown = {name: both for name, both in tasks.items() if both[0]}
    image = Image.new("RGB", (WIDTH, HEIGHT * len(shown)), "white")
    for number, (name, (rows, best)) in enumerate(shown.items()):
        _panel(ImageDraw.Draw(image), name, rows, best, HEIGHT * number)
    image.quantize(16).save(path, optimize=True)


def _panel(draw: ImageDraw.ImageDraw, name: str, rows: Sequence[Json], best: Sequence[Json], top: int) -> None:
    font = ImageFont.load_default(size=15)
    most = max(_time(row) for row in rows) * 1.15
    low = math.floor(min(row["low"] for row in rows) * 20) / 20
    high = min(1.0, math.ceil(max(row["high"] for row in rows) * 20) / 20)

    def place(seconds: float, value: float) -> tuple[float, float]:
        x = EDGE + (WIDTH - 2 * EDGE) * seconds / most
        return x, top + HEIGHT - EDGE - (HEIGHT - 2 * EDGE) * (value - low) / (high - low)

    draw.text((EDGE, top + 20), f"{name}: judged quality against CPU time of a request, exact = 1", fill=INK, font=font)
    draw.line([place(0, high), place(0, low), place(most, low)], fill=INK, width=1)
    for step in range(round((high - low) * 20) + 1):
        value = low + step / 20
        draw.text((20, place(0, value)[1] - 8), f"{value:.2f}", fill=INK, font=font)
    for step in range(5):
        seconds = most * step / 4
        draw.text((place(seconds, low)[0] - 15, place(0, low)[1] + 8), f"{seconds:.2f}", fill=INK, font=font)
    ordered = sorted(best, key=_time)
    draw.line([place(_time(row), row["value"]) for row in ordered], fill=BLUE, width=2)
    taken: list[tuple[float, float, float, float]] = []
    for row in sorted(rows, key=lambda row: row["value"], reverse=True):
        exact, first = row["setting"] == "exact", any(row is other for other in best)
        colour = RED if exact else BLUE if first else GREY
        x, y = place(_time(row), row["value"])
        draw.line([place(_time(row), row["low"]), place(_time(row), row["high"])], fill=colour, width=1)
        draw.ellipse([x - 4, y - 4, x + 4, y + 4], fill=colour)
        box = draw.textbbox((x + 7, y - 9), row["setting"], font=font)
        while any(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in taken):
            box = (box[0], box[1] + 4, box[2], box[3] + 4)
        taken.append(box)
        draw.text((x + 7, box[1] - 3), row["setting"], fill=colour, font=font)


def _time(row: Json) -> float:
    return 1 / row["speedup"]
