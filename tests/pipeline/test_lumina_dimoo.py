"""Lumina-DiMOO through the front door: drawings of any shape, edits, infilling and questions on the fixture with random weights."""

from __future__ import annotations

import json
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
from unmask.sampling.other_prompts import OtherPrompts
from unmask.tasks.conversing import Message
from unmask.tasks.lumina_dimoo import DiMOORows, best_size, shaped
from unmask.tasks.understand import Ask
from unmask.tokens.lumina_dimoo import ANSWER, RELEASED_QUIRKS
from unmask.tokens.text import END_ANSWER

torch.set_num_threads(1)
GOLDEN = Path(__file__).parents[1] / "golden" / "lumina_dimoo_tiny"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fixture with drawings of 64 pixels instead of 512, and room for the system sentence."""
    place = Path(shutil.copytree(GOLDEN, tmp_path_factory.mktemp("dimoo") / "model"))
    raw = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps(raw | {"unmask": {"side": 64}, "max_sequence_length": 1024}))
    return place


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    made = unmask.load(folder)
    assert isinstance(made, Model)
    return made


def picture(width: int = 48, height: int = 32) -> Image.Image:
    across = np.linspace(0, 255, width)[None, :, None] + np.zeros((height, width, 3))
    return Image.fromarray(across.astype(np.uint8))


def test_drawings_of_any_shape_are_batch_invariant(model: Model) -> None:
    two = model.generate("a red cat", n=2, seed=3, size=(64, 24), steps=5)
    mixed = model.generate(["something much longer than that", "a red cat"], seed=4, size=(64, 24), steps=5)
    assert two[0].image.size == (64, 24) and two[1].image.tobytes() == mixed[1].image.tobytes()
    assert two[0].image.tobytes() != two[1].image.tobytes() and mixed[0].image.tobytes() != mixed[1].image.tobytes()
    assert model.generate("a red cat", steps=3)[0].image.size == (64, 64)
    with pytest.raises(ValueError, match="60x24 pixels is not possible; both sides must be multiples of 8"):
        model.generate("a red cat", size=(60, 24))
    with pytest.raises(ValueError, match="a size cannot be combined with a layout"):
        model.generate("a red cat", size=(64, 24), plan=True)
    with pytest.raises(ValueError, match="draws squares of .* leave out the size"):
        unmask.load("mini").generate("a red cat", size=(64, 64), plan=False, attempts=1)


def test_the_published_settings_are_the_default(model: Model) -> None:
    drawn, edit = model.presets.generate(model.parts), model.presets.edit(model.parts)
    assert isinstance(drawn.guidance, OtherPrompts) and isinstance(edit.guidance, OtherPrompts)
    assert (drawn.schedule.steps, drawn.guidance.scale) == (64, 4.0)  # type: ignore[attr-defined]
    assert (edit.guidance.scale, edit.guidance.other_scale) == (2.5, 4.0)
    said = model.presets.ask(model.parts)
    assert (said.schedule.steps, said.blocks.length, model.presets.answer) == (32, 256, 1024)  # type: ignore[attr-defined]


def test_edits_have_the_shape_of_their_picture_and_read_it(model: Model) -> None:
    wide = model.edit(picture(96, 40), "make it blue", steps=4)[0].image
    other = model.edit(picture(96, 40).rotate(180), "make it blue", steps=4)[0].image
    assert wide.size == (32, 16) and wide.tobytes() != other.tobytes()


def test_edits_have_kinds_and_some_read_a_second_picture(model: Model) -> None:
    """The kind changes the prompt; a transfer of style reads both pictures and has the size of the first."""
    wide, tall = picture(96, 40), picture(40, 96)
    usual, same, depth = (
        model.edit(wide, "make it blue", steps=3, kind=kind)[0].image.tobytes()
        for kind in ("", "edit", "depth_control")
    )
    assert usual == same != depth
    one, other = (
        model.edit(wide, "like this", steps=3, kind="image_ref_transfer", reference=given)[0].image
        for given in (tall, tall.rotate(180))
    )
    assert one.size == (32, 16) and one.tobytes() != other.tobytes()
    rows = DiMOORows(quirks=RELEASED_QUIRKS).of_kind("image_ref_transfer", [torch.zeros(4, 2, dtype=torch.long)])
    row = rows.editing(model.parts, wide, torch.zeros(2, 4, dtype=torch.long), "x", None)  # type: ignore[arg-type]
    assert [s.grid for s in row.spans if s.name == "image"] == [(1, 2)] * 4, (
        "the released script takes the size of the style"
    )


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"kind": "canny"}, "there is no kind of edit 'canny'; "),
        ({"kind": "multi_view_"}, "there is no kind of edit"),
        ({"kind": "image_ref_transfer"}, "reads 1 references, got 0; give the picture whose style it takes"),
        ({"kind": "edit_add", "reference": picture()}, "reads 0 references, got 1; only image_ref_transfer takes one"),
        ({"kind": "edit_add", "attempts": 2}, "cannot be combined with several attempts"),
    ],
)
def test_kinds_that_do_not_exist_are_named(model: Model, given: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        model.edit(picture(), "make it blue", steps=1, **given)  # type: ignore[arg-type]


def test_other_models_have_one_kind_of_edit() -> None:
    mini = unmask.load("mini")
    for given, said in (
        ({"kind": "edit_add"}, "of the kind 'edit_add'"),
        ({"reference": picture()}, "with a second picture"),
    ):
        with pytest.raises(ValueError, match=f"this model cannot edit {said}; leave out the kind and the reference"):
            mini.edit(picture(), "make it blue", steps=1, **given)  # type: ignore[arg-type]


def test_a_requested_size_is_drawn_in_whole_codes_and_at_most_the_usual_area(model: Model) -> None:
    sizes = [(64, 64), (64, 32), (128, 128), (100, 50), (128, 32), (4000, 1000)]
    drawn = [model.parts.rows.drawn_size(model.parts, size) for size in sizes]
    assert drawn == [(64, 64), (64, 32), (64, 64), (88, 40), (128, 32), (128, 32)]
    assert unmask.load("mini").parts.rows.drawn_size(model.parts, (64, 32)) is None


def test_the_quirks_of_the_released_scripts_are_chosen_by_a_word(folder: Path) -> None:
    rows = {word: unmask.load(folder, quirks=word).parts.rows for word in ("usual", "none", "released")}
    assert rows["usual"] == rows["none"] == DiMOORows() and rows["released"] == DiMOORows(quirks=RELEASED_QUIRKS)
    with pytest.raises(ValueError, match="quirks 'some' is unknown; choose from usual, released, none"):
        unmask.load(folder, quirks="some")
    with pytest.raises(ValueError, match="no deviations of released scripts to choose; leave out quirks"):
        unmask.load("mini", quirks="released")


def test_infilling_keeps_what_is_outside_the_region(model: Model) -> None:
    region = Image.new("L", (32, 32))
    region.paste(255, (8, 8, 16, 16))
    filled = model.infill(picture(32, 32), region, prompt="a red cat", seed=1, steps=3).image
    changed = (np.asarray(filled).astype(int) - np.asarray(picture(32, 32))).any(2)
    assert changed[8:16, 8:16].any() and not changed[:8].any() and not changed[16:].any()


def test_an_answer_stands_between_its_begin_and_end_and_has_no_code(model: Model) -> None:
    text = model.parts.text
    for image in (None, picture()):
        seen = None if image is None else model.parts.image_views(image)
        built = Ask(pixels=seen, question="what?", length=12).build(model.parts)
        answer, end = built.spans[-1], built.spans[-2]
        assert (answer.name, int(built.ids[end.start])) == ("answer", text[END_ANSWER])
        assert int(built.ids[end.start - 1]) == text[ANSWER]
        row = model.run([built], [0], model.presets.ask(model.parts)).rows[0]
        ids = row.ids[answer.start :]
        assert int(ids.max()) < text.size and model.parts.mask_id not in ids.tolist()


def test_the_end_before_the_answer_is_the_end_behind_it(model: Model) -> None:
    """The same tokens at the same positions in another order: the network reads them alike."""
    from unmask.sequence import Kind, collate
    from unmask.tokens.lumina_dimoo import Request, answer_last, understanding

    plain = understanding(model.parts.builder(), Request(system="s", text="why?"), (), 5)
    with torch.no_grad():
        wanted = model.parts.net(collate([plain], [0])).logits(Kind.TEXT)
        found = model.parts.net(collate([answer_last(plain)], [0])).logits(Kind.TEXT)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


def test_questions_formats_and_conversations(model: Model) -> None:
    assert model.ask(picture(), "sky?", length=12, form=of_regex("yes|no")).text in ("yes", "no")
    assert model.ask(None, "sky?", length=12, max_tokens=20, guidance_scale=0.5).text is not None
    said = [Message(role="user", text="what?", images=(picture(),))]
    turn = model.converse(said, max_tokens=6)
    with pytest.raises(ValueError, match="answers one message at a time"):
        model.converse([*said, turn.message(), Message(role="user", text="why?")], max_tokens=6)


def test_shapes_are_the_released_ones() -> None:
    sizes = {best_size((w, h), 32, 256) for w in range(20, 400, 7) for h in range(20, 400, 7)}
    assert len(sizes) <= 49 and all(w * h <= 512 * 512 and w % 32 == h % 32 == 0 for w, h in sizes)
    assert best_size((100, 100), 32, 256) == (512, 512) and best_size((1000, 10), 32, 256) == (1024, 256)
    assert shaped(picture(300, 200), 128, unit=16, share=1).size == best_size((300, 200), 16, 64)


def test_the_shell(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drawn = tmp_path / "cat.png"
    given = ["--model", str(folder), "--steps", "3"]
    assert main(["generate", "a red cat", *given, "--out", str(drawn)]) == 0
    assert main(["edit", str(drawn), "make it blue", *given, "--out", str(tmp_path / "blue.png")]) == 0
    assert main(["generate", "a red cat", *given, "--size", "64x24", "--out", str(tmp_path / "wide.png")]) == 0
    assert Image.open(tmp_path / "wide.png").size == (64, 24)
    style = ["--kind", "image_ref_transfer", "--reference", str(drawn)]
    assert main(["edit", str(tmp_path / "wide.png"), "so", *style, *given, "--out", str(tmp_path / "styled.png")]) == 0
    capsys.readouterr()
    predicted = ["edit", str(drawn), "so", "--kind", "depth_pred"]
    made = []
    for word in ("usual", "released"):
        assert main([*predicted, *given, "--quirks", word, "--out", str(tmp_path / f"{word}.png")]) == 0
        made.append(Image.open(tmp_path / f"{word}.png").tobytes())
    assert made[0] != made[1]
    capsys.readouterr()
    for words, said in (
        (["generate", "a cat", "--size", "64"], "--size '64' must be WIDTHxHEIGHT"),
        (["generate", "a cat", "--size", "60x24"], "60x24 pixels is not possible"),
        (["edit", str(drawn), "so", "--kind", "depth"], "there is no kind of edit 'depth'"),
    ):
        assert main([*words, *given]) == 2 and said in capsys.readouterr().err
    infill = ["infill", str(drawn), "--box", "0,0,16,16", *given, "--out", str(tmp_path / "filled.png")]
    assert main(infill) == 0
    capsys.readouterr()
    for question in (["sky?"], [str(drawn), "what?"]):
        assert main(["ask", *question, "--model", str(folder), "--length", "8", "--regex", "yes"]) == 0
        assert capsys.readouterr().out == "yes\n"
    assert main(["ground", str(drawn), "cat", "--model", str(folder)]) == 2
    assert "Lumina-DiMOO cannot ground phrases" in capsys.readouterr().err
