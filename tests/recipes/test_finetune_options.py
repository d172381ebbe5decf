"""Fine-tuning that keeps what the model knows, on cropped pictures, and on quantised weights."""

from __future__ import annotations

import json
import re
from pathlib import Path
from random import Random

import pytest
import torch
from PIL import Image

import unmask
from unmask.checkpoints.elastic import EVERYTHING
from unmask.cli.main import main
from unmask.data.codes import CodesMismatch
from unmask.models.lora import merge
from unmask.recipes.finetune import finetune
from unmask.rng import generator
from unmask.sequence import Sequence

from ..tasks.released_folder import make_folder
from .tuned import mistake, run, weights

# -- what the model knew ----------------------------------------------------------------------------------------------


def test_replayed_rows_keep_the_predictions_of_the_model_before(tmp_path: Path) -> None:
    """Their loss is the divergence from the first model, zero at first; ``distill=0`` trains on them, as on other rows."""
    Image.new("RGB", (128, 128), "red").save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a photo of a skateboard")
    recipe, trained = (finetune("mini", str(tmp_path), lora=2, replay_share=0.1, distill=d) for d in (3.0, 0.0))
    net = recipe.model()
    assert recipe.adapt
    recipe.adapt(net)
    batch = {name: one for name, one in recipe.source(0).items() if name.startswith("replay_")}
    same, other = (r.objective(net, batch, generator("noise")) for r in (recipe, trained))
    # The teacher has no gradients, and may get another kernel for its products.
    assert float(same.total.detach()) == pytest.approx(0, abs=1e-6) and float(other.total.detach()) > 0
    assert set(same.terms) <= set(other.terms)
    with torch.no_grad():
        for p in net.parameters():
            if p.requires_grad:
                p.add_(0.05)
    moved = recipe.objective(net, batch, generator("noise"))
    assert float(moved.total.detach()) == pytest.approx(
        3 * sum(float(term.detach()) for term in moved.terms.values()), rel=1e-4
    )
    assert float(moved.total.detach()) > 0


def test_all_weights_are_kept_close_to_a_copy_of_the_first_ones(tiny: Path, pets: Path, tmp_path: Path) -> None:
    Image.new("RGB", (128, 128), "blue").save(tmp_path / "1.png")
    old = tmp_path / "old.jsonl"
    old.write_text(json.dumps({"id": "old", "image": "1.png", "caption": "a lizard"}) + "\n")
    recipe = finetune(str(tiny), str(pets), holdout=0, replay=str(old))
    batch = {name: one for name, one in recipe.source(0).items() if name.startswith("replay_")}
    assert set(batch) == {"replay_draw", "replay_draw_planned", "replay_plan", "replay_describe"}
    net = recipe.model()
    assert float(recipe.objective(net, batch, generator("noise")).total.detach()) == 0
    with torch.no_grad():
        net.code_head.weight.add_(0.1) if hasattr(net.code_head, "weight") else net.embed.weight.add_(0.1)
    assert float(recipe.objective(net, batch, generator("noise")).total.detach()) > 0


def test_replayed_samples_are_those_of_their_file(tiny: Path, pets: Path, tmp_path: Path) -> None:
    """With the boxes of their own pictures in their layouts."""
    Image.new("RGB", (128, 128), "blue").save(tmp_path / "1.png")
    old = tmp_path / "old.jsonl"
    rows: tuple[dict[str, object], ...] = (
        {"id": "old", "image": "1.png", "caption": "a lizard"},
        {"id": "box", "image": "1.png", "boxes": [{"phrase": "lizard", "box": [0, 0, 0.5, 0.5]}]},
    )
    old.write_text("".join(json.dumps(row) + "\n" for row in rows))
    batch = finetune(str(tiny), str(pets), holdout=0, replay=str(old)).source(3)
    text = unmask.load(tiny).parts.text
    said = text.show(batch["replay_plan"].ids[0].tolist())
    assert "lizard" in said and "frog" not in said and "512" in said
    assert "lizard" not in text.show(batch["plan"].ids.flatten().tolist())


# -- pictures that are not square -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One picture of 256 x 128, red on the left and blue on the right, with a box in each half."""
    folder = tmp_path_factory.mktemp("wide")
    image = Image.new("RGB", (256, 128), "red")
    image.paste("blue", (128, 0, 256, 128))
    image.save(folder / "a.png")
    boxes = [{"phrase": "red", "box": [0, 0, 0.5, 1]}, {"phrase": "blue", "box": [0.5, 0, 1, 1]}]
    rows = ({"id": "a", "image": "a.png", "caption": "two colours"}, {"id": "b", "image": "a.png", "boxes": boxes})
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "rows.jsonl"


def made_rows(place: Path, data: Path, fit: str, *seeds: int) -> list[dict[str, Sequence]]:
    source = finetune(str(place), str(data), holdout=0, fit=fit).source.sources[0]
    formats = [f for f in source.used if f.task == "caption"]
    return [{f.name: f.row(source.data[0], Random(seed)) for f in formats} for seed in seeds]


