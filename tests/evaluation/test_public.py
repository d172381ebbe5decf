"""The public benchmarks on a tiny random model: folders as their scripts expect them, resuming, verdicts on rendered pictures."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from unmask.data.dpg import DpgPrompt
from unmask.data.geneval import GenEvalPrompt, read_geneval
from unmask.data.imgedit import EditRequest
from unmask.data.refcoco import Expression
from unmask.data.world.render import render
from unmask.data.world.scenes import Scene, SceneObject
from unmask.evaluation import suite
from unmask.evaluation.encoders import Comparison
from unmask.evaluation.evaluate import EvalPlan, Measured, Record, measure, one_folder
from unmask.evaluation.judge import Judge, JudgeConfig
from unmask.evaluation.public_dpg import PublicDPG, gridded
from unmask.evaluation.public_geneval import PublicGenEval, lay_out, layout
from unmask.evaluation.public_imgedit import PublicImgEdit, middle
from unmask.evaluation.public_refcoco import PublicRefCOCO, Sought, scored
from unmask.evaluation.strategies import EditGenerator, PromptGenerator
from unmask.pipeline.model import Model
from unmask.tokens.pictures import ImageError

SHIPPED_JUDGE = files("unmask.evaluation") / "assets" / "judge.safetensors"
needs_judge = pytest.mark.skipif(not SHIPPED_JUDGE.is_file(), reason="the judge's weights are not in this source tree")
QUICK = ("schedule.steps=2",)
RECORDS: tuple[dict[str, Any], ...] = (
    {"tag": "single_object", "include": [{"class": "cat", "count": 1}], "prompt": "a photo of a cat"},
    {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"},
    {
        "tag": "counting",
        "include": [{"class": "dog", "count": 2}],
        "exclude": [{"class": "dog", "count": 3}],
        "prompt": "a photo of two dogs",
    },
    {"tag": "colors", "include": [{"class": "zebra", "count": 1, "color": "orange"}], "prompt": "an orange zebra"},
    {
        "tag": "position",
        "include": [{"class": "bus", "count": 1}, {"class": "cup", "count": 1, "position": ["left of", 0]}],
        "prompt": "a photo of a cup left of a bus",
    },
)


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> tuple[GenEvalPrompt, ...]:
    path = tmp_path_factory.mktemp("prompts") / "evaluation_metadata.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in RECORDS))
    return read_geneval(path)


@pytest.fixture(scope="module")
def blind() -> Judge:
    """A judge of random weights: quick, and always there."""
    torch.manual_seed(0)
    return Judge(JudgeConfig(widths=(8, 8, 8), blocks=(0, 0, 1))).eval()


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def alike(a: Any, b: Any) -> bool:
    """Whether two pictures are one, up to the rounding of a decoder that works on other batches."""
    one, other = (np.asarray(v).astype(int) for v in (a, b))
    return one.shape == other.shape and int(np.abs(one - other).max()) <= 1


def run(model: Model, part: PublicGenEval, folder: Path, *, limit: int = 5, batch: int = 4, seed: int = 0) -> Measured:
    plan = EvalPlan(n=limit, batch=batch, seed=seed)
    report = suite.run(model, {part.name: part}, plan, Record(folder, layout), about={"suite": part.name})
    lay_out(folder, part.chosen(plan))
    return report.parts[0]


# -- GenEval ----------------------------------------------------------------------------------------------------------


def test_geneval_lies_as_its_scripts_expect(
    model: Model, prompts: tuple[GenEvalPrompt, ...], blind: Judge, tmp_path: Path
) -> None:
    part = PublicGenEval(prompts=prompts, each=2, draw=PromptGenerator(changes=QUICK), judge=lambda: blind)
    figures = run(model, part, tmp_path).figures
    drawn = [
        f"{n:05d}/{name}" for n in (0, 2, 3, 4) for name in ("metadata.jsonl", "samples/0000.png", "samples/0001.png")
    ]
    assert set(contents(tmp_path)) == {*drawn, "verdicts.jsonl", "report.json", "report.html"}
    assert json.loads((tmp_path / "00002" / "metadata.jsonl").read_text()) == RECORDS[2]
    assert Image.open(tmp_path / "00000" / "samples" / "0001.png").size == (128, 128)
    assert (figures["prompts"], figures["prompts_judgeable"], figures["prompts_judged"]) == (5, 4, 4)
    assert figures["counting"]["n"] == 1 and figures["counting"]["pictures"] == 2 and figures["two_object"]["n"] == 0
    assert figures["words_of_grid"]["colors"]["n"] == 0 and figures["colors"]["n"] == 1, "mini was taught no zebra"


def test_geneval_draws_what_generate_draws(model: Model, prompts: tuple[GenEvalPrompt, ...], blind: Judge) -> None:
    part = PublicGenEval(prompts=prompts[:1], each=3, draw=PromptGenerator(changes=QUICK), judge=lambda: blind)
    found = measure(model, part, EvalPlan(n=1, seed=7, batch=2), Record())
    wanted = model.generate(prompts[0].prompt, n=3, seed=7, plan=False, settings=QUICK)
    for number, drawing in enumerate(wanted):
        assert alike(found.pictures(f"00000-{number:04d}", "drawn"), drawing.image)
    assert not alike(wanted[0].image, wanted[1].image)


def test_a_stopped_run_ends_as_one_that_was_not(
    model: Model, prompts: tuple[GenEvalPrompt, ...], blind: Judge, tmp_path: Path
) -> None:
    part = PublicGenEval(prompts=prompts, each=2, draw=PromptGenerator(changes=QUICK), judge=lambda: blind)
    whole = run(model, part, tmp_path / "whole")
    stopped = tmp_path / "stopped"
    run(model, part, stopped, limit=3)
    verdicts = stopped / "verdicts.jsonl"
    verdicts.write_text(verdicts.read_text()[:-40])  # killed in the middle of the last line
    (stopped / "00002" / "samples" / "0000.png").unlink()  # and a picture was lost
    (stopped / "00003" / "samples" / "0001.png").write_bytes(b"half a pict")
    again = run(model, part, stopped, batch=3)
    assert again.figures == whole.figures and list(again.rows) == list(whole.rows)
    first, second = contents(tmp_path / "whole"), contents(stopped)
    assert first.keys() == second.keys()
    for name in first:
        if name.endswith(".png"):
            assert alike(*(Image.open(io.BytesIO(side[name])) for side in (first, second))), name
        elif name.endswith("metadata.jsonl"):
            assert first[name] == second[name], name


def test_a_folder_holds_one_run(model: Model, prompts: tuple[GenEvalPrompt, ...], blind: Judge, tmp_path: Path) -> None:
    part = PublicGenEval(prompts=prompts[:1], each=1, draw=PromptGenerator(changes=QUICK), judge=lambda: blind)
    run(model, part, tmp_path / "a")
    before = contents(tmp_path / "a")
    others = (dataclasses.replace(part, draw=PromptGenerator()), dataclasses.replace(part, prompts=prompts[2:]))
    for other, seed in ((part, 1), *((o, 0) for o in others)):
        with pytest.raises(ValueError, match="holds pictures of other weights, settings, seed or prompts; choose"):
            run(model, other, tmp_path / "a", seed=seed)
    assert contents(tmp_path / "a") == before
    run(model, dataclasses.replace(part, each=2), tmp_path / "a")  # more pictures of the same run
    assert (tmp_path / "a" / "00000" / "samples" / "0001.png").exists()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "letter.txt").touch()
    with pytest.raises(ValueError, match="holds other files; choose"):
        run(model, part, tmp_path / "b")


@dataclasses.dataclass
class Renders:
    """An arm that hands back, for each text, the scene of these objects in the small world."""

    objects: Callable[[str, int], tuple[SceneObject, ...]]

    def __call__(self, model: Model, items: Sequence[Any]) -> np.ndarray:
        scenes = [Scene(objects=self.objects(i.text, i.number), background="white", level="free") for i in items]
        return np.stack([render(scene, model.parts.side) for scene in scenes])

    def settings(self, model: Model) -> Any:
        return "rendered"


def obj(name: str, x: float, colour: str = "", y: float = 0.25) -> SceneObject:
    return SceneObject(name=name, colour=colour, x=x, y=y, size=0.25)


RIGHT = {
    "a photo of a cat": (obj("cat", 0.25), obj("dog", 0.75)),  # what else there is does not matter
    "a photo of a bench": (obj("chair", 0.25),),
    "a photo of two dogs": (obj("dog", 0), obj("dog", 0.5)),
    "an orange zebra": (obj("zebra", 0.5, "orange"),),
    "a photo of a cup left of a bus": (obj("cup", 0), obj("bus", 0.5)),
}
WRONG = {
    "a photo of a cat": (obj("dog", 0.75),),
    "a photo of a bench": (obj("chair", 0.25),),
    "a photo of two dogs": (obj("dog", 0), obj("dog", 0.5), obj("dog", 0, y=0.75)),
    "an orange zebra": (obj("zebra", 0.5),),
    "a photo of a cup left of a bus": (obj("cup", 0.5), obj("bus", 0)),
}


@needs_judge
def test_geneval_verdicts_on_rendered_pictures(model: Model, prompts: tuple[GenEvalPrompt, ...]) -> None:
    """One right and one wrong picture for every prompt; no model has seen "bench"."""
    arm = Renders(lambda text, number: (RIGHT, WRONG)[number][text])
    part = PublicGenEval(prompts=prompts, each=2, draw=arm, everything=True)
    found = measure(model, part, EvalPlan(n=5), Record())
    judged = {(row["prompt"], row["key"][-1]): row["right"] for row in found.rows}
    assert judged == {(n, d): None if n == 1 else d == "0" for n in range(5) for d in "01"}
    assert found.figures["overall"]["value"] == 0.5 and found.figures["pictures_not_judged"] == 2
    assert found.figures["single_object"]["n"] == 1, "what is not judged counts neither as right nor as wrong"
    assert found.figures["prompts_drawn"] == 5 and found.figures["prompts_judged"] == 4
    only = measure(model, dataclasses.replace(part, everything=False), EvalPlan(n=5), Record())
    assert only.figures["prompts_drawn"] == 4


def test_a_judge_that_cannot_see_the_pictures_says_nothing(model: Model, prompts: tuple[GenEvalPrompt, ...]) -> None:
    small = Judge(JudgeConfig(side=64, widths=(8, 8, 8), blocks=(0, 0, 1)))
    part = PublicGenEval(
        prompts=prompts[:1], each=1, draw=PromptGenerator(changes=QUICK), everything=True, judge=lambda: small
    )
    assert not part.judges(model)
    assert [row["right"] for row in measure(model, part, EvalPlan(n=1), Record()).rows] == [None]


# -- DPG-Bench --------------------------------------------------------------------------------------------------------

DENSE = (DpgPrompt(key="b", text="a dog and a cat"), DpgPrompt(key="a", text="two red apples"))


@pytest.mark.parametrize("each", [1, 4])
def test_dpg_writes_a_picture_or_a_grid_after_the_id(model: Model, each: int, tmp_path: Path) -> None:
    part = PublicDPG(prompts=DENSE, each=each, draw=PromptGenerator(changes=QUICK))
    found = measure(model, part, EvalPlan(n=2, batch=2, seed=3), Record(tmp_path, one_folder))
    assert set(contents(tmp_path)) == {"verdicts.jsonl", "images/a.png", "images/b.png"}
    single = [np.asarray(d.image) for d in model.generate(DENSE[0].text, n=each, seed=3, plan=False, settings=QUICK)]
    grid = np.asarray(Image.open(tmp_path / "images" / "b.png"))
    assert grid.shape == (128 * each**0.5, 128 * each**0.5, 3) and alike(grid, gridded(single))
    if each == 4:  # in rows, as the benchmark cuts them
        assert alike(grid[:128, 128:], single[1]) and alike(grid[128:, :128], single[2])
    assert found.figures["prompts_not_judged"] == 2
    assert measure(model, part, EvalPlan(n=2, batch=1, seed=3), Record()).rows == found.rows


def test_dpg_knows_one_picture_or_four() -> None:
    with pytest.raises(ValueError, match="got 3 images; give -n 1 or -n 4"):
        PublicDPG(prompts=DENSE, each=3)


class Lengths:
    """An encoder whose features are the picture's mean colour, and for texts how long they are."""

    def images(self, pictures: Any) -> np.ndarray:
        return np.stack([p.reshape(-1, 3).mean(0) for p in pictures])

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        return np.array([[len(t), len(t), len(t)] for t in texts], dtype=np.float32)


