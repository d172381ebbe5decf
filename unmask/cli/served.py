"""What ``unmask serve`` serves. Public idea: ``open_service(model, ...)`` opens a model for a server, ``named_adapters`` reads --lora."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from unmask.cli.options import Storage, use_threads
from unmask.cli.progress import opening

if TYPE_CHECKING:
    from unmask.serving.service import Service
    from unmask.serving.talks import Talks


def open_replica(threads: int, service: Callable[[], Service | Talks]) -> Service:
    """The service of one replica, in its own process. ValueError for a model of talks."""
    from unmask.serving.talks import Talks

    use_threads(threads)
    opened = service()
    if isinstance(opened, Talks):
        raise ValueError("a model of talks is served by one process; leave out --replicas")
    return opened


def named_adapters(lora: Sequence[str]) -> dict[str, list[str]]:
    """--lora as places by name, those without a name under "". Their folders are made absolute, for other processes.

    ValueError for a name that is given twice or is not made of letters, digits and ``-_.``, and for a folder without a valid adapter.
    """
    from unmask.checkpoints.adapters import adapter_place, read_adapter

    found: dict[str, list[str]] = {"": []}
    for text in lora:
        name, equals, place = text.partition("=")
        if not equals or Path(text).exists():
            name, place = "", text
        elif not re.fullmatch(r"[\w.-]{1,100}", name):
            raise ValueError(
                f"--lora: the name {name[:100]!r} is not made of letters, digits and -_.; give NAME=FOLDER"
            )
        elif name in found:
            raise ValueError(f"--lora: two adapters are called {name!r}; give each its own name")
        folder, scale = adapter_place(place)
        found.setdefault(name, []).append(f"{folder.absolute()}:{scale!r}")
    for place in (place for places in found.values() for place in places):
        read_adapter(adapter_place(place)[0])
    return found


def open_service(
    model: str,
    device: str,
    storage: Storage,
    adapters: Mapping[str, list[str]],
    speed: str,
    quirks: str,
    download: bool,
    live: int,
    waiting: int,
    pixels: int,
    image_output: str,
) -> Service | Talks:
    """The arguments are the options of ``unmask serve``. ValueError for a model without a task that a server has."""
    import unmask
    from unmask.pipeline.adapting import with_adapters
    from unmask.pipeline.model import Model
    from unmask.pipeline.text_model import TextModel
    from unmask.serving.engine import Limits
    from unmask.serving.memory import share_arenas
    from unmask.serving.picture_reader import PictureReader
    from unmask.serving.service import Service
    from unmask.serving.talks import Talker, Talks

    share_arenas()
    opened = unmask.load(
        model,
        device=device,
        storage=storage.value(),
        lora=adapters[""],
        speed=speed,
        quirks=quirks,
        context=storage.longest(),
        download=download,
        on_bytes=opening(model),
        verify=storage.verify,
        graphs=storage.graphs,
    )
    name = Path(model).name if Path(model).exists() else model
    if isinstance(opened, Talker):
        return Talks(opened, name=name)
    if not isinstance(opened, Model | TextModel):
        raise ValueError(f"{model} cannot be served, because it has none of the server's tasks; use it in Python")
    adapted = {name: with_adapters(opened, places, called=model) for name, places in adapters.items() if name}
    limits, reader = Limits(running=live, queued=waiting), PictureReader(most_pixels=pixels)
    return Service(opened, name=name, limits=limits, adapted=adapted, pictures=reader, image_output=image_output)
