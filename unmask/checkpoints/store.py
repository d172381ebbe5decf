"""Save and load modules as safetensors files: sharded by size, written atomically, checked when read.

Public idea: ``save_module(module, folder, name)`` and ``load_module(module, folder, name)``. Files are ``name.safetensors`` or shards
``name-00001-of-00003.safetensors``; ``compare`` lists missing, unexpected and mismatched tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from unmask.checkpoints.checksums import forget_sums
from unmask.checkpoints.stream import FLOATS, JOURNAL, CheckpointError, Stored, files_of, read, tensors_of
from unmask.files import FileRefused
from unmask.writing import finish, refuse_full, write_together

M = TypeVar("M", bound=nn.Module)


def save_module(
    module: nn.Module, folder: Path, *, name: str = "model", dtype: torch.dtype | None = None, shard: int = 15 * 2**20
) -> list[Path]:
    """Write all parameters and buffers with ``save_tensors``."""
    return save_tensors(module.state_dict(), folder, name=name, dtype=dtype, shard=shard)


def save_tensors(
    tensors: Mapping[str, Tensor],
    folder: Path,
    *,
    name: str = "model",
    dtype: torch.dtype | None = None,
    shard: int = 15 * 2**20,
    metadata: Mapping[str, str] | None = None,
) -> list[Path]:
    """Write tensors in shards of at most ``shard`` bytes (a larger tensor gets its own file). Returns the paths in order.

    Files are replaced only after all are written, so neither a full disk nor a crash destroys the old weights or mixes old and new
    (``files.write_together``). ``metadata``: text for the header of every file.
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
    paths, journal = [folder / file for file in names], folder / (name + JOURNAL)
    try:
        if journal.exists():  # of a save that a crash has interrupted
            finish(journal)
        refuse_full(folder, sum(tensor.nbytes for part in parts for tensor in part.values()))
        forget_sums(folder)
        index = folder / f"{name}.safetensors.index.json"  # it would name deleted files
        obsolete = [*sorted(set(files_of(folder, name)) - set(paths)), *([index] if index.exists() else [])]
        writers = (_writer(part, metadata) for part in parts)
        write_together(dict(zip(paths, writers, strict=True)), journal, obsolete)
    except (OSError, SafetensorError, FileRefused) as error:
        state = "the new weights are complete" if journal.exists() else "nothing was changed"
        raise OSError(f"could not write {name} in {folder}: {error}; {state}") from error
    return paths


def _writer(part: dict[str, Tensor], metadata: Mapping[str, str] | None) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        save_file(part, str(path), **({"metadata": dict(metadata)} if metadata else {}))
        path.chmod(0o644)  # the library creates files that only their owner can read

    return write


def load_module(
    module: M, folder: Path, *, name: str = "model", skip: tuple[str, ...] = (), extra: tuple[str, ...] = ()
) -> M:
    """Load a module from the files of ``folder``, in the module's own dtype.

    ``skip``: prefixes of stored parameters to ignore, for parts that were not built · ``extra``: prefixes of parameters that the files may
    lack, and that stay as they are. CheckpointError if something does not fit; the module is
    then unchanged.
    """
    found = {k: stored for k, stored in tensors_of(folder, name).items() if not skip or not k.startswith(skip)}
    own = {k: v for k, v in module.state_dict().items() if k in found or not extra or not k.startswith(extra)}
    compare(own, found).refuse(folder, unexpected=True)
    module.load_state_dict({k: read(stored, dtype=own[k].dtype) for k, stored in found.items()}, strict=not extra)
    return module


def read_tensors(folder: Path, name: str) -> dict[str, Tensor]:
    """All tensors of ``name.safetensors`` or of its shards. CheckpointError if a file is missing or damaged."""
    return {key: read(stored) for key, stored in tensors_of(folder, name).items()}


@dataclass(frozen=True, kw_only=True)
class Mismatch:
    """Differences between files and model: missing names, unused names, and tensors of another shape or type."""

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: tuple[str, ...]

    def refuse(self, folder: Path, *, unexpected: bool) -> None:
        """Raise CheckpointError if there are any, with the first three; ``unexpected``: unused names count."""
        problems = [f"missing {k}" for k in self.missing]
        problems += [f"unexpected {k}" for k in self.unexpected if unexpected]
        problems += self.mismatched
        if problems:
            more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
            raise CheckpointError(
                f"the weights in {folder} do not fit the model: {', '.join(problems[:3])}{more}; "
                "is its config.json the one they were saved with?"
            )


def compare(
    own: Mapping[str, Tensor], found: Mapping[str, Stored], called: Mapping[str, str] | None = None
) -> Mismatch:
    """Compare safetensors headers with a module's state. ``called``: module name -> file name, where they differ."""
    called = called or {k: k for k in own}
    wrong = []
    for ours, theirs in called.items():
        if (stored := found.get(theirs)) is None:
            continue
        if stored.shape != own[ours].shape:
            wrong.append(f"{theirs} is {stored.shape}, wanted {tuple(own[ours].shape)}")
        elif own[ours].is_floating_point() and stored.dtype not in FLOATS:
            wrong.append(f"{theirs} is stored as {stored.dtype}, wanted one of {', '.join(FLOATS)}")
    return Mismatch(
        missing=tuple(theirs for theirs in called.values() if theirs not in found),
        unexpected=tuple(sorted(set(found) - set(called.values()))),
        mismatched=tuple(wrong),
    )
