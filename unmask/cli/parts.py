"""The command inspect: what a model or a checkpoint consists of and what a task needs, from the heads of its files alone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from unmask.cli.options import Storage, download_option, json_option, storage_options
from unmask.cli.output import print_json, table

if TYPE_CHECKING:
    from unmask.checkpoints.stream import Stored
    from unmask.pipeline.loading import Survey

_SHIPPED = Path(__file__).parents[1] / "assets"
_SHARD = re.compile(r"(?P<family>.+)-\d+-of-\d+\.safetensors")


def stored(place: Path) -> list[Stored]:
    """All tensors of a file, or of the safetensors files of a folder. ValueError where files are missing or damaged."""
    from unmask.checkpoints.stream import read_header, tensors_of

    if place.is_file():
        return read_header(place)
    names = {_family(path) for path in place.glob("*.safetensors")}
    found = [tensor for name in sorted(names) for tensor in tensors_of(place, name).values()]
    if not found:
        raise ValueError(f"there is no safetensors file in {place}; is this a model folder?")
    return found


def _family(path: Path) -> str:
    """``model`` of model.safetensors and of model-00001-of-00002.safetensors."""
    match = _SHARD.match(path.name)
    return match["family"] if match else path.stem


def grouped(tensors: list[Stored], depth: int) -> Iterator[dict[str, Any]]:
    """One row a part: the first ``depth`` words of the names, the numbers of layers left out."""
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
@click.option("--task", help="What this task needs: generate, edit, infill, infill-text, ask, ground or all.")
@click.option("--budget", metavar="SIZE", help="Propose how the weights fit, for example 24GiB.")
@click.option("--device", default="cpu", show_default=True, help="Where the model would run; it need not be here.")
@storage_options
@download_option
@json_option
def inspect(
    model: str,
    depth: int,
    task: str | None,
    budget: str | None,
    device: str,
    storage: Storage,
    download: bool,
    as_json: bool,
) -> None:
    """List a model's parts, parameters and bytes.

    MODEL is a shipped model, a folder or file of weights or of a run, owner/name of the hub, or a named size (built
    without memory). With --task or --budget: what a task will keep in memory, before anything is loaded.

    \b
    Examples:
      unmask inspect mini
      unmask inspect runs/stage2/state.safetensors --depth 1
      unmask inspect lavida_o --task generate
      unmask inspect lavida_o --task ask --budget 12GiB --device cuda
    """
    if task or budget:
        _plan(_survey(model, download), model, task or "all", budget, device, storage, as_json)
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


def _holds_weights(place: Path) -> bool:
    return place.is_file() or any(place.glob("*.safetensors"))


def _named(name: str, download: bool) -> list[Stored]:
    checkpoint = _survey(name, download).checkpoint
    return [*checkpoint.net.values(), *checkpoint.vq.values()]


def _survey(model: str, download: bool) -> Survey:
    from unmask.checkpoints.hub import is_hub_name
    from unmask.models.sizes import SIZES
    from unmask.pipeline.loading import find, survey, survey_size

    if Path(model).is_file():
        raise ValueError(f"{model} is one file, and a task needs a whole model; give its folder")
    if model in SIZES and not (Path(model).exists() or (_SHIPPED / model).exists()):
        return survey_size(model)
    known = Path(model).exists() or (_SHIPPED / model).exists() or is_hub_name(model)
    if not known:
        raise ValueError(f"there is no file, folder, shipped model or size {model!r}; sizes: {', '.join(SIZES)}")
    return survey(find(model, download=download))


def _plan(
    found: Survey, model: str, task: str, budget: str | None, device: str, storage: Storage, as_json: bool
) -> None:
    """Print what a task keeps and works with, and with a budget the ways to fit it."""
    from unmask.checkpoints.budget import footprint, free_bytes, parse_bytes, proposals, working
    from unmask.checkpoints.elastic import Weights
    from unmask.pipeline.loading import TEXT_TASKS, needs_of

    if not found.checkpoint.config.gen_width and task not in TEXT_TASKS:
        raise ValueError(f"{model} is a text model, which cannot {task}; its tasks are {', '.join(TEXT_TASKS)}")
    needs, limit = needs_of(task), parse_bytes(budget) if budget else None
    weights = Weights(checkpoint=found.checkpoint, device=device, storage=storage.keep())
    shares, work, free = footprint(weights, needs), working(weights, needs, found.side), free_bytes(device)
    ways = proposals(weights, needs, limit, found.side) if limit else []
    best = next((w for w in ways if w.fits), None)
    whole = {"parameters": sum(s.parameters for s in shares), "bytes": sum(s.nbytes for s in shares)}
    if as_json:
        told = {"model": model, "task": task, "device": device, "parts": [vars(s) for s in shares], **whole}
        told |= {"working": work, "free": free}
        if limit:
            shown = [{"options": w.options, "bytes": w.nbytes, "beside": w.beside, "fits": w.fits} for w in ways]
            told |= {"budget": limit, "proposals": shown, "proposed": best.options if best else None}
        print_json(told)
        return
    rows = [[s.part, s.device, s.dtype, s.parameters, s.nbytes] for s in shares]
    rows += [["total", "", "", whole["parameters"], whole["bytes"]]]
    click.echo(table(["part", "device", "dtype", "parameters", "bytes"], rows))
    click.echo(f"\nwhile working, about {_gib(work)} more; free on {device} now: {_gib(free) if free else 'not known'}")
    if limit:
        lines = [[w.options, _gib(w.nbytes), _gib(w.beside), "yes" if w.fits else "no"] for w in ways]
        click.echo("\n" + table(["keep the weights", f"on {device}", "beside", f"fits {_gib(limit)}"], lines))
        click.echo(
            f"\nproposed: {best.options}" if best else "\nnothing here fits; take a smaller model or more memory"
        )


def _gib(nbytes: int) -> str:
    return f"{nbytes / 2**30:.2f} GiB" if nbytes >= 2**27 else f"{nbytes / 2**20:.2f} MiB"
