"""The command serve: one model for many, over HTTP."""

from __future__ import annotations

import os
import signal
import threading
import webbrowser
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import click

from unmask.cli.options import (
    Storage,
    check_device,
    device_option,
    download_option,
    storage_options,
    threads_option,
    use_threads,
)

KEY = "UNMASK_API_KEY"
_COUNT = click.IntRange(min=1)


@click.command()
@click.argument("model", default="mini")
@click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen; 0.0.0.0: at every address.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0: any that is free.")
@click.option(
    "--api-key",
    "keys",
    metavar="KEY",
    multiple=True,
    help=f"A key that clients must have; may be repeated. Also ${KEY}.",
)
@click.option("--cors", "origins", metavar="ORIGIN", multiple=True, help="A site whose pages may ask; may be repeated.")
@click.option("--max-waiting", type=_COUNT, default=128, show_default=True, help="Calls that may wait.")
@click.option("--max-live", type=_COUNT, default=32, show_default=True, help="Calls at work at the same time.")
@click.option("--max-body", type=_COUNT, default=32, show_default=True, metavar="MIB", help="Size of one request.")
@click.option(
    "--drain-seconds", type=click.FloatRange(min=0), default=30, show_default=True, help="Time to finish after SIGTERM."
)
@click.option("--replicas", type=_COUNT, help="Copies of the model behind one address, each a process.")
@click.option("--open", "show", is_flag=True, help="Open the page in a browser.")
@device_option
@threads_option
@storage_options
@download_option
def serve(
    model: str,
    host: str,
    port: int,
    keys: tuple[str, ...],
    origins: tuple[str, ...],
    max_waiting: int,
    max_live: int,
    max_body: int,
    drain_seconds: float,
    replicas: int | None,
    show: bool,
    device: str,
    threads: int | None,
    storage: Storage,
    download: bool,
) -> None:
    """Serve a model over HTTP, with a page to watch it at work.

    MODEL is a shipped model, a folder, or owner/name of the hub. Prints the address once it answers; the log, a JSON object a line, goes
    to stderr. Ends well on SIGTERM and on Ctrl-C: what is under way is finished, the second time it is not.

    \b
    Examples:
      unmask serve
      unmask serve mini --port 0 --open
      unmask serve runs/mine --host 0.0.0.0 --api-key secret --max-waiting 64
      unmask serve mini --replicas 2
    """
    for package in ("fastapi", "uvicorn", "python_multipart"):
        if not find_spec(package):
            raise ValueError(f"serving needs the package {package!r}, which is missing; pip install 'unmask[serve]'")
    if replicas and not find_spec("ray"):
        raise ValueError("replicas need the package 'ray', which is missing; pip install 'unmask[serve,ray]'")
    from unmask.serving.server import Server, listen

    listener = listen(host, port)  # before the model is read: a port that is taken shows at once
    check_device(device)
    known = [*keys, *filter(None, [os.environ.get(KEY, "")])]
    edge: dict[str, Any] = {"keys": known, "origins": origins, "most_bytes": max_body * 2**20}
    if not replicas:
        use_threads(threads)
        service = _service(model, device, storage, download, max_live, max_waiting)
        _run(Server(service, listener, **edge), drain_seconds, show)
        return
    from unmask.serving.replicas import Copies, Replicas

    if device not in ("cpu", "cuda"):
        raise ValueError(f"each replica has a device of its own, got {device!r}; give cpu, or cuda for a GPU each")
    copies = Copies(
        count=replicas, places=max_live + max_waiting, gpus=int(device == "cuda"), drain_seconds=drain_seconds
    )
    share = threads or max(1, (os.cpu_count() or 1) // replicas)
    where = str(Path(model).resolve()) if Path(model).exists() else model
    open_ = partial(_replica, share, where, device, storage, download, max_live, max_waiting)
    _run(Replicas(open_, listener, copies, **edge), drain_seconds, show)


def _replica(threads: int, *given: Any) -> Any:
    """A service in the process of a replica."""
    use_threads(threads)
    return _service(*given)


def _service(model: str, device: str, storage: Storage, download: bool, live: int, waiting: int) -> Any:
    import unmask
    from unmask.serving.engine import Limits
    from unmask.serving.service import Service

    opened = unmask.load(model, device=device, storage=storage.keep(), download=download)
    name = Path(model).name if Path(model).exists() else model
    return Service(opened, name=name, limits=Limits(live=live, waiting=waiting))


def _run(server: Any, drain_seconds: float, show: bool) -> None:
    """Serve until a signal comes; a second one ends it at once."""
    from unmask.serving.edge import LOG, log_to

    stops: SimpleQueue[int] = SimpleQueue()  # a handler may stand between any two instructions: its put needs no lock
    before = {s: signal.signal(s, lambda which, _: stops.put(which)) for s in (signal.SIGTERM, signal.SIGINT)}
    undo = log_to()
    try:
        server.start()
        click.echo(server.url)
        if show:
            webbrowser.open(server.url)
        while not _told(stops):
            pass
        LOG.info("draining", extra={"fields": {"seconds": drain_seconds}})
        draining = threading.Thread(target=server.drain, args=[drain_seconds], daemon=True)
        draining.start()
        while draining.is_alive() and not _told(stops):
            pass
    finally:
        server.close()
        undo()
        for which, handler in before.items():
            signal.signal(which, handler)


def _told(stops: SimpleQueue[int]) -> bool:
    """Whether a signal comes within a moment.

    Never waited for without end: the kernel may give a signal to another thread, whose handler runs only once this one wakes up.
    """
    try:
        stops.get(timeout=0.2)
    except Empty:
        return False
    return True
