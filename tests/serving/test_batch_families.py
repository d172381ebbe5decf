"""Batches of the published families: every option of the command line is a field of a line, and a wrong one is a named error."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import unmask
from unmask.cli.main import main
from unmask.pipeline.model import Model
from unmask.pipeline.text_model import TextModel

from ..families import FAMILIES

torch.set_num_threads(1)
FEW: dict[str, Any] = {"steps": 2, "seed": 3}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    return {name: family.make(root / name.replace(" ", "_")) for name, family in FAMILIES.items()}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    Image.new("RGB", (96, 40), "red").save(tmp_path / "wide.png")
    Image.new("RGB", (40, 96), "blue").save(tmp_path / "tall.png")
    Image.new("L", (96, 40), 255).save(tmp_path / "mask.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def batch(folder: Path, lines: dict[str, dict[str, Any]], *words: str) -> dict[str, dict[str, Any]]:
    """The records of a batch by id."""
    Path("in.jsonl").write_text("".join(json.dumps({"id": name, **line}) + "\n" for name, line in lines.items()))
    main(["batch", "in.jsonl", "out", "--model", str(folder), *words])
    return {row["id"]: row for row in map(json.loads, Path("out/results-0.jsonl").read_text().splitlines())}


def picture(row: dict[str, Any]) -> np.ndarray:
    assert row["ok"], row
    return np.asarray(Image.open(Path("out") / row["result"]["file"]))


def test_pictures_of_any_shape_and_kinds_of_edits(folders: dict[str, Path], here: Path) -> None:
    model = unmask.load(folders["lumina_dimoo"])
    assert isinstance(model, Model)
    draw = {"task": "generate", "prompt": "a red cat", **FEW}
    edit = {"task": "edit", "image": "wide.png", "prompt": "so", **FEW}
    style = {**edit, "kind": "image_ref_transfer", "reference": "tall.png"}
    asked = {
        "wide": {**draw, "size": "64x32"},
        "guided": {**draw, "guidance": 0, "temperature": 0.5},
        "depth": {**edit, "kind": "depth_pred"},
        "style": style,
        "released": {**style, "quirks": "released"},
        "filled": {"task": "infill", "image": "wide.png", "mask": "mask.png", "prompt": "a cat", **FEW},
    }
    rows = batch(folders["lumina_dimoo"], asked)
    released = model.with_quirks("released")
    both: dict[str, Any] = {"kind": "image_ref_transfer", "reference": "tall.png", **FEW}
    alone = {
        "wide": model.generate("a red cat", size=(64, 32), **FEW)[0],
        "guided": model.generate("a red cat", guidance_scale=0.0, temperature=0.5, **FEW)[0],
        "depth": model.edit("wide.png", "so", kind="depth_pred", **FEW)[0],
        "style": model.edit("wide.png", "so", **both)[0],
        "released": released.edit("wide.png", "so", **both)[0],
        "filled": model.infill("wide.png", "mask.png", prompt="a cat", **FEW),
    }
    for name, drawn in alone.items():
        assert np.array_equal(picture(rows[name]), np.asarray(drawn.image)), name
    assert alone["style"].image.size != alone["released"].image.size  # the quirk is the size of the reference


def test_quirks_of_the_command_are_those_of_lines_without(folders: dict[str, Path], here: Path) -> None:
    style = {"task": "edit", "image": "wide.png", "prompt": "so", "kind": "image_ref_transfer", "reference": "tall.png"}
    rows = batch(
        folders["lumina_dimoo"],
        {"a": {**style, **FEW}, "b": {**style, **FEW, "quirks": "usual"}},
        "--quirks",
        "released",
    )
    assert picture(rows["a"]).shape[:2] == picture(rows["b"]).shape[1::-1]


@pytest.mark.parametrize("name", ["lavida", "lavida on dream", "dimple", "mmada"])
def test_answers_from_a_draft_and_on_a_canvas(name: str, folders: dict[str, Path], here: Path) -> None:
    model = unmask.load(folders[name])
    assert isinstance(model, Model)
    ask = {"task": "ask", "image": "wide.png", "prompt": "is it?", "seed": 3}
    rows = batch(
        folders[name], {"draft": {**ask, "draft": "it is [mask:3] so", "length": 32}, "long": {**ask, "length": 32}}
    )
    assert (
        rows["draft"]["result"]["text"]
        == model.ask("wide.png", "is it?", seed=3, draft="it is [mask:3] so", length=32).text
    )
    assert rows["long"]["result"]["text"] == model.ask("wide.png", "is it?", seed=3, length=32).text


@pytest.mark.parametrize("name", ["llada", "dream"])
def test_a_text_model_continues_a_plain_text(name: str, folders: dict[str, Path], here: Path) -> None:
    model = unmask.load(folders[name])
    assert isinstance(model, TextModel)
    ask = {"task": "ask", "prompt": "is the sky", "seed": 3, "length": 32}
    draft = {"draft": "it is [mask:3] so"}
    rows = batch(folders[name], {"plain": {**ask, "plain": True}, "chat": ask, "draft": {**ask, **draft}})
    assert rows["draft"]["result"]["text"] == model.ask("is the sky", seed=3, length=32, **draft).text
    assert rows["plain"]["result"]["text"] == model.complete("is the sky", seed=3, length=32).text
    assert rows["chat"]["result"]["text"] == model.ask("is the sky", seed=3, length=32).text


DRAW, EDIT = {"task": "generate", "prompt": "a cat"}, {"task": "edit", "image": "wide.png", "prompt": "so"}
ASK = {"task": "ask", "image": "wide.png", "prompt": "is it?"}
WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("lumina_dimoo", {**DRAW, "size": "64"}, "size: .*'64' is not possible; give a size of 1x1 to 4096x4096"),
    ("lumina_dimoo", {**DRAW, "size": "4097x8"}, "size: .*4096x4096"),
    ("lumina_dimoo", {**DRAW, "size": [64, 32]}, "size: .*a text such as 1536x768"),
    ("lumina_dimoo", {**DRAW, "size": "65x32"}, "65x32 pixels is not possible; both sides must be multiples of"),
    ("lumina_dimoo", {**DRAW, "size": "4096x4096"}, "more than 4 times the area .*; give a smaller size"),
    ("lumina_dimoo", {**DRAW, "contrast": 0.7}, "contrast: .*0.5"),
    ("lumina_dimoo", {**DRAW, "contrast": 0.2}, "draws from a prompt and a size alone"),
    ("lumina_dimoo", {**EDIT, "kind": "depth"}, "no kind of edit 'depth'"),
    ("lumina_dimoo", {**EDIT, "kind": "x" * 41}, "kind: "),
    ("lumina_dimoo", {**EDIT, "kind": "image_ref_transfer"}, "reads 1 references, got 0"),
    ("lumina_dimoo", {**EDIT, "reference": "none.png"}, "none.png"),
    (
        "lumina_dimoo",
        {**EDIT, "kind": "edit_add", "reflect": 2},
        "cannot be combined with several attempts|cannot judge",
    ),
    ("lumina_dimoo", {**EDIT, "quirks": "some"}, "quirks: .*'usual', 'released' or 'none'"),
    ("lumina_dimoo", {**ASK, "steps": 0}, "steps: .*greater than or equal to 1"),
    ("mmada", {**DRAW, "size": "64x32"}, "draws from a prompt alone"),
    ("mmada", {**DRAW, "quirks": "none"}, "no deviations of released scripts"),
    ("mmada", EDIT, "MMaDA cannot edit"),
    ("dimple", {**ASK, "draft": "no gap"}, "no .mask. in .no gap"),
    ("dimple", {**ASK, "draft": "a [slot:3]"}, "no slots"),
    ("dimple", {**ASK, "draft": "[mask:3]", "max_tokens": 3}, "max_tokens cannot be combined with a draft"),
    ("dimple", {**ASK, "draft": "[mask:513]"}, "1 to 512 tokens"),
    ("dimple", {**ASK, "plain": True}, "plain is for text models"),
    ("dream", {**ASK, "image": None, "draft": "[mask]", "max_tokens": 3}, "max_tokens cannot be combined with a draft"),
    (
        "dream",
        {**ASK, "image": None, "draft": "[mask]", "plain": True},
        "plain cannot be combined with schema, regex or",
    ),
    ("dream", {**ASK, "image": None, "quirks": "released"}, "no deviations of released scripts"),
    (
        "dream",
        {**ASK, "image": None, "plain": True, "regex": "a"},
        "plain cannot be combined with schema, regex or draft",
    ),
]


@pytest.mark.parametrize("name", ["lumina_dimoo", "mmada", "dimple", "dream"])
def test_what_is_wrong_is_named_and_stops_nothing(name: str, folders: dict[str, Path], here: Path) -> None:
    wrong = [(line, said) for family, line, said in WRONG if family == name]
    rows = batch(folders[name], {str(i): line for i, (line, _) in enumerate(wrong)})
    for i, (line, said) in enumerate(wrong):
        assert not rows[str(i)]["ok"] and re.search(said, rows[str(i)]["error"]), (line, rows[str(i)])
