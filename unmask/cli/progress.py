"""Progress of a command on stderr. Public idea: ``Bar("opening mini", nbytes)``, called with what is done and what there is to do.

On a terminal a bar that disappears when it is done; elsewhere a plain line every half minute, from the tenth second on.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.progress import Progress

    from unmask.pipeline.model import Model
    from unmask.pipeline.text_model import TextModel
    from unmask.sampling.sampler import Sampler
    from unmask.sequence import Sequence as Tokens
    from unmask.tasks.results import Attempt
    from unmask.tasks.running import Decoded, OnStep, StepEvent
    from unmask.tokens.layouts import Layout


BAR_AFTER, LINE_AFTER, LINE_EVERY = 0.5, 10.0, 30.0  # seconds


def steps(done: int, of: int) -> str:
    return f"step {done} of {of}"


def nbytes(done: int, of: int) -> str:
    unit, name = (2**30, "GiB") if of >= 2**30 else (2**20, "MiB")
    return f"{done / unit:.1f} of {of / unit:.1f} {name}"


@dataclass(kw_only=True)
class Bar:
    """Progress of one thing. ``what``: its name · ``words``: ``(done, of) -> text`` · ``lines``: whether to write plain lines where
    stderr is not a terminal.
    """

    what: str
    words: Callable[[int, int], str]
    lines: bool = True
    _began: float = field(default_factory=lambda: time.monotonic())
    _wrote: float | None = None
    _shown: Progress | None = None

    def __call__(self, done: int, of: int) -> None:
        now = time.monotonic()
        if done >= of:
            self.close()
        elif sys.stderr.isatty():
            self._draw(done, of, now)
        elif self.lines and now - self._began > LINE_AFTER and (self._wrote is None or now - self._wrote > LINE_EVERY):
            self._wrote = now
            click.echo(f"{self.what}: {self.words(done, of)}", err=True)

    def _draw(self, done: int, of: int, now: float) -> None:
        if self._shown is None:
            if now - self._began < BAR_AFTER:
                return
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[words]}"))
            self._shown = Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True)
            self._shown.add_task(self.what, total=of, words="")
            self._shown.start()
        self._shown.update(self._shown.task_ids[0], completed=done, total=of, words=self.words(done, of))

    def close(self) -> None:
        """Remove the bar. A later call starts a new one."""
        if self._shown is not None:
            self._shown.stop()
        self._shown, self._began, self._wrote = None, time.monotonic(), None


def silent(done: int, of: int) -> None:
    """No progress."""


@contextlib.contextmanager
def working(what: str) -> Iterator[None]:
    """A moving sign on a terminal while something runs that cannot say how far it is; elsewhere nothing."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(f"{what} …"):
        yield


def opening(model: str, *, quiet: bool = False, lines: bool = True) -> Callable[[int, int], None]:
    """What ``unmask.load`` calls while it reads the weights of a model."""
    return silent if quiet else Bar(what=f"opening {model}", words=nbytes, lines=lines)


def watched(model: Model | TextModel, *, lines: bool) -> Model | TextModel:
    """The same model, with a bar for the steps of every call. A model that a recipe opened stays as it is."""
    from unmask.pipeline.model import Model
    from unmask.pipeline.text_model import TextModel

    if isinstance(model, Model):
        return Model(model.parts, model.presets, executor=_Watched(model=model, lines=lines))
    if type(model) is not TextModel:
        return model
    return TextModel(model.parts, executor=_Watched(model=model, lines=lines), change=model.change, fast=model.fast)


@dataclass(frozen=True, kw_only=True)
class _Watched:
    """An executor that lets the model decode and shows its steps."""

    model: Model | TextModel
    lines: bool

    def run(
        self, sequences: Sequence[Tokens], seeds: Sequence[int], sampler: Sampler, on_step: OnStep | None = None
    ) -> Decoded:
        bar = Bar(what="unmasking", words=steps, lines=self.lines)
        rows: dict[int, tuple[int, int]] = {}

        def step(event: StepEvent) -> None:
            rows[event.row] = (event.number, event.of)
            if event.row == len(sequences) - 1:
                bar(max(n for n, _ in rows.values()), max(of for _, of in rows.values()))
            if on_step:
                on_step(event)

        try:
            return self.model.run(sequences, seeds, sampler, step)
        finally:
            bar.close()

    def emit(self, row: int, event: Layout | Attempt) -> None:
        """Nobody follows a call of the command line."""
