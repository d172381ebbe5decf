"""Every command and every Python block of the README, run as a reader would."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
COMMANDS = [
    line
    for block in re.findall(r"```bash\n(.*?)```", README, re.S)
    for line in block.splitlines()
    if line.startswith("unmask ")
]
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.S)


def run(arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(arguments, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


def test_commands_run_in_order(tmp_path: Path) -> None:
    assert len(COMMANDS) >= 4
    for command in COMMANDS:
        call = [sys.executable, "-c", "from unmask.cli.main import main; main()", *shlex.split(command)[1:]]
        done = run(call, tmp_path)
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("block", BLOCKS)
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
