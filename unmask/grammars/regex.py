"""Regular expressions: the part of the syntax that defines a set of texts.

``parse_regex(pattern)`` returns the texts that match as a whole. Supported: characters, ``.`` (not a newline), classes ``[a-z]`` and
``[^…]``, ``\\d \\w \\s`` and their complements (ASCII), ``\\n \\t \\r \\f \\v \\0 \\xhh \\uhhhh``, groups ``(…)`` and ``(?:…)``,
``|``, ``* + ? {m} {m,} {m,n}``, ``^`` at the very beginning and ``$`` at the very end. Anything else (lookaround, back references,
lazy repeats, flags, ``\\b``) is a ValueError that names its position.
"""

from __future__ import annotations

from unmask.grammars.automaton import Alternation, CharClass, Concat, Expression, Repeat, complement

MOST_REPEATS = 1000
_DEEPEST = 50  # groups in groups
_DIGIT = ((48, 57),)
_WORD = ((48, 57), (65, 90), (95, 95), (97, 122))
_SPACE = ((9, 13), (32, 32))
_CLASSES = {
    "d": _DIGIT,
    "w": _WORD,
    "s": _SPACE,
    "D": complement(_DIGIT),
    "W": complement(_WORD),
    "S": complement(_SPACE),
}
_CONTROLS = {"n": 10, "t": 9, "r": 13, "f": 12, "v": 11, "0": 0}
_DOT = complement(((10, 10),))


def parse_regex(pattern: str) -> Expression:
    """ValueError names what is not supported and its position."""
    return _Parser(pattern).whole()


class _Parser:
    def __init__(self, pattern: str) -> None:
        self.pattern, self.at, self.depth = pattern, 0, 0

    def whole(self) -> Expression:
        if self._next("^"):
            self.at += 1
        found = self._alternation()
        if self._next("$") and self.at == len(self.pattern) - 1:
            self.at += 1
        if self.at < len(self.pattern):
            raise self._wrong(f"{self.pattern[self.at]!r} is not allowed here")
        return found

    def _alternation(self) -> Expression:
        parts = [self._concat()]
        while self._next("|"):
            self.at += 1
            parts.append(self._concat())
        return parts[0] if len(parts) == 1 else Alternation(parts=tuple(parts))

    def _concat(self) -> Expression:
        parts: list[Expression] = []
        while self.at < len(self.pattern) and self.pattern[self.at] not in "|)$":
            parts.append(self._repeated(self._one()))
        return Concat(parts=tuple(parts))

    def _repeated(self, part: Expression) -> Expression:
        if self.at >= len(self.pattern) or self.pattern[self.at] not in "*+?{":
            return part
        sign, begin = self.pattern[self.at], self.at
        self.at += 1
        if sign == "{":
            close = self.pattern.find("}", self.at)
            counts = self.pattern[self.at : close].split(",") if close > 0 else []
            if (
                len(counts) not in (1, 2)
                or not counts[0].isdecimal()
                or not (counts[-1].isdecimal() or counts[-1] == "")
            ):
                raise self._wrong("a count is written {m}, {m,} or {m,n}; for the character itself write \\{", begin)
            least, most = int(counts[0]), int(counts[-1]) if counts[-1] else None
            self.at = close + 1
            if max(least, most or 0) > MOST_REPEATS or (most is not None and most < least):
                raise self._wrong(f"a count is at most {MOST_REPEATS}, and the smaller number comes first", begin)
        else:
            least, most = {"*": (0, None), "+": (1, None), "?": (0, 1)}[sign]
        if self.at < len(self.pattern) and self.pattern[self.at] in "*+?{":
            raise self._wrong("lazy, possessive and repeated quantifiers are not supported")
        return Repeat(part=part, least=least, most=most)

    def _one(self) -> Expression:
        char = self.pattern[self.at]
        if char == "(":
            return self._group()
        if char == "[":
            return self._class()
        if char in "*+?{":
            raise self._wrong(f"{char!r} has nothing to repeat")
        if char == "^":
            raise self._wrong("^ is allowed at the very beginning only; for the character itself write \\^")
        if char == "\\":
            return CharClass(ranges=self._escaped())
        self.at += 1
        return CharClass(ranges=_DOT if char == "." else ((ord(char), ord(char)),))

    def _group(self) -> Expression:
        begin = self.at
        self.at += 1
        if self._next("?"):
            if self.pattern[self.at : self.at + 2] != "?:":
                raise self._wrong("of the groups that begin with (? only (?:…) is supported", begin)
            self.at += 2
        self.depth += 1
        if self.depth > _DEEPEST:
            raise self._wrong(f"groups are nested more than {_DEEPEST} deep", begin)
        inside = self._alternation()
        self.depth -= 1
        if not self._next(")"):
            raise self._wrong("this group is not closed, or has a $ inside", begin)
        self.at += 1
        return inside

    def _class(self) -> Expression:
        begin = self.at
        self.at += 1
        negated = self._next("^")
        self.at += negated
        ranges: list[tuple[int, int]] = []
        while self.at < len(self.pattern) and (not self._next("]") or not ranges):
            low = self._escaped() if self._next("\\") else self._plain()
            if self._next("-") and self.at + 1 < len(self.pattern) and self.pattern[self.at + 1] != "]":
                self.at += 1
                high = self._escaped() if self._next("\\") else self._plain()
                if len(low) != 1 or len(high) != 1 or low[0][0] != low[0][1] or high[0][1] < low[0][0]:
                    raise self._wrong("this is not a range of characters", begin)
                low = ((low[0][0], high[0][1]),)
            ranges += low
        if not self._next("]"):
            raise self._wrong("this class is not closed", begin)
        self.at += 1
        return CharClass(ranges=complement(ranges) if negated else tuple(ranges))

    def _plain(self) -> tuple[tuple[int, int], ...]:
        char = ord(self.pattern[self.at])
        self.at += 1
        return ((char, char),)

    def _escaped(self) -> tuple[tuple[int, int], ...]:
        begin = self.at
        char = self.pattern[begin + 1 : begin + 2]
        self.at += 2
        if char in _CLASSES:
            return _CLASSES[char]
        if char in ("x", "u"):
            digits = 2 if char == "x" else 4
            text = self.pattern[self.at : self.at + digits]
            self.at += digits
            if len(text) != digits or any(c not in "0123456789abcdefABCDEF" for c in text):
                raise self._wrong(f"\\{char} needs {digits} hexadecimal digits", begin)
            return ((int(text, 16), int(text, 16)),)
        if char in _CONTROLS:
            return ((_CONTROLS[char], _CONTROLS[char]),)
        if not char or char.isalnum():
            raise self._wrong(f"\\{char} is not supported", begin)
        return ((ord(char), ord(char)),)

    def _next(self, char: str) -> bool:
        return self.pattern[self.at : self.at + 1] == char

    def _wrong(self, what: str, at: int | None = None) -> ValueError:
        place = self.at if at is None else at
        return ValueError(
            f"regex {self.pattern!r}, character {place + 1}: {what}; docs/structured.md lists what is supported"
        )


