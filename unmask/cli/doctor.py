"""The command doctor: what this machine has, and whether the embedded model computes here what it computed at its release."""

from __future__ import annotations

import platform
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from unmask import __version__
from unmask.cli.options import device_option, found_device, json_option, threads_option, use_threads
from unmask.cli.output import news, print_json, table

if TYPE_CHECKING:
    from unmask.evaluation.self_test import Comparison
    from unmask.json_types import Json

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
    import torch

    from unmask.evaluation.history import cpu

    return {
        **{"unmask": __version__, "python": platform.python_version(), "torch": torch.__version__},
        **{"system": f"{platform.system()} {platform.release()} {platform.machine()}", "processor": cpu()},
        **{"instructions": torch.backends.cpu.get_cpu_capability(), "threads": torch.get_num_threads()},
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
    }


def _row(one: Comparison) -> list[str]:
    said = "FAILED" if not one.ok else "equal" if one.exact else "within tolerance"
    return [one.name, f"{one.difference:.2g}", f"{one.tolerance:g}", said]
