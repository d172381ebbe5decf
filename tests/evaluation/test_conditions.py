"""Requested and measured luminance and contrast: a model that follows them, one that ignores them, and the values requested."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from unmask.evaluation import world_conditions
from unmask.evaluation.evaluate import EvalPlan, Record, measure
from unmask.evaluation.judge import Judge, JudgeConfig
from unmask.evaluation.world_conditions import KINDS, LEVELS, Conditioned, grid
from unmask.pipeline.model import Model
from unmask.tasks.generate import Generate
from unmask.tokens.prompts import Conditions

PLAN = EvalPlan(n=20, batch=8)


@pytest.fixture(scope="module")
def part() -> Conditioned:
    """A judge with random weights: these measures do not use its predictions."""
    torch.manual_seed(0)
    blind = Judge(JudgeConfig(widths=(8, 8, 8), blocks=(0, 0, 1))).eval()
    return Conditioned(judge=lambda: blind)


def lit(luminance: float, contrast: float) -> Image.Image:
    """Grey picture with this mean and deviation. One eighth is dark: with halves, most requested means would clip."""
    values = np.full((128, 128, 3), luminance + contrast / 7**0.5)
    values[:16] -= contrast * 8 / 7**0.5
    return Image.fromarray((values * 255).round().astype(np.uint8))


def test_a_model_that_obeys(model: Model, part: Conditioned, monkeypatch: pytest.MonkeyPatch) -> None:
    def obey(model: Model, tasks: Sequence[Generate], seeds: Any, sampler: Any) -> list[Image.Image]:
        asked = [task.conditions or Conditions() for task in tasks]
        return [lit(c.luminance or 0, c.contrast or 0) for c in asked]

    monkeypatch.setattr(world_conditions, "perform", obey)
    found = measure(model, part, PLAN, Record()).figures
    for name in ("luminance", "contrast"):
        assert found[name]["value"] > 0.99 and found[name]["n"] == 20
        assert found[f"{name}_distance"]["value"] < 0.005


def test_a_model_that_does_not_listen(model: Model, part: Conditioned, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)

    def ignore(model: Model, tasks: Sequence[Generate], seeds: Any, sampler: Any) -> list[Image.Image]:
        return [lit(*rng.uniform((0.4, 0.0), (0.6, 0.15))) for _ in tasks]

    monkeypatch.setattr(world_conditions, "perform", ignore)
    found = measure(model, part, PLAN, Record()).figures
    for name in ("luminance", "contrast"):
        assert found[name]["low"] < 0 < found[name]["high"] and found[name]["value"] < 0.7
        assert found[f"{name}_distance"]["value"] > 0.05


def test_what_is_asked_for_is_spread_over_what_the_world_shows() -> None:
    asked = grid("grid")
    assert len(asked) == LEVELS**2 == len({c.text() for c in asked})
    rows = [asked[i : i + LEVELS] for i in range(0, len(asked), LEVELS)]
    for row, above in zip(rows, rows[1:], strict=False):
        assert max(c.luminance or 0 for c in row) <= min(c.luminance or 0 for c in above)
    assert all([c.contrast for c in row] == sorted(c.contrast or 0 for c in row) for row in rows)


def test_few_items_are_of_every_luminance_and_ask_in_words(part: Conditioned) -> None:
    items = part.items(dataclasses.replace(PLAN, n=6))
    assert [item.prompt.kind for item in items] == list(KINDS) * 3
    assert len({item.key for item in items}) == 6 == len({item.text for item in items})
    assert all(item.text.startswith(item.prompt.text) and "LUMINANCE : " in item.text for item in items)
    lightest, darkest = (f(item.asked.luminance or 0 for item in items) for f in (max, min))
    whole = [c.luminance or 0 for c in grid("grid")]
    assert lightest - darkest > 0.6 * (max(whole) - min(whole))
