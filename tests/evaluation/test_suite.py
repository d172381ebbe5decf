"""The suite on a tiny random model, a perfect drawer and a blank one: figures, resuming, oracles, the report."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch

from unmask.data.world import edits
from unmask.data.world.questions import KINDS
from unmask.data.world.render import render
from unmask.data.world.scenes import Draft, Scene, SceneObject, sample, split_of
from unmask.evaluation import world_suite
from unmask.evaluation.evaluate import EvalPart, EvalPlan, Record, fingerprint, measure
from unmask.evaluation.judge import Found, Judge, JudgeConfig, Seen, load_judge
from unmask.evaluation.world_edit import Edits, Wish, kept, met, success
from unmask.evaluation.world_geneval import CATEGORIES, GenEval, Prompt, prompts
from unmask.evaluation.world_grounding import Grounds
from unmask.evaluation.world_questions import Questions, normal
from unmask.pipeline.model import Model
from unmask.tasks.reflecting import Thinking

SHIPPED_JUDGE = files("unmask.evaluation") / "assets" / "judge.safetensors"
needs_judge = pytest.mark.skipif(not SHIPPED_JUDGE.is_file(), reason="the judge's weights are not in this source tree")
PLAN = EvalPlan(n=6, batch=4)


@pytest.fixture(scope="module")
def blind() -> Judge:
    """A judge of random weights: quick, and always there."""
    torch.manual_seed(0)
    return Judge(JudgeConfig(widths=(8, 8, 8), blocks=(0, 0, 1))).eval()


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch, blind: Judge) -> dict[str, EvalPart]:
    """The suite's parts, judged by the blind judge."""
    made: dict[str, Any] = {
        name: dataclasses.replace(part, judge=lambda: blind) if hasattr(part, "judge") else part  # type: ignore[type-var]
        for name, part in world_suite.PARTS.items()
    }
    for name in ("reflection", "composed"):
        made[name] = dataclasses.replace(made[name], thinking=Thinking(plan=True, attempts=2))
    monkeypatch.setattr(world_suite, "PARTS", made)
    return made


@dataclasses.dataclass
class Counting:
    """A drawer that hands back what a function makes of each item, and counts what it was asked for."""

    picture: Callable[[Any], np.ndarray]
    asked: int = 0

    def __call__(self, model: Model, items: Sequence[Any]) -> np.ndarray:
        self.asked += len(items)
        return np.stack([self.picture(item) for item in items])

    def settings(self, model: Model) -> Any:
        return "counting"


def blank(item: Any) -> np.ndarray:
    return np.full((128, 128, 3), 250, dtype=np.uint8)


def drawn(item: Prompt) -> np.ndarray:
    return render(item.scene)


def edited(item: Wish) -> np.ndarray:
    return render(item.edit.target)


