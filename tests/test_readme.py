"""Every command and every Python block of the README, run as a reader would."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from .pages import ROOT, commands, follow, python, run
from .test_architecture import ROWS

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


def test_the_table_of_packages_is_the_one_that_is_enforced() -> None:
    table = re.findall(r"^ +(\d+) ((?:[a-z]+ ?)+)$", (ROOT / "CONTRIBUTING.md").read_text(), re.M)
    assert {name: int(row) for row, names in table for name in names.split()} == ROWS


def test_prose_is_wrapped() -> None:
    pages = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "unmask/assets/mini/README.md")]
    for page in [*pages, *(ROOT / "docs").rglob("*.md")]:
        wide = [n for n, line in enumerate(page.read_text().splitlines(), 1) if len(line) > 200 and line[:1] != "|"]
        assert not wide, f"{page.name}: lines {wide} exceed 200 characters"


def test_first_screen() -> None:
    screen = README.splitlines()[:32]
    assert any("make demo" in line for line in screen) and any("make test" in line for line in screen)
    assert sum(line.startswith("unmask ") for line in screen) >= 4
