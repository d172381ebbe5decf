"""Every command and every Python block of docs/thinking.md."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from .pages import ROOT, commands, environment, follow, python, run
from .warm import warm

PAGE = (ROOT / "docs" / "thinking.md").read_text()


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("thinker")


def test_commands_run_in_order(here: Path) -> None:
    told = {command: follow(command, here) for command in commands(PAGE)}
    assert len(told) == 6
    made = ("planned", "plan", "placed", "edit", "attempts", "sand", "edits")
    assert all((here / f"{name}.png").exists() for name in made)
    assert (here / "report" / "report.html").exists()


@pytest.mark.parametrize("block", python(PAGE))
def test_python_runs(block: str, here: Path) -> None:
    done = run([sys.executable, "-c", block], here)
    assert done.returncode == 0, done.stderr


def converse(said: str, here: Path, *words: str) -> str:
    program = "import sys; from unmask.cli.main import main; sys.exit(main())"
    done = subprocess.run(
        [warm(), "-c", program, "chat", *words],
        cwd=here, input=said, env=environment(), capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    return done.stdout


def test_the_conversation_of_the_page(here: Path) -> None:
    (found,) = re.findall(r"^printf '(.*)' \| unmask chat --out chat$", PAGE, re.M)
    told = converse(found.encode().decode("unicode_escape"), here, "--out", "chat").splitlines()
    assert sum(line.endswith(".png") for line in told) >= 2 and len(told) >= 4
    assert all((here / line).exists() for line in told if line.endswith(".png"))


def test_ten_turns_of_words_and_pictures(here: Path) -> None:
    """What kind of turn each is follows from what was asked: d(rawing), w(ords), or both."""
    asked = {
        "draw a photo of a red apple": "d",
        "what colour is the apple?": "w",
        "how many apples are there?": "w",
        "add a cat at the top left": "d",
        "is there a cat?": "w",
        "what is at the top left?": "w",
        "change the background to sand": "d",
        "describe, then draw": "wd",
        "draw two dogs": "d",
        "how many dogs are there?": "w",
    }
    told = converse("\n".join(asked), here, "--json", "--out", "ten").splitlines()
    turns = [json.loads(line) for line in told]
    assert len(turns) == 10 and [t["unread"] for t in turns] == list(range(0, 20, 2))
    kinds = ["".join(dict.fromkeys("d" if part is None else "w" for part in t["parts"])) for t in turns]
    assert kinds == list(asked.values()), turns
    assert all((here / file).exists() for t in turns for file in t["files"])


def test_the_shipped_model_draws_what_it_described(here: Path) -> None:
    told = converse(
        "draw a photo of a red apple\ndescribe, then draw", here, "--json", "--out", "described"
    ).splitlines()
    parts = json.loads(told[1])["parts"]
    assert isinstance(parts[0], str) and None in parts[1:]
