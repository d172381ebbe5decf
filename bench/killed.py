"""kill -9 at random moments: a training run, a batch, and a server go on as if nothing had happened, and nothing is left behind.

    python bench/killed.py --threads 1 --record
    python bench/killed.py --only training,stage3,processes --folder kills
    python bench/killed.py --only batch,server --batch 30 --server 30

A training run is killed at any moment, and every third time while it saves. At the end its weights, moments and curves must be those of a
run that was never killed, to the last bit, and each kill may cost at most the steps since the last save. Of a run of two processes, which
goes on while it saves, one process is killed, its launcher, or all three, and all must be gone afterwards. A batch must give the results
of one that was not killed, each once. A server that is started again must answer as the model's own methods do.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from clients import Job, ask, connect
from rich.progress import track
from safetensors.torch import load_file
from served import ROOT, Hosted, answered, finish, mixed, opened, options

from unmask.evaluation.history import Line
from unmask.training.states import newest, saved_step
from unmask.writing import write_text

Found = tuple[list[Line], list[str]]

EVERY = 4  # steps between two saves
_WAIT = 300.0  # seconds until a process must have done something
_CLOCKS = ("seconds", "tokens_per_s", "peak")  # fields of a row that a clock writes


def started(*words: object, folder: Path) -> subprocess.Popen[bytes]:
    """An unmask command whose temporary files are in ``folder``."""
    place = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    around = {**os.environ, "PYTHONPATH": place, "TMPDIR": str(folder)}
    command = [sys.executable, "-m", "unmask.cli.main", *map(str, words)]
    return subprocess.Popen(command, env=around, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def kill_when(
    process: subprocess.Popen[bytes],
    ready: Callable[[], bool],
    pause: float,
    victims: Callable[[subprocess.Popen[bytes]], list[int]] = lambda process: [process.pid],
) -> bool:
    """kill -9 ``pause`` seconds after it is ready. Whether it was still running. ``victims``: the processes to kill."""
    end = time.monotonic() + _WAIT
    while process.poll() is None and not ready():
        if time.monotonic() > end:
            process.kill()
            raise TimeoutError(f"the process did nothing in {_WAIT:.0f} s")
        time.sleep(0.002)
    time.sleep(pause)
    alive = process.poll() is None
    for pid in victims(process) if alive else ():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait(_WAIT)
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


@dataclass(frozen=True, kw_only=True)
class Run:
    """A training run to kill. ``steps``: for each kill; enough that the run does not end before the last one."""

    recipe: str
    settings: tuple[str, ...]
    steps: int
    processes: int = 1


_PARTS = "draw draw_asked draw_counted draw_planned look edit edit_planned plan plan_related edit_plan critique"
_PARTS += " critique_placed edit_critique retry illustration reply caption"
TOWER = Run(recipe="mini.tower", settings=("source.batch=2",), steps=40)
STAGE3 = Run(
    recipe="mini.stage3",
    settings=("start=mini", "images=256", *(f"source.parts.{part}.batch=1" for part in _PARTS.split())),
    steps=5,
)
PROCESSES = replace(TOWER, settings=(*TOWER.settings, "training.accumulate=2"), processes=2)


@dataclass
class Tally:
    """What has been seen so far, kept in a file, so that an interrupted script continues. ``saving``: kills during a save."""

    path: Path
    kills: int = 0
    saving: int = 0
    lost: int = 0
    bad: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, place: Path) -> Tally:
        path = place / "kills.json"
        return cls(path, **json.loads(path.read_text())) if path.exists() else cls(path)

    def write(self) -> None:
        write_text(self.path, json.dumps({name: value for name, value in vars(self).items() if name != "path"}))


def training(run: Run, kills: int, given: argparse.Namespace, place: Path) -> Found:
    """A run is killed, and every third time while it saves; of several processes one, the launcher, or all."""
    folder, whole, tally = place / "run", place / "whole", Tally.read(place)
    most = run.steps * kills
    settings = [f"training.steps={most}", f"training.save_every={EVERY}", "training.log_every=1", *run.settings]
    words = ["train", run.recipe, *(word for one in settings for word in ("-o", one))]
    words += ["--threads", str(given.threads or 1), "--processes", str(run.processes)]
    for number in track(range(tally.kills, kills), run.recipe):
        if not killed_run(words, folder, number, tally):
            tally.bad.append(f"the run ended before kill {number + 1}, after {most} steps")
            break
        tally.kills = number + 1
        tally.write()
    ends = [finished(words, one, place) for one in (folder, whole)]
    bad = tally.bad + [f"a run exited with {code}" for code in ends if code]
    if not any(ends):
        ours, theirs = state_of(folder), state_of(whole)
        if ours.keys() != theirs.keys() or not all(torch.equal(ours[name], theirs[name]) for name in ours):
            bad.append("the state differs from that of a run that was not killed")
        if rows_of(folder) != rows_of(whole):
            bad.append("the curve differs from that of a run that was not killed")
    bad += [f"left behind: {name}" for name in leftovers(folder)]
    most_lost = EVERY if run.processes == 1 else 2 * EVERY  # several processes go on while they save
    bad += [f"{tally.lost} steps were lost, and a save comes every {EVERY}"] if tally.lost > most_lost else []
    more = {"while_saving": tally.saving, "lost_steps": tally.lost, "steps": most, "failures": len(bad)}
    more |= {"processes": run.processes}
    return [Line(name="", value=tally.kills, unit="kills", more=more)], bad


def killed_run(words: list[str], folder: Path, number: int, tally: Tally) -> bool:
    """Start the run, or continue it, and kill it. Whether it was still running."""
    rng, before, rows, saving = random.Random(number), saved_step(folder) or 0, len(rows_of(folder)), number % 3 == 2

    def ready() -> bool:
        return any(folder.glob("*.part*")) if saving else len(rows_of(folder)) > rows

    process = started(*words, "--out", folder, "--resume", folder=folder.parent)
    if not kill_when(process, ready, rng.random() * (0.01 if saving else 1.0), victims(folder, number // 3)):
        return False
    tally.saving += saving
    now, reached = saved_step(folder) or 0, max((row["step"] for row in rows_of(folder)), default=0)
    tally.lost = max(tally.lost, reached - now)
    tally.bad += [f"kill {number + 1}: step {before} was saved, and then {now}"] if now < before else []
    if not gone(folder):
        tally.bad.append(f"kill {number + 1}: processes {members(folder)} still run after {_WAIT:.0f} s")
    return True


def state_of(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of the newest state; of several processes each one's part, which has the same shape in every run of as many."""
    path = newest(folder)
    assert path is not None
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    return {f"{file.name}: {name}": tensor for file in files for name, tensor in load_file(file).items()}


