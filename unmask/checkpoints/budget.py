"""Memory requirements of a task, estimated before loading, and storage options that fit a budget.

Public idea: ``footprint(weights, needs) -> [Share]`` and ``proposals(weights, needs, budget) -> [Proposal]``, from safetensors headers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from unmask.checkpoints.elastic import Weights, WeightStorage, branch_of, part_of, tensors_needed
from unmask.checkpoints.quantise import RoundToNearest
from unmask.checkpoints.stream import CheckpointError, Stored

GIB = 2**30
_UNITS = {"": 1, "kib": 2**10, "mib": 2**20, "gib": GIB, "tib": 2**40, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}  # fmt: skip
_PROMPT = 256  # text positions assumed by the estimate of working memory
_VIEWS = 5  # most views of one image: four tiles and the whole image (spec 1.9)


@dataclass(frozen=True, kw_only=True)
class Share:
    """Memory of one part on one device: parameters, and bytes including the scales of quantised matrices."""

    part: str
    device: str
    dtype: str
    parameters: int
    nbytes: int


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """A way to store the weights: bytes on the device (weights and working memory), bytes elsewhere, and whether they fit the budget."""

    storage: WeightStorage
    nbytes: int
    beside: int
    fits: bool

    @property
    def options(self) -> str:
        """As command-line options."""
        return options_of(self.storage)


def options_of(storage: WeightStorage) -> str:
    """``--dtype bfloat16 --quantise und=int8``; "(as stored)" without options."""
    words = [f"--dtype {str(storage.dtype)[6:]}"] if storage.dtype else []
    words += [f"--quantise {branch}={quantiser.label}" for branch, quantiser in storage.quantise.items()]
    words += [f"--offload {branch}" for branch in sorted(storage.offload, reverse=True)]
    return " ".join(words) or "(as stored)"


def nbytes_kept(weights: Weights, module: str, name: str, stored: Stored, rows: int) -> int:
    """Bytes of a parameter's first ``rows`` in memory; a quantiser says how many its matrices take."""
    columns, dtype = stored.numbers // stored.shape[0], weights.dtype_of(module, stored)
    quantiser = weights.quantiser_of(name)
    return quantiser.nbytes(rows, columns, dtype, weights.device) if quantiser else rows * columns * dtype.itemsize


def footprint(weights: Weights, needs: frozenset[str]) -> list[Share]:
    """Memory of tasks with these ``needs``, one entry per part, in the order of the network."""
    shares: dict[tuple[str, str, str], tuple[int, int]] = {}
    for module, name, stored, rows in tensors_needed(weights.checkpoint, needs):
        quantiser = weights.quantiser_of(name)
        dtype = quantiser.label if quantiser else str(weights.dtype_of(module, stored))[6:]
        key = (part_of(name, weights.checkpoint.config), weights.place_of(name), dtype)
        numbers, nbytes = shares.get(key, (0, 0))
        numbers += stored.numbers // stored.shape[0] * rows
        shares[key] = (numbers, nbytes + nbytes_kept(weights, module, name, stored, rows))
    return [
        Share(part=part, device=device, dtype=dtype, parameters=numbers, nbytes=nbytes)
        for (part, device, dtype), (numbers, nbytes) in shares.items()
    ]