def lengths(expression: Expression) -> tuple[int, int | None]:
    """Characters of the shortest and of the longest text; None: there is no longest."""
    if isinstance(expression, CharClass):
        return 1, 1
    if isinstance(expression, Repeat):
        least, most = lengths(expression.part)
        longest = 0 if most == 0 else None if most is None or expression.most is None else most * expression.most
        return least * expression.least, longest
    inside = [lengths(part) for part in expression.parts]
    shortest, longest_ = [least for least, _ in inside], [most for _, most in inside if most is not None]
    endless, join = len(longest_) < len(inside), sum if isinstance(expression, Concat) else max
    return (sum if isinstance(expression, Concat) else min)(shortest), None if endless else join(longest_)


def json_escaped(expression: Expression) -> Expression:
    """The same texts as the content of a JSON string. Control characters without a short escape (``\\n``, ``\\t`` …) are left out."""
    if isinstance(expression, CharClass):
        return _quoted_chars(expression)
    if isinstance(expression, Repeat):
        return Repeat(part=json_escaped(expression.part), least=expression.least, most=expression.most)
    inside = tuple(json_escaped(part) for part in expression.parts)
    return Concat(parts=inside) if isinstance(expression, Concat) else Alternation(parts=inside)


_SHORT = {8: "b", 9: "t", 10: "n", 12: "f", 13: "r", 34: '"', 92: "\\"}
_BARE = ((0x20, 0x21), (0x23, 0x5B), (0x5D, 0x10FFFF))


def _quoted_chars(chars: CharClass) -> Expression:
    def one(char: str) -> Expression:
        return CharClass(ranges=((ord(char), ord(char)),))

    ranges = [(max(a, c), min(b, d)) for a, b in chars.ranges for c, d in _BARE if max(a, c) <= min(b, d)]
    short = [
        Concat(parts=(one("\\"), one(name)))
        for code, name in _SHORT.items()
        if any(low <= code <= high for low, high in chars.ranges)
    ]
    bare: list[Expression] = [CharClass(ranges=tuple(ranges))] if ranges else []
    return Alternation(parts=(*bare, *short))
