"""Memory of a training step of ``Elastic``, estimated before anything is allocated.

Public idea: ``Plan(net, steps, size).usage(way) -> Usage`` is what one process holds at the peak of a step, and ``most_rows(way, budget)``
the largest source batch that fits.

Of P parameters, of which T are trained, and with s bytes for a number of the computation (bfloat16: 2), one process, or each of several
under DDP, holds

    s P     the weights that compute
    16 T    float32 masters, averages of the weights, and two moments
    4 T     the sum of gradients of earlier source batches of the update, if there are any
            activations, and the gradients that are made while they are taken down (``training.activations``)

and, when no activations are left, 4 T for the gradients. DDP has as much again for their sum over the processes, and s T each for its
buckets and for the gradients of earlier batches. Under FSDP2, W processes share these: 4 P / W
for the weights, which are the masters, 12 T / W and 4 T / W. Beside them each has the weights that belong to no layer and two layers at
a time, in s bytes, and the gradients of one layer before they are shared out.

tests/training/test_memory.py compares this with the measured peak of a step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from unmask.checkpoints.elastic import part_of
from unmask.models.elastic import Elastic
from unmask.training.activations import Load, Piece, peak, pieces, trained_parts, unit_of
from unmask.training.layers import layers as layers_of

_MOST_ROWS = 65_536


@dataclass(frozen=True, kw_only=True)
class Part:
    """Parameters of one part of the network, as the table of parts names it."""

    name: str
    trained: int
    frozen: int


def parts_of(net: Elastic) -> list[Part]:
    """The parts of a network in its order; what requires no gradient is frozen."""
    found: dict[str, list[int]] = {}
    for name, p in net.named_parameters():
        counts = found.setdefault(part_of(name, net.config), [0, 0])
        counts[0 if p.requires_grad else 1] += p.numel()
    return [Part(name=name, trained=trained, frozen=frozen) for name, (trained, frozen) in found.items()]


@dataclass(frozen=True, kw_only=True)
class Way:
    """How a step is computed. ``world``: processes · ``sharded``: FSDP2, otherwise DDP · ``recompute``: activation checkpointing."""

    world: int
    sharded: bool
    recompute: bool

    @property
    def name(self) -> str:
        return ("FSDP2" if self.sharded else "DDP" if self.world > 1 else "one process") + (
            ", recomputed" if self.recompute else ""
        )


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Bytes of one process. ``weights``: frozen and trained, as the computation needs them, gathered layers included · ``optimiser``:
    masters, averages and moments · ``summed``: gradients of earlier source batches of the update · ``activations``: at the peak of a
    backward pass · ``backward``: activations and new gradients at its peak · ``exchange``: gradients and buffers of an update, when no
    activations are left.
    """

    weights: int
    optimiser: int
    summed: int
    activations: int
    backward: int
    exchange: int

    @property
    def total(self) -> int:
        """At the peak of a step."""
        return self.weights + self.optimiser + max(self.summed + self.backward, self.exchange)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A run to be planned. ``net``: with ``requires_grad`` as it trains; it may be on the meta device · ``steps``: loads of the source
    batches that a step may have · ``size``: bytes of a number of the computation · ``several``: whether a process computes several
    source batches an update · ``moments``: bytes of both moments of a parameter.
    """

    net: Elastic
    steps: tuple[tuple[Load, ...], ...]
    size: int
    several: bool = True
    moments: int = 8

    @property
    def rows(self) -> int:
        """Rows of the largest source batch."""
        return max(sum(load.rows for load in loads) for loads in self.steps)

    def usage(self, way: Way, rows: int | None = None) -> Usage:
        """``rows``: of the largest source batch, the others in proportion; None: as they are."""
        steps = self.steps if rows is None else tuple(tuple(self._scaled(load, rows) for load in s) for s in self.steps)
        trained = trained_parts(n for n, p in self.net.named_parameters() if p.requires_grad)
        found = [pieces(self.net, trained, s, size=self.size, recompute=way.recompute) for s in steps]
        return _largest([self._used(way, each) for each in found])

    def most_rows(self, way: Way, budget: int) -> int:
        """The most rows of a source batch with which a step fits into ``budget`` bytes; 0 where none does."""
        low, high = 0, 1
        while high <= _MOST_ROWS and self.usage(way, high).total <= budget:
            low, high = high, 2 * high
        while low + 1 < high:
            middle = (low + high) // 2
            low, high = (middle, high) if self.usage(way, middle).total <= budget else (low, middle)
        return low

    def _scaled(self, load: Load, rows: int) -> Load:
        return load.of_rows(max(1, round(load.rows * rows / self.rows)))

    def _used(self, way: Way, found: Sequence[Piece]) -> Usage:
        activations = peak(found, {})
        units = self._units()
        if not way.sharded:
            whole, trained = (sum(n[i] for n in units.values()) for i in (0, 1))
            largest = max((p.numel() for p in self.net.parameters() if p.requires_grad), default=0)
            added = (4 + self.size) * trained + 8 * largest if self.several else 0  # to the sum, one by one
            return Usage(
                weights=self.size * whole,
                optimiser=(8 + self.moments) * trained,
                summed=((4 if self.several else 0) + (self.size if way.world > 1 else 0)) * trained,
                activations=activations,
                backward=peak(found, {unit: self.size * n for unit, (_, n) in units.items()}),
                exchange=max(added, (8 + 2 * self.size if way.world > 1 else 4) * trained),
            )
        return self._sharded(way.world, found, activations, units)

    def _sharded(
        self, world: int, found: Sequence[Piece], activations: int, units: Mapping[str, tuple[int, int]]
    ) -> Usage:
        whole, trained = (sum(n[i] for n in units.values()) for i in (0, 1))
        layers = [_numbers(layer) for layer in layers_of(self.net)]
        largest, largest_trained = (max(n[i] for n in layers) for i in (0, 1))
        root, root_trained = (total - sum(n[i] for n in layers) for i, total in enumerate((whole, trained)))
        made = {u: 4 * n // world if _in_layer(u) else self.size * n for u, (_, n) in units.items()}
        return Usage(
            weights=4 * whole // world + self.size * (root + 2 * largest),
            optimiser=(4 + self.moments) * trained // world,
            summed=4 * trained // world if self.several else 0,
            activations=activations,
            backward=peak(found, made) + (self.size + 4) * largest_trained,
            exchange=4 * trained // world + (self.size + 4) * root_trained,
        )

    def _units(self) -> dict[str, tuple[int, int]]:
        """Parameters of every unit, and how many of them are trained."""
        found: dict[str, tuple[int, int]] = {}
        for name, p in self.net.named_parameters():
            numbers, trained = found.get(unit := unit_of(name), (0, 0))
            found[unit] = (numbers + p.numel(), trained + (p.numel() if p.requires_grad else 0))
        return found


def _largest(found: Sequence[Usage]) -> Usage:
    """The most of everything, over the source batches that a step may have."""
    return Usage(**{name: max(getattr(usage, name) for usage in found) for name in vars(found[0])})


def _in_layer(unit: str) -> bool:
    return any(word.isdigit() for word in unit.split("."))


def _numbers(module: nn.Module) -> tuple[int, int]:
    """Parameters, and how many of them are trained."""
    found = list(module.parameters())
    return sum(p.numel() for p in found), sum(p.numel() for p in found if p.requires_grad)
