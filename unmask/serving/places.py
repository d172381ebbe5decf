"""Which requests run: the places of an engine, given by cost.

Public idea: ``Places(most=32, parked=8)`` knows requests by number: ``join`` with a cost, ``admit`` those whose turn it is, ``serve`` what
a forward computed, ``leave``. No tensors and no threads.

The cost of a request is the number of positions that the transformer computes in all of its forwards (``serving/cost.py``). Requests enter
in the order in which they would finish if they shared the device equally with those that run: weighted fair queueing. The virtual time is
how much of each running request such a device would have computed. So a short request passes long ones, and a long request never starves:
once the virtual time has grown by its cost, all later requests come after it.

Where no place is free, a short request may take that of a long one. The long one is parked: it keeps its run and takes no steps until a
place is free again. ``parked`` limits how many are parked, and with them the memory of runs.
"""

from __future__ import annotations

from dataclasses import dataclass

LONGER = 4  # a run is parked only for a request that costs at most a quarter of what the run still needs


@dataclass(frozen=True, kw_only=True)
class Turn:
    """Request ``number`` begins or continues to run; ``park``: it takes the place of this one."""

    number: int
    park: int | None = None


@dataclass(kw_only=True)
class _Claim:
    """``finish``: the virtual time at which the fair device would finish it · ``left``: the cost that is not yet served."""

    finish: float
    weight: float
    left: float

    @property
    def weighted(self) -> float:
        return self.left / self.weight


class Places:
    """``most``: requests that run at the same time · ``parked``: runs that may be parked at the same time."""

    def __init__(self, *, most: int, parked: int) -> None:
        self.most, self.most_parked = most, parked
        self._queued: dict[int, _Claim] = {}
        self._running: dict[int, _Claim] = {}
        self._parked: dict[int, _Claim] = {}
        self._now = 0.0  # the virtual time

    @property
    def queued(self) -> int:
        return len(self._queued)

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def parked(self) -> int:
        return len(self._parked)

    def join(self, number: int, cost: float, priority: int = 0) -> None:
        """Queue a request. Each level of ``priority`` halves what its cost counts."""
        weight = 2.0**priority
        self._queued[number] = _Claim(finish=self._now + cost / weight, weight=weight, left=cost)

    def position(self, number: int) -> int:
        """The place of a request in the queue, from 1; 0 if it is not queued."""
        if number not in self._queued:
            return 0
        own = _order(number, self._queued[number])
        return 1 + sum(_order(other, claim) < own for other, claim in self._queued.items())

    def admit(self) -> Turn | None:
        """Whose turn it is; None while nobody waits who could run. The caller calls it until it returns None."""
        if len(self._running) < self.most:
            waiting = self._queued | self._parked
            if not waiting:
                return None
            number = min(waiting, key=lambda n: _order(n, waiting[n]))
            self._running[number] = self._queued.pop(number, None) or self._parked.pop(number)
            return Turn(number=number)
        if not self._queued or len(self._parked) >= self.most_parked:
            return None
        longest = max(self._running, key=lambda n: (self._running[n].weighted, n))
        given = self._running[longest]
        short = [
            n for n, c in self._queued.items() if LONGER * c.weighted <= given.weighted and c.finish < given.finish
        ]
        if not short:
            return None
        number = min(short, key=lambda n: _order(n, self._queued[n]))
        self._parked[longest] = self._running.pop(longest)
        self._running[number] = self._queued.pop(number)
        return Turn(number=number, park=longest)

    def serve(self, positions: dict[int, int]) -> None:
        """A forward has computed so many positions of each of these requests."""
        weights = sum(claim.weight for claims in (self._running, self._parked) for claim in claims.values())
        for number, computed in positions.items():
            claim = self._running[number]
            claim.left = max(0.0, claim.left - computed)
        self._now += sum(positions.values()) / weights

    def leave(self, number: int) -> None:
        """The request is done, failed or cancelled, wherever it is."""
        for claims in (self._queued, self._running, self._parked):
            claims.pop(number, None)


def _order(number: int, claim: _Claim) -> tuple[float, int]:
    return claim.finish, number
