"""Which running requests take their next step together; which requests run is decided in ``serving/places.py``.

Public idea: ``Scheduler(rows=16, stretch=1.34, idle=256)`` knows requests by number: ``enter``, ``plan`` the next step, ``choose`` who
steps now, ``charge`` them for the forward, ``leave``. No tensors and no threads: one thread calls it.

Fairness is by virtual time, as in weighted fair queueing. A request pays for every step by the transformer positions of that step, halved
for each level of priority, and the request with the least virtual time steps first. A clock advances by the price of that first step,
divided by the weights of all running requests, and a new request starts at the clock. So a short request passes long ones, and a long
request never starves: newcomers start later and later, until it is the first. Requests that fit beside the first one do not move the
clock, because their steps delay no other request.

Short requests wait for few forwards: every second forward may go to the request that needs least to finish, if that is far less than the
first one needs. And requests that need longer than the first one of a forward add only some multiple of what the first one needs, since a
forward takes time for each of its positions.
"""

from __future__ import annotations

from collections.abc import Hashable
from collections.abc import Sequence as Items
from dataclasses import dataclass

SHORT = 4  # a request goes first out of turn if it needs at most a quarter of what the first one needs
BESIDE = 4  # positions of longer requests in a forward, as a multiple of what its first request needs
# The same if the first is short beside them. On a CPU, a text of one step beside 40 drawings takes 1.6 times its time alone, and 3.8
# times with 4; the drawings lose up to 3 % of their rate.
BESIDE_SHORT = 2


@dataclass(frozen=True, kw_only=True)
class NextStep:
    """What the next step of a request needs.

    ``group``: only requests of equal groups share a forward · ``rows``: of the forward, one for each guidance view · ``padded``: whether
    all rows of its forward are padded to the longest; they must then have the same ``shape``, and ``stretch`` limits their ``length`` ·
    ``positions``: that the transformer computes in all, the price of the step · ``text``: whether it scores text · ``idle``: positions that
    are computed for nobody beside a request that scores text · ``left``: positions of this and all later steps.
    """

    group: Hashable
    rows: int
    positions: int
    shape: Hashable = None
    length: int = 1
    padded: bool = False
    text: bool = True
    idle: int = 0
    left: int = 0


@dataclass(kw_only=True)
class _Account:
    """A running request. ``paid``: its virtual time, in positions · ``weight``: its share of the device."""

    paid: float
    weight: float
    step: NextStep | None = None


class Scheduler:
    """``rows``: of one forward at most, unless one request alone needs more · ``stretch``: how much longer the longest of padded rows may
    be than the shortest · ``idle``: most positions of a forward that are computed for nobody.
    """

    def __init__(self, *, rows: int, stretch: float, idle: int) -> None:
        self.rows, self.stretch, self.idle = rows, stretch, idle
        self._accounts: dict[int, _Account] = {}
        self._clock = 0.0  # the virtual time at which a new request starts
        self._passed = False  # whether a short request went first in the last forward

    def enter(self, number: int, priority: int = 0) -> None:
        """Request ``number`` begins to run."""
        least = min((account.paid for account in self._accounts.values()), default=0.0)
        self._accounts[number] = _Account(paid=max(self._clock, least), weight=2.0**priority)

    def plan(self, number: int, step: NextStep) -> None:
        """Say what the next step of a running request needs. Without it, the request is not chosen."""
        self._accounts[number].step = step

    def charge(self, chosen: Items[int]) -> None:
        """The requests of ``choose``, in its order, have had their forward. Their planned steps are paid for and removed."""
        for place, number in enumerate(chosen):
            account = self._accounts[number]
            if account.step is None:
                raise ValueError(f"request {number} has no planned step to pay for; plan one first")
            if place == 0:
                self._clock += account.step.positions / sum(running.weight for running in self._accounts.values())
            account.paid += account.step.positions / account.weight
            account.step = None

    def leave(self, number: int) -> None:
        """The request is done, failed or cancelled."""
        self._accounts.pop(number, None)

    def choose(self) -> list[int]:
        """The requests of the next forward: the one with the least virtual time or a short one, then all others in the order of their
        virtual time that fit beside it.

        Equal virtual times: the request that was submitted first. Empty if no step is planned.
        """
        ready = sorted(
            ((a.paid, number, a.step) for number, a in self._accounts.items() if a.step is not None),
            key=lambda e: e[:2],
        )
        if not ready:
            return []
        ready.insert(0, ready.pop(self._first([step for _, _, step in ready])))
        chosen: list[int] = []
        steps: list[NextStep] = []
        for _, number, step in ready:
            if not steps or self._share([*steps, step]):
                chosen.append(number)
                steps.append(step)
        return chosen

    def _first(self, ready: Items[NextStep]) -> int:
        """Which of these, in the order of their virtual time, goes first: in every second forward perhaps a short one."""
        shortest = min(range(len(ready)), key=lambda i: ready[i].left)
        self._passed = not self._passed and SHORT * ready[shortest].left <= ready[0].left and shortest > 0
        return shortest if self._passed else 0

    def _share(self, steps: Items[NextStep]) -> bool:
        """Whether these steps fit into one forward."""
        if len({step.group for step in steps}) > 1 or sum(step.rows for step in steps) > self.rows:
            return False
        if any(step.text for step in steps) and sum(step.idle for step in steps) > self.idle:
            return False
        first, longer = steps[0], [step for step in steps if step.left > steps[0].left]
        short = any(step.left >= SHORT * first.left for step in longer)
        if sum(step.positions for step in longer) > (BESIDE_SHORT if short else BESIDE) * first.left:
            return False
        if not any(step.padded for step in steps):
            return True
        lengths = [step.length for step in steps]
        return len({step.shape for step in steps}) == 1 and max(lengths) <= self.stretch * min(lengths)
