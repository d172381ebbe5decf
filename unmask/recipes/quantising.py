"""Write a model with its transformer's matrices in 2 to 8 bits.

Public idea: ``quantise(start, out, method, batches)``, with the methods of ``methods.qdlm``; ``calibration(start, ..)`` makes the batches.
The folder has the layout of the model, and ``unmask.load`` opens it as any other.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count, groupby
from pathlib import Path

import torch
from torch import Tensor, nn

from unmask.checkpoints.checksums import write_sums
from unmask.checkpoints.packed import Quantised, metadata
from unmask.checkpoints.stream import CheckpointError
from unmask.methods.qdlm import Method, Rounding, methods
from unmask.models.elastic import Elastic
from unmask.objectives.masked import Masked, Pooled, Scores, Together
from unmask.pipeline.adapting import Header, copied
from unmask.recipes.finetune import tuned
from unmask.recipes.replay import knows_the_world, world_replay
from unmask.recipes.starting import Start
from unmask.recipes.ways import Given, way_of
from unmask.rng import generator
from unmask.sequence import Batch
from unmask.writing import whole_folder

_LAYER = re.compile(r"blocks\.(\d+)\.(und|gen|out)(\.|$)")
Rows = Callable[[int], Mapping[str, Batch]]


@dataclass(frozen=True, kw_only=True)
class Done:
    """``layers``: quantised · ``rounded``: those of them that no calibration sequence reached, which are rounded to nearest."""

    files: tuple[Path, ...]
    layers: int
    rounded: tuple[str, ...]


def method_of(name: str, bits: int, group: int) -> Method:
    """A method by its name at the command line. ValueError for unknown names, bits and groups."""
    known = methods(bits, group)
    if name not in known:
        raise ValueError(f"no method is called {name!r}; choose from {', '.join(known)}")
    if group < 0:
        raise ValueError(f"a group has {group} columns; give a positive number, or 0 for the whole row")
    return known[name]


# -- calibration ------------------------------------------------------------------------------------------------------


def calibration(start: Start, *, data: str = "", rows: int = 128, seed: int = 0, clean: bool = False) -> list[Batch]:
    """``rows`` sequences of the model's own format, one a batch, masked as in training; ``clean``: with nothing masked.

    ``data``: the user's rows, as of ``unmask train finetune``; "": scenes of the world, for models that know it. ValueError for others.
    """
    source, objectives = _source(start, data, seed)
    masks, rng, found = _Mask(id=start.spec.checkpoint.mask_id), generator("calibration", seed), list[Batch]()
    for step in count(seed * 1_000):
        for name, batch in source(step).items():
            for row in range(batch.rows):
                one = batch.row(row)
                objective = objectives.get(name)
                noisy = (
                    objective.noisy(masks, one, rng)
                    if isinstance(objective, Masked)
                    else Masked().noisy(masks, one, rng)
                )
                open_ = one.writable & one.valid
                found.append(one.replace(masked=torch.zeros_like(open_), target=open_) if clean else noisy)
                if len(found) == rows:
                    return found
    raise AssertionError("count() ends")


@dataclass(frozen=True, kw_only=True)
class _Mask:
    id: int

    @property
    def mask_id(self) -> int:
        return self.id


def _source(start: Start, data: str, seed: int) -> tuple[Rows, Mapping[str, Scores]]:
    if data:
        given = Given(data=data, replay="none", batch=1, holdout=0.0, seed=seed)
        recipe = tuned(start, given, way_of(start))
        objective = recipe.objective
        known = objective.objectives if isinstance(objective, Together | Pooled) else ()
        return recipe.source, {entry[0]: entry[1] for entry in known}
    if start.writes_only or not knows_the_world(start.parts):
        raise ValueError(f"{start.name} needs sequences for the calibration; add --data, for example --data rows.jsonl")
    replay = world_replay(start.parts, rows=1, share=0.01)
    return replay, {name: objective for name, (objective, _) in replay.objectives.items()}


# -- quantising -------------------------------------------------------------------------------------------------------


def layers_of(net: nn.Module) -> Iterator[tuple[int, list[str]]]:
    """The names of the linear layers of every block."""
    names = [name for name, layer in net.named_modules() if isinstance(layer, nn.Linear) and _LAYER.match(name)]
    return ((block, list(some)) for block, some in groupby(names, key=_block))


def _block(name: str) -> int:
    match = _LAYER.match(name)
    assert match
    return int(match[1])


def quantised(
    net: nn.Module,
    method: Method,
    batches: Iterable[Batch],
    on_block: Callable[[int, int], None] = lambda done, of: None,
) -> dict[str, tuple[Quantised, bool]]:
    """Quantise a network in place, block after block. Returns, by the name of the layer, its matrix, and whether it was calibrated.

    ``batches``: on the network's device. A layer that they do not reach is rounded to nearest on the method's grid.
    """
    found, blocks, batches = dict[str, tuple[Quantised, bool]](), list(layers_of(net)), list(batches)
    for number, (_, names) in enumerate(blocks):
        stats = method.measured(net, batches, frozenset(names).__contains__)
        for name in names:
            layer = net.get_submodule(name)
            assert isinstance(layer, nn.Linear)
            made, reached = _layer(method, name, layer.weight.detach(), stats)
            layer.weight = nn.Parameter(made.values().to(layer.weight), requires_grad=layer.weight.requires_grad)
            found[name] = made, reached
        on_block(number + 1, len(blocks))
    return found


def _layer(method: Method, name: str, weight: Tensor, stats: Mapping[str, Tensor]) -> tuple[Quantised, bool]:
    if isinstance(method, Rounding) or (name in stats and bool(stats[name].any())):
        return method.quantised(name, weight, stats.get(name)), True
    return method.fallback.quantised(name, weight, None), False


def quantise(
    start: Start,
    out: Path,
    method: Method,
    batches: Iterable[Batch] = (),
    *,
    device: str = "cpu",
    on_block: Callable[[int, int], None] = lambda done, of: None,
) -> Done:
    """Write ``start`` with quantised matrices into the new folder ``out``, completely or not at all.

    The whole model is in memory in float32. ValueError if ``out`` exists, CheckpointError for a model that is quantised already.
    """
    checkpoint = start.spec.checkpoint
    if any(stored.bits for stored in checkpoint.net.values()):
        raise CheckpointError(f"{start.name} is quantised already; quantise the model that it was made of")
    if out.exists():
        raise ValueError(f"{out} exists already; give a new folder")
    net: Elastic = start.network().to(device)
    made = quantised(net, method, [batch.to(device) for batch in batches], on_block)
    changes: dict[str, dict[str, tuple[Quantised, str]]] = {}  # by file and name in the file
    for name, (matrix, _) in made.items():
        stored = checkpoint.net[f"{name}.weight"]
        changes.setdefault(stored.path.name, {})[stored.name] = matrix, stored.dtype
    with whole_folder(out) as part:
        copied(checkpoint.place, part, {file: _Packing(matrices=some) for file, some in changes.items()})
        if checkpoint.sums:
            write_sums(part)
    files = tuple(sorted(p for p in out.rglob("*") if p.is_file()))
    return Done(
        files=files, layers=len(made), rounded=tuple(name for name, (_, reached) in made.items() if not reached)
    )


@dataclass(frozen=True, kw_only=True)
class _Packing:
    """The tensors and metadata of a file with packed matrices. ``matrices``: name in the file -> matrix, and dtype of the original."""

    matrices: Mapping[str, tuple[Quantised, str]]

    def __call__(self, tensors: dict[str, Tensor], header: Header) -> tuple[dict[str, Tensor], Header]:
        about = {}
        for name, (matrix, dtype) in self.matrices.items():
            rows, columns = tensors.pop(name).shape
            tensors |= matrix.tensors(name)
            about[name] = matrix.bits, dtype, (rows, columns)
        return tensors, {**(header or {}), **metadata(about)}
