"""Every command and the Python block of docs/luminance.md."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from PIL import Image

from .pages import ROOT, commands, follow, python, run

PAGE = (ROOT / "docs" / "luminance.md").read_text()


def test_commands_run_in_order(tmp_path: Path) -> None:
    for command in commands(PAGE):
        follow(command, tmp_path)
    assert all(Image.open(tmp_path / name).size == (128, 128) for name in ("bright.png", "dark.png", "scored.png"))
    assert (tmp_path / "report" / "report.html").exists()


def test_python_runs(tmp_path: Path) -> None:
    (block,) = python(PAGE)
    done = run([sys.executable, "-c", block], tmp_path)
    assert done.returncode == 0, done.stderr
    pairs = r"LUMINANCE : 0.\d{3}; CONTRAST : 0.\d{3} -> LUMINANCE : [01].\d{3}; CONTRAST : 0.\d{3}"
    assert all(re.fullmatch(pairs, line) for line in done.stdout.splitlines()) and done.stdout.count("\n") == 2
