"""Folders of ``unmask evaluate`` read by the rules of GenEval's evaluate_images.py and ImgEdit's basic_bench.py."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

from PIL import Image

from unmask.cli.main import main

PROMPTS: list[dict[str, Any]] = [
    {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"},
    {
        "tag": "counting",
        "include": [{"class": "dog", "count": 2}],
        "exclude": [{"class": "dog", "count": 3}],
        "prompt": "a photo of two dogs",
    },
    {
        "tag": "position",
        "include": [{"class": "cat", "count": 1}, {"class": "bus", "count": 1, "position": ["right of", 0]}],
        "prompt": "a photo of a bus right of a cat",
    },
]
EDITS = {
    "12": {"id": "animal/1.jpg", "prompt": "make the dog red", "edit_type": "adjust"},
    "1082": {"id": "human/2.png", "prompt": "add a cat", "edit_type": "add"},
}


def test_geneval(tmp_path: Path) -> None:
    """Folders whose name is a number; metadata.jsonl is one JSON object; pictures are samples/NUMBER.png."""
    lines = tmp_path / "evaluation_metadata.jsonl"
    lines.write_text("".join(json.dumps(prompt) + "\n" for prompt in PROMPTS))
    given = ["mini", "--suite", "geneval", "--prompts", str(lines), "--all", "-n", "2", "-o", "schedule.steps=1"]
    assert main(["evaluate", *given, "--out", str(tmp_path / "drawn")]) == 0
    found = {}
    for folder in (tmp_path / "drawn").iterdir():
        if not folder.is_dir() or not folder.name.isdigit():
            continue
        about = json.loads((folder / "metadata.jsonl").read_text())
        samples = [path for path in (folder / "samples").iterdir() if re.match(r"\d+\.png", path.name)]
        assert {"tag", "prompt", "include"} <= about.keys() and len(samples) == 2
        assert all(Image.open(path).size == (128, 128) for path in samples)
        found[int(folder.name)] = about
    assert [found[number] for number in sorted(found)] == PROMPTS


def test_imgedit(tmp_path: Path) -> None:
    """The picture of an edit is RESULT/KEY.png, its source ORIGIN/ID; the JSON file maps keys to id, prompt and edit_type."""
    edits, origin, result = tmp_path / "basic_edit.json", tmp_path / "originals", tmp_path / "edited" / "images"
    edits.write_text(json.dumps(EDITS))
    for edit in EDITS.values():
        (origin / edit["id"]).parent.mkdir(parents=True)
        Image.new("RGB", (40, 20), "red").save(origin / edit["id"])
    given = ["mini", "--suite", "imgedit", "--prompts", str(edits), "--images", str(origin), "-o", "schedule.steps=1"]
    assert main(["evaluate", *given, "--out", str(tmp_path / "edited")]) == 0
    for key, edit in json.loads(edits.read_text()).items():
        pair = [result / f"{key}.png", origin / edit["id"]]
        assert all(base64.b64encode(path.read_bytes()) for path in pair) and Image.open(pair[0]).format == "PNG"
