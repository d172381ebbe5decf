"""Runs the parts of ``run.sh`` one after the other, each within its own time, and keeps the results in at most eight files.

Public idea: ``Session(out, seconds).run(parts)``. After each part, and every quarter of a minute in a long one, OUT is complete again:

    rows.jsonl      every figure, as it is measured (lines for bench/history.jsonl)
    parts.jsonl     exit code and seconds of every part that has ended
    table.txt       what the run prints last
    logs.tar.gz     what every part printed
    small.tar.0 …   the newest files of the training run, in shards (``pack.py``)

Work happens in a folder of its own, so a run that is killed loses the part that was running and nothing else.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

sys.path.insert(0, str(Path(__file__).parent))
from pack import pack, replaced, unpack  # noqa: E402
from table import table  # noqa: E402

ROOT = Path(__file__).parents[2]
GRACE = 8.0  # seconds between SIGTERM and SIGKILL: the trainer saves in between
LEAST = 5.0  # a part with less time than this is not started
CLOSING = 10.0  # kept for the table and the last files
NO_TIME, NOT_THERE = 124, 5  # exit codes, as ``timeout`` has the first


@dataclass(frozen=True, kw_only=True)
class Part:
    """``name``: its first word is that of ``--only`` and of its log · ``most``: seconds, at most · ``folder``: whose newest files go to OUT
    as shards · ``rest``: takes all the time that is left, and other parts leave it a quarter of the whole.
    """

    name: str
    argv: Sequence[str]
    most: float
    folder: Path | None = None
    rest: bool = False


@dataclass(kw_only=True)
class Session:
    """``out``: the results · ``seconds``: for everything · ``work``: a folder for logs, files that are not complete, and training runs."""

    out: Path
    seconds: float
    work: Path
    began: float = field(default_factory=time.monotonic)
    stopped: int = 0  # the signal that ended the run
    packed: float = 0.0  # when the folder of the running part was packed

    @property
    def left(self) -> float:
        return self.seconds - (time.monotonic() - self.began)

    def run(self, parts: Sequence[Part]) -> int:
        """All parts in order; returns how many failed, or 128 + the number of the signal that ended the run."""
        failed = 0
        with self._signals():
            for part in parts:
                if not self.stopped:
                    failed += bool(self.part(part, reserve=any(p.rest for p in parts) and not part.rest))
            self.publish()
        print((self.out / "table.txt").read_text(), flush=True)
        return 128 + self.stopped if self.stopped else failed

    def part(self, part: Part, *, reserve: bool) -> int:
        """Run one part; returns its exit code."""
        began = time.monotonic()
        room = self.left - CLOSING - (self.seconds / 4 if reserve else 0)
        most = room if part.rest else min(part.most, room)
        log = self.log(part)
        if most < LEAST:
            code = NO_TIME
            log.write_text("no time left\n")
        else:
            print(f"== {part.name} ({most:.0f} s at most)", flush=True)
            code = self._started(part, most, log)
        if code:
            print("\n".join(log.read_text(errors="replace").splitlines()[-12:]), flush=True)
        row = {"part": part.name, "exit": code, "seconds": round(time.monotonic() - began)}
        self.publish(part.folder, row)
        return code

    def log(self, part: Part) -> Path:
        return self.work / "logs" / f"{part.name.split()[0]}.log"

    def _started(self, part: Part, most: float, log: Path) -> int:
        argv = [a.replace("{minutes}", f"{max(0.05, (0.95 * most - GRACE) / 60):.2f}") for a in part.argv]
        with log.open("a") as f:
            f.write(f"== {part.name}: {' '.join(argv)}\n")
            f.flush()
            try:
                process = subprocess.Popen(argv, stdout=f, stderr=f, cwd=ROOT, start_new_session=True)
            except OSError as error:
                f.write(f"{error}\n")
                return 127
        end, fresh = time.monotonic() + most, time.monotonic()
        try:
            while (code := process.poll()) is None and time.monotonic() < end and not self.stopped:
                time.sleep(0.1)
                if time.monotonic() - fresh > 15:
                    fresh = time.monotonic()
                    self.publish(part.folder)
        finally:
            _end(process)
        if code is None:
            return 128 + self.stopped if self.stopped else NO_TIME
        return 128 - code if code < 0 else code

    def publish(self, folder: Path | None = None, ended: dict[str, str | int] | None = None) -> None:
        """Bring OUT up to date, with a row for a part that has ``ended``. A disk that is full stops nothing."""
        try:
            if ended:
                with (self.out / "parts.jsonl").open("a") as f:
                    f.write(json.dumps(ended) + "\n")
            staging = self.work / "staging"
            _whole_lines(self.out / "rows.jsonl", staging)
            replaced(self.out / "logs.tar.gz", _logs(self.work / "logs"), staging)
            if folder is not None and folder.is_dir() and (newest := _newest(folder)) > self.packed:
                left_out = pack(folder, self.out, "small.tar", staging)
                (self.work / "logs" / "left_out.log").write_text("".join(f"{n}\n" for n in left_out))
                self.packed = newest
            replaced(self.out / "table.txt", table(self.out, self.work / "logs").encode(), staging)
        except OSError as error:
            print(f"could not write results: {error}", file=sys.stderr, flush=True)

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        def note(number: int, frame: FrameType | None) -> None:
            self.stopped = number

        before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and all that it started: SIGTERM, and SIGKILL where that does not help."""
    for number, patience in ((signal.SIGTERM, GRACE), (signal.SIGKILL, 5.0)):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience)
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)  # what it left behind
            return


def _newest(folder: Path) -> float:
    times = [0.0]
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            times.append(path.stat().st_mtime)
    return max(times)


