"""Every task of the shipped model in one engine, all at the same time, against the model's own methods one by one."""

from __future__ import annotations

from typing import Any

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


def test_all_tasks_at_once_have_the_results_of_the_models_methods(model: Model) -> None:
    picture = Image.fromarray(render(sample("grid", "test", 0, 0), 128))
    region = Image.new("L", picture.size)
    region.paste(255, (0, 0, 64, 128))
    parts, presets, pixels = model.parts, model.presets, to_pixels(picture)
    guided = ["guidance.scale=1", "guidance.image_scale=1.5"]
    engine = Engine(parts.net)
    draw, fill = few(presets.generate(parts)), presets.fill(parts)
    repaint = infill.Infill(pixels=pixels, region=to_pixels(region).mean(0) > 0.5, prompt="a cat")
    describe = understand.Ask(pixels=pixels, question=parts.wording.describe, length=presets.caption)
    tasks: dict[str, tuple[Any, Sampler, int]] = {
        "draw": (generate.Generate(prompt="a red apple"), draw, 5),
        "other": (generate.Generate(prompt="two dogs"), draw, 6),
        "edit": (edit.Edit(pixels=pixels, instruction="make it blue"), few(presets.edit(parts), *guided), 7),
        "infill": (repaint, draw, 0),
        "ask": (understand.Ask(pixels=pixels, question="what is this?"), presets.ask(parts), 0),
        "caption": (describe, presets.ask(parts), 0),
        "fill": (understand.FillText(target="a [mask] [mask]"), fill, 0),
        "ground": (ground.Ground(pixels=pixels, phrases=("the cat",)), presets.ground(parts, 2), 0),
    }
    handles = {
        name: engine.submit(Request(sequence=task.build(parts), sampler=sampler, seed=seed))
        for name, (task, sampler, seed) in tasks.items()
    }
    engine.drain()
    got = {name: tasks[name][0].read(handle.result(0), parts) for name, handle in handles.items()}
    wanted = {
        "draw": model.generate("a red apple", seed=5, plan=False, settings=FEW)[0].image,
        "other": model.generate("two dogs", seed=6, plan=False, settings=FEW)[0].image,
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
