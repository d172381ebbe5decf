"""docs/modalities.md: a toy modality is added by following the page; its blocks are the file, its command trains, its last block plays."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch

import unmask.recipes
from unmask.cli import recipe_files
from unmask.cli.main import main

from .pages import ROOT, commands, python

torch.set_num_threads(1)
PAGE = (ROOT / "docs" / "modalities.md").read_text()


def test_a_modality_is_added_by_following_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    *blocks, used = python(PAGE)
    (command,) = commands(PAGE)
    code = [line for block in blocks for line in block.splitlines() if line.strip()]
    assert len(blocks) == 3 and len([line for line in code if not line.startswith(("from", "import"))]) <= 60
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "tunes.py").write_text("\n\n".join(blocks))
    # As if the file lay in unmask/recipes.
    monkeypatch.setattr(unmask.recipes, "__path__", [*unmask.recipes.__path__, str(tmp_path / "recipes")])
    monkeypatch.setattr(recipe_files, "_RECIPES", tmp_path / "recipes")
    monkeypatch.chdir(tmp_path)
    try:
        assert main(command.split()[1:]) == 0
        capsys.readouterr()
        exec(used, {})
        notes = [int(note) for note in capsys.readouterr().out.strip(" []\n").split(", ")]
        assert len(notes) == 8 and sum(b > a for a, b in zip(notes[:-1], notes[1:], strict=True)) >= 6
        falling = unmask.load("runs/tunes").play("falls from high", seed=2)  # type: ignore[union-attr]
        assert int((falling.diff() < 0).sum()) >= 6
    finally:
        sys.modules.pop("unmask.recipes.tunes", None)


def test_the_files_and_verbs_of_the_table_exist() -> None:
    rows = [line.split("|")[1:-1] for line in PAGE.splitlines() if line.startswith("| ") and ".py" in line]
    assert len(rows) == 6
    for row in rows:
        files = [ROOT / "unmask" / name for name in re.findall(r"`([\w/]+\.py)`", row[-1])]
        text = "".join(file.read_text() for file in files)
        for verb in re.findall(r"`(\w+)", row[3]):
            assert f"def {verb}(" in text, f"{row[0]}: no {verb} in {files}"
