"""``mini.all`` at a fraction of its size: every part, stopped and continued, to a folder that loads, draws and says what it is."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

import unmask
from unmask.checkpoints.store import read_tensors
from unmask.cli.main import main
from unmask.cli.train import look_up
from unmask.data.world.render import render
from unmask.evaluation import world_suite
from unmask.recipes import mini_drawn, mini_tasks
from unmask.recipes.mini_drawn import training_prompts
from unmask.training.clock import Budget
from unmask.training.series import Run, Series
from unmask.training.states import newest, read

torch.set_num_threads(1)
pytestmark = pytest.mark.slow

FEW = ("times=0.05", "narrow=4", "images=400", "texts=300", "drawn=6", "items=1")
RUNS = ["vq", "tower", "align", "stage1", "stage2a", "stage2", "stage3", "stage3_drawn"]


def words(out: Path, *more: str) -> list[str]:
    settings = [word for setting in FEW for word in ("-o", setting)]
    return ["train", "mini.all", "--out", str(out), "--device", "cpu", *settings, *more]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two parts of the evaluation, and renderings in place of what the random network draws for its critic."""
    monkeypatch.setattr(world_suite, "PARTS", {n: world_suite.PARTS[n] for n in ("questions", "vq")})
    pictures = {prompt.text: render(prompt.scene) for prompt in training_prompts(6, 0)}

    class Renders:
        def __init__(self, **settings: Any) -> None: ...

        def __call__(self, model: Any, items: Any) -> Any:
            return torch.stack([torch.from_numpy(pictures[item.text]) for item in items]).numpy()

    monkeypatch.setattr(mini_drawn, "PromptGenerator", Renders)

    def total(budget: Budget) -> float:
        """Every look at the clock moves it: the length of a run does not depend on the machine."""
        budget.spent += 0.2
        return budget.spent

    monkeypatch.setattr(Budget, "total", total)


def test_the_series_is_stopped_and_continued_to_a_model(
    tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, original = tmp_path / "run", mini_tasks.Drawings.__call__

    def stops(source: Any, step: int) -> Any:
        if source.fold == 2 and step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(source, step)

    with monkeypatch.context() as patched:
        patched.setattr(mini_tasks.Drawings, "__call__", stops)
        assert main(words(out, "--minutes", "0.1")) == 130
    assert "continue with: unmask train mini.all" in capsys.readouterr().err
    assert json.loads((out / "chain.json").read_text())["done"] == ["text", "codes", *RUNS[:5]]
    stopped = newest(out / "stage2")
    assert stopped is not None and read(stopped).step == 4

    assert main(words(out, "--minutes", "0.1")) == 2 and "add --resume" in capsys.readouterr().err
    assert main(words(out, "--resume", "--json")) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"recipe": "mini.all", "folder": str(out)}
    assert "part 8 of 14: stage2" in captured.err and "part 7 of 14" not in captured.err
    steps = [json.loads(row)["step"] for row in (out / "stage2" / "metrics.jsonl").read_text().splitlines()]
    assert steps[0] == 4 and len(steps) > 1 and steps[1] > 4

    model = unmask.load(out)
    assert model.generate("two red apples left of a cat", plan=False, steps=2)[0].image.size == (128, 128)
    tower, stage = read_tensors(out / "tower", "model"), read_tensors(out / "stage3_drawn", "model")
    assert all(torch.equal(stage[f"vision.{n}"], value) for n, value in tower.items() if n.startswith("tower."))
    assert torch.equal(model.parts.net.embed.weight, stage["embed.weight"].bfloat16().float())
    assert (out / "drawn" / "drawn.jsonl").exists()
    card = (out / "README.md").read_text()
    assert all(f"\n| {name} |" in card for name in RUNS) and "| questions: overall |" in card and "| vq: psnr |" in card


def test_shares_are_of_the_hours_and_the_tasks_those_of_the_recipes() -> None:
    made, rest = look_up("mini.all", ("hours=30",), None)
    assert isinstance(made, Series) and not rest and made.hours == 30
    runs = [part for part in made.parts if isinstance(part, Run)]
    assert [run.name for run in runs] == RUNS and sum(run.share for run in runs) == pytest.approx(1.0)


def test_settings_of_a_recipe_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "mini.all", "--out", str(tmp_path / "run"), "-o", "optim.lr=1"]) == 2
    assert "setting 'optim.lr=1': mini.all is a chain" in capsys.readouterr().err
