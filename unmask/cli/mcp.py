"""The command mcp: a server of the Model Context Protocol over stdin and stdout."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import click

from unmask.cli import completion
from unmask.cli.options import (
    Storage,
    device_option,
    download_option,
    found_device,
    loading_options,
    lora_option,
    threads_option,
    use_threads,
)
from unmask.cli.sampling import quirks_option, speed_option


@click.command()
@click.argument("model", default="mini", shell_complete=completion.models)
@click.option(
    "--pictures",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="FOLDER",
    help="Folder whose pictures the assistant may open by their path.  [default: none]",
)
@lora_option
@speed_option
@quirks_option
@device_option
@threads_option
@loading_options
@download_option
def mcp(
    model: str,
    pictures: Path | None,
    lora: tuple[str, ...],
    speed: str,
    quirks: str,
    device: str,
    threads: int | None,
    storage: Storage,
    download: bool,
) -> None:
    """Serve a model to assistants over the Model Context Protocol.

    An assistant starts this program and talks to it over stdin and stdout. The tools are draw, edit, ask, ground, infill and infill_text;
    those of a text model are ask and infill_text. Every picture has a name, which the other tools take.

    \b
    Examples:
      unmask mcp
      unmask mcp mini --pictures photos
    """
    if not find_spec("mcp"):
        raise ValueError("the package 'mcp' is not installed; pip install 'unmask[mcp]'")
    from unmask import load
    from unmask.integrations.mcp import server_for
    from unmask.integrations.shelf import Shelf

    use_threads(threads)
    opened = load(
        model,
        device=found_device(device),
        storage=storage.value(),
        lora=lora,
        speed=speed,
        quirks=quirks,
        context=storage.longest(),
        download=download,
        verify=storage.verify,
        graphs=storage.graphs,
    )
    server_for(opened, Shelf(folder=pictures)).run("stdio")
