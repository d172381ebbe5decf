"""The command inspect: what a model or a checkpoint consists of, read from the heads of its files alone."""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from unmask.cli.options import json_option
from unmask.cli.output import print_json, table

_SHIPPED = Path(__file__).parents[1] / "assets"
_SHARD = re.compile(r"(?P<family>.+)-\d+-of-(?P<total>\d+)\.safetensors")
_LONGEST_HEAD = 100_000_000  # the format's own limit, in bytes


@dataclass(frozen=True, kw_only=True)
class Stored:
    """One tensor: its name, where it is stored, its type and shape, and its size in bytes."""

    file: str
    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int

    @property
    def numbers(self) -> int:
        return math.prod(self.shape)


def read_head(path: Path) -> list[Stored]:
    """The tensors of a safetensors file, from its head alone. ValueError where it is none, or is cut off."""
    size = path.stat().st_size
    with path.open("rb") as f:
        start = f.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if length > min(size - 8, _LONGEST_HEAD):
            raise ValueError(f"{path} is no safetensors file, or is cut off; copy or download it again")
        try:
            entries: dict[str, Any] = json.loads(f.read(length))
            entries.pop("__metadata__", None)
            found = [
                Stored(
                    file=path.name,
                    name=name,
                    dtype=entry["dtype"],
                    shape=tuple(entry["shape"]),
                    nbytes=entry["data_offsets"][1] - entry["data_offsets"][0],
                )
                for name, entry in entries.items()
            ]
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise ValueError(f"the head of {path} is damaged; copy or download it again") from error
    if sum(t.nbytes for t in found) > size - 8 - length:
        raise ValueError(f"{path} is cut off; copy or download it again")
    return found


def stored(place: Path) -> list[Stored]:
    """All tensors of a file, or of the safetensors files of a folder. ValueError where shards are missing."""
    if place.is_file():
        return read_head(place)
    files = sorted(place.glob("*.safetensors"))
    if not files:
        raise ValueError(f"there is no safetensors file in {place}; is this a model folder?")
    shards: dict[tuple[str, int], int] = {}
    for file in files:
        if match := _SHARD.match(file.name):
            key = (match["family"], int(match["total"]))
            shards[key] = shards.get(key, 0) + 1
    for (family, total), present in shards.items():
        if present != total:
            raise ValueError(f"{place} holds {present} of {total} shards of {family}; copy the missing ones")
    return [tensor for file in files for tensor in read_head(file)]


def named_size(name: str) -> list[Stored]:
    """The tensors of a named size, built without memory."""
    import torch

    from unmask.models.elastic import Elastic
    from unmask.models.sizes import SIZES

    if name not in SIZES:
        raise ValueError(f"there is no file, folder, shipped model or size {name!r}; sizes: {', '.join(SIZES)}")
    with torch.device("meta"):
        module = Elastic(SIZES[name], mask_id=0)
    return [
        Stored(file="(not stored)", name=n, dtype=str(p.dtype)[6:], shape=tuple(p.shape), nbytes=p.nbytes)
        for n, p in module.named_parameters()
    ]


def grouped(tensors: list[Stored], depth: int) -> Iterator[dict[str, Any]]:
    """One row a part: the first ``depth`` words of the names, the numbers of layers left out."""
    groups: dict[tuple[str, str], list[Stored]] = {}
    for t in tensors:
        words = [w for w in t.name.split(".")[:-1] if not w.isdigit()] or [t.name]
        match = _SHARD.match(t.file)
        file = f"{match['family']}-*.safetensors" if match else t.file
        groups.setdefault((file, ".".join(words[:depth])), []).append(t)
    for (file, part), members in groups.items():
        yield {
            "file": file,
            "part": part,
            "dtype": "/".join(sorted({t.dtype for t in members})),
            "tensors": len(members),
            "parameters": sum(t.numbers for t in members),
            "bytes": sum(t.nbytes for t in members),
        }


@click.command()
@click.argument("model", default="mini")
@click.option(
    "--depth", type=click.IntRange(1, 8), default=2, show_default=True, help="How finely to tell parts apart."
)
@json_option
def inspect(model: str, depth: int, as_json: bool) -> None:
    """List a model's parts, parameters and bytes.

    MODEL is a shipped model, a folder or file of weights or of a run, or a named size (built without memory).

    \b
    Examples:
      unmask inspect mini
      unmask inspect runs/stage2/state.safetensors --depth 1
      unmask inspect lavida_o --json
    """
    place = next((p for p in (Path(model), _SHIPPED / model) if _holds_weights(p)), None)
    tensors = stored(place) if place else named_size(model)
    rows = list(grouped(tensors, depth))
    whole = {"parameters": sum(t.numbers for t in tensors), "bytes": sum(t.nbytes for t in tensors)}
    if as_json:
        print_json({"model": model, "parts": rows, **whole})
        return
    total = {"file": "total", "part": "", "dtype": "", "tensors": len(tensors), **whole}
    click.echo(table(list(total), [list(row.values()) for row in [*rows, total]]))


def _holds_weights(place: Path) -> bool:
    return place.is_file() or any(place.glob("*.safetensors"))
