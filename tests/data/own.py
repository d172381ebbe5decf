"""Small data of a user's own, for tests of the readers."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

from PIL import Image

from unmask.data.opening import Data
from unmask.data.samples import Broken, Sample, opened, task_of


def picture(colour: str = "red", size: tuple[int, int] = (60, 40)) -> Image.Image:
    return Image.new("RGB", size, colour)


def png(colour: str = "red", size: tuple[int, int] = (60, 40)) -> bytes:
    file = io.BytesIO()
    picture(colour, size).save(file, "PNG")
    return file.getvalue()


def save(path: Path, colour: str = "red", size: tuple[int, int] = (60, 40)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(colour, size).save(path)
    return path


def lines(path: Path, *rows: Any) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


LLAVA = {
    "id": "000000033471",
    "image": "a.png",
    "conversations": [
        {"from": "human", "value": "<image>\nWhat colour is it?"},
        {"from": "gpt", "value": "Red."},
        {"from": "human", "value": "Are you sure?"},
        {"from": "gpt", "value": "Yes."},
    ],
}


def good_samples(data: Data) -> list[Sample]:
    """All samples; none is broken, keys and tasks are those that the data give without reading a sample, and all pictures open."""
    found = [data[i] for i in range(len(data))]
    good = [s for s in found if not isinstance(s, Broken)]
    assert good == found
    assert [data.task(i) for i in range(len(data))] == [task_of(s) for s in good]
    assert [data.key(i) for i in range(len(data))] == [s.key for s in good]
    assert not [s for s in map(opened, good) if isinstance(s, Broken)]
    return good


def reasons(data: Data) -> dict[str, str]:
    """{key: reason} of the broken rows."""
    return {s.key: s.reason for s in (data[i] for i in range(len(data))) if isinstance(s, Broken)}
