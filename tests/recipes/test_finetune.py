"""Fine-tuning: rows like requests, runs that end in a model folder, resumed runs, and wrong input."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from random import Random

import pytest
import torch
from PIL import Image

import unmask
from unmask.data.own import OwnData
from unmask.data.samples import DataError
from unmask.pipeline.model import Model
from unmask.recipes.finetune import finetune
from unmask.sequence import Sequence
from unmask.tasks import reflecting
from unmask.tasks.edit import Edit
from unmask.tasks.generate import Generate
from unmask.tasks.ground import Ground
from unmask.tasks.planning import PlanImage
from unmask.tasks.understand import Ask
from unmask.tokens.layouts import Layout, Placed
from unmask.tokens.turns import Said, announced, conversation, opened

from .. import tiny_llada
from ..tasks.released_folder import make_folder
from .tuned import mistake, run, weights

# -- rows -------------------------------------------------------------------------------------------------------------


def test_rows_have_the_format_of_requests(tiny: Path, pets: Path) -> None:
    """All tokens that a request gives are the same in the row, and so are the spans and the pictures that the model reads."""
    model = unmask.load(tiny)
    source = finetune(str(tiny), str(pets), holdout=0).source.sources[0]
    made = {f.name: f.row(source.data[i], Random(0)) for f in source.used for i in _rows_of(source, f.task)}
    parts, images = model.parts, [Image.open(pets.parent / f"{i}.png") for i in range(3)]
    box = (0.3125, 0.5, 0.6875, 1.0)  # of a picture of 96 x 128 in its square of 128 x 128
    layout = Layout(objects=(Placed(phrase="toad", box=box),))
    caption = "a toad on a sand background"
    requests = {
        "draw": Generate(prompt=caption),
        "draw_planned": Generate(prompt=caption, plan=layout),
        "plan": PlanImage(prompt=caption, length=44),
        "describe": Ask(pixels=parts.image_views(images[2]), question="describe", length=_answer(made["describe"])),
        "chat": Ask(pixels=parts.image_views(images[1]), question="what is this?", length=_answer(made["chat"])),
        "ground": Ground(pixels=parts.image_views(images[2]), phrases=("toad",)),
        "edit": Edit(pixels=parts.preprocess(images[0])[0], instruction="make the frog green"),
        "critique": reflecting.Critique(
            pixels=parts.image_views(images[1]), caption="a red frog", length=_answer(made["critique"])
        ),
    }
    assert made.keys() == requests.keys() | {"announce", "illustrate"}
    for name, task in requests.items():
        asked, row = task.build(parts), made[name]
        assert isinstance(row, Sequence), (name, row)
        assert row.spans == asked.spans, name
        assert torch.equal(row.ids[~asked.masked], asked.ids[~asked.masked]), name
        assert not row.masked.any()
        assert (row.pixels is None) == (asked.pixels is None) and (
            row.pixels is None or torch.equal(row.pixels, asked.pixels)
        ), name
    codes = made["draw"].span("image")
    wanted = parts.encode(parts.preprocess(images[2])[0]).flatten()
    assert torch.equal(made["draw"].ids[codes.start : codes.stop], wanted)
    where = made["ground"].span("box")
    first = parts.text.first_location
    assert [int(i) - first for i in made["ground"].ids[where.start : where.stop]] == [320, 512, 704, 1024]


@pytest.mark.parametrize("base", ["tiny", "released"])
def test_rows_of_turns_with_pictures_are_those_of_a_conversation(
    base: str, tiny: Path, pets: Path, tmp_path: Path
) -> None:
    """The words as the next turn of a conversation, then the picture where ``converse`` puts it."""
    place = tiny if base == "tiny" else make_folder(tmp_path / "base")
    model, source = unmask.load(place), finetune(str(place), str(pets), holdout=0).source.sources[0]
    parts, row = model.parts, {f.name: f.row(source.data[6], Random(0)) for f in source.used if f.task == "interleaved"}
    assert isinstance(words := row["announce"], Sequence) and isinstance(drawn := row["illustrate"], Sequence)
    asked = conversation(parts.builder(), [Said(role="user", text="draw a frog")], _answer(words))
    # The released models were trained with a prompt that reads the answer, and answer with one that does not (spec 4.1).
    read_both_ways = tuple(dataclasses.replace(span, order=0, order_step=0) for span in asked.spans)
    assert words.spans == read_both_ways and torch.equal(words.ids[~asked.masked], asked.ids[~asked.masked])
    at = announced(words, parts.text)
    assert at is not None and parts.text.decode(words.ids[words.span("answer").start : at].tolist()) == "here it is"
    shown = opened(words, at, parts.grid, parts.fold, parts.text)
    assert drawn.spans == shown.spans and torch.equal(drawn.ids[~shown.masked], shown.ids[~shown.masked])
    wanted = parts.encode(parts.preprocess(Image.open(pets.parent / "0.png"))[0]).flatten()
    assert torch.equal(drawn.ids[shown.masked], wanted) and not drawn.masked.any()


def test_rows_of_a_released_model_have_the_format_of_its_requests(pets: Path, tmp_path: Path) -> None:
    """Their text, token by token; a row of ours may name its spans otherwise."""
    base = make_folder(tmp_path / "base")
    parts, source = unmask.load(base).parts, finetune(str(base), str(pets), holdout=0).source.sources[0]
    made = {f.name: f.row(source.data[i], Random(0)) for f in source.used for i in _rows_of(source, f.task)}
    images = [Image.open(pets.parent / f"{i}.png") for i in range(3)]
    views = [parts.image_views(image) for image in images]
    requests = {
        "describe": Ask(pixels=views[2], question=parts.wording.describe, length=_answer(made["describe"])),
        "chat": Ask(pixels=views[1], question="what is this?", length=_answer(made["chat"])),
        "ground": Ground(pixels=views[2], phrases=("toad",)),
        "edit": Edit(pixels=parts.preprocess(images[0])[0], look=views[0], instruction="make the frog green"),
        "critique": reflecting.Critique(pixels=views[1], caption="a red frog", length=_answer(made["critique"])),
    }
    assert made.keys() == {*requests, "draw", "announce", "illustrate"}, (
        "no layouts that the byte tokens of this model have no room for"
    )
    for name, task in requests.items():
        asked, row = task.build(parts), made[name]
        assert isinstance(row, Sequence), (name, row)
        assert torch.equal(row.ids[~asked.masked], asked.ids[~asked.masked]), name
        assert torch.equal(row.pixels, asked.pixels) and torch.equal(row.feature, asked.feature), name
    said = parts.text.show(made["draw"].ids[: made["draw"].span("image").start].tolist())
    assert "ORIGINAL WIDTH : 96; ORIGINAL HEIGHT : 128; TOP : 0; LEFT : 0; SCORE : 7.110" in said


def _rows_of(source: OwnData, task: str) -> list[int]:
    return [i for i in range(len(source.data)) if source.data.task(i) == task]


def _answer(row: Sequence) -> int:
    return len(row.span("answer"))


def test_batches_are_a_function_of_seed_and_step(tiny: Path, pets: Path) -> None:
    source, again, other = (finetune(str(tiny), str(pets), holdout=0, seed=s).source for s in (0, 0, 1))
    later = source(7)
    assert {n: b.ids.tolist() for n, b in later.items()} == {n: b.ids.tolist() for n, b in again(7).items()}
    assert {n: b.ids.tolist() for n, b in later.items()} != {n: b.ids.tolist() for n, b in other(7).items()}


def test_sets_are_drawn_by_their_weights(tiny: Path, pets: Path) -> None:
    """Of 40 captions, 30 come from the set of weight 3. Commas separate the sets."""
    other = pets.parent / "other.jsonl"
    other.write_text(json.dumps({"id": "one", "image": "0.png", "caption": "a newt"}) + "\n")
    source = finetune(str(tiny), f"{pets}=1,{other}=3", holdout=0, batch=80).source.sources[0]
    text, size = unmask.load(tiny).parts.text, source.sizes["describe"]
    said = [text.show(source(step)["describe"].ids[row].tolist()) for step in range(40 // size) for row in range(size)]
    assert abs(sum("newt" in words for words in said) / len(said) - 0.75) < 0.15


def test_codes_are_kept_in_the_folder_of_the_run(tiny: Path, pets: Path, tmp_path: Path) -> None:
    first = finetune(str(tiny), str(pets), folder=str(tmp_path)).source
    batch, parts = first(0)["edit"], first.sources[0]
    again = finetune(str(tiny), str(pets), folder=str(tmp_path)).source
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("unmask.tokens.vq.VQ.encode", lambda *_: pytest.fail("encoded twice"))
        assert torch.equal(again(0)["edit"].ids, batch.ids)
    assert parts.broken.share == 0


# -- runs -------------------------------------------------------------------------------------------------------------


def test_a_run_ends_in_a_model_that_knows_the_new_words(
    tiny: Path, pets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    words = ("--model", str(tiny), "--data", str(pets), "--out", str(out), "--steps", "2", "-o", "holdout=0.2")
    run(capsys, *words, "-o", "evals.samples.every=2", "-o", "evals.validation.every=1")
    model = unmask.load(out)
    assert isinstance(model, Model)
    assert model.generate("a frog", steps=1)[0].image.size == (128, 128)
    before, after = weights(tiny), weights(out)
    assert before.keys() == after.keys() and not torch.equal(before["embed.weight"], after["embed.weight"])
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert any("validation.loss" in row for row in rows)
    assert (out / "samples" / "000002.png").exists()
    assert "already holds a run" in mistake(capsys, *words)


def test_a_run_with_lora_leaves_the_model_and_its_adapter(
    tiny: Path, pets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    run(capsys, "--model", str(tiny), "--data", str(pets), "--out", str(out), "--steps", "2", "--lora", "2")
    before, after = weights(tiny), weights(out)
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    assert changed and all(name.startswith("blocks.") for name in changed)
    adapted, merged = unmask.load(tiny, lora=out / "adapter"), unmask.load(out)
    images = [model.generate("a frog", plan=False, attempts=1, steps=4)[0].image for model in (adapted, merged)]
    assert images[0].tobytes() == images[1].tobytes()


@pytest.mark.parametrize(
    ("words", "kept"),
    [(("--only", "gen"), lambda n: ".gen." not in n), (("--freeze", "vision,und"), lambda n: n.startswith("vision"))],
)
def test_only_and_freeze_choose_the_parts(
    words: tuple[str, ...], kept: object, tiny: Path, pets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    run(capsys, "--model", str(tiny), "--data", str(pets), "--out", str(out), "--steps", "2", *words)
    before, after = weights(tiny), weights(out)
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    assert changed and not any(kept(name) for name in changed)  # type: ignore[operator]


def test_a_resumed_run_equals_one_that_was_not_stopped(
    tiny: Path, pets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--model", str(tiny), "--data", str(pets), "-o", "optim.warmup=1", "-o", "optim.decay_from=1")
    run(capsys, *words, "--out", str(tmp_path / "whole"), "--steps", "3")
    run(capsys, *words, "--out", str(tmp_path / "parts"), "--steps", "1")
    run(capsys, *words, "--out", str(tmp_path / "parts"), "--steps", "3", "--resume")
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_a_released_model_stays_in_its_layout(pets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, out = make_folder(tmp_path / "base"), tmp_path / "run"
    run(capsys, "--model", str(base), "--data", str(pets), "--out", str(out), "--steps", "1", "--only", "codes")
    before, after = weights(base), weights(out)
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    assert changed and all(name.startswith("code_") for name in changed)
    assert json.loads((out / "config.json").read_text()) == json.loads((base / "config.json").read_text())


def test_a_text_model_learns_chats(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = tiny_llada.make(tmp_path / "llada")
    turns = [{"role": "user", "content": "why is the sky blue?"}, {"role": "assistant", "content": "the sky is blue"}]
    (tmp_path / "chat.jsonl").write_text(
        "".join(json.dumps({"id": str(i), "messages": turns}) + "\n" for i in range(3))
    )
    out = tmp_path / "run"
    run(capsys, "--model", str(base), "--data", str(tmp_path / "chat.jsonl"), "--out", str(out), "--steps", "120",
        "-o", "optim.lr=1e-2", "-o", "holdout=0")  # fmt: skip
    assert unmask.load(out).ask("why is the sky blue?", length=32).text == "the sky is blue"


def test_new_words_of_the_captions_do_not_warn(tmp_path: Path) -> None:
    Image.new("RGB", (128, 128), "red").save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a photo of a skateboard")
    recipe = finetune("mini", str(tmp_path), replay="none")
    assert recipe.export is not None
    recipe.export(recipe.model(), tmp_path / "boards")
    model = unmask.load(tmp_path / "boards")
    assert model.parts.warnings("a skateboard", needs_object=True) == ()
    assert "boards does not know 'guitar'" in model.parts.warnings("a guitar", needs_object=True)[0]


def test_mini_replays_its_world_as_a_part_of_every_step(tmp_path: Path) -> None:
    Image.new("RGB", (128, 128), "red").save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a photo of a skateboard")
    recipe = finetune("mini", str(tmp_path), lora=2)
    names = [name for step in range(3) for name in recipe.source(step) if name.startswith("replay_")]
    assert len(names) == 9 and sum(name.startswith("replay_draw") for name in names) == 3
    assert sum(name.startswith("replay_plan") for name in names) == 3  # layouts are learned at every step, too
    assert {name for name, _, _ in recipe.objective.objectives} >= set(names)
    plain = finetune("mini", str(tmp_path), lora=2, replay="none")
    assert not any(name.startswith("replay_") for name in plain.source(0))


# -- wrong input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--model", "minni"), "did you mean 'mini'"),
        (("--lora", "0"), "0 is not in the range"),
        (("--lora", "-1"), "-1 is not in the range"),
        (("--lora", "1000000"), "the rank of LoRA is 1000000\nhint: give 1 to 32"),
        (("--only", "nonsense"), "no part of the network is called 'nonsense'\nhint: choose from und, gen"),
        (("--only", "gen", "--freeze", "gen"), "leave nothing to train"),
        (("--lora", "2", "--only", "vision"), "LoRA adapts und, gen and out"),
        (("--replay", "world"), "replay world needs mini"),
        (("--replay", "dreams"), "choose from auto, world, none"),
        (("--fit", "stretch"), "choose from pad, crop, middle"),
        (("-o", "distill=-1"), "give a weight from 0 to 100"),
        (("-o", "quantise=int8"), "weights in int8 cannot be trained"),
        (("-o", "quantise=int3", "--lora", "2"), "choose from int8, int4"),
        (("-o", "batch=0"), "at least 1 row"),
        (("-o", "holdout=1"), "validation share"),
        (("--steps", "0"), "0 is not in the range"),
        (("--data", "nowhere"), "there is no file or folder nowhere"),
    ],
)
def test_mistakes_are_named(
    words: tuple[str, ...], said: str, tiny: Path, pets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ("--model", str(tiny), "--data", str(pets), "--out", str(tmp_path / "run"), *words)
    assert said in mistake(capsys, *given)
    assert not (tmp_path / "run" / "state.safetensors").exists()


def test_data_that_cannot_be_trained_is_named(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DataError, match="needs data"):
        finetune(str(tiny))
    empty = tmp_path / "empty"
    empty.mkdir()
    given = ("--model", str(tiny), "--out", str(tmp_path / "run"), "--data")
    assert "empty" in mistake(capsys, *given, str(empty))
    Image.new("RGB", (8, 8)).save(empty / "a.png")
    (empty / "a.txt").write_text("frog " * 900)
    assert "tokens, more than 400" in mistake(capsys, *given, str(empty))


def test_a_folder_with_a_model_is_not_overwritten(tiny: Path, pets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (tiny / "config.json").read_bytes()
    said = mistake(capsys, "--model", "mini", "--data", str(pets), "--out", str(tiny))
    assert "holds a model that is not a run" in said and (tiny / "config.json").read_bytes() == before


def test_the_run_of_another_model_is_not_continued(
    tiny: Path, pets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--data", str(pets), "--out", str(tmp_path / "run"), "--steps", "1")
    run(capsys, "--model", str(tiny), *words)
    assert "holds a run of" in mistake(capsys, "--model", "mini", *words, "--resume")
