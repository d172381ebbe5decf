"""unmask probe: a failure search that writes what it found, goes on after a stop, and refuses a folder of another search."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from unmask.analysis.search import Trial
from unmask.cli.main import main
from unmask.evaluation.judge import Found, Seen
from unmask.evaluation.scoring import verdict
from unmask.recipes.sage import distinct, kinds, regressions, request, shown, space


def run(capsys: pytest.CaptureFixture[str], *words: str | Path) -> str:
    code = main(["probe", *map(str, words)])
    out, err = capsys.readouterr()
    assert code == 0, err
    return out


def test_a_search_finds_failures_and_goes_on(folder: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A model that has learned nothing fails everywhere."""
    whole = json.loads(run(capsys, folder, "--calls", "4", "--out", "a", "--json"))
    assert whole["calls"] == whole["failed"] == 4 and len(whole["failures"]) == whole["different"]
    run(capsys, folder, "--calls", "2", "--out", "b")
    lines = Path("b/trials.jsonl").read_text().splitlines()
    again = json.loads(run(capsys, folder, "--calls", "4", "--out", "b", "--json"))
    assert again == whole and Path("b/trials.jsonl").read_text().splitlines()[:3] == lines
    assert Path("a/trials.jsonl").read_text() == Path("b/trials.jsonl").read_text()
    html = Path("b/report.html").read_text()
    assert whole["failures"][0]["prompt"] in html and html.count("data:image/png;base64,") == whole["different"]
    assert main(["probe", str(folder), "--seed", "1", "--out", "b"]) == 2
    assert "seed 0 instead of 1" in capsys.readouterr().err


def test_points_name_prompts_and_what_they_want() -> None:
    sizes = space().sizes
    point = (0, 6, 1, 0, 1, 0, 0)
    texts = [request((form, *point[1:])).text for form in range(sizes[0])]
    assert (
        texts
        == [
            "a red apple",
            "two apples",
            "an apple and a cat",
            "an apple left of a cat",
            "a red apple and a yellow cat",
        ]
        or len(set(texts)) == sizes[0]
    )
    assert not space().allowed((0, 3, 3, 0, 1, 0, 0)) and space().allowed(point)
    last = tuple(size - 1 for size in sizes)
    assert request(last).want.items


def test_failures_are_counted_by_prompt_and_form() -> None:
    one, same, other = (0, 6, 1, 0, 1, 0, 0), (0, 6, 2, 0, 1, 3, 2), (1, 6, 1, 0, 1, 0, 0)
    trials = [
        Trial(point=point, seed=seed, failed=failed)
        for seed, (point, failed) in enumerate([(one, True), (same, True), (other, False), (other, True)])
    ]
    assert [t.seed for t in distinct(trials)] == [0, 3]
    assert kinds(trials)[:2] == [("colour", 2, 2), ("count", 2, 1)]
    assert [f["seed"] for f in regressions(trials)["failures"]] == [0, 3]


def seen(*objects: tuple[str, float, float]) -> Seen:
    found = [Found(name=name, colour="", box=(x, y, x + 0.2, y + 0.2), score=1.0) for name, x, y in objects]
    return Seen(objects=tuple(found), background="sky")


def test_a_diagonal_is_not_a_failure_of_a_relation() -> None:
    want = request((3, 6, 1, 0, 1, 0, 0)).want  # an apple left of a cat
    diagonal, wrong = seen(("apple", 0.1, 0.1), ("cat", 0.3, 0.7)), seen(("apple", 0.7, 0.1), ("cat", 0.3, 0.2))
    assert shown(diagonal, want) and not verdict(diagonal, want)
    assert not shown(wrong, want) and not shown(seen(("apple", 0.1, 0.1)), want)
    for how, point in enumerate([(0.0, 0.5), (0.9, 0.5), (0.5, 0.0), (0.5, 0.9)]):  # left, right, above, below
        holds = [
            shown(seen(("apple", *point), ("cat", 0.5, 0.5)), request((3, 6, 1, 0, 1, r, 0)).want) for r in range(4)
        ]
        assert holds == [r == how for r in range(4)]
    colours = request((0, 6, 1, 0, 1, 0, 0)).want
    assert shown(seen(("cat", 0, 0)), colours) == verdict(seen(("cat", 0, 0)), colours) is False