def test_drawings_are_held_against_their_prompts_and_real_pictures(model: Model, tmp_path: Path) -> None:
    for n in range(3):
        Image.new("RGB", (10, 8), (60 * n, 20, 200)).save(tmp_path / f"{n}.png")
    real = tuple(sorted(tmp_path.glob("*.png")))
    part = PublicDPG(
        prompts=DENSE, each=4, draw=PromptGenerator(changes=QUICK), compare=Comparison(encoder=Lengths(), real=real)
    )
    found = measure(model, part, EvalPlan(n=2), Record())
    figures = found.figures
    assert figures["clip_score"]["n"] == 8, "every picture of a grid alone"
    assert 0 < figures["clip_score"]["value"] <= 100
    assert figures["frechet"]["real"] == 3 and figures["frechet"]["value"] > 0
    assert "clip_score" not in measure(model, dataclasses.replace(part, compare=None), EvalPlan(n=2), Record()).figures


# -- ImgEdit ----------------------------------------------------------------------------------------------------------


def test_imgedit_edits_the_middle_of_every_source(model: Model, tmp_path: Path) -> None:
    Image.new("RGB", (40, 20), "red").save(tmp_path / "wide.png")
    edits = (
        EditRequest(key="12", source="wide.png", prompt="make it blue", kind="adjust"),
        EditRequest(key="7", source="wide.png", prompt="add a cat", kind="add"),
    )
    part = PublicImgEdit(edits=edits, folder=tmp_path, draw=EditGenerator(changes=QUICK))
    found = measure(model, part, EvalPlan(n=2), Record(tmp_path / "out", one_folder))
    assert set(contents(tmp_path / "out")) == {"verdicts.jsonl", "images/12.png", "images/7.png"}
    assert (found.figures["made_add"], found.figures["made_adjust"], found.figures["edits_not_judged"]) == (1, 1, 2)
    square = middle(Image.open(tmp_path / "wide.png"), 128)
    wanted = model.edit(square, "make it blue", settings=QUICK)[0].image
    assert alike(Image.open(tmp_path / "out" / "images" / "12.png"), wanted)


