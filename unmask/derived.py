"""Values that follow from tensors which never change, computed once. Public idea: ``derived("plan", make, *tensors) -> make()``."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

T = TypeVar("T")
_MOST = 16  # values remembered for one tensor
_known: Any = WeakIdKeyDictionary()


def derived(key: Hashable, make: Callable[[], T], first: Tensor, *others: Tensor) -> T:
    """What ``make`` returns, remembered as long as ``first`` lives: the same tensors, none of them written to since, give the same value.

    ``make`` must depend on these tensors and on ``key`` alone. The fields of a batch that a sampler run does not change stay the same
    tensors over all its steps, so what follows from them is computed at the first one.
    """
    tensors = (first, *others)
    if torch.is_inference_mode_enabled() or any(t.is_inference() for t in tensors):
        return make()  # such tensors do not say whether they were written to
    entries = _known.get(first)
    if entries is None:
        entries = _known[first] = {}
    name = (key, *map(id, others))
    versions = [t._version for t in tensors]
    found = entries.get(name)
    if found is not None and found[0] == versions and all(ref() is t for ref, t in zip(found[1], others, strict=True)):
        return found[2]
    value = make()
    if len(entries) >= _MOST:
        entries.clear()
    entries[name] = (versions, [weakref.ref(t) for t in others], value)
    return value
