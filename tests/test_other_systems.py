"""Windows and macOS: no call that only POSIX or Linux has without its twin, and texts are UTF-8 whatever the system's own encoding is."""

from __future__ import annotations

import ast
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from unmask.checkpoints.budget import free_bytes
from unmask.training.parallel import _signals_restored

from .pages import ROOT

FILES = sorted((ROOT / "unmask").rglob("*.py"))
MODULES = ("fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "syslog")  # that Windows lacks
# Functions of os that Windows or macOS lacks, and signals that Windows lacks.
CALLS = (
    *(
        "fork",
        "getuid",
        "geteuid",
        "getgid",
        "getpgid",
        "killpg",
        "kill",
        "setsid",
        "nice",
        "getloadavg",
        "uname",
        "mkfifo",
    ),
    *(
        "sched_getaffinity",
        "sched_setaffinity",
        "posix_fadvise",
        "pread",
        "pwrite",
        "statvfs",
        "sendfile",
        "sysconf",
        "wait",
    ),
)
SIGNALS = ("SIGKILL", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGCHLD", "SIGPIPE", "SIGALRM", "pause", "alarm")
TEXTS = ("read_text", "write_text")


def _unguarded(path: Path) -> Iterator[str]:
    text = path.read_text("utf-8")
    if not re.search(rf"\b({'|'.join((*MODULES, *CALLS, *SIGNALS, *TEXTS))})\b", text):
        return
    tree = ast.parse(text)
    tried = {id(node) for block in ast.walk(tree) if isinstance(block, ast.Try) for node in ast.walk(block)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import) and id(node) not in tried:
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module in MODULES:
            yield str(node.module)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            names = {"os": CALLS, "signal": SIGNALS}.get(node.value.id, ())
            if node.attr in names and f'hasattr({node.value.id}, "{node.attr}")' not in text:
                yield f"{node.value.id}.{node.attr}"
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in TEXTS:
            least = 0 if node.func.attr == "read_text" else 1  # arguments before the encoding
            if len(node.args) <= least and not any(word.arg == "encoding" for word in node.keywords):
                yield f"{node.func.attr} without an encoding, line {node.lineno}"


# Files of Linux, which are ASCII.
KERNEL = {"unmask/checkpoints/budget.py"}


def test_no_call_of_one_system_without_its_twin() -> None:
    found = {path.relative_to(ROOT).as_posix(): list(_unguarded(path)) for path in FILES}
    assert {path: names for path, names in found.items() if names and path not in KERNEL} == {}


def test_the_check_finds_what_it_looks_for(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.py"
    wrong.write_text("import fcntl, os, signal\nos.fork()\nsignal.SIGHUP\npath.read_text()\n", encoding="utf-8")
    assert len(list(_unguarded(wrong))) == 4
    wrong.write_text(
        'try:\n    import fcntl\nexcept ImportError:\n    fcntl = None\nhasattr(os, "fork") and os.fork()\n'
    )
    assert list(_unguarded(wrong)) == []


def test_signals_that_windows_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SIGHUP", "SIGQUIT"):
        monkeypatch.delattr(signal, name)
    before = signal.getsignal(signal.SIGTERM)
    with _signals_restored():
        assert signal.getsignal(signal.SIGTERM) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) is before


def test_free_memory_of_a_mac(monkeypatch: pytest.MonkeyPatch) -> None:
    assert free_bytes("mps") is None
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 12 << 30)
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: 5 << 30)
    assert free_bytes("mps") == 7 << 30
