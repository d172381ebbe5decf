"""A tiny model and data of every task, for the tests of fine-tuning."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from .. import tiny_model


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model.make(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def pets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of every task that a model that draws learns; two captions, one of a picture with boxes."""
    folder = tmp_path_factory.mktemp("pets")
    for i, colour in enumerate(("red", "green", "blue")):
        Image.new("RGB", (96, 128) if i == 2 else (128, 128), colour).save(folder / f"{i}.png")
    turns = [{"from": "human", "value": "<image>\nwhat is this?"}, {"from": "gpt", "value": "a frog"}]
    rows = (
        {"image": "0.png", "caption": "a photo of a frog"},
        {"image": "2.png", "caption": "a toad on a sand background"},
        {"image": "1.png", "conversations": turns},
        {"image": "2.png", "boxes": [{"phrase": "toad", "box": [0.25, 0.5, 0.75, 1.0]}]},
        {"source": "0.png", "target": "1.png", "instruction": "make the frog green"},
        {"image": "1.png", "prompt": "a red frog", "verdict": "it is green"},
        {
            "images": ["0.png"],
            "messages": [
                {"role": "user", "content": "draw a frog"},
                {"role": "assistant", "content": "here it is <image>"},
            ],
        },
    )
    numbered = ({"id": f"pet {i}", **row} for i, row in enumerate(rows))
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in numbered))
    return folder / "rows.jsonl"