def finished(words: list[str], folder: Path, place: Path) -> int:
    """Run to the end; the exit code."""
    return started(*words, "--out", folder, "--resume", folder=place).wait()


def members(folder: Path) -> list[int]:
    """The living processes that have a folder among their arguments (Linux)."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if str(folder).encode() in (path / "cmdline").read_bytes().split(b"\0"):
                found.append(int(path.name))
    return sorted(found)


def victims(folder: Path, number: int) -> Callable[[subprocess.Popen[bytes]], list[int]]:
    """Which processes of a run to kill: all, the launcher, or one of those that it started, in turn."""

    def chosen(launcher: subprocess.Popen[bytes]) -> list[int]:
        workers = [pid for pid in members(folder) if pid != launcher.pid]
        return [[launcher.pid, *workers], [launcher.pid], workers[:1] or [launcher.pid]][number % 3]

    return chosen


def gone(folder: Path) -> bool:
    """Whether all processes of a run end."""
    end = time.monotonic() + _WAIT
    while members(folder) and time.monotonic() < end:
        time.sleep(0.05)
    return not members(folder)


# -- batches and servers ----------------------------------------------------------------------------------------------


def batch(given: argparse.Namespace, place: Path) -> Found:
    """A manifest that is longer than the kills take: a few lines are done between two of them."""
    lines = [
        {"id": f"l{i}", "task": "generate", "prompt": f"a {colour} cat", "seed": i, "settings": ["schedule.steps=4"]}
        if i % 2
        else {"id": f"l{i}", "task": "infill", "text": "two [mask] apples and a [mask]", "seed": i}
        for i, colour in enumerate(["red", "blue", "green", "yellow"] * (4 * given.batch))
    ]
    manifest, tally = place / "lines.jsonl", Tally.read(place)
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    out, whole = place / "out", place / "alone"
    words = ["batch", manifest, out, "--model", given.model, "--threads", given.threads or 1, "--live", 2]
    for number in track(range(tally.kills, given.batch), "batch"):
        before = len(_results(out))
        process, pause = started(*words, folder=place), random.Random(number).random() * 0.5
        if not kill_when(process, lambda before=before: len(_results(out)) > before, pause):
            tally.bad.append(f"the batch ended before kill {number + 1}")
            break
        tally.kills = number + 1
        tally.write()
    ends = [started(*words, folder=place).wait()]
    ends.append(started(*words[:2], whole, *words[3:], folder=place).wait())
    bad = tally.bad + [f"a batch exited with {code}" for code in ends if code]
    found, wanted = _results(out), _results(whole)
    if sorted(map(_key, found)) != sorted(map(_key, wanted)):
        bad.append(f"{len(found)} results differ from the {len(wanted)} of a batch that was not killed")
    pictures = {p.name: p.read_bytes() for p in (whole / "pictures").iterdir()}
    if pictures != {p.name: p.read_bytes() for p in (out / "pictures").iterdir()}:
        bad.append("the pictures differ from those of a batch that was not killed")
    bad += [f"left behind: {name}" for name in leftovers(out)]
    more = {"lines": len(lines), "failures": len(bad)}
    return [Line(name="", value=tally.kills, unit="kills", more=more)], bad


def _results(out: Path) -> list[dict[str, Any]]:
    path = out / "results-0.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def _key(row: dict[str, Any]) -> str:
    """A result without its seconds."""
    text = json.dumps(row, sort_keys=True)
    return json.dumps(json.loads(text, object_hook=lambda o: {k: v for k, v in o.items() if k != "seconds"}))


def server(given: argparse.Namespace, place: Path) -> Found:
    """Each server gets all jobs at once and is killed meanwhile; then one job must be answered as the model's own methods do."""
    jobs, tally = answered(opened(given.model, given.threads), mixed(1, 4)), Tally.read(place)
    (temporary := place / "temporary").mkdir(exist_ok=True)
    for number in track(range(tally.kills, given.server), "server"):
        bad = list[str]()
        with Hosted(given.model, threads=given.threads, variables={"TMPDIR": str(temporary)}) as hosted:
            found = ask(connect(hosted.url), job := jobs[number % len(jobs)], f"after-{number}")
            bad += [] if found.right else [f"server {number + 1}, {job.kind}: {found.status} {found.trouble}"]
            threads = [threading.Thread(target=_try, args=(hosted.url, one), daemon=True) for one in jobs]
            for thread in threads:
                thread.start()
            time.sleep(random.Random(number).random() * 0.5)
            hosted.process.kill()
            hosted.process.wait()
            for thread in threads:
                thread.join(60)
            bad += ["a client still waits"] if any(thread.is_alive() for thread in threads) else []
        tally.kills, tally.bad = number + 1, tally.bad + bad
        tally.write()
    bad = tally.bad + [f"left behind: {path}" for path in temporary.iterdir()]
    more = {"jobs": len(jobs), "failures": len(bad)}
    return [Line(name="", value=tally.kills, unit="kills", more=more)], bad


