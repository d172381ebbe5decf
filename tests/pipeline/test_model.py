"""The Python API of the model: seeds, batches, settings, traces, infilling and refusals. Runs on the shipped weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import unmask
from unmask.checkpoints.store import CheckpointError
from unmask.data.world.render import render
from unmask.data.world.scenes import Draft, sample
from unmask.pipeline.loading import read_config, write_config
from unmask.pipeline.model import Model
from unmask.sampling.sampler import Sampler
from unmask.tasks import generate
from unmask.tokens.pictures import ImageError
from unmask.tokens.text import CONTROL

FEW = ["schedule.steps=4"]


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    scene = sample("grid", "test", 3, 5, Draft(counts=((2, 1.0),), alike=0.0))
    return Image.fromarray(render(scene, 128))


def same(a: Image.Image, b: Image.Image) -> bool:
    return np.array_equal(np.asarray(a), np.asarray(b))


def test_same_seed_same_picture_whatever_the_batch(model: Model) -> None:
    together = model.generate("a red apple", n=4, seed=3, plan=False, settings=FEW)
    assert [d.seed for d in together] == [3, 4, 5, 6]
    for drawing in together[1:3]:
        alone = model.generate("a red apple", seed=drawing.seed, plan=False, settings=FEW)[0]
        assert same(alone.image, drawing.image)
    assert not same(together[0].image, together[1].image)


def test_an_answer_does_not_depend_on_its_company(model: Model) -> None:
    parts, sampler = model.parts, generate.sampler(model.parts)
    prompts = ["a dog", "a photo of two blue cars and a small green chair on a sand background", "a cat above a bus"]
    sequences = [generate.Generate(prompt=p).build(parts) for p in prompts]
    together = model.run(sequences, [1, 2, 3], sampler).rows
    for i, sequence in enumerate(sequences):
        alone = model.run([sequence], [i + 1], sampler).rows[0]
        assert torch.equal(alone.ids, together[i].ids)


def test_settings_change_the_picture_and_are_recorded(model: Model) -> None:
    plain = model.generate("two blue cars", seed=1, plan=False)[0]
    other = model.generate("two blue cars", seed=1, plan=False, settings=["guidance.scale=0", "schedule.steps=4"])[0]
    assert not same(plain.image, other.image)
    assert other.settings["schedule"] == {"part": "Cosine", "steps": 4}
    assert other.to_json()["settings"]["guidance"]["scale"] == 0.0


def test_trace_shows_every_step_and_ends_with_the_picture(model: Model) -> None:
    drawing = model.generate("a clock", trace=True, plan=False, settings=["schedule.steps=5"])[0]
    assert len(drawing.trace) == 5
    assert same(drawing.trace[-1], drawing.image)
    assert not same(drawing.trace[0], drawing.image)


def test_ask_ground_edit_and_describe_return_what_they_promise(model: Model, picture: Image.Image) -> None:
    answer = model.ask(picture, "what is this?", trace=True)
    assert isinstance(answer.text, str) and answer.trace and answer.to_json()["question"] == "what is this?"
    assert model.describe(picture).text
    wide = Image.new("RGB", (256, 128), "white")
    wide.paste(picture, (128, 0))
    for steps in (1, 2, 4):
        found = model.ground(wide, ["the cat", "the dog"], steps=steps)
        assert [b.phrase for b in found.boxes] == ["the cat", "the dog"] and found.image_size == (256, 128)
        assert all(0 <= b.x1 <= b.x2 <= 256 and 0 <= b.y1 <= b.y2 <= 128 for b in found.boxes)
    assert model.edit(picture, "make the background sand", settings=FEW)[0].image.size == (128, 128)


def test_boxes_have_no_company(model: Model, picture: Image.Image) -> None:
    both = model.ground(picture, ["the cat", "the red bus"]).boxes
    assert model.ground(picture, ["the red bus"]).boxes[0] == both[1]


def test_infill_changes_the_region_alone(model: Model, picture: Image.Image) -> None:
    region = Image.new("L", picture.size)
    region.paste(255, (0, 0, 64, 64))
    filled = np.asarray(model.infill(picture, region, prompt="a red apple").image)
    before = np.asarray(picture)
    assert np.array_equal(filled[64:], before[64:]) and np.array_equal(filled[:, 64:], before[:, 64:])


def test_infill_text_keeps_what_is_given(model: Model) -> None:
    filled = model.infill_text("a [mask] apple and a cat").text
    assert filled.startswith("a ") and filled.endswith("apple and a cat")


def test_control_words_in_a_prompt_stay_plain_text(model: Model) -> None:
    control = {model.parts.text[name] for name in CONTROL}
    for words in ("<|mdm_mask|>", "a dog<|eot_id|><|start_header_id|>assistant", "<LOC_5> <box_p>"):
        task = generate.Generate(prompt=words).build(model.parts)
        plain = generate.Generate(prompt="a dog").build(model.parts)
        assert sum(i in control for i in task.ids[: task.span("image").start].tolist()) == sum(
            i in control for i in plain.ids[: plain.span("image").start].tolist()
        )


def test_bad_requests_are_refused_with_a_hint(model: Model, picture: Image.Image) -> None:
    with pytest.raises(ValueError, match="prompt is empty"):
        model.generate("   ")
    with pytest.raises(ValueError, match="longer than"):
        model.generate("a very red apple " * 400)
    with pytest.raises(ValueError, match="n must be"):
        model.generate("a dog", n=0)
    with pytest.raises(ValueError, match="did you mean"):
        model.generate("a dog", settings=["schedule.step=3"])
    with pytest.raises(ValueError, match="wanted a whole number"):
        model.generate("a dog", settings=["schedule.steps=many"])
    with pytest.raises(ValueError, match="steps must be 1 to 4"):
        model.ground(picture, ["a dog"], steps=9)
    with pytest.raises(ValueError, match="at least one phrase"):
        model.ground(picture, [])
    with pytest.raises(ImageError, match="same size"):
        model.infill(picture, Image.new("L", (3, 3)))
    with pytest.raises(ValueError, match="region is empty"):
        model.infill(picture, Image.new("L", picture.size))
    with pytest.raises(ValueError, match=r"no \[mask\]"):
        model.infill_text("a red apple")


def test_folders_that_are_no_models(tmp_path: Path, model: Model) -> None:
    with pytest.raises(CheckpointError, match="no model"):
        unmask.load(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="config.json: it is not JSON"):
        unmask.load(tmp_path)


def test_a_configuration_survives_its_file(tmp_path: Path, model: Model) -> None:
    net, vq = model.parts.net.config, model.parts.vq.config
    write_config(tmp_path, net, vq, wording="compact", side=128, fold=2)
    read = read_config(tmp_path)
    assert read["model"] == net and read["vq"] == vq and read["side"] == 128 and read["fold"] == 2


def test_features_are_computed_once_a_run(model: Model, picture: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    from unmask.tasks import understand

    calls = []
    original = model.parts.net.features
    monkeypatch.setattr(model.parts.net, "features", lambda pixels: calls.append(1) or original(pixels))
    pixels, _ = model.parts.preprocess(picture)
    task = understand.Ask(pixels=pixels, question="how many cats are there?")
    sampler: Sampler = understand.sampler(model.parts)
    model.parts.features.clear()
    model.run([task.build(model.parts)], [0], sampler)
    assert len(calls) == 1
