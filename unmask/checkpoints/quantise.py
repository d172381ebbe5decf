"""Quantised weights (8 or 4 bits by torchao, weight-only) and weights that are offloaded to the CPU.

Public idea: a ``Quantiser`` is a value ``(weight, stats) -> Tensor``, whose result a linear layer multiplies by as before;
``RoundToNearest(bits=8)`` needs no statistics. ``offload_hooks(linear)`` copies a layer's weight to the device of its input for the time
of one call. Quantisation is approximate, offloading is slower; both are off by default.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from unmask.checkpoints.stream import CheckpointError
from unmask.models.unfilled import unfilled

GROUP = 32  # columns that share a scale in 4 bits


@contextmanager
def quiet_torchao() -> Iterator[None]:
    """When torchao is imported it warns about CUDA libraries that a CPU build cannot load; inside, it does not."""
    loggers = [logging.getLogger(name) for name in ("torchao", "torch.utils._pytree")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


class Quantiser(Protocol):
    """How the matrices of a branch are quantised when they are loaded.

    ``__call__``: a float matrix [out, in] -> a tensor of the same shape and dtype to multiply by, with ``dequantize`` if its type is not
    Tensor; ``stats [in, in]``: calibration statistics of the layer's input (``calibration.calibrate``), None without · ``label``: name in
    tables of memory, such as "int8" · ``nbytes``: size in memory of a [rows, columns] matrix of ``dtype`` on ``device``.
    """

    @property
    def label(self) -> str: ...
    def __call__(self, weight: Tensor, stats: Tensor | None) -> Tensor: ...
    def nbytes(self, rows: int, columns: int, dtype: torch.dtype, device: str) -> int: ...


@dataclass(frozen=True, kw_only=True)
class RoundToNearest:
    """Round every weight to the nearest level (torchao). ``bits`` 8: one scale per row; 4: one scale per 32 columns of a row.

    On a GPU (bfloat16 only) two 4-bit values share a byte. On a CPU torchao 0.18 uses a byte for each: as large as 8 bits and less exact;
    it serves to measure the loss of quality. ValueError for other bits.
    """

    bits: int

    def __post_init__(self) -> None:
        if self.bits not in (4, 8):
            raise ValueError(f"rounding to {self.bits} bits is not supported; use 8 or 4")

    @property
    def label(self) -> str:
        return f"int{self.bits}"

    def __call__(self, weight: Tensor, stats: Tensor | None) -> Tensor:
        """The matrix quantised on its device; ``stats`` is not used. CheckpointError without torchao, or if the matrix does not fit."""
        if self.bits == 4 and weight.shape[1] % GROUP:
            raise CheckpointError(
                f"a matrix of {weight.shape[1]} columns cannot be quantised to int4, which needs a multiple of {GROUP}; use int8"
            )
        if self.bits == 4 and weight.is_cuda and weight.dtype != torch.bfloat16:
            raise CheckpointError(f"int4 on a GPU needs bfloat16, got {str(weight.dtype)[6:]}; add --dtype bfloat16")
        try:
            with quiet_torchao():
                return _by_torchao(weight, self.bits)
        except ImportError as error:
            raise CheckpointError(
                "int8 and int4 weights need the package torchao; pip install 'unmask[quant]'"
            ) from error

    def nbytes(self, rows: int, columns: int, dtype: torch.dtype, device: str) -> int:
        """int8: one byte per value and a float32 scale per row. int4 on a GPU: half a byte and a bfloat16 scale and zero point per group,
        padded to torchao's tiles; on a CPU: one byte, and per group a scale in ``dtype`` and a zero point of 1 byte.
        """
        if self.bits == 8:
            return rows * columns + 4 * rows
        if device == "cpu":
            return rows * columns + rows * columns // GROUP * (dtype.itemsize + 1)
        padded = math.ceil(columns / 1024) * 1024 * math.ceil(rows / 8) * 8
        return padded // 2 + padded // GROUP * 4


def restored(weight: Tensor) -> Tensor:
    """The float values of a weight: dequantised if it is quantised, unchanged otherwise."""
    return weight if type(weight) in (Tensor, nn.Parameter) else weight.dequantize()


def _by_torchao(weight: Tensor, bits: int) -> Tensor:
    from torchao.quantization import Int4WeightOnlyConfig, Int8WeightOnlyConfig, IntxWeightOnlyConfig, quantize_
    from torchao.quantization.granularity import PerGroup
    from torchao.quantization.quantize_.workflows import Int4PackingFormat

    with unfilled():
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    linear.weight = nn.Parameter(weight, requires_grad=False)
    if bits == 8:
        quantize_(linear, Int8WeightOnlyConfig())
    elif weight.is_cuda:
        quantize_(
            linear, Int4WeightOnlyConfig(group_size=GROUP, int4_packing_format=Int4PackingFormat.TILE_PACKED_TO_4D)
        )
    else:
        quantize_(linear, IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(GROUP)))  # type: ignore[missing-attribute]
    return linear.weight.detach()


def offload_hooks(linear: nn.Module) -> None:
    """Keep a layer's weight on another device: forward hooks copy it to the input's device before each call and drop the copy after it."""
    if linear._forward_pre_hooks:
        return  # the weight was read again; the hooks are there already
    kept: list[nn.Parameter] = []

    def copy_in(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        kept.append(module.weight)  # type: ignore[arg-type]
        module.weight = nn.Parameter(kept[-1].detach().to(given[0].device), requires_grad=False)

    def restore(module: nn.Module, given: tuple[Tensor, ...], result: Tensor) -> None:
        module.weight = kept.pop()

    linear.register_forward_pre_hook(copy_in)
    linear.register_forward_hook(restore, always_call=True)
