"""The command serve: an HTTP server for one model."""

from __future__ import annotations

import functools
import ipaddress
import os
import signal
import sys
import threading
import webbrowser
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

import click

from unmask.cli import completion
from unmask.cli.options import (
    Storage,
    device_option,
    download_option,
    found_device,
    loading_options,
    threads_option,
    use_threads,
)
from unmask.cli.output import news
from unmask.cli.sampling import quirks_option, speed_option
from unmask.cli.served import named_adapters, open_replica, open_service

if TYPE_CHECKING:
    from unmask.serving.access import Access
    from unmask.serving.replicas import Replicas
    from unmask.serving.server import Server

KEY = "UNMASK_API_KEY"
_COUNT = click.IntRange(min=1)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """The options of ``access_options`` as typed."""

    keys: tuple[str, ...]
    key_file: Path | None
    rate: str | None
    private_metrics: bool
    tls: tuple[Path, Path] | None
    origins: tuple[str, ...]
    names: tuple[str, ...]
    max_body: int

    def access(self, host: str) -> Access:
        """ValueError for a bad key file, and for private metrics without keys."""
        from unmask.serving.access import Access, plain_keys, read_keys

        known = plain_keys([*self.keys, *filter(None, [os.environ.get(KEY, "")])])
        access = Access(
            keys=(*known, *(read_keys(self.key_file) if self.key_file else ())),
            origins=self.origins,
            names=(host, *self.names),
            most_bytes=self.max_body * 2**20,
            rate=self.rate,
            private_metrics=self.private_metrics,
        )
        if self.private_metrics and not access.keys:
            raise ValueError("--private-metrics needs API keys; give --api-key or --api-key-file")
        return access


def access_options(command: Callable[..., object]) -> Callable[..., object]:
    """Add the options of who may use the server and how, passed together as ``entry``."""

    @functools.wraps(command)
    def wrapped(
        keys: tuple[str, ...],
        key_file: Path | None,
        rate: str | None,
        private_metrics: bool,
        tls: tuple[Path, Path] | None,
        origins: tuple[str, ...],
        names: tuple[str, ...],
        max_body: int,
        **own: object,
    ) -> object:
        entry = Entry(
            keys=keys,
            key_file=key_file,
            rate=rate,
            private_metrics=private_metrics,
            tls=tls,
            origins=origins,
            names=names,
            max_body=max_body,
        )
        return command(entry=entry, **own)

    options = (
        click.option(
            "--api-key",
            "keys",
            metavar="KEY",
            multiple=True,
            help=f"API key that clients must send; repeatable. Also ${KEY}.",
        ),
        click.option(
            "--api-key-file",
            "key_file",
            type=click.Path(path_type=Path),
            metavar="FILE",
            help="API keys, one per line, each with its scopes: ask, draw, admin.  [default: all scopes]",
        ),
        click.option(
            "--rate",
            metavar="N/UNIT",
            callback=lambda context, option, value: _rate(value),
            help="Most requests of each key, or of each address where there are no keys, such as 60/minute.",
        ),
        click.option("--private-metrics", is_flag=True, help="/metrics needs a key with the scope admin."),
        click.option(
            "--tls",
            nargs=2,
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            metavar="CERTIFICATE KEY",
            help="Serve HTTPS with these PEM files.",
        ),
        click.option(
            "--cors",
            "origins",
            metavar="ORIGIN",
            multiple=True,
            help="Allow requests from pages of this origin; repeatable.",
        ),
        click.option(
            "--host-name",
            "names",
            metavar="NAME",
            multiple=True,
            help="Host name under which clients reach the server; repeatable. Addresses and localhost are always allowed.",
        ),
        click.option(
            "--max-body", type=_COUNT, default=32, show_default=True, metavar="MIB", help="Largest request body."
        ),
    )
    for option in reversed(options):
        wrapped = option(wrapped)
    return wrapped


