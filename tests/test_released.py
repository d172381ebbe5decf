"""Every command and every Python block of docs/released.md, on the fixture and on tiny checkpoints in LLaDA's layout."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from .pages import ROOT, commands, follow, python, run
from .tiny_llada import make

PAGE = (ROOT / "docs" / "released.md").read_text()


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a reader has: a clone's tests/, and two downloaded folders."""
    place = tmp_path_factory.mktemp("reader")
    (place / "tests").symlink_to(ROOT / "tests")
    make(place / "LLaDA-8B-Instruct")
    make(place / "LLaDA-8B-Base", seed=1)
    return place


def test_commands_run_in_order(here: Path) -> None:
    told = {command: follow(command, here) for command in commands(PAGE)}
    assert len(told) >= 13
    for name in ("verify", "convert", "ask", "infill", "inspect"):
        assert any(f"unmask {name} " in command for command in told), name
    figures = next(json.loads(out) for command, out in told.items() if "--json" in command)
    assert figures["ok"] and len(figures["arrays"]) == 11
    assert (here / "apple.png").exists() and (here / "steps.txt").read_text()


@pytest.mark.parametrize("block", python(PAGE))
def test_python_runs(block: str, here: Path) -> None:
    done = run([sys.executable, "-c", block], here)
    assert done.returncode == 0, done.stderr
