"""The speed of a model as users write it. Public idea: ``speed_of("fast,steps=0.25") -> Fast``."""

from __future__ import annotations

import dataclasses
import difflib
from typing import Any

from unmask.sampling.fast import EVERY, EXACT, FAST, Fast

SPEEDS = {"exact": EXACT, "fast": FAST}
_WHOLE = ("refresh", "cache")  # counts of steps


def speed_of(speed: str | Fast) -> Fast:
    """``exact``, ``fast``, or parts of fast mode separated by commas, each with its usual value or another: ``refresh,steps=0.25``.

    Words apply from left to right: ``fast,steps=1`` is fast mode with all steps. A ``Fast`` is returned as it is. ValueError for an unknown
    word or a wrong value.
    """
    if isinstance(speed, Fast):
        return speed
    found = EXACT
    for word in speed.split(","):
        name, equals, value = (piece.strip() for piece in word.partition("="))
        found = SPEEDS[name] if name in SPEEDS and not equals else _with(found, name, value if equals else None)
    return found


def parts() -> tuple[str, ...]:
    """The names of the parts of fast mode."""
    return tuple(dict.fromkeys(part.name for _, own in _tasks(EVERY) for part in dataclasses.fields(own)))


def _with(speed: Fast, name: str, text: str | None) -> Fast:
    """``speed`` with one part, in every kind of task that has it."""
    known = parts()
    if name not in known:
        near = difflib.get_close_matches(name, [*SPEEDS, *known], 1, 0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"use exact, fast, or some of {', '.join(known)}"
        raise ValueError(f"speed: there is no {name[:50]!r}; {hint}")
    changed: dict[str, Any] = {}
    for task, own in _tasks(speed):
        if hasattr(own, name):
            value = getattr(getattr(EVERY, task), name) if text is None else _parsed(name, text)
            changed[task] = dataclasses.replace(own, **{name: value})
    return dataclasses.replace(speed, **changed)


def _parsed(name: str, text: str) -> float | tuple[float, ...]:
    try:
        if name == "interval":
            low, high = text.split(":")
            return float(low), float(high)
        return int(text) if name in _WHOLE else float(text)
    except ValueError:
        wanted = "two numbers, 0.2:0.8" if name == "interval" else "a whole number" if name in _WHOLE else "a number"
        raise ValueError(f"speed: {name}={text[:50]!r} must be {wanted}") from None


def _tasks(speed: Fast) -> list[tuple[str, Any]]:
    return [(task.name, getattr(speed, task.name)) for task in dataclasses.fields(speed)]
