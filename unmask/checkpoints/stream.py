"""Read safetensors files tensor by tensor, directly to the target device.

Public idea: ``tensors_of(folder, "model") -> {name: Stored}`` reads headers only; ``read(stored, rows=…, dtype=…, device=…)`` reads one
tensor or its first rows. Files are read and not memory-mapped, because touched pages of a map count as used memory; a read needs one
buffer of 4 MiB beyond its result.
"""

from __future__ import annotations

import json
import math
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from unmask.checkpoints import packed
from unmask.files import FileRefused, read_json, refuse_special
from unmask.writing import pending

OTHER_WEIGHTS = ("*.gguf", "*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")  # a pickle can run code, so it is never read
PICKLES = (".bin", ".pt", ".pth", ".ckpt")  # those that ``unmask convert`` reads, on request
MOST_HEADER = 8 * 2**20  # bytes of the header of one file: 80,000 tensors; the largest released one has 0.2 MB
JOURNAL = ".pending.json"  # ends the name of the journal of a save
MOST_INDEX = 16 * 2**20  # bytes of an index
PIECE = 4 * 2**20  # bytes per read; small, because the allocator may leave gaps of this size between tensors
_FEED_FORWARD = re.compile(r"^(blocks\.\d+\.(?:und|gen))\.((?:gate|up|down)\.weight)$")
FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
DTYPES = {str(kind).removeprefix("torch."): kind for kind in FLOATS.values()}  # as users name them
_OTHERS = {"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool}  # fmt: skip


class CheckpointError(ValueError):
    """A weight file is missing, damaged, or does not fit the model."""


@dataclass(frozen=True, kw_only=True)
class Stored:
    """A stored tensor: file, name, dtype as in the file (F32, BF16 …), shape, and its offset and size in bytes.

    ``bits``, ``pieces``: of a packed matrix, whose dtype and shape are those that it stands for; 0 and () otherwise.
    """

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    nbytes: int
    bits: int = 0
    pieces: tuple[Stored, ...] = ()

    @property
    def numbers(self) -> int:
        return math.prod(self.shape)

    @property
    def label(self) -> str:
        """The dtype, and the bits of a packed matrix."""
        return f"{self.dtype} in {self.bits} bits" if self.bits else self.dtype


def read_header(path: Path) -> list[Stored]:
    """The tensors of a safetensors file, from its header. The library validates the header: sizes, offsets, file length."""
    try:
        refuse_special(path)
        with path.open("rb") as f:
            length = struct.unpack("<Q", f.read(8).ljust(8, b"\0"))[0]
            if length > MOST_HEADER:
                raise FileRefused(f"its header would have {length:,} bytes, the limit is {MOST_HEADER:,}")
            with safe_open(str(path), "numpy"):
                entries = json.loads(f.read(length))
        quantised = packed.quantised_in(entries.pop("__metadata__", None))
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"{path} is damaged, incomplete or not a safetensors file ({reason}); copy or download it again"
        ) from error
    found = [
        Stored(
            path=path,
            name=name,
            dtype=entry["dtype"],
            shape=tuple(entry["shape"]),
            start=8 + length + entry["data_offsets"][0],
            nbytes=entry["data_offsets"][1] - entry["data_offsets"][0],
        )
        for name, entry in entries.items()
    ]
    return _together(found, quantised, path) if quantised else found


