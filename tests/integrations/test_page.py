"""The Python blocks of docs/integrations.md run as they stand. Run by ``make test-integrations``."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from ..pages import ROOT, python, run

PAGE = (ROOT / "docs" / "integrations.md").read_text(encoding="utf-8")
BLOCKS = python(PAGE)


@pytest.mark.parametrize(
    "block", BLOCKS, ids=[re.findall(r"unmask\.integrations\.(\w+)", block)[0] for block in BLOCKS]
)
def test_every_block_runs(block: str, tmp_path: Path) -> None:
    for library in re.findall(r"unmask\.integrations\.(\w+)", block):
        pytest.importorskip(library)
    done = run([sys.executable, "-c", block], tmp_path)
    assert done.returncode == 0, done.stderr
