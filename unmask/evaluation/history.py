"""The record of every published figure in ``bench/history.jsonl``: date, commit, machine, command.

Public idea: ``append(path, [Line(name="speed.draw", value=1.2, unit="s")])``.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from unmask.json_types import Json
from unmask.writing import append_line


@dataclass(frozen=True, kw_only=True)
class Line:
    """One figure. ``more``: its interval, n and other context."""

    name: str
    value: float
    unit: str
    more: Json | None = None


def append(path: Path, lines: Iterable[Line], *, device: str = "cpu") -> None:
    """Add lines to a history file, all of one moment. ``device``: where they were measured; a GPU is named as ``accelerator``."""
    where, now = _where(device), datetime.now(UTC).isoformat(timespec="seconds")
    rows = [{"date": now, **where, **{k: v for k, v in asdict(line).items() if v is not None}} for line in lines]
    path.parent.mkdir(parents=True, exist_ok=True)
    if rows:
        append_line(path, "\n".join(json.dumps(row) for row in rows))


def measured(path: Path, *, device: str = "cpu") -> dict[str, Line]:
    """The lines, by name, that this command added to a history file before, at this commit and on this machine: a run that was stopped need
    not measure them again.
    """
    if not path.exists():
        return {}
    rows, where = [json.loads(row) for row in path.read_text(encoding="utf-8").splitlines()], _where(device)
    same = [row for row in rows if {name: row.get(name) for name in where} == where]
    return {
        row["name"]: Line(name=row["name"], value=row["value"], unit=row["unit"], more=row.get("more")) for row in same
    }


def _where(device: str) -> Json:
    """Commit, machine and command; ``--resume`` makes no other command."""
    import torch

    return {
        "commit": commit(Path(__file__).parent),
        "machine": {
            "cpu": cpu(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            **({"accelerator": torch.cuda.get_device_name(device)} if device.startswith("cuda") else {}),
        },
        "command": shlex.join([Path(sys.argv[0]).name, *(word for word in sys.argv[1:] if word != "--resume")]),
    }


def figures(report: Json, prefix: str) -> list[Line]:
    """Every figure of a report's JSON that has a value, as lines named ``prefix.part.figure``."""
    lines: list[Line] = []
    for name, value in report.items():
        if not isinstance(value, dict) or name == "about":
            continue
        if isinstance(value.get("value"), int | float):
            more = {k: v for k, v in value.items() if k != "value"}
            unit = "dB" if name.startswith("psnr") else "distance" if name == "frechet" else "share"
            lines.append(Line(name=f"{prefix}.{name}", value=value["value"], unit=unit, more=more))
        else:
            lines += figures(value, f"{prefix}.{name}")
    return lines


def commit(folder: Path) -> str:
    """The short commit of a folder's tree, with ``+`` if files other than the history have changed since; "" outside a repository."""
    try:
        head, changed = (
            subprocess.run(
                ["git", "-C", str(folder), *words], capture_output=True, text=True, check=True
            ).stdout.strip()
            for words in (
                ("rev-parse", "--short", "HEAD"),
                ("status", "--porcelain", "--untracked-files=no", "--", ":/", ":(top,exclude)bench/history.jsonl"),
            )
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return head + ("+" if changed else "")


def cpu() -> str:
    """The CPU model name."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
