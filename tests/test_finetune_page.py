"""Every command of docs/finetune.md, with one step instead of hundreds, on the data of docs/data.md."""

from __future__ import annotations

from pathlib import Path

from unmask.recipes.finetune import PARTS

from .pages import ROOT, commands, follow
from .test_data_page import write_data

PAGE = (ROOT / "docs" / "finetune.md").read_text()


def test_the_page_runs_from_top_to_bottom(tmp_path: Path) -> None:
    write_data(tmp_path)
    asked = commands(PAGE)
    assert len(asked) == 4 and sum("--steps 340" in command for command in asked) == 3
    told = [follow(command.replace("--steps 340", "--steps 1"), tmp_path) for command in asked]
    assert told[0] == "runs/pets\n" and (tmp_path / "rex.png").exists()
    assert (tmp_path / "runs" / "pets" / "adapter").is_dir()
    assert told[2] == "runs/kept\n" and told[3] == "runs/mixed\n"


def test_the_page_names_all_parts() -> None:
    assert f"the parts are {', '.join(PARTS[:-1])}\nand {PARTS[-1]}" in PAGE
