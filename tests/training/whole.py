"""The newest state of a run as full tensors, read without the tested code."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor


def state_of(folder: Path) -> dict[str, Tensor]:
    """Of state.safetensors, or of the folder ``state-STEP`` with the largest step, every element of which must be in one of its files."""
    folders = sorted(folder.glob("state-*[0-9]/"), key=lambda path: int(path.name.partition("-")[2]))
    if not folders:
        return load_file(folder / "state.safetensors")
    found: dict[str, list[tuple[list[int], Tensor]]] = {}
    for path in folders[-1].glob("*.safetensors"):
        with safe_open(str(path), "pt") as f:
            places = json.loads(f.metadata()["DCP_SHARDING_INFO"])
            for name in f.keys():
                found.setdefault(name, []).append((places[name]["saved_offsets"], f.get_tensor(name)))
    return {name: _joined(pieces) for name, pieces in found.items()}


def _joined(pieces: list[tuple[list[int], Tensor]]) -> Tensor:
    shape = [max(at[d] + piece.shape[d] for at, piece in pieces) for d in range(pieces[0][1].ndim)]
    assert sum(piece.numel() for _, piece in pieces) == torch.Size(shape).numel()
    whole = torch.empty(shape, dtype=pieces[0][1].dtype)
    for at, piece in pieces:
        whole[tuple(slice(a, a + n) for a, n in zip(at, piece.shape, strict=True))] = piece
    return whole
