"""Clients of OpenAI's API at every task, with the real libraries against a server of mini. Run by ``make test-integrations``.

``bench/real_clients.py`` does the tasks: chats with and without a stream, pictures in and out, structured output through pydantic, image
generations and edits, usage. JavaScript clients are those in ``node/node_modules`` of the virtual environment.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from ..pages import ROOT, environment

MODULES = Path(sys.prefix) / "node"
PYTHON = {"openai": "openai", "langchain-openai": "langchain_openai", "litellm": "litellm"}
pytestmark = pytest.mark.timeout(1600)  # a hundred requests, one after the other
NODE = ("openai", "@langchain/openai", "ai", "@openrouter/ai-sdk-provider")


@pytest.fixture(scope="module")
def table() -> list[str]:
    """The rows of the table of docs/serve.md."""
    command = [sys.executable, str(ROOT / "bench" / "real_clients.py")]
    there = shutil.which("node") and (MODULES / "node_modules").is_dir()
    modules = ["--modules", str(MODULES)] if there else []
    done = subprocess.run([*command, *modules], env=environment(), capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()


@pytest.mark.parametrize("client", PYTHON)
def test_a_python_client(client: str, table: list[str]) -> None:
    if not find_spec(PYTHON[client]):
        pytest.skip(f"{client} is not installed")
    (row,) = [row for row in table if row.startswith(f"| {client} (Python) |")]
    assert row.count("| yes ") >= 7 and "| no " not in row


@pytest.mark.parametrize("client", NODE)
def test_a_javascript_client(client: str, table: list[str]) -> None:
    if not (MODULES / "node_modules" / client).is_dir():
        pytest.skip(f"{client} is not installed")
    (row,) = [row for row in table if row.startswith(f"| {client} (JavaScript) |")]
    assert row.count("| yes ") >= 5 and "| no " not in row