def _together(found: list[Stored], quantised: dict[str, tuple[int, str, tuple[int, int]]], path: Path) -> list[Stored]:
    """The tensors of a file, the pieces of every packed matrix as one. CheckpointError for pieces that are missing or of a wrong size."""
    of: dict[str, dict[str, Stored]] = {name: {} for name in quantised}
    whole = []
    for stored in found:
        name, _, part = stored.name.rpartition(".")
        if name in of and part in (*packed.REQUIRED, *packed.OPTIONAL):
            of[name][part] = stored
        else:
            whole.append(stored)
    for name, (bits, dtype, (rows, columns)) in quantised.items():
        ints, scale, zero = (of[name].get(part) for part in packed.REQUIRED)
        wanted = (rows, -(-columns * bits // 8))
        fits = (
            ints and scale and zero and ints.shape == wanted and scale.shape == zero.shape == (rows, *scale.shape[1:2])
        )
        if not fits or dtype not in FLOATS or not scale or not 0 < scale.numbers or columns % scale.shape[1]:
            raise CheckpointError(
                f"{path} does not hold the {bits}-bit matrix {name} of {rows} x {columns} numbers that its metadata name; "
                "copy or download it again"
            )
        pieces = tuple(of[name].values())
        size = sum(piece.nbytes for piece in pieces)
        whole.append(
            Stored(
                path=path,
                name=name,
                dtype=dtype,
                shape=(rows, columns),
                start=pieces[0].start,
                nbytes=size,
                bits=bits,
                pieces=pieces,
            )
        )
    return whole


def files_of(folder: Path, name: str) -> list[Path]:
    """``name.safetensors`` and the shards of ``name`` that exist."""
    return sorted([*folder.glob(f"{name}.safetensors"), *folder.glob(f"{name}-*-of-*.safetensors")])


def other_weights(folder: Path) -> str:
    """What a folder holds instead of safetensors, as the end of an error; "" if there is nothing of the kind."""
    found = sorted(p.name for kind in OTHER_WEIGHTS for p in folder.glob(kind))
    return (
        f"it holds {found[0]}, but unmask reads safetensors only; {how_to_convert(folder, found[0])}" if found else ""
    )


def how_to_convert(place: Path, name: str) -> str:
    """The end of an error about weights that are not safetensors. ``place``: the folder or file · ``name``: of the file."""
    if Path(name).suffix not in PICKLES:
        return "convert the weights to safetensors"
    return f"convert the weights to safetensors, for example with `unmask convert {place} NEW --to safetensors`"


def tensors_of(folder: Path, name: str) -> dict[str, Stored]:
    """All tensors of ``name.safetensors``, of the files in its index, or of its shards. CheckpointError if a file is missing."""
    index, journal = folder / f"{name}.safetensors.index.json", folder / (name + JOURNAL)
    try:
        files = list(pending(journal).values())  # a save that a crash has interrupted
    except FileRefused as error:
        raise CheckpointError(f"{journal} is damaged ({error}); remove it to use the other files") from error
    if files:
        return {_current(tensor.name): tensor for file in files for tensor in read_header(file)}
    if index.exists():
        return _indexed(folder, index)
    files = files_of(folder, name)
    if not files:
        raise CheckpointError(
            f"no {name}*.safetensors in {folder}; {other_weights(folder) or 'is this a model folder?'}"
        )
    _refuse_gaps(folder, name, files)
    found: dict[str, Stored] = {}
    for file in files:
        for tensor in read_header(file):
            if (twice := found.setdefault(_current(tensor.name), tensor)) is not tensor:
                raise CheckpointError(
                    f"{tensor.name} is in {twice.path.name} and in {file.name} of {folder}; remove the file of another model"
                )
    return found


def _refuse_gaps(folder: Path, name: str, files: list[Path]) -> None:
    """CheckpointError unless the files are one file or all shards of one set."""
    numbers = [re.fullmatch(rf"{name}-(\d+)-of-(\d+)\.safetensors", file.name) for file in files]
    if len(files) == 1 and numbers == [None] and files[0].name == f"{name}.safetensors":
        return
    if None in numbers:
        strange = files[numbers.index(None)].name
        raise CheckpointError(
            f"{folder} holds {strange} beside {len(files) - 1} other files of {name}; remove what does not belong to the model"
        )
    wanted = next(int(match[2]) for match in numbers if match)
    if [int(match[1]) for match in numbers if match] != list(range(1, wanted + 1)):
        raise CheckpointError(f"{folder} holds {len(files)} of {wanted} shards of {name}; copy the missing ones")


def _current(name: str) -> str:
    """The parameter name of a tensor in a file of ours. Files from before the feed-forward was a module of its own lack ``mlp``."""
    return _FEED_FORWARD.sub(r"\1.mlp.\2", name)


def _indexed(folder: Path, index: Path) -> dict[str, Stored]:
    where = _weight_map(index)
    files = sorted(set(where.values()))
    if foreign := [f for f in files if Path(f).name != f or not f.endswith(".safetensors")]:
        raise CheckpointError(
            f"{index} names {foreign[0][:80]!r}, which is not a file in the same folder that ends in .safetensors; download it again"
        )
    if absent := [f for f in files if not (folder / f).exists()]:
        raise CheckpointError(
            f"{index.name} in {folder} names {len(absent)} of {len(files)} files that are missing ({', '.join(absent[:3])}); "
            "copy or download the missing ones"
        )
    found = {(tensor.path.name, tensor.name): tensor for file in files for tensor in read_header(folder / file)}
    if lost := [name for name, file in where.items() if (file, name) not in found]:
        raise CheckpointError(f"{where[lost[0]]} lacks {lost[0]}, which {index} lists; copy both again")
    all_tensors = {name: tensor for (_, name), tensor in found.items()}
    return all_tensors | {name: found[file, name] for name, file in where.items()}


def _weight_map(index: Path) -> dict[str, str]:
    """The file of every tensor. CheckpointError for an index that is damaged."""
    try:
        raw = read_json(index, most=MOST_INDEX)
        where = raw.get("weight_map") if isinstance(raw, dict) else None
        if not isinstance(where, dict) or not where:
            raise FileRefused("it has no weight_map of tensors and files")
        if wrong := [(k, v) for k, v in where.items() if not isinstance(v, str) or "\0" in v]:
            raise FileRefused(f"the file of {wrong[0][0][:80]!r} is {wrong[0][1]!r:.60}, wanted a name")
    except FileRefused as error:
        raise CheckpointError(f"{index} is not a valid shard index ({error}); copy or download it again") from error
    return where


def read(
    stored: Stored, *, rows: int | None = None, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
) -> Tensor:
    """One tensor, or its first ``rows``, as ``dtype`` (default: as stored) on ``device``. CheckpointError for NaN and infinity."""
    if stored.bits:
        return _unpacked(stored, rows, dtype or FLOATS[stored.dtype], device)
    kind = (FLOATS | _OTHERS).get(stored.dtype)
    if kind is None:
        raise CheckpointError(f"{stored.name} is stored as {stored.dtype}; supported: {', '.join(FLOATS)}")
    shape = stored.shape if rows is None else (rows, *stored.shape[1:])
    out = torch.empty(shape, dtype=dtype or kind, device=device)
    flat, step = out.view(-1), PIECE // kind.itemsize
    direct = out.dtype == kind and out.device.type == "cpu"
    buffer = None if direct else torch.empty(min(step, len(flat)), dtype=kind)
    with stored.path.open("rb", buffering=0) as f:
        f.seek(stored.start)
        for first in range(0, len(flat), step):
            part = flat[first : first + step]
            piece = part if buffer is None else buffer[: len(part)]
            _into(f, piece, stored)
            if piece is not part:
                part.copy_(piece)
            if not _finite(part):
                why = f"values too large for {str(part.dtype)[6:]}" if _finite(piece) else "values that are not finite"
                raise CheckpointError(f"the weights in {stored.path} do not fit the model: {stored.name} holds {why}")
    return out


def _unpacked(stored: Stored, rows: int | None, dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """The float values of a packed matrix."""
    parts = {}
    for piece in stored.pieces:
        part = piece.name.rpartition(".")[2]
        parts[part] = read(piece, rows=rows if part in packed.REQUIRED else None)
    try:
        out = packed.restored(parts, stored.bits, stored.shape[1]).to(dtype)
    except (ValueError, IndexError, RuntimeError) as error:
        raise CheckpointError(
            f"{stored.path} holds a damaged {stored.name}: {error}; copy or download it again"
        ) from error
    if not _finite(out):
        raise CheckpointError(
            f"the weights in {stored.path} do not fit the model: {stored.name} holds values that are not finite"
        )
    return out.to(device)


def _finite(piece: Tensor) -> bool:
    """Whether all values are finite, by minimum and maximum (NaN propagates): ``isfinite`` would need several times the memory."""
    return not piece.is_floating_point() or bool(torch.stack(piece.aminmax()).isfinite().all())


def _into(f: BinaryIO, piece: Tensor, stored: Stored) -> None:
    """Fill a buffer, with as many reads as needed."""
    view = piece.view(torch.uint8).numpy().data
    while len(view):
        count = f.readinto(view)  # type: ignore[attr-defined]
        if not count:
            raise CheckpointError(f"{stored.path} ends inside {stored.name}; copy or download it again")
        view = view[count:]
