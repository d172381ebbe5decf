"""Measured arrays of which a file keeps every n-th number, so that a large one is compared all over in a small file.

Public idea: ``Thinning.read(path)`` says which arrays a file has thinned, ``Thinning.of`` and ``thin`` make such a file. The metadata of a
safetensors file has them in JSON under ``thinned``: name -> ``{"every": n, "shape": [..]}``. Steps are primes that no side of an array is a
multiple of, so all rows and all columns take part.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field, TypeAdapter, ValidationError
from safetensors import safe_open
from torch import Tensor

from unmask.checkpoints.schema import Fields
from unmask.checkpoints.store import CheckpointError

KEY = "thinned"
_PRIMES = (29, 23, 19, 17, 13, 11, 7, 5, 3)


class Every(Fields):
    """An array of ``shape``, of which every ``every``-th number in row-major order is kept, from the first on."""

    every: int = Field(ge=1)
    shape: list[int]


_TABLE = TypeAdapter(dict[str, Every])


@dataclass(frozen=True, kw_only=True)
class Thinning:
    """By name, the arrays of a file that are thinned."""

    arrays: Mapping[str, Every]

    @classmethod
    def read(cls, path: Path) -> Thinning:
        """That of a safetensors file. CheckpointError if its metadata is not of this form."""
        with safe_open(str(path), "pt") as opened:
            said = (opened.metadata() or {}).get(KEY, "{}")
        try:
            return cls(arrays=_TABLE.validate_json(said))
        except ValidationError as error:
            raise CheckpointError(f"{path}: {KEY} in the metadata is not valid; make the file anew") from error

    @classmethod
    def of(cls, arrays: Mapping[str, Tensor], least: int) -> Thinning:
        """A step for each array of ``arrays`` that keeps ``least`` numbers or more; smaller arrays stay whole."""
        found = dict[str, Every]()
        for name, array in arrays.items():
            fitting = (p for p in _PRIMES if array.numel() // p >= least and all(side % p for side in array.shape))
            if (step := next(fitting, None)) is not None:
                found[name] = Every(every=step, shape=list(array.shape))
        return cls(arrays=found)

    def thin(self, name: str, array: Tensor) -> Tensor:
        """What the file keeps of an array. CheckpointError if its shape is not the measured one."""
        if (one := self.arrays.get(name)) is None:
            return array
        if list(array.shape) != one.shape:
            raise CheckpointError(
                f"{name} is {tuple(array.shape)}, and measured {tuple(one.shape)}; do they belong together?"
            )
        return array.flatten()[:: one.every].contiguous()

    def metadata(self) -> dict[str, str]:
        """For the file."""
        return {KEY: json.dumps({name: one.model_dump() for name, one in sorted(self.arrays.items())})}
