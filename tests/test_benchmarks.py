"""Every command and every Python block of docs/benchmarks.md, with files of a few rows in the benchmarks' own formats."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from unmask.data.dpg import COLUMNS
from unmask.data.refcoco import CONVERT
from unmask.data.world.render import render
from unmask.data.world.scenes import Scene, SceneObject

from .pages import ROOT, commands, follow, python, run

PAGE = (ROOT / "docs" / "benchmarks.md").read_text()
PROMPTS: tuple[dict[str, Any], ...] = (
    {"tag": "single_object", "include": [{"class": "cat", "count": 1}], "prompt": "a photo of a cat"},
    {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"},
    {"tag": "colors", "include": [{"class": "bus", "count": 1, "color": "red"}], "prompt": "a photo of a red bus"},
    {
        "tag": "counting",
        "include": [{"class": "dog", "count": 2}],
        "exclude": [{"class": "dog", "count": 3}],
        "prompt": "a photo of two dogs",
    },
)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a reader has: the files of the benchmarks, here of a few rows."""
    place = tmp_path_factory.mktemp("reader")
    for folder in ("prompts", "originals/animal", "refcoco", "train2014"):
        (place / folder).mkdir(parents=True)
    (place / "evaluation_metadata.jsonl").write_text("".join(json.dumps(p) + "\n" for p in PROMPTS))
    (place / "prompts" / "p0.txt").write_text("a red apple left of a cat")
    row = "p1,a dog,keys,1,0,entity,whole,entity - whole (dog),Is there a dog?"
    (place / "dpg_bench.csv").write_text(f"{','.join(COLUMNS)}\n{row}\n")
    dog = SceneObject(name="dog", colour="", x=0.5, y=0.25, size=0.5)
    Image.fromarray(render(Scene(objects=(dog,), background="sky", level="grid"))).save(place / "dog.png")
    picture = np.asarray(Image.open(place / "dog.png"))
    Image.fromarray(np.pad(picture, ((0, 0), (10, 30), (0, 0)))).save(place / "originals" / "animal" / "1.jpg")
    edit = {"id": "animal/1.jpg", "prompt": "make the dog red", "edit_type": "adjust"}
    (place / "basic_edit.json").write_text(json.dumps({"12": edit}))
    (place / "dog.png").rename(place / "train2014" / "9.png")
    refs = [
        {"ann_id": 1, "image_id": 9, "split": split, "sentences": [{"sent_id": i, "sent": "the dog"}]}
        for i, split in enumerate(("val", "testA", "train"))
    ]
    (place / "refcoco" / "refs.json").write_text(json.dumps(refs))
    instances = {
        "images": [{"id": 9, "file_name": "9.png", "width": 128, "height": 128}],
        "annotations": [{"id": 1, "bbox": [64, 32, 64, 64]}],
    }
    (place / "refcoco" / "instances.json").write_text(json.dumps(instances))
    return place


def test_commands_run_in_order(here: Path) -> None:
    told = {command: follow(command, here) for command in commands(PAGE)}
    assert {f"--suite {name} " in " ".join(told) for name in ("geneval", "dpg", "imgedit", "refcoco")} == {True}
    drawn = sorted(p.relative_to(here / "drawn").as_posix() for p in (here / "drawn").rglob("*.png"))
    assert drawn == [
        f"{prompt}/samples/{shot}.png" for prompt in ("00000", "00002", "00003") for shot in ("0000", "0001")
    ]
    assert json.loads((here / "drawn" / "00003" / "metadata.jsonl").read_text()) == PROMPTS[3]
    figures = json.loads((here / "geneval.json").read_text())["geneval"]
    assert (figures["prompts"], figures["prompts_judgeable"], figures["prompts_judged"]) == (4, 3, 3)
    assert (here / "everything" / "00001" / "samples" / "0000.png").exists()
    assert Image.open(here / "dpg" / "images" / "p0.png").size == (256, 256)
    assert Image.open(here / "dpg-single" / "images" / "p1.png").size == (128, 128)
    assert Image.open(here / "edited" / "images" / "12.png").size == (128, 128)
    found = json.loads((here / "refcoco.json").read_text())["refcoco"]
    assert found["val"]["value"] == found["testA"]["value"] == 1, "mini finds a dog that is alone"
    assert "train" not in found


@pytest.mark.parametrize("block", python(PAGE))
def test_python_runs(block: str, here: Path) -> None:
    done = run([sys.executable, "-c", block], here)
    assert done.returncode == 0, done.stderr


def test_the_page_names_the_conversion_that_the_error_names() -> None:
    assert CONVERT in PAGE
