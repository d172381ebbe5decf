"""The command quantise: write a model with its matrices in 2 to 8 bits."""

from __future__ import annotations

from pathlib import Path

import click

from unmask.cli.options import device_option, found_device, json_option, threads_option, use_threads
from unmask.cli.ordered_help import OrderedHelp
from unmask.cli.output import news, print_json
from unmask.cli.progress import Bar

METHODS = ("gptq", "awq", "rtn", "quarot", "smooth", "duquant")  # of methods/qdlm.py, which needs torch


@click.command(cls=OrderedHelp, first=("method", "bits", "group", "data", "rows", "clean"))
@click.argument("model")
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--method", type=click.Choice(METHODS), default="gptq", show_default=True, help="How weights are rounded."
)
@click.option("--bits", type=click.IntRange(2, 8), default=4, show_default=True, help="Bits of a weight.")
@click.option(
    "--group",
    type=click.IntRange(min=0),
    default=128,
    show_default=True,
    metavar="N",
    help="Columns that share a scale; 0: the whole row.",
)
@click.option("--data", metavar="PATH", help="Rows for the calibration, as of `unmask train finetune`.")
@click.option(
    "--rows", type=click.IntRange(min=1), default=128, show_default=True, metavar="N", help="Calibration sequences."
)
@click.option("--clean", is_flag=True, help="Calibrate on sequences without masked tokens.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the sequences and their masks.")
@json_option
@device_option
@threads_option
def quantise(
    model: str,
    out: Path,
    method: str,
    bits: int,
    group: int,
    data: str | None,
    rows: int,
    clean: bool,
    seed: int,
    as_json: bool,
    device: str,
    threads: int | None,
) -> None:
    """Write a model with its transformer's matrices in 2 to 8 bits.

    MODEL is a shipped model, a folder, or owner/name on the hub. OUT is a new folder in MODEL's layout, which every command opens. Its
    files are smaller; in memory the weights have MODEL's type again. Embeddings, heads, vision towers and image tokenizers stay as they
    are.

    All methods but rtn (rounding to nearest) measure the layers on sequences in the model's own format, masked as in use: --data,
    or scenes of the world for mini. The whole model must fit into memory in float32.

    \b
    Examples:
      unmask quantise mini mini-int3 --bits 3
      unmask quantise mini mini-int4 --method rtn --group 32
      unmask quantise LLaDA-8B-Instruct llada-int4 --data chats.jsonl --device cuda
    """
    use_threads(threads)
    device = found_device(device)
    from unmask.recipes.quantising import calibration, method_of
    from unmask.recipes.quantising import quantise as write_quantised
    from unmask.recipes.starting import start_of

    start, chosen = start_of(model), method_of(method, bits, group)
    if out.exists():
        raise ValueError(f"{out} exists already; give a new folder")
    batches = [] if method == "rtn" else calibration(start, data=data or "", rows=rows, seed=seed, clean=clean)
    bar = Bar(what="quantising", words=lambda done, of: f"block {done} of {of}", lines=not as_json)
    try:
        done = write_quantised(start, out, chosen, batches, device=device, on_block=bar)
    finally:
        bar.close()
    size = sum(path.stat().st_size for path in done.files if path.suffix == ".safetensors")
    before = sum(path.stat().st_size for path in start.spec.checkpoint.place.rglob("*.safetensors"))
    if done.rounded:
        news(f"{len(done.rounded)} of {done.layers} layers had no input in the calibration and were rounded to nearest")
    if as_json:
        about = {"source": model, "out": str(out), "method": method, "bits": bits, "group": group, "clean": clean}
        counts = {"layers": done.layers, "not_calibrated": list(done.rounded), "bytes": size, "bytes_before": before}
        print_json(about | counts)
        return
    news(f"{done.layers} matrices in {bits} bits: {size:,} bytes of weights, {before:,} before")
    click.echo(out)
