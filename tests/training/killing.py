"""Kill a run of several processes again and again, one of them, its launcher, or all, at random moments and while it saves.

python tests/training/killing.py FOLDER [--kills 25] [--plan 2,2] [--seed 0]

``--plan``: numbers of processes, one after the other, with an ``s`` for shards: 2,4s. At the end the run is compared with one that
was never killed (of the first number of processes), and the result is printed as JSON: kills by kind, the most steps that were lost, the
largest difference of a weight and of a loss, and the seconds after which the last process of a killed run was gone.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from unmask.recipe import Recipe, override
from unmask.training import train as trainer
from unmask.training.parallel import join, launch
from unmask.training.states import saved_step
from unmask.training.stopping import Stopped

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.training import tiny  # noqa: E402
from tests.training.whole import state_of  # noqa: E402

EVERY, ACCUMULATE = 16, 4
KINDS = ("one", "launcher", "all", "saving")


def made(steps: int, shard: bool) -> Recipe:
    """Its learning rate does not depend on its length, so that the run can end where the kills end."""
    rate = ["optim.decay_from=1", "optim.lr=0.001", "training.log_every=4", f"training.save_every={EVERY}"]
    return override(
        tiny.recipe(accumulate=ACCUMULATE, shard=shard), [*rate, f"training.steps={steps}", "training.keep=2"]
    )


def work(folder: Path, steps: int, shard: bool, die: bool) -> None:
    """One of the processes. ``die``: in one of its saves, before a file is complete or gets its name."""
    torch.set_num_threads(1)
    trainer.matmul_peak = lambda dtype, device: 1e9
    place = join()
    if die:
        die_while_saving(random.Random(os.getpid()))
    try:
        trainer.train(made(steps, shard), folder, place=place)
    except Stopped:
        place.leave()
        sys.exit(130)
    except Exception as error:
        place.let_others_speak(error)
        raise
    place.leave()


def die_while_saving(rng: random.Random) -> None:
    """Killed by its own signal, in one of the calls that complete, rename or delete a file."""

    def deadly(real: Callable[..., object], *given: object, **named: object) -> object:
        if rng.random() < 0.1:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*given, **named)

    for name in ("fsync", "rename", "unlink"):
        setattr(os, name, functools.partial(deadly, getattr(os, name)))


def start(
    folder: Path, plan: str, steps: int, die: bool = False, python: str = sys.executable
) -> subprocess.Popen[bytes]:
    words = [
        python,
        __file__,
        str(folder),
        "--launch",
        plan,
        "--steps",
        str(steps),
        *(["--die"] if die else []),
    ]
    return subprocess.Popen(words, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


def steps_of(folder: Path) -> list[int]:
    path = folder / "metrics.jsonl"
    rows = path.read_text().splitlines(True) if path.exists() else []
    return [json.loads(row)["step"] for row in rows if row.endswith("\n")]


def processes(folder: Path) -> list[int]:
    """Ids of the living processes of a run, its launcher included: those that have its folder among their arguments."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_bytes().split(b"\0")  # empty for one that has ended
        except OSError:
            continue
        if str(folder).encode() in words and b"--launch" in words:
            found.append(int(path.name))
    return found


def kill(folder: Path, plan: str, kind: str, rng: random.Random) -> tuple[str, int, float]:
    """Start the run and kill it; returns how it ended, the steps it lost, and the seconds in which all processes were gone."""
    before, rows, early = saved_step(folder) or 0, steps_of(folder), rng.random() < 0.2
    launcher = start(folder, plan, 10**6, die=kind == "saving")
    deadline = time.monotonic() + 300
    while (
        not early
        and launcher.poll() is None
        and (steps_of(folder) == rows or max(steps_of(folder), default=0) <= before)
    ):
        assert time.monotonic() < deadline, "the run does not move"
        time.sleep(0.1)
    if kind == "saving":
        launcher.wait(300)
    else:
        time.sleep(rng.random() * (8 if early else 3))
    workers = [pid for pid in processes(folder) if pid != launcher.pid]
    chosen = {
        "one": [rng.choice(workers or [launcher.pid])],
        "launcher": [launcher.pid],
        "all": [launcher.pid, *workers],
    }
    for pid in chosen.get(kind, []):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    killed = time.monotonic()
    while launcher.poll() is None or processes(folder):
        assert time.monotonic() < killed + 120, f"left behind: {processes(folder)}"
        time.sleep(0.05)
    seconds = time.monotonic() - killed
    now = saved_step(folder) or 0
    assert now >= before, "a checkpoint was lost"
    return kind, max(steps_of(folder), default=0) - now, seconds


def compare(one: Path, other: Path) -> dict[str, float]:
    ours, theirs = state_of(one), state_of(other)
    assert ours.keys() == theirs.keys()
    weights = max(float((ours[n] - theirs[n]).abs().max()) for n in ours if n.startswith("master."))
    rows = [[json.loads(row) for row in (folder / "metrics.jsonl").read_text().splitlines()] for folder in (one, other)]
    assert [r["step"] for r in rows[0]] == [r["step"] for r in rows[1]]
    losses = max(abs(a[k] - b[k]) for a, b in zip(*rows, strict=True) for k in ("text", "code"))
    return {"weights": weights, "losses": losses, "equal": all(torch.equal(ours[n], theirs[n]) for n in ours)}


def main(folder: Path, kills: int, plans: list[str], seed: int, python: str) -> dict[str, object]:
    rng, found = random.Random(seed), []
    run, whole = folder / "run", folder / "whole"
    folder.mkdir(parents=True)
    for number in range(kills):
        kind = KINDS[number % len(KINDS)]
        found.append(kill(run, plans[number % len(plans)], kind, rng))
        print(number, plans[number % len(plans)], *found[-1], "at", saved_step(run), file=sys.stderr, flush=True)
    steps = (saved_step(run) or 0) + 8
    assert start(run, plans[kills % len(plans)], steps, python=python).wait() == 0
    assert start(whole, plans[0], steps, python=python).wait() == 0
    left = sorted(p.name for p in run.iterdir() if ".part" in p.name or ".tmp" in p.name)
    assert not left, f"left behind: {left}"
    kinds = {k: sum(f[0] == k for f in found) for k in dict.fromkeys(f[0] for f in found)}
    lost, gone = max(f[1] for f in found), max(f[2] for f in found)
    return {"kills": kinds, "steps": steps, "lost": lost, "gone after": round(gone, 1), **compare(run, whole)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=25)
    parser.add_argument("--plan", default="2")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--python", default=sys.executable, help="for the runs that are not killed")
    parser.add_argument("--launch")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--die", action="store_true")
    given = parser.parse_args()
    if "RANK" in os.environ:
        work(given.folder, given.steps, given.launch.endswith("s"), given.die)
    elif given.launch:
        count = int(given.launch.removesuffix("s"))
        more = ["--launch", given.launch, "--steps", str(given.steps), *(["--die"] if given.die else [])]
        sys.exit(launch(count, [__file__, str(given.folder), *more]))
    else:
        print(json.dumps(main(given.folder, given.kills, given.plan.split(","), given.seed, given.python)))
