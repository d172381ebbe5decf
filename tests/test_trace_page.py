"""docs/trace.md and docs/page.md: their commands and Python run."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from .pages import ROOT, commands, follow, python, run

TRACE, WEB = ((ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("trace.md", "page.md"))


@pytest.mark.parametrize("block", [*python(TRACE), *python(WEB)])
def test_python_runs(block: str, tmp_path: Path) -> None:
    done = run([sys.executable, "-c", block], tmp_path)
    assert done.returncode == 0, done.stderr


def test_the_commands_write_what_the_page_says(tmp_path: Path) -> None:
    for command in commands(TRACE):
        follow(command, tmp_path)
    assert (tmp_path / "runs/apples/trace.html").exists() and (tmp_path / "runs/apples/trace.json").exists()
