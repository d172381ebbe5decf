"""Every task on a folder in the released layout, as it was published: prompts, quirks, guidance and settings."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import unmask
from unmask.cli.main import main
from unmask.pipeline.loading import needs_of
from unmask.pipeline.model import Model, describe
from unmask.sequence import Kind, Sequence, collate
from unmask.step import Progress
from unmask.tasks.conversing import Message
from unmask.tasks.edit import Edit
from unmask.tasks.generate import Generate
from unmask.tasks.ground import Ground
from unmask.tasks.parts import to_image
from unmask.tasks.understand import Ask
from unmask.tokens.prompts import Conditions
from unmask.tokens.quirks import NO_QUIRKS
from unmask.tokens.text import EOT, HEADER, MASK, location

from .released_folder import LEVEL, SQUARE, make_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("released") / "model")


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    torch.set_num_threads(1)
    return unmask.load(folder)


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    return to_image(torch.rand(3, 96, 96, generator=torch.Generator().manual_seed(1)))


# -- what is said (spec 2.1, 2.2, 2.4, 2.5) ---------------------------------------------------------------------------

HEAD = (
    "<|startoftext|><|start_header_id|>system<|end_header_id|>\n\nYou are a helpful language and vision assistant. You are able "
    "to understand the visual content that the user provides, and assist the user with a variety of tasks using natural language."
    "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"
)
ASSISTANT = "<|start_header_id|>assistant<|end_header_id|>\n\n"
MICRO = "ORIGINAL WIDTH : 1024; ORIGINAL HEIGHT : 1024; TOP : 0; LEFT : 0; SCORE : 7.110;"


def wire(sequence: Sequence, model: Model) -> str:
    out = ""
    for span in sequence.spans:
        ids = sequence.ids[span.start : span.stop].tolist()
        out += model.parts.text.show(ids) if span.kind == Kind.TEXT else f"[{span.name} {len(span)}]"
    assert {span.segment for span in sequence.spans} == {0}
    return out


def test_drawing_is_asked_for_as_published(model: Model) -> None:
    end = f"<|eot_id|>{ASSISTANT}[image 64]<|eot_id|>{ASSISTANT}"
    said = wire(Generate(prompt="a dog").build(model.parts), model)
    assert said == f"{HEAD}Generate an image with the caption:\n a dog {MICRO}{end}"
    own = Conditions(luminance=0.414, contrast=0.453, score=7.0, hps=3.221)
    said = wire(Generate(prompt="a dog", conditions=own).build(model.parts), model)
    micro = "LUMINANCE : 0.414; CONTRAST : 0.453; SCORE : 7.000; HPS : 3.221;"
    assert said == f"{HEAD}Generate an image with the caption:\n a dog {micro}{end}"


def test_what_is_asked_stands_beside_what_is_always_told(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Conditions] = []
    monkeypatch.setattr(Model, "generate", lambda model, prompt, **rest: told.append(rest["conditions"]) or [])
    words = ["generate", "a dog", "--model", str(folder), "--out", str(tmp_path / "dog.png")]
    assert main([*words, "--luminance", "0.25", "--score", "6", "--crop", "1", "2"]) == 0 == main(words)
    size = "ORIGINAL WIDTH : 1024; ORIGINAL HEIGHT : 1024; TOP : 1; LEFT : 2"
    assert told[0].text() == f"{size}; LUMINANCE : 0.250; SCORE : 6.000" and told[1] is None


def test_editing_is_asked_for_as_published(model: Model, picture: Image.Image) -> None:
    """The blank between the two pictures is the token that is dropped; there are no conditions."""
    parts = model.parts
    sequence = Edit(
        pixels=parts.preprocess(picture)[0], instruction="make it blue ", look=parts.image_views(picture)
    ).build(parts)
    said = f"{HEAD}[look {SQUARE}][source 64]\n make it blue<|eot_id|>{ASSISTANT}[image 64]<|eot_id|>{ASSISTANT}"
    assert wire(sequence, model) == said
    assert int((sequence.ids == parts.text[EOT]).sum()) == 3  # system, user, assistant (spec 2.5)


def test_questions_are_asked_as_published(model: Model, picture: Image.Image) -> None:
    """The newline after the picture is the token that is dropped."""
    sequence = Ask(pixels=model.parts.image_views(picture), question="what is it?", length=3).build(model.parts)
    assert wire(sequence, model) == f"{HEAD}[look {SQUARE}] what is it?<|eot_id|>{ASSISTANT}{MASK * 3}"


def test_a_system_message_takes_the_place_of_the_published_one(model: Model) -> None:
    """As in training: the first turns of the system are the system message; later ones stand where they were said."""
    built: list[Sequence] = []

    class Watched:
        def run(self, sequences: Any, *given: Any) -> Any:
            built.extend(sequences)
            return model.run(sequences, *given)

        def emit(self, row: int, event: Any) -> None:
            """Nothing listens."""

    def said(*messages: tuple[str, str]) -> str:
        built.clear()
        watched = Model(model.parts, model.presets, executor=Watched())  # type: ignore[arg-type]
        watched.converse([Message(role=role, text=text) for role, text in messages], max_tokens=1)
        return wire(built[0], model).partition(MASK)[0]

    usual, own = said(("user", "hello")), said(("system", " be brief "), ("system", "be kind"), ("user", "hello"))
    assert usual == f"{HEAD}hello<|eot_id|>{ASSISTANT}"
    brief = "<|startoftext|><|start_header_id|>system<|end_header_id|>\n\nbe brief\n\nbe kind<|eot_id|>"
    user = "<|start_header_id|>user<|end_header_id|>\n\n"
    assert own == f"{brief}{user}hello<|eot_id|>{ASSISTANT}"
    later = said(("user", "hello"), ("assistant", "hi"), ("system", "be brief"), ("user", "why?"))
    system = "<|start_header_id|>system<|end_header_id|>\n\nbe brief<|eot_id|>"
    assert later == f"{HEAD}hello<|eot_id|>{ASSISTANT}hi<|eot_id|>{system}{user}why?<|eot_id|>{ASSISTANT}"
    assert said(("system", " "), ("user", "hello")) == usual
    with pytest.raises(ValueError, match="the system message and the last message exceed the context"):
        said(("system", "be brief " * 5000), ("user", "hello"))


def test_boxes_are_asked_for_as_published(model: Model, picture: Image.Image) -> None:
    """A stray apostrophe comes first, so nothing is dropped; no header trails."""
    sequence = Ground(pixels=model.parts.image_views(picture), phrases=("the cat",)).build(model.parts)
    words = "\n Please locate the cat in this image. Give bounding boxes in LOC format.<|eot_id|>"
    box = f"<LOC_BEGIN>{MASK * 4}<LOC_END><|eot_id|>"
    assert wire(sequence, model) == f"'{HEAD}[look {SQUARE}]{words}{ASSISTANT}{box}"
    assert {span.order for span in sequence.spans} == {0}, "one pass, in which everything reads everything"


def test_boxes_of_several_phrases_are_asked_for_as_published(model: Model, picture: Image.Image) -> None:
    """One prompt, as of the demo; the newline after the picture is the token that is dropped. Phrases are plain text."""
    task = Ground(pixels=model.parts.image_views(picture), phrases=("the cat", "a </box_p> dog"))
    sequence = task.build(model.parts)
    words = " Please describe this image with dense localized caption. Give bounding boxes in LOC format.<|eot_id|>"
    boxes = ", ".join(f"<box_p> {p} </box_p><LOC_BEGIN>[box]<LOC_END>" for p in ("the cat", "a </box_p> dog")).replace(
        "[box]", MASK * 4
    )
    said = (
        f"{HEAD}[look {SQUARE}]{words}{ASSISTANT}There are following objects in the scene. {boxes}<|eot_id|>{ASSISTANT}"
    )
    assert wire(sequence, model) == said and {span.order for span in sequence.spans} == {0}
    text = model.parts.text
    assert [int((sequence.ids == text[name]).sum()) for name in ("<box_p>", "</box_p>", "<LOC_BEGIN>")] == [2, 2, 2]
    bins = torch.arange(8) + text.first_location
    done = replace(sequence, ids=sequence.ids.masked_scatter(sequence.masked, bins))
    assert [round(1024 * x) for box in task.read(done, model.parts) for x in box] == list(range(8))


def test_every_quirk_can_be_switched_off(model: Model, picture: Image.Image) -> None:
    parts = replace(model.parts, quirks=replace(NO_QUIRKS, one_segment=True))
    look, pixels = parts.image_views(picture), parts.preprocess(picture)[0]
    drawn = wire(Generate(prompt="a dog").build(parts), model)
    assert drawn == f"{HEAD}Generate an image with the caption:\n a dog<|eot_id|>{ASSISTANT}[image 64]<|eot_id|>"
    edited = wire(Edit(pixels=pixels, instruction="go", look=look).build(parts), model)
    assert edited == f"{HEAD}[look {SQUARE}] [source 64]\n go<|eot_id|>{ASSISTANT}[image 64]<|eot_id|>"
    assert f"[look {SQUARE}]\n what" in wire(Ask(pixels=look, question="what").build(parts), model)
    assert wire(Ground(pixels=look, phrases=("x",)).build(parts), model).startswith(HEAD)
    apart = replace(parts, quirks=NO_QUIRKS)
    assert {s.segment for s in Ground(pixels=look, phrases=("x", "y")).build(apart).spans} == {0, 1, 2}
    codes = torch.arange(64).reshape(1, 8, 8)
    rounded, cut = (torch.tensor(list(p.decode(codes)[0].tobytes())) for p in (parts, model.parts))
    assert set((rounded - cut).unique().tolist()) == {0, 1}


# -- published settings and null streams (spec 4.1, 4.2, 4.5, 4.7) ----------------------------------------------------


def test_published_settings(model: Model) -> None:
    made = {k: describe(f(model.parts)) for k, f in vars(model.presets).items() if k in ("generate", "edit", "ask")}
    for name in ("generate", "edit"):
        assert made[name]["schedule"] == {"part": "Shift", "steps": 64, "shift": 5.0}
        assert made[name]["token_sampler"] == {"part": "Categorical", "temperature": 0.8} | made[name]["token_sampler"]
        assert made[name]["selection"]["part"] == "InOrder"
    assert made["generate"]["guidance"]["scale"] == 4.0
    assert (made["edit"]["guidance"]["scale"], made["edit"]["guidance"]["image_scale"]) == (1.2, 1.4)
    assert (
        made["ask"]["blocks"] == {"part": "Blocks", "length": 128}
        and made["ask"]["token_sampler"]["temperature"] == 0.0
    )
    assert model.presets.answer == 128
    first = model.parts.text[location(0)]
    draw = describe(model.presets.ground(model.parts, 2))["token_sampler"]
    assert (draw["low"], draw["high"]) == (first, first + 1025)


def test_null_streams(model: Model, picture: Image.Image) -> None:
    """Without a condition all up to the user's end of turn is the null embedding, BOS included; the assistant header stays."""
    parts, text = model.parts, model.parts.text
    drawing = Generate(prompt="a dog").build(parts)
    edit = Edit(pixels=parts.preprocess(picture)[0], instruction="go", look=parts.image_views(picture)).build(parts)
    for sequence, sampler in ((drawing, model.presets.generate(parts)), (edit, model.presets.edit(parts))):
        batch = collate([sequence], [0])
        views = sampler.guidance.views(batch, Progress(number=torch.tensor([3]), of=torch.tensor([64]), length=1))
        header = sequence.span("assistant").start
        assert int(sequence.ids[header]) == text[HEADER] and int(sequence.ids[header - 1]) == text[EOT]
        gone = views[-1].ids[0] != batch.ids[0]
        null = views[-1]
        assert (null.ids[0, :header] == text[MASK]).all() and (null.kind[0, :header] == Kind.TEXT).all()
        assert not gone[header:].any() and null.ids[0, header:].equal(batch.ids[0, header:])
        if sequence is edit:
            kept = views[1].kind[0, :header] != Kind.TEXT
            span = edit.span("source")
            assert kept.nonzero().flatten().tolist() == list(range(span.start, span.stop))
            assert (views[1].ids[0, :header][~kept] == text[MASK]).all()


