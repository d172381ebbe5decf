"""Every command and every Python block of docs/structured.md."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from .pages import ROOT, commands, follow, python, run

PAGE = (ROOT / "docs" / "structured.md").read_text()


def test_commands_run_in_order(tmp_path: Path) -> None:
    (schema,) = re.findall(r"```json\n(.*?)```", PAGE, re.S)
    (tmp_path / "apple.json").write_text(schema)
    told = [follow(command, tmp_path) for command in commands(PAGE)]
    assert json.loads(told[1]) == "red" and json.loads(told[2])["value"] == "one"
    assert json.loads(told[3]) == {"colour": "red", "count": 1, "cat": False}


@pytest.mark.parametrize("block", python(PAGE))
def test_python_runs(block: str, tmp_path: Path) -> None:
    done = run([sys.executable, "-c", block], tmp_path)
    assert done.returncode == 0, done.stderr
