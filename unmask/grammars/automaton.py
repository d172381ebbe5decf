"""Sets of texts, and the automaton that reads one byte by byte.

Public idea: a language is a value made of ``Chars``, ``Then``, ``Either`` and ``Repeat``; ``compiled(language) -> Automaton``. Every
state of it can still reach an end, so what it does not refuse at once can be completed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

MOST_STATES = 20_000  # of the automaton in the making; far beyond what a form for people needs
_MOST_WORK = 20_000_000  # comparisons while it is made: a few seconds
_LAST = 0x10FFFF
_SURROGATES = (0xD800, 0xDFFF)  # no characters, and not in UTF-8


@dataclass(frozen=True, kw_only=True)
class Chars:
    """One character out of ``ranges`` of code points, both ends included."""

    ranges: tuple[tuple[int, int], ...]


@dataclass(frozen=True, kw_only=True)
class Then:
    """One part after the other; without parts, the empty text."""

    parts: tuple[Language, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Either:
    """One of the parts."""

    parts: tuple[Language, ...]


@dataclass(frozen=True, kw_only=True)
class Repeat:
    """``least`` to ``most`` times (None: without end)."""

    part: Language
    least: int = 0
    most: int | None = None


Language = Chars | Then | Either | Repeat


class TooLarge(ValueError):
    """The automaton would have more states than anybody should wait for."""


def literal(text: str) -> Language:
    return Then(parts=tuple(Chars(ranges=((ord(c), ord(c)),)) for c in text))


def optional(part: Language) -> Language:
    return Repeat(part=part, most=1)


def inverse(ranges: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """All the other code points."""
    out, begin = [], 0
    for low, high in sorted(ranges):
        if low > begin:
            out.append((begin, low - 1))
        begin = max(begin, high + 1)
    return (*out, (begin, _LAST)) if begin <= _LAST else tuple(out)


@dataclass(frozen=True, kw_only=True, eq=False)
class Automaton:
    """``table [S + 1, 256]``: the state after each byte, S where nothing fits · ``ends [S]``: a text may end here. It starts in state 0."""

    table: Tensor
    ends: Tensor

    @property
    def states(self) -> int:
        return len(self.ends)

    def accepts(self, data: bytes) -> bool:
        state = 0
        for byte in data:
            state = int(self.table[state, byte])
        return state < self.states and bool(self.ends[state])


def compiled(language: Language) -> Automaton:
    """TooLarge where that takes too many states; ValueError where no text at all is in the language."""
    net = _Net()
    end = net.add(language, net.state())
    return _trimmed(*_determined(net, end))


class _Net:
    """A nondeterministic automaton: ``free[s]``: states reached by nothing · ``steps[s]``: (first byte, last byte, state)."""

    def __init__(self) -> None:
        self.free: list[list[int]] = []
        self.steps: list[list[tuple[int, int, int]]] = []

    def state(self) -> int:
        if len(self.free) >= MOST_STATES:
            raise TooLarge(f"this takes more than {MOST_STATES} states; use shorter lengths or fewer alternatives")
        self.free.append([])
        self.steps.append([])
        return len(self.free) - 1

    def add(self, language: Language, begin: int) -> int:
        """The state in which a text of the language that began in ``begin`` ends."""
        if isinstance(language, Chars):
            return self._chars(language, begin)
        if isinstance(language, Then):
            for part in language.parts:
                begin = self.add(part, begin)
            return begin
        end = self.state()
        if isinstance(language, Either):
            for part in language.parts:
                own = self.state()
                self.free[begin].append(own)
                self.free[self.add(part, own)].append(end)
            return end
        for _ in range(language.least):
            begin = self.add(language.part, begin)
        if language.most is None:
            loop = self.state()
            self.free[begin].append(loop)
            self.free[self.add(language.part, loop)].append(loop)
            begin = loop
        else:
            for _ in range(language.most - language.least):
                self.free[begin].append(end)
                begin = self.add(language.part, begin)
        self.free[begin].append(end)
        return end

    def _chars(self, chars: Chars, begin: int) -> int:
        """Paths that end alike share their ends, so that a character costs few states."""
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
    """The code points ``low..high`` in UTF-8, as paths of byte ranges."""
    if low <= _SURROGATES[1] and high >= _SURROGATES[0]:
        before = byte_paths(low, _SURROGATES[0] - 1) if low < _SURROGATES[0] else []
        return before + (byte_paths(_SURROGATES[1] + 1, high) if high > _SURROGATES[1] else [])
    for edge in (0x7F, 0x7FF, 0xFFFF):  # last code point of one, two and three bytes
        if low <= edge < high:
            return byte_paths(low, edge) + byte_paths(edge + 1, high)
    return _paths(chr(low).encode(), chr(high).encode()) if low <= high else []


def _paths(low: bytes, high: bytes) -> list[list[tuple[int, int]]]:
    """Both have one length; every byte but the first is 0x80..0xBF."""
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


def _determined(net: _Net, end: int) -> tuple[list[list[tuple[int, int, int]]], list[bool]]:
    """One state for every set of states one may be in: its steps (first byte, last byte, state), and whether a text may end."""
    first = net.closure([0])
    number, order, work = {first: 0}, [first], 0
    steps: list[list[tuple[int, int, int]]] = []
    for here in order:
        out = [step for state in here for step in net.steps[state]]
        edges = sorted({low for low, _, _ in out} | {high + 1 for _, high, _ in out})
        own = []
        work += len(out) * len(edges)
        if work > _MOST_WORK:
            raise TooLarge("this takes too long to prepare; use shorter lengths or fewer choices")
        for low, after in zip(edges, edges[1:], strict=False):
            reached = [to for first_, last, to in out if first_ <= low <= last]
            if not reached:
                continue
            there = net.closure(reached)
            if there not in number:
                if len(order) >= MOST_STATES:
                    raise TooLarge(f"this takes more than {MOST_STATES} states; use shorter lengths or fewer choices")
                number[there] = len(order)
                order.append(there)
            own.append((low, after - 1, number[there]))
        steps.append(own)
    return steps, [end in here for here in order]


def _trimmed(steps: list[list[tuple[int, int, int]]], ends: list[bool]) -> Automaton:
    """Without the states from which no end can be reached."""
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
        raise ValueError("no text at all fits this; allow something")
    kept = {state: number for number, state in enumerate(sorted(alive))}
    table = torch.full((len(kept) + 1, 256), len(kept))
    for state, number in kept.items():
        for low, high, to in steps[state]:
            if to in kept:
                table[number, low : high + 1] = kept[to]
    return Automaton(table=table, ends=torch.tensor([ends[state] for state in kept]))
