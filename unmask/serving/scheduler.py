"""Which queued request enters next, and which running requests take their next step together.

Public idea: ``Scheduler(rows=16, stretch=1.34)`` knows requests by number: ``enter``, ``plan`` the next step, ``choose`` who steps now,
``charge`` them for the forward, ``leave``. ``place_in_queue`` is the admission order. No tensors and no threads: one thread calls it.

Fairness is by virtual time, as in weighted fair queueing. A request pays for every step by the transformer positions of that step, halved
for each level of priority, and the request with the least virtual time steps first. A clock advances by the price of that first step,
divided by the weights of all running requests, and a new request starts at the clock. So a short request passes long ones, and a long
request never starves: newcomers start later and later, until it is the first. Requests that fit beside the first one do not move the
clock, because their steps delay no other request.
"""

from __future__ import annotations

from collections.abc import Hashable
from collections.abc import Sequence as Items
from dataclasses import dataclass

PLACES = 16  # earlier requests that one level of priority passes in the queue; a finite number, so that no request waits for ever


@dataclass(frozen=True, kw_only=True)
class NextStep:
    """What the next step of a request needs.

    ``group``: only requests of equal groups share a forward · ``rows``: of the forward, one for each guidance view · ``length``:
    positions of a row, on which ``stretch`` is a limit · ``positions``: that the transformer computes in all, the price of the step.
    """

    group: Hashable
    rows: int
    length: int
    positions: int


@dataclass(kw_only=True)
class _Account:
    """A running request. ``paid``: its virtual time, in positions · ``weight``: its share of the device."""

    paid: float
    weight: float
    step: NextStep | None = None


class Scheduler:
    """``rows``: of one forward at most, unless one request alone needs more · ``stretch``: how much longer the longest row of a forward may
    be than the shortest.
    """

    def __init__(self, *, rows: int, stretch: float) -> None:
        self.rows, self.stretch = rows, stretch
        self._accounts: dict[int, _Account] = {}
        self._clock = 0.0  # the virtual time at which a new request starts

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
        """The requests of the next forward: the one with the least virtual time, then all others in that order that fit beside it.

        Equal virtual times: the request that was submitted first. Empty if no step is planned.
        """
        ready = [(a.paid, number, a.step) for number, a in self._accounts.items() if a.step is not None]
        if not ready:
            return []
        (_, number, first), *others = sorted(ready, key=lambda entry: entry[:2])
        chosen, free = [number], self.rows - first.rows
        shortest = longest = first.length
        for _, number, step in others:
            low, high = min(shortest, step.length), max(longest, step.length)
            if step.group == first.group and step.rows <= free and high <= self.stretch * low:
                chosen.append(number)
                free -= step.rows
                shortest, longest = low, high
        return chosen


def place_in_queue(number: int, priority: int) -> tuple[int, int]:
    """The sort key of a queued request; the least enters first. Each level of priority passes ``PLACES`` earlier requests."""
    return number - PLACES * priority, -priority