def _whole_lines(path: Path, staging: Path) -> None:
    """Drop a last line that was cut while it was written."""
    if path.exists() and not (text := path.read_text(errors="replace")).endswith("\n") and text:
        replaced(path, text[: text.rfind("\n") + 1].encode(), staging)


def _logs(folder: Path) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz") as tar:
        for path in sorted(folder.iterdir()):
            tar.add(path, path.name)
    return made.getvalue()


# -- the parts --------------------------------------------------------------------------------------------------------


def parts(device: str, quick: bool, rows: Path, work: Path) -> list[Part]:
    """Everything, in order. ``quick``: the same scripts on tiny settings, which a CPU does in about a minute."""
    python, here = sys.executable, "bench/gpu"
    to = ["--device", device, "--history", str(rows)]
    little = ["--quick"] if quick else []
    pytest = [python, "-m", "pytest", "-q", "-m", "gpu", "--durations=5", "-p", "no:cacheprovider"]
    chosen = ["tests/gpu", "-k", "float32_by_default"] if quick else ["tests/gpu", "tests/checkpoints"]
    speed = [python, "bench/speed.py", *to, "--warm", "1"]
    float32 = (
        ["--repeats", "1", "--only", "twins"] if quick else ["--repeats", "5", "--only", "latency,throughput,twins"]
    )
    bf16 = ["--dtype", "bfloat16", "--attention", "fused", "--repeats", "5", "--only", "latency,throughput"]
    cache = [
        "--width",
        "64",
        "--layers",
        "2",
        "--prefix",
        "32",
        "--answer",
        "4",
        "--block",
        "4",
        "--repeats",
        "1",
        "--refresh",
    ]
    large_cache = ["--width", "2048", "--layers", "16", "--prefix", "1024", "--dtype", "bfloat16", "--refresh", "4"]
    released = [python, f"{here}/released.py", *to, *little]
    training = [python, f"{here}/training.py", *to, *little]
    small = [python, "-m", "unmask", "train", "small.all", "--out", str(work / "small"), "--device", device]
    tiny = ("times=0.05", "narrow=4", "workers=0", "texts=300", "images=40", "items=2") if quick else ()
    small += [word for setting in tiny for word in ("-o", setting)]
    patience = 8 if quick else 1  # a rehearsal is to end, however slow the machine
    return [
        Part(name="tests", most=100 * patience, argv=[*pytest, "--continue-on-collection-errors", *chosen]),
        Part(name="speed float32", most=45 * patience, argv=[*speed, *float32]),
        *([] if quick else [Part(name="speed bfloat16 fused", most=45 * patience, argv=[*speed, *bf16])]),
        Part(name="mid", most=45 * patience, argv=[*released, *([] if quick else ["--seconds", "35"]), "--size", "mid"]),
        *([] if quick else [Part(name="released", most=95 * patience, argv=[*released, "--seconds", "80", "--size", "lavida_o"])]),
        Part(name="cache", most=40 * patience, argv=[python, "bench/cache.py", *to, *(cache if quick else large_cache)]),
        Part(name="training", most=75 * patience, argv=training),
        Part(name="small", most=0, rest=True, folder=work / "small", argv=[*small, "--minutes", "{minutes}", "--resume"]),
    ]  # fmt: skip


def environment(device: str, rows: Path, work: Path) -> None:
    """What the parts inherit. Carried wheels are installed into a folder of this run."""
    path = [str(ROOT)]
    if device != "cpu" and (wheels := sorted((ROOT / "bench" / "gpu" / "wheels").glob("*.whl"))):
        pip = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-index",
            "--no-deps",
            "--no-compile",
            "--no-cache-dir",
        ]
        if (
            subprocess.run(
                [*pip, "--target", str(work / "site"), *map(str, wheels)], check=False, timeout=120
            ).returncode
            == 0
        ):
            path.append(str(work / "site"))
    os.environ |= {"PYTHONPATH": os.pathsep.join(path), "PYTHONUNBUFFERED": "1", "UNMASK_GPU_DEVICE": device}
    os.environ["UNMASK_GPU_ROWS"] = str(rows)


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Every check and measurement that needs a GPU; bench/gpu/README.md explains it."
    )
    parser.add_argument("minutes", type=float, nargs="?", default=9.0, help="for everything  [default: 9]")
    parser.add_argument(
        "out",
        type=Path,
        nargs="?",
        default=Path(os.environ.get("OUT", ROOT / "runs" / "gpu")),
        help="folder of the results",
    )
    parser.add_argument("--device", default="cuda", help="cuda, cuda:0 or cpu")
    parser.add_argument("--quick", action="store_true", help="tiny settings: the rehearsal on a CPU")
    parser.add_argument("--only", help="parts to run, such as tests,released")
    parser.add_argument(
        "--resume", type=Path, help="folder with the shards of an earlier run  [default: OUT, if it has some]"
    )
    given = parser.parse_args()
    out = given.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="unmask-gpu-", ignore_cleanup_errors=True) as folder:
        work, rows = Path(folder), out / "rows.jsonl"
        for name in ("logs", "staging"):
            (work / name).mkdir()
        session = Session(out=out, seconds=60 * given.minutes, work=work)
        all_parts = parts(given.device, given.quick, rows, work)
        names = {part.name.split()[0] for part in all_parts}
        only = set(given.only.split(",")) if given.only else names
        if unknown := only - names:
            parser.error(f"there is no part {', '.join(sorted(unknown))}; choose from {', '.join(sorted(names))}")
        unpack(given.resume or out, work / "small", "small.tar")
        for name in ("rows.jsonl", "parts.jsonl", "table.txt", "logs.tar.gz"):
            (out / name).unlink(missing_ok=True)
        environment(given.device, rows, work)
        return session.run([part for part in all_parts if part.name.split()[0] in only])


if __name__ == "__main__":
    sys.exit(main())
