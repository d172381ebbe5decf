"""The command trace: its table, its files, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from unmask.cli.main import main

from .. import tiny_llada


def test_a_text_family_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny_llada.make(tmp_path / "model")
    given = ["trace", "ask", "why?", "--model", str(model), "--out", str(tmp_path / "out"), "--json"]
    assert main(given) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["runs"] and {run["kind"] for run in told["runs"]} == {"text"}
    written = json.loads((tmp_path / "out" / "trace.json").read_text())
    assert {**written, "page": told["page"], "figures": told["figures"]} == told


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["edit", "make it red"], "edit takes a picture and an instruction"),
        (["generate", "{}", "a cat"], "generate takes no picture here"),
        (["ask", "{}", "{}", "a cat"], "ask takes one picture here"),
        (["draw", "a cat"], "'draw' is not one of"),
        (["generate"], "Missing argument"),
    ],
)
def test_mistakes_are_found_before_the_model_is_opened(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = Path(__file__).parents[2] / "unmask/serving/web/example-cups.png"
    assert main(["trace", *[word.format(picture) for word in words]]) == 2
    assert said in capsys.readouterr().err