def _try(url: str, job: Job) -> None:
    try:
        ask(connect(url), job, f"killed-{job.kind}")
    except Exception:  # the connection ends with the server
        return


GROUPS: dict[str, Callable[[argparse.Namespace, Path], Found]] = {
    "training": lambda given, place: training(TOWER, given.training, given, place),
    "stage3": lambda given, place: training(STAGE3, given.stage3, given, place),
    "processes": lambda given, place: training(PROCESSES, given.processes, given, place),
    "batch": batch,
    "server": server,
}


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--only", default=",".join(GROUPS), help="what to kill")
    parser.add_argument("--training", type=int, default=40, help="kills of a training run")
    parser.add_argument("--stage3", type=int, default=30, help="kills of a run that trains the whole model")
    parser.add_argument("--processes", type=int, default=30, help="kills of a run of two processes")
    parser.add_argument("--batch", type=int, default=30, help="kills of a batch")
    parser.add_argument("--server", type=int, default=30, help="kills of a server")
    parser.add_argument("--folder", type=Path, help="keep the runs here; an interrupted script continues with them")
    given = parser.parse_args()
    chosen = given.only.split(",")
    if unknown := set(chosen) - GROUPS.keys():
        parser.error(f"unknown group {', '.join(sorted(unknown))}; there are {', '.join(GROUPS)}")
    lines, bad = list[Line](), list[str]()
    for name in chosen:
        with tempfile.TemporaryDirectory() as temporary:
            place = Path(given.folder or temporary).absolute() / name
            place.mkdir(parents=True, exist_ok=True)
            found, wrong = GROUPS[name](given, place)
        lines += [replace(line, name=f"killed.{name}") for line in found]
        bad += [f"{name}: {one}" for one in wrong]
    finish(given, lines, bad)


if __name__ == "__main__":
    main()
