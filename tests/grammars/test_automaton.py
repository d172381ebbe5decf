"""Regular expressions against Python's own, and integers against counting."""

from __future__ import annotations

import json
import re
from random import Random

import pytest

from unmask.grammars.automaton import Alternation, CharClass, TooLarge, byte_paths, compile_automaton
from unmask.grammars.regex import json_escaped, parse_regex
from unmask.grammars.schema import integers

PATTERNS = [
    "", "a", "abc", "a|b", "a|", "(ab)*", "a+b?c*", "[a-c]{2}", "[^a]b", ".", "a.b", r"\d{1,3}", r"\w+\s\w+", r"\D\S\W", "a{0}",
    "(a|bc){2,}", "(?:a(b(c)?)?)*", "^ab$", "^a|b$", r"\.\*\\", "[]a]", "[a-]",
    "[]-c]", r"[\d\-x]", r"\x41é", "a{2,3}|b{1}", "ä+", "((a*)*)*b", "[^\\n]",
]  # fmt: skip
ALPHABET = "abcABC019-. \n]\\*äé€😀_x"


@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_same_texts_match_as_in_python(pattern: str) -> None:
    automaton, known, rng = compile_automaton(parse_regex(pattern)), re.compile(pattern, re.ASCII), Random(pattern)
    texts = ["", *ALPHABET, *(a + b for a in ALPHABET for b in ALPHABET)]
    texts += ["".join(rng.choices(ALPHABET[:8], k=rng.randint(3, 6))) for _ in range(400)]
    for text in texts:
        assert automaton.accepts(text.encode()) == bool(known.fullmatch(text)), (pattern, text)


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("a(", "character 2: this group"),
        ("a)", "character 2: ')' is not allowed here"),
        ("(?=a)", "only (?:…) is supported"),
        (r"(a)\1", r"\1 is not supported"),
        (r"\bword", r"\b is not supported"),
        ("a*?", "lazy"),
        ("a{2,1}", "the smaller number comes first"),
        ("a{2000}", "at most 1000"),
        ("a{x}", "a count is"),
        ("*a", "'*' has nothing to repeat"),
        ("[a", "not closed"),
        ("[z-a]", "not a range"),
        ("a$b", "'$' is not allowed here"),
        ("a^", "very beginning only"),
        (r"\xg1", "hexadecimal"),
        ("(" * 60 + ")" * 60, "more than 50 deep"),
        ("a\\", "is not supported"),
    ],
)
def test_what_is_not_supported_is_named(pattern: str, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        parse_regex(pattern)


def test_what_exceeds_the_limits_is_refused() -> None:
    for pattern in ("(a{1000}){1000}", ".*a.{200}", "(((a{9}){9}){9}){99}"):
        with pytest.raises(TooLarge):
            compile_automaton(parse_regex(pattern))
    with pytest.raises(ValueError, match="no text matches"):
        compile_automaton(Alternation(parts=()))


def test_byte_ranges_are_those_of_utf8() -> None:
    rng = Random(0)
    edges = [0, 0x7F, 0x80, 0x7FF, 0x800, 0xD7FF, 0xD800, 0xDFFF, 0xE000, 0xFFFF, 0x10000, 0x10FFFF]
    for _ in range(30):
        low, high = sorted(rng.choice([rng.choice(edges), rng.randrange(0x110000)]) for _ in range(2))
        automaton = compile_automaton(CharClass(ranges=((low, high), (65, 65))))
        for code in {
            *edges,
            low,
            high,
            max(0, low - 1),
            min(high + 1, 0x10FFFF),
            *(rng.randrange(0x110000) for _ in range(50)),
        }:
            if not 0xD800 <= code <= 0xDFFF:
                assert automaton.accepts(chr(code).encode()) == (low <= code <= high or code == 65), (low, high, code)
    assert byte_paths(0xD800, 0xDFFF) == []


def test_integers_are_those_between_the_bounds() -> None:
    rng = Random(0)
    bounds = [(0, 0), (0, 9), (-5, 5), (7, 123), (-120, -3), (99, 1001), (-1, 0)]
    bounds += [tuple(sorted(rng.randrange(-2000, 2000) for _ in range(2))) for _ in range(8)]  # type: ignore[misc]
    for low, high in bounds:
        automaton = compile_automaton(integers(low, high))
        for n in range(low - 12, high + 12):
            assert automaton.accepts(str(n).encode()) == (low <= n <= high), (low, high, n)
        assert not any(automaton.accepts(text) for text in (b"-0", b"01", b"+1", b"", b"-", b"1 "))


def test_quoted_texts_are_json_strings_of_the_same() -> None:
    for pattern in ('a"b', r"[\\a]\n?", r".{1,2}", r"\s"):
        inside, plain = compile_automaton(json_escaped(parse_regex(pattern))), compile_automaton(parse_regex(pattern))
        texts = ["", *'a"b\\\n\t\x07é ', *(x + y for x in 'a"\\\n' for y in 'a"\\\n'), 'a"b', "\\\n", "a\n"]
        for text in texts:
            told = json.dumps(text, ensure_ascii=False)[1:-1]
            wanted = plain.accepts(text.encode()) and "\\u" not in told
            assert inside.accepts(told.encode()) == wanted, (pattern, text)
