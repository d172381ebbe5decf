"""kill -9 at random moments: a training run, a batch, and a server go on as if nothing had happened, and nothing is left behind.

    python bench/killed.py --threads 1 --record
    python bench/killed.py --only training --training 100 --recipe mini.stage3 --set start=mini --set source.batch=2
    python bench/killed.py --only batch,server --batch 30 --server 30

A training run is killed at any moment, and every third time while it saves. At the end its weights, moments and curves must be those of a
run that was never killed, to the last bit, and each kill may cost at most the steps since the last save. A batch must give the results of
one that was not killed, each once. A server that is started again must answer as the model's own methods do. Runs of several processes
are killed by ``tests/training/killing.py``.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from clients import Job, ask, connect
from rich.progress import track
from safetensors.torch import load_file
from served import ROOT, Hosted, answered, finish, mixed, opened, options

from unmask.evaluation.history import Line
from unmask.training.states import STATE, saved_step

EVERY = 4  # steps between two saves
_WAIT = 300.0  # seconds until a process must have done something
_CLOCKS = ("seconds", "tokens_per_s", "peak")  # fields of a row that a clock writes


def started(*words: object, folder: Path) -> subprocess.Popen[bytes]:
    """An unmask command whose temporary files are in ``folder``."""
    place = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    around = {**os.environ, "PYTHONPATH": place, "TMPDIR": str(folder)}
    command = [sys.executable, "-m", "unmask.cli.main", *map(str, words)]
    return subprocess.Popen(command, env=around, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def kill_when(process: subprocess.Popen[bytes], ready: Callable[[], bool], pause: float) -> bool:
    """kill -9 ``pause`` seconds after it is ready. Whether it was still running."""
    end = time.monotonic() + _WAIT
    while process.poll() is None and not ready():
        if time.monotonic() > end:
            process.kill()
            raise TimeoutError(f"the process did nothing in {_WAIT:.0f} s")
        time.sleep(0.002)
    time.sleep(pause)
    alive = process.poll() is None
    process.kill()
    process.wait()
    return alive


def leftovers(*folders: Path) -> list[str]:
    """Files that are not complete, or temporary, in these folders."""
    found = (path for folder in folders if folder.exists() for path in folder.rglob("*"))
    return sorted(str(p) for p in found if ".part" in p.name or ".tmp" in p.name)


# -- training ---------------------------------------------------------------------------------------------------------


def rows_of(run: Path) -> list[dict[str, Any]]:
    """The whole rows of metrics.jsonl, without those fields that a clock writes."""
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    rows = [json.loads(line) for line in lines if line.endswith("\n")]
    return [{name: value for name, value in row.items() if name not in _CLOCKS} for row in rows]


def training(given: argparse.Namespace, place: Path) -> tuple[list[Line], list[str]]:
    run, whole, rng = place / "run", place / "whole", random.Random(0)
    settings = [f"training.steps={given.steps}", f"training.save_every={EVERY}", "training.log_every=1", *given.set]
    words = [
        "train",
        given.recipe,
        *(word for one in settings for word in ("-o", one)),
        "--threads",
        given.threads or 1,
    ]
    kills, lost, bad = 0, 0, list[str]()
    for number in track(range(given.training), "training"):
        before, rows = saved_step(run) or 0, len(rows_of(run))
        process = started(*words, "--out", run, *(["--resume"] if (run / STATE).exists() else []), folder=place)
        saving = number % 3 == 2

        def ready(rows: int = rows, saving: bool = saving) -> bool:
            return any(run.glob("*.part*")) or any(run.glob(".*.part*")) if saving else len(rows_of(run)) > rows

        if not kill_when(process, ready, rng.random() * (0.01 if saving else 1.0)):
            bad.append(f"the run ended before kill {number + 1}; give more --steps")
            break
        kills += 1
        now, reached = saved_step(run) or 0, max((row["step"] for row in rows_of(run)), default=0)
        lost = max(lost, reached - now)
        bad += [f"kill {kills}: step {before} was saved, and then {now}"] if now < before else []
    ends = [started(*words, "--out", run, *(["--resume"] if (run / STATE).exists() else []), folder=place).wait()]
    ends.append(started(*words, "--out", whole, folder=place).wait())
    bad += [f"a run exited with {code}" for code in ends if code]
    if not any(ends):
        ours, theirs = load_file(run / STATE), load_file(whole / STATE)
        if ours.keys() != theirs.keys() or not all(torch.equal(ours[name], theirs[name]) for name in ours):
            bad.append("the state differs from that of a run that was not killed")
        if rows_of(run) != rows_of(whole):
            bad.append("the curve differs from that of a run that was not killed")
    bad += [f"left behind: {name}" for name in leftovers(run)]
    bad += [f"{lost} steps were lost, and a save comes every {EVERY}"] if lost > EVERY else []
    more = {"lost_steps": lost, "steps": given.steps, "failures": len(bad)}
    return [Line(name="killed.training", value=kills, unit="kills", more=more)], bad


# -- batches and servers ----------------------------------------------------------------------------------------------


def batch(given: argparse.Namespace, place: Path) -> tuple[list[Line], list[str]]:
    """A manifest that is longer than the kills take: a few lines are done between two of them."""
    lines = [
        {"id": f"l{i}", "task": "generate", "prompt": f"a {colour} cat", "seed": i, "settings": ["schedule.steps=4"]}
        if i % 2
        else {"id": f"l{i}", "task": "infill", "text": "two [mask] apples and a [mask]", "seed": i}
        for i, colour in enumerate(["red", "blue", "green", "yellow"] * (4 * given.batch))
    ]
    manifest, rng, kills = place / "lines.jsonl", random.Random(1), 0
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    out, whole = place / "out", place / "alone"
    words = ["batch", manifest, out, "--model", given.model, "--threads", given.threads or 1, "--live", 2]
    for _ in track(range(given.batch), "batch"):
        before = len(_results(out))
        process = started(*words, folder=place)
        kills += kill_when(process, lambda before=before: len(_results(out)) > before, rng.random() * 0.5)
    ends = [started(*words, folder=place).wait()]
    ends.append(started(*words[:2], whole, *words[3:], folder=place).wait())
    bad = [f"a batch exited with {code}" for code in ends if code]
    found, wanted = _results(out), _results(whole)
    if sorted(map(_key, found)) != sorted(map(_key, wanted)):
        bad.append(f"{len(found)} results differ from the {len(wanted)} of a batch that was not killed")
    pictures = {p.name: p.read_bytes() for p in (whole / "pictures").iterdir()}
    if pictures != {p.name: p.read_bytes() for p in (out / "pictures").iterdir()}:
        bad.append("the pictures differ from those of a batch that was not killed")
    bad += [f"left behind: {name}" for name in leftovers(out)]
    more = {"lines": len(lines), "failures": len(bad)}
    return [Line(name="killed.batch", value=kills, unit="kills", more=more)], bad


def _results(out: Path) -> list[dict[str, Any]]:
    path = out / "results-0.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def _key(row: dict[str, Any]) -> str:
    """A result without its seconds."""
    text = json.dumps(row, sort_keys=True)
    return json.dumps(json.loads(text, object_hook=lambda o: {k: v for k, v in o.items() if k != "seconds"}))


def server(given: argparse.Namespace, place: Path) -> tuple[list[Line], list[str]]:
    """Each server gets all jobs at once and is killed meanwhile; then one job must be answered as the model's own methods do."""
    jobs, rng, bad = answered(opened(given.model, given.threads), mixed(1, 4)), random.Random(2), list[str]()
    for number in track(range(given.server), "server"):
        with Hosted(given.model, threads=given.threads, variables={"TMPDIR": str(place)}) as hosted:
            found = ask(connect(hosted.url), job := jobs[number % len(jobs)], f"after-{number}")
            bad += [] if found.right else [f"server {number + 1}, {job.kind}: {found.status} {found.trouble}"]
            threads = [threading.Thread(target=_try, args=(hosted.url, one), daemon=True) for one in jobs]
            for thread in threads:
                thread.start()
            time.sleep(rng.random() * 0.5)
            hosted.process.kill()
            hosted.process.wait()
            for thread in threads:
                thread.join(60)
            bad += ["a client still waits"] if any(thread.is_alive() for thread in threads) else []
    bad += [f"left behind: {path}" for path in place.iterdir()]
    more = {"jobs": len(jobs), "failures": len(bad)}
    return [Line(name="killed.server", value=given.server, unit="kills", more=more)], bad


