"""Every command and every Python block of the README, run as a reader would."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from .pages import ROOT, commands, follow, python, run

README = (ROOT / "README.md").read_text()


def test_commands_run_in_order(tmp_path: Path) -> None:
    assert len(commands(README)) >= 4
    for command in commands(README):
        follow(command, tmp_path)


@pytest.mark.parametrize("block", python(README))
def test_python_runs(block: str, tmp_path: Path) -> None:
    done = run([sys.executable, "-c", block], tmp_path)
    assert done.returncode == 0, done.stderr


def test_links_lead_somewhere() -> None:
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_first_screen() -> None:
    screen = README.splitlines()[:32]
    assert any("make demo" in line for line in screen) and any("make test" in line for line in screen)
    assert sum(line.startswith("unmask ") for line in screen) >= 4
