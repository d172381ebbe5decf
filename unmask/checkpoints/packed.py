"""Matrices in 2 to 8 bits as they lie in safetensors files, and the changes of basis in which they were rounded.

Public idea: ``Quantised`` is a matrix of indices with scales; ``values()`` is the float matrix, ``tensors(name)`` what a file holds and
``joined(entries, metadata)`` the reverse for headers. ``stream.read`` returns the float matrix, so every layout may hold such matrices.

A file holds, in place of the tensor NAME: ``NAME.ints`` [out, ceil(in bits / 8)] uint8, bits packed along each row, highest bit first ·
``NAME.scale``, ``NAME.zero`` [out, groups] · where columns are not grouped in order, ``NAME.group_of`` [in] · and of the change of basis
``NAME.columns`` [in], ``NAME.hadamard`` [1], ``NAME.rotations`` [k, n, n] and ``NAME.orders`` [k - 1, in]. The metadata of the header
has, under ``unmask.quantised``, bits, dtype and shape of each NAME.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

KEY = "unmask.quantised"  # in the metadata of a file
EIGHT_BIT_FLOATS = {"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2}  # by their names in a header
REQUIRED, OPTIONAL = ("ints", "scale", "zero"), ("group_of", "columns", "hadamard", "rotations", "orders")


def block_side(numbers: int, scales: int) -> int | None:
    """How many of ``numbers`` in a row or column share one of its ``scales``: a power of two, 0 for all of them. None: none fits."""
    if scales == 1:
        return 0
    sides = (2**n for n in range(numbers.bit_length()))
    return next((side for side in sides if -(-numbers // side) == scales), None)


def scaled(bytes_OI: Tensor, dtype: str, scale: Tensor) -> Tensor:
    """Rows of a matrix of 8-bit floats times the scales of its blocks, float32 [O, I]. ``bytes_OI``: as they lie in the file, uint8."""
    whole = scale.float()
    for axis, numbers in enumerate(bytes_OI.shape):
        if side := block_side(numbers, whole.shape[axis]):
            whole = whole.repeat_interleave(side, axis).narrow(axis, 0, numbers)
    return bytes_OI.view(EIGHT_BIT_FLOATS[dtype]).float() * whole


class Basis(Protocol):
    """A change of basis of a layer's input: with x' = ``inputs(x)`` and W' = ``weights(W)``, W' x' = W x. ``restored`` undoes ``weights``.

    ``tensors``: what a file holds of it.
    """

    def inputs(self, x: Tensor) -> Tensor: ...
    def weights(self, weight: Tensor) -> Tensor: ...
    def restored(self, weight: Tensor) -> Tensor: ...
    def tensors(self) -> dict[str, Tensor]: ...


@dataclass(frozen=True, kw_only=True)
class Unchanged:
    """The basis of the layer itself."""

    def inputs(self, x: Tensor) -> Tensor:
        return x

    def weights(self, weight: Tensor) -> Tensor:
        return weight

    def restored(self, weight: Tensor) -> Tensor:
        return weight

    def tensors(self) -> dict[str, Tensor]:
        return {}


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Input channel j divided by ``scale [in]`` (SmoothQuant, AWQ)."""

    scale: Tensor

    def inputs(self, x: Tensor) -> Tensor:
        return x / self.scale

    def weights(self, weight: Tensor) -> Tensor:
        return weight * self.scale

    def restored(self, weight: Tensor) -> Tensor:
        return weight / self.scale

    def tensors(self) -> dict[str, Tensor]:
        return {"columns": self.scale.float()}


