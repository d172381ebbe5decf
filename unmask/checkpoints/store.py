"""Modules to and from safetensors files: sharded under a size limit, written atomically, checked when read.

Public idea: ``save_module(module, folder, name)`` and ``load_module(module, folder, name)``. Files are ``name.safetensors`` or, where
sharded, ``name-00001-of-00003.safetensors``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


class CheckpointError(ValueError):
    """A weight file is missing, damaged, or does not fit the model."""


def save_module(
    module: nn.Module, folder: Path, *, name: str = "model", dtype: torch.dtype | None = None, shard: int = 15 * 2**20
) -> list[Path]:
    """Write all parameters (and buffers): ``save_tensors`` of the module's own."""
    return save_tensors(module.state_dict(), folder, name=name, dtype=dtype, shard=shard)


def save_tensors(
    tensors: Mapping[str, Tensor],
    folder: Path,
    *,
    name: str = "model",
    dtype: torch.dtype | None = None,
    shard: int = 15 * 2**20,
) -> list[Path]:
    """Write tensors in shards of at most ``shard`` bytes (a larger tensor has a file of its own); the files, in order.

    No file takes its place before all are written: a full disk costs neither the weights that were there nor mixes the two.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parts: list[dict[str, Tensor]] = [{}]
    size = 0
    for key, tensor in tensors.items():
        tensor = tensor.detach().to(dtype or tensor.dtype).contiguous().cpu()
        if size and size + tensor.nbytes > shard:
            parts.append({})
            size = 0
        parts[-1][key] = tensor
        size += tensor.nbytes
    names = (
        [f"{name}.safetensors"]
        if len(parts) == 1
        else [f"{name}-{i + 1:05d}-of-{len(parts):05d}.safetensors" for i in range(len(parts))]
    )
    paths = [folder / file for file in names]
    beside = [path.with_name(path.name + ".part") for path in paths]
    try:
        for part, path in zip(parts, beside, strict=True):
            save_file(part, str(path))
            path.chmod(0o644)  # the library makes files that nobody else may read
    except (OSError, SafetensorError) as error:
        for path in beside:
            path.unlink(missing_ok=True)
        raise OSError(f"could not write {name} in {folder}: {error}; nothing was changed") from error
    for part, path in zip(beside, paths, strict=True):
        os.replace(part, path)
    for old in set(_files(folder, name)) - set(paths):
        old.unlink()
    return paths


def _files(folder: Path, name: str) -> list[Path]:
    return sorted([*folder.glob(f"{name}.safetensors"), *folder.glob(f"{name}-*-of-*.safetensors")])


def load_module(module: M, folder: Path, *, name: str = "model", skip: tuple[str, ...] = ()) -> M:
    """Fill a module from the files of ``folder``, in the module's own dtype.

    CheckpointError names what is wrong, and nothing is half loaded.

    ``skip``: prefixes of parameters that may be absent from the module (parts that were not built).
    """
    found = {key: tensor for key, tensor in read_tensors(folder, name).items() if not skip or not key.startswith(skip)}
    _check(module, found, folder)
    module.load_state_dict(found)
    return module


def read_tensors(folder: Path, name: str) -> dict[str, Tensor]:
    """Every tensor of ``name.safetensors`` or of its shards. CheckpointError where a file is missing or damaged."""
    files = _files(folder, name)
    if not files:
        raise CheckpointError(f"no {name}*.safetensors in {folder}; is this a model folder?")
    if "-of-" in files[0].name:
        wanted = int(files[0].name.rsplit("-of-", 1)[1].split(".")[0])
        if len(files) != wanted:
            raise CheckpointError(f"{folder} holds {len(files)} of {wanted} shards of {name}; copy the missing ones")
    found: dict[str, Tensor] = {}
    for path in files:
        try:
            with safe_open(str(path), "pt") as f:
                found |= {key: f.get_tensor(key) for key in f.keys()}
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} is damaged or half downloaded: {error}") from error
    return found


def _check(module: nn.Module, found: dict[str, Tensor], folder: Path) -> None:
    own = module.state_dict()
    problems = [f"missing {k}" for k in own if k not in found]
    problems += [f"unexpected {k}" for k in found if k not in own]
    problems += [
        f"{k} is {tuple(found[k].shape)}, wanted {tuple(own[k].shape)}"
        for k in own
        if k in found and found[k].shape != own[k].shape
    ]
    problems += [
        f"{k} holds values that are not finite"
        for k, v in found.items()
        if v.is_floating_point() and not v.isfinite().all()
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise CheckpointError(
            f"the weights in {folder} do not fit the model: {', '.join(problems[:3])}{more}; "
            "is its config.json the one they were saved with?"
        )
