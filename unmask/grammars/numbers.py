"""Numbers in decimal as sets of texts: ``integers(low, high)`` and, in millionths, ``decimals(low, high)``."""

from __future__ import annotations

from unmask.grammars.automaton import Alternation, CharClass, Concat, Expression, Repeat, literal, optional

FRACTION = 6  # digits after the decimal point
UNIT = 10**FRACTION
_DIGIT = CharClass(ranges=((48, 57),))


def integers(low: int, high: int) -> Expression:
    """The integers ``low..high`` in decimal."""
    parts: list[Expression] = []
    if low < 0:
        parts.append(Concat(parts=(literal("-"), integers(max(1, -high), -low))))
    if high >= 0:
        begin = max(0, low)
        for digits in range(len(str(begin)), len(str(high)) + 1):
            first, last = 10 ** (digits - 1) if digits > 1 else 0, 10**digits - 1
            parts += _same_length(str(max(begin, first)), str(min(high, last)))
    return Alternation(parts=tuple(parts))


def decimals(low: int, high: int) -> Expression:
    """The numbers from ``low`` to ``high`` millionths, with at most ``FRACTION`` digits after the point and no exponent."""
    parts: list[Expression] = []
    whole_low, whole_high = -(-low // UNIT), high // UNIT
    if whole_low <= whole_high:
        parts.append(integers(whole_low, whole_high))
    if high > max(low, 0):
        parts += _with_fraction(max(low, 0), high)
    if low < min(high, 0):
        parts += [Concat(parts=(literal("-"), part)) for part in _with_fraction(max(-high, 0), -low)]
    if low == high and low % UNIT:
        sign = "-" if low < 0 else ""
        parts += [Concat(parts=(literal(sign), part)) for part in _with_fraction(abs(low), abs(low))]
    return Alternation(parts=tuple(parts))


def _with_fraction(low: int, high: int) -> list[Expression]:
    """The numbers from ``low`` to ``high`` millionths (not negative) that have a point; a whole ``high`` is left out."""
    first, last = low // UNIT, (high - 1) // UNIT
    begin, end = low - first * UNIT, high - last * UNIT
    if first == last and (begin or end < UNIT):
        return [_joined(first, first, _fraction(begin, min(end, UNIT - 1), FRACTION))]
    parts: list[Expression] = []
    if begin:
        parts.append(_joined(first, first, _fraction(begin, UNIT - 1, FRACTION)))
        first += 1
    if end < UNIT:
        parts.append(_joined(last, last, _fraction(0, end, FRACTION)))
        last -= 1
    if first <= last:
        parts.append(_joined(first, last, Repeat(part=_DIGIT, least=1, most=FRACTION)))
    return parts


def _joined(first: int, last: int, fraction: Expression) -> Expression:
    return Concat(parts=(integers(first, last), literal("."), fraction))


def _fraction(low: int, high: int, digits: int) -> Expression:
    """One to ``digits`` digits that say ``low..high`` when zeros fill them up."""
    step = 10 ** (digits - 1)
    parts: list[Expression] = []
    for digit in range(low // step, high // step + 1):
        begin, end = max(low - digit * step, 0), min(high - digit * step, step - 1)
        first = literal(str(digit))
        if digits == 1:
            parts.append(first)
        elif (begin, end) == (0, step - 1):
            parts.append(Concat(parts=(first, Repeat(part=_DIGIT, most=digits - 1))))
        else:
            rest = _fraction(begin, end, digits - 1)
            parts.append(Concat(parts=(first, optional(rest) if begin == 0 else rest)))
    return Alternation(parts=tuple(parts))


def _same_length(low: str, high: str) -> list[Expression]:
    """The integers from ``low`` to ``high``, which have equally many digits."""
    if len(low) == 1:
        return [CharClass(ranges=((ord(low), ord(high)),))]
    rest = len(low) - 1
    if low[1:] == "0" * rest and high[1:] == "9" * rest:
        return [
            Concat(parts=(CharClass(ranges=((ord(low[0]), ord(high[0])),)), Repeat(part=_DIGIT, least=rest, most=rest)))
        ]
    if low[0] == high[0]:
        return [Concat(parts=(literal(low[0]), Alternation(parts=tuple(_same_length(low[1:], high[1:])))))]
    parts = []
    if low[1:] != "0" * rest:
        parts += _same_length(low, low[0] + "9" * rest)
        low = str(int(low[0]) + 1) + "0" * rest
    if high[1:] != "9" * rest:
        parts += _same_length(high[0] + "0" * rest, high)
        high = str(int(high[0]) - 1) + "9" * rest
    return parts + (_same_length(low, high) if low <= high else [])
