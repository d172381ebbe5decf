"""Arguments that users pass, checked before any work. Public idea: ``@checked`` on a method makes wrong arguments one-line errors.

The annotations of the method say what is wanted: ``seed: int`` refuses ``"1"`` and ``True``, ``settings: Sequence[str]`` a single text.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import numbers
import os
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Sequence as Items
from typing import Any, ParamSpec, TypeVar

from PIL import Image

P = ParamSpec("P")
R = TypeVar("R")
_NUMBERS = {int: numbers.Integral, float: numbers.Real}
_EXAMPLES = {
    "prompt": '"a red apple"',
    "question": '"what is it?"',
    "seed": "seed=1",
    "settings": '["schedule.steps=8"]',
}
_LARGEST_SEED = 2**62  # seeds are stored as int64, and picture i of a call has seed + i


def checked(method: Callable[P, R]) -> Callable[P, R]:
    """The method, with its arguments compared to its annotations. TypeError names the argument, what came and what was wanted."""
    signature = inspect.signature(method)
    name = method.__name__

    @functools.cache
    def hints() -> Mapping[str, Any]:
        return typing.get_type_hints(method)  # when first called: the module is complete by then

    @functools.wraps(method)
    def wrapped(*given: P.args, **named: P.kwargs) -> R:
        try:
            bound = signature.bind(*given, **named)
        except TypeError as error:
            raise TypeError(_usage(name, signature, given, named, str(error))) from None
        _refuse_swapped(name, signature, bound.arguments)
        for key, value in bound.arguments.items():
            parameter = signature.parameters[key]
            if key in hints() and value is not parameter.default:
                _check(name, key, value, hints()[key])
        return method(*given, **named)

    return wrapped


def fits(value: object, hint: Any) -> bool:
    """Whether a value is one of a type hint. Hints that cannot be tested (callables, type variables, protocols) accept everything."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, one) for one in typing.get_args(hint))
    if hint in _NUMBERS:
        return isinstance(value, _NUMBERS[hint]) and not isinstance(value, bool)
    if hint in (None, types.NoneType):
        return value is None
    if origin is typing.IO or hint in (typing.IO, typing.BinaryIO):
        return hasattr(value, "read")
    if origin in (Items, Iterable):
        (inner,) = typing.get_args(hint)
        if isinstance(value, str | bytes | Mapping) or not isinstance(value, origin):
            return False
        return not isinstance(value, Items) or all(fits(item, inner) for item in value)
    kind = origin or hint
    if not isinstance(kind, type) or getattr(kind, "_is_protocol", False) or kind is Callable:
        return True
    return isinstance(value, kind)


def _check(name: str, key: str, value: object, hint: Any) -> None:
    if not fits(value, hint):
        raise TypeError(f"{name}: {key} must be {_said(hint)}, got {_shown(value)}{_hint(key, value)}")
    if key == "seed" and isinstance(value, int) and not -_LARGEST_SEED <= value <= _LARGEST_SEED:
        raise ValueError(f"{name}: seed must be between -2**62 and 2**62, got {value}")


def _hint(key: str, value: object) -> str:
    if isinstance(value, str) and key in ("settings", "needs", "stop", "messages"):
        return f"; give a list, for example {_EXAMPLES.get(key, f'[{value!r}]')}"
    if isinstance(value, Image.Image):
        return "; the picture comes first"
    return f"; for example {_EXAMPLES[key]}" if key in _EXAMPLES else ""


def _refuse_swapped(name: str, signature: inspect.Signature, given: Mapping[str, object]) -> None:
    """ValueError for ``ask("what is it?", "dog.png")``: a text where the picture belongs, and the picture after it."""
    first, second = (
        given.get("image"),
        next((given[k] for k in ("question", "instruction", "phrases") if k in given), None),
    )
    if isinstance(second, list | tuple) and len(second) == 1:
        second = second[0]
    if isinstance(first, str) and not os.path.exists(first) and _is_picture(second):
        raise ValueError(f"{name}: the picture comes first; call {_call(name, signature)}")


def _is_picture(value: object) -> bool:
    return isinstance(value, Image.Image | bytes) or (isinstance(value, str | os.PathLike) and os.path.isfile(value))


def _usage(
    name: str, signature: inspect.Signature, given: Items[object], named: Mapping[str, object], error: str
) -> str:
    """What to call, for a call that has too few or too many arguments, or an unknown one."""
    known = [k for k in signature.parameters if k != "self"]
    if unknown := [k for k in named if k not in known]:
        inside = sorted((k for k in known if len(k) > 2 and k in unknown[0]), key=len, reverse=True)
        near = inside or difflib.get_close_matches(unknown[0], known, 1, 0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"it takes {', '.join(known)}"
        return f"{name} has no argument {unknown[0]!r}; {hint}"
    taken = set(list(signature.parameters)[: len(given)]) | set(named)
    required = [k for k, p in signature.parameters.items() if p.default is p.empty]
    if missing := [k for k in required if k not in taken]:
        return f"{name} needs {' and '.join(missing)}; call {_call(name, signature)}"
    return f"{name}: {error}; call {_call(name, signature)} and give all other arguments by name"


def _call(name: str, signature: inspect.Signature) -> str:
    positional = [k for k, p in signature.parameters.items() if k != "self" and p.kind is p.POSITIONAL_OR_KEYWORD]
    return f"{name}({', '.join(positional)})"


def _said(hint: Any) -> str:
    """A hint in words: ``a text or None``."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        parts = list(dict.fromkeys(_said(one) for one in typing.get_args(hint)))
        parts = [p for p in parts if p != "a text" or "a path" not in parts]
        return " or ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else parts[0]
    if typing.get_origin(hint) in (Items, Iterable):
        return f"a list of {_said(typing.get_args(hint)[0]).removeprefix('a ')}s"
    words = {int: "a whole number", float: "a number", str: "a text", bool: "True or False", types.NoneType: "None"}
    kind = typing.get_origin(hint) or hint
    words |= {Image.Image: "an image", os.PathLike: "a path", typing.IO: "an open file"}
    return words.get(kind, getattr(kind, "__name__", str(kind)))


def _shown(value: object) -> str:
    text = repr(value)
    return f"{text if len(text) <= 60 else f'{text[:57]}...'} ({type(value).__name__})"
