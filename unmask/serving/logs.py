"""The log of a server: JSON lines, one per event, and nothing else on stderr.

Public idea: ``with log_to_stderr(): ...``. Messages that repeat are counted instead of written, so that a flood of bad clients fills no
disk.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, TextIO

from unmask.json_types import Json

LOG = logging.getLogger("unmask.serving")
_OTHERS = ("uvicorn.error", "asyncio", "concurrent.futures", "py.warnings")
_STDERR = 2
_WINDOW, _MOST = 10.0, 5  # seconds; lines of one message in them


class JsonLine(logging.Formatter):
    """Formats a log record as one JSON line: time, level, event and the fields of ``extra={"fields": ...}``."""

    def format(self, record: logging.LogRecord) -> str:
        time_ = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"
        line: Json = {"time": time_, "level": record.levelname.lower(), "event": record.getMessage()}
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class Repeats(logging.Filter):
    """Lets ``most`` records of the same message through every ``seconds``; the next one after that says how many were left out.

    Only warnings and errors: the access log has one line per request.
    """

    def __init__(
        self, *, most: int = _MOST, seconds: float = _WINDOW, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__()
        self.most, self.seconds, self.clock = most, seconds, clock
        self._seen: dict[
            tuple[str, str], tuple[float, int]
        ] = {}  # (logger, message) -> start of its window, records in it
        self._lock = threading.Lock()

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING:
            return True
        key, now = (record.name, str(record.msg)[:200]), self.clock()
        with self._lock:
            began, count = self._seen.get(key, (now, 0))
            left_out = 0
            if now - began >= self.seconds:
                left_out, began, count = max(0, count - self.most), now, 0
            if len(self._seen) > 1000:
                self._seen.clear()
            self._seen[key] = (began, count + 1)
        if left_out:
            record.fields = getattr(record, "fields", {}) | {"repeated": left_out}
        return count < self.most


def log_to(stream: TextIO | None = None, *, level: int = logging.INFO) -> Callable[[], None]:
    """Write the logs of this package, uvicorn, asyncio and Python's warnings, and exceptions that no thread has caught, to a stream
    (stderr) as JSON lines. Returns a function that undoes this.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonLine())
    handler.addFilter(Repeats())
    loggers = [LOG, *(logging.getLogger(name) for name in _OTHERS)]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(level if logger is LOG or logger.name.startswith("uvicorn") else logging.WARNING)
        logger.propagate = False
    logging.captureWarnings(True)
    hooks = threading.excepthook, sys.unraisablehook
    threading.excepthook = lambda args: _uncaught(args.exc_type, args.exc_value, args.exc_traceback)
    sys.unraisablehook = lambda args: _uncaught(args.exc_type, args.exc_value, args.exc_traceback)

    def undo() -> None:
        threading.excepthook, sys.unraisablehook = hooks
        logging.captureWarnings(False)
        for logger in loggers:
            logger.removeHandler(handler)
            logger.propagate = True

    return undo


def _uncaught(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
    info: Any = (kind, error or kind(), trace)
    LOG.error("an exception was not caught", exc_info=info)


@contextmanager
def log_to_stderr() -> Iterator[None]:
    """``log_to`` stderr. What anything else writes there, C libraries included (libtiff does), becomes lines of the log; only a fatal error
    of the process still goes there as it is.
    """
    sys.stderr.flush()
    kept, (source, sink) = os.dup(_STDERR), os.pipe()
    reader = threading.Thread(target=_log_lines, args=[source], name="stderr", daemon=True)
    with open(kept, "w", buffering=1, encoding="utf-8") as stream:
        if not (had := faulthandler.is_enabled()):
            faulthandler.enable(stream)
        undo = log_to(stream)
        os.dup2(sink, _STDERR)
        os.close(sink)
        reader.start()
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(kept, _STDERR)  # which ends the reader, unless another process has the pipe too
            reader.join(1)
            undo()
            if not had:
                faulthandler.disable()


def _log_lines(source: int) -> None:
    with open(source, encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if text := line.strip():
                LOG.warning("a library wrote to stderr", extra={"fields": {"text": text[:1000]}})
