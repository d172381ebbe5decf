"""Regular expressions as languages: the part of the syntax that says which texts there are, and nothing else.

Public idea: ``parsed(pattern) -> Language``, the texts that match as a whole. Understood: characters, ``.`` (no newline), classes ``[a-z]``
and ``[^…]``, ``\\d \\w \\s`` and their opposites (ASCII), ``\\n \\t \\r \\f \\v \\0 \\xhh \\uhhhh``, groups ``(…)`` and ``(?:…)``, ``|``,
``* + ? {m} {m,} {m,n}``, ``^`` at the very beginning and ``$`` at the very end. All else (lookaround, back references, lazy repeats, flags,
``\\b``) is a ValueError that says where.
"""

from __future__ import annotations

from unmask.grammars.automaton import Chars, Either, Language, Repeat, Then, inverse

MOST_REPEATS = 1000
_DEEPEST = 50  # groups in groups
_DIGIT = ((48, 57),)
_WORD = ((48, 57), (65, 90), (95, 95), (97, 122))
_SPACE = ((9, 13), (32, 32))
_CLASSES = {"d": _DIGIT, "w": _WORD, "s": _SPACE, "D": inverse(_DIGIT), "W": inverse(_WORD), "S": inverse(_SPACE)}
_CONTROLS = {"n": 10, "t": 9, "r": 13, "f": 12, "v": 11, "0": 0}
_DOT = inverse(((10, 10),))


def parsed(pattern: str) -> Language:
    """ValueError for what is not understood."""
    return _Parser(pattern).whole()


class _Parser:
    def __init__(self, pattern: str) -> None:
        self.pattern, self.at, self.depth = pattern, 0, 0

    def whole(self) -> Language:
        if self._next("^"):
            self.at += 1
        found = self._either()
        if self._next("$") and self.at == len(self.pattern) - 1:
            self.at += 1
        if self.at < len(self.pattern):
            raise self._wrong(f"{self.pattern[self.at]!r} cannot stand here")
        return found

    def _either(self) -> Language:
        parts = [self._then()]
        while self._next("|"):
            self.at += 1
            parts.append(self._then())
        return parts[0] if len(parts) == 1 else Either(parts=tuple(parts))

    def _then(self) -> Language:
        parts: list[Language] = []
        while self.at < len(self.pattern) and self.pattern[self.at] not in "|)$":
            parts.append(self._repeated(self._one()))
        return Then(parts=tuple(parts))

    def _repeated(self, part: Language) -> Language:
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
                raise self._wrong("a count is {m}, {m,} or {m,n}; for the character itself write \\{", begin)
            least, most = int(counts[0]), int(counts[-1]) if counts[-1] else None
            self.at = close + 1
            if max(least, most or 0) > MOST_REPEATS or (most is not None and most < least):
                raise self._wrong(f"a count goes up to {MOST_REPEATS}, the smaller number first", begin)
        else:
            least, most = {"*": (0, None), "+": (1, None), "?": (0, 1)}[sign]
        if self.at < len(self.pattern) and self.pattern[self.at] in "*+?{":
            raise self._wrong("lazy, possessive and doubled repeats are not understood")
        return Repeat(part=part, least=least, most=most)

    def _one(self) -> Language:
        char = self.pattern[self.at]
        if char == "(":
            return self._group()
        if char == "[":
            return self._class()
        if char in "*+?{":
            raise self._wrong(f"there is nothing for {char!r} to repeat")
        if char == "^":
            raise self._wrong("^ stands at the very beginning only; for the character itself write \\^")
        if char == "\\":
            return Chars(ranges=self._escaped())
        self.at += 1
        return Chars(ranges=_DOT if char == "." else ((ord(char), ord(char)),))

    def _group(self) -> Language:
        begin = self.at
        self.at += 1
        if self._next("?"):
            if self.pattern[self.at : self.at + 2] != "?:":
                raise self._wrong("of the groups that begin with (? only (?:…) is understood", begin)
            self.at += 2
        self.depth += 1
        if self.depth > _DEEPEST:
            raise self._wrong(f"groups are nested more than {_DEEPEST} deep", begin)
        inside = self._either()
        self.depth -= 1
        if not self._next(")"):
            raise self._wrong("the group that begins here is not closed, or has a $ inside", begin)
        self.at += 1
        return inside

    def _class(self) -> Language:
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
                    raise self._wrong("this is no range of characters", begin)
                low = ((low[0][0], high[0][1]),)
            ranges += low
        if not self._next("]"):
            raise self._wrong("the class that begins here is not closed", begin)
        self.at += 1
        return Chars(ranges=inverse(ranges) if negated else tuple(ranges))

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
                raise self._wrong(f"\\{char} wants {digits} hexadecimal digits", begin)
            return ((int(text, 16), int(text, 16)),)
        if char in _CONTROLS:
            return ((_CONTROLS[char], _CONTROLS[char]),)
        if not char or char.isalnum():
            raise self._wrong(f"\\{char} is not understood", begin)
        return ((ord(char), ord(char)),)

    def _next(self, char: str) -> bool:
        return self.pattern[self.at : self.at + 1] == char

    def _wrong(self, what: str, at: int | None = None) -> ValueError:
        place = self.at if at is None else at
        return ValueError(
            f"regex {self.pattern!r}, character {place + 1}: {what}; docs/structured.md says what is understood"
        )


def quoted(language: Language) -> Language:
    """The same texts inside a JSON string. Controls other than newline, tab and the like have no short name and are left out."""
    if isinstance(language, Chars):
        return _quoted_chars(language)
    if isinstance(language, Repeat):
        return Repeat(part=quoted(language.part), least=language.least, most=language.most)
    inside = tuple(quoted(part) for part in language.parts)
    return Then(parts=inside) if isinstance(language, Then) else Either(parts=inside)


_SHORT = {8: "b", 9: "t", 10: "n", 12: "f", 13: "r", 34: '"', 92: "\\"}
_BARE = ((0x20, 0x21), (0x23, 0x5B), (0x5D, 0x10FFFF))


def _quoted_chars(chars: Chars) -> Language:
    def one(char: str) -> Language:
        return Chars(ranges=((ord(char), ord(char)),))

    ranges = [(max(a, c), min(b, d)) for a, b in chars.ranges for c, d in _BARE if max(a, c) <= min(b, d)]
    short = [
        Then(parts=(one("\\"), one(name)))
        for code, name in _SHORT.items()
        if any(low <= code <= high for low, high in chars.ranges)
    ]
    bare: list[Language] = [Chars(ranges=tuple(ranges))] if ranges else []
    return Either(parts=(*bare, *short))
