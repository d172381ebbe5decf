"""What a run reports: metrics.jsonl, a progress line, and the share of the device's peak speed that it reaches."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch

from unmask.training.losses import Update
from unmask.writing import append_line, write_text

if TYPE_CHECKING:
    from rich.progress import Progress


QUIET = 10.0  # seconds without a line, after which the next step prints one


def matmul_peak(
    dtype: torch.dtype, device: torch.device | str = "cpu", clock: Callable[[], float] = time.perf_counter
) -> float:
    """Measured floating-point operations a second of ``clock``, of a large square matrix product: the best of five."""
    device = torch.device(device)
    tiles = 1 if device.type == "cpu" else 8  # a small product does not fill an accelerator
    n = 1024 * tiles
    rng = torch.Generator().manual_seed(0)  # the global random stream belongs to the run
    a, b = (torch.randn(1024, 1024, generator=rng).to(device, dtype).repeat(tiles, tiles) for _ in range(2))
    wait = {"cuda": torch.cuda.synchronize, "mps": torch.mps.synchronize}.get(device.type, lambda: None)
    best = float("inf")
    for _ in range(5):
        wait()
        start = clock()
        a @ b
        wait()  # an accelerator computes after the call has returned
        best = min(best, clock() - start)
    return 2 * n**3 / best


class Log(Protocol):
    """Takes every row of metrics.jsonl."""

    def write(self, row: Mapping[str, float], /) -> None: ...
    def close(self) -> None: ...


class Meters:
    """Means since the last report, by name; ``report`` writes one JSON line and prints it, or moves the bar on a terminal.

    Rows of ``metrics.jsonl``: ``step`` (source batches so far), ``updates``, the mean of each loss term, ``grad`` (norm before clipping),
    ``peak`` (share of the device's peak speed in the updates since the last row, without the time that the source took; not in short runs),
    ``tokens_per_s``, ``seconds`` since the last row, and ``skipped`` updates where there are any; evaluations have rows of their own.
    """

    def __init__(self, folder: Path, steps: int, start: int, logs: Sequence[Log] = ()) -> None:
        self.path, self.logs = folder / "metrics.jsonl", logs
        _forget(self.path, start)
        self.printed = -float("inf")  # when the last line was printed
        self.sums: dict[str, list[float]] = {}
        self.since = time.perf_counter()
        self.first: tuple[int, float] | None = (
            None  # the first printed step, which takes longer than others, and when it ended
        )
        self.tokens = self.skipped = 0
        self.steps = steps
        self.bar: Progress | None = None
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            self.bar = Progress(
                TextColumn("step"), MofNCompleteColumn(), BarColumn(), TimeRemainingColumn(), TextColumn("{task.fields[line]}"),
                console=Console(stderr=True),
            )  # fmt: skip
            self.bar.start()
            self.task = self.bar.add_task("train", total=steps, completed=start, line="")

    def add(self, update: Update) -> None:
        """Count the losses of an update into the next report. A skipped update is counted as ``skipped`` and printed with its reason."""
        if update.skipped is not None:
            self.skipped += 1
            self._say(f"warning: {update.skipped}")
            return
        self.tokens += update.tokens
        for terms in (*update.terms, {"grad": update.norm}):
            for name, value in terms.items():
                entry = self.sums.setdefault(name, [0.0, 0.0])
                entry[0] += float(value)
                entry[1] += 1

    def expect(self, steps: int) -> None:
        """Another number of steps than was thought: a run by the clock."""
        self.steps = steps
        if self.bar:
            self.bar.update(self.task, total=steps)

    def record(self, step: int, values: dict[str, float]) -> None:
        """Write one row of an evaluation."""
        self._write({"step": step, **values})
        self._say(f"step {step}/{self.steps} " + " ".join(f"{k} {v:.4g}" for k, v in values.items()))

    def _say(self, text: str) -> None:
        """Print a line, above the bar where there is one."""
        if self.bar:
            self.bar.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=sys.stderr, flush=True)

    def progress(self, step: int) -> None:
        """Show that a step is done, without a row: move the bar, or print a line after the first step and then every 10 seconds."""
        if self.bar:
            self.bar.update(self.task, completed=step)
        elif time.perf_counter() - self.printed > QUIET:
            self._print(step, {name: total / count for name, (total, count) in self.sums.items()})

    def _print(self, step: int, values: Mapping[str, float]) -> None:
        line = " ".join(f"{k} {v:.3g}" for k, v in values.items() if k not in ("step", "updates", "seconds"))
        print(f"step {step}/{self.steps} {line}{self._left(step)}", file=sys.stderr, flush=True)
        self.printed = time.perf_counter()

    def _left(self, step: int) -> str:
        """The time to the last step at the mean speed since the first one, as `` left h:mm:ss``; nothing before the second."""
        if self.first is None:
            self.first = step, time.perf_counter()
        if step <= self.first[0]:
            return ""
        seconds = (time.perf_counter() - self.first[1]) / (step - self.first[0]) * (self.steps - step)
        return f" left {timedelta(seconds=round(seconds))}"

    def _write(self, row: Mapping[str, float]) -> None:
        append_line(self.path, json.dumps(row))
        for log in self.logs:
            log.write(row)

    def report(self, step: int, **more: float) -> dict[str, float]:
        """Write the means since the last call; returns the row."""
        now = time.perf_counter()
        row = {"step": step, **{n: round(s / c, 5) for n, (s, c) in self.sums.items()}, **more}
        row |= {"skipped": self.skipped} if self.skipped else {}
        row["tokens_per_s"] = round(self.tokens / (now - self.since), 1)
        row["seconds"] = round(now - self.since, 2)
        self._write(row)
        if self.bar:
            line = " ".join(f"{k} {v:.3g}" for k, v in row.items() if k not in ("step", "updates", "seconds"))
            self.bar.update(self.task, completed=step, line=line)
        else:
            self._print(step, row)
        self.sums, self.tokens, self.skipped, self.since = {}, 0, 0, now
        return row

    def close(self) -> None:
        if self.bar:
            self.bar.stop()
        for log in self.logs:
            log.close()


def _forget(path: Path, start: int) -> None:
    """Drop rows of steps after the last checkpoint, left by a killed run: they will be written again. ValueError for a damaged row."""
    rows = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True) if path.exists() else []
    kept = [row for number, row in enumerate(rows, 1) if row.endswith("\n") and _step(row, path, number) <= start]
    if len(kept) < len(rows):
        write_text(path, "".join(kept))


def _step(row: str, path: Path, number: int) -> float:
    try:
        step = json.loads(row)["step"]
        return step + 0  # a number
    except (ValueError, TypeError, KeyError):
        raise ValueError(
            f"line {number} of {path} is no row with a step: {row.strip()[:60]!r}; delete the line to continue"
        ) from None


class Silent:
    """Meters of a process of rank above 0: they report nothing."""

    def add(self, update: Update) -> None: ...

    def expect(self, steps: int) -> None: ...

    def record(self, step: int, values: dict[str, float]) -> None: ...

    def report(self, step: int, **more: float) -> dict[str, float]:
        return {}

    def progress(self, step: int) -> None: ...

    def close(self) -> None: ...
