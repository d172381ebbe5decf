"""A Python that has imported torch already: programs that tests start need 2 s less of a CPU each.

Public idea: ``warm()``, the path of an executable to use in place of ``sys.executable`` where the interpreter's start is not what is
tested. It takes ``-c CODE``, ``-m MODULE`` or a script. Each program is a process of its own: a fork of one that has imported modules and
computed nothing, with the arguments, folder, environment and standard streams of its caller. Signals are passed on to it, it is killed
when its caller is, and the caller ends with its exit code or signal. Three things differ from ``sys.executable``: the id of the
caller's child is not that of the program, which lives a moment longer than a child that is killed (SIGKILL), and limits of the caller's
process (``resource``) do not apply. Where the system has no process file
descriptors, ``warm()`` is ``sys.executable``.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import types
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).parent.parent
# Every optimiser imports the first one.
IMPORTED = (
    *("torch._dynamo", "torch.distributed.run", "torch.distributed.fsdp"),
    *("unmask.pipeline.opening", "unmask.training.train"),
)
Living = dict[int, tuple[int, socket.socket]]  # process file descriptor -> process, its caller
_CLIENT = """
import json, os, signal, socket, sys
place = socket.socket(socket.AF_UNIX)
place.connect({path!r})
def forward(number, frame):
    place.send(bytes([number]))
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGQUIT):
    signal.signal(number, forward)
call = dict(executable=os.path.abspath(__file__), argv=sys.argv[1:], folder=os.getcwd(), environment=dict(os.environ))
text = json.dumps(call).encode()
socket.send_fds(place, [len(text).to_bytes(4, "big")], [0, 1, 2])
place.sendall(text)
status = place.recv(4)
code = os.waitstatus_to_exitcode(int.from_bytes(status, "big")) if status else 1
if code < 0:
    if -code != signal.SIGKILL:
        signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
os._exit(code)
"""


@functools.cache
def warm() -> str:
    """The path of the warm Python; it ends with this process."""
    if not hasattr(os, "pidfd_open"):
        return sys.executable
    folder = tempfile.TemporaryDirectory(prefix="warm")
    client, path = Path(folder.name) / "python", Path(folder.name) / "socket"
    client.write_text(f"#!{sys.executable} -IS{_CLIENT.format(path=str(path))}")
    client.chmod(0o755)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, __file__, str(path)]
    server = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
    assert server.stdin is not None and server.stdout is not None
    server.stdout.readline()  # it listens
    atexit.register(folder.cleanup)
    atexit.register(server.wait)
    atexit.register(server.stdin.close)  # the first of the three
    return str(client)


def _serve(path: str) -> None:
    """Fork a process for every connection until stdin is closed."""
    waiting, listener = selectors.DefaultSelector(), socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(64)
    waiting.register(listener, selectors.EVENT_READ)
    waiting.register(0, selectors.EVENT_READ)
    print("listening", flush=True)
    living: Living = {}
    while True:
        for key, _ in waiting.select():
            if key.fd == 0:
                os._exit(0)
            if key.fileobj is listener:
                _start(listener.accept()[0], waiting, living)
            elif key.fd in living:
                _report(key.fd, waiting, living)
            elif key.fd in {caller.fileno() for _, caller in living.values()}:
                _signal(key.fd, waiting, living)


def _start(caller: socket.socket, waiting: selectors.BaseSelector, living: Living) -> None:
    head, files, _, _ = socket.recv_fds(caller, 4, 3)
    with caller.makefile("rb", buffering=0) as sent:
        size, text = int.from_bytes(head, "big"), b""
        while len(text) < size:
            text += sent.read(size - len(text))
    child = os.fork()
    if not child:
        waiting.close()
        for _, other in living.values():
            other.close()
        caller.close()
        _end(_result(json.loads(text), files))
    for file in files:
        os.close(file)
    watched = os.pidfd_open(child)
    living[watched] = child, caller
    waiting.register(watched, selectors.EVENT_READ)
    waiting.register(caller, selectors.EVENT_READ)


def _report(watched: int, waiting: selectors.BaseSelector, living: Living) -> None:
    """Tell the caller how its process ended."""
    child, caller = living.pop(watched)
    _, status = os.waitpid(child, 0)
    waiting.unregister(watched)
    os.close(watched)
    with caller:
        if caller in {key.fileobj for key in waiting.get_map().values()}:
            waiting.unregister(caller)
        with contextlib.suppress(OSError):  # the caller was killed
            caller.sendall(status.to_bytes(4, "big"))


def _signal(fd: int, waiting: selectors.BaseSelector, living: Living) -> None:
    """Pass on the signals of a caller; kill the process of one that has gone."""
    child, caller = next(pair for pair in living.values() if pair[1].fileno() == fd)
    try:
        numbers = caller.recv(64)
    except OSError:
        numbers = b""
    if not numbers:
        waiting.unregister(caller)
    for number in numbers or [signal.SIGKILL]:
        os.kill(child, number)


def _result(call: dict[str, Any], files: list[int]) -> int:
    """Run a program in this process; its exit code."""
    try:
        _become(call, files)
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        return -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    return 0


def _end(code: int) -> NoReturn:
    """End as an interpreter does, without the second that it takes to free all modules."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code & 0xFF)


def _become(call: dict[str, Any], files: list[int]) -> None:
    """Run the program of a call in this process."""
    os.setsid()
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.chdir(call["folder"])
    os.environ.clear()
    os.environ.update(call["environment"])
    sys.executable = call["executable"]
    sys.stdin = os.fdopen(0, closefd=False)
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, errors="backslashreplace", closefd=False)
    given = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:] = [*filter(None, given), *(place for place in sys.path[1:] if place not in given)]
    argv = list(call["argv"])
    while argv[0] in ("-u", "-B"):
        del argv[0]
    if argv[0] == "-m":
        sys.argv, sys.path[:0] = argv[1:], [os.getcwd()]
        runpy.run_module(argv[1], run_name="__main__", alter_sys=True)
    elif argv[0] == "-c":
        sys.argv, sys.path[:0] = ["-c", *argv[2:]], [""]
        sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(argv[1], "<string>", "exec"), sys.modules["__main__"].__dict__)
    else:
        sys.argv, sys.path[:0] = argv, [str(Path(argv[0]).resolve().parent)]
        sys.modules["__main__"] = types.ModuleType("__main__")
        sys.modules["__main__"].__file__ = argv[0]
        exec(compile(Path(argv[0]).read_bytes(), argv[0], "exec"), sys.modules["__main__"].__dict__)


if __name__ == "__main__":
    for name in IMPORTED:
        __import__(name)
    import numpy as np

    os.register_at_fork(after_in_child=np.random.seed)
    gc.freeze()  # else every process copies the pages of all objects when it first collects garbage
    _serve(sys.argv[1])
