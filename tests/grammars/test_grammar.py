"""Transitions by token against reading every token byte by byte from every state."""

from __future__ import annotations

from random import Random

import pytest

from unmask.grammars import grammar as module
from unmask.grammars.automaton import compile_automaton
from unmask.grammars.grammar import Grammar
from unmask.grammars.regex import parse_regex

PATTERNS = ["a*b?", "[ab]{1,9}c", "(ab|ba)+|é{2}", "[^a]{0,3}", "a(a|b){4}", "a{40}"]


def pieces(rng: Random) -> list[bytes]:
    """Empty, equal, long and random strings, some of them cut inside a character."""
    made = [b"", b"a", b"a", b"a" * 30, "é".encode(), "é".encode()[:1], "é".encode()[1:], b"\xff", b""]
    return made + [bytes(rng.choice(b"abc\xc3\xa9") for _ in range(rng.randint(1, 5))) for _ in range(60)]


@pytest.mark.parametrize("chunk", [1, 300, 300_000])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_edges_are_those_of_reading_byte_by_byte(pattern: str, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CHUNK", chunk)
    automaton, written, end = compile_automaton(parse_regex(pattern)), pieces(Random(pattern)), 8
    g = Grammar(automaton, written, end)
    edges = set(zip(g.frm.tolist(), g.kind.tolist(), g.to.tolist(), strict=True))
    assert len(edges) == len(g.to)
    columns = []
    for token, piece in enumerate(written):
        column = []
        for state in range(automaton.states):
            after = state
            for byte in piece:
                after = int(automaton.table[after, byte])
            column.append(after if piece else automaton.states)
        columns.append(tuple(column))
        kind = int(g.kind_of[token])
        if token != end:
            assert [(s, kind, to) in edges for s, to in enumerate(column)] == [to < automaton.states for to in column]
            assert (kind == g.kinds) == all(to == automaton.states for to in column)
    kinds = {column for column in columns if any(to < automaton.states for to in column)}
    assert g.kinds == len(kinds) + 1 and int(g.kind_of[end]) == g.kinds - 1  # as few as there can be
    assert len(edges) == sum(to < automaton.states for c in kinds for to in c) + int(automaton.ends.sum()) + 1


def test_many_kinds_are_told_apart_when_states_do_not_fit_one_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    automaton, written = compile_automaton(parse_regex("[ab]{1,9}c")), pieces(Random(0))
    whole = Grammar(automaton, written, 8)
    monkeypatch.setattr(module, "_RADIX", 2**12)
    parted = Grammar(automaton, written, 8)
    assert parted.kinds == whole.kinds and parted.kind_of.tolist() == whole.kind_of.tolist()