def _try(url: str, job: Job) -> None:
    try:
        ask(connect(url), job, f"killed-{job.kind}")
    except Exception:  # the connection ends with the server
        return


GROUPS: dict[str, Callable[[argparse.Namespace, Path], tuple[list[Line], list[str]]]] = {
    "training": training,
    "batch": batch,
    "server": server,
}


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--only", default="training,batch,server", help="what to kill")
    parser.add_argument("--training", type=int, default=100, help="kills of a training run")
    parser.add_argument("--recipe", default="mini.tower", help="the run")
    parser.add_argument("--set", action="append", metavar="KEY=VALUE", help="a setting of the recipe; repeatable")
    parser.add_argument("--steps", type=int, default=4000, help="steps of the run; more than the kills leave time for")
    parser.add_argument("--batch", type=int, default=30, help="kills of a batch")
    parser.add_argument("--server", type=int, default=30, help="kills of a server")
    given = parser.parse_args()
    given.set = given.set or ["source.batch=2"]
    chosen = given.only.split(",")
    if unknown := set(chosen) - GROUPS.keys():
        parser.error(f"unknown group {', '.join(sorted(unknown))}; there are {', '.join(GROUPS)}")
    lines, bad = list[Line](), list[str]()
    for name in chosen:
        with tempfile.TemporaryDirectory() as place:
            found, wrong = GROUPS[name](given, Path(place))
        lines += found
        bad += wrong
    finish(given, lines, bad)


if __name__ == "__main__":
    main()
