"""Commands on checkpoints: convert (from one layout on disk to the other) and verify (do they give the measured figures here?)."""

from __future__ import annotations

from pathlib import Path

import click

from unmask.cli.options import DTYPES, check_device, device_option, json_option, threads_option, use_threads
from unmask.cli.output import news, print_json, table


@click.command()
@click.argument("source")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--to", "layout", type=click.Choice(["released", "own"]), required=True, help="The layout of OUT.")
@click.option(
    "--like", metavar="MODEL", help="SOURCE is a run that trained this model: take all but the weights from it."
)
@json_option
def convert(source: str, out: Path, layout: str, like: str | None, as_json: bool) -> None:
    """Bring a model into the released layout, or back into ours.

    SOURCE is a shipped model or a folder; OUT a folder that is not there yet. It is written whole or not at all, and the whole model is
    held in memory once. Every tensor keeps its type and its bits; there and back is identical.

    What the released layout has no word for (wording, picture size, vision tower, how the tokenizer encodes) goes into the block "unmask"
    of config.json and vqvae/config.json, which other programs pass over. What ours has no word for goes into the block "released" of our
    config.json.

    \b
    Examples:
      unmask convert mini mini-released --to released
      unmask convert mini-released mini-again --to own
      unmask convert runs/stage3 mine --to released --like mini
    """
    if like is not None and layout == "own":
        raise click.UsageError("--like is for runs, which are brought into the released layout")
    from unmask.pipeline.convert import to_own, to_released

    written = to_released(source, out, like=like) if layout == "released" else to_own(source, out)
    files = {str(p.relative_to(out)): p.stat().st_size for p in written}
    if as_json:
        print_json({"source": source, "out": str(out), "layout": layout, "files": files})
        return
    news(f"{len(files)} files, {sum(files.values()):,} bytes")
    click.echo(out)


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--tolerance", type=float, default=1e-4, show_default=True, help="Largest difference that passes.")
@click.option("--dtype", type=click.Choice(DTYPES), help="Compute in this type.  [default: that of the files]")
@json_option
@device_option
@threads_option
def verify(folder: Path, tolerance: float, dtype: str | None, as_json: bool, device: str, threads: int | None) -> int:
    """Compute measured figures anew and print the differences.

    FOLDER is a checkpoint in the released layout with expected.safetensors beside it: inputs and what the official code made of
    them. Integers (codes, counts) must be equal, real numbers differ by no more than the tolerance. Exit code 1 where they do not.

    \b
    Examples:
      unmask verify tests/golden/lavida_o_tiny
      unmask verify tests/golden/lavida_o_tiny --dtype bfloat16 --tolerance 0.1 --json
    """
    use_threads(threads)
    check_device(device)
    import torch

    from unmask.evaluation.verify import verify as differences

    found = differences(folder, tolerance=tolerance, dtype=getattr(torch, dtype) if dtype else None, device=device)
    ok = all(d.ok for d in found)
    if as_json:
        told = {"folder": str(folder), "tolerance": tolerance, "dtype": dtype, "device": device, "ok": ok}
        print_json({**told, "arrays": [d.to_json() for d in found]})
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
