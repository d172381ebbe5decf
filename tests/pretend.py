"""A CUDA card that is not there: tensors on the CPU that say they are on ``cuda:0``, and refuse what a card would refuse.

Public idea: ``with pretended() as card:`` inside, ``device="cuda"`` works everywhere. A call that mixes tensors of the card and of the CPU
raises RuntimeError, as it does on a card; so do ``.numpy()`` of a tensor of the card and random numbers with a generator of another device.
``card.reads`` counts the calls that would wait for the card, by name.

What this cannot find: kernels that a card lacks, other rounding, a backward pass that mixes devices (autograd runs below Python).
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest import mock

import torch
import torch._dynamo  # optimisers import it, and it wants to see torch as it is
from torch import Tensor
from torch.overrides import TorchFunctionMode

CARD, CPU = torch.device("cuda", 0), torch.device("cpu")
READS = {"item", "tolist", "__bool__", "__int__", "__float__", "__index__", "__contains__", "equal", "allclose"}
READS |= {"nonzero", "argwhere", "masked_select", "unique", "unique_consecutive"}
# Functions that take a number from the CPU as a tensor without dimensions, next to tensors of the card.
WITH_NUMBERS = {"where", "masked_fill", "masked_fill_", "copy_", "clamp", "fill_", "lerp", "lerp_", "full_like"}
WITH_NUMBERS |= {"_foreach_mul_"}  # clipping asks C++ for the device of the gradients, which knows the CPU alone
_ARITHMETIC = "add sub mul div truediv floordiv pow mod remainder true_divide floor_divide maximum minimum".split()
_ARITHMETIC += "eq ne lt le gt ge and or xor".split()
for _name in _ARITHMETIC:
    WITH_NUMBERS |= {_name, f"{_name}_", f"__{_name}__", f"__r{_name}__", f"__i{_name}__"}


class Mixed(RuntimeError):
    """What a card would refuse."""


def on_card(tensor: Tensor) -> bool:
    return "_card" in tensor.__dict__


def _mark(tensor: Tensor, card: bool) -> Tensor:
    if card:
        tensor.__dict__["_card"] = True
    else:
        tensor.__dict__.pop("_card", None)
    return tensor


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _tensors(part)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


def _device(value: Any) -> torch.device | None:
    """The device that an argument names."""
    if isinstance(value, torch.device):
        return value
    if isinstance(value, str) and value.partition(":")[0] in ("cpu", "cuda", "meta"):
        return torch.device(value)
    return None


class Card(TorchFunctionMode):
    """``reads``: calls that would wait for the card."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: Counter[str] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = dict(kwargs or {}), getattr(func, "__name__", str(func))
        if name in ("__get__", "__set__"):
            return self._attribute(func, name, args)
        special: dict[str, Callable[..., Any]] = {
            "to": self._to,
            "type_as": self._to,
            "cpu": self._cpu,
            "cuda": self._cuda,
        }
        if name in special and args and isinstance(args[0], Tensor):
            return special[name](func, args, kwargs)
        if name in ("numpy", "__array__") and on_card(args[0]):
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")
        if name in ("pin_memory", "record_stream"):
            return args[0]
        if name in ("_has_compatible_shallow_copy_type", "is_same_size", "_parse_to"):
            return func(*args, **kwargs)
        return self._call(func, name, args, kwargs)

    def _call(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        given = list(_tensors((args, kwargs)))
        card = self._checked(name, args, given)
        where = _device(kwargs["device"]) if kwargs.get("device") is not None else None
        if where is not None:
            card = where.type == "cuda"
            kwargs["device"] = CPU if card else where
        rng = kwargs.get("generator")
        if rng is not None and (rng.device.type == "cuda") != card:
            raise Mixed(f"{name}: a generator on {rng.device} for numbers on {CARD if card else CPU}")
        found = func(*args, **kwargs)
        before = {id(t) for t in given}
        for tensor in _tensors(found):
            if id(tensor) not in before:
                _mark(tensor, card)
        return found

    def _checked(self, name: str, args: Any, given: list[Tensor]) -> bool:
        """Whether a call works on the card. Mixed for one that a card would refuse."""
        card = any(on_card(t) for t in given)
        if not card:
            return False
        if name in READS or (name == "__getitem__" and any(t.dtype == torch.bool for t in _tensors(args[1:]))):
            self.reads[name] += 1
        if name == "copy_":
            return on_card(args[0])
        others = [t for t in given if not on_card(t) and t.device.type != "meta"]
        if name in ("__getitem__", "__setitem__", "index_put_", "index_put"):
            indices = {id(t) for t in _tensors(args[1:2])}  # may be on the CPU
            if not indices and name == "__setitem__":
                return on_card(args[0])  # a copy into a slice
            if not on_card(args[0]):
                raise Mixed(f"{name}: indices on {CARD} for a tensor on the CPU")
            others = [t for t in others if id(t) not in indices]
        numbers = name in WITH_NUMBERS or name in ("__setitem__", "index_put_")
        if bad := [t for t in others if t.dim() or not numbers]:
            raise Mixed(
                f"{name}: Expected all tensors to be on the same device, but found {CARD} and cpu {tuple(bad[0].shape)}"
            )
        return True

    def _attribute(self, func: Any, name: str, args: Any) -> Any:
        own = args[0]
        if name == "__set__":
            if func == torch.Tensor.data.__set__:
                _mark(own, on_card(args[1]))
            elif func == torch.Tensor.grad.__set__ and args[1] is not None and on_card(args[1]) != on_card(own):
                raise Mixed("grad: assigned grad has data of a different device")
            return func(*args)
        if not on_card(own):
            return func(*args)
        if func == torch.Tensor.device.__get__:
            return CARD
        if func in (torch.Tensor.is_cuda.__get__, torch.Tensor.is_cpu.__get__):
            return func == torch.Tensor.is_cuda.__get__
        found = func(*args)
        return _mark(found, True) if isinstance(found, Tensor) else found

    def _to(self, func: Any, args: Any, kwargs: Any) -> Tensor:
        own, card, rest = args[0], on_card(args[0]), []
        for value in args[1:]:
            where = CARD if isinstance(value, int) and not isinstance(value, bool) else _device(value)
            if isinstance(value, Tensor):
                card = on_card(value)
            elif where is not None:
                card = where.type == "cuda"
                value = CPU if card else where
            rest.append(value)
        if kwargs.get("device") is not None and (where := _device(kwargs["device"])) is not None:
            card = where.type == "cuda"
            kwargs["device"] = CPU if card else where
        if on_card(own) and not card:
            self.reads["to"] += 1
        return self._moved(own, func(own, *rest, **kwargs), card)

    def _cpu(self, func: Any, args: Any, kwargs: Any) -> Tensor:
        self.reads["cpu"] += on_card(args[0])
        return self._moved(args[0], func(*args, **kwargs), False)

    def _cuda(self, func: Any, args: Any, kwargs: Any) -> Tensor:
        return self._moved(args[0], args[0], True)

    def _moved(self, own: Tensor, found: Tensor, card: bool) -> Tensor:
        """A tensor on another device never shares its storage."""
        if found is own and on_card(own) != card:
            found = own.clone()
        return found if found is own else _mark(found, card)


@contextmanager
def pretended() -> Iterator[Card]:
    """One card, in this thread and in all that are started inside."""
    card, run, subclass = Card(), threading.Thread.run, torch.Tensor._make_subclass

    def run_on_card(self: threading.Thread) -> None:
        with card:
            run(self)

    def kept(cls: Any, data: Tensor, *rest: Any, **named: Any) -> Tensor:
        return _mark(subclass(cls, data, *rest, **named), on_card(data))

    there = {"is_available": True, "device_count": 1, "current_device": 0, "synchronize": None, "set_device": None}
    there |= {
        "get_device_name": "a pretended card",
        "is_initialized": True,
        "max_memory_allocated": 0,
        "empty_cache": None,
    }
    there |= {
        "reset_peak_memory_stats": None,
        "memory_allocated": 0,
        "set_rng_state": None,
        "mem_get_info": (2**36, 2**36),
    }
    there |= {
        "get_rng_state": torch.zeros(1, dtype=torch.uint8),
        "is_bf16_supported": True,
        "get_device_capability": (9, 0),
    }
    patches = [mock.patch.object(torch.cuda, name, lambda *a, found=found, **k: found) for name, found in there.items()]
    patches += [mock.patch.object(torch.cuda, "device", lambda device: nullcontext())]
    patches += [mock.patch.object(threading.Thread, "run", run_on_card)]
    patches += [mock.patch.object(torch.Tensor, "_make_subclass", staticmethod(kept))]
    for patch in patches:
        patch.start()
    try:
        with card:
            yield card
    finally:
        for patch in patches:
            patch.stop()
