"""Transitions by token against reading every token byte by byte from every state."""

from __future__ import annotations

from random import Random

import pytest

import unmask
from unmask.grammars import grammar as module
from unmask.grammars.automaton import TooLarge, compile_automaton, share_of
from unmask.grammars.grammar import Grammar, grammar_of
from unmask.grammars.regex import parse_regex
from unmask.grammars.schema import json_texts

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


def test_what_stands_in_many_places_is_refused_before_it_is_visited_in_each() -> None:
    """A list of lists of lists, 31 deep with up to two items each, has a billion parts when written out. To hash it took hours."""
    schema: dict[str, object] = {"type": "boolean"}
    for _ in range(31):
        schema = {"type": "array", "items": schema, "maxItems": 2}
    with pytest.raises(TooLarge, match="takes too long to build"):
        grammar_of(json_texts(schema), unmask.load("mini").parts.text)
    with pytest.raises(TooLarge, match="takes too long to build"):
        compile_automaton(json_texts(schema))


def test_the_grammars_that_are_kept_take_limited_memory() -> None:
    made = [Grammar(compile_automaton(parse_regex(f"a{{{n}}}")), pieces(Random(0)), 8) for n in (5, 6, 7)]
    recent = module._Recent(sum(g.nbytes for g in made[1:]))
    for number, g in enumerate(made[:2]):
        recent.keep(number, g)
    assert recent.find(0) is made[0] and recent.find(1) is made[1]
    assert recent.find(0) is made[0]  # used last
    recent.keep(2, made[2])
    assert [recent.find(n) for n in range(3)] == [made[0], None, made[2]]
    assert recent.size == made[0].nbytes + made[2].nbytes
    small = module._Recent(made[0].nbytes - 1)
    small.keep(0, made[0])
    assert small.find(0) is None and small.size == 0
    assert made[0].nbytes > made[0].automaton.table.nbytes


def test_the_same_expression_gives_the_same_grammar() -> None:
    text = unmask.load("mini").parts.text
    first = grammar_of(parse_regex("[a-c]{2}x"), text)
    assert grammar_of(parse_regex("[a-c]{2}x"), text) is first
    assert grammar_of(parse_regex("[a-c]{2}y"), text) is not first


def test_a_lower_limit_on_states_ends_the_work_early() -> None:
    with pytest.raises(TooLarge, match="more than 50 states"):
        compile_automaton(parse_regex("(a|b)*a(a|b){16}"), 50)
    long = parse_regex("a?" * 400)
    assert share_of(compile_automaton(long), 20_000) < 1
    with pytest.raises(TooLarge, match="too long to build"):
        compile_automaton(long, 500)
