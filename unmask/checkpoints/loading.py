"""Load the weights that a task needs.

Public idea: ``load(weights, net, vq, needs)`` fills two modules built on the meta device; a later call with other needs loads the rest.
The modules change only after everything has been read.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from unmask.checkpoints.budget import refuse_if_too_large
from unmask.checkpoints.checksums import refuse_changed
from unmask.checkpoints.device import refuse_dtypes
from unmask.checkpoints.elastic import EVERYTHING, Checkpoint, Weights, branch_of, tensors_needed
from unmask.checkpoints.quantise import offload_hooks
from unmask.checkpoints.stream import Stored, read
from unmask.models.elastic import Elastic
from unmask.tokens.magvit import ImageTokenizer


def load(weights: Weights, net: Elastic, vq: ImageTokenizer, needs: frozenset[str]) -> None:
    """Load missing weights. CheckpointError, also for too little memory; both modules are then unchanged."""
    modules: dict[str, nn.Module] = {"net": net, "vq": vq}
    wanted = [w for w in tensors_needed(weights.checkpoint, needs) if _rows_here(modules[w[0]], w[1]) < w[3]]
    refuse_dtypes(weights.device, {weights.dtype_of(module, stored) for module, _, stored, _ in wanted})
    refuse_if_too_large(weights, wanted)
    if weights.verify:
        refuse_changed(weights.checkpoint.sums, (stored.path for _, _, stored, _ in wanted))
    for module, name, value in list(_read_all(weights, wanted)):
        leaf, attribute = _leaf(modules[module], name)
        setattr(leaf, attribute, nn.Parameter(value, requires_grad=type(value) is Tensor))
        if branch_of(name) in weights.storage.offload:
            offload_hooks(leaf)


def _read_all(weights: Weights, wanted: list[tuple[str, str, Stored, int]]) -> Iterator[tuple[str, str, Tensor]]:
    """(module, name, value) of every weight, counted in bytes of the files."""
    sizes = [stored.nbytes * rows // stored.shape[0] for _, _, stored, rows in wanted]
    done, of = 0, sum(sizes)
    for size, (module, name, stored, rows) in zip(sizes, wanted, strict=True):
        yield module, name, _read(weights, module, name, stored, rows)
        done += size
        weights.on_bytes(done, of)


def load_everything(checkpoint: Checkpoint) -> tuple[Elastic, ImageTokenizer]:
    """Network and image tokenizer with all their weights, on the CPU."""
    net, vq = checkpoint.modules()
    load(Weights(checkpoint=checkpoint), net, vq, EVERYTHING)
    return net, vq


def _read(weights: Weights, module: str, name: str, stored: Stored, rows: int) -> Tensor:
    part = rows if rows < stored.shape[0] else None
    dtype, place = weights.dtype_of(module, stored), weights.place_of(name)
    quantiser = weights.quantiser_of(name)
    value = read(stored, rows=part, dtype=dtype, device=weights.device if quantiser else place)
    if quantiser is None:
        return value
    return quantiser(value, weights.storage.stats.get(name.removesuffix(".weight"))).to(place)


def _leaf(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, attribute = name.rpartition(".")
    return module.get_submodule(path), attribute


def _rows_here(module: nn.Module, name: str) -> int:
    leaf, attribute = _leaf(module, name)
    value = getattr(leaf, attribute)
    return 0 if value.device.type == "meta" else value.shape[0]
