"""``bench/gpu/run.py`` with parts that fail, hang, vanish or are killed: what was measured before is there, in at most eight files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

GPU = Path(__file__).parents[2] / "bench" / "gpu"
DRIVER = f"""
import sys
sys.path.insert(0, {str(GPU)!r})
from pathlib import Path
from run import Part, Session
out, seconds = Path(sys.argv[1]), float(sys.argv[2])
work = out.parent / "work"
for name in ("logs", "staging"):
    (work / name).mkdir(parents=True, exist_ok=True)
out.mkdir(exist_ok=True)
made = [Part(name=n, argv=[sys.executable, "-c", c], most=float(m), rest=n == "small", folder=work / "small" if n == "small" else None)
        for n, m, c in zip(*[iter(sys.argv[3:])] * 3)]
sys.exit(Session(out=out, seconds=seconds, work=work).run(made))
"""
ROW = (
    "import json; row = {'name': 'NAME', 'value': 1, 'unit': 's', 'machine': {'cpu': 'c', 'torch': '2'}}; "
    "open('ROWS', 'a').write(json.dumps(row) + chr(10)); print('said', flush=True); "
)
HANG = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"


def row(out: Path, name: str) -> str:
    return ROW.replace("NAME", name).replace("ROWS", str(out / "rows.jsonl"))


QUICK = DRIVER.replace(
    "from run import", "import run; run.GRACE, run.LEAST, run.CLOSING = 0.5, 1.0, 2.0\nfrom run import"
)


def started(out: Path, seconds: float, *parts: tuple[str, float, str], driver: str = DRIVER) -> subprocess.Popen[bytes]:
    words = [str(word) for part in parts for word in part]
    return subprocess.Popen([sys.executable, "-c", driver, str(out), str(seconds), *words], stdout=subprocess.PIPE)


def ended(out: Path) -> dict[str, int]:
    return {p["part"]: p["exit"] for p in map(json.loads, (out / "parts.jsonl").read_text().splitlines())}


def named(out: Path) -> list[str]:
    return [json.loads(line)["name"] for line in (out / "rows.jsonl").read_text().splitlines()]


def complete(out: Path, *logs: str) -> None:
    """What every run leaves, whatever happened."""
    names = {p.name for p in out.iterdir()}
    assert {"rows.jsonl", "parts.jsonl", "table.txt", "logs.tar.gz"} <= names and len(names) <= 8
    with tarfile.open(out / "logs.tar.gz") as tar:
        assert set(logs) <= set(tar.getnames())


def wait_for(path: Path, text: str) -> None:
    for _ in range(600):
        if path.exists() and text in path.read_text():
            return
        time.sleep(0.05)
    raise AssertionError(f"no {text} in {path}")


def test_a_part_that_fails_or_is_not_there_stops_no_other(tmp_path: Path) -> None:
    out = tmp_path / "out"
    parts = ("one", 20, row(out, "a") + "raise SystemExit(3)"), ("two", 20, row(out, "b"))
    ran = started(out, 60, *parts)
    assert ran.wait(60) == 1
    assert ended(out) == {"one": 3, "two": 0} and named(out) == ["a", "b"]
    complete(out, "one.log", "two.log")
    assert "one " in (out / "table.txt").read_text() and "exit 3" in (out / "table.txt").read_text()


def test_a_part_that_hangs_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    """It ignores SIGTERM, and so does its child."""
    out, mark = tmp_path / "out", tmp_path / "child"
    child = f"import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', {HANG!r}]); open({str(mark)!r}, 'w').write(str(p.pid)); "
    parts = ("one", 4, row(out, "a") + child + HANG), ("two", 20, row(out, "b"))
    ran = started(out, 60, *parts, driver=QUICK)
    assert ran.wait(60) == 1
    assert ended(out) == {"one": 124, "two": 0} and named(out) == ["a", "b"]
    state = Path(f"/proc/{mark.read_text()}/stat")
    assert not state.exists() or state.read_text().split()[2] == "Z"


def test_without_time_the_last_parts_are_not_started(tmp_path: Path) -> None:
    out = tmp_path / "out"
    ran = started(out, 12, ("one", 20, row(out, "a")), ("two", 20, row(out, "b")))
    assert ran.wait(60) == 2
    assert ended(out) == {"one": 124, "two": 124} and not (out / "rows.jsonl").exists()
    assert "one " in (out / "table.txt").read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_stopped_loses_the_running_part_only(number: int, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ran = started(
        out,
        60,
        ("one", 20, row(out, "a")),
        ("two", 50, row(out, "b") + "import time; time.sleep(600)"),
        ("three", 9, ""),
    )
    wait_for(out / "rows.jsonl", '"b"')
    ran.send_signal(number)
    assert ran.wait(30) == 128 + number
    assert list(ended(out)) == ["one", "two"] and ended(out)["two"] != 0 and named(out) == ["a", "b"]
    complete(out, "one.log", "two.log")


def test_a_run_that_is_killed_leaves_what_had_ended(tmp_path: Path) -> None:
    out = tmp_path / "out"
    ran = started(out, 60, ("one", 20, row(out, "a")), ("two", 50, row(out, "b") + "import time; time.sleep(60)"))
    wait_for(out / "rows.jsonl", '"b"')
    running = subprocess.run(["pgrep", "-P", str(ran.pid)], capture_output=True, text=True).stdout.split()
    ran.send_signal(signal.SIGKILL)
    ran.wait(30)
    assert ended(out) == {"one": 0}
    complete(out, "one.log")
    assert "one " in (out / "table.txt").read_text()
    for pid in running:  # nobody is left to end it
        os.kill(int(pid), signal.SIGKILL)


def test_training_has_what_is_left_and_its_newest_files_come_back(tmp_path: Path) -> None:
    """It gets at least a quarter of the time, is stopped at its end, and what it wrote by then is packed."""
    out = tmp_path / "out"
    writes = (
        "import pathlib, signal, sys, time; f = pathlib.Path('FOLDER'); f.mkdir(exist_ok=True); "
        "(f / 'metrics.jsonl').write_text('{}'); "
        "signal.signal(signal.SIGTERM, lambda *a: ((f / 'state').write_bytes(b'saved'), sys.exit(130))); time.sleep(600)"
    ).replace("FOLDER", str(tmp_path / "work" / "small"))
    parts = ("one", 600, row(out, "a") + "import time; time.sleep(600)"), ("small", 0, writes)
    ran = started(out, 14, *parts, driver=QUICK)
    assert ran.wait(90) == 2
    assert ended(out)["one"] == 124 and set(ended(out)) == {"one", "small"}
    complete(out, "one.log", "small.log")
    sys.path.insert(0, str(GPU))
    try:
        from pack import unpack
    finally:
        sys.path.remove(str(GPU))
    assert unpack(out, tmp_path / "again", "small.tar") == 2
    assert (tmp_path / "again" / "state").read_bytes() == b"saved"
