"""Sets of texts, and the automaton that reads a text byte by byte.

An ``Expression`` is the syntax tree of a regular expression: ``CharClass``, ``Concat``, ``Alternation``, ``Repeat``.
``compile_automaton(expression)`` makes a deterministic automaton from it (subset construction over UTF-8 bytes). Every state of the
result can still reach an accepting state, so a text that has not been rejected so far can always be completed. Size and work are limited.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

MOST_STATES = 20_000  # far more than any answer format written by hand needs
_MOST_WORK = 20_000_000  # comparisons in the subset construction: a few seconds
_MOST_MEMBERS = 2_000_000  # states in all subsets of the subset construction: about 100 MB
_MOST_PARTS = 200_000  # parts of an expression, counted as often as they are written out: part of a second
_LAST = 0x10FFFF
_SURROGATES = (0xD800, 0xDFFF)  # not characters, and not encodable in UTF-8


@dataclass(frozen=True, kw_only=True)
class CharClass:
    """One character from ``ranges`` of code points, both ends included."""

    ranges: tuple[tuple[int, int], ...]


@dataclass(frozen=True, kw_only=True)
class Concat:
    """All parts, one after the other; without parts, the empty text."""

    parts: tuple[Expression, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Alternation:
    """Exactly one of the parts."""

    parts: tuple[Expression, ...]


@dataclass(frozen=True, kw_only=True)
class Repeat:
    """``least`` to ``most`` times; None: no upper limit."""

    part: Expression
    least: int = 0
    most: int | None = None


Expression = CharClass | Concat | Alternation | Repeat


class TooLarge(ValueError):
    """The automaton would exceed the limit on states or on work."""


def literal(text: str) -> Expression:
    return Concat(parts=tuple(CharClass(ranges=((ord(c), ord(c)),)) for c in text))


def optional(part: Expression) -> Expression:
    return Repeat(part=part, most=1)


def complement(ranges: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """All code points outside ``ranges``."""
    out, begin = [], 0
    for low, high in sorted(ranges):
        if low > begin:
            out.append((begin, low - 1))
        begin = max(begin, high + 1)
    return (*out, (begin, _LAST)) if begin <= _LAST else tuple(out)


@dataclass(frozen=True, kw_only=True, eq=False)
class Automaton:
    """``table [S + 1, 256]``: the next state, S for rejection · ``ends [S]``: whether a state accepts · ``work``: comparisons that its
    construction took. State 0 is initial.
    """

    table: Tensor
    ends: Tensor
    work: int = 0

    @property
    def states(self) -> int:
        return len(self.ends)

    def accepts(self, data: bytes) -> bool:
        state = 0
        for byte in data:
            state = int(self.table[state, byte])
        return state < self.states and bool(self.ends[state])


def compile_automaton(expression: Expression, most_states: int = MOST_STATES) -> Automaton:
    """TooLarge if it exceeds the limits, of which that on work is in proportion to ``most_states``; ValueError if no text matches the
    expression.
    """
    check_size(expression)
    net = _Net()
    end = net.add(expression, net.state())
    steps, ends, work = _determined(net, end, most_states)
    return replace(_trimmed(steps, ends), work=work)


def share_of(automaton: Automaton, most_states: int) -> float:
    """How much of the limits on states and work an automaton took, 0 to 1."""
    return max(automaton.states / most_states, automaton.work / (_MOST_WORK * min(1.0, most_states / MOST_STATES)))


def check_size(expression: Expression) -> None:
    """TooLarge if it has too many parts. A part that stands in several places is visited once here; to hash, compare or compile the
    expression visits it in every place, which grows exponentially with the depth.
    """
    known: dict[int, int] = {}

    def size(part: Expression) -> int:
        if isinstance(part, CharClass):
            return 1
        if id(part) not in known:
            if isinstance(part, Repeat):
                times = part.least + 1 if part.most is None else part.most
                known[id(part)] = 1 + max(1, times) * size(part.part)
            else:
                known[id(part)] = 1 + sum(map(size, part.parts))
            if known[id(part)] > _MOST_PARTS:
                raise TooLarge("the automaton takes too long to build; use fewer repeats or alternatives")
        return known[id(part)]

    size(expression)


class _Net:
    """A nondeterministic automaton. ``free[s]``: states reached without reading · ``steps[s]``: (first byte, last byte, next state)."""

    def __init__(self) -> None:
        self.free: list[list[int]] = []
        self.steps: list[list[tuple[int, int, int]]] = []

    def state(self) -> int:
        if len(self.free) >= MOST_STATES:
            raise TooLarge(
                f"the automaton takes more than {MOST_STATES} states; use shorter lengths or fewer alternatives"
            )
        self.free.append([])
        self.steps.append([])
        return len(self.free) - 1

    def add(self, expression: Expression, begin: int) -> int:
        """Adds states that read ``expression`` from ``begin`` on; returns the state behind it."""
        if isinstance(expression, CharClass):
            return self._chars(expression, begin)
        if isinstance(expression, Concat):
            for part in expression.parts:
                begin = self.add(part, begin)
            return begin
        end = self.state()
        if isinstance(expression, Alternation):
            for part in expression.parts:
                own = self.state()
                self.free[begin].append(own)
                self.free[self.add(part, own)].append(end)
            return end
        for _ in range(expression.least):
            begin = self.add(expression.part, begin)
        if expression.most is None:
            loop = self.state()
            self.free[begin].append(loop)
            self.free[self.add(expression.part, loop)].append(loop)
            begin = loop
        else:
            for _ in range(expression.most - expression.least):
                self.free[begin].append(end)
                begin = self.add(expression.part, begin)
        self.free[begin].append(end)
        return end

    def _chars(self, chars: CharClass, begin: int) -> int:
        """Byte paths with the same suffix share its states, which keeps the automaton small."""
        end = self.state()
        known: dict[tuple[tuple[int, int], ...], int] = {(): end}
        for low, high in chars.ranges:
            for path in byte_paths(low, high):
                for cut in range(len(path) - 1, 0, -1):
                    rest = tuple(path[cut:])
                    if rest not in known:
                        known[rest] = self.state()
                        self.steps[known[rest]].append((*rest[0], known[rest[1:]]))
                self.steps[begin].append((*path[0], known[tuple(path[1:])]))
        return end

    def closure(self, states: Iterable[int]) -> frozenset[int]:
        found, todo = set(states), list(states)
        while todo:
            for after in self.free[todo.pop()]:
                if after not in found:
                    found.add(after)
                    todo.append(after)
        return frozenset(found)


def byte_paths(low: int, high: int) -> list[list[tuple[int, int]]]:
    """The UTF-8 encodings of the code points ``low..high``, as paths of byte ranges."""
    if low <= _SURROGATES[1] and high >= _SURROGATES[0]:
        before = byte_paths(low, _SURROGATES[0] - 1) if low < _SURROGATES[0] else []
        return before + (byte_paths(_SURROGATES[1] + 1, high) if high > _SURROGATES[1] else [])
    for edge in (0x7F, 0x7FF, 0xFFFF):  # last code point of one, two and three bytes
        if low <= edge < high:
            return byte_paths(low, edge) + byte_paths(edge + 1, high)
    return _paths(chr(low).encode(), chr(high).encode()) if low <= high else []


def _paths(low: bytes, high: bytes) -> list[list[tuple[int, int]]]:
    """``low`` and ``high`` are equally long; every byte but the first is in 0x80..0xBF."""
    if len(low) == 1:
        return [[(low[0], high[0])]]
    if low[0] == high[0]:
        return [[(low[0], low[0]), *rest] for rest in _paths(low[1:], high[1:])]
    bottom, top = b"\x80" * (len(low) - 1), b"\xbf" * (len(low) - 1)
    if low[1:] != bottom:
        after = bytes([low[0] + 1]) + bottom
        return _paths(low, bytes([low[0]]) + top) + _paths(after, high)
    if high[1:] != top:
        before = bytes([high[0] - 1]) + top
        return _paths(low, before) + _paths(bytes([high[0]]) + bottom, high)
    return [[(low[0], high[0]), *[(0x80, 0xBF)] * (len(low) - 1)]]


def _determined(net: _Net, end: int, most_states: int) -> tuple[list[list[tuple[int, int, int]]], list[bool], int]:
    """Subset construction: the steps (first byte, last byte, next state) of every state, whether it accepts, and the work."""
    first, share = net.closure([0]), min(1.0, most_states / MOST_STATES)
    number, order, work, members = {first: 0}, [first], 0, 0
    steps: list[list[tuple[int, int, int]]] = []
    for here in order:
        out = [step for state in here for step in net.steps[state]]
        edges = sorted({low for low, _, _ in out} | {high + 1 for _, high, _ in out})
        own = []
        work += len(out) * len(edges)
        members += len(here)
        if work > share * _MOST_WORK or members > share * _MOST_MEMBERS:
            raise TooLarge("the automaton takes too long to build; use shorter lengths or fewer alternatives")
        for low, after in zip(edges, edges[1:], strict=False):
            reached = [to for first_, last, to in out if first_ <= low <= last]
            if not reached:
                continue
            there = net.closure(reached)
            if there not in number:
                if len(order) >= most_states:
                    raise TooLarge(
                        f"the automaton takes more than {most_states} states; use shorter lengths or fewer alternatives"
                    )
                number[there] = len(order)
                order.append(there)
            own.append((low, after - 1, number[there]))
        steps.append(own)
    return steps, [end in here for here in order], work


def _trimmed(steps: list[list[tuple[int, int, int]]], ends: list[bool]) -> Automaton:
    """Without the states from which no accepting state can be reached."""
    before: list[list[int]] = [[] for _ in steps]
    for state, own in enumerate(steps):
        for _, _, to in own:
            before[to].append(state)
    alive, todo = {s for s, end in enumerate(ends) if end}, [s for s, end in enumerate(ends) if end]
    while todo:
        for state in before[todo.pop()]:
            if state not in alive:
                alive.add(state)
                todo.append(state)
    if 0 not in alive:
        raise ValueError("no text matches this; allow at least one")
    kept = {state: number for number, state in enumerate(sorted(alive))}
    table = torch.full((len(kept) + 1, 256), len(kept))
    for state, number in kept.items():
        for low, high, to in steps[state]:
            if to in kept:
                table[number, low : high + 1] = kept[to]
    return Automaton(table=table, ends=torch.tensor([ends[state] for state in kept]))
