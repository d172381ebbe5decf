"""MMaDA through the front door: drawing, infilling, understanding, text and conversations on the fixture with random weights."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import unmask
from unmask.cli.main import main
from unmask.grammars.answer_format import of_regex
from unmask.pipeline.model import Model
from unmask.tasks.conversing import Message
from unmask.tasks.mmada import centred
from unmask.tasks.planning import PlanImage
from unmask.tasks.rows import Extras
from unmask.tasks.understand import Ask
from unmask.tokens.layouts import layout_of
from unmask.tokens.mmada import LOOK_AT, THINK, THINK_AND_DRAW, thought_in
from unmask.tokens.prompts import Conditions
from unmask.tokens.text import EOS

torch.set_num_threads(1)
GOLDEN = Path(__file__).parents[1] / "golden" / "mmada_tiny"


@pytest.fixture(scope="module")
def model() -> Model:
    made = unmask.load(GOLDEN)
    assert isinstance(made, Model)
    return made


def picture(width: int = 32, height: int = 32) -> Image.Image:
    across = np.linspace(0, 255, width)[None, :, None] + np.zeros((height, width, 3))
    return Image.fromarray(across.astype(np.uint8))


def test_drawings_are_batch_invariant_and_follow_seed_and_prompt(model: Model) -> None:
    two = model.generate("a red cat", n=2, seed=3)
    mixed = model.generate(["two very long green apples and more", "a red cat"], seed=4)
    assert two[0].image.size == (32, 32) and two[1].image.tobytes() == mixed[1].image.tobytes()
    assert two[0].image.tobytes() != two[1].image.tobytes() and mixed[0].image.tobytes() != mixed[1].image.tobytes()
    free = model.generate("a red cat", n=1, seed=3, guidance_scale=0)
    assert free[0].image.tobytes() != two[0].image.tobytes()


def test_the_published_settings_are_the_default(model: Model) -> None:
    drawn = model.presets.generate(model.parts)
    assert (drawn.schedule.steps, drawn.schedule.of, drawn.guidance.scale) == (15, 64, 3.5)  # type: ignore[attr-defined]
    said = model.presets.ask(model.parts)
    assert (said.schedule.steps, said.blocks.length, model.presets.answer) == (64, 128, 512)  # type: ignore[attr-defined]
    assert model.presets.context == 256  # of config.json


def test_infilling_keeps_what_is_outside_the_region(model: Model) -> None:
    region = Image.new("L", (32, 32))
    region.paste(255, (8, 8, 16, 16))
    before = picture()
    filled = model.infill(before, region, prompt="a red cat", seed=1).image
    changed = (np.asarray(filled) != np.asarray(before)).any(2)
    assert changed[8:16, 8:16].any() and not changed[:8].any() and not changed[16:].any()


@pytest.mark.parametrize("seed", range(3))
def test_an_answer_has_no_code_and_no_mask(model: Model, seed: int) -> None:
    """Random weights like codes best: the released sampler writes them into most answers (``block.out`` of the fixture)."""
    for image in (None, picture()):
        task = Ask(pixels=None if image is None else model.parts.image_views(image), question="what?", length=16)
        built = task.build(model.parts)
        row = model.run([built], [seed], model.presets.ask(model.parts)).rows[0]
        ids = row.ids[built.span("answer").start :]
        assert int(ids.max()) < model.parts.text.size and model.parts.mask_id not in ids.tolist()
    assert model.ask(picture(), "what?", length=16, temperature=1.0, seed=seed).text is not None


def test_a_picture_is_read_as_codes_before_the_question(model: Model) -> None:
    text, built = (
        model.parts.text,
        Ask(pixels=model.parts.image_views(picture()), question="what?", length=4).build(model.parts),
    )
    source = built.span("source")
    assert int(built.ids[0]) == text[LOOK_AT] and len(source) == 64 and built.spans[-1].name == "answer"
    assert torch.equal(
        built.ids[source.start : source.stop], model.parts.encode(model.parts.image_views(picture())).flatten()
    )  # type: ignore[arg-type]
    one, other = (model.ask(image, "what?", length=8).text for image in (picture(), picture().rotate(90)))
    assert one != other


def test_thinking_and_formats(model: Model) -> None:
    assert model.ask(None, THINK + "sky?", length=16).text != model.ask(None, "sky?", length=16).text
    assert model.ask(None, "sky?", length=16, form=of_regex("yes|no")).text in ("yes", "no")
    assert model.ask(picture(), "sky?", length=16, form=of_regex("[a-c]{3}")).value is not None


def test_conversations(model: Model) -> None:
    said = [Message(role="user", text="what?", images=(picture(),))]
    turn = model.converse(said, max_tokens=6)
    again = model.converse([*said, turn.message(), Message(role="user", text="why?")], max_tokens=6)
    system = model.converse([Message(role="system", text="be brief"), *said], max_tokens=6)
    assert turn.parts and again.parts and system.parts != turn.parts


def test_pictures_of_other_shapes_are_cut_to_the_middle(model: Model) -> None:
    wide = centred(picture(80, 40), 20)
    assert wide.size == (20, 20) and abs(int(np.asarray(wide)[0, 10, 0]) - 127) < 8
    assert centred(picture(30, 61), 20).size == (20, 20) and centred(picture(), 32).tobytes() == picture().tobytes()
    assert model.parts.preprocess(picture(80, 40))[0].shape == (3, 32, 32)


def test_it_describes_a_picture_and_draws_the_description(model: Model) -> None:
    """The text is written in the row of the released trainer, alone or in a batch, and is then the prompt."""
    drawn = model.generate("a cat", plan=True, seed=3, n=2, steps=3)
    for number, one in enumerate(drawn):
        assert one.plan is not None and one.plan.reason and not one.plan.objects
        alone = model.generate("a cat", plan=True, seed=3 + number, steps=3)[0]
        again = model.generate(one.plan.reason, seed=3 + number, steps=3)[0]
        assert one.image.tobytes() == alone.image.tobytes() == again.image.tobytes()
    assert drawn[0].image.tobytes() != model.generate("a cat", seed=3, steps=3)[0].image.tobytes()
    row = PlanImage(prompt=" a cat ", length=8).build(model.parts)
    text, (prompt, plan) = model.parts.text, row.spans
    said = text.raw(row.ids[: prompt.stop].tolist())
    assert said.endswith("image here\na cat<eot_id>assistant\n<think>") and len(plan) == 8
    assert int(row.ids[0]) == text[THINK_AND_DRAW] and bool(row.masked[plan.start : plan.stop].all())


def test_a_description_ends_at_its_tag_or_at_the_end_of_text(model: Model) -> None:
    text = model.parts.text
    for ids in (text.encode("so it is</think> more"), [*text.encode("so it is"), text[EOS], *text.encode(" more")]):
        assert thought_in(ids, text) == "so it is"


def test_what_it_was_not_trained_for_is_refused(model: Model) -> None:
    for call in (
        lambda: model.edit(picture(), "make it blue"),
        lambda: model.ground(picture(), "cat"),
        lambda: model.infill_text("a [mask]"),
        lambda: model.generate("a cat", attempts=2),
    ):
        with pytest.raises(ValueError, match="MMaDA cannot .*; it draws, infills, and answers"):
            call()
    with pytest.raises(ValueError, match="draws from a prompt alone"):
        model.generate("a cat", conditions=Conditions(luminance=0.5))
    boxes = layout_of([("cat", (0, 0, 0.5, 0.5))])
    for more in ({"plan": boxes}, {"plan": True, "conditions": Conditions(luminance=0.5)}):
        with pytest.raises(ValueError, match="draws from a prompt alone"):
            model.generate("a cat", **more)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no room for a description"):
        model.generate("a cat " * 50, plan=True)
    with pytest.raises(ValueError, match="as codes, not as views"):
        model.parts.rows.asking(model.parts, None, "what?", 1) and model.parts.rows.asking(
            model.parts, unmask_views(), "what?", 1
        )
    assert model.parts.rows.drawing(model.parts, "a cat", Extras()).span("null").segment == 1


def unmask_views() -> object:
    from unmask.tokens.views import ImageViews

    return ImageViews(views=torch.zeros(1, 3, 8, 8), rows=torch.arange(1))


def test_the_shell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(shutil.copytree(GOLDEN, tmp_path / "mmada"))
    drawn, region = tmp_path / "cat.png", tmp_path / "region.png"
    assert main(["generate", "a red cat", "--model", folder, "--out", str(drawn)]) == 0
    Image.new("L", (32, 32), 255).save(region)
    words = ["infill", str(drawn), "--region", str(region), "--model", folder, "--out", str(tmp_path / "filled.png")]
    assert main(words) == 0 and Image.open(tmp_path / "filled.png").size == (32, 32)
    capsys.readouterr()
    for question in (["sky?"], [str(drawn), "what?"]):
        assert main(["ask", *question, "--model", folder, "--length", "8", "--regex", "yes"]) == 0
        assert capsys.readouterr().out == "yes\n"
    assert main(["inspect", folder, "--task", "generate"]) == 0
    assert "text_head" in capsys.readouterr().out
    assert main(["ask", "sky?", "--model", "mini"]) == 2
    assert "the picture is missing" in capsys.readouterr().err
