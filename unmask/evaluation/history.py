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
    import torch

    where = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(Path(__file__).parent),
        "machine": {
            "cpu": cpu(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            **({"accelerator": torch.cuda.get_device_name(device)} if device.startswith("cuda") else {}),
        },
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }
    rows = [{**where, **{k: v for k, v in asdict(line).items() if v is not None}} for line in lines]
    path.parent.mkdir(parents=True, exist_ok=True)
    if rows:
        append_line(path, "\n".join(json.dumps(row) for row in rows))


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
    """The short commit of a folder's tree, with ``+`` if files have changed since; "" outside a repository."""
    try:
        head, changed = (
            subprocess.run(
                ["git", "-C", str(folder), *words], capture_output=True, text=True, check=True
            ).stdout.strip()
            for words in (("rev-parse", "--short", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return head + ("+" if changed else "")


def cpu() -> str:
    """The CPU model name."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
