"""The command inspect: the parts of a model or checkpoint, and the memory a task needs, from the safetensors headers alone."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from unmask.cli import completion
from unmask.cli.options import Storage, download_option, json_option, setting_option, storage_options
from unmask.cli.output import news, print_json, table
from unmask.cli.planning import names_recipe, show_plan
from unmask.cli.recipe_files import recipes

if TYPE_CHECKING:
    from unmask.checkpoints.stream import Stored
    from unmask.json_types import Json
    from unmask.pipeline.loading import ModelSpec

_SHIPPED = Path(__file__).parents[1] / "assets"
_SHARD = re.compile(r"(?P<family>.+)-\d+-of-\d+\.safetensors")


def stored(place: Path) -> list[Stored]:
    """All tensors of a file, or of the model in a folder. ValueError for missing or damaged files and for models of other families."""
    from unmask.checkpoints.families import not_part_of_model, refuse_foreign
    from unmask.checkpoints.stream import OTHER_WEIGHTS, read_header, tensors_of

    if place.is_file():
        if any(place.match(kind) for kind in OTHER_WEIGHTS):
            refuse_foreign(place)
        return read_header(place)
    refuse_foreign(place)
    names = {_family(path) for path in place.glob("*.safetensors")}
    if others := set(not_part_of_model(place, names)):
        news(f"not part of the model and not counted: {', '.join(f'{name}.safetensors' for name in sorted(others))}")
    found = [tensor for name in sorted(names - others) for tensor in tensors_of(place, name).values()]
    if not found:
        raise ValueError(f"no safetensors file in {place}; give a model folder")
    return found


def _family(path: Path) -> str:
    """``model`` of model.safetensors and of model-00001-of-00002.safetensors."""
    match = _SHARD.match(path.name)
    return match["family"] if match else path.stem


def grouped(tensors: list[Stored], depth: int) -> Iterator[Json]:
    """One row per part: tensors grouped by the first ``depth`` words of their names, without layer numbers."""
    groups: dict[tuple[str, str], list[Stored]] = {}
    for t in tensors:
        words = [w for w in t.name.split(".")[:-1] if not w.isdigit()] or [t.name]
        family = _family(t.path)
        file = t.path.name if family == t.path.stem else f"{family}-*.safetensors"
        groups.setdefault((file, ".".join(words[:depth])), []).append(t)
    for (file, part), members in groups.items():
        yield {
            "file": file,
            "part": part,
            "dtype": "/".join(sorted({t.label for t in members})),
            "tensors": len(members),
            "parameters": sum(t.numbers for t in members),
            "bytes": sum(t.nbytes for t in members),
        }


@click.command()
@click.argument("model", default="mini", shell_complete=completion.models)
@click.option("--depth", type=click.IntRange(1, 8), default=2, show_default=True, help="Name components per part.")
@click.option("--task", help="Memory for this task: generate, edit, infill, infill-text, ask, ground or all.")
@click.option("--budget", metavar="SIZE", help="Propose options that fit this much memory, such as 24GiB.")
@click.option(
    "--device",
    default="auto",
    show_default=True,
    shell_complete=completion.devices,
    help="Target device; it need not exist here.",
)
@click.option("--world", type=click.IntRange(1, 65_536), metavar="N", help="RECIPE: processes.  [default: 1]")
@click.option("--data", metavar="PATH[=WEIGHT]", multiple=True, help="RECIPE: your samples, which finetune needs.")
@setting_option("RECIPE: set a field of it or an argument of its function; repeatable.")
@storage_options
@download_option
@json_option
def inspect(
    model: str,
    depth: int,
    task: str | None,
    budget: str | None,
    device: str,
    world: int | None,
    data: tuple[str, ...],
    settings: tuple[str, ...],
    storage: Storage,
    download: bool,
    as_json: bool,
) -> None:
    """List a model's parts, parameters and bytes, or the memory that training needs.

    MODEL is a shipped model, a folder or file of weights, of a training run or of a LoRA adapter, owner/name on the hub, or a named size
    (its weights are not allocated). With --task or --budget: the memory that a task needs, without loading anything.

    The name of a training recipe instead of MODEL: the memory of one process at the peak of a step, and with --budget what fits.

    \b
    Examples:
      unmask inspect mini
      unmask inspect runs/stage2/state.safetensors --depth 1
      unmask inspect runs/pets/adapter
      unmask inspect lavida_o --task generate
      unmask inspect lavida_o --task ask --budget 12GiB --device cuda
      unmask inspect lavida_o.stage2 --world 64 --budget 80GiB
      unmask inspect mini.stage3 --json
    """
    if _plans_training(model, world, data, settings, task, storage):
        given = (*((f"data={','.join(data)}",) if data else ()), *settings)
        show_plan(model, given, world or 1, budget, as_json)
        return
    from unmask.checkpoints.device import AUTO, find_device, parse_device

    device = find_device(device) if parse_device(device)[0] == AUTO else device
    if task or budget:
        _plan(_spec(model, download), model, task or "all", budget, device, storage, as_json)
        return
    if _is_adapter(Path(model)):
        _show_adapter(Path(model), depth, as_json)
        return
    place = next((p for p in (Path(model), _SHIPPED / model) if _holds_weights(p)), None)
    tensors = stored(place) if place else _named(model, download)
    rows = list(grouped(tensors, depth))
    whole = {"parameters": sum(t.numbers for t in tensors), "bytes": sum(t.nbytes for t in tensors)}
    if as_json:
        print_json({"model": model, "parts": rows, **whole})
        return
    total = {"file": "total", "part": "", "dtype": "", "tensors": len(tensors), **whole}
    click.echo(table(list(total), [list(row.values()) for row in [*rows, total]]))


def _plans_training(
    model: str, world: int | None, data: tuple[str, ...], settings: tuple[str, ...], task: str | None, storage: Storage
) -> bool:
    """Whether MODEL is a recipe. UsageError for options of the other kind."""
    recipe = not Path(model).exists() and not (_SHIPPED / model).exists() and names_recipe(model)
    if recipe and (task or storage.dtype or storage.quantise or storage.offload):
        raise click.UsageError(f"{model} is a recipe; --task, --dtype, --quantise and --offload are for models")
    if not recipe and (world or data or settings):
        raise click.UsageError("--world, --data and -o are for recipes, such as lavida_o.stage2")
    return recipe


def _is_adapter(place: Path) -> bool:
    from unmask.checkpoints.adapters import holds_adapter

    return holds_adapter(place)


def _show_adapter(folder: Path, depth: int, as_json: bool) -> None:
    """The base, ranks and scales of a LoRA adapter, and its parts. Their names are those of the layers that it adapts."""
    from unmask.checkpoints.adapters import read_adapter

    found = read_adapter(folder)
    tensors = [replace(t, name=f"{name}.weight") for name, pair in found.layers.items() for t in pair[:2]]
    rows = list(grouped(tensors, depth))
    whole = {"parameters": sum(t.numbers for t in tensors), "bytes": sum(t.nbytes for t in tensors)}
    about = {"base": found.base or None, "layers": len(found.layers), "ranks": found.ranks, "scales": found.scales}
    if as_json:
        print_json({"model": str(folder), "adapter": about, "parts": rows, **whole})
        return
    ranks, scales = (", ".join(f"{n:g}" for n in numbers) for numbers in (found.ranks, found.scales))
    click.echo(
        f"LoRA adapter of {found.base or 'an unnamed model'}: {len(found.layers)} layers, rank {ranks}, scale {scales}\n"
    )
    total = {"file": "total", "part": "", "dtype": "", "tensors": len(tensors), **whole}
    click.echo(table(list(total), [list(row.values()) for row in [*rows, total]]))


def _holds_weights(place: Path) -> bool:
    return place.is_file() or any(place.glob("*.safetensors"))


def _named(name: str, download: bool) -> list[Stored]:
    checkpoint = _spec(name, download).checkpoint
    return [*checkpoint.net.values(), *checkpoint.vq.values()]


def _spec(model: str, download: bool) -> ModelSpec:
    from unmask.checkpoints.hub import is_hub_name
    from unmask.models.sizes import SIZES
    from unmask.pipeline.loading import read_spec, resolve
    from unmask.pipeline.named_sizes import spec_of_size

    if Path(model).is_file():
        raise ValueError(f"{model} is a single file, and --task needs a whole model; give its folder")
    if model in SIZES and not (Path(model).exists() or (_SHIPPED / model).exists()):
        return spec_of_size(model)
    known = Path(model).exists() or (_SHIPPED / model).exists() or is_hub_name(model)
    if not known:
        near = difflib.get_close_matches(model, [*SIZES, *recipes()], 1)
        hint = f"did you mean {near[0]!r}?" if near else f"sizes: {', '.join(SIZES)}"
        raise ValueError(f"no file, folder, shipped model, size or recipe is called {model!r}; {hint}")
    return read_spec(resolve(model, download=download))


def _plan(
    found: ModelSpec, model: str, task: str, budget: str | None, device: str, storage: Storage, as_json: bool
) -> None:
    """Print the memory of a task's weights and activations, and with a budget the options that fit."""
    from unmask.checkpoints.budget import footprint, free_bytes, parse_bytes, proposals, working
    from unmask.checkpoints.elastic import Weights
    from unmask.pipeline.abilities import refuse_task
    from unmask.pipeline.loading import needs_of

    refuse_task(found, task, model)
    needs, limit = needs_of(task), parse_bytes(budget) if budget else None
    weights = Weights(checkpoint=found.checkpoint, device=device, storage=storage.value())
    shares, work, free = footprint(weights, needs), working(weights, needs, found.side), free_bytes(device)
    ways = proposals(weights, needs, limit, found.side) if limit else []
    best = next((w for w in ways if w.fits), None)
    whole = {"parameters": sum(s.parameters for s in shares), "bytes": sum(s.nbytes for s in shares)}
    if as_json:
        record = {"model": model, "task": task, "device": device, "parts": [vars(s) for s in shares], **whole}
        record |= {"working": work, "free": free}
        if limit:
            shown = [{"options": w.options, "bytes": w.nbytes, "beside": w.beside, "fits": w.fits} for w in ways]
            record |= {"budget": limit, "proposals": shown, "proposed": best.options if best else None}
        print_json(record)
        return
    rows = [[s.part, s.device, s.dtype, s.parameters, s.nbytes] for s in shares]
    rows += [["total", "", "", whole["parameters"], whole["bytes"]]]
    click.echo(table(["part", "device", "dtype", "parameters", "bytes"], rows))
    click.echo(f"\nactivations: about {_gib(work)}; free on {device}: {_gib(free) if free else 'unknown'}")
    if limit:
        lines = [[w.options, _gib(w.nbytes), _gib(w.beside), "yes" if w.fits else "no"] for w in ways]
        click.echo("\n" + table(["options", f"on {device}", "offloaded", f"fits {_gib(limit)}"], lines))
        click.echo(f"\nproposed: {best.options}" if best else "\nnothing fits; use a smaller model or more memory")


def _gib(nbytes: int) -> str:
    return f"{nbytes / 2**30:.2f} GiB" if nbytes >= 2**27 else f"{nbytes / 2**20:.2f} MiB"
