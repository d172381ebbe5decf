"""Every task of the shipped model through the engine, all together, against the model's own methods one by one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

import unmask
from unmask.data.world.render import render
from unmask.data.world.scenes import sample
from unmask.pipeline.model import Model
from unmask.recipe import override
from unmask.sampling.sampler import Sampler
from unmask.serving.engine import Engine
from unmask.serving.requests import Request
from unmask.tasks import edit, generate, ground, infill, understand
from unmask.tokens.views import to_pixels

torch.set_num_threads(1)
FEW = ["schedule.steps=3"]


@pytest.fixture(scope="module")
def model() -> Model:
    return unmask.load("mini")


def few(sampler: Sampler, *more: str) -> Sampler:
    return override(sampler, [*FEW, *more])


def test_all_tasks_together_are_told_what_each_is_told_alone(model: Model) -> None:
    picture = Image.fromarray(render(sample("grid", "test", 0, 0), 128))
    region = Image.new("L", picture.size)
    region.paste(255, (0, 0, 64, 128))
    parts, presets, pixels = model.parts, model.presets, to_pixels(picture)
    guided = ["guidance.scale=1", "guidance.image_scale=1.5"]
    engine = Engine(parts)
    asked = {
        "draw": Request(task=generate.Generate(prompt="a red apple"), sampler=few(presets.generate(parts)), seed=5),
        "other": Request(task=generate.Generate(prompt="two dogs"), sampler=few(presets.generate(parts)), seed=6),
        "edit": Request(
            task=edit.Edit(pixels=pixels, instruction="make it blue"), sampler=few(presets.edit(parts), *guided), seed=7
        ),
        "infill": Request(
            task=infill.Infill(pixels=pixels, region=to_pixels(region).mean(0) > 0.5, prompt="a cat"),
            sampler=few(presets.generate(parts)),
        ),
        "ask": Request(task=understand.Ask(pixels=pixels, question="what is this?"), sampler=presets.ask(parts)),
        "caption": Request(
            task=understand.Ask(pixels=pixels, question=parts.wording.describe, length=presets.caption),
            sampler=presets.ask(parts),
        ),
        "fill": Request(task=understand.FillText(target="a [mask] [mask]"), sampler=presets.fill(parts)),
        "ground": Request(task=ground.Ground(pixels=pixels, phrases=("the cat",)), sampler=presets.ground(parts, 2)),
    }
    handles = {name: engine.submit(request) for name, request in asked.items()}
    engine.drain()
    got = {name: handle.result(0) for name, handle in handles.items()}
    wanted = {
        "draw": model.generate("a red apple", seed=5, settings=FEW)[0].image,
        "other": model.generate("two dogs", seed=6, settings=FEW)[0].image,
        "edit": model.edit(picture, "make it blue", seed=7, settings=[*FEW, *guided])[0].image,
        "infill": model.infill(picture, region, prompt="a cat", settings=FEW).image,
    }
    for name, image in wanted.items():
        assert np.array_equal(np.asarray(got[name]), np.asarray(image)), name
    assert got["ask"] == model.ask(picture, "what is this?").text
    assert got["caption"] == model.describe(picture).text
    assert got["fill"] == model.infill_text("a [mask] [mask]").text
    box = model.ground(picture, ["the cat"], steps=2).boxes[0]
    assert got["ground"][0] == pytest.approx([v / 128 for v in (box.x1, box.y1, box.x2, box.y2)])
    metrics = engine.metrics()
    assert metrics.finished == 8 and metrics.feature_hits == 3 and metrics.feature_misses == 1
    assert metrics.forwards < metrics.steps
