"""Measures of planning, reflection and critiques: perfect and failing models, fewer attempts, calibration."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from PIL import Image

from unmask.data.world.render import render
from unmask.evaluation import world_thinking
from unmask.evaluation.evaluate import EvalPlan, Record, measure
from unmask.evaluation.metrics import balanced, calibration
from unmask.evaluation.strategies import EditGenerator, PromptGenerator
from unmask.evaluation.world_edit import wishes
from unmask.evaluation.world_geneval import CATEGORIES, prompts
from unmask.evaluation.world_thinking import Critiques, Reflections, taken
from unmask.pipeline.model import Model
from unmask.tasks import reflecting
from unmask.tasks.reflecting import Thinking
from unmask.tasks.results import Attempt

PLAN = EvalPlan(n=12, batch=5)
SCENES = {p.text: p.scene for kind in CATEGORIES for p in prompts(kind, 2, level="grid", split="test", seed=0)}


def round_of(image: Image.Image, critique: str, approval: float) -> Attempt:
    return Attempt(
        image=image, plan=None, critique=critique, accepted="is correct" in critique, approval=approval, seed=0
    )


def test_a_model_that_gets_it_right_the_second_time(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    blank = Image.new("RGB", (128, 128), "white")

    def think(model: Any, texts: Any, seeds: Any, thinking: Thinking, sampler: Any) -> list[list[Attempt]]:
        right = [Image.fromarray(render(SCENES[text], 128)) for text in texts]
        return [[round_of(blank, "there is no such thing", 0.1), round_of(r, "is correct", 0.9)] for r in right]

    monkeypatch.setattr(reflecting, "think", think)
    part = Reflections(plain=PromptGenerator(changes=("schedule.steps=2",)))
    found = measure(model, part, PLAN, Record()).figures
    # Every prompt against itself: what the last try has beyond the first, and the first beyond the plain picture.
    assert found["gain_of_reflection"]["value"] == found["rounds_8"]["overall"]["value"]
    gains = [found[f"gain_of_{name}"]["value"] for name in ("planning", "reflection", "both")]
    assert gains[0] == -found["plain"]["overall"]["value"] and gains[2] == pytest.approx(gains[0] + gains[1])
    assert found["rounds_1"]["overall"]["value"] == 0 and found["rounds_2"]["overall"]["value"] > 0.9
    assert found["rounds_8"] == found["rounds_2"] and found["tries"]["value"] == 2
    assert found["critique_of_first_try"]["wrong_refused"]["value"] == 1
    assert found["critique_of_first_try"]["balanced_accuracy"]["value"] is None  # no first try was right


def test_an_arm_that_thinks_hands_over_the_best_try(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Thinking] = []

    def think(model: Any, texts: Any, seeds: Any, thinking: Thinking, sampler: Any) -> list[list[Attempt]]:
        asked.append(thinking)
        colours = (("black", "no", 0.1), ("red", "no", 0.7), ("green", "no", 0.2))
        return [[round_of(Image.new("RGB", (8, 8), c), said, chance) for c, said, chance in colours] for _ in texts]

    monkeypatch.setattr(reflecting, "think", think)
    items = prompts("single", 2, level="grid", split="test", seed=0)
    arm = PromptGenerator(thinking=Thinking(plan=True, attempts=3))
    assert arm(model, items)[:, 0, 0].tolist() == [[255, 0, 0]] * 2
    assert asked == [arm.thinking] and arm.settings(model) != PromptGenerator().settings(model)


def test_edits_from_a_plan_are_an_arm_of_their_own(model: Model) -> None:
    items = wishes("add", 2, PLAN)
    few = ("schedule.steps=2",)
    planned, plain = EditGenerator(changes=few, thinking=Thinking(plan=True)), EditGenerator(changes=few)
    assert planned(model, items).shape == plain(model, items).shape == (2, 128, 128, 3)
    assert planned.settings(model) != plain.settings(model)


def test_what_counts_with_fewer_tries() -> None:
    def tried(right: bool, accepted: bool, approval: float) -> dict[str, Any]:
        return {"right": right, "accepted": accepted, "approval": approval}

    row = {"tries": [tried(False, False, 0.3), tried(True, False, 0.2), tried(False, True, 0.1)]}
    assert [taken(row, n)["approval"] for n in (1, 2, 3)] == [0.3, 0.3, 0.1]


def test_critiques_of_a_perfect_and_of_a_mute_model(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    items = Critiques().items(PLAN)
    assert [bool(i.wanted) for i in items] == [False, True] * 6
    wanted = {i.text: i.wanted for i in items}

    def perfect(model: Any, texts: Any, pictures: Any) -> list[tuple[str, float]]:
        return [(wanted[t] or "everything is correct", 0.0 if wanted[t] else 1.0) for t in texts]

    monkeypatch.setattr(reflecting, "criticise", perfect)
    found = measure(model, Critiques(), PLAN, Record()).figures
    assert found["balanced_accuracy"]["value"] == found["named_in_the_same_words"]["value"] == 1
    assert found["calibration"]["value"] == 0
    monkeypatch.setattr(world_thinking.reflecting, "criticise", lambda m, texts, p: [("", 0.5) for _ in texts])
    part = dataclasses.replace(Critiques(), name="mute")
    found = measure(model, part, PLAN, Record()).figures
    assert found["balanced_accuracy"]["value"] == 0.5 and found["wrong_refused"]["value"] == 1


def test_the_pictures_of_critiques_are_what_they_are_said_to_be() -> None:
    for item in Critiques().items(EvalPlan(n=40)):
        assert item.key == f"{item.index:04d}" and np.asarray(render(item.scene, 64)).shape == (64, 64, 3)
        if item.wanted:
            assert "is correct" not in item.wanted


def test_balanced_accuracy_and_calibration() -> None:
    pairs = [(True, True)] * 9 + [(True, False)] + [(False, False)] * 1 + [(False, True)] * 1
    found = balanced(pairs)
    assert found["value"] == pytest.approx((0.9 + 0.5) / 2) and found["low"] < found["value"] < found["high"]
    assert balanced([(True, True)])["value"] is None
    sure = calibration([(0.95, True)] * 3 + [(0.95, False)] + [(0.0, False)] * 4)
    assert sure["value"] == pytest.approx(0.5 * 0.2) and [b["n"] for b in sure["bins"]] == [4, 4]
    assert calibration([])["value"] is None and calibration([(1.0, True)])["value"] == 0
