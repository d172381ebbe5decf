"""How the embedded model draws unless a call says otherwise: from its own layout, and once more if it rejects the first picture."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

import unmask
from unmask.cli.main import main
from unmask.pipeline.model import Model
from unmask.serving.batch import Share, plan, run_batch
from unmask.tasks import released
from unmask.tasks.own import OWN
from unmask.tasks.results import Drawing
from unmask.tokens.layouts import layout_of

pytestmark = pytest.mark.weights

FEW = ["schedule.steps=2"]
PROMPT = "a dog left of a cat"
LAYOUT = layout_of([("cat", (0.0, 0.0, 0.5, 0.5))])


def drawn(model: Model, **more: object) -> Drawing:
    return model.generate(PROMPT, seed=4, settings=FEW, **more)[0]  # type: ignore[arg-type]


def test_the_preset_plans_and_tries_twice(model: Model) -> None:
    assert OWN.plans and OWN.attempts == 2
    by_default, same = drawn(model), drawn(model, plan=True, attempts=2)
    assert by_default.image.tobytes() == same.image.tobytes() and by_default.plan == same.plan is not None
    assert 1 <= len(by_default.attempts) == len(same.attempts) <= 2


def test_a_call_decides_for_itself(model: Model) -> None:
    plain, planned, given = drawn(model, plan=False), drawn(model, plan=True), drawn(model, plan=LAYOUT)
    assert plain.plan is None and planned.plan is not None and given.plan == LAYOUT
    assert not plain.attempts and not planned.attempts and not given.attempts
    once, thrice = drawn(model, attempts=1), drawn(model, plan=False, attempts=3)
    assert once.plan == planned.plan and not once.attempts and once.image.tobytes() == planned.image.tobytes()
    assert thrice.plan is None and thrice.attempts


def test_a_trace_is_of_one_attempt_from_a_layout(model: Model) -> None:
    traced = drawn(model, trace=True)
    assert traced.plan is not None and not traced.attempts and len(traced.trace) == 2
    with pytest.raises(ValueError, match="trace works with one attempt only"):
        drawn(model, trace=True, attempts=2)


def test_released_models_draw_plainly(model: Model) -> None:
    assert not released.PRESETS.plans and released.PRESETS.attempts == 1
    plain = Model(model.parts, replace(model.presets, plans=False, attempts=1))
    assert drawn(plain).plan is None and drawn(plain).image.tobytes() == drawn(model, plan=False).image.tobytes()
    assert drawn(Model(model.parts, replace(OWN, attempts=1))).attempts == ()


def test_the_flags_of_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*flags: str) -> dict[str, object]:
        given = ["generate", PROMPT, "--steps", "2", "--seed", "4", "--json", "--out", str(tmp_path / "a.png")]
        assert not main([*given, *flags])
        return json.loads(capsys.readouterr().out)[0]

    assert "plan" in run() and "attempts" in run()
    assert "plan" in run("--plan") and "attempts" not in run("--plan")
    assert "plan" not in run("--no-plan") and "attempts" not in run("--no-plan")
    assert "plan" in run("--attempts", "1") and "attempts" not in run("--attempts", "1")
    traced = run("--trace", str(tmp_path / "a.gif"))
    assert "plan" in traced and "attempts" not in traced and (tmp_path / "a.gif").exists()
    assert run("--no-plan", "--boxes", "cat: 0,0,0.5,0.5")["plan"] == LAYOUT.to_json()


def test_a_batch_leaves_the_choice_to_the_model(tmp_path: Path, model: Model) -> None:
    lines = [
        {"id": "preset", "task": "generate", "prompt": PROMPT, "seed": 4, "settings": FEW},
        {"id": "plain", "task": "generate", "prompt": PROMPT, "seed": 4, "settings": FEW, "plan": False},
        {"id": "null", "task": "generate", "prompt": PROMPT, "seed": 4, "settings": FEW, "plan": None, "reflect": None},
        {"id": "once", "task": "generate", "prompt": PROMPT, "seed": 4, "settings": FEW, "reflect": 1},
    ]
    (tmp_path / "all.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    work = plan(tmp_path / "all.jsonl", tmp_path / "out", Share())
    opened = unmask.load("mini", needs=())
    run_batch(opened, work)
    got = {r["id"]: r["result"] for r in map(json.loads, work.results.read_text().splitlines())}
    by_default = json.loads(json.dumps(drawn(model).to_json()))
    assert got["preset"]["plan"] == got["null"]["plan"] == by_default["plan"]
    assert got["preset"]["attempts"] == got["null"]["attempts"] == by_default["attempts"]
    assert "plan" not in got["plain"] and "plan" in got["once"] and "attempts" not in got["once"]
