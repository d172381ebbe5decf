"""Weights in 8 or 4 bits (torchao, weight-only) and weights that are offloaded to the CPU.

Public idea: ``quantised(weight, 8) -> Tensor``, which a linear layer multiplies by as before; ``offload_hooks(linear)`` copies a layer's
weight to the device of its input for the time of one call. Quantisation is approximate, offloading is slower; both are off by default.
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor, nn

from unmask.checkpoints.stream import CheckpointError

GROUP = 32  # columns that share a scale in 4 bits


def quantised(weight: Tensor, bits: int) -> Tensor:
    """A float matrix [out, in] quantised to ``bits`` on its device (8: one scale per row; 4: one scale per 32 columns of a row).

    On a GPU (bfloat16 only) two 4-bit values share a byte. On a CPU torchao 0.18 uses a byte for each: as large as 8 bits and less exact;
    it serves to measure the loss of quality. CheckpointError without torchao, or if the matrix does not fit.
    """
    if bits == 4 and weight.shape[1] % GROUP:
        raise CheckpointError(
            f"a matrix of {weight.shape[1]} columns cannot be quantised to int4, which needs a multiple of {GROUP}; use int8"
        )
    if bits == 4 and weight.is_cuda and weight.dtype != torch.bfloat16:
        raise CheckpointError(f"int4 on a GPU needs bfloat16, got {str(weight.dtype)[6:]}; add --dtype bfloat16")
    loggers = [logging.getLogger(name) for name in ("torchao", "torch.utils._pytree")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)  # it warns about CUDA libraries that a CPU build cannot load
    try:
        return _by_torchao(weight, bits)
    except ImportError as error:
        raise CheckpointError("int8 and int4 weights need the package torchao; pip install 'unmask[quant]'") from error
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def restored(weight: Tensor) -> Tensor:
    """The float values of a weight: dequantised if it is quantised, unchanged otherwise."""
    return weight.dequantize() if type(weight).__module__.startswith("torchao") else weight


def _by_torchao(weight: Tensor, bits: int) -> Tensor:
    from torchao.quantization import Int4WeightOnlyConfig, Int8WeightOnlyConfig, IntxWeightOnlyConfig, quantize_
    from torchao.quantization.granularity import PerGroup
    from torchao.quantization.quantize_.workflows import Int4PackingFormat

    with torch.device("meta"):
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