def working(weights: Weights, needs: frozenset[str], side: int) -> int:
    """Estimated working memory of one request in bytes: the larger of a layer with its logits and the image tokenizer's finest stage.

    Assumes 256 text tokens, images of ``side`` pixels, two guidance views (three with an input image), and materialised attention
    scores. A batch of n requests needs n times as much.
    """
    config, vq = weights.checkpoint.config, weights.checkpoint.vq_config
    size = (weights.storage.dtype or weights.checkpoint.dtype or torch.bfloat16).itemsize
    shared = config.first_code > 0  # codes are tokens of the text trunk, each with a position of its own
    draws = "gen" in needs and (config.gen_width > 0 or shared)
    sees = "vision" in needs and (config.vision is not None or config.tower is not None or shared)
    codes = (side // vq.factor) ** 2 if draws else 0
    length = _PROMPT + (config.vision.tokens * _VIEWS if sees and config.vision else 0)
    length += codes + sees * (side // vq.factor) ** 2 if shared else codes // (2 if sees else 4)
    views = (3 if sees else 2) if draws else 1
    layer = length * (6 * config.width + 3 * config.mlp) * size + config.heads * length**2 * 2 * size
    logits = codes * config.codes * 8 if draws else _PROMPT * config.vocab_size * 8
    pixels = (
        side**2 * vq.block_out_channels[0] * 4 * 3
        if weights.checkpoint.vq and any(n.startswith("vq.") for n in needs)
        else 0
    )
    copied = max(config.mlp * config.width, config.gen_mlp * config.gen_width) * size if weights.storage.offload else 0
    return max(views * (layer + logits), pixels) + copied


def proposals(weights: Weights, needs: frozenset[str], budget: int, side: int) -> list[Proposal]:
    """Storage options for ``budget`` bytes on the weights' device, smallest loss first: exact, int8 (understanding branch, then both),
    int4, and finally offloading, which costs only time. On a CPU only options that save memory there.
    """
    ways = [weights.storage]
    half = replace(weights.storage, dtype=torch.bfloat16)
    used = [
        b for b in ("und", "gen") if any(branch_of(n) == b for _, n, _, _ in tensors_needed(weights.checkpoint, needs))
    ]
    gpu = weights.device != "cpu"
    steps = [used[:1], used] if len(used) > 1 else [used]
    ways += [half] if weights.storage.dtype != torch.bfloat16 else []
    rounding = [RoundToNearest(bits=bits) for bits in ((8, 4) if gpu else (8,))]
    ways += [replace(half, quantise=dict.fromkeys(some, rounded)) for rounded in rounding for some in steps]
    ways += [replace(half, offload=frozenset(some)) for some in steps] if gpu else []
    out: list[Proposal] = []
    for storage in ways:
        kept = replace(weights, storage=storage)
        shares, here = footprint(kept, needs), working(kept, needs, side)
        here += sum(s.nbytes for s in shares if s.device == weights.device)
        beside = sum(s.nbytes for s in shares if s.device != weights.device)
        if all((here, beside) != (p.nbytes, p.beside) for p in out):
            out.append(Proposal(storage=storage, nbytes=here, beside=beside, fits=here <= budget))
    return out


def parse_bytes(text: str) -> int:
    """``24GiB``, ``16 GB`` or a number of bytes. ValueError for anything else."""
    number = text.strip().rstrip("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
    unit = text.strip()[len(number) :].lower()
    try:
        value = float(number)
        if not 0 < value < math.inf or unit not in _UNITS:
            raise ValueError
    except ValueError:
        raise ValueError(f"{text!r} is not an amount of memory; use a form like 24GiB or 16GB") from None
    return round(value * _UNITS[unit])


def free_bytes(device: str) -> int | None:
    """Free memory of a device; None if unknown."""
    if device.startswith("cuda"):
        return torch.cuda.mem_get_info(torch.device(device))[0] if torch.cuda.is_available() else None
    if device == "mps":  # the part of the machine's memory that Metal lets a process have
        known = torch.backends.mps.is_available()
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory() if known else None
    found = [_meminfo(), _cgroup()] if device == "cpu" else []
    return min((f for f in found if f is not None), default=None)


def _meminfo() -> int | None:
    try:
        line = next(t for t in Path("/proc/meminfo").read_text().splitlines() if t.startswith("MemAvailable:"))
        return int(line.split()[1]) * 1024
    except (OSError, StopIteration, ValueError):
        return None


def _cgroup() -> int | None:
    """Memory left by a container's limit; reclaimable file pages do not count as used."""
    try:
        cgroup = Path("/sys/fs/cgroup")
        stat = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
        limit, used = (cgroup / "memory.max").read_text().strip(), int((cgroup / "memory.current").read_text())
        return None if limit == "max" else int(limit) - used + int(stat["file"])
    except (OSError, ValueError, KeyError):
        return None


def refuse_if_too_large(weights: Weights, wanted: Iterable[tuple[str, str, Stored, int]]) -> None:
    """CheckpointError if these weights exceed the free memory of a device; checked before any is read."""
    total: dict[str, int] = {}
    for module, name, stored, rows in wanted:
        place = weights.place_of(name)
        total[place] = total.get(place, 0) + nbytes_kept(weights, module, name, stored, rows)
    for place, nbytes in total.items():
        free = free_bytes(place)
        if free is not None and nbytes > free:
            raise CheckpointError(
                f"the weights in {weights.checkpoint.place} need {nbytes / GIB:.2f} GiB on {place}, where {free / GIB:.2f} GiB are free; "
                f"`unmask inspect {weights.checkpoint.place} --budget {free / GIB:.1f}GiB` proposes what fits"
            )