@torch.no_grad()
@pytest.mark.parametrize("task", ["edit", "ask", "ground"])
def test_what_sees_is_the_same_to_the_last_bit_loaded_in_part(
    task: str, folder: Path, model: Model, picture: Image.Image
) -> None:
    """Logits of every stream of the published guidance; tests/checkpoints/test_elastic.py has those of the fixture, which sees nothing."""
    parts, part = model.parts, unmask.load(folder, needs=needs_of(task)).parts
    assert any(p.is_meta for p in part.net.parameters()), "nothing was left out"
    request, sampler = {
        "edit": (Edit(pixels=parts.preprocess(picture)[0], instruction="go", look=parts.image_views(picture)), model.presets.edit(parts)),
        "ask": (Ask(pixels=parts.image_views(picture), question="what?", length=3), model.presets.ask(parts)),
        "ground": (Ground(pixels=parts.image_views(picture), phrases=("a cat",)), model.presets.ground(parts, 1)),
    }[task]  # fmt: skip
    sequence = request.build(parts)
    assert sequence.ids.equal(request.build(part).ids)
    batch = collate([sequence], [0])
    views = sampler.guidance.views(batch, Progress(number=torch.tensor([3]), of=torch.tensor([64]), length=1))
    assert len(views) == (3 if task == "edit" else 1)
    for view in views:
        got, wanted = part.net(view), parts.net(view)
        assert sum(len(scored.at) for scored in wanted.scored.values()) == int(view.masked.sum()) > 0
        assert all(got.logits(kind).equal(wanted.logits(kind)) for kind in wanted.scored)


