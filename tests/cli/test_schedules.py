"""--schedule and --cache: parts of the sampler by name, for every task."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from unmask.cli import completion
from unmask.cli.main import main
from unmask.evaluation import sampler_axes

from .. import tiny_llada
from ..tiny_model import make


def settings(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, dict[str, object]]:
    assert main([*words, "--json", "-q"]) == 0
    told = json.loads(capsys.readouterr().out)
    return (told[0] if isinstance(told, list) else told)["settings"]


def test_every_task_takes_a_schedule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tiny").mkdir()
    monkeypatch.chdir(tmp_path)
    words = ("--model", str(make(tmp_path / "tiny")), "--schedule", "shift:shift=0.33", "--steps", "3")
    drawn = settings(capsys, "generate", "a cat", "--out", "a.png", *words)
    assert drawn["schedule"] == {"part": "Shift", "steps": 3, "shift": 0.33}
    asked = settings(capsys, "ask", "a.png", "what is it?", *words)
    assert asked["schedule"] == {"part": "Shift", "steps": 3, "shift": 0.33}
    filled = settings(capsys, "infill", "a [mask] cat", *words)
    assert filled["schedule"] == {"part": "Shift", "steps": 3, "shift": 0.33}


def test_a_text_model_has_a_prefix_at_inference(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(tiny_llada.make(tmp_path / "llada"))
    words = ("ask", "why is the sky blue?", "--model", folder, "--length", "8", "--max-tokens", "8")
    plain, cached = settings(capsys, *words), settings(capsys, *words, "--cache", "prefix")
    assert (plain["prior"]["part"], plain["cache"]["part"]) == ("AllMasked", "NoCache")
    assert (cached["prior"]["part"], cached["cache"]["part"]) == ("PrefixLM", "PrefixCache")


def test_a_sampler_by_name_comes_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(tiny_llada.make(tmp_path / "llada"))
    words = ("ask", "why?", "--model", folder, "--length", "8", "--sampler", "remdm", "-o", "eta=0.3")
    found = settings(capsys, *words, "--schedule", "cosine:steps=4", "--cache", "none")
    assert found["selection"]["part"] == "Remasking" and found["schedule"] == {"part": "Cosine", "steps": 4}


@pytest.mark.parametrize(
    ("option", "name", "said"),
    [
        ("--schedule", "shft", "did you mean 'shift'?"),
        ("--schedule", "shift:shift=x", "shift is not a number"),
        ("--schedule", "cosine:shift=3", "it has steps"),
        ("--cache", "prefx", "did you mean 'prefix'?"),
    ],
)
def test_a_wrong_name_is_told_before_a_model_is_opened(
    option: str, name: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ask", "why?", "--model", "nowhere", option, name]) == 2
    assert said in capsys.readouterr().err


def test_completion_and_help_have_the_names_of_the_parts() -> None:
    assert ("own", *completion.SCHEDULES) == sampler_axes.SCHEDULES
    assert ("own", *completion.CACHES) == sampler_axes.CACHES
