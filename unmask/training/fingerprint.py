"""What identifies a run: every plain value in its recipe, by name.

Public idea: ``settings(recipe) -> {"optim.lr": "0.001", ...}`` and ``differences(before, now)`` in words.
"""

from __future__ import annotations

import dataclasses
import enum
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from unmask.recipe import Recipe

# They may change from one part of a run to the next: they decide how long, where and how it is reported, not what a step learns.
_FREE = {
    f"training.{name}"
    for name in ("device", "log_every", "save_every", "keep", "max_skipped", "recompute", "compile", "shard")
}
_MOST = 64  # entries of one collection that are listed; of more, a digest


def settings(recipe: Recipe) -> dict[str, str]:
    """Every number, text and flag in the recipe's source, objective, optimizer and training settings; functions have no value to compare.

    Fields of a dataclass with ``compare=False`` do not count.
    """
    parts = {name: getattr(recipe, name) for name in ("source", "objective", "adapt", "optim", "training")}
    return {name: text for name, text in _walk(parts, "") if name not in _FREE}


def differences(before: Mapping[str, str] | None, now: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """(differences in what is learned, differences in length), as ``optim.lr was 0.001, is 0.0003``. A run without a record has none."""
    if before is None:
        return [], []
    names = [n for n in (*before, *(n for n in now if n not in before)) if before.get(n) != now.get(n)]
    # A field that one version of the package has and another has not is not a change of the user's.
    names = [n for n in names if not n.startswith(("training.", "optim.")) or (n in before and n in now)]
    words = {n: f"{n} was {before.get(n, 'absent')}, is {now.get(n, 'absent')}" for n in names}
    return [w for n, w in words.items() if n != "training.steps"], [
        w for n, w in words.items() if n == "training.steps"
    ]


def _walk(value: object, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, enum.Enum):
        value = value.name
    if value is None or isinstance(value, bool | int | float | str | Path):
        yield path, str(value) if isinstance(value, Path) else repr(value)
        return
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield path, type(value).__name__
    inner = (pair for name, part in _parts(value) for pair in _walk(part, f"{path}.{name}" if path else name))
    if isinstance(value, tuple | list | set | frozenset | Mapping) and len(value) > _MOST:
        yield path, "digest " + hashlib.sha256(repr(list(inner)).encode()).hexdigest()[:12]
    else:
        yield from inner


def _parts(value: object) -> Iterator[tuple[str, object]]:
    """What is inside a value, by name: fields, entries of a mapping, elements by their number or by the text that they begin with."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield from ((f.name, getattr(value, f.name)) for f in dataclasses.fields(value) if f.compare)
    elif isinstance(value, Mapping):
        yield from ((str(key), part) for key, part in value.items())
    elif isinstance(value, set | frozenset):
        yield from ((str(i), part) for i, part in enumerate(sorted(value, key=str)))
    elif isinstance(value, tuple | list):
        named = bool(value) and all(isinstance(v, tuple) and len(v) > 1 and isinstance(v[0], str) for v in value)
        for i, part in enumerate(value):
            if named:
                yield part[0], part[1]
                yield from ((f"{part[0]}.{n}", more) for n, more in enumerate(part[2:], 2))
            else:
                yield str(i), part
