"""Every command and the Python block of docs/data.md, on the data that it shows."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from PIL import Image

from .pages import ROOT, commands, follow, python, run

PAGE = (ROOT / "docs" / "data.md").read_text()


def write_data(folder: Path) -> None:
    """The folder and the manifest of the page."""
    (manifest,) = re.findall(r"```json\n(.*?)```", PAGE, re.S)
    (folder / "pets.jsonl").write_text(manifest)
    (shown,) = [block for block in re.findall(r"```text\n(.*?)```", PAGE, re.S) if block.startswith("pets/")]
    (folder / "pets").mkdir()
    for name in re.findall(r"pets/\S+\.jpg", shown):
        Image.new("RGB", (200, 220), "brown").save(folder / name)
    for name, text in re.findall(r"(pets/\S+\.(?:txt|json)):?\s+(.+)", shown):
        (folder / name).write_text(text)


def test_the_page_runs_from_top_to_bottom(tmp_path: Path) -> None:
    write_data(tmp_path)
    told = [follow(command, tmp_path) for command in commands(PAGE)]
    assert len(told) == 4 and "broken: 0 of 3 rows" in told[0] and told[1] == "pets-codes\n"
    assert "broken: 0 of 6 rows" in told[2] and (tmp_path / "pets.png").exists()
    tasks = ("caption", "chat", "boxes", "edit", "critique", "interleaved")
    assert all(f"{task} " in told[2] for task in tasks) and json.loads(told[3])["rows"] == 9
    (block,) = python(PAGE)
    done = run([sys.executable, "-c", block], tmp_path)
    assert done.returncode == 0, done.stderr
    assert "(200, 220)" in done.stdout and len(eval(done.stdout.splitlines()[-1])) == 4