def all_figures(value: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for inner in value.values():
        if isinstance(inner, dict):
            yield from [inner] if "value" in inner else all_figures(inner)


def test_the_whole_suite(model: Model, parts: dict[str, EvalPart], tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    report = world_suite.run(model, n=6, batch=4, out=tmp_path, progress=lambda *what: told.append(what))
    found = json.loads((tmp_path / "report.json").read_text())
    assert found == json.loads(json.dumps(report.to_json()))
    assert {"overall", *CATEGORIES} <= found["world_geneval"].keys()
    assert {"p50_1step", "p50_4step", "baseline_random_present"} <= found["grounding"].keys()
    assert {"overall", *KINDS} <= found["questions"].keys()
    assert all("majority" in found["questions"][kind] for kind in ("overall", *KINDS))
    assert {"overall", "copy_source", *edits.EDIT_KINDS} <= found["edit"].keys()
    for name in ("reflection", "composed"):
        assert {"plain", "rounds_1", "rounds_2", "tries", "critique_of_first_try"} <= found[name].keys()
    assert {"balanced_accuracy", "right_accepted", "wrong_refused", "calibration"} <= found["critique"].keys()
    assert {"luminance", "luminance_distance", "contrast", "prompt_met"} <= found["conditions"].keys()
    assert found["vq"]["psnr"]["n"] == 6 and found["about"]["n"] == 6 and found["about"]["split"] == "test"
    for figure in all_figures(found):
        if figure["value"] is not None and "low" in figure:
            assert figure["low"] <= figure["value"] <= figure["high"]
    assert [t for t in told if t[1] == t[2]] and {t[0] for t in told} == {p.name for p in parts.values()}
    assert all(name in report.table() for name in ("world_geneval", "color_attr", "p50_4step", "majority", "psnr"))
    page = (tmp_path / "report.html").read_text()
    assert "data:image/png;base64," in page and "prefers-color-scheme: dark" in page
    assert not re.search(r"(src|href)=\"(?!data:)|https?://|@import", page), "the page needs nothing from elsewhere"
    assert "✗ a photo of" in page and "failures first" in page


def test_a_stopped_run_goes_on(model: Model, blind: Judge, tmp_path: Path) -> None:
    first, second = Counting(drawn), Counting(drawn)
    measure(model, GenEval(draw=first, judge=lambda: blind), PLAN, Record(tmp_path))
    path = tmp_path / "verdicts.jsonl"
    whole = path.read_text()
    path.write_text(whole[: whole.rindex('"text"')])  # killed in the middle of the last line
    part = GenEval(draw=second, judge=lambda: blind)
    measured = measure(model, part, PLAN, Record(tmp_path))
    assert (first.asked, second.asked) == (6, 1) and len(measured.rows) == 6
    again = measure(model, part, PLAN, Record(tmp_path))
    assert second.asked == 1 and again.figures == measured.figures


def test_more_items_keep_the_first_ones(model: Model, blind: Judge, tmp_path: Path) -> None:
    drawer = Counting(drawn)
    part = GenEval(draw=drawer, judge=lambda: blind)
    measure(model, part, PLAN, Record(tmp_path))
    measure(model, part, dataclasses.replace(PLAN, n=12), Record(tmp_path))
    assert drawer.asked == 12


def test_other_weights_or_settings_are_measured_anew(model: Model, blind: Judge, tmp_path: Path) -> None:
    assert fingerprint(model) == fingerprint(model) != fingerprint(model, "other settings")
    drawer = Counting(drawn)
    measure(model, GenEval(draw=drawer, judge=lambda: blind), PLAN, Record(tmp_path))
    measure(model, GenEval(draw=drawer, judge=lambda: blind), dataclasses.replace(PLAN, seed=1), Record(tmp_path))
    assert drawer.asked == 12


def test_answers_do_not_depend_on_the_batch(model: Model) -> None:
    for part in (Questions(), Grounds()):
        one, all_ = (measure(model, part, dataclasses.replace(PLAN, batch=b), Record()).rows for b in (1, 6))
        assert one == all_


def test_an_unknown_part_is_named(model: Model) -> None:
    with pytest.raises(ValueError, match="no part 'drawing'; the parts are geneval"):
        world_suite.run(model, only=["drawing"])


def test_only_and_limit(model: Model) -> None:
    report = world_suite.run(model, only=["grounding"], limit=2)
    assert report.to_json().keys() == {"grounding", "about"} and report.parts[0].figures["pictures"] == 2


@pytest.mark.parametrize("kind", CATEGORIES)
def test_prompts_are_unseen_and_their_scenes_show_what_they_ask(kind: str) -> None:
    made = prompts(kind, 20, level="grid", split="test", seed=0)
    assert made[:5] == prompts(kind, 5, level="grid", split="test", seed=0)
    assert made != prompts(kind, 20, level="grid", split="test", seed=1)
    for prompt in made:
        assert split_of(prompt.scene) == "test"
        objects = tuple(Found(name=t.name, colour=t.colour, box=t.box, score=0.9) for t in prompt.scene.objects)
        assert _right(Seen(objects=objects, background=""), prompt) and not _right(
            Seen(objects=(), background=""), prompt
        )
    assert not any(p.unseen for p in prompts(kind, 20, level="grid", split="validation", seed=0))


def _right(seen: Seen, prompt: Prompt) -> bool:
    from unmask.evaluation.scoring import strict, verdict

    return verdict(seen, prompt.want) and strict(seen, prompt.want)


@needs_judge
def test_a_perfect_drawer_scores_all_and_a_blank_one_nothing(model: Model) -> None:
    plan = EvalPlan(n=36)
    for part, least in ((GenEval(draw=Counting(drawn)), 0.97), (Edits(draw=Counting(edited)), 0.97)):
        assert measure(model, part, plan, Record()).figures["overall"]["value"] >= least
    for part in (GenEval(draw=Counting(blank)), Edits(draw=Counting(blank))):
        assert measure(model, part, plan, Record()).figures["overall"]["value"] == 0
    assert load_judge() is load_judge()


def seen_of(scene: Scene) -> Seen:
    """What a perfect judge sees of a scene."""
    found = tuple(Found(name=t.name, colour=t.colour, box=t.box, score=0.9) for t in scene.objects)
    return Seen(objects=found, background=scene.background)


def made_edit(kind: str, number: int = 0) -> edits.SceneEdit:
    for index in range(number, number + 200):
        scene = sample("grid", "test", 5, index, Draft(counts=((2, 1.0),), alike=0.0))
        if found := edits.edit(scene, "test", Random(index), kind):
            return found
    raise AssertionError(kind)


@pytest.mark.parametrize("kind", edits.EDIT_KINDS)
def test_an_edit_is_right_if_it_does_that_and_no_more(kind: str) -> None:
    for number in range(0, 2000, 200):
        made = made_edit(kind, number)
        right, left = seen_of(made.target), seen_of(made.source)
        assert success(made, right) and met(made, right) and kept(made, right)
        assert not success(made, left) and not met(made, left)
        other = "sky" if right.background != "sky" else "sand"
        assert not success(made, dataclasses.replace(right, background=other))
        extra = Found(name="bus", colour="pink", box=(0.9, 0.9, 1.0, 1.0), score=0.9)
        assert not success(made, dataclasses.replace(right, objects=(*right.objects, extra)))
        assert not success(made, dataclasses.replace(right, objects=right.objects[1:]))


def test_added_and_moved_things_may_lie_anywhere_that_fits_the_word() -> None:
    dog, cat = (SceneObject(name=n, colour="red", x=x, y=0.75, size=0.25) for n, x in (("dog", 0.0), ("cat", 0.75)))
    source = Scene(objects=(dog, cat), background="white", level="grid")
    for kind, before, name in (("move", (dog, cat), "dog"), ("add", (cat,), "dog")):
        target = dataclasses.replace(source, objects=(dataclasses.replace(dog, x=0.0, y=0.0), cat))
        made = edits.SceneEdit(
            kind=kind, instruction="", source=dataclasses.replace(source, objects=before), target=target
        )

        def ends(x: float, y: float, size: float = 0.25, colour: str = "red", made: edits.SceneEdit = made) -> bool:
            placed = SceneObject(name="dog", colour=colour, x=x, y=y, size=size)
            return success(made, seen_of(dataclasses.replace(made.target, objects=(placed, cat))))

        assert ends(0.0, 0.0) and ends(0.25, 0.25) and not ends(0.5, 0.0) and not ends(0.0, 0.0, colour="blue"), name
        assert ends(0.0, 0.0, size=0.5) == (kind == "add")  # what is moved keeps its size


def test_a_thing_on_top_of_another_is_not_in_a_free_place() -> None:
    cat = SceneObject(name="cat", colour="", x=0.0, y=0.0, size=0.25)
    dog = dataclasses.replace(cat, name="dog", x=0.25)
    source = Scene(objects=(cat,), background="white", level="grid")
    made = edits.SceneEdit(
        kind="add", instruction="", source=source, target=dataclasses.replace(source, objects=(cat, dog))
    )
    above = dataclasses.replace(dog, x=0.1, y=0.1)
    assert success(made, seen_of(made.target))
    assert not success(made, seen_of(dataclasses.replace(source, objects=(cat, above))))


def test_answers_are_compared_by_their_words() -> None:
    assert normal(" Top  left. ") == normal("top left") != normal("left top")
