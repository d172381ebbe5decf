"""A run that is killed again and again, at any moment and while it saves, ends like one that never was."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from unmask.recipe import Recipe
from unmask.training import saving
from unmask.training import train as trainer
from unmask.training.states import STATE, saved_step
from unmask.training.train import train

if __package__:
    from ..warm import warm
    from .line import recipe, rows
else:  # the program below
    sys.path.insert(0, str(Path(__file__).parents[2]))
    from tests.training.line import recipe, rows
    from tests.warm import warm

KILLS, EVERY, STEPS = 25, 3, 1500


def made() -> Recipe:
    return recipe(steps=STEPS, save_every=EVERY, log_every=1, keep=2)


def die_while_saving() -> None:
    """In every tenth save, with half a file written."""
    real, rng = saving.save_file, random.Random(os.getpid())

    def half(tensors: dict[str, torch.Tensor], path: str, metadata: dict[str, str]) -> None:
        real(tensors, path, metadata=metadata)
        if rng.random() < 0.1:
            os.truncate(path, 200)
            os.kill(os.getpid(), signal.SIGKILL)

    saving.save_file = half  # type: ignore[assignment]


def attempt(folder: Path, number: int) -> bool:
    """One process that ends after some milliseconds, or half way through a save. Whether it was killed."""
    if child := os.fork():
        return os.WIFSIGNALED(os.waitpid(child, 0)[1])
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    if number % 5 == 0:
        die_while_saving()
    signal.setitimer(signal.ITIMER_REAL, 0.03 + random.Random(number).random() * 0.2)
    train(made(), folder)
    os._exit(0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_random_moments(tmp_path: Path) -> None:
    run = subprocess.run([sys.executable, __file__, str(tmp_path / "killed")], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    found = json.loads(run.stdout)
    assert found["kills"] >= KILLS // 2  # how many depends on the machine's speed
    assert found["lost"] <= EVERY and found["step"] > 0
    train(made(), tmp_path / "whole")
    one, other = (load_file(tmp_path / name / STATE) for name in ("killed", "whole"))
    assert all(torch.equal(one[k], other[k]) for k in one)
    numbers = [r["step"] for r in rows(tmp_path / "killed")]
    assert numbers == list(range(1, STEPS + 1))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="finds processes by /proc")
def test_processes_killed_one_by_one_or_all(tmp_path: Path) -> None:
    """The short form of ``python tests/training/killing.py FOLDER``."""
    words = [sys.executable, str(Path(__file__).with_name("killing.py")), str(tmp_path / "run"), "--kills", "4"]
    words += ["--python", warm()]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert found["equal"] and found["lost"] <= 2 * 16 and sum(found["kills"].values()) == 4


def main(folder: Path) -> None:
    """Kill a run often, then let it end; prints how often it was killed, the most steps that were lost, and where the kills ended."""
    torch.set_num_threads(1)
    trainer.matmul_peak = lambda dtype, device: 1e9  # else a short life is spent on measuring
    train(recipe(steps=1), folder.with_name("first"))  # what is imported late is there before the first fork
    kills = lost = step = 0
    for number in range(KILLS):
        kills += attempt(folder, number)
        now = saved_step(folder) or 0
        assert now >= step, "a checkpoint was lost"
        step = now
        metrics = folder / "metrics.jsonl"
        done = (
            [json.loads(t)["step"] for t in metrics.read_text().splitlines(True) if t.endswith("\n")]
            if metrics.exists()
            else []
        )
        lost = max(lost, max(done, default=0) - now)
    train(made(), folder)
    print(json.dumps({"kills": kills, "lost": lost, "step": step}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