@click.command()
@click.argument("model", default="mini", shell_complete=completion.models)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0: all.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8000, show_default=True, metavar="N", help="Port; 0: any free one."
)
@click.option(
    "--max-waiting", type=_COUNT, metavar="N", default=128, show_default=True, help="Requests that may be queued."
)
@click.option(
    "--max-live", type=_COUNT, metavar="N", default=32, show_default=True, help="Requests that run at the same time."
)
@click.option(
    "--max-connections", type=_COUNT, metavar="N", default=1000, show_default=True, help="Connections at the same time."
)
@click.option(
    "--max-pixels",
    type=click.IntRange(1, 64_000_000),
    metavar="N",
    default=64_000_000,
    show_default=True,
    help="Most pixels of an image that a client sends.",
)
@click.option(
    "--drain-seconds",
    type=click.FloatRange(min=0),
    default=30,
    metavar="SECONDS",
    show_default=True,
    help="Grace period after SIGTERM.",
)
@click.option(
    "--image-output",
    type=click.Choice(("images", "markdown")),
    metavar="WHERE",
    default="images",
    show_default=True,
    help="Where chats have their images: images (message.images), or markdown (in the text, for clients that show only that).",
)
@access_options
@click.option("--replicas", type=_COUNT, metavar="N", help="Copies of the model, one process each.")
@click.option(
    "--lora",
    metavar="[NAME=]FOLDER[:SCALE]",
    multiple=True,
    help="Load a LoRA adapter; repeatable. With NAME=, for requests that name it as unmask.lora; otherwise for all requests.",
)
@speed_option
@quirks_option
@click.option("--open", "show", is_flag=True, help="Open the web page in a browser.")
@device_option
@threads_option
@loading_options
@download_option
def serve(
    model: str,
    host: str,
    port: int,
    max_waiting: int,
    max_live: int,
    max_connections: int,
    max_pixels: int,
    image_output: str,
    entry: Entry,
    drain_seconds: float,
    replicas: int | None,
    lora: tuple[str, ...],
    speed: str,
    quirks: str,
    show: bool,
    device: str,
    threads: int | None,
    storage: Storage,
    download: bool,
) -> None:
    """Serve a model over HTTP, with a web page.

    MODEL is a shipped model, a folder, or owner/name on the hub. Prints the address when the server is ready; logs go to stderr, one JSON
    object per line. Shuts down gracefully on SIGTERM or Ctrl-C; a second signal exits at once.

    \b
    Examples:
      unmask serve
      unmask serve mini --port 0 --open
      unmask serve runs/mine --host 0.0.0.0 --api-key secret --max-waiting 64
      unmask serve mini --replicas 2
      unmask serve mini --lora pets=runs/pets/adapter --lora style=style:0.5
    """
    for package in ("fastapi", "uvicorn", "limits", "prometheus_client", "python_multipart"):
        if not find_spec(package):
            raise ValueError(
                f"serving needs the package {package!r}, which is not installed; pip install 'unmask[serve]'"
            )
    _refuse_of_one_process(replicas, entry)
    if replicas and not find_spec("ray"):
        raise ValueError("--replicas needs the package 'ray', which is not installed; pip install 'unmask[serve,ray]'")
    from unmask.serving.connections import ConnectionLimits
    from unmask.serving.server import Server, Tls, listen

    access, tls = entry.access(host), entry.tls
    if not access.keys and not _is_loopback(host):
        _warn_of_everybody(host)
    listener = listen(host, port)  # before the model is loaded, so that a port in use fails at once
    device, adapters = found_device(device), named_adapters(lora)
    at = (device, storage, adapters, speed, quirks, download, max_live, max_waiting, max_pixels, image_output)
    if not replicas:
        use_threads(threads)
        service = open_service(model, *at)
        limits = ConnectionLimits(most=max_connections)
        secure = Tls(certificate=tls[0], key=tls[1]) if tls else None
        _run(Server(service, listener, access=access, connections=limits, tls=secure), drain_seconds, show)
        return
    from unmask.serving.replicas import Copies, Replicas

    if device not in ("cpu", "cuda"):
        raise ValueError(f"--replicas needs --device cpu or cuda, got {device!r}; cuda gives every replica its own GPU")
    copies = Copies(
        count=replicas, places=max_live + max_waiting, gpus=int(device == "cuda"), drain_seconds=drain_seconds
    )
    share = threads or max(1, (os.cpu_count() or 1) // replicas)
    where = str(Path(model).resolve()) if Path(model).exists() else model
    service = partial(open_service, where, *at)
    open_ = partial(open_replica, share, service)
    _run(Replicas(open_, listener, copies, access=access), drain_seconds, show)


def _refuse_of_one_process(replicas: int | None, entry: Entry) -> None:
    """ValueError for options that Ray's own HTTP server, which answers for replicas, does not have."""
    given = click.get_current_context().get_parameter_source("max_connections")
    names = ["--tls"] * bool(entry.tls) + ["--max-connections"] * (given is click.core.ParameterSource.COMMANDLINE)
    if replicas and names:
        raise ValueError(f"{names[0]} does not apply to --replicas; put a proxy that has it in front of them")


def _warn_of_everybody(host: str) -> None:
    from unmask.serving.logs import LOG, log_to_stderr

    with log_to_stderr():
        LOG.warning(
            "no API key: everybody who reaches this machine may use the server", extra={"fields": {"host": host}}
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _rate(text: str | None) -> str | None:
    """BadParameter for what is not N/UNIT."""
    if text is None:
        return None
    from limits import parse

    try:
        parse(text)
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a rate; give one such as 60/minute or 5/second") from None
    return text


def _run(server: Server | Replicas, drain_seconds: float, show: bool) -> None:
    """Serve until a signal arrives, then drain; a second signal ends draining."""
    from unmask.serving.logs import LOG, log_to_stderr

    stops: SimpleQueue[int] = SimpleQueue()  # SimpleQueue.put is reentrant, so a signal handler may call it
    before = {s: signal.signal(s, lambda which, _: stops.put(which)) for s in (signal.SIGTERM, signal.SIGINT)}
    with log_to_stderr():
        try:
            server.start()
            click.echo(server.url)
            if sys.stderr.isatty():
                news("open the address in a browser; Ctrl-C stops the server")
            if show:
                webbrowser.open(server.url)
            while not _signalled(stops):
                pass
            LOG.info("draining", extra={"fields": {"seconds": drain_seconds}})
            draining = threading.Thread(target=server.drain, args=[drain_seconds], daemon=True)
            draining.start()
            while draining.is_alive() and not _signalled(stops):
                pass
        finally:
            server.close()
            for which, handler in before.items():
                signal.signal(which, handler)


def _signalled(stops: SimpleQueue[int]) -> bool:
    """Whether a signal arrived in the last 0.2 s.

    Waits with a timeout: the kernel may deliver a signal to another thread, and Python runs its handler only when this one wakes up.
    """
    try:
        stops.get(timeout=0.2)
    except Empty:
        return False
    return True
