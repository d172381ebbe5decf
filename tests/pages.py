"""What a page of the documentation asks its reader to do, and how to do it: commands and Python blocks, run as a reader would."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from .warm import warm

ROOT = Path(__file__).parent.parent


def commands(page: str) -> list[str]:
    """The lines of its bash blocks that call the program."""
    blocks = re.findall(r"```bash\n(.*?)```", page, re.S)
    return [line for block in blocks for line in block.splitlines() if line.startswith("unmask ")]


def python(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page, re.S)


def environment() -> dict[str, str]:
    """A reader's, with this source tree as the installed package."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def run(arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a program; one in Python by one that is warm."""
    if arguments[0] == sys.executable:
        arguments = [warm(), *arguments[1:]]
    return subprocess.run(arguments, cwd=folder, env=environment(), capture_output=True, text=True, timeout=300)


def follow(command: str, folder: Path) -> str:
    """Run a command in ``folder``; its stdout. It must succeed, without a traceback."""
    call = [
        sys.executable,
        "-c",
        "import sys; from unmask.cli.main import main; sys.exit(main())",
        *shlex.split(command)[1:],
    ]
    done = run(call, folder)
    assert done.returncode == 0, f"{command}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    return done.stdout