def test_a_random_crop_is_drawn_with_its_layout_and_stated_in_the_prompt(tiny: Path, wide: Path) -> None:
    parts, lefts = unmask.load(tiny).parts, set[int]()
    image = Image.open(wide.parent / "a.png")
    for rows in made_rows(tiny, wide, "crop", *range(6)):
        row = rows["draw_planned"]
        said = parts.text.show(row.ids[: row.span("image").start].tolist())
        found = re.search(r"original width : 256; original height : 128; top : 0; left : (\d+)", said.lower())
        assert found, said
        left = int(found[1])
        lefts.add(left)
        cropped = image.crop((left, 0, left + 128, 128))
        codes = row.span("image")
        assert torch.equal(row.ids[codes.start : codes.stop], parts.encode(parts.preprocess(cropped)[0]).flatten())
        wanted = {phrase for phrase, seen in (("red", left <= 64), ("blue", left >= 64)) if seen}
        assert {word for word in ("red", "blue") if word in said} == wanted
        plan = parts.text.show(rows["plan"].ids.tolist())
        assert f"left : {left}" in plan.lower() and all(word in plan for word in wanted)
        assert (
            f"left : {left}" in parts.text.show(rows["draw"].ids[: rows["draw"].span("image").start].tolist()).lower()
        )
    assert len(lefts) > 3 and max(lefts) <= 128


def test_the_middle_is_cropped_and_its_codes_may_be_made_before(tiny: Path, wide: Path, tmp_path: Path) -> None:
    parts = unmask.load(tiny).parts
    middle = parts.encode(parts.preprocess(Image.open(wide.parent / "a.png").crop((64, 0, 192, 128)))[0]).flatten()
    rows = made_rows(tiny, wide, "middle", 0, 1)
    for row in (one["draw"] for one in rows):
        codes = row.span("image")
        assert torch.equal(row.ids[codes.start : codes.stop], middle)
    assert main(("data", "encode", str(wide), str(tmp_path / "codes"), "--model", str(tiny), "--crop")) == 0
    source = finetune(str(tiny), str(wide), holdout=0, fit="middle", codes=str(tmp_path / "codes")).source.sources[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("unmask.tokens.vq.VQ.encode", lambda *_: pytest.fail("encoded twice"))
        row = source.used[0].row(source.data[0], Random(0))
    assert isinstance(row, Sequence) and torch.equal(row.ids[row.span("image").start :][: len(middle)], middle)
    with pytest.raises(CodesMismatch, match="pad"):
        finetune(str(tiny), str(wide), holdout=0, codes=str(tmp_path / "codes"))


def test_a_crop_of_a_square_picture_is_the_picture(tiny: Path, pets: Path) -> None:
    """A model without the whole-picture setting does not get one."""
    padded, cropped = (made_rows(tiny, pets, fit, 0)[0] for fit in ("pad", "crop"))
    assert padded.keys() == cropped.keys()
    assert all(torch.equal(padded[name].ids, cropped[name].ids) for name in padded)


def test_the_crop_of_a_batch_is_a_function_of_seed_step_and_sample(tiny: Path, wide: Path) -> None:
    one, again = (finetune(str(tiny), str(wide), holdout=0, fit="crop").source for _ in range(2))
    first, later = one(0)["draw"], one(1)["draw"]
    assert torch.equal(again(1)["draw"].ids, later.ids) and torch.equal(again(0)["draw"].ids, first.ids)
    assert len({tuple(row.tolist()) for row in (*first.ids, *later.ids)}) > 4
    other = finetune(str(tiny), str(wide), holdout=0, fit="crop", seed=1).source(0)["draw"]
    assert not torch.equal(other.ids, first.ids)


def test_a_released_model_is_told_size_and_crop(wide: Path, tmp_path: Path) -> None:
    base = make_folder(tmp_path / "base")
    text, side = unmask.load(base).parts.text, unmask.load(base).parts.side
    rows = made_rows(base, wide, "crop", *range(4))
    said = [text.show(one["draw"].ids[: one["draw"].span("image").start].tolist()) for one in rows]
    found = [re.search(r"ORIGINAL WIDTH : 256; ORIGINAL HEIGHT : 128; TOP : 0; LEFT : (\d+); SCORE", s) for s in said]
    lefts = [int(one[1]) for one in found if one]
    assert len(lefts) == 4 and len(set(lefts)) > 1 and max(lefts) <= side


# -- adapters of quantised weights ------------------------------------------------------------------------------------


def test_adapters_are_trained_on_quantised_weights(
    tiny: Path, pets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run's model is the first one with the adapter in its own weights, not in the quantised ones."""
    pytest.importorskip("torchao")
    out = tmp_path / "run"
    given = ("--model", str(tiny), "--data", str(pets), "--out", str(out), "--steps", "2", "--lora", "2")
    run(capsys, *given, "-o", "quantise=int8", "-o", "optim.lr=0.05")
    before, after = weights(tiny), weights(out)
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    assert changed and all(name.startswith("blocks.") for name in changed)
    adapted = unmask.load(tiny, lora=out / "adapter")
    net = adapted.parts.require(EVERYTHING) or adapted.parts.net
    merge(net)
    assert all(torch.equal(net.state_dict()[name], after[name]) for name in after)
    other = (*given[:4], "--out", str(tmp_path / "other"), "--lora", "2", "-o", "quantise=int4")
    assert "a matrix of 48 columns cannot be quantised to int4" in mistake(capsys, *other)