@dataclass(frozen=True, kw_only=True)
class Hadamard:
    """Blocks of ``size`` channels, a power of two, times Sylvester's matrix / sqrt(size) (QuaRot). It is its own inverse."""

    size: int

    def __post_init__(self) -> None:
        if self.size < 1 or self.size & (self.size - 1):
            raise ValueError(f"a Hadamard matrix of {self.size} rows is not built here; use a power of two")

    def inputs(self, x: Tensor) -> Tensor:
        rest, whole = x.shape, x.reshape(-1, self.size)
        half = 1
        while half < self.size:
            pair = whole.view(-1, self.size // (2 * half), 2, half)
            whole = torch.stack([pair[:, :, 0] + pair[:, :, 1], pair[:, :, 0] - pair[:, :, 1]], 2).view(-1, self.size)
            half *= 2
        return (whole / self.size**0.5).view(rest)

    def weights(self, weight: Tensor) -> Tensor:
        return self.inputs(weight)

    def restored(self, weight: Tensor) -> Tensor:
        return self.inputs(weight)

    def tensors(self) -> dict[str, Tensor]:
        return {"hadamard": torch.tensor([self.size], dtype=torch.int32)}


@dataclass(frozen=True, kw_only=True)
class Rotations:
    """``rotations [k, n, n]`` of all blocks of n channels, with a reordering ``orders [k - 1, in]`` before each but the first (DuQuant)."""

    rotations: Tensor
    orders: Tensor

    def inputs(self, x: Tensor) -> Tensor:
        shape, size = x.shape, self.rotations.shape[-1]
        for i, rotation in enumerate(self.rotations):
            x = x if not i else x[..., self.orders[i - 1].long()]
            x = (x.reshape(-1, size) @ rotation).view(shape)
        return x

    def weights(self, weight: Tensor) -> Tensor:
        return self.inputs(weight)

    def restored(self, weight: Tensor) -> Tensor:
        shape, size = weight.shape, self.rotations.shape[-1]
        for i in reversed(range(len(self.rotations))):
            weight = (weight.reshape(-1, size) @ self.rotations[i].T).view(shape)
            weight = weight if not i else weight[..., self.orders[i - 1].long().argsort()]
        return weight

    def tensors(self) -> dict[str, Tensor]:
        return {"rotations": self.rotations.float(), "orders": self.orders.int()}


@dataclass(frozen=True, kw_only=True)
class Quantised:
    """``ints [out, in]`` uint8 · ``scale``, ``zero [out, groups]`` float32 · ``group_of [in]``: the group of each column · ``bits``: of an
    index · ``basis``: in which the matrix was rounded.
    """

    ints: Tensor
    scale: Tensor
    zero: Tensor
    group_of: Tensor
    bits: int
    basis: Basis = Unchanged()

    def rounded(self) -> Tensor:
        """The float matrix in its basis, [out, in] float32."""
        at = self.group_of.long()
        return self.scale[:, at] * (self.ints - self.zero[:, at])

    def values(self) -> Tensor:
        """The float matrix that stands for the original one, [out, in] float32."""
        return self.basis.restored(self.rounded())

    def tensors(self, name: str) -> dict[str, Tensor]:
        """What a file holds in place of the tensor ``name``."""
        columns, groups = self.ints.shape[1], self.scale.shape[1]
        held = {"ints": packed(self.ints, self.bits), "scale": self.scale.float(), "zero": self.zero.to(torch.uint8)}
        if not torch.equal(self.group_of.long().cpu(), in_order(columns, groups)):
            held["group_of"] = self.group_of.int()
        return {f"{name}.{part}": t.contiguous().cpu() for part, t in (held | self.basis.tensors()).items()}


def in_order(columns: int, groups: int) -> Tensor:
    """The group of each column where groups are equally long and follow each other, [columns]."""
    return torch.arange(columns) // (columns // groups)


def packed(ints: Tensor, bits: int) -> Tensor:
    """[out, in] indices -> [out, ceil(in bits / 8)] uint8."""
    out = [
        np.packbits(_bits(row, bits), axis=1) for row in np.array_split(ints.cpu().numpy().astype(np.uint8), _PIECES)
    ]
    return torch.from_numpy(np.concatenate(out))


_PIECES = 16  # that a matrix is packed in: every bit is a byte meanwhile


def _bits(ints: np.ndarray, bits: int) -> np.ndarray:
    return np.unpackbits(ints[:, :, None], axis=2)[:, :, 8 - bits :].reshape(len(ints), ints.shape[1] * bits)


def unpacked(bytes_: Tensor, bits: int, columns: int) -> Tensor:
    """The reverse of ``packed``, [out, columns] uint8."""
    found = []
    for piece in np.array_split(bytes_.cpu().numpy(), _PIECES):
        every = np.unpackbits(piece, axis=1)[:, : columns * bits].reshape(len(piece), columns, bits)
        wide = np.pad(every, ((0, 0), (0, 0), (8 - bits, 0)))
        found.append(np.packbits(wide, axis=2)[:, :, 0])
    return torch.from_numpy(np.concatenate(found))


def metadata(quantised: Mapping[str, tuple[int, str, tuple[int, ...]]]) -> dict[str, str]:
    """For the header of a file: name -> (bits, dtype as in headers, shape)."""
    return {KEY: json.dumps({name: list(value) for name, value in quantised.items()})} if quantised else {}


def quantised_in(found: object) -> dict[str, tuple[int, str, tuple[int, int]]]:
    """The reverse of ``metadata``. ValueError for anything else."""
    text = found.get(KEY) if isinstance(found, dict) else None
    if text is None:
        return {}
    try:
        raw = json.loads(text)
        entries = {
            name: (int(bits), str(dtype), (int(shape[0]), int(shape[1]))) for name, (bits, dtype, shape) in raw.items()
        }
    except (TypeError, ValueError, AttributeError, IndexError, RecursionError) as error:
        raise ValueError(f"its metadata {KEY} cannot be read") from error
    if wrong := [name for name, (bits, _, shape) in entries.items() if not 1 < bits < 9 or min(shape) < 1]:
        raise ValueError(f"its metadata {KEY} give {wrong[0]} in {entries[wrong[0]][0]} bits, wanted 2 to 8")
    return entries


def restored(parts: Mapping[str, Tensor], bits: int, columns: int) -> Tensor:
    """The float matrix of the tensors of a file, [out, columns] float32. ValueError where they do not fit together."""
    scale, zero = parts["scale"].float(), parts["zero"].float()
    groups = scale.shape[-1]
    group_of = parts["group_of"].long() if "group_of" in parts else in_order(columns, groups)
    if (
        zero.shape != scale.shape
        or group_of.shape != (columns,)
        or not 0 <= int(group_of.min()) <= int(group_of.max()) < groups
    ):
        raise ValueError(
            f"scales {tuple(scale.shape)} do not fit zero points {tuple(zero.shape)} and {columns} columns"
        )
    ints = unpacked(parts["ints"], bits, columns)
    basis = _basis(parts, columns)
    return Quantised(ints=ints, scale=scale, zero=zero, group_of=group_of, bits=bits, basis=basis).values()


def _basis(parts: Mapping[str, Tensor], columns: int) -> Basis:
    if "columns" in parts:
        if parts["columns"].shape != (columns,):
            raise ValueError(f"{tuple(parts['columns'].shape)} column scales for {columns} columns")
        return Columns(scale=parts["columns"].float())
    if "hadamard" in parts:
        basis: Basis = Hadamard(size=(size := int(parts["hadamard"][0])))
    elif "rotations" in parts and "orders" in parts:
        rotations, orders = parts["rotations"].float(), parts["orders"].long()
        size = rotations.shape[-1]
        basis = Rotations(rotations=rotations, orders=orders)
        if rotations.shape != (len(orders) + 1, size, size) or orders.shape[1:] != (columns,):
            raise ValueError(f"rotations {tuple(rotations.shape)} do not fit orders {tuple(orders.shape)}")
        if not torch.equal(orders.sort(1).values, torch.arange(columns).expand_as(orders)):
            raise ValueError("an order of the columns repeats some")
    else:
        return Unchanged()
    if columns % size:
        raise ValueError(f"blocks of {size} do not divide {columns} columns")
    return basis
