"""Commands on checkpoints: convert (between layouts on disk), merge (LoRA adapters into the weights), verify (recompute measured
values).
"""

from __future__ import annotations

from pathlib import Path

import click

from unmask.cli.options import (
    DTYPES,
    device_option,
    download_option,
    found_device,
    json_option,
    threads_option,
    use_threads,
)
from unmask.cli.output import news, print_json, table
from unmask.cli.progress import working


@click.command()
@click.argument("source")
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--to", "layout", type=click.Choice(["released", "own", "safetensors"]), required=True, help="The layout of OUT."
)
@click.option(
    "--like",
    metavar="MODEL",
    help="SOURCE is a training run of this model; copy everything but the weights from MODEL.",
)
@json_option
def convert(source: str, out: Path, layout: str, like: str | None, as_json: bool) -> None:
    """Convert a model to the released layout, or back; or pickles of weights to safetensors.

    SOURCE is a shipped model or a folder; OUT is a new folder, written completely or not at all. The whole model must fit into memory.
    Tensors keep their type and every bit, so a round trip is identical.

    Settings that the released layout cannot express (wording, picture size, vision tower, how the tokenizer encodes) go into the block
    "unmask" of config.json and vqvae/config.json, which other programs ignore. Settings that our layout cannot express go into the block
    "released" of our config.json.

    --to safetensors: SOURCE is a folder or file with weights as a pickle (.bin, .pt, .pth, .ckpt), which can run code and is read by
    this command alone: another process reads tensors and plain containers, and refuses the rest.

    \b
    Examples:
      unmask convert mini mini-released --to released
      unmask convert mini-released mini-again --to own
      unmask convert runs/stage3 mine --to released --like mini
      unmask convert MMaDA-8B-Base mmada --to safetensors
    """
    if like is not None and layout != "released":
        raise click.UsageError("--like applies to training runs, which convert --to released only")
    from unmask.pipeline.convert import to_own, to_released
    from unmask.pipeline.from_pickles import to_safetensors

    with working(f"converting {source}"):
        if layout == "safetensors":
            written = to_safetensors(source, out)
        else:
            written = to_released(source, out, like=like) if layout == "released" else to_own(source, out)
    files = {str(p.relative_to(out)): p.stat().st_size for p in written}
    if as_json:
        print_json({"source": source, "out": str(out), "layout": layout, "files": files})
        return
    news(f"{len(files)} files, {sum(files.values()):,} bytes")
    click.echo(out)


@click.command()
@click.argument("model")
@click.option(
    "--lora",
    metavar="FOLDER[:SCALE]",
    multiple=True,
    required=True,
    help="The adapter to merge; repeatable, several add up.",
)
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="The new folder.")
@download_option
@json_option
def merge(model: str, lora: tuple[str, ...], out: Path, download: bool, as_json: bool) -> None:
    """Write a model with LoRA adapters merged into its weights.

    MODEL is a shipped model, a folder, or owner/name on the hub. OUT has its layout and data type, and is written completely or not at
    all. Only the adapted weights change; each is rounded once. To quantise a merged model, open OUT with --quantise.

    \b
    Examples:
      unmask merge mini --lora runs/pets/adapter --out mini-pets
      unmask merge mini --lora runs/pets/adapter:0.5 --lora style --out mini-both
    """
    from unmask.pipeline.adapting import merge as write_merged

    with working(f"merging {model}"):
        written = write_merged(model, lora, out, download=download)
    files = {str(p.relative_to(out)): p.stat().st_size for p in written}
    if as_json:
        print_json({"source": model, "lora": list(lora), "out": str(out), "files": files})
        return
    news(f"{len(files)} files, {sum(files.values()):,} bytes")
    click.echo(out)


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--tolerance", type=float, help="Largest difference allowed.  [default: 1e-4; for Dimple 2e-4]")
@click.option("--dtype", type=click.Choice(DTYPES), help="Compute in this type.  [default: the type of the files]")
@json_option
@device_option
@threads_option
def verify(
    folder: Path, tolerance: float | None, dtype: str | None, as_json: bool, device: str, threads: int | None
) -> int:
    """Recompute measured values and report the differences.

    FOLDER is a checkpoint in the released layout with expected.safetensors beside it: inputs, and the outputs of the official code.
    Integers (codes, counts) must be equal; real numbers may differ by the tolerance. Exit code 1 if any array fails.

    \b
    Examples:
      unmask verify tests/golden/lavida_o_tiny
      unmask verify tests/golden/lavida_o_tiny --dtype bfloat16 --tolerance 0.1 --json
    """
    use_threads(threads)
    device = found_device(device)
    import torch

    from unmask.evaluation.verify import default_tolerance
    from unmask.evaluation.verify import verify as differences

    tolerance = default_tolerance(folder) if tolerance is None else tolerance
    with working(f"verifying {folder}"):
        found = differences(folder, tolerance=tolerance, dtype=getattr(torch, dtype) if dtype else None, device=device)
    ok = all(d.ok for d in found)
    if as_json:
        record = {"folder": str(folder), "tolerance": tolerance, "dtype": dtype, "device": device, "ok": ok}
        print_json({**record, "arrays": [d.to_json() for d in found]})
    else:
        rows = [
            [
                d.name,
                "x".join(map(str, d.shape)),
                f"{d.worst:.2e}",
                f"{d.mean:.2e}",
                d.wrong,
                d.size,
                "ok" if d.ok else "FAILED",
            ]
            for d in found
        ]
        click.echo(table(["array", "shape", "largest", "mean", "beyond", "of", ""], rows))
    return 0 if ok else 1