# -- every task, from the command line --------------------------------------------------------------------------------


def run(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    code = main([str(w) for w in words])
    out, err = capsys.readouterr()
    assert code == 0, err
    return out


def test_every_command_runs(
    folder: Path,
    picture: Image.Image,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    picture.resize((96, 64)).save("in.png")
    few = ("--model", folder, "-o", "schedule.steps=4")
    told = json.loads(run(capsys, "generate", "a dog", "--out", "a.png", "--json", *few))[0]
    assert told["settings"]["guidance"]["scale"] == 4.0 and Image.open("a.png").size == (128, 128)
    assert run(capsys, "edit", "in.png", "make it blue", "--out", "b.png", *few) == "b.png\n"
    assert (
        run(capsys, "infill", "in.png", "--box", "0,0,48,64", "--prompt", "a cat", "--out", "c.png", *few) == "c.png\n"
    )
    run(capsys, "infill", "a [mask] dog", "--model", folder)
    answer = json.loads(run(capsys, "ask", "in.png", "what is it?", "--max-tokens", "6", "--json", "--model", folder))
    assert answer["settings"]["schedule"]["steps"] == 128 and isinstance(answer["text"], str)
    lines = run(capsys, "ground", "in.png", "the cat", "a dog", "--model", folder).splitlines()
    assert [line.split("\t")[4] for line in lines] == ["the cat", "a dog"]
    assert all(0 <= float(v) <= 96 for line in lines for v in line.split("\t")[:4])


def test_an_answer_is_as_long_as_asked(model: Model, picture: Image.Image) -> None:
    assert len(model.ask(picture, "what?", length=5, trace=True).trace) <= 5
    with pytest.raises(ValueError, match="max_tokens must be at least 1, got 0"):
        model.ask(picture, "what?", max_tokens=0)


def test_coordinates_alone_unless_wanted(folder: Path, picture: Image.Image) -> None:
    """Equal to the free choice where that is a coordinate; where it is not, a box cannot be read."""
    model = unmask.load(folder)
    free = ["token_sampler.low=0", f"token_sampler.high={model.parts.text.size}"]
    with pytest.raises(ValueError, match="a box must be four bins"):
        model.ground(picture, ["the cat"], settings=free)
    first = model.parts.text[location(0)]
    with torch.no_grad():
        head = model.parts.net.text_head.weight
        head[:first], head[first + 1025 :] = 0, 0
    assert model.ground(picture, ["the cat"], settings=free).boxes == model.ground(picture, ["the cat"]).boxes


def test_a_wide_picture_is_seen_in_tiles(model: Model) -> None:
    wide = to_image(torch.rand(3, 28, 84, generator=torch.Generator().manual_seed(2)))
    sequence = Ask(pixels=model.parts.image_views(wide), question="what?").build(model.parts)
    assert len(sequence.span("look")) == 9 + 3 * 10
    assert sequence.pixels is not None and len(sequence.pixels) == 4
    left, right = wide.copy(), wide.copy()
    left.paste("red", (0, 0, 2, 2))
    assert not torch.equal(model.parts.image_views(left).views[1], model.parts.image_views(right).views[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_names_without_the_level_and_other_types(
    folder: Path, tmp_path: Path, picture: Image.Image, dtype: torch.dtype
) -> None:
    """Names of the tower as newer files have them; bfloat16 as the released files have it."""
    place = make_folder(tmp_path / "other", lambda name: name.replace(LEVEL, LEVEL.replace("vision_model.", "")), dtype)
    other, model = unmask.load(place), unmask.load(folder)
    assert other.parts.net.embed.weight.dtype == dtype and other.parts.vq.quant_conv.weight.dtype == torch.float32
    views = model.parts.image_views(picture).views
    with torch.no_grad():
        theirs, ours = other.parts.net.vision(views), model.parts.net.vision(views)
    torch.testing.assert_close(theirs.float(), ours, atol=0.0 if dtype == torch.float32 else 0.3, rtol=0)
    assert other.edit(picture, "go", settings=["schedule.steps=2"])[0].image.size == (128, 128)
    assert len(other.ground(picture, ["x"]).boxes) == 1
