"""unmask explain: maps of a picture or of one it generates, for every word or split for two of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from unmask.cli.main import main

FAST = ("--masks", "2", "-o", "schedule.steps=2")


def run(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[str, str]:
    code = main(["explain", *map(str, words), *FAST])
    out, err = capsys.readouterr()
    assert code == 0, err
    return out, err


def test_every_content_word_gets_a_number_and_a_map(
    folder: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, err = run(capsys, "in.png", "a red apple left of a cat", "--out", "maps.png", "--model", folder)
    lines = [line.split() for line in out.splitlines()]
    assert [line[0] for line in lines if line[0] in ("red", "apple", "left", "cat")] == ["red", "apple", "left", "cat"]
    assert not any(line[0] in ("a", "of") for line in lines) and "maps: maps.png" in err
    assert Image.open("maps.png").size[1] > Image.open("maps.png").size[0] * 0.6  # five panels, two rows


def test_two_words_are_split_and_json_has_the_maps(
    folder: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("a red apple", "--words", "red, apple", "--json", "--model", folder)
    found = json.loads(run(capsys, "in.png", *words)[0])
    assert found["words"] == ["red", "apple"] and found["file"] is None and found["unit"] == "nats"
    total = sum(found["totals"][name] for name in ("redundant", "only red", "only apple", "synergy"))
    assert total == pytest.approx(found["totals"]["both words"], abs=1e-3)
    generated = json.loads(run(capsys, *words)[0])
    assert generated["totals"] != found["totals"]
    assert generated == json.loads(run(capsys, *words)[0]), "the picture is generated from the seed"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["in.png", "in.png", "a red cat"], "one picture is explained at a time, got 2"),
        (["apple"], "has fewer than two words"),
        (["a red cat", "--words", "red"], "takes two words with a comma"),
        (["a red cat", "--words", "red,dog"], "has no word 'dog'"),
        (["in.png"], "the prompt is missing"),
    ],
)
def test_mistakes_are_told_before_a_model_is_opened(
    words: list[str], message: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explain", *words, "--model", "no-such-folder"]) == 2
    assert message in capsys.readouterr().err
