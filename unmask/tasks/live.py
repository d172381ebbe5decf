"""A drawing that changes while it is drawn. Public idea: ``live = Live(on_step=..)``, ``model.generate(prompt, live=live)``, and
``live.change(prompt=..)`` from ``on_step`` or from any other thread.

What no longer fits is masked again, the rest stays, and the steps that are left go on (``sampling.live``):

- the codes that a painted region covers, if only in part;
- of a box that is moved, renamed, added or removed: the codes of the old box and of the new one;
- of a new prompt: the codes that it makes less than ``least`` times as probable as the old prompt did. A layout that the model had made
  for the old prompt is dropped, one that the caller gave stays.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from unmask.sampling.live import Patch
from unmask.sequence import Sequence
from unmask.tasks.generate import Generate, picture_places, picture_so_far
from unmask.tasks.parts import Parts
from unmask.tasks.running import StepEvent
from unmask.tokens.boxes import FractionBox
from unmask.tokens.layouts import Layout, layout_of
from unmask.tokens.pictures import read_image
from unmask.tokens.sources import Picture

MOST_CHANGES, MOST_WAITING, LONGEST_HOLD = 500, 8, 60
LEAST = 0.5
_BEGINS = 20.0  # seconds that a change waits for its drawing to begin


class RunOver(RuntimeError):
    """The run is finished, failed or cancelled, and takes no more changes."""


class TooManyChanges(RuntimeError):
    """A drawing had more changes than it takes, in all or between two steps."""


@dataclass(frozen=True, kw_only=True)
class _Drawer:
    """``read``: the text of a prompt as the model reads it; ValueError for one that it does not take."""

    parts: Parts
    read: Callable[[str], str]


@dataclass(frozen=True, kw_only=True)
class _Change:
    """From one task to the next; ``built``: the sequences of both, nothing drawn · ``painted [h, w]``: also masked again."""

    task: Generate
    built: tuple[Sequence, Sequence]
    layouts: tuple[Layout | None, Layout | None]
    compared: bool
    painted: Tensor | None


class Live:
    """Takes the changes of one drawing. Thread-safe.

    ``on_step``: called after every step; it may call ``change`` · ``hold``: seconds that the drawing stays open for changes after its last
    token, each time · ``least``: as above; 0 keeps every code that a new prompt finds, 1 those that it makes more probable.
    """

    def __init__(
        self, *, on_step: Callable[[StepEvent], None] | None = None, hold: float = 0.0, least: float = LEAST
    ) -> None:
        if not 0 <= hold <= LONGEST_HOLD or not 0 <= least <= 1:
            raise ValueError(f"hold must be 0 to {LONGEST_HOLD} s and least 0 to 1, got {hold} and {least}")
        self.on_step, self.hold, self.least = on_step, hold, least
        self.begun = self.applied = self.count = (
            0  # steps of the runs that are over · changes that were applied · all changes
        )
        self._changed = threading.Condition()
        self._waiting: list[_Change] = []
        self._over = False
        self._drawer: _Drawer | None = None
        self._task: Generate | None = None  # with all changes so far
        self._made = False  # whether the model made the layout itself

    # For the caller, in any thread.

    def change(
        self,
        *,
        prompt: str | None = None,
        boxes: Layout | Items[tuple[str, FractionBox]] | None = None,
        region: Picture | None = None,
    ) -> int:
        """Change what is drawn; the number of the change, from 1. Steps that follow it say so in ``StepEvent.patch``.

        ``boxes``: the whole layout from now on; [] for none · ``region``: white where the picture is to be drawn anew. ValueError for a
        change that says nothing, and for what the model does not take; RunOver, TooManyChanges.
        """
        if prompt is None and boxes is None and region is None:
            raise ValueError("the change is empty; give a prompt, boxes or a region")
        layout = boxes if isinstance(boxes, Layout) else layout_of(boxes) if boxes else None
        white = None if region is None else _white(region)  # before the lock, for which the drawing may wait
        with self._changed:
            if not self._changed.wait_for(lambda: self._task is not None or self._over, _BEGINS):
                raise RunOver(f"the drawing has not begun within {_BEGINS:.0f} s; change it once it draws")
            if self._over or self._task is None or self._drawer is None:
                raise RunOver("the drawing is finished and takes no more changes; start another one")
            if self.count >= MOST_CHANGES or len(self._waiting) >= MOST_WAITING:
                raise TooManyChanges(
                    f"a drawing takes {MOST_CHANGES} changes, and {MOST_WAITING} between two steps; send fewer"
                )
            self._waiting.append(self._changing(self._drawer, self._task, prompt, boxes is not None, layout, white))
            self._task = self._waiting[-1].task
            self.count += 1
            self._changed.notify_all()
            return self.count

    def finish(self) -> None:
        """Take no more changes: the drawing ends as soon as nothing is masked."""
        with self._changed:
            self._over = True
            self._changed.notify_all()

    @property
    def over(self) -> bool:
        """Whether it takes no more changes."""
        return self._over

    @property
    def task(self) -> Generate:
        """The task with all its changes. RuntimeError before the drawing has begun."""
        if self._task is None:
            raise RuntimeError("the drawing has not begun; call this after it")
        return self._task

    # For the drawing.

    def begin(self, parts: Parts, read: Callable[[str], str], task: Generate, *, made: bool) -> Live:
        """``read``: as of ``_Drawer`` · ``made``: the model made the layout of the task."""
        with self._changed:
            if self._task is not None:
                raise ValueError("a Live is for one drawing; make another one for the next")
            self._drawer, self._task, self._made = _Drawer(parts=parts, read=read), task, made
            self._changed.notify_all()
        return self

    def next(self, now: Sequence, taken: int, done: bool) -> Patch | None:
        """``sampling.live.Changes``."""
        with self._changed:
            if self._waiting:
                self.applied += 1
                return self._patch(self._waiting.pop(0), now)
            if done:
                self.begun = taken
                self._over |= not self.hold
            return None

    def wait(self) -> bool:
        """Whether a change came within ``hold`` seconds after the last token; after False there comes none."""
        with self._changed:
            if not self._over:
                self._changed.wait_for(lambda: self._waiting or self._over, self.hold)
            self._over |= not self._waiting
            return bool(self._waiting)

    def _changing(
        self,
        drawer: _Drawer,
        task: Generate,
        prompt: str | None,
        boxed: bool,
        layout: Layout | None,
        white: Tensor | None,
    ) -> _Change:
        text = task.prompt if prompt is None else drawer.read(prompt)
        plan = layout if boxed else None if self._made and text != task.prompt else task.plan
        self._made = self._made and not boxed and plan is not None
        new = replace(task, prompt=text, plan=plan)
        built = task.build(drawer.parts), new.build(drawer.parts)
        painted = None
        if white is not None:
            rows, columns = picture_so_far(built[1], "image")[0].shape
            painted = F.adaptive_max_pool2d(white.float()[None], (rows, columns))[0] > 0
        boxes = (task.plan, plan) if boxed else (None, None)
        return _Change(task=new, built=built, layouts=boxes, compared=text != task.prompt, painted=painted)

    def _patch(self, change: _Change, now: Sequence) -> Patch:
        """The row ``now`` as it goes on under a change."""
        before, sequence = change.built
        at, _ = picture_places(sequence, "image")
        codes, masked = picture_so_far(now, "image")
        unfit = covered(*change.layouts, *codes.shape)
        if change.painted is not None:
            unfit |= change.painted
        ids, open_ = sequence.ids.clone(), sequence.masked.clone()
        ids[at], open_[at] = codes.flatten(), (masked | unfit).flatten()
        row = replace(sequence, ids=ids, masked=open_)
        return Patch(sequence=row, before=before if change.compared else None, least=self.least)


def _white(region: Picture) -> Tensor:
    """Where a picture is white, [height, width] bool. ValueError if nowhere."""
    white = torch.from_numpy(np.asarray(read_image(region).convert("L"), dtype=np.uint8) > 127)
    if not bool(white.any()):
        raise ValueError("the region is empty; paint the part to draw anew in white")
    return white


def covered(old: Layout | None, new: Layout | None, rows: int, columns: int) -> Tensor:
    """The codes [rows, columns] of the boxes that only one of two layouts has. A box with another phrase is another box."""
    before, after = ([(o.phrase, o.box) for o in layout.objects] if layout else [] for layout in (old, new))
    found = torch.zeros(rows, columns, dtype=torch.bool)
    for placed in before + after:
        if before.count(placed) != after.count(placed):
            x1, y1, x2, y2 = placed[1]
            across, down = _cells(x1, x2, columns), _cells(y1, y2, rows)
            found[down, across] = True
    return found


def _cells(low: float, high: float, cells: int) -> slice:
    """The cells of a side that the stretch from ``low`` to ``high`` (fractions) overlaps; what it only touches is not among them."""
    first = min(int(low * cells + 1e-6), cells - 1)
    return slice(first, max(first + 1, -int(-(high * cells - 1e-6) // 1)))
