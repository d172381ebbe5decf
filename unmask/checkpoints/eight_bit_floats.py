"""Matrices stored as 8-bit floats with scales beside them, as Hugging Face's finegrained fp8 and compressed-tensors write them.

Public idea: ``with_scales(found) -> found`` makes one tensor of ``X.weight`` (F8_E4M3 or F8_E5M2) and ``X.weight_scale_inv`` or
``X.weight_scale``, which ``stream.read`` returns as their product. A scale is for the whole matrix, or for blocks of rows and columns whose
sides are powers of two: rows alone, 128 x 128 and others, told by the shapes. Scales of activations are left out: unmask computes in the
type of the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from unmask.checkpoints.packed import EIGHT_BIT_FLOATS, block_side
from unmask.checkpoints.stream import CheckpointError, Stored

_SCALES = ("_scale_inv", "_scale")
_STANDS_FOR = "BF16"


def with_scales(found: Mapping[str, Stored]) -> dict[str, Stored]:
    """The tensors by name, scaled matrices as one each. CheckpointError for a matrix without a scale, or one of another shape."""
    if not any(stored.dtype in EIGHT_BIT_FLOATS for stored in found.values()):
        return dict(found)
    out, used = dict[str, Stored](), set[str]()
    for name, stored in found.items():
        if stored.dtype not in EIGHT_BIT_FLOATS:
            out[name] = stored
            continue
        scale = next((found[name + end] for end in _SCALES if name + end in found), None)
        if scale is None:
            raise CheckpointError(
                f"{stored.path}: {name} is stored as {stored.dtype} without {name}{_SCALES[0]}; copy or download all files again"
            )
        used |= {name + end for end in _SCALES} | {f"{name.removesuffix('weight')}input_scale"}
        out[name] = _joined(stored, scale)
    return {name: stored for name, stored in out.items() if name not in used}


def rows_of(stored: Stored, first: int, rows: int, name: str) -> Stored:
    """Some rows of a scaled matrix. CheckpointError where they begin or end inside a block."""
    weight, scale = stored.pieces
    side = block_side(weight.shape[0], _shape(scale)[0])
    if side and (first % side or (rows % side and first + rows != weight.shape[0])):
        raise CheckpointError(
            f"{stored.path}: {stored.name} has a scale for {side} rows each, which does not fit rows {first} to {first + rows}; "
            "convert the model to bfloat16"
        )
    some = _rows(weight, first, rows)
    kept = _rows(scale, first // side, -(-rows // side)) if side else scale
    return replace(_joined(some, kept), name=name)


def _rows(stored: Stored, first: int, rows: int) -> Stored:
    each = stored.nbytes // stored.shape[0]
    shape = (rows, *stored.shape[1:])
    return replace(stored, shape=shape, start=stored.start + first * each, nbytes=rows * each)


def _shape(scale: Stored) -> tuple[int, int]:
    shape = (*scale.shape, 1, 1)
    return shape[0], shape[1]


def _joined(weight: Stored, scale: Stored) -> Stored:
    sides = [block_side(n, k) for n, k in zip(weight.shape, _shape(scale), strict=False)]
    if len(weight.shape) != 2 or len(scale.shape) > 2 or None in sides:
        raise CheckpointError(
            f"{weight.path}: {weight.name} of {weight.shape} does not fit its scale of {scale.shape}; use files of one model"
        )
    pieces = (weight, replace(scale, shape=_shape(scale)))
    return replace(weight, dtype=_STANDS_FOR, nbytes=weight.nbytes + scale.nbytes, bits=8, pieces=pieces)
