"""Batches compared to the bit. Public idea: ``same(got, wanted)``."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from unmask.sequence import Batch


def same(got: Any, wanted: Any) -> None:
    """Equal tensors (values, type, shape) in batches, dicts, tuples and lists, and everything else equal."""
    assert type(got) is type(wanted)
    if isinstance(wanted, Tensor):
        assert got.dtype == wanted.dtype and torch.equal(got, wanted)
    elif isinstance(wanted, Batch):
        for field in dataclasses.fields(wanted):
            same(getattr(got, field.name), getattr(wanted, field.name))
    elif isinstance(wanted, dict):
        assert got.keys() == wanted.keys()
        for name in wanted:
            same(got[name], wanted[name])
    elif isinstance(wanted, tuple | list):
        assert len(got) == len(wanted)
        for a, b in zip(got, wanted, strict=True):
            same(a, b)
    else:
        assert got == wanted
