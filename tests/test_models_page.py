"""Every command and every Python block of docs/models.md on the fixtures that they name."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from unmask.cli.main import main

from .pages import ROOT, commands, python

PAGE = (ROOT / "docs" / "models.md").read_text()


def test_commands_run_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    monkeypatch.chdir(tmp_path)
    for block in python(PAGE):
        exec(compile(block, "docs/models.md", "exec"), {})
    found = commands(PAGE)
    for command in found:
        code = main(shlex.split(command)[1:])
        assert code == 0, (command, capsys.readouterr())
    assert len(found) >= 6 and (tmp_path / "filled.png").exists()
