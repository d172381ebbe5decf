"""The options of sampling at the command line: first in the help, and the same as settings by path."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from unmask.cli.main import main

from ..tiny_model import make

GOLDEN = Path(__file__).parents[1] / "golden" / "help"


def test_the_help_of_generate_begins_with_six_options() -> None:
    first, more = (GOLDEN / "unmask_generate.txt").read_text().partition("\nMore options:\n")[::2]
    shown = [line.split()[0] for line in first.partition("\nOptions:\n")[2].splitlines() if line.startswith("  -")]
    assert shown == ["--out", "-n", "--steps", "--guidance", "--seed", "--model"]
    assert {"--temperature", "-o", "-h,"} <= {line.split()[0] for line in more.splitlines() if line.strip()}


def test_options_are_fields_of_the_sampler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tiny").mkdir()
    folder = make(tmp_path / "tiny")
    monkeypatch.chdir(tmp_path)
    short = ("--steps", "2", "--guidance", "3", "--temperature", "0.7")
    long = ("-o", "schedule.steps=2", "-o", "guidance.scale=3", "-o", "token_sampler.temperature=0.7")
    made = []
    for number, options in enumerate((short, long)):
        words = ("generate", "a cat", "--json", "--model", str(folder), "--out", f"{number}.png")
        assert main([*words, *options]) == 0
        made.append(json.loads(capsys.readouterr().out)[0]["settings"])
    assert made[0] == made[1] and made[0]["schedule"]["steps"] == 2
    assert Path("0.png").read_bytes() == Path("1.png").read_bytes()


def test_chat_takes_the_options_of_words_and_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from unmask.pipeline.model import Model

    given: list[dict[str, object]] = []

    def converse(self: Model, messages: object, **options: object) -> None:
        given.append(options)
        raise ValueError("enough")

    (tmp_path / "tiny").mkdir()
    folder = make(tmp_path / "tiny")
    monkeypatch.setattr(Model, "converse", converse)
    monkeypatch.setattr("sys.stdin", _Lines(["hello"]))
    words = [
        "chat",
        "--model",
        str(folder),
        "--max-tokens",
        "9",
        "--steps",
        "2",
        "--guidance",
        "3",
        "--temperature",
        "0.5",
        *("--top-p", "0.9", "--stop", ".", "--stop", "END"),
    ]
    assert main(words) == 0
    wanted = {"seed": 0, "max_tokens": 9, "steps": 2, "guidance_scale": 3.0, "temperature": 0.5, "top_p": 0.9}
    assert given == [{**wanted, "stop": (".", "END")}]
    assert "enough" in capsys.readouterr().err


class _Lines(list[str]):
    """Standard input that is not a terminal."""

    def isatty(self) -> bool:
        return False
