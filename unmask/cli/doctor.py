"""The command doctor: what this machine has, and whether the embedded model computes here what it computed at its release."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

import click

from unmask import __version__
from unmask.cli.options import device_option, found_device, json_option, threads_option, use_threads
from unmask.cli.output import news, print_json, table
from unmask.cli.progress import working

if TYPE_CHECKING:
    from unmask.evaluation.self_test import Comparison
    from unmask.json_types import Json

# Packages of the extras, of which a machine has some.
_OPTIONAL = (
    *("transformers", "huggingface-hub", "datasets", "torchao", "pillow-heif", "tensorboard", "fastapi", "ray"),
    *("diffusers", "mcp", "lm-eval"),
)
_EQUAL = "this machine is of the class of the reference machine: every bit must be equal"
_OTHER = "another class of machine (%s): probabilities may differ in their last digits, and the drawings that follow from them"


@click.command()
@click.option("--self-test", is_flag=True, help="Compare results of the embedded model with those of its release.")
@json_option
@device_option
@threads_option
def doctor(self_test: bool, as_json: bool, device: str, threads: int | None) -> int:
    """Show versions and devices, and test the embedded model.

    The self-test draws, edits, answers and finds with mini, and compares the results with figures in the package. On a machine of the
    same class (system, processor, instructions, torch, threads) every bit must be equal. Otherwise numbers must agree within a tolerance
    and texts must be equal; a GPU is such a case. It uses one thread, as the figures do, unless --threads is given. Exit code 1 if a
    result is not as it must be.

    \b
    Examples:
      unmask doctor
      unmask doctor --self-test
      unmask doctor --self-test --device cuda --json
    """
    use_threads(threads or 1 if self_test else threads)
    found = _environment(found_device(device))
    if not self_test:
        print_json(found) if as_json else click.echo(table(["what", "value"], [[k, str(v)] for k, v in found.items()]))
        return 0
    from unmask import load
    from unmask.evaluation.self_test import Machine, compared, figures_of, shipped
    from unmask.pipeline.model import Model

    model = load("mini", device=found_device(device))
    assert isinstance(model, Model)
    here, (reference, wanted) = Machine.of(model), shipped()
    with working("computing"):
        results = compared(figures_of(model), wanted, exactly=here == reference)
    differs = [name for name, value in asdict(here).items() if value != asdict(reference)[name]]
    ok = all(one.ok for one in results)
    if as_json:
        machines = {"machine": asdict(here), "reference": asdict(reference), "differs": differs}
        print_json({**found, **machines, "ok": ok, "results": [one.to_json() for one in results]})
    else:
        news(_OTHER % ", ".join(differs) if differs else _EQUAL)
        click.echo(table(["result", "difference", "tolerance", ""], [_row(one) for one in results]))
    return 0 if ok else 1


def _environment(device: str) -> Json:
    """What this machine has, by the names of the table."""
    import torch

    from unmask.checkpoints.device import available
    from unmask.evaluation.history import cpu

    there = _packages()
    shown = [f"{name} {found}" for name, found in there.items()]
    missing = [name for name in _OPTIONAL if name not in there]
    return {
        **{"unmask": __version__, "python": platform.python_version(), "torch": torch.__version__},
        **{"system": f"{platform.system()} {platform.release()} {platform.machine()}", "processor": cpu()},
        **{"instructions": torch.backends.cpu.get_cpu_capability(), "threads": torch.get_num_threads()},
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
        **{"devices": ", ".join(available()), "memory": _memory(device)},
        **{
            "packages": ", ".join(shown) or "none of the extras",
            "not installed": ", ".join(missing) or "nothing",
        },
        **{"caches": ", ".join(_caches()) or "empty"},
    }


def _memory(device: str) -> str:
    """Free memory of the CPU and of the device."""
    from unmask.checkpoints.budget import GIB, free_bytes

    free = {place: free_bytes(place) for place in dict.fromkeys(("cpu", device))}
    return ", ".join(f"{n / GIB:.1f} GiB free on {place}" for place, n in free.items() if n is not None) or "not known"


def _packages() -> dict[str, str]:
    """The version of every optional package that is installed, by name."""
    found = {}
    for name in _OPTIONAL:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _caches() -> list[str]:
    """The folders that models and data are kept in between calls, with their sizes."""
    from unmask.checkpoints.budget import GIB

    places = (_hub_cache(), Path.home() / ".cache" / "unmask")
    sizes = {
        place: sum(f.stat().st_size for f in place.rglob("*") if f.is_file() and not f.is_symlink()) for place in places
    }
    return [f"{place} ({size / GIB:.2f} GiB)" for place, size in sizes.items() if size]


def _hub_cache() -> Path:
    """Where huggingface_hub keeps models, by its own rules."""
    home = os.environ.get("HF_HOME") or str(Path.home() / ".cache" / "huggingface")
    return Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub").expanduser()


def _row(one: Comparison) -> list[str]:
    said = "FAILED" if not one.ok else "equal" if one.exact else "within tolerance"
    return [one.name, f"{one.difference:.2g}", f"{one.tolerance:g}", said]
