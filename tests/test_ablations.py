"""The ablations: arms that differ in one thing, equal operations, rows of two arms, orders, and the page made of them."""

from __future__ import annotations

import importlib
import json
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from unmask.cli.main import main
from unmask.recipes import ablations
from unmask.recipes.ablations import ARMS, Phased

from .pages import ROOT

torch.set_num_threads(1)
TOY = ("--teraflops", "0.01", "--times", "0.05", "--n", "6")


@pytest.fixture(scope="module")
def page() -> Iterator[ModuleType]:
    """bench/ablations_page.py, with its folder on the path."""
    sys.path.insert(0, str(ROOT / "bench"))
    try:
        yield importlib.import_module("ablations_page")
    finally:
        sys.path.remove(str(ROOT / "bench"))


def test_an_arm_differs_from_the_baseline_in_its_own_group_alone() -> None:
    assert len({arm.group for arm in ARMS.values()} - {""}) >= 7
    base = ARMS["base"]
    changes = {
        "joint_layers": {"joint"},
        "gen_width": {"gen_width"},
        "stages": {"phases", "t_exp"},
        "weight": {"weight"},
        "conditions": {"conditions"},
        "dropout": {"dropout"},
        "t_exp": {"t_exp"},
    }
    for name, arm in ARMS.items():
        fields = [f for f in vars(arm) if f != "group" and getattr(arm, f) != getattr(base, f)]
        assert (name == "base" and not fields) or (fields and set(fields) <= changes[arm.group]), name


@pytest.mark.parametrize("arm", ["base", "joint_6", "gen_48", "staged"])
def test_every_arm_has_the_same_number_of_operations(arm: str) -> None:
    recipe = ablations.run(arm, teraflops=2.0, times=0.2)
    assert isinstance(recipe.source, Phased)
    each = ablations.cost(ARMS[arm], recipe, recipe.model())
    ends = (0, *recipe.source.ends)
    whole = sum(value * (end - first) for value, first, end in zip(each, ends[:-1], ends[1:], strict=True))
    assert 0.9e12 * 2 < whole < 1.1e12 * 2 and recipe.source.ends[-1] == recipe.training.steps


def test_stages_have_their_tasks_in_turn() -> None:
    recipe = ablations.run("staged", teraflops=0.2, times=0.05)
    seen = [tuple(recipe.source(step)) for step in range(recipe.training.steps)]
    assert list(dict.fromkeys(seen)) == [("look",), ("draw",), ablations.TASKS]


def test_all_arms_start_with_the_tower_of_mini_and_differ_by_seed() -> None:
    first, second = (ablations.network(ARMS["base"], seed) for seed in (0, 1))
    seen = ablations.shipped().parts.net.vision
    assert seen is not None and first.vision is not None
    assert torch.equal(first.vision.tower.patch.weight, seen.tower.patch.weight.float())
    assert not torch.equal(first.embed.weight, second.embed.weight)


def test_an_unknown_arm_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "ablations.run", "--out", str(tmp_path / "run"), "-o", "arm=wide"]) == 2
    assert "no arm 'wide'\nhint: choose from base, joint_1" in capsys.readouterr().err


def test_runs_leave_rows_are_not_repeated_and_make_a_page(page: ModuleType, tmp_path: Path) -> None:
    bench = importlib.import_module("ablations")  # page has made bench/ importable
    out, docs = tmp_path / "out", tmp_path / "docs"
    words = ["--out", str(out), *TOY, "--seeds", "0", "--arms", "base,joint_1"]
    bench.main(words)
    rows = [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]
    assert [(r["arm"], r["group"], r["seed"]) for r in rows] == [("base", "", 0), ("joint_1", "joint_layers", 0)]
    assert {"loss.look.text", "loss.draw.code", "drawing", "questions"} <= rows[1]["figures"].keys()
    bench.main(words)
    assert len((out / "rows.jsonl").read_text().splitlines()) == 2
    bench.main(["--out", str(out), "--page", "--docs", str(docs)])
    text = (docs / "ablations.md").read_text()
    assert "## Joint layers" in text and "\n| joint_1 |" in text and "0.01 TFLOP a run" in text
    ET.fromstring((docs / "pictures" / "ablations-joint_layers.svg").read_text())
    with pytest.raises(SystemExit, match="no arm 'wide'"):
        bench.main(["--out", str(out), "--arms", "wide"])


def row(arm: str, seed: int, group: str = "joint_layers", **figures: float) -> dict[str, Any]:
    return {"arm": arm, "group": group, "seed": seed, "steps": 10, "teraflops": 1.0, "n": 6, "figures": figures}


def test_intervals_and_gains_are_paired_by_seed(page: ModuleType) -> None:
    assert page.value([1.0, 2.0, 3.0]).half == pytest.approx(4.303 / 3**0.5)
    assert page.value([1.0]).half is None
    rows = [row("base", s, "", **{"loss.draw.code": 5 + s}) for s in range(3)]
    rows += [row("joint_1", s, **{"loss.draw.code": 5.5 + s + 0.01 * s}) for s in range(3)]
    found = page.gain(rows, "joint_1", "loss.draw.code")
    assert (
        found.mean == pytest.approx(-0.51) and found.half < 0.05
    )  # a larger loss is no gain; the seeds' own spread does not count
    question = page.QUESTIONS["joint_layers"]
    assert page.verdict(rows, "joint_1", question) == "as in the paper"
    turned = [row(r["arm"], r["seed"], r["group"], **{"loss.draw.code": -r["figures"]["loss.draw.code"]}) for r in rows]
    assert page.verdict(turned, "joint_1", question) == "opposite to the paper"
    assert page.verdict(rows[:1] + rows[3:4], "joint_1", question) == "no difference shown"
    assert page.verdict(rows, "joint_2", question) == ""


def test_a_page_needs_rows(page: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no rows yet"):
        page.write_page([], tmp_path)


def test_orders_have_a_section_of_their_own(page: ModuleType, tmp_path: Path) -> None:
    rows = [
        row(f"{order}_8", s, "orders", drawing=0.5, frechet=d)
        for order, d in (("random", 3.0), ("halton", 2.0))
        for s in (0, 1)
    ]
    page.write_page(rows, tmp_path)
    text = (tmp_path / "ablations.md").read_text()
    assert "## Order of unmasking" in text and "| random_8 | 10 | 0.500 ± 0.000 | 3.000 ± 0.000 |" in text
    assert "gain |" not in text
