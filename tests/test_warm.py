"""A warm Python runs a program as the usual one does: arguments, folder, environment, streams, exit codes and signals."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from .warm import warm

SHOWN = "import os, sys; print(sys.argv[1:], os.getcwd(), os.environ['GIVEN'], input()); print('told', file=sys.stderr)"
PYTHONS = (sys.executable, warm)


def run(python: object, *words: str, **more: object) -> subprocess.CompletedProcess[str]:
    program = python() if callable(python) else str(python)
    return subprocess.run([program, *words], capture_output=True, text=True, timeout=120, **more)  # type: ignore[call-overload]


@pytest.mark.parametrize("kind", ["-c", "-m", "script"])
def test_a_program_sees_what_it_sees_in_the_usual_python(kind: str, tmp_path: Path) -> None:
    (tmp_path / "shown.py").write_text(SHOWN)
    words = {"-c": ["-c", SHOWN], "-m": ["-m", "shown"], "script": [str(tmp_path / "shown.py")]}[kind]
    usual, ours = (
        run(python, "-u", *words, "a b", "", cwd=tmp_path, env={"GIVEN": "ü"}, input="said\n") for python in PYTHONS
    )
    assert usual.returncode == 0 and usual.stderr == "told\n", usual.stderr
    assert (ours.returncode, ours.stdout, ours.stderr) == (0, usual.stdout, usual.stderr)


@pytest.mark.parametrize(
    "program",
    [
        "import sys; sys.exit(3)",
        "import sys; sys.exit('no')",
        "raise KeyboardInterrupt",
        "1 / 0",
        "import os; os.kill(os.getpid(), 9)",
        "import os; os.kill(os.getpid(), 15)",
        "import atexit; atexit.register(print, 'late'); print('early', end=' ')",
        "import threading, time; threading.Thread(target=lambda: (time.sleep(0.2), print('late'))).start()",
    ],
)
def test_a_program_ends_as_in_the_usual_python(program: str) -> None:
    usual, ours = (run(python, "-c", program) for python in PYTHONS)
    assert (ours.returncode, ours.stdout) == (usual.returncode, usual.stdout)
    assert ours.stderr.splitlines()[-1:] == usual.stderr.splitlines()[-1:]


def test_signals_reach_it_and_it_is_killed_with_its_caller(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"  # ignored where tests run in the background
        "try: print(os.getpid(), flush=True); signal.pause()\n"
        "except KeyboardInterrupt: print('stopped'); sys.exit(7)"
    )
    for number, code in ((signal.SIGINT, 7), (signal.SIGTERM, -signal.SIGTERM), (signal.SIGKILL, -signal.SIGKILL)):
        with subprocess.Popen([warm(), "-c", program], stdout=subprocess.PIPE, text=True) as caller:
            assert caller.stdout is not None
            stat = Path(f"/proc/{caller.stdout.readline().strip()}/stat")
            caller.send_signal(number)
            assert caller.wait(60) == code
            assert caller.stdout.read() == ("stopped\n" if number == signal.SIGINT else "")
        until = time.monotonic() + 60
        while stat.exists() and time.monotonic() < until:
            time.sleep(0.01)
        assert not stat.exists()


def test_programs_share_no_random_numbers() -> None:
    program = "import random, numpy; print(random.random(), numpy.random.rand())"
    assert len({run(warm, "-c", program).stdout for _ in range(2)}) == 2


def test_a_program_need_not_import_torch_again() -> None:
    if warm() != sys.executable:
        assert run(warm, "-c", "import sys; print('torch' in sys.modules)").stdout == "True\n"
