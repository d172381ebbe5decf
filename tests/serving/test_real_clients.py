"""bench/real_clients.py with the one client that is a dependency of the tests: every task of the openai client works."""

from __future__ import annotations

import subprocess

from ..pages import ROOT, environment
from ..warm import warm


def test_the_openai_client_at_every_task() -> None:
    command = [warm(), str(ROOT / "bench" / "real_clients.py"), "--only", "openai"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    header, _, row = done.stdout.strip().splitlines()
    assert row.startswith("| openai (Python) |") and row.count("| yes ") == header.count("|") - 3 == 10