def test_the_middle_of_a_picture() -> None:
    image = Image.new("RGB", (30, 10), "red")
    image.paste((0, 0, 255), (10, 0, 20, 10))
    for side in (10, 40):
        cut = middle(image, side)
        assert cut.size == (side, side) and {c for _, c in cut.getcolors() or []} == {(0, 0, 255)}


# -- RefCOCO ----------------------------------------------------------------------------------------------------------


def expression(key: str, split: str = "val", **more: Any) -> Expression:
    fields: dict[str, Any] = {"phrase": "the cat", "picture": "p.png", "size": (64, 32), "box": (0.0, 0.0, 32.0, 32.0)}
    return Expression(key=key, split=split, **{**fields, **more})


def test_refcoco_boxes_are_fractions_of_the_padded_square() -> None:
    assert Sought(expression=expression("1"), folder=Path()).box == (0.0, 0.25, 0.5, 0.75)


def test_refcoco_scores_every_split(model: Model, tmp_path: Path) -> None:
    Image.new("RGB", (64, 32), "red").save(tmp_path / "p.png")
    asked = [expression("1"), expression("2", phrase="a dog"), expression("3", "testA", phrase="the left one")]
    part = PublicRefCOCO(expressions=tuple(asked), folder=tmp_path)
    found = measure(model, part, EvalPlan(n=3), Record(tmp_path / "out"))
    assert (found.figures["val"]["n"], found.figures["testA"]["n"], found.figures["pictures"]) == (2, 1, 1)
    boxes = model.ground(tmp_path / "p.png", ["the cat"]).boxes[0]
    row = found.rows[0]
    assert row["right"] == (row["iou"] >= 0.5) and len(row["box"]) == 4
    assert boxes.x1 == pytest.approx(row["box"][0] * 64, abs=0.1)
    assert measure(model, part, EvalPlan(n=3, batch=1), Record()).rows == found.rows


