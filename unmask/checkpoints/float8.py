"""Weights in 8-bit floating point, multiplied by inputs in the same type; a Hopper GPU does that at twice the rate of bfloat16.

Public idea: ``Float8()`` is a quantiser (``quantise.Quantiser``): each row of a weight is e4m3 numbers and one scale, and each row of an
input is rounded in the same way when it is multiplied (FP8 formats: Micikevicius et al. 2022, arXiv 2209.05433). Approximate, off by
default. A CPU multiplies the rounded numbers in float32: it serves to measure the loss of quality.

Shapes: N rows of an input · I input width · O output width.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from unmask.checkpoints.stream import CheckpointError
from unmask.derived import derived

LARGEST = 448.0  # of e4m3
_TILE = 16  # both sides of a weight must be multiples of this
_LEAST = 1e-12  # scale of a row of zeros


@dataclass(frozen=True, kw_only=True)
class Float8:
    """Round weights and inputs to e4m3, one scale for each row of either."""

    @property
    def label(self) -> str:
        return "float8"

    def __call__(self, weight: Tensor, stats: Tensor | None) -> Tensor:
        """The matrix quantised on its device; ``stats`` is not used. CheckpointError for a device, type or shape that does not fit."""
        _check(weight)
        numbers, scale = in_float8(weight)
        return Float8Weight(numbers, scale, weight.dtype)

    def nbytes(self, rows: int, columns: int, dtype: torch.dtype, device: str) -> int:
        """One byte per value and a float32 scale per row."""
        return rows * columns + 4 * rows


def _check(weight: Tensor) -> None:
    rows, columns = weight.shape
    if rows % _TILE or columns % _TILE:
        raise CheckpointError(
            f"a matrix of {rows} x {columns} cannot be quantised to float8, which needs multiples of {_TILE}; use int8"
        )
    if weight.device.type not in ("cpu", "cuda"):
        raise CheckpointError(f"float8 weights need a CUDA GPU or a CPU, got {weight.device.type}; use int8")
    if not weight.is_cuda:
        return
    if (found := torch.cuda.get_device_capability(weight.device)) < (9, 0):
        name = torch.cuda.get_device_name(weight.device)
        raise CheckpointError(
            f"float8 weights need a GPU of compute capability 9.0 (Hopper) or later; {name} has {found[0]}.{found[1]}: use int8"
        )
    if weight.dtype != torch.bfloat16:
        raise CheckpointError(f"float8 on a GPU needs bfloat16, got {str(weight.dtype)[6:]}; add --dtype bfloat16")


def in_float8(x_NI: Tensor) -> tuple[Tensor, Tensor]:
    """Rows as e4m3 [N, I] and the float32 scale [N, 1] that each is divided by."""
    largest_N1 = torch.linalg.vector_norm(x_NI, torch.inf, dim=1, keepdim=True, dtype=torch.float32)
    scale_N1 = largest_N1.clamp_(min=_LEAST * LARGEST).div_(LARGEST)
    return (x_NI / scale_N1).to(
        torch.float8_e4m3fn
    ), scale_N1  # at most LARGEST up to rounding, which e4m3 rounds down to it


@functools.cache
def _compiled() -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    return torch.compile(in_float8, dynamic=True)


class Float8Weight(Tensor):
    """A matrix ``numbers [O, I]`` in e4m3 times ``scale [O, 1]`` in float32. ``dtype``: as it looks from outside, and of ``dequantize`` ·
    ``fuses``: whether ``torch.compile`` makes one kernel of the rounding of inputs (``models.blocks.fuse``).
    """

    fuses = False
    numbers: Tensor
    scale: Tensor

    @staticmethod
    def __new__(cls, numbers: Tensor, scale: Tensor, dtype: torch.dtype) -> Float8Weight:
        return torch.Tensor._make_wrapper_subclass(cls, numbers.shape, dtype=dtype, device=numbers.device)  # type: ignore[attr-defined]

    def __init__(self, numbers: Tensor, scale: Tensor, dtype: torch.dtype) -> None:
        self.numbers, self.scale = numbers, scale

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Float8Weight(shape={tuple(self.shape)}, dtype={self.dtype}, device={self.device})"

    def __tensor_flatten__(self) -> tuple[list[str], torch.dtype]:
        return ["numbers", "scale"], self.dtype

    @classmethod
    def __tensor_unflatten__(
        cls, inner: Mapping[str, Tensor], dtype: torch.dtype, size: Any, stride: Any
    ) -> Float8Weight:
        return cls(inner["numbers"], inner["scale"], dtype)

    def dequantize(self) -> Tensor:  # type: ignore[override]
        return (self.numbers.float() * self.scale).to(self.dtype)

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is F.linear:
            return product(*args, **(kwargs or {}))
        return super().__torch_function__(func, types, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[bad-override]
        """Copies and moves to another device, which need no numbers; NotImplementedError for everything else."""
        given = dict(kwargs or {})
        if func in (torch.ops.aten.detach.default, torch.ops.aten.alias.default, torch.ops.aten.clone.default):
            own = args[0]
            return Float8Weight(func(own.numbers), func(own.scale), own.dtype)
        if func is torch.ops.aten._to_copy.default:
            own, device = args[0], given.get("device")
            return Float8Weight(
                own.numbers.to(device or own.device),
                own.scale.to(device or own.device),
                given.get("dtype") or own.dtype,
            )
        raise NotImplementedError(f"{func} of a weight in float8; use its dequantize()")


def product(input: Tensor, weight: Float8Weight, bias: Tensor | None = None) -> Tensor:
    """``F.linear`` [.., O] of an input [.., I], which is rounded to e4m3. Layers that read the same tensor share its rounding."""
    rounded = _compiled() if weight.fuses else in_float8
    numbers_NI, scale_N1 = derived("float8", lambda: rounded(input.flatten(0, -2)), input)
    if input.is_cuda:
        found_NO = torch._scaled_mm(
            numbers_NI, weight.numbers.t(), scale_N1, weight.scale.t(), out_dtype=torch.bfloat16, use_fast_accum=True
        )
    else:
        found_NO = (numbers_NI.float() @ weight.numbers.float().t()).mul_(scale_N1).mul_(weight.scale.t())
    found = found_NO.to(input.dtype).view(*input.shape[:-1], -1)
    return found if bias is None else found + bias
