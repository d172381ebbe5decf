"""Values that follow from tensors which never change, computed once. Public idea: ``derived("plan", make, *tensors) -> make()``.

``tell(tensor, values)`` and ``tell_counts(mask, counts)`` keep what Python knew when a tensor was made, so that nobody has to wait for the
device to read it back (``numbers``, ``counts_told``).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
_MOST = 16  # values remembered for one tensor
_Entries = dict[Any, tuple[list[int], list[Any], Any]]
_Known = dict[
    int, tuple[weakref.ref[Tensor], _Entries]
]  # by id of the tensor; a WeakIdKeyDictionary takes three times as long
_known: _Known = {}


def derived(key: Hashable, make: Callable[[], T], first: Tensor, *others: Tensor) -> T:
    """What ``make`` returns, remembered as long as ``first`` lives: the same tensors, none of them written to since, give the same value.

    ``make`` must depend on these tensors and on ``key`` alone. The fields of a batch that a sampler run does not change stay the same
    tensors over all its steps, so what follows from them is computed at the first one.
    """
    tensors = (first, *others)
    if torch.is_inference_mode_enabled() or any(t.is_inference() for t in tensors):
        return make()  # such tensors do not say whether they were written to
    entries = _entries_of(first)
    if entries is None:
        entries = _new_entries(first)
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


def _entries_of(tensor: Tensor) -> _Entries | None:
    found = _known.get(id(tensor))
    return found[1] if found is not None and found[0]() is tensor else None


def _new_entries(tensor: Tensor) -> _Entries:
    name = id(tensor)
    found: tuple[weakref.ref[Tensor], _Entries] = (weakref.ref(tensor, partial(_forget, _known, name)), {})
    _known[name] = found
    return found[1]


def _forget(known: _Known, name: int, gone: weakref.ref[Tensor]) -> None:
    """``known`` is given, because at the end of the program this module may have lost it."""
    found = known.get(name)
    if found is not None and found[0] is gone:  # a new tensor may have the id already
        del known[name]


def remember(key: Hashable, value: object, tensor: Tensor) -> None:
    """What ``remembered(key, tensor)`` returns from now on, until the tensor is written to. Nothing for inference tensors."""
    if torch.is_inference_mode_enabled() or tensor.is_inference():
        return
    entries = _entries_of(tensor)
    if entries is None or len(entries) >= _MOST:
        entries = _new_entries(tensor)
    entries[(key,)] = ([tensor._version], [], value)


def remembered(key: Hashable, tensor: Tensor) -> Any:
    """What was remembered of a tensor under this key; None if nothing was, or the tensor was written to since."""
    entries = _entries_of(tensor)
    found = entries.get((key,)) if entries else None
    return found[2] if found is not None and found[0] == [tensor._version] else None


def tell(tensor: Tensor, values: list[Any]) -> Tensor:
    """``tensor``, whose numbers Python has already: ``numbers`` returns ``values`` without waiting for its device."""
    remember("numbers", values, tensor)
    return tensor


def numbers(tensor: Tensor) -> list[Any]:
    """``tensor.tolist()``; no wait for the device where they were told, or read before."""
    return derived("numbers", tensor.tolist, tensor)


def tell_counts(mask_BL: Tensor, counts: tuple[int, ...]) -> Tensor:
    """``mask``, whose number of True in each row Python has already. All of them are valid, writable tokens."""
    remember("counts", counts, mask_BL)
    return mask_BL


def counts_told(mask_BL: Tensor) -> tuple[int, ...] | None:
    """What ``tell_counts`` said of a mask; None if nobody did."""
    return remembered("counts", mask_BL)
