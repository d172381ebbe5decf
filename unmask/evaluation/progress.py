"""Progress of a measurement on a terminal. Public idea: ``with Lines() as lines: lines("grounding", 32, 600)``."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class Lines:
    """One progress bar per part on stderr; if that is not a terminal, one line per finished part."""

    def __init__(self) -> None:
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Lines:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (TextColumn("{task.description:14}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bars = Progress(*columns, console=Console(stderr=True))
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars:
            self._bars.stop()

    def __call__(self, part: str, done: int, of: int) -> None:
        if self._bars is None:
            if done == of:
                print(f"{part}: {done} of {of}", file=sys.stderr, flush=True)
            return
        if part not in self._tasks:
            self._tasks[part] = self._bars.add_task(part, total=of)
        self._bars.update(self._tasks[part], completed=done)