def test_refcoco_boxes_are_right_from_an_overlap_of_one_half() -> None:
    item = Sought(expression=expression("1"), folder=Path())
    half, less = scored(item, (0.0, 0.25, 0.25, 0.75)), scored(item, (0.0, 0.25, 0.24, 0.75))
    assert (half["right"], half["iou"], less["right"]) == (True, 0.5, False)
    rows = [{"key": str(i), "text": "", **row} for i, row in enumerate((half, less))]
    figures = PublicRefCOCO(expressions=(), folder=Path()).figures(
        EvalPlan(), [item, item], rows, lambda *_: np.zeros(0)
    )
    assert figures["val"]["value"] == 0.5 and figures["val"]["mean_iou"] == pytest.approx(0.49)


def test_refcoco_pictures_are_those_its_boxes_were_made_for(model: Model, tmp_path: Path) -> None:
    Image.new("RGB", (32, 32), "red").save(tmp_path / "p.png")
    part = PublicRefCOCO(expressions=(expression("1"),), folder=tmp_path)
    with pytest.raises(ImageError, match="is 32 x 32, but instances.json has 64 x 32; "):
        measure(model, part, EvalPlan(n=1), Record())


def test_refcoco_steps_are_the_samplers(model: Model, tmp_path: Path) -> None:
    part = PublicRefCOCO(expressions=(expression("1"),), folder=tmp_path)
    four = dataclasses.replace(part, changes=("schedule.steps=4",))
    assert part.settings(model)[0]["schedule"]["steps"] == 1 and four.settings(model)[0]["schedule"]["steps"] == 4


# -- arms -------------------------------------------------------------------------------------------------------------


def test_an_arm_uses_the_models_own_sampler_with_changes(model: Model) -> None:
    other = Model(model.parts, presets=dataclasses.replace(model.presets, generate=model.presets.edit))
    assert (
        PromptGenerator().settings(model)["schedule"]["steps"] == 16
        and PromptGenerator().settings(other)["schedule"]["steps"] == 32
    )
    assert PromptGenerator(changes=QUICK).settings(model)["schedule"]["steps"] == 2
    assert PromptGenerator(sampler=model.presets.edit).settings(model) == EditGenerator().settings(model)
