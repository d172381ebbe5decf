"""Every command of docs/stages.md on the data of docs/data.md, with two steps instead of twenty, and the plan that it shows."""

from __future__ import annotations

import re
from pathlib import Path

import unmask
from unmask.cli.recipe_files import recipes

from .pages import ROOT, commands, follow
from .test_data_page import write_data

PAGE = (ROOT / "docs" / "stages.md").read_text()


def test_the_page_runs_from_top_to_bottom(tmp_path: Path) -> None:
    write_data(tmp_path)
    asked = commands(PAGE)
    plans, runs = ([c for c in asked if c.split()[1] == word] for word in ("inspect", "train"))
    assert (len(plans), len(runs)) == (3, 5) and all("--steps 20" in command for command in runs)
    told = [follow(command, tmp_path) for command in plans]
    shown = next(block for block in re.findall(r"```text\n(.*?)```", PAGE, re.S) if "as the recipe is set" in block)
    assert told[0] == shown
    for command in runs:
        follow(command.replace("--steps 20", "--steps 2"), tmp_path)
    model = unmask.load(tmp_path / "runs" / "three")
    assert model.generate("a cat", plan=False, attempts=1, steps=1)[0].image.size == (128, 128)


def test_the_page_names_all_stages() -> None:
    stages = {name for name in recipes() if name.startswith("lavida_o.")}
    assert stages == set(re.findall(r"^\| `(lavida_o\.\w+)`", PAGE, re.M)) and len(stages) == 5
